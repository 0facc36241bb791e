import math

import torch

from framework.algorithms.kl import MAX_LOG_RATIO, k1, k3


def test_hand_worked() -> None:
    # pi = 1/2, pi_ref = 1/4: k1 = ln 2; k3 = 1/2 - ln(1/2) - 1 = ln 2 - 1/2
    logprobs_T, ref_T = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    torch.testing.assert_close(k1(logprobs_T, ref_T), torch.tensor([math.log(2.0)]))
    torch.testing.assert_close(k3(logprobs_T, ref_T), torch.tensor([math.log(2.0) - 0.5]))


def test_both_are_unbiased() -> None:
    """Their expectation under pi, summed exactly over a small vocabulary, is the divergence."""
    generator = torch.Generator().manual_seed(0)
    policy_V, ref_V = torch.randn(2, 11, generator=generator, dtype=torch.float64).log_softmax(-1)
    divergence = torch.nn.functional.kl_div(ref_V, policy_V, reduction="sum", log_target=True)
    for estimator in (k1, k3):
        torch.testing.assert_close((policy_V.exp() * estimator(policy_V, ref_V)).sum(), divergence)


def test_k3_is_accurate_near_zero_and_never_negative() -> None:
    gap_T = torch.tensor([1e-4, -1e-4, 0.0])
    values_T = k3(gap_T, torch.zeros(3))
    torch.testing.assert_close(values_T, gap_T**2 / 2, rtol=1e-3, atol=0.0)
    assert (k3(torch.linspace(-5, 5, 101), torch.zeros(101)) >= 0).all()


def test_k3_gradient_is_finite_when_the_ratio_overflows() -> None:
    logprobs_T = torch.tensor([-200.0, -1.0], requires_grad=True)
    values_T = k3(logprobs_T, torch.tensor([0.0, -200.0]))
    values_T.sum().backward()
    torch.testing.assert_close(values_T[0].item(), math.exp(MAX_LOG_RATIO) - MAX_LOG_RATIO - 1, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(logprobs_T.grad, torch.zeros(2))
