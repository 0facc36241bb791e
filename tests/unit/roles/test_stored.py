"""Long responses that stay where they were sampled: the loop trains on them as on others, and outlives their loss."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.algorithms.mismatch import MismatchConfig
from framework.data.packing import pack
from framework.errors import ResponsesLost, UserError
from framework.objectives.dapo import Dapo
from framework.objectives.grpo import Grpo
from framework.objectives.objective import Share
from framework.objectives.online_dpo import OnlineDpo
from framework.objectives.policy_rows import PolicyRows
from framework.objectives.rloo import Rloo
from framework.roles.batch_parts import PROBE, filled, loaded, places, wanted, without_places
from framework.roles.recorded import RolloutSaver
from framework.roles.reward_watch import RewardWatch
from framework.roles.rl_batch import TrainBatch, batch_metrics, build_batch, sample_rows
from framework.roles.rl_evaluation import HeldOut
from framework.stored import SampleOutline, Scored, ScoredStored, StoredGroup, scored_group
from framework.types import Minibatch, Prompt, ResponseGroup, RewardScore, SamplingParams, ScoredGroup, TrainSample
from tests.fake_clients import PROMPTS, FakeLearnerClient, FakeRewards, FakeRollouts, make_loop, ones, response
from tests.stored import lose, stored


class StoringRollouts(FakeRollouts):
    """Gives groups as those of long responses come."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.given: list[StoredGroup] = []

    def poll(self) -> list[tuple[int, Any]]:
        found = [(ticket, group and stored(group)) for ticket, group in super().poll()]
        self.given += [group for _, group in found if group is not None]
        return found


class FetchingRewards(FakeRewards):
    """Fetches what it scores, as the call to a reward worker does."""

    def poll(self) -> list[tuple[int, Any]]:
        held, self.held, found = self.held, [], list[tuple[int, Any]]()
        for ticket, group in held:
            try:
                found.append((ticket, tuple(self.score(one) for one in group.load().responses)))
            except ResponsesLost as error:
                found.append((ticket, error))
        return found


class FetchingLearner(FakeLearnerClient):
    """Fetches what it trains on when its result is asked for."""

    def train(self, batch: TrainBatch) -> None:
        super().train(batch)

    def poll(self) -> Any:
        if self.batch is not None:
            try:
                self.batch = loaded(self.batch)
            except ResponsesLost:
                self.batch = None
                raise
        return super().poll()


def parts(**more: Any) -> dict[str, Any]:
    return {"rollouts": StoringRollouts(), "rewards": FetchingRewards(ones), "learner": FetchingLearner()} | more


@pytest.mark.parametrize("staleness", [0, 2])
@pytest.mark.parametrize("algorithm", [Grpo(), Dapo(filter_on="ones")])
def test_the_loop_trains_on_stored_responses_as_on_others(tmp_path: Path, staleness: int, algorithm: Any) -> None:
    rewards: Any = lambda r: RewardScore(float(r.token_ids.mean() > 0.4), {"ones": float(r.token_ids[0])})  # noqa: E731
    changes: dict[str, Any] = {"max_staleness": staleness, "algorithm": algorithm}
    plain = make_loop(tmp_path / "plain", rewards=FakeRewards(rewards), **changes)
    plain.run()
    loop = make_loop(tmp_path / "stored", **parts(rewards=FetchingRewards(rewards)), **changes)
    loop.run()
    assert loop.learner.learner.logit == plain.learner.learner.logit  # type: ignore[attr-defined]
    for ours, theirs in zip(loop.tracker.metrics, plain.tracker.metrics, strict=True):  # type: ignore[attr-defined]
        timeless = [{n: v for n, v in m.items() if "time" not in n and "_per_s" not in n} for m in (ours[1], theirs[1])]
        assert timeless[0] == pytest.approx(timeless[1])
    shown = [[(row.response, row.version, row.length) for row in one.tracker.rows] for one in (loop, plain)]  # type: ignore[attr-defined]
    assert shown[0] == shown[1]


def test_prompts_whose_responses_are_lost_before_they_are_scored_are_sampled_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rollouts = StoringRollouts()
    poll, lost = rollouts.poll, 0

    def losing() -> list[tuple[int, Any]]:
        nonlocal lost
        found = poll()
        for _, group in found:
            if len(rollouts.given) in (3, 9):
                lose(group)
                lost += 1
        return found

    rollouts.poll = losing  # type: ignore[method-assign]
    loop = make_loop(tmp_path, **parts(rollouts=rollouts))
    loop.run()
    assert lost == 2
    trained = [entry.prompt_id for entry in loop.ledger.consumed if entry.outcome == "trained"]
    assert sorted(trained) == sorted([prompt.id for prompt in PROMPTS] * 4)
    said = "responses to 1 prompts lost (its machine is gone): they are sampled again"
    assert capsys.readouterr().out.splitlines() == [said] * 2


@pytest.mark.parametrize("saves", [False, True])
def test_a_batch_that_is_lost_before_it_is_trained_is_sampled_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], saves: bool
) -> None:
    rollouts, learner = StoringRollouts(), FetchingLearner()
    train, times = learner.train, 0

    def losing(batch: TrainBatch) -> None:
        nonlocal times
        times += 1
        if times == 4 and not saves:
            lose(rollouts.given[-1])
        train(batch)

    learner.train = losing  # type: ignore[method-assign]
    changes: dict[str, Any] = parts(rollouts=rollouts, learner=learner)
    if saves:
        from tests.unit.roles.test_recorded import saver

        changes["saver"] = Losing(saver(tmp_path / "saved"), rollouts)
    loop = make_loop(tmp_path / "run", **changes)
    loop.run()
    trained = [entry.prompt_id for entry in loop.ledger.consumed if entry.outcome == "trained"]
    assert sorted(trained) == sorted([prompt.id for prompt in PROMPTS] * 4)
    said = "batch lost (its machine is gone); sampling it again from the newest checkpoint"
    assert capsys.readouterr().out.splitlines() == [said]


class Losing(RolloutSaver):
    """Loses a group before the fourth batch is written."""

    def __init__(self, saver: RolloutSaver, rollouts: StoringRollouts) -> None:
        super().__init__(saver.directory, saver.header)
        object.__setattr__(self, "rollouts", rollouts)
        object.__setattr__(self, "times", [])

    def write(self, batch: int, groups: Any) -> None:
        self.times.append(batch)  # type: ignore[attr-defined]
        if len(self.times) == 4:  # type: ignore[attr-defined]
            lose(self.rollouts.given[-1])  # type: ignore[attr-defined]
        super().write(batch, groups)


def test_what_an_evaluation_sampled_and_lost_is_sampled_again(tmp_path: Path) -> None:
    rollouts = StoringRollouts()
    poll, lost = rollouts.poll, list[int]()

    def losing() -> list[tuple[int, Any]]:
        found = poll()
        for ticket, group in found:
            if ticket < 0 and not lost:
                lose(group)
                lost.append(ticket)
        return found

    rollouts.poll = losing  # type: ignore[method-assign]
    asked = HeldOut(tuple(PROMPTS[:3]), SamplingParams(n=2), lambda groups: {"evaluation/seen": float(len(groups))})
    loop = make_loop(tmp_path, held_out=asked, evaluate_every=24, **parts(rollouts=rollouts))
    loop.run()
    assert lost
    seen = [m["evaluation/seen"] for _, m in loop.tracker.metrics if "evaluation/seen" in m]  # type: ignore[attr-defined]
    assert seen == [3.0]


def batch_of(
    sizes: list[list[int]], minibatches: int, probe: int = 2, keep: bool = True, objective: Any = None
) -> TrainBatch:
    groups: list[Scored] = []
    for index, lengths in enumerate(sizes):
        prompt = Prompt(f"p{index}", "", "", "", token_ids=tuple(range(1, 3 + index % 3)))
        whole = ResponseGroup(prompt, tuple(response([index % 7] * length) for length in lengths))
        scores = tuple(RewardScore(float(place % 2)) for place in range(len(lengths)))
        groups.append(scored_group(stored(whole) if keep else whole, scores))
    return build_batch(groups, objective or Grpo(), minibatches, 1, probe, 0, MismatchConfig())


@settings(max_examples=50)
@given(
    st.lists(st.lists(st.integers(1, 12), min_size=2, max_size=5), min_size=1, max_size=8),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_each_response_is_sent_to_the_one_rank_that_trains_it(sizes: list[list[int]], parts: int, ranks: int) -> None:
    batch, same = batch_of(sizes, parts), batch_of(sizes, parts, keep=False)
    lie, of_ranks = places(batch), wanted(batch, Share(16, ranks=ranks))
    sent = pickle.loads(pickle.dumps(without_places(batch)))
    assert not places(sent)
    trained = [at for own in of_ranks for at in own if at[0] != PROBE]
    assert sorted(trained) == sorted(at for at in lie if at[0] != PROBE)
    for rank, own in enumerate(of_ranks):
        here = filled(sent, {at: lie[at].load() for at in own})
        assert all(isinstance(sample, TrainSample) for sample in here.probe)
        for minibatch, whole in zip(here.minibatches, same.minibatches, strict=True):
            rows = PolicyRows(Grpo())
            assert rows.size(minibatch) == rows.size(whole)
            assert not rows.first_bad(minibatch)
            how: dict[str, Any] = {"rank": rank, "ranks": ranks}
            for ours, theirs in zip(pack(minibatch.samples, 16, **how), pack(whole.samples, 16, **how), strict=True):
                assert ours.token_ids_T.tolist() == theirs.token_ids_T.tolist()
                assert ours.advantages_T.tolist() == theirs.advantages_T.tolist()


def test_metrics_and_tables_are_those_of_responses_that_are_here() -> None:
    prompt, scores = PROMPTS[0], (RewardScore(1.0, {"a": 1.0}), RewardScore(0.0, {"a": 0.0}))
    mixed = replace(response([1, 2, 3], 4), weight_versions=np.array([2, 2, 4], np.int32))
    whole = ResponseGroup(prompt, (mixed, response([5], 3, "length")))
    groups = ScoredGroup(whole, scores), ScoredStored(stored(whole), scores)
    assert batch_metrics([groups[0]], [], 4) == batch_metrics([groups[1]], [], 4)
    assert batch_metrics([groups[1]], [], 4)["staleness/mean"] == (2 + 2 + 0 + 1) / 4
    assert sample_rows([groups[0]], Grpo()) == sample_rows([groups[1]], Grpo())
    lose(groups[1].group)
    assert [row.response for row in sample_rows([groups[1]], Grpo())] == ["(its machine is gone)"] * 2


def test_a_logprob_that_is_not_finite_is_named_from_its_outline() -> None:
    bad = replace(response([1, 2]), logprobs=np.array([np.inf, -np.inf], np.float32))
    sample = SampleOutline("p9", np.array([1], np.int32), bad.outline, 1.0)
    assert PolicyRows(Grpo()).first_bad(Minibatch.of([sample])) == "sampler_logprobs of samples 'p9'"


@pytest.mark.parametrize("objective", [Rloo(), OnlineDpo()])
def test_a_kl_term_in_the_reward_needs_no_responses(objective: Any) -> None:
    batch = batch_of([[3, 1, 4], [2, 5]], 1, objective=objective)
    (outlines,), (whole,) = batch.minibatches, loaded(batch).minibatches
    reference = [np.full(sample.length, -0.5, np.float32) for sample in whole.samples]
    found, expected = (objective.with_kl_reward(one.samples, reference) for one in (outlines, whole))
    assert [sample.advantage for sample in found] == [sample.advantage for sample in expected]


def test_a_rank_that_lacks_a_response_it_is_to_train_says_so() -> None:
    with pytest.raises(AssertionError, match="'p0': its response is not on this rank"):
        pack(without_places(batch_of([[2, 2]], 1)).minibatches[0].samples, 16)
    with pytest.raises(UserError, match="token_budget"):
        wanted(batch_of([[2, 20]], 1), Share(16))


def test_what_watches_rewards_keeps_no_more_responses_than_it_shows() -> None:
    said: list[str] = []
    watch = RewardWatch(said.append, first=9)
    groups = [stored(ResponseGroup(PROMPTS[i], (response([i]), response([i])))) for i in range(9)]
    for group in groups:
        watch.arrived(ScoredStored(group, (RewardScore(0.0, {"a": 0.0}), RewardScore(0.0, {"a": 0.0}))))
        kept = [scored for scored in watch._seen if scored.group.responses]
        assert len(kept) <= 3
    assert "reward a gave 0 to all 18 responses" in said[0]
    assert all(f"'[{place}]'" in said[0] for place in (0, 3, 6))
