"""Evaluation and exports in the middle of training, on fakes; the best checkpoint stays, whatever dies when."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from framework.errors import RunFailed, Stopped, UserError
from framework.graph.exports import exports_of, find_export
from framework.roles.rl_config import RlConfig
from framework.roles.rl_evaluation import HeldOut
from framework.rotation import BEST, LATEST, Checkpoints
from framework.types import Prompt, RewardScore, SamplingParams, ScoredGroup
from tests.fake_clients import FakeLearnerClient, FakeRewards, FakeRollouts, RecordingTracker, make_loop, ones
from tests.unit.roles.test_rl_loop import check_trained_once

HELD_OUT = tuple(Prompt(f"h{i}", f"held out {i}", "t", "1", token_ids=(1, 2)) for i in range(5))


def versions(groups: Sequence[ScoredGroup]) -> set[int]:
    return {int(v) for g in groups for response in g.group.responses for v in response.weight_versions}


def asked(score: Callable[[int], float] = float, seen: list[int] | None = None) -> HeldOut:
    """Held-out prompts whose score is a function of the one policy version that has answered them."""

    def numbers(groups: Sequence[ScoredGroup]) -> Mapping[str, float]:
        (version,) = versions(groups)
        assert [scored.group.prompt.id for scored in groups] == [prompt.id for prompt in HELD_OUT]
        assert all(len(scored.group.responses) == 3 for scored in groups)
        if seen is not None:
            seen.append(version)
        return {"evaluation/pass_at_1": score(version)}

    return HeldOut(HELD_OUT, SamplingParams(max_tokens=7, n=3), numbers)


@pytest.mark.parametrize("staleness", [0, 2])
def test_held_out_prompts_are_answered_by_the_version_just_trained(tmp_path: Path, staleness: int) -> None:
    seen: list[int] = []
    rollouts = FakeRollouts()
    loop = make_loop(tmp_path, evaluate_every=10, held_out=asked(seen=seen), max_staleness=staleness, rollouts=rollouts)
    loop.run()
    check_trained_once(loop)
    assert seen == [5, 10, 12]  # two steps a version: after 10 and 20 of 24 steps, and after the last
    assert isinstance(loop.tracker, RecordingTracker)
    recorded = {step: m["evaluation/pass_at_1"] for step, m in loop.tracker.metrics if "evaluation/pass_at_1" in m}
    assert recorded == {10: 5.0, 20: 10.0, 24: 12.0}
    given = {version: seeds for (version, ticket), seeds in rollouts.seeds.items() if ticket == -1}
    assert len({seed for seeds in given.values() for seed in seeds}) == 1  # every version is asked alike


def test_without_a_setting_nothing_is_evaluated_or_kept(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, held_out=asked())
    loop.run()
    assert not (tmp_path / BEST).exists()
    assert not exports_of(tmp_path)


def test_the_best_checkpoint_stays_beside_the_newest(tmp_path: Path) -> None:
    make_loop(tmp_path, evaluate_every=2, held_out=asked(lambda version: -abs(version - 4)), checkpoint_every=1).run()
    assert (tmp_path / BEST).read_text() == "batch_000004"
    assert (tmp_path / LATEST).read_text() == "batch_000012"
    kept = sorted(path.name for path in tmp_path.glob("batch_*"))
    assert kept == ["batch_000004", "batch_000011", "batch_000012"]
    record = json.loads((tmp_path / "batch_000004" / "evaluation.json").read_text())
    assert record == {"score": 0, "step": 8, "evaluation/pass_at_1": 0}


def test_of_equal_scores_the_earlier_is_the_best_and_no_number_is_the_worst(tmp_path: Path) -> None:
    make_loop(tmp_path / "equal", evaluate_every=8, held_out=asked(lambda _: 0.5)).run()
    assert (tmp_path / "equal" / BEST).read_text() == "batch_000004"
    nan = float("nan")
    make_loop(tmp_path / "nan", evaluate_every=8, held_out=asked(lambda v: nan if v < 12 else 0.0)).run()
    assert (tmp_path / "nan" / BEST).read_text() == "batch_000012"


@pytest.mark.parametrize(("which", "steps"), [("last", 24), ("best", 8)])
def test_the_stage_gives_on_the_last_policy_or_the_best(tmp_path: Path, which: str, steps: int) -> None:
    learner = FakeLearnerClient()
    changes = {"evaluate_every": 4, "export": which, "held_out": asked(lambda version: -abs(version - 4))}
    make_loop(tmp_path, learner=learner, **changes).run()
    assert learner.learner is not None
    assert (learner.learner.steps, learner.calls[-1]) == (steps, "export")
    make_loop(tmp_path, learner=(again := FakeLearnerClient()), **changes).run()  # a finished one gives on the same
    assert again.learner is not None
    assert (again.learner.steps, again.trained) == (steps, [])


@pytest.mark.parametrize("scored", [0, 2, 4])
@pytest.mark.parametrize("what", ["stop", "rollout worker", "reward worker"])
def test_a_death_in_the_middle_of_an_evaluation_costs_the_evaluation_alone(
    tmp_path: Path, what: str, scored: int
) -> None:
    seen: list[int] = []
    rollouts, rewards, learner, happened = FakeRollouts(), FakeRewards(ones), FakeLearnerClient(), []

    def happens() -> bool:
        if happened or loop._evaluation is None or len(loop._evaluation.groups) < scored:
            return what == "stop" and bool(happened)
        happened.append(what)
        if what == "stop":
            return True
        worker = rollouts if what == "rollout worker" else rewards
        worker.dies_at = {worker.polls + 1}
        return False

    changes = {"evaluate_every": 10, "held_out": asked(seen=seen), "steps": 20, "checkpoint_every": 99}
    loop = make_loop(tmp_path, **changes, rollouts=rollouts, rewards=rewards, learner=learner, should_stop=happens)
    if what == "stop":
        with pytest.raises(Stopped, match="stopped after 10 of 20 steps"):
            loop.run()
        loop = make_loop(tmp_path, **changes, learner=(learner := FakeLearnerClient()))
    loop.run()
    assert happened == [what]
    assert seen == [5, 10]
    assert len(learner.trained) == (5 if what == "stop" else 10)  # nothing is trained a second time
    assert [entry.outcome for entry in loop.ledger.consumed] == ["trained"] * 40


def test_a_learner_that_dies_in_an_evaluation_is_restarted_and_asked_again(tmp_path: Path) -> None:
    seen: list[int] = []
    learner, polls = FakeLearnerClient(), 0
    poll = learner.poll

    def dies_once():  # type: ignore[no-untyped-def]
        nonlocal polls
        if loop._evaluation is not None and learner.learner is not None:
            polls += 1
            if polls == 3:
                learner.learner = None
                learner._called("poll")
        return poll()

    learner.poll = dies_once  # type: ignore[method-assign]
    loop = make_loop(tmp_path, learner=learner, evaluate_every=10, held_out=asked(seen=seen))
    loop.run()
    assert seen == [5, 10, 12]
    assert learner.calls.count("load") == 1
    check_trained_once(loop)


def test_too_many_answers_without_a_score_stop_an_evaluation(tmp_path: Path) -> None:
    held_out = asked()

    def broken(response):  # type: ignore[no-untyped-def]
        return RewardScore(0.0, {}, "timed out") if loop._evaluation is not None else ones(response)

    loop = make_loop(tmp_path, evaluate_every=10, held_out=held_out, rewards=FakeRewards(broken))
    with pytest.raises(RunFailed, match=r"15 of 15 samples have no reward.*timed out"):
        loop.run()
    assert not Checkpoints(tmp_path).evaluated(5)
    assert Checkpoints(tmp_path).newest() == tmp_path / "batch_000005"


def test_policies_are_exported_on_the_way_and_found_by_their_step(tmp_path: Path) -> None:
    state = tmp_path / "run" / "state" / "grpo-0123456789ab"
    loop = make_loop(state, export_every=8, finish_export=lambda path: (path / "tokenizer.json").touch() or None)
    loop.run()
    assert [export.step for export in exports_of(tmp_path / "run")] == [8, 16, 24]
    found = find_export(tmp_path / "run", 16)
    assert (found.node, found.path) == ("grpo", state / "exports" / "step_000016")
    assert {file.name for file in found.path.iterdir()} == {"config.json", "tokenizer.json"}
    with pytest.raises(UserError, match=r"--step: got 17; .*run has 8, 16, 24"):
        find_export(tmp_path / "run", 17)
    with pytest.raises(UserError, match=r"has none: stage.grpo.export_every=N"):
        find_export(tmp_path / "other", 8)


def test_an_export_that_a_death_has_cut_off_is_made_on_resuming(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def killed(_: Path) -> None:
        raise Killed

    state = tmp_path / "run" / "state" / "grpo-0123456789ab"
    with pytest.raises(Killed):
        make_loop(state, export_every=8, finish_export=killed, checkpoint_every=1).run()
    assert exports_of(tmp_path / "run") == []
    again = make_loop(state, export_every=8, checkpoint_every=1)
    again.run()
    assert isinstance(again.learner, FakeLearnerClient)
    assert len(again.learner.trained) == 8
    assert [export.step for export in exports_of(tmp_path / "run")] == [8, 16, 24]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"evaluate_every": 7}, "stage.grpo.evaluate_every: got 7; must be a multiple of .*=4, e.g. 4, 8; 0: never"),
        ({"export_every": 2}, "stage.grpo.export_every: got 2; must be a multiple of .*=4, e.g. 4; 0: never"),
        ({"late_steps": 6}, "stage.grpo.late_steps: got 6; must be a multiple of .*=4, e.g. 4, 8; 0: never"),
        ({"late_steps": 28}, "stage.grpo.late_steps: got 28; must be at most steps=24"),
        ({"export": "best"}, "stage.grpo.export: got 'best'; needs stage.grpo.evaluate_every"),
        ({"evaluate_every": -4}, "RlConfig.evaluate_every"),
    ],
)
def test_steps_between_batches_are_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        RlConfig(steps=24, minibatches_per_rollout=4, **changes)  # type: ignore[arg-type]


def test_held_out_prompts_must_be_there() -> None:
    with pytest.raises(UserError, match=r"evaluate_every: got 'no held-out prompts'; needs some: data.heldout"):
        HeldOut((), SamplingParams(), lambda _: {})


def test_the_recorded_numbers_are_those_of_the_evaluation() -> None:
    from framework.stages.held_out import HeldOutNumbers
    from tests.contract.sample_rewards import group_of

    def scored(*right: float) -> ScoredGroup:
        scores = tuple(RewardScore(1 + value, {"accuracy": value, "format": 1.0}) for value in right)
        return ScoredGroup(group_of(*["text"] * len(right)), scores)

    found = HeldOutNumbers(("accuracy",), "format")([scored(1.0, 0.0), scored(0.0, 0.0)])
    assert next(iter(found)) == "evaluation/pass_at_1"
    assert (found["evaluation/pass_at_1"], found["evaluation/pass_at_k"]) == (0.25, 0.5)
    assert found["evaluation/reward"] == pytest.approx(1.25)
    assert found["evaluation/pass_at_1_se"] == pytest.approx(np.std([0.5, 0.0], ddof=1) / np.sqrt(2))
    assert "evaluation/cons_at_k" not in found  # no votes were counted
    voted = scored(1.0, 0.0, 1.0)
    scores = tuple(replace(score, vote=vote) for score, vote in zip(voted.scores, (0, 1, 0), strict=True))
    assert HeldOutNumbers(("accuracy",), "format")([ScoredGroup(voted.group, scores)])["evaluation/cons_at_k"] == 1.0
    unjudged = HeldOutNumbers(("mine",), "format")([scored(1.0, 0.0)])  # a reward of one's own alone
    assert next(iter(unjudged)) == "evaluation/reward"
