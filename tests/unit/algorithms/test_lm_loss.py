import math

import torch

from framework.algorithms.lm_loss import add_mtp_loss, lm_loss
from framework.algorithms.logprobs import token_logprobs


def test_hand_worked() -> None:
    # Probabilities 3/4 and 1/2 of the two trained targets; the third position, certain and wrong, is not trained.
    logits_TV = torch.tensor([[0.0, math.log(3.0)], [1.0, 1.0], [1e4, -1e4]], requires_grad=True)
    output = lm_loss(token_logprobs(logits_TV, torch.tensor([1, 0, 1])), torch.tensor([1.0, 0.5, 0.0]))
    torch.testing.assert_close(output.loss.item(), -math.log(0.75) - 0.5 * math.log(0.5), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(output.metrics["nll"], -math.log(0.75) - math.log(0.5), rtol=1e-6, atol=0.0)
    assert output.count == 2
    output.loss.backward()
    assert logits_TV.grad is not None
    expected = torch.tensor([[0.25, -0.25], [-0.25, 0.25], [0.0, 0.0]])  # w (softmax - onehot)
    torch.testing.assert_close(logits_TV.grad, expected)


def test_gradient_matches_cross_entropy_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_TV = torch.randn(6, 9, generator=generator, dtype=torch.float64, requires_grad=True)
    targets_T, mask_T = torch.arange(6), torch.tensor([1.0, 0, 1, 1, 0, 1], dtype=torch.float64)
    losses_T = torch.nn.functional.cross_entropy(logits_TV, targets_T, reduction="none")
    (expected,) = torch.autograd.grad((losses_T * mask_T).sum(), logits_TV)
    (gradient,) = torch.autograd.grad(lm_loss(token_logprobs(logits_TV, targets_T), mask_T).loss, logits_TV)
    torch.testing.assert_close(gradient, expected)


def test_untrained_nan_does_not_spread() -> None:
    logits_TV = torch.tensor([[0.0, 0.0], [math.nan, 0.0]])
    assert lm_loss(token_logprobs(logits_TV, torch.tensor([0, 0])), torch.tensor([1.0, 0.0])).loss.isfinite()


def test_mtp_combination() -> None:
    # 2 + 0.3 / 2 * (1 + 3) = 2.6
    depths = [torch.tensor(1.0), torch.tensor(3.0)]
    torch.testing.assert_close(add_mtp_loss(torch.tensor(2.0), depths, 0.3), torch.tensor(2.6))
    assert add_mtp_loss(torch.tensor(2.0), [], 0.3).item() == 2.0
