import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.data.packing import pack
from framework.errors import UserError
from framework.objectives.cispo import Cispo
from framework.objectives.dapo import Dapo
from framework.objectives.dr_grpo import DrGrpo
from framework.objectives.grpo import Grpo
from framework.objectives.gspo import Gspo
from framework.objectives.policy import PolicyObjective
from framework.objectives.rloo import Rloo
from framework.types import LossOutput, PolicyMicroBatch, Prompt, ResponseGroup, RewardScore, ScoredGroup, TrainSample


def row(*lengths: int, seed: int = 0, drift: float = 0.5, dtype: torch.dtype = torch.float64) -> PolicyMicroBatch:
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
    return PolicyMicroBatch(
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


NO_KL = Grpo(kl_coef=0.0)


def policy_loss(
    logprobs_T: torch.Tensor, micro: PolicyMicroBatch, objective: PolicyObjective, entropy_T: torch.Tensor | None = None
) -> LossOutput:
    return objective.loss(logprobs_T, micro, entropy_T)


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "gradient", "clipped"),
    [
        (2.0, 1.1, -2.2, -2.2, None),  # inside: -rho A, and d(-rho A)/d logpi is the same
        (2.0, 1.5, -2.4, 0.0, "clip_high"),  # held at 1.2 A
        (2.0, 0.5, -1.0, -1.0, None),  # min() takes the unclipped side
        (-2.0, 0.5, 1.6, 0.0, "clip_low"),  # held at 0.8 A
        (-2.0, 1.5, 3.0, 3.0, None),
        (-2.0, 1.1, 2.2, 2.2, None),
        (0.5, 1.5, -0.6, 0.0, "clip_high"),
        (-0.5, 0.5, 0.4, 0.0, "clip_low"),
        (2.0, 0.9, -1.8, -1.8, None),
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
    assert output.count == 1


def test_low_and_high_clip_are_separate() -> None:
    config = Grpo(kl_coef=0.0, clip_low=0.2, clip_high=0.28)
    assert policy_loss(*one_token(1.0, 1.25), config).loss.item() == pytest.approx(-1.25)
    assert policy_loss(*one_token(1.0, 1.3), config).loss.item() == pytest.approx(-1.28)
    # R1's first stage, 10: nothing binds below 11.
    wide = Grpo(kl_coef=0.0, clip_low=10, clip_high=10)
    assert policy_loss(*one_token(1.0, 9.0), wide).loss.item() == pytest.approx(-9.0)
    assert policy_loss(*one_token(1.0, 12.0), wide).loss.item() == pytest.approx(-11.0)
    assert policy_loss(*one_token(-1.0, 0.01), wide).loss.item() == pytest.approx(0.01)


def test_kl_hand_worked() -> None:
    # pi = 1/2, ref = 1/4: k3 = 1/2 + ln 2 - 1; its gradient in log pi is 1 - ref/pi = 1/2
    k3 = math.log(2) - 0.5
    logprobs_T, micro = one_token(0.0, 1.0, ref=0.25)
    output = policy_loss(logprobs_T, micro, Grpo(kl_coef=0.1))
    output.loss.backward()
    assert output.loss.item() == pytest.approx(0.1 * k3)
    assert logprobs_T.grad.item() == pytest.approx(0.05)
    assert output.metrics["ref_kl"] == pytest.approx(k3)
    assert "ref_kl" not in policy_loss(logprobs_T, micro, NO_KL).metrics  # there is no reference
    # unbiased: times rho, through which it also differentiates: 0.1 (k3 + 1/2) at rho = 1
    logprobs_T, micro = one_token(0.0, 1.0, ref=0.25)
    policy_loss(logprobs_T, micro, Grpo(kl_coef=0.1, kl_estimator="k3_unbiased")).loss.backward()
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
    config = Grpo(kl_coef=1.0, kl_estimator="k3_unbiased")
    (ours,) = torch.autograd.grad(policy_loss(policy_V, micro, config).loss, logits_V)
    torch.testing.assert_close(ours, exact)


def test_truncated_importance_sampling_hand_worked() -> None:
    # old / sampler = 0.5 / 0.4 = 1.25 and 0.5 / 0.1 = 5, capped at 2: scales the policy term, not the KL
    config = Grpo(kl_coef=0.1, old_logprobs="learner", tis_cap=2.0)
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
    output = policy_loss(logprobs_T, micro, Grpo(kl_coef=0.0, offpolicy_mask_delta=0.25))
    output.loss.backward()
    assert output.metrics["offpolicy_masked"] == 2  # the tokens of the first response
    assert logprobs_T.grad[1:3].tolist() == [0.0, 0.0]
    assert (logprobs_T.grad[5:7] != 0).all()
    assert logprobs_T.grad[9:11].abs().sum() > 0
    with_kl = policy_loss(logprobs_T, micro, Grpo(kl_coef=0.1, offpolicy_mask_delta=0.25))
    (gradient,) = torch.autograd.grad(with_kl.loss, logprobs_T)
    assert (gradient[1:3] != 0).all()


CONFIGS = [
    Grpo(),
    Dapo(),
    Grpo(clip_low=10, clip_high=10, kl_coef=0.04, old_logprobs="learner", tis_cap=1.5),
    Grpo(kl_coef=0.1, kl_estimator="k3_unbiased", offpolicy_mask_delta=0.05, advantage_std=False),
    Grpo(kl_coef=0.0, old_logprobs="learner", icepop=(0.7, 1.4)),
    DrGrpo(constant_length=16),
    Gspo(clip_low=0.05, clip_high=0.08, kl_coef=0.01),
    Cispo(clip_high=0.3),
    Rloo(),
]


def reference_gain(
    config: PolicyObjective, advantage: float, ratio: torch.Tensor, mean_ratio: torch.Tensor, logprob: torch.Tensor
) -> torch.Tensor:
    """What one token adds, as its paper writes it."""
    if isinstance(config, Rloo):
        return advantage * logprob
    if isinstance(config, Cispo):
        return min(float(ratio.detach()), 1 + config.clip_high) * advantage * logprob
    assert isinstance(config, Grpo | Dapo | DrGrpo | Gspo)
    ratio = mean_ratio if isinstance(config, Gspo) else ratio
    return torch.min(ratio * advantage, torch.clamp(ratio, 1 - config.clip_low, 1 + config.clip_high) * advantage)


def reference_loss(logprobs_T: torch.Tensor, micro: PolicyMicroBatch, config: PolicyObjective) -> torch.Tensor:
    """The objective written token by token, as the papers state it."""
    total, start = torch.zeros((), dtype=torch.float64), 0
    for length in micro.segment_lengths_S.tolist():
        tokens = [t for t in range(start, start + length) if micro.mask_T[t] > 0]
        start += length
        drift = sum(float(micro.sampler_logprobs_T[t] - logprobs_T[t].detach()) for t in tokens) / max(1, len(tokens))
        log_ratios = [logprobs_T[t] - micro.old_logprobs_T[t] for t in tokens]
        mean_ratio = torch.exp(sum(log_ratios, torch.zeros(())) / max(1, len(tokens)))
        for t in tokens:
            advantage = float(micro.advantages_T[t])
            ratio = torch.exp(logprobs_T[t] - micro.old_logprobs_T[t])
            term = reference_gain(config, advantage, ratio, mean_ratio, logprobs_T[t])
            weight = math.exp(float(micro.old_logprobs_T[t] - micro.sampler_logprobs_T[t]))
            if getattr(config, "tis_cap", None) is not None:
                term = term * min(weight, config.tis_cap)  # type: ignore[attr-defined]
            if getattr(config, "icepop", None) is not None:
                low, high = config.icepop  # type: ignore[attr-defined]
                term = term * (weight if low <= weight <= high else 0.0)
            delta = getattr(config, "offpolicy_mask_delta", None)
            if delta is not None and advantage < 0 and drift > delta:
                term = term * 0.0
            ref_ratio = torch.exp(micro.ref_logprobs_T[t] - logprobs_T[t])
            kl = ref_ratio - torch.log(ref_ratio) - 1
            if config.kl_estimator == "k3_unbiased":
                kl = ratio * kl
            coefficient = 0.0 if config.kl_in_reward else config.kl_coef
            total = total - micro.weights_T[t] * (term - coefficient * kl)
    return total


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient_match_the_reference(config: PolicyObjective, seed: int) -> None:
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
    return sum(output.loss.item() for output in outputs), metrics, sum(output.count for output in outputs)


@pytest.mark.parametrize("config", CONFIGS)
def test_sums_do_not_depend_on_the_split(config: PolicyObjective) -> None:
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
def test_masked_positions_have_no_effect(config: PolicyObjective, poison: float) -> None:
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
def test_absurd_ratios_stay_finite(config: PolicyObjective) -> None:
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
    assert (output.loss.item(), output.count, set(output.metrics.values())) == (0.0, 0.0, {0.0})
    assert logprobs_T.grad.tolist() == [0.0]


def test_entropy_is_summed_over_trained_tokens() -> None:
    micro = row(6)
    entropy_T = torch.where(micro.mask_T > 0, 2.0, math.nan)
    output = policy_loss(micro.old_logprobs_T, micro, Grpo(), entropy_T)
    assert output.metrics["entropy"] == 2.0 * output.count


def test_denominator() -> None:
    for mean_of_responses in (Grpo(), Gspo(), Rloo()):
        assert mean_of_responses.denominator(n_responses=16, n_tokens=700) == 16
    for mean_of_tokens in (Dapo(), Cispo()):
        assert mean_of_tokens.denominator(n_responses=16, n_tokens=700) == 700
    assert DrGrpo(constant_length=64).denominator(n_responses=16, n_tokens=700) == 1024
    assert DrGrpo().at_limit(128).denominator(n_responses=16, n_tokens=700) == 2048
    weights = {"response": [0.25] * 4, "token": [1.0] * 4, "constant": [1.0] * 4, "sequence": [1.0] * 4}
    ids = np.arange(4, dtype=np.int32)
    sample = TrainSample("p", ids, ids, 1.0, np.zeros(4, np.float32), ids)
    for objective in (Grpo(), Dapo(), DrGrpo(), Rloo()):
        (micro,) = pack([sample], 16, denominator=objective.average)
        assert micro.weights_T[micro.mask_T > 0].tolist() == weights[objective.average]


def test_gspo_hand_worked() -> None:
    """Log ratios ln 2 and 0: s = sqrt 2, clipped at 1.0004 for A > 0; its gradient is s A / |y| at both tokens."""
    micro = replace(row(4), mask_T=torch.tensor([0.0, 1, 1, 0], dtype=torch.float64))
    micro = replace(micro, weights_T=micro.mask_T / 2, old_logprobs_T=torch.full((4,), -1.0, dtype=torch.float64))
    logprobs_T = torch.tensor([0.0, -1 + math.log(2), -1, 0], dtype=torch.float64, requires_grad=True)
    for advantage, loss, gradient in ((1.0, -1.0004, 0.0), (-1.0, math.sqrt(2), math.sqrt(2) / 2)):
        given = replace(micro, advantages_T=torch.full((4,), advantage, dtype=torch.float64))
        output = Gspo().loss(logprobs_T, given)
        (found,) = torch.autograd.grad(output.loss, logprobs_T)
        assert output.loss.item() == pytest.approx(loss)
        assert found.tolist() == pytest.approx([0, gradient, gradient, 0])
        assert output.metrics["ratio"] == pytest.approx(2 * math.sqrt(2))


@pytest.mark.parametrize(("ratio", "weight"), [(0.1, 0.1), (2.0, 2.0), (9.0, 5.0)])
@pytest.mark.parametrize("advantage", [1.0, -2.0])
def test_cispo_hand_worked(ratio: float, weight: float, advantage: float) -> None:
    """-sg(min(rho, 5)) A log pi: the clip bounds the weight, the gradient stays."""
    logprobs_T, micro = one_token(advantage, ratio)
    output = Cispo(clip_high=4.0).loss(logprobs_T, micro)
    output.loss.backward()
    assert logprobs_T.grad.item() == pytest.approx(-weight * advantage)
    assert output.loss.item() == pytest.approx(-weight * advantage * math.log(0.5 * ratio))
    assert output.metrics["clip_high"] == (ratio > 5)


@pytest.mark.parametrize(("sampler", "weight"), [(0.5, 1.0), (0.25, 2.0), (0.05, 0.0), (0.9999, 0.50005)])
def test_icepop_hand_worked(sampler: float, weight: float) -> None:
    """old / sampler of 1, 2, 10 and 0.5: inside [0.5, 5] it weighs the token, outside it is masked."""
    logprobs_T, micro = one_token(1.0, 1.0, sampler=sampler)
    output = Grpo(kl_coef=0.0, old_logprobs="learner", icepop=(0.5, 5.0)).loss(logprobs_T, micro)
    output.loss.backward()
    assert logprobs_T.grad.item() == pytest.approx(-weight, rel=1e-4)
    assert output.metrics["tis_weight"] == pytest.approx(weight, rel=1e-4)


def test_rloo_hand_worked() -> None:
    """Rewards 3, 1, 2 against the mean of the others; the sum over a response's tokens, whatever the ratio."""
    advantages_G = Rloo().advantages(torch.tensor([3.0, 1.0, 2.0]))
    assert advantages_G.tolist() == [1.5, -1.5, 0.0]
    assert Rloo().advantages(torch.tensor([1.0])).tolist() == [0.0]
    logprobs_T, micro = one_token(1.5, 3.0)
    output = Rloo().loss(logprobs_T, micro)
    output.loss.backward()
    assert logprobs_T.grad.item() == pytest.approx(-1.5)


def test_rloo_has_its_kl_in_the_reward() -> None:
    """R = r - beta log(pi / pi_ref), against the others' R: as if rewards had been R from the start."""
    rng = np.random.default_rng(0)
    rewards = {"a": [1.0, 0.0, 1.0, 1.0], "b": [2.0, 2.0, 2.0, 2.0]}
    made, gaps, refs = [], [], []
    for prompt, of_prompt in rewards.items():
        for advantage in Rloo().advantages(torch.tensor(of_prompt)).tolist():
            ids = np.arange(int(rng.integers(1, 6)), dtype=np.int32)
            ours, ref = (rng.uniform(-3, -1, len(ids)).astype(np.float32) for _ in range(2))
            made.append(TrainSample(prompt, ids, ids, advantage, ours, ids))
            refs.append(ref)
            gaps.append(float((ours - ref).sum()))
    order = rng.permutation(8)  # groups are mixed, as minibatches are
    found = Rloo(kl_coef=0.1).with_kl_reward([made[i] for i in order], [refs[i] for i in order])
    total = np.array([*rewards["a"], *rewards["b"]]) - 0.1 * np.array(gaps)
    for sample, i in zip(found, order, strict=True):
        group = [j for j in range(8) if j // 4 == i // 4]
        others = np.mean([total[j] for j in group if j != i])
        assert sample.advantage == pytest.approx(total[i] - others, abs=1e-5)


def scored(accuracies: list[float | None], totals: list[float], failed: tuple[int, ...] = ()) -> ScoredGroup:
    scores = tuple(
        RewardScore(total, {} if accuracy is None else {"accuracy": accuracy}, "raised" if i in failed else "")
        for i, (accuracy, total) in enumerate(zip(accuracies, totals, strict=True))
    )
    return ScoredGroup(ResponseGroup(Prompt("p", "", "", ""), ()), scores)


@pytest.mark.parametrize(
    ("group", "wanted"),
    [
        (scored([1, 0, 1], [1, -1, 1]), True),
        (scored([1, 1, 1], [1, 0.5, 1]), False),  # overlong penalties alone are no signal
        (scored([0, 0, 0], [-1, -2, -1]), False),
        (scored([1, 0, 1], [1, 1, 1], failed=(1,)), False),  # the wrong one could not be scored
        (scored([1, 0, 0], [1, -1, -1], failed=(2,)), True),
        (scored([1, 0], [1, -1], failed=(0, 1)), False),
        (scored([None, None], [1, 0]), True),  # a prompt that accuracy does not judge
        (scored([None, None], [1, 1]), False),
    ],
)
def test_dynamic_sampling_looks_at_accuracy(group: ScoredGroup, wanted: bool) -> None:
    assert Dapo().wants(group) is wanted
    assert Cispo().wants(group) is wanted
    assert Grpo().wants(group)


def test_what_does_not_fit_the_run_is_refused() -> None:
    with pytest.raises(UserError, match=r"algorithm\.filter_on: got 'accuracy'.*one of the run's rewards: format"):
        Dapo().check(64, ["format"])
    Dapo().check(64, ["format", "accuracy"])
    with pytest.raises(
        UserError, match=r"algorithm\.constant_length: got 64; must be at least stage.grpo.max_tokens=32768"
    ):
        DrGrpo(constant_length=64).check(32_768, ["accuracy"])
    DrGrpo(constant_length=64).check(64, ["accuracy"])
    assert DrGrpo(constant_length=100).at_limit(64).constant_length == 100


@given(
    st.lists(st.lists(st.floats(-3, 3), min_size=2, max_size=6), min_size=1, max_size=4),
    st.sampled_from([Grpo(), Dapo(), DrGrpo(), Gspo(), Cispo(), Rloo()]),
    st.floats(-5, 5),
)
@settings(max_examples=60, deadline=None)
def test_advantages_add_up_to_nothing_and_ignore_a_shift(
    groups: list[list[float]], objective: PolicyObjective, shift: float
) -> None:
    for rewards in groups:
        rewards_G = torch.tensor(rewards, dtype=torch.float64)
        if (rewards_G.max() - rewards_G.min()) < 1e-3:
            continue
        advantages_G = objective.advantages(rewards_G)
        assert abs(float(advantages_G.sum())) < 1e-4
        torch.testing.assert_close(objective.advantages(rewards_G + shift), advantages_G, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"clip_low": -0.1}, "clip_low"),
        ({"clip_high": -1.0}, "clip_high"),
        ({"kl_coef": -1e-3}, "kl_coef"),
        ({"reference_reset_steps": -1}, "reference_reset_steps"),
        ({"icepop": (0.5, 5.0)}, "icepop"),
        ({"icepop": (5.0, 0.5), "old_logprobs": "learner"}, "icepop"),
        ({"icepop": (0.5, 5.0), "old_logprobs": "learner", "tis_cap": 2.0}, "icepop"),
        ({"skip_idle": True}, "skip_idle: got True; must be false with algorithm.kl_coef=0.001"),
        ({"tis_cap": 0.0}, "tis_cap"),
        ({"tis_cap": 2.0}, "tis_cap: got 2.0; needs algorithm.old_logprobs=learner"),
        ({"offpolicy_mask_delta": -0.1}, "offpolicy_mask_delta"),
    ],
)
def test_bad_configs_name_the_key(values: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=rf"(algorithm|Grpo)\.{key}"):
        Grpo(**values)
