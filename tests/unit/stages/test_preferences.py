"""Preferences on their way to a reward model: read, split by prompt, encoded, all pairs of a prompt in one element."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from framework.artifacts import Checkpoint, PreferenceSet
from framework.data.judged import JudgedRows
from framework.data.layouts.preferences import load_labelled, load_preferences
from framework.errors import UserError
from framework.graph.cluster import ClusterConfig
from framework.graph.nodes import Runtime
from framework.stages.collect import NoInputs
from framework.stages.preferences import (
    CollectPreferences,
    EncodedAnswer,
    EncodePreferences,
    EncodePreferencesInputs,
    PreferencesConfig,
    pairs_of,
)
from framework.stages.reward_model import RewardModel, RewardModelConfig
from tests.contract.families import write_tokenizer
from tests.learners import TINY_V3

END = 2  # <|im_end|>


class SilentTracker:
    def progress(self, *_: Any) -> None:
        pass


def runtime(directory: Path) -> Runtime:
    out = directory / "out"
    out.mkdir(exist_ok=True)
    return Runtime("encode", directory, out, 0, ClusterConfig(), cast(Any, SilentTracker()), lambda: False)


def written(file: Path, *rows: dict[str, Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def pair(question: str, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    return {"prompt": question, "chosen": chosen, "rejected": rejected, **more}


RANKED = [pair("1 + 2?", "3", "4"), pair("2 + 2?", "4", "5", margin=0.5), pair("1 + 2?", "3", "twelve"),
          pair("1 + 2?", "4", "twelve")]  # fmt: skip


def test_all_pairs_of_a_prompt_are_one_element_and_each_answer_one_row(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    file = Path(written(tmp_path / "train.jsonl", *RANKED))
    encode = EncodePreferences(64, 400, "pairwise")
    inputs = EncodePreferencesInputs(Checkpoint(tmp_path), PreferenceSet(tmp_path))
    shards = encode.run(inputs, runtime(tmp_path)).shards.path
    found = sorted(JudgedRows(shards / "train", 0).batch(0, 2), key=lambda one: len(one.rows))
    assert [one.pairs for one in found] == [((0, 1, 0.5),), ((0, 1, 0.0), (0, 2, 0.0), (1, 2, 0.0))]
    assert all(
        row[-1] == END and row.tolist().count(END) == 2 for one in found for row in one.rows
    )  # where sampling ends
    for one in found:  # an answer begins where all rows of its prompt still agree
        sides = [(row[:start], row[start:-1]) for row, start in zip(one.rows, one.starts, strict=True)]
        assert len({tuple(prompt) for prompt, _ in sides}) == 1
        assert all(END in prompt and END not in answer for prompt, answer in sides)
    with pytest.raises(UserError, match=r"train\.jsonl:1: tokens.*the training stage's max_tokens"):
        EncodePreferences(4, 400, "pairwise").run(inputs, runtime(tmp_path / "out"))
    alike = lambda messages, answer, where: EncodedAnswer(np.zeros(30, np.int32), 20)  # noqa: E731
    with pytest.raises(UserError, match=r"3 answers to a prompt: tokens.*one batch element"):
        list(map(EncodePreferences(64, 60, "pairwise")._fitting, pairs_of(file, alike)))


def test_contradictory_pairs_are_named(tmp_path: Path) -> None:
    file = Path(written(tmp_path / "p.jsonl", pair("1 + 2?", "3", "4"), pair("1 + 2?", "4", "3")))
    with pytest.raises(UserError, match=r"p\.jsonl:2.*the opposite"):
        list(pairs_of(file, lambda messages, answer, where: EncodedAnswer(np.zeros(2, np.int32), 1)))


def test_equal_prompts_fall_on_one_side_and_what_is_written_is_read_again(tmp_path: Path) -> None:
    rows = [pair(f"{i % 20} + 1?", f"{i}", f"-{i}", margin=i / 2) for i in range(1, 60)]
    config = PreferencesConfig(written(tmp_path / "all.jsonl", *rows), validation_share=0.3)
    directory = CollectPreferences(config, "pairwise").run(NoInputs(), runtime(tmp_path)).preferences.path
    sides = {name: list(load_preferences(str(directory / f"{name}.jsonl"))) for name in ("train", "validation")}
    asked = {name: {one.messages[0]["content"] for one in side} for name, side in sides.items()}
    assert not asked["train"] & asked["validation"]
    assert len(sides["train"]) + len(sides["validation"]) == len(rows)
    assert config.count_train("pairwise") == len(asked["train"])
    assert {one.margin for side in sides.values() for one in side} == {row["margin"] for row in rows}


def ranking(*answers: Any, **more: Any) -> dict[str, Any]:
    return {"prompt": "1 + 2?", "answers": list(answers), **more}


def test_tables_of_text_and_ultrafeedback_are_read_as_they_mean(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,chosen,rejected,margin\n1 + 2?,3,4,0.5\n")
    assert next(load_preferences(str(tmp_path / "p.csv"))).margin == 0.5
    (tmp_path / "l.csv").write_text("prompt,response,label\nq,a,true\nq,b,0\n")
    assert [one.label for one in load_labelled(str(tmp_path / "l.csv"))] == [1.0, 0.0]
    scored = [{"response": "4", "overall_score": 2.0}, {"response": "3", "overall_score": 9.0}]
    rows = written(tmp_path / "u.jsonl", {"instruction": "Add", "input": "1 + 2", "completions": scored})
    (found,) = load_preferences(rows)
    assert (found.messages[0]["content"], found.chosen["content"]) == ("Add\n1 + 2", "3")
    file = written(tmp_path / "n.jsonl", {"q": "1 + 2?", "texts": ["4", "3"], "order": [2, 1]})
    (found,) = load_preferences(file, {"prompt": "q", "answers": "texts", "ranks": "order"})
    assert found.chosen["content"] == "3"


def test_a_ranking_is_all_pairs_that_are_no_ties(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def pairs(*rows: dict[str, Any]) -> list[tuple[str, str]]:
        file = written(tmp_path / "r.jsonl", *rows)
        return [(one.chosen["content"], one.rejected["content"]) for one in load_preferences(file)]

    best_first = [("3", "4"), ("3", "5"), ("4", "5")]
    assert pairs(ranking("3", "4", "5")) == best_first
    assert sorted(pairs(ranking("5", "3", "4", ranks=[3, 1, 2]))) == best_first
    assert sorted(pairs(ranking("5", "3", "4", scores=[0.1, 9, 2]))) == best_first
    objects = [{"answer": "4", "rank": 2}, {"answer": "3", "rank": 1}, {"answer": "5", "rank": 2}]
    with caplog.at_level("INFO"):
        assert pairs(ranking(*objects)) == [("3", "4"), ("3", "5")]
    assert "1 rankings; 1 pairs in them are ties" in caplog.text
    # K answers are one batch element, however many pairs they make
    file = Path(written(tmp_path / "r.jsonl", ranking("3", "4", "5", "6")))
    (found,) = pairs_of(file, lambda messages, answer, where: EncodedAnswer(np.zeros(2, np.int32), 1))
    assert (len(found.rows), len(found.pairs)) == (4, 6)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([ranking("3")], r"r\.jsonl:1: answers: got 1; must rank at least two"),
        ([ranking("3", "3")], r"r\.jsonl:1: answers\[1\].*is answer 0 again"),
        ([ranking("3", "4", ranks=[1])], r"r\.jsonl:1: rank: got \[1\]; must be a number for each of the 2"),
        ([{"answers": ["3", "4"]}], r"r\.jsonl:1.*needs the prompt"),
        ([ranking("3", "4"), ranking("4", "3")], r"r\.jsonl:2#0>1.*the opposite"),
        ([ranking("3", 4)], r"r\.jsonl:1: answers\[1\]"),
        ([ranking("3", "4", ranks=[1, 2], scores=[1, 2])], r"r\.jsonl:1: scores: got \[1, 2\]; must agree with ranks"),
    ],
)
def test_rankings_that_say_nothing_or_two_things_are_one_line(rows: Any, says: str, tmp_path: Path) -> None:
    file = Path(written(tmp_path / "r.jsonl", *rows))
    with pytest.raises(UserError, match=says):
        list(pairs_of(file, lambda messages, answer, where: EncodedAnswer(np.zeros(2, np.int32), 1)))


def test_margins_and_lengths_are_controlled(tmp_path: Path) -> None:
    rows = [pair("a", "x" * 9, "y", margin=2), pair("b", "xx", "y", margin=0.5), pair("c", "xx", "y", margin=2)]
    file = written(tmp_path / "m.jsonl", *rows)
    kept = PreferencesConfig(file, least_margin=1, longest_ratio=4).read("pairwise")
    assert [one.messages[0]["content"] for one in kept] == ["c"]


def test_labelled_answers(tmp_path: Path) -> None:
    file = written(tmp_path / "l.jsonl", {"prompt": "Steal?", "response": "No.", "safe": True},
                   {"prompt": "Steal?", "response": "Yes!", "safe": 0})  # fmt: skip
    assert [one.label for one in load_labelled(file)] == [1.0, 0.0]
    again = written(tmp_path / "again.jsonl", *(dict(one.row) for one in load_labelled(file)))
    assert [one.label for one in load_labelled(again)] == [1.0, 0.0]
    for row, says in (
        ({"prompt": "a", "response": "b"}, "need prompt, answer and label"),
        ({"prompt": "a", "response": "b", "label": "good"}, "must be a number"),
        ({"prompt": "a", "response": "b", "label": float("nan")}, "holds NaN, which is no number"),
    ):
        with pytest.raises(UserError, match=rf"bad\.jsonl:1.*{says}"):
            list(load_labelled(written(tmp_path / "bad.jsonl", row)))
    with pytest.raises(UserError, match=r"bad\.jsonl:1: margin.*0 or more"):
        list(load_preferences(written(tmp_path / "bad.jsonl", pair("a", "b", "c", margin=-1))))


def test_nothing_to_train_on_is_one_line(tmp_path: Path) -> None:
    config = PreferencesConfig(written(tmp_path / "one.jsonl", pair("a", "b", "c")), validation_share=1.0)
    with pytest.raises(UserError, match="leaves nothing to train on"):
        config.count_train("pairwise")
    with pytest.raises(UserError, match=r"data\.train: got None"):
        PreferencesConfig().count_train("pairwise")
    ties = written(tmp_path / "ties.jsonl", ranking("3", "4", ranks=[1, 1]))
    with pytest.raises(
        UserError, match=r"data\.train: .* has no two answers of which one is better: rankings of ties alone"
    ):
        PreferencesConfig(ties).count_train("pairwise")


def test_a_contradiction_shows_before_the_run(tmp_path: Path) -> None:
    file = written(tmp_path / "r.jsonl", ranking("3", "4"), ranking("3", "4", "5"), ranking("5", "4"))
    with pytest.raises(UserError, match=r"r\.jsonl:3#0>1: .*r\.jsonl:2#1>2 says the opposite of the same two answers"):
        PreferencesConfig(file).count_train("pairwise")
    agreeing = written(tmp_path / "r.jsonl", ranking("3", "4", ranks=[1, 2], scores=[2, 1]), ranking("3", "4"))
    assert PreferencesConfig(agreeing, validation_share=0.0).count_train("pairwise") == 1


def test_steps_and_rates_follow_from_the_data() -> None:
    from framework.engines.deepspeed_engine import DeepSpeedConfig

    config = RewardModelConfig()  # R1's
    stage = RewardModel(replace(config, engine=DeepSpeedConfig(token_budget=8192)), TINY_V3, prompts=66_000)
    assert stage.steps == 258
    assert {config.schedule(258).at(step) for step in (0, 100, 257)} == {6e-6}
    falling = RewardModelConfig(final_lr=0.0, warmup_steps=2).schedule(100)
    assert (falling.at(0), falling.at(99)) == (3e-6, pytest.approx(0.0, abs=1e-8))
    with pytest.raises(UserError, match="warmup_steps"):
        RewardModelConfig(warmup_steps=9).schedule(9)
    assert stage.estimate(ClusterConfig()).batch["steps"] == 258
