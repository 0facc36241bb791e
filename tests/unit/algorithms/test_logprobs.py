import math

import pytest
import torch

from framework.algorithms import logprobs
from framework.algorithms.logprobs import token_logprobs, token_scores


def token_entropy(logits_TV: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    return token_scores(logits_TV, torch.zeros(len(logits_TV), dtype=torch.int64), temperature).entropy_T


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", {"cpu": 14})  # two rows of seven at a time


def test_hand_worked() -> None:
    # softmax([0, ln 3]) = [1/4, 3/4]; at temperature 1/2 the odds are squared: [1/10, 9/10]
    logits_TV = torch.tensor([[0.0, math.log(3.0)]])
    torch.testing.assert_close(token_logprobs(logits_TV, torch.tensor([1])), torch.tensor([math.log(0.75)]))
    torch.testing.assert_close(token_logprobs(logits_TV, torch.tensor([0]), 0.5), torch.tensor([math.log(0.1)]))
    at_one_T = token_scores(logits_TV, torch.tensor([1])).logprobs_T
    torch.testing.assert_close(at_one_T, torch.tensor([math.log(0.75)]))
    entropy = -(0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    torch.testing.assert_close(token_entropy(logits_TV, 0.5), torch.tensor([entropy]))


@pytest.mark.parametrize(("elements", "rows"), [(14, (2, 2, 1)), (3, (1,) * 5), (7, (1,) * 5), (100, (5,))])
def test_chunks_are_of_so_many_elements_and_at_least_a_row(
    elements: int, rows: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", {"cpu": elements})
    found = list(logprobs._chunks(torch.zeros(5, 7)))
    assert tuple(chunk.stop - chunk.start for chunk in found) == rows
    assert [row for chunk in found for row in range(5)[chunk]] == list(range(5))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunked_values_and_gradient_match_the_plain_formula(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_TV = (3 * torch.randn(5, 7, generator=generator, dtype=torch.float64)).requires_grad_()
    targets_T = torch.randint(0, 7, (5,), generator=generator)
    weights_T = torch.randn(5, generator=generator, dtype=torch.float64)
    plain_T = torch.log_softmax(logits_TV / temperature, -1).gather(1, targets_T[:, None])[:, 0]
    (expected,) = torch.autograd.grad((plain_T * weights_T).sum(), logits_TV)
    ours_T = token_logprobs(logits_TV, targets_T, temperature)
    (gradient,) = torch.autograd.grad((ours_T * weights_T).sum(), logits_TV)
    torch.testing.assert_close(ours_T, plain_T)
    torch.testing.assert_close(gradient, expected)
    plain_TV = torch.log_softmax(logits_TV / temperature, -1)
    torch.testing.assert_close(token_entropy(logits_TV, temperature), -(plain_TV.exp() * plain_TV).sum(-1).detach())
    assert not token_entropy(logits_TV, temperature).requires_grad
    assert torch.autograd.gradcheck(lambda x: token_logprobs(x, targets_T, temperature), logits_TV)


@pytest.mark.usefixtures("small_chunks")
def test_bfloat16_logits_are_normalised_in_float32_and_saved_as_they_are() -> None:
    logits_TV = torch.randn(9, 7, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
    targets_T = torch.arange(9) % 7
    saved: list[torch.Tensor] = []

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        ours_T = token_logprobs(logits_TV, targets_T)
    exact_T = torch.log_softmax(logits_TV.detach().double(), -1).gather(1, targets_T[:, None])[:, 0]
    assert ours_T.dtype == torch.float32
    torch.testing.assert_close(ours_T.double(), exact_T, rtol=1e-6, atol=1e-6)
    matrices = [tensor for tensor in saved if tensor.shape == logits_TV.shape]
    assert [tensor.dtype for tensor in matrices] == [torch.bfloat16]
    ours_T.sum().backward()
    assert logits_TV.grad is not None
    assert logits_TV.grad.dtype == torch.bfloat16


def test_no_tokens() -> None:
    logits_TV = torch.empty(0, 7, requires_grad=True)
    token_logprobs(logits_TV, torch.empty(0, dtype=torch.int64)).sum().backward()
    assert logits_TV.grad is not None
    assert token_entropy(logits_TV).shape == (0,)


def test_entropy_of_excluded_tokens_and_of_the_uniform() -> None:
    logits_TV = torch.tensor([[0.0, 0.0, -math.inf, 0.0], [2.0, 2.0, 2.0, 2.0]])
    torch.testing.assert_close(token_entropy(logits_TV), torch.tensor([math.log(3.0), math.log(4.0)]))


def test_large_logits_do_not_overflow() -> None:
    logits_TV = torch.tensor([[1e4, -1e4]], requires_grad=True)
    value = token_logprobs(logits_TV, torch.tensor([1]))
    value.sum().backward()
    torch.testing.assert_close(value, torch.tensor([-2e4]))
    torch.testing.assert_close(logits_TV.grad, torch.tensor([[-1.0, 1.0]]))


def test_temperature_must_be_positive() -> None:
    with pytest.raises(ValueError, match="temperature"):
        token_logprobs(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), 0.0)


def test_bfloat16_logits_are_divided_by_the_temperature_in_float32() -> None:
    logits_TV = torch.randn(9, 7, generator=torch.Generator().manual_seed(1)).bfloat16()
    targets_T = torch.arange(9) % 7
    exact_T = torch.log_softmax(logits_TV.double() / 0.7, -1).gather(1, targets_T[:, None])[:, 0].float()
    torch.testing.assert_close(token_logprobs(logits_TV, targets_T, 0.7), exact_T, rtol=1e-5, atol=1e-5)
