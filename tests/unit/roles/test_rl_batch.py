from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from framework.algorithms.mismatch import Mismatch, MismatchConfig
from framework.objectives.grpo import Grpo
from framework.roles.rl_batch import (
    STEP_METRICS,
    TrainBatch,
    batch_metrics,
    build_batch,
    group_has_signal,
    mismatch_metrics,
    sample_rows,
    step_metrics,
    train_samples,
    with_finite_totals,
)
from framework.types import Prompt, ResponseGroup, RewardScore, SampleRow, ScoredGroup, StepResult
from tests.fake_clients import response

PROMPT = Prompt("p", "2 + 2", "t", "4", token_ids=(5, 6, 7))


def scored(rewards: list[float], errors: tuple[int, ...] = (), version: int = 3) -> ScoredGroup:
    responses = tuple(response([i] * (i + 1), version) for i in range(len(rewards)))
    scores = tuple(
        RewardScore(0.0, {}, "raised") if i in errors else RewardScore(reward, {"accuracy": reward})
        for i, reward in enumerate(rewards)
    )
    return ScoredGroup(ResponseGroup(PROMPT, responses), scores)


def test_advantages_are_relative_to_the_group() -> None:
    samples = train_samples(scored([1.0, 0.0, 0.0, 1.0]), Grpo())
    assert [sample.advantage for sample in samples] == pytest.approx([1, -1, -1, 1], rel=1e-5)
    assert [sample.advantage for sample in train_samples(scored([2.0, 0.0]), Grpo(advantage_std=False))] == [1.0, -1.0]
    assert samples[2].prompt_ids.tolist() == [5, 6, 7]
    assert samples[2].response_ids.tolist() == [2, 2, 2]


def test_a_response_without_a_score_leaves_the_group() -> None:
    samples = train_samples(scored([1.0, 9.0, 0.0], errors=(1,)), Grpo(advantage_std=False))
    assert [sample.advantage for sample in samples] == [0.5, 0.0, -0.5]  # it is in no baseline, but in the KL term
    assert [len(sample.response_ids) for sample in samples] == [1, 2, 3]
    assert not group_has_signal(scored([1.0, 0.0], errors=(0,)))
    assert [sample.advantage for sample in train_samples(scored([1.0, 0.0], errors=(0, 1)), Grpo())] == [0.0, 0.0]


def test_a_reward_that_is_not_finite_has_failed() -> None:
    good, bad, worse = with_finite_totals(
        [RewardScore(1.0), RewardScore(float("-inf"), {"a": 1.0}), RewardScore(0.0, {}, "raised")]
    )
    assert (good, worse.error) == (RewardScore(1.0), "raised")
    assert (bad.total, bad.components) == (0.0, {"a": 1.0})
    assert "-inf" in bad.error


GROUPS = [scored([1.0, 1.0, 1.0, 1.0]), scored([1.0, 0.0, 1.0, 0.0])]


def built(
    groups: list[ScoredGroup], minibatches: int, version: int, probe: int = 0, seed: int = 0, **changes: Any
) -> TrainBatch:
    return build_batch(groups, Grpo(**changes), minibatches, version, probe, seed, MismatchConfig())


def test_equal_rewards_are_trained_on_with_advantage_zero() -> None:
    batch = built(GROUPS, minibatches=2, version=3, probe=2)
    assert [(len(m.samples), m.n_responses) for m in batch.minibatches] == [(4, 4), (4, 4)]
    assert sum(m.n_tokens for m in batch.minibatches) == 2 * (1 + 2 + 3 + 4)
    assert sorted(s.advantage for m in batch.minibatches for s in m.samples)[2:6] == [0.0] * 4
    assert len(batch.probe) == 2
    assert len(built(GROUPS, 2, version=3, probe=99).probe) == 8


def test_skipped_responses_stay_in_the_denominators() -> None:
    whole, skipped = (built(GROUPS, 2, version=3, kl_coef=0.0, skip_idle=skip) for skip in (False, True))
    for all_of_them, some in zip(whole.minibatches, skipped.minibatches, strict=True):
        kept = [sample.advantage for sample in all_of_them.samples if sample.advantage]
        assert [sample.advantage for sample in some.samples] == kept
        assert (some.n_responses, some.n_tokens) == (all_of_them.n_responses, all_of_them.n_tokens)
    assert sum(len(m.samples) for m in skipped.minibatches) == 4


def test_the_split_and_the_probe_depend_on_the_runs_seed() -> None:
    def keys(seed: int) -> tuple[list[list[list[int]]], list[list[int]]]:
        batch = built([scored([1.0, 0.0, float(i % 3), 0.5]) for i in range(8)], 4, version=9, probe=6, seed=seed)
        split = [[s.response_ids.tolist() for s in m.samples] for m in batch.minibatches]
        return split, [s.response_ids.tolist() for s in batch.probe]

    assert keys(0) == keys(0)
    assert keys(0)[0] != keys(1)[0]
    assert keys(0)[1] != keys(1)[1]


def test_minibatches_split_every_sample_once_and_alike_after_a_resume() -> None:
    groups = [scored([1.0, 0.0, float(i % 3), 0.5]) for i in range(8)]
    one, two = (built(groups, 4, version=9) for _ in range(2))
    keys = [[s.response_ids.tolist() for s in m.samples] for m in one.minibatches]
    assert keys == [[s.response_ids.tolist() for s in m.samples] for m in two.minibatches]
    assert sum(map(len, keys)) == 32
    other = built(groups, 4, version=10)
    assert keys != [[s.response_ids.tolist() for s in m.samples] for m in other.minibatches]


def test_metrics_by_hand() -> None:
    metrics = batch_metrics([scored([1.0, 0.0, 0.0, 1.0], errors=(1,), version=2)], [scored([1.0, 1.0])], version=3)
    assert metrics["reward/mean"] == pytest.approx(2 / 3)
    assert metrics["reward/accuracy"] == pytest.approx(2 / 3)
    assert metrics["reward/failed_share"] == pytest.approx(1 / 6)  # discarded groups count
    assert metrics["response/length_mean"] == 2.5
    assert metrics["response/length_max"] == 4
    assert metrics["staleness/mean"] == metrics["staleness/max"] == 1
    assert metrics["groups/zero_std_share"] == 0.5


def test_a_sample_is_its_response_as_it_was_sampled() -> None:
    (sample, _), (given, _) = (train_samples(scored([1.0, 0.0], version=4), Grpo()), scored([1.0, 0.0]).group.responses)
    assert (sample.prompt_id, sample.prompt_ids.dtype, sample.weight_versions.tolist()) == ("p", np.int32, [4])
    np.testing.assert_array_equal(sample.sampler_logprobs, given.logprobs)


def test_rewards_are_compared_in_double_precision() -> None:
    samples = train_samples(scored([1.0, 1.0 + 2e-6]), Grpo(advantage_std=False))
    assert [sample.advantage for sample in samples] == pytest.approx([-1e-6, 1e-6], rel=1e-3)


def test_a_batch_knows_its_version_and_its_gate() -> None:
    gate = MismatchConfig(stop_above=0.5)
    batch = build_batch(GROUPS, Grpo(), 2, 9, 1, 0, gate)
    assert (batch.version, batch.gate) == (9, gate)


def test_a_group_has_signal_if_two_scored_rewards_differ() -> None:
    rewards = ([1.0, 0.0], [1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [2.0], [])
    assert [group_has_signal(scored(group)) for group in rewards] == [True, False, False, True, False, False]
    assert not group_has_signal(scored([1.0, 0.0, 0.0], errors=(1, 2)))


def test_metrics_of_what_is_cut_off_idle_or_cannot_be_scored() -> None:
    idle, cut = scored([1.0, 1.0]), response([1, 2, 3, 4], 3, finish="length")
    long = replace(idle, group=replace(idle.group, responses=(cut, *idle.group.responses[1:])))
    metrics = batch_metrics([long, idle, scored([1.0, 0.0])], [idle], version=3)
    assert metrics["response/truncated_share"] == pytest.approx(1 / 6)
    assert metrics["groups/zero_std_share"] == 3 / 4  # the discarded one too
    assert metrics["staleness/max"] == 0
    failed = batch_metrics([scored([5.0, 5.0], errors=(0, 1))], [], version=3)
    assert (failed["reward/mean"], failed["reward/failed_share"]) == (0.0, 1.0)
    assert "reward/accuracy" not in failed


def test_metrics_of_steps_are_means_over_those_that_have_them() -> None:
    steps = [StepResult(1, {"loss": 1.0, "lr": 0.5, "clip_low": 0.25}), StepResult(2, {"loss": 3.0}), StepResult(3, {})]
    assert step_metrics(steps) == {"loss/policy": 2.0, "train/lr": 0.5, "clip/low": 0.25}
    assert {step_metrics([StepResult(1, {name: 1.0})]).popitem()[0] for name in STEP_METRICS} == {
        *("clip/low", "clip/high", "clip/offpolicy_masked", "kl/reference", "kl/old"),
        *("policy/ratio", "policy/tis_weight", "loss/policy"),
    }


def test_metrics_of_a_probe() -> None:
    assert mismatch_metrics(Mismatch()) == {"mismatch/tokens": 0.0}
    expected = {"mismatch/tokens": 9, "mismatch/mean_abs": 0.1, "mismatch/max_abs": 0.5, "mismatch/k3": 0.2}
    assert mismatch_metrics(Mismatch(0.1, 0.5, 0.2, 9)) == expected


def test_sample_rows_show_best_and_worst() -> None:
    group = scored([0.0, 2.0, 1.0], version=7)
    rows = sample_rows([group], Grpo(advantage_std=False))
    assert [(row.reward, row.length) for row in rows] == [(2.0, 2), (0.0, 1)]
    assert np.isclose(rows[0].advantage, 1.0)
    expected = SampleRow("2 + 2", "[1, 1]", 2.0, {"accuracy": 2.0}, 1.0, 2, "stop", 7)
    assert replace(rows[0], advantage=1.0) == expected
    assert len(sample_rows([group] * 6, Grpo())) == 2 * 4


def test_sample_rows_show_the_advantages_that_are_trained_on() -> None:
    group = scored([3.0, 9.0, 1.0], errors=(1,))
    (best, worst), samples = (
        sample_rows([group], Grpo(advantage_std=False)),
        train_samples(group, Grpo(advantage_std=False)),
    )
    assert [best.advantage, worst.advantage] == [samples[0].advantage, samples[2].advantage] == [1.0, -1.0]
    (failed,) = sample_rows([scored([1.0, 1.0], errors=(0, 1))], Grpo())
    assert (failed.reward, failed.advantage) == (0.0, 0.0)
