"""What a reward process is asked besides scores, against real processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from framework.errors import UserError
from framework.rewards.accuracy import Accuracy
from framework.rewards.base import RewardConfig
from framework.rewards.isolation import IsolatedScorer
from framework.types import Prompt
from tests.contract.sample_rewards import Verifier, Voter, group_of


@pytest.fixture(scope="module")
def verifying() -> Iterator[IsolatedScorer]:
    with IsolatedScorer(RewardConfig({"other": Voter(), "verifier": Verifier()}, time_limit_s=0.5)) as scorer:
        yield scorer


@pytest.fixture(scope="module")
def maths() -> Iterator[IsolatedScorer]:
    with IsolatedScorer(RewardConfig({"accuracy": Accuracy()})) as scorer:
        yield scorer


def prompt(answer: str, key: str = "p0", rewards: tuple[str, ...] = ()) -> Prompt:
    return Prompt(key, "question", "math", answer, rewards)


@dataclass(frozen=True)
class Endless:
    """Prompts of which the third never comes."""

    def __iter__(self) -> Iterator[Prompt]:
        yield prompt("1", "p1")
        yield prompt("2", "p2")
        time.sleep(3600)


def test_prompts_that_all_rewards_can_score_are_counted(verifying: IsolatedScorer) -> None:
    assert verifying.check([prompt("1"), prompt("2"), prompt("hang", rewards=("other",))]) == 3
    assert verifying.check([]) == 0


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("bad", "raises ValueError: no such reference"), ("hang", "did not judge it within")],
)
def test_the_first_prompt_that_fails_is_named(verifying: IsolatedScorer, answer: str, reason: str) -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match=reason) as caught:
        verifying.check([prompt("1", "p1"), prompt(answer, "p2"), prompt("1", "p3")])
    assert (caught.value.where, caught.value.value) == ("prompt p2: answer", answer)
    assert time.monotonic() - start < 5
    assert verifying.check([prompt("1")]) == 1  # a fresh process serves the next request


def test_prompts_that_are_made_while_they_are_read_may_hang_too(verifying: IsolatedScorer) -> None:
    with pytest.raises(UserError, match="did not judge it within"):
        verifying.check(Endless())


@pytest.mark.parametrize("answer", ["", " ", "$$"])
def test_a_reference_without_content_is_found(maths: IsolatedScorer, answer: str) -> None:
    with pytest.raises(UserError, match="prompt p7: answer"):
        maths.check([prompt("5"), prompt(answer, "p7")])


def test_a_prompt_of_a_task_without_its_record_is_found(maths: IsolatedScorer) -> None:
    with pytest.raises(UserError, match="prompt p7: answer"):
        maths.check([Prompt("p7", "Reach 24 by 4 and 6", "countdown", "4 * 6")])


def test_votes_are_by_value(maths: IsolatedScorer) -> None:
    texts = ("3", "0.5", "1/2", "$\\frac12$", "3.0", "no box", "\\frac{2}{4}", "x+1", "1 + x")
    group = group_of(
        *(f"<answer>{text}</answer>" if text != "no box" else "" for text in texts), task="math", answer="7"
    )
    assert maths.votes(group, "accuracy") == (0, 1, 1, 1, 0, -1, 1, 7, 7)


def test_votes_of_other_tasks_are_by_text_or_plain_number(maths: IsolatedScorer) -> None:
    texts = ("5", "5.0", "+5", "05", "North  East", "north east", "1+4")
    group = group_of(*(f"<answer>{text}</answer>" for text in texts), task="countdown", answer="5")
    assert maths.votes(group, "accuracy") == (0, 0, 0, 3, 4, 4, 6)  # 1+4 is another answer than 5, right or not


def test_a_comparison_that_hangs_costs_one_vote_and_no_more(verifying: IsolatedScorer) -> None:
    start = time.monotonic()
    group = group_of("1", "hang", "1.0", "none", "hang", "2", "lost", "exit", "2.0")
    assert verifying.votes(group, "other") == (0, 1, 0, -1, 1, 5, -1, 7, 5)
    assert time.monotonic() - start < 10
