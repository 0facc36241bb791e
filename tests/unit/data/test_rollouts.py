"""Saved groups come back as they were, and files that are not what was saved are one line."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from framework.artifacts import RolloutSet
from framework.data import rollouts
from framework.data.rollouts import (
    RolloutHeader,
    SavedGroup,
    begin_rollouts,
    header_of,
    read_header,
    read_rollouts,
    write_batch,
)
from framework.errors import UserError
from framework.objectives.dapo import Dapo
from framework.objectives.grpo import Grpo
from framework.roles.rl_config import RlConfig
from framework.stages.grpo_roles import find_rollouts, usable_rollouts
from framework.types import Prompt, Response, ResponseGroup, RewardScore, ScoredGroup
from tests.tokenizers import build


def group(ticket: int, rewards: tuple[float, ...] = (1.0, 0.0), tokens: int = 3) -> SavedGroup:
    prompt = Prompt(
        f"p{ticket}", "What is 1 + 1?", "sums", "2", rewards=("accuracy",), token_ids=(5, 6),
        messages=({"role": "user", "content": "ä"},), columns={"level": 3}, opened="<think>\n",
    )  # fmt: skip
    rng = np.random.default_rng(ticket)
    responses = tuple(
        Response(
            rng.integers(0, 50, tokens).astype(np.int32),
            rng.standard_normal(tokens).astype(np.float32) - 5,
            np.array([place] * tokens, np.int32),
            "stop",
            "zwei ✓",
        )
        for place, _ in enumerate(rewards)
    )
    scores = tuple(RewardScore(total, {"accuracy": total, "format": 1 / 3}, extracted="2") for total in rewards)
    return SavedGroup(ticket, ScoredGroup(ResponseGroup(prompt, responses), scores))


def saved(directory: Path, *batches: list[SavedGroup], header: RolloutHeader | None = None) -> RolloutSet:
    begin_rollouts(directory, header or RolloutHeader(50, "digest", 1.0, "run"), 0)
    for number, groups in enumerate(batches):
        write_batch(directory, number, groups)
    return RolloutSet(directory)


def test_groups_come_back_to_the_last_bit(tmp_path: Path) -> None:
    failed = group(3)
    scores = (RewardScore(0.0, {}, "timed out"), RewardScore(0.1 + 0.2, {"accuracy": 1e-300}))
    failed = replace(failed, scored=replace(failed.scored, scores=scores))
    groups = read_rollouts(saved(tmp_path, [group(0), group(2)], [group(1), failed]))
    assert [item.ticket for item in groups] == [0, 1, 2, 3]
    for found, expected in zip(groups, [group(0), group(1), group(2), failed], strict=True):
        assert found.scored.group.prompt == expected.scored.group.prompt
        assert found.scored.scores == expected.scored.scores
        for ours, theirs in zip(found.scored.group.responses, expected.scored.group.responses, strict=True):
            assert (ours.text, ours.finish_reason) == (theirs.text, theirs.finish_reason)
            for name in ("token_ids", "logprobs", "weight_versions"):
                np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
                assert getattr(ours, name).dtype == getattr(theirs, name).dtype


def test_only_the_batches_in_use_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    read = rollouts._read
    monkeypatch.setattr(rollouts, "_read", lambda file: opened.append(file.stem) or read(file))
    sets = saved(tmp_path, *([group(3 * number + place) for place in range(3)] for number in range(9)))
    groups = read_rollouts(sets)
    opened.clear()
    held = [weakref.ref(item) for item in groups]
    assert [ref() is not None for ref in held] == [False] * 15 + [True] * 12
    assert opened == [f"batch_{number:06d}" for number in range(9)]
    assert [item.ticket for item in groups[4:7]] == [4, 5, 6]


def changed(column: str, change: Any) -> Any:
    """Write the first batch again with one column changed."""

    def write(directory: Path) -> None:
        file = directory / "batch_000000.parquet"
        table = pq.read_table(file)
        values = table[column].to_pylist()
        place = table.column_names.index(column)
        pq.write_table(table.set_column(place, column, pa.array([change(value) for value in values])), file)

    return write


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda d: (d / "batch_000000.parquet").unlink(), r"batch_000000.parquet: got 'no such file'; batches follow"),
        (lambda d: (d / "batch_000001.parquet").write_bytes(b"PAR1"), r"batch_000001.parquet: .*a whole parquet"),
        (lambda d: (d / "rollouts.json").write_text("{"), r"rollouts.json: .*must be JSON"),
        (lambda d: (d / "rollouts.json").write_text('{"tokens": 3}'), r"rollouts.json: .*must be what stage.grpo"),
        (lambda d: pq.write_table(pa.table({"a": [1]}), d / "batch_000000.parquet"), "got 'a'; has no column ticket"),
        (changed("logprobs", lambda rows: [row[1:] for row in rows]), "row 0: .*3 token_ids, 2 logprobs, 3 versions"),
        (changed("logprobs", lambda rows: [[float("nan")] * 3 for _ in rows]), "row 0: .*logprob is not a finite"),
        (changed("rewards", lambda rows: rows[:1]), "row 0"),
        (changed("rewards", lambda rows: [float("inf"), 0.0]), "row 0: got 'reward inf'"),
        (changed("rewards", lambda rows: ["much"] * 2), "columns as save_rollouts writes them"),
        (changed("prompt", lambda _: "{}"), "row 0"),
        (changed("prompt", lambda _: "no JSON"), "row 0"),
        (changed("finish_reasons", lambda rows: ["tired"] * len(rows)), "row 0: .*tired"),
        (changed("ticket", lambda _: 1), "ticket 1 twice"),
    ],
)  # fmt: skip
def test_files_that_are_not_what_was_saved_are_one_line(tmp_path: Path, spoil: Any, says: str) -> None:
    found = saved(tmp_path, [group(0)], [group(1)])
    spoil(tmp_path)
    with pytest.raises(UserError, match=says):
        (read_header(tmp_path), read_rollouts(found))


CONFIG = RlConfig(steps=2, prompts_per_step=2, group_size=2, minibatches_per_rollout=1, max_tokens=8)


class Budget:
    token_budget = 16


class Sizes:
    vocab_size = 50_000  # more than the tokenizer has, as in many models: those may be sampled too


def usable(rollouts: RolloutSet, base: Path, algorithm: Any = Grpo(), **changes: Any) -> list[SavedGroup]:  # noqa: B008
    return usable_rollouts(rollouts, base, replace(CONFIG, **changes), algorithm, Budget(), Sizes())  # type: ignore[arg-type]


def test_a_run_takes_only_groups_that_are_its_tokenizers_and_enough(tmp_path: Path) -> None:
    base = tmp_path / "base"
    header = header_of(build("chatml", base), 1.0, tmp_path)
    four = [[group(0), group(1)], [group(2), group(3)]]
    rollouts = saved(tmp_path / "good", *four, header=header)
    assert len(usable(rollouts, base)) == 4
    with pytest.raises(UserError, match=r"4 groups'; stage.grpo.steps=3 needs 6 of 2 a step: .*enough for .*steps=2"):
        usable(rollouts, base, steps=3)
    with pytest.raises(UserError, match=r"stage.grpo.temperature: got 0.9; .*was sampled at 1"):
        usable(rollouts, base, temperature=0.9)
    with pytest.raises(UserError, match=r"stage.grpo.group_size: got 4; the saved groups have 2"):
        usable(rollouts, base, group_size=4)
    with pytest.raises(UserError, match=r"stage.grpo.max_tokens: got 2; a saved response has 3"):
        usable(rollouts, base, max_tokens=2)
    foreign = saved(tmp_path / "foreign", *four, header=replace(header, tokens="other", vocabulary=7))
    with pytest.raises(UserError, match=r"rollouts_from: got 'tokens of another tokenizer \(7 of them\)'"):
        usable(foreign, base)
    long = saved(tmp_path / "long", [group(0, tokens=8)], header=header)
    Budget.token_budget = 9
    with pytest.raises(UserError, match=r"engine.learner.token_budget: got 9; .*ticket 0, prompt p0 has 10 tokens"):
        usable(long, base)
    Budget.token_budget = 16
    alike = saved(tmp_path / "alike", [group(n, rewards=(1.0, 1.0)) for n in range(3)] + [group(3)], header=header)
    with pytest.raises(UserError, match=r"1 groups of 4 that algorithm.filter_on=accuracy leaves.*not enough for one"):
        usable(alike, base, Dapo(filter_on="accuracy"))
    wild = group(0)
    response = replace(wild.scored.group.responses[0], token_ids=np.array([10**6] * 3, np.int32))
    responses = (response, wild.scored.group.responses[1])
    wild = replace(wild, scored=replace(wild.scored, group=replace(wild.scored.group, responses=responses)))
    with pytest.raises(UserError, match=r"ticket 0, prompt p0: got 1000000; the model's tokens are 0 to 49999"):
        usable(saved(tmp_path / "wild", [wild], header=header), base)


def test_a_directory_without_rollouts_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stage.grpo.rollouts_from: got .*none'; must be a directory that stage"):
        find_rollouts(tmp_path / "none")
    with pytest.raises(UserError, match=r"rollouts.json: got 'no such file'; a RolloutSet needs"):
        find_rollouts(tmp_path)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"stage.grpo.save_rollouts: .*must be a directory that can be written"):
        begin_rollouts(tmp_path / "file" / "below", RolloutHeader(1, "a", 1.0, "b"), 0)
