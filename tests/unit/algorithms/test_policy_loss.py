import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from framework.algorithms.policy_loss import GrpoConfig, denominator, policy_loss
from framework.errors import UserError
from framework.types import LossOutput, MicroBatch


def row(*lengths: int, seed: int = 0, drift: float = 0.5, dtype: torch.dtype = torch.float64) -> MicroBatch:
    """Segments whose second half is the response, with an advantage and logprobs of their own."""
    generator = torch.Generator().manual_seed(seed)
    n_tokens = sum(lengths)
    mask_T, advantages_T, weights_T = (torch.zeros(n_tokens, dtype=dtype) for _ in range(3))
    start = 0
    for length in lengths:
        first, last = start + length // 2, start + length - 1  # the last position predicts nothing
        mask_T[first:last] = 1
        advantages_T[first:last] = torch.randn((), generator=generator, dtype=dtype)
        weights_T[first:last] = 1 / max(1, last - first)
        start += length

    def noise() -> torch.Tensor:
        return drift * torch.randn(n_tokens, generator=generator, dtype=dtype)

    base_T = -1 - torch.rand(n_tokens, generator=generator, dtype=dtype)
    return MicroBatch(
        token_ids_T=torch.zeros(n_tokens, dtype=torch.int64),
        position_ids_T=torch.cat([torch.arange(n) for n in lengths]),
        segment_lengths_S=torch.tensor(lengths),
        targets_T=torch.zeros(n_tokens, dtype=torch.int64),
        mask_T=mask_T,
        advantages_T=advantages_T,
        old_logprobs_T=base_T + noise(),
        sampler_logprobs_T=base_T + noise(),
        ref_logprobs_T=base_T + noise(),
        weights_T=weights_T,
        sample_index_S=tuple(range(len(lengths))),
    )


def one_token(advantage: float, ratio: float, sampler: float = 0.5, ref: float = 0.5, old: float = 0.5) -> Any:
    """A single trained token with pi_old = `old`, pi = old * ratio; returns (logprobs_T, micro)."""
    one = torch.ones(1, dtype=torch.float64)
    micro = replace(
        row(1),
        mask_T=one,
        weights_T=one,
        advantages_T=one * advantage,
        old_logprobs_T=one * math.log(old),
        sampler_logprobs_T=one * math.log(sampler),
        ref_logprobs_T=one * math.log(ref),
    )
    return (one * math.log(old * ratio)).requires_grad_(), micro


NO_KL = GrpoConfig(kl_coef=0.0)


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "gradient", "clipped"),
    [
        (2.0, 1.1, -2.2, -2.2, None),  # inside: -rho A, and d(-rho A)/d logpi is the same
        (2.0, 1.5, -2.4, 0.0, "clip_high"),  # held at 1.2 A
        (2.0, 0.5, -1.0, -1.0, None),  # min() takes the unclipped side
        (-2.0, 0.5, 1.6, 0.0, "clip_low"),  # held at 0.8 A
        (-2.0, 1.5, 3.0, 3.0, None),
    ],
)
def test_clipping_hand_worked(
    advantage: float, ratio: float, loss: float, gradient: float, clipped: str | None
) -> None:
    logprobs_T, micro = one_token(advantage, ratio)
    output = policy_loss(logprobs_T, micro, NO_KL)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(loss)
    assert logprobs_T.grad.item() == pytest.approx(gradient)
    assert output.metrics["ratio"] == pytest.approx(ratio)
    assert [name for name in ("clip_low", "clip_high") if output.metrics[name]] == ([clipped] if clipped else [])
    assert output.tokens == 1


def test_low_and_high_clip_are_separate() -> None:
    config = GrpoConfig(kl_coef=0.0, clip_low=0.2, clip_high=0.28)
    assert policy_loss(*one_token(1.0, 1.25), config).loss.item() == pytest.approx(-1.25)
    assert policy_loss(*one_token(1.0, 1.3), config).loss.item() == pytest.approx(-1.28)
    # R1's first stage, 10: nothing binds below 11.
    wide = GrpoConfig(kl_coef=0.0, clip_low=10, clip_high=10)
    assert policy_loss(*one_token(1.0, 9.0), wide).loss.item() == pytest.approx(-9.0)
    assert policy_loss(*one_token(1.0, 12.0), wide).loss.item() == pytest.approx(-11.0)
    assert policy_loss(*one_token(-1.0, 0.01), wide).loss.item() == pytest.approx(0.01)


def test_kl_hand_worked() -> None:
    # pi = 1/2, ref = 1/4: k3 = 1/2 + ln 2 - 1; its gradient in log pi is 1 - ref/pi = 1/2
    k3 = math.log(2) - 0.5
    logprobs_T, micro = one_token(0.0, 1.0, ref=0.25)
    output = policy_loss(logprobs_T, micro, GrpoConfig(kl_coef=0.1))
    output.loss.backward()
    assert output.loss.item() == pytest.approx(0.1 * k3)
    assert logprobs_T.grad.item() == pytest.approx(0.05)
    assert output.metrics["ref_kl"] == pytest.approx(k3)
    assert "ref_kl" not in policy_loss(logprobs_T, micro, NO_KL).metrics  # there is no reference
    # unbiased: times rho, through which it also differentiates: 0.1 (k3 + 1/2) at rho = 1
    logprobs_T, micro = one_token(0.0, 1.0, ref=0.25)
    policy_loss(logprobs_T, micro, GrpoConfig(kl_coef=0.1, kl_estimator="k3_unbiased")).loss.backward()
    assert logprobs_T.grad.item() == pytest.approx(0.1 * (k3 + 0.5))


def test_unbiased_kl_gradient_is_that_of_the_divergence() -> None:
    """Summed over the vocabulary under pi_old: the gradient of KL(pi || ref), what V3.2 corrects k3 for."""
    generator = torch.Generator().manual_seed(0)
    logits_V = torch.randn(6, generator=generator, dtype=torch.float64, requires_grad=True)
    old_V, ref_V = torch.randn(2, 6, generator=generator, dtype=torch.float64).log_softmax(-1)
    policy_V = logits_V.log_softmax(-1)
    (exact,) = torch.autograd.grad((policy_V.exp() * (policy_V - ref_V)).sum(), logits_V, retain_graph=True)
    micro = replace(
        row(6),
        mask_T=torch.ones(6, dtype=torch.float64),
        weights_T=old_V.exp(),  # expectation over tokens drawn from pi_old
        advantages_T=torch.zeros(6, dtype=torch.float64),
        old_logprobs_T=old_V,
        ref_logprobs_T=ref_V,
    )
    config = GrpoConfig(kl_coef=1.0, kl_estimator="k3_unbiased")
    (ours,) = torch.autograd.grad(policy_loss(policy_V, micro, config).loss, logits_V)
    torch.testing.assert_close(ours, exact)


def test_truncated_importance_sampling_hand_worked() -> None:
    # old / sampler = 0.5 / 0.4 = 1.25 and 0.5 / 0.1 = 5, capped at 2: scales the policy term, not the KL
    config = GrpoConfig(kl_coef=0.1, old_logprobs="learner", tis_cap=2.0)
    kl = 0.1 * (math.log(2) - 0.5)
    for sampler, weight in ((0.4, 1.25), (0.1, 2.0)):
        logprobs_T, micro = one_token(1.0, 1.0, sampler=sampler, ref=0.25)
        output = policy_loss(logprobs_T, micro, config)
        assert output.loss.item() == pytest.approx(-weight + kl)
        assert output.metrics["tis_weight"] == pytest.approx(weight)


def test_offpolicy_mask_hand_worked() -> None:
    """Drift is averaged over the response; only negative advantages are masked, and the KL term stays."""
    micro = row(4, 4, 4, drift=0.0)
    policy = micro.sampler_logprobs_T.clone()
    for segment, (advantage, drifts) in enumerate([(-1.0, (0.5, 0.1)), (1.0, (0.5, 0.1)), (-1.0, (0.5, -0.1))]):
        at = slice(4 * segment + 1, 4 * segment + 3)
        micro.mask_T[at], micro.weights_T[at], micro.advantages_T[at] = 1.0, 1.0, advantage
        policy[at] -= torch.tensor(drifts)  # mean log(sampler / pi): 0.3, 0.3, 0.2
    logprobs_T = policy.requires_grad_()
    output = policy_loss(logprobs_T, micro, GrpoConfig(kl_coef=0.0, offpolicy_mask_delta=0.25))
    output.loss.backward()
    assert output.metrics["offpolicy_masked"] == 2  # the tokens of the first response
    assert logprobs_T.grad[1:3].tolist() == [0.0, 0.0]
    assert (logprobs_T.grad[5:7] != 0).all()
    assert logprobs_T.grad[9:11].abs().sum() > 0
    with_kl = policy_loss(logprobs_T, micro, GrpoConfig(kl_coef=0.1, offpolicy_mask_delta=0.25))
    (gradient,) = torch.autograd.grad(with_kl.loss, logprobs_T)
    assert (gradient[1:3] != 0).all()


CONFIGS = [
    GrpoConfig(),
    GrpoConfig(clip_high=0.28, kl_coef=0.0, denominator="token"),
    GrpoConfig(clip_low=10, clip_high=10, kl_coef=0.04, old_logprobs="learner", tis_cap=1.5),
    GrpoConfig(kl_coef=0.1, kl_estimator="k3_unbiased", offpolicy_mask_delta=0.05, advantage_std=False),
]


def reference_loss(logprobs_T: torch.Tensor, micro: MicroBatch, config: GrpoConfig) -> torch.Tensor:
    """The objective written token by token, as the papers state it."""
    total, start = torch.zeros((), dtype=torch.float64), 0
    for length in micro.segment_lengths_S.tolist():
        tokens = [t for t in range(start, start + length) if micro.mask_T[t] > 0]
        start += length
        drift = sum(float(micro.sampler_logprobs_T[t] - logprobs_T[t].detach()) for t in tokens) / max(1, len(tokens))
        for t in tokens:
            advantage = float(micro.advantages_T[t])
            ratio = torch.exp(logprobs_T[t] - micro.old_logprobs_T[t])
            clipped = torch.clamp(ratio, 1 - config.clip_low, 1 + config.clip_high)
            term = torch.min(ratio * advantage, clipped * advantage)
            if config.tis_cap is not None:
                weight = math.exp(float(micro.old_logprobs_T[t] - micro.sampler_logprobs_T[t]))
                term = term * min(weight, config.tis_cap)
            delta = config.offpolicy_mask_delta
            if delta is not None and advantage < 0 and drift > delta:
                term = term * 0.0
            ref_ratio = torch.exp(micro.ref_logprobs_T[t] - logprobs_T[t])
            kl = ref_ratio - torch.log(ref_ratio) - 1
            if config.kl_estimator == "k3_unbiased":
                kl = ratio * kl
            total = total - micro.weights_T[t] * (term - config.kl_coef * kl)
    return total


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient_match_the_reference(config: GrpoConfig, seed: int) -> None:
    micro = row(7, 12, 3, 9, seed=seed)
    generator = torch.Generator().manual_seed(seed + 100)
    shift_T = 0.4 * torch.randn(31, generator=generator, dtype=torch.float64)
    logprobs_T = (micro.old_logprobs_T + shift_T).requires_grad_()
    expected = reference_loss(logprobs_T, micro, config)
    (expected_gradient,) = torch.autograd.grad(expected, logprobs_T)
    output = policy_loss(logprobs_T, micro, config)
    (gradient,) = torch.autograd.grad(output.loss, logprobs_T)
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def merged(outputs: list[LossOutput]) -> tuple[float, dict[str, float], float]:
    metrics = {name: sum(output.metrics[name] for output in outputs) for name in outputs[0].metrics}
    return sum(output.loss.item() for output in outputs), metrics, sum(output.tokens for output in outputs)


@pytest.mark.parametrize("config", CONFIGS)
def test_sums_do_not_depend_on_the_split(config: GrpoConfig) -> None:
    lengths = (7, 12, 3, 9)
    micro = row(*lengths)
    logprobs_T = micro.old_logprobs_T + 0.1
    pieces, start = [], 0
    for length in lengths:
        at = slice(start, start + length)
        names = [name for name in vars(micro) if name.endswith("_T")]
        piece = replace(micro, **{name: getattr(micro, name)[at] for name in names})
        pieces.append((logprobs_T[at], replace(piece, segment_lengths_S=torch.tensor([length]))))
        start += length
    whole = merged([policy_loss(logprobs_T, micro, config, entropy_T=logprobs_T.exp())])
    parts = merged([policy_loss(part, piece, config, entropy_T=part.exp()) for part, piece in pieces])
    assert parts[0] == pytest.approx(whole[0])
    assert parts[1] == pytest.approx(whole[1])
    assert parts[2] == whole[2] == micro.mask_T.sum()


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_masked_positions_have_no_effect(config: GrpoConfig, poison: float) -> None:
    micro = row(6, 5, dtype=torch.float32)
    clean_T = micro.old_logprobs_T.clone().requires_grad_()
    dirty_T = torch.where(micro.mask_T > 0, clean_T.detach(), poison).requires_grad_()
    dirty = replace(
        micro,
        old_logprobs_T=torch.where(micro.mask_T > 0, micro.old_logprobs_T, poison),
        sampler_logprobs_T=torch.where(micro.mask_T > 0, micro.sampler_logprobs_T, poison),
        ref_logprobs_T=torch.where(micro.mask_T > 0, micro.ref_logprobs_T, poison),
    )
    a, b = policy_loss(clean_T, micro, config), policy_loss(dirty_T, dirty, config)
    (a.loss + b.loss).backward()
    assert a.loss.item() == b.loss.item()
    assert a.metrics == b.metrics
    assert clean_T.grad is not None
    assert clean_T.grad.equal(dirty_T.grad)
    assert clean_T.grad[micro.mask_T == 0].abs().sum() == 0


@pytest.mark.parametrize("config", CONFIGS)
def test_absurd_ratios_stay_finite(config: GrpoConfig) -> None:
    micro = row(6, 5, 7, dtype=torch.float32)
    for shift in (-300.0, 300.0):
        logprobs_T = (micro.old_logprobs_T + shift).requires_grad_()
        output = policy_loss(logprobs_T, micro, config)
        output.loss.backward()
        assert logprobs_T.grad is not None
        assert output.loss.isfinite()
        assert logprobs_T.grad.isfinite().all()


def test_a_row_that_trains_nothing_gives_zero_and_a_gradient() -> None:
    micro = row(1)
    logprobs_T = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    output = policy_loss(logprobs_T, micro, CONFIGS[3])
    output.loss.backward()
    assert (output.loss.item(), output.tokens, set(output.metrics.values())) == (0.0, 0.0, {0.0})
    assert logprobs_T.grad.tolist() == [0.0]


def test_entropy_is_summed_over_trained_tokens() -> None:
    micro = row(6)
    entropy_T = torch.where(micro.mask_T > 0, 2.0, math.nan)
    output = policy_loss(micro.old_logprobs_T, micro, GrpoConfig(), entropy_T)
    assert output.metrics["entropy"] == 2.0 * output.tokens


def test_denominator() -> None:
    assert denominator(GrpoConfig(), n_responses=16, n_tokens=700) == 16
    assert denominator(GrpoConfig(denominator="token"), n_responses=16, n_tokens=700) == 700
    constant = GrpoConfig(denominator="constant", constant_length=64)
    assert denominator(constant, n_responses=16, n_tokens=700) == 1024


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"clip_low": -0.1}, "clip_low"),
        ({"clip_high": -1.0}, "clip_high"),
        ({"kl_coef": -1e-3}, "kl_coef"),
        ({"reference_reset_steps": -1}, "reference_reset_steps"),
        ({"tis_cap": 0.0}, "tis_cap"),
        ({"tis_cap": 2.0}, "tis_cap: got 2.0; needs algorithm.old_logprobs=learner"),
        ({"offpolicy_mask_delta": -0.1}, "offpolicy_mask_delta"),
        ({"denominator": "constant"}, "constant_length"),
        ({"constant_length": 64}, "constant_length"),
        ({"denominator": "constant", "constant_length": 0}, "constant_length"),
    ],
)
def test_bad_configs_name_the_key(values: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=rf"(algorithm|GrpoConfig)\.{key}"):
        GrpoConfig(**values)
