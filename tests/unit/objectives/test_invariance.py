"""No objective's step depends on how its responses are laid out: micro-batches, packed or padded rows, ranks, order."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.data.packing import pack, pack_padded
from framework.objectives.cispo import Cispo
from framework.objectives.dapo import Dapo
from framework.objectives.dr_grpo import DrGrpo
from framework.objectives.grpo import Grpo
from framework.objectives.gspo import Gspo
from framework.objectives.objective import BatchSize
from framework.objectives.policy import PolicyObjective
from framework.objectives.policy_rows import PolicyRows
from framework.objectives.ppo import Ppo
from framework.objectives.rloo import Rloo
from framework.types import Minibatch, PolicyMicroBatch, TrainSample

OBJECTIVES: dict[str, PolicyObjective] = {
    "grpo": Grpo(kl_coef=0.1),
    "grpo_v32": Grpo(kl_coef=0.1, kl_estimator="k3_unbiased", offpolicy_mask_delta=0.05),
    "dapo": Dapo(),
    "dr_grpo": DrGrpo(constant_length=16),
    "gspo": Gspo(clip_low=0.05, clip_high=0.08, kl_coef=0.01),
    "cispo": Cispo(clip_high=0.3),
    "rloo": Rloo(),
    "ppo": Ppo(),
    "icepop": Grpo(kl_coef=0.0, old_logprobs="learner", icepop=(0.7, 1.4)),
}
VOCABULARY = 40
SHAPES = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 12)), min_size=1, max_size=12)


def samples_of(shapes: list[tuple[int, int]], seed: int) -> list[TrainSample]:
    """Responses, every third to the prompt of the one before it, their numbers drawn by place."""
    rng, found = np.random.default_rng(seed), list[TrainSample]()
    for place, (n_prompt, n_response) in enumerate(shapes):
        prompt = found[-1] if found and place % 3 == 2 else None
        found.append(
            TrainSample(
                prompt_id=prompt.prompt_id if prompt else f"p{place}",
                prompt_ids=prompt.prompt_ids if prompt else rng.integers(1, VOCABULARY, n_prompt).astype(np.int32),
                response_ids=rng.integers(1, VOCABULARY, n_response).astype(np.int32),
                advantage=float(rng.normal()),
                sampler_logprobs=rng.uniform(-2, -1, n_response).astype(np.float32),
                weight_versions=np.zeros(n_response, np.int32),
                old_logprobs=rng.uniform(-2, -1, n_response).astype(np.float32),
            )
        )
    return found


def policy(weight_VV: torch.Tensor, micro: PolicyMicroBatch) -> torch.Tensor:
    """A bigram model's logprobs of the targets, [T]: what a token is given depends on the one before it alone."""
    return weight_VV.log_softmax(-1)[micro.token_ids_T, micro.targets_T]


def step(objective: PolicyObjective, layouts: list[list[PolicyMicroBatch]], samples: list[TrainSample]) -> Any:
    """Loss, gradient and metrics of a step in which each rank sums over its micro-batches."""
    generator = torch.Generator().manual_seed(7)
    weight_VV = torch.randn(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64, requires_grad=True)
    loss, metrics, tokens = torch.zeros((), dtype=torch.float64), dict[str, float](), 0.0
    for micro in (micro for rank in layouts for micro in rank):
        double = {name: value.double() for name, value in vars(micro).items() if name.endswith("_T")}
        whole = {name: double[name] for name in double if not name.endswith("ids_T") and name != "targets_T"}
        output = objective.loss(policy(weight_VV, micro), replace(micro, **whole))
        loss, tokens = loss + output.loss, tokens + output.count
        for name, value in output.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + value
    loss = loss / objective.denominator(len(samples), sum(len(s.response_ids) for s in samples))
    loss.backward()
    assert weight_VV.grad is not None
    return loss.item(), weight_VV.grad.numpy(), metrics, tokens


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=5)
@given(shapes=SHAPES, budget=st.integers(18, 80), ranks=st.integers(1, 4), seed=st.integers(0, 99))
def test_a_step_is_the_same_however_it_is_laid_out(
    name: str, shapes: list[tuple[int, int]], budget: int, ranks: int, seed: int
) -> None:
    objective, samples = OBJECTIVES[name], samples_of(shapes, seed)
    reference = [np.full(len(s.response_ids), -1.5, np.float32) - 0.1 * s.sampler_logprobs for s in samples]
    if objective.critic is not None:
        draw = np.random.default_rng(seed)
        drawn = [draw.normal(size=len(s.response_ids)).astype(np.float32) for s in samples]
        samples = [replace(s, token_advantages=found) for s, found in zip(samples, drawn, strict=True)]
    elif objective.kl_in_reward:
        samples = objective.with_kl_reward(samples, reference)
    shuffled = np.random.default_rng(seed).permutation(len(samples)).tolist()

    def layouts(layout: Any, order: list[int], token_budget: int, of: int) -> list[list[PolicyMicroBatch]]:
        chosen, options = [samples[i] for i in order], {"denominator": objective.average, "ranks": of}
        refs = [reference[i] for i in order]
        return [layout(chosen, token_budget, rank=rank, ref_logprobs=refs, **options) for rank in range(of)]

    one_by_one = [[micro for i in range(len(samples)) for micro in layouts(pack, [i], 99, 1)[0]]]
    expected = step(objective, one_by_one, samples)
    for layout in (pack, pack_padded):
        found = step(objective, layouts(layout, shuffled, budget, ranks), samples)
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-9, atol=1e-12)
        assert found[2] == pytest.approx(expected[2], rel=1e-9, abs=1e-9)
        assert found[3] == expected[3]
    assert {"ratio", "old_kl"} | ({"ref_kl"} if objective.kl_coef else set()) <= set(expected[2])


def test_what_a_minibatch_reports_is_by_trained_token() -> None:
    samples = samples_of([(2, 3), (1, 5), (1, 4)], 3)
    rows = PolicyRows(Grpo(kl_coef=0.0), entropy=True)
    assert rows.size(Minibatch(tuple(samples), 4, 20)) == BatchSize(3, 12, 4, {"skipped_share": 0.25})
    assert PolicyRows(Dapo()).size(Minibatch(tuple(samples), 4, 20)).divisor == 20
    (micro,) = pack(samples, 99)
    output = Grpo(kl_coef=0.0).loss(torch.full(micro.mask_T.shape, -1.5), micro, torch.full(micro.mask_T.shape, 0.5))
    assert output.metrics["entropy"] == pytest.approx(0.5 * 12)
    assert output.count == 12
    none = np.full(5, np.nan, np.float32)
    for broken, field in (
        (replace(samples[1], sampler_logprobs=none), "sampler_logprobs"),
        (replace(samples[1], advantage=math.nan), "advantage"),
    ):
        told = rows.first_bad(Minibatch((samples[0], broken), 2, 8))
        assert told == f"{field} of samples {broken.prompt_id!r}"
    assert rows.first_bad(Minibatch(tuple(samples), 3, 12)) == ""


def test_the_kl_term_in_the_reward_knows_no_order() -> None:
    """RLOO's baseline is of a prompt's other responses, wherever they stand in the batch."""
    samples = samples_of([(2, 3), (1, 5), (1, 4), (3, 2), (1, 6), (2, 1)], 3)
    reference = [np.full(len(s.response_ids), -1.5, np.float32) for s in samples]
    straight = Rloo().with_kl_reward(samples, reference)
    order = [4, 2, 0, 5, 1, 3]
    shuffled = Rloo().with_kl_reward([samples[i] for i in order], [reference[i] for i in order])
    assert [s.advantage for s in shuffled] == pytest.approx([straight[i].advantage for i in order])
