"""Sampling on fakes: every prompt once, alike after deaths and kills, nothing of what was finished done again."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from framework.engines.vllm_engine import VllmConfig
from framework.errors import Stopped, UserError
from framework.graph.cluster import ClusterConfig
from framework.graph.nodes import Runtime
from framework.models import public_layout
from framework.rewards.base import RewardConfig
from framework.rewards.format import Format
from framework.stages import sampling
from framework.stages.eval_numbers import JudgedGroup
from framework.stages.sample_file import SampleFile
from framework.stages.sampling import Sampling, SamplingConfig, sample_groups
from framework.stages.workers import SamplingPools
from framework.types import Prompt, ResponseGroup, RewardScore
from tests.fake_clients import RecordingTracker
from tests.fake_pools import FakePool, fake_pools, judge, respond, score

PROMPTS = tuple(Prompt(f"p{i}", f"question {i}", "t", "1", token_ids=(5, 6, i)) for i in range(7))
SAMPLING = Sampling(SamplingConfig(n=3, groups_in_flight=2), VllmConfig(), RewardConfig({"format": Format()}))


def runtime(tmp_path: Path, seed: int = 0) -> Runtime:
    return Runtime("sample", tmp_path, tmp_path, seed, ClusterConfig(), RecordingTracker(), lambda: False)


def texts(groups: list[JudgedGroup]) -> dict[str, list[str]]:
    return {g.scored.group.prompt.id: [r.text for r in g.scored.group.responses] for g in groups}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[SamplingPools]:
    """Pools that were started, which are fakes; the text of prompts is left alone."""
    found: list[SamplingPools] = []

    def start(*_: object) -> object:
        found.append(fake_pools())
        return nullcontext(found[-1])

    monkeypatch.setattr(sampling, "sampling_pools", start)
    monkeypatch.setattr(sampling, "load_tokenizer", lambda _: None)
    monkeypatch.setattr(sampling, "tokenize_prompts", lambda _, prompts, *__: prompts)
    monkeypatch.setattr(public_layout, "without_stale_copies", lambda path, _: path)
    return found


def test_what_dead_workers_had_is_done_again_and_comes_out_the_same(tmp_path: Path) -> None:
    config = SAMPLING.config
    plain = texts(list(sample_groups(fake_pools(), PROMPTS, config, runtime(tmp_path))))
    assert sorted(plain) == [prompt.id for prompt in PROMPTS]
    assert len({text for group in plain.values() for text in group}) == 3 * len(PROMPTS)  # no two seeds alike
    broken = sample_groups(fake_pools((1, 3, 4), (2, 3)), PROMPTS, config, runtime(tmp_path))
    assert texts(list(broken)) == plain
    shuffled = sample_groups(fake_pools(), PROMPTS[::-1], config, runtime(tmp_path))
    assert texts(list(shuffled)) == plain
    assert texts(list(sample_groups(fake_pools(), PROMPTS, config, runtime(tmp_path, seed=1)))) != plain
    other = replace(config, purpose="rejection")
    assert texts(list(sample_groups(fake_pools(), PROMPTS, other, runtime(tmp_path)))) != plain
    more = texts(list(sample_groups(fake_pools(), PROMPTS, replace(config, n=5), runtime(tmp_path))))
    assert {key: found[:3] for key, found in more.items()} == plain  # two more each, and the first as they were


def test_a_killed_sampling_goes_on_where_it_was(tmp_path: Path, started: list[SamplingPools]) -> None:
    whole = texts(list(SAMPLING.run(tmp_path, PROMPTS, runtime(tmp_path))))
    with SampleFile(tmp_path / "kept.jsonl") as kept:
        run = SAMPLING.run(tmp_path, PROMPTS, runtime(tmp_path), kept)
        first = [next(run) for _ in range(3)]
        run.close()
    (tmp_path / "kept.jsonl").open("ab").write(b'{"id": "p6", "responses": [{"te')  # what a kill leaves
    rest = replace(PROMPTS[1], token_ids=(9,))  # its text has changed
    with SampleFile(tmp_path / "kept.jsonl") as kept:
        again = list(SAMPLING.run(tmp_path, (PROMPTS[0], rest, *PROMPTS[2:]), runtime(tmp_path), kept))
    assert texts(again) == whole
    sampled = len(PROMPTS) - len(first) + ("p1" in texts(first))
    assert [g.scored.group.prompt.id for g in again[: len(PROMPTS) - sampled]] == [
        g.scored.group.prompt.id for g in first if g.scored.group.prompt.id != "p1"
    ]
    assert {g.scored.group.prompt.id: g.scored.scores for g in again} == {
        g.scored.group.prompt.id: g.scored.scores for g in [*first, *again]
    }
    with SampleFile(tmp_path / "kept.jsonl") as kept:
        starts = len(started)
        finished = list(SAMPLING.run(tmp_path, (PROMPTS[0], rest, *PROMPTS[2:]), runtime(tmp_path), kept))
    assert texts(finished) == whole
    assert len(started) == starts  # nothing is left: no worker starts


def test_votes_are_kept(tmp_path: Path, started: list[SamplingPools]) -> None:
    voting = replace(SAMPLING, config=replace(SAMPLING.config, votes_by=("odd",)))
    for _ in range(2):
        with SampleFile(tmp_path / "kept.jsonl") as kept:
            assert {group.votes for group in voting.run(tmp_path, PROMPTS, runtime(tmp_path), kept)} == {(0, 1, 2)}


def test_a_group_that_could_not_be_scored_is_tried_again(tmp_path: Path, started: list[SamplingPools]) -> None:
    def broken(group: ResponseGroup) -> tuple[RewardScore, ...]:
        return (RewardScore(0.0, error="a bug"), *score(group)[1:]) if group.prompt.id == "p2" else score(group)

    pools = SamplingPools(FakePool(generate=respond), FakePool(score=broken))  # type: ignore[arg-type]
    with SampleFile(tmp_path / "kept.jsonl") as kept, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "sampling_pools", lambda *_: nullcontext(pools))
        assert len(list(SAMPLING.run(tmp_path, PROMPTS, runtime(tmp_path), kept))) == len(PROMPTS)
        assert {group.scored.group.prompt.id for group in kept.groups(PROMPTS)} == {p.id for p in PROMPTS} - {"p2"}
        mended = {g.scored.group.prompt.id: g for g in SAMPLING.run(tmp_path, PROMPTS, runtime(tmp_path), kept)}
        assert mended["p2"].scored.scores[0].error
        patch.undo()
        found = {g.scored.group.prompt.id: g for g in SAMPLING.run(tmp_path, PROMPTS, runtime(tmp_path), kept)}
    assert not found["p2"].scored.scores[0].error


def test_a_stop_keeps_what_is_finished(tmp_path: Path, started: list[SamplingPools]) -> None:
    stopping = replace(runtime(tmp_path), should_stop=lambda: True)
    with SampleFile(tmp_path / "kept.jsonl") as kept:
        with pytest.raises(Stopped):
            list(SAMPLING.run(tmp_path, PROMPTS, stopping, kept))
        before = len(list(kept.groups(PROMPTS)))
        groups = list(SAMPLING.run(tmp_path, PROMPTS, runtime(tmp_path), kept))
    assert len(groups) == len(PROMPTS)
    assert before < len(PROMPTS)


def test_ids_must_differ(tmp_path: Path, started: list[SamplingPools]) -> None:
    with pytest.raises(UserError, match="prompt p3: got 'p3'; its id occurs twice"):
        list(SAMPLING.run(tmp_path, (*PROMPTS, PROMPTS[3]), runtime(tmp_path)))


def test_a_file_of_other_settings_or_in_use_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    with SampleFile(path, {"n": 4, "top_p": 1.0}), pytest.raises(UserError, match="another process samples into it"):
        SampleFile(path, {"n": 4, "top_p": 1.0})
    with pytest.raises(UserError, match=r"n: got 8; .*kept\.jsonl was begun with 4"):
        SampleFile(path, {"n": 8, "top_p": 1.0})
    (tmp_path / "other.jsonl").write_text('{"question": "1 + 1"}\n')
    with pytest.raises(UserError, match=r"other\.jsonl:1: .*must be a file that sampling has begun"):
        SampleFile(tmp_path / "other.jsonl")
    with pytest.raises(UserError, match="must be a file that can be written"):
        SampleFile(tmp_path / "other.jsonl" / "kept.jsonl")


@pytest.mark.parametrize(
    "damage",
    ["{not json}", "[]", '{"id": "p0", "prompt": "DIGEST", "responses": [{}], "scores": [], "votes": []}', "flipped"],
)
def test_a_damaged_line_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "kept.jsonl"
    group = respond(PROMPTS[0], SAMPLING.config.params(0, PROMPTS[0]))
    scores = judge(group, ())
    with SampleFile(path) as kept:
        kept.append(JudgedGroup(sampling.ScoredGroup(group, scores), (0, 1, 2)))
    lines = path.read_text().splitlines()
    digest = json.loads(lines[1])["prompt"]
    if damage == "flipped":
        damage = lines[1].replace('"votes": [0, 1, 2]', '"votes": [0, 1, 3]')
        assert damage != lines[1]
    path.write_text("\n".join([lines[0], damage.replace("DIGEST", digest), lines[1], ""]))
    with SampleFile(path) as kept, pytest.raises(UserError, match=r"kept\.jsonl:2: "):
        list(kept.groups(PROMPTS))
