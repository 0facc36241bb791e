from __future__ import annotations

import pytest

from framework.errors import UserError
from framework.rewards.language import LanguageConsistency, count_words, main_language, reasoning_of
from framework.types import Prompt
from tests.contract.sample_rewards import response_of


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("", (0, 0, 0)),
        ("1 + 2 = 3", (0, 0, 0)),
        ("so it's well-known", (3, 0, 0)),
        ("café", (1, 0, 0)),
        ("所以 x 等于", (1, 4, 0)),
        ("мы add два", (1, 0, 2)),
        ("A中B", (2, 1, 0)),
    ],
)
def test_words_are_told_apart_by_script(text: str, counts: tuple[int, int, int]) -> None:
    assert count_words(text) == counts


@pytest.mark.parametrize(
    ("target", "question", "text", "reward"),
    [
        ("en", "", "<think>first add 加 two</think> <answer>中文</answer>", 0.75),  # the answer does not count
        ("zh", "", "<think>first add 加 two</think>", 0.25),
        ("prompt", "Add two and two.", "<think>add 加</think>", 0.5),
        ("prompt", "二加二等于几?", "<think>二加二 is</think>", 0.75),
        ("en", "", "<think>2 + 2 = 4</think>", 0.0),
        ("en", "", "", 0.0),
        ("en", "", "opened in the prompt</think> 中文", 1.0),
        ("en", "", "<think>cut off 中", 2 / 3),
    ],
)
def test_share_of_the_target_language(target: str, question: str, text: str, reward: float) -> None:
    score = LanguageConsistency(target=target)(Prompt("p0", question, "t", "a"), response_of(text))
    assert score == pytest.approx(reward)


def test_reasoning_and_main_language() -> None:
    assert reasoning_of("<think>a</think>b</think>c") == "a"
    assert main_language("2 + 2") == "en"


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(UserError, match="'fr'; must be one of 'prompt', 'en', 'zh'"):
        LanguageConsistency(target="fr")  # type: ignore[arg-type]
