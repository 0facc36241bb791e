from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from framework.data.selection import SelectionConfig, select
from framework.types import FinishReason, Prompt, Response, ResponseGroup, RewardScore, ScoredGroup

RIGHT, WRONG = RewardScore(1.0, {"accuracy": 1.0}), RewardScore(0.0, {"accuracy": 0.0})
GOOD = "<think> seven and eight make fifteen </think> <answer> 15 </answer>"


def response(text: str, finish: FinishReason = "stop") -> Response:
    nothing: Any = np.zeros(1)
    return Response(nothing, nothing, nothing, finish, text)


def group(*answers: tuple[Response, RewardScore], name: str = "p", opened: str = "") -> ScoredGroup:
    prompt = Prompt(name, "What is 7 + 8?", "chain_sum", "15", opened=opened)
    return ScoredGroup(ResponseGroup(prompt, tuple(r for r, _ in answers)), tuple(s for _, s in answers))


def test_what_is_right_whole_and_readable_stays_and_all_else_is_counted_by_reason() -> None:
    found = select(
        [
            group(
                (response(GOOD), RIGHT),
                (response(GOOD.replace("15", "16")), WRONG),
                (response(GOOD.replace("seven", "SEVEN")), RIGHT),  # the same text in capitals
                (response("15"), RIGHT),
                (response(GOOD, "length"), RIGHT),
                (response("<think> 七加八 </think> 15"), RIGHT),
                (response("<think> ```x``` </think> 15"), RIGHT),
                (response(GOOD), replace(WRONG, error="timed out")),
                (response(GOOD), RewardScore(1.0, {"format": 1.0})),
            )
        ],
        SelectionConfig(),
    )
    assert [(sample.id, sample.found.summary) for sample in found.kept] == [("p#0", "15")]
    assert {drop.id: drop.reason for drop in found.dropped} == {
        "p#1": "wrong", "p#2": "duplicate", "p#3": "no_reasoning", "p#4": "unfinished", "p#5": "mixed_language",
        "p#6": "code_block", "p#7": "failed", "p#8": "not_judged",
    }  # fmt: skip
    assert found.described().startswith("1 kept; dropped: ")


def test_kept_and_dropped_add_up_to_what_was_sampled() -> None:
    groups = [
        group(*[(response(f"<think> {n % 3} </think> x"), (RIGHT, WRONG)[n % 2])] * 2, name=str(n)) for n in range(9)
    ]
    found = select(groups, SelectionConfig())
    assert len(found.kept) + len(found.dropped) == 18
    assert Counter(drop.reason for drop in found.dropped) == {"wrong": 8, "duplicate": 5}
    assert found.counts() == {"wrong": 8, "duplicate": 5}


def test_the_order_in_which_groups_come_changes_nothing() -> None:
    groups = [group((response(GOOD), RIGHT), name=name) for name in ("b", "a", "c")]
    assert select(groups, SelectionConfig()) == select(groups[::-1], SelectionConfig())


def test_no_more_than_asked_for_stay_of_one_prompt() -> None:
    answers = [(response(f"<think> way {n} </think> 15"), RIGHT) for n in range(5)]
    found = select([group(*answers)], SelectionConfig(most_per_prompt=2))
    assert [sample.id for sample in found.kept] == ["p#0", "p#1"]
    assert found.counts() == {"surplus": 3}


def test_what_the_prompt_opened_counts_as_said() -> None:
    found = select([group((response("7+8=15\n</think>\n\n15"), RIGHT), opened="<think>\n")], SelectionConfig())
    assert found.kept[0].found.reasoning == "7+8=15"


def test_the_first_reward_that_a_prompt_has_decides() -> None:
    config = SelectionConfig(right_by=("accuracy", "judge"))
    scores = [
        RewardScore(1, {"judge": 1.0}),
        RewardScore(1, {"judge": 0.4}),
        RewardScore(1, {"accuracy": 0.0, "judge": 1.0}),
    ]
    answers = [(response(f"<think> way {n} </think> 15"), score) for n, score in enumerate(scores)]
    found = select([group(*answers)], config)
    assert [sample.id for sample in found.kept] == ["p#0"]
    assert found.counts() == {"wrong": 2}
