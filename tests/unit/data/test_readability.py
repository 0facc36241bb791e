from __future__ import annotations

import pytest

from framework.data.readability import ReadableConfig, language_share, repeated_share, unreadable
from framework.data.reasoning import Reasoned

ENGLISH, CHINESE = "What is 7 + 8?", "七加八等于多少？"
GOOD = "I add the ones first, then the tens, and look at the sum once more."


@pytest.mark.parametrize(
    ("reasoning", "question", "reason"),
    [
        (GOOD, ENGLISH, None),
        ("7+8=15", ENGLISH, None),  # numbers are of any language
        ("7+8=15", CHINESE, None),
        ("", ENGLISH, None),
        ("先把个位相加，再把十位相加。", CHINESE, None),
        ("先把个位相加，再把十位相加。", ENGLISH, "mixed_language"),
        (GOOD, CHINESE, "mixed_language"),
        ("I add the ones 然后把十位也加起来 and get the sum", ENGLISH, "mixed_language"),
        ("я складываю числа по порядку", ENGLISH, "mixed_language"),
        (f"{GOOD}\n```python\nprint(7 + 8)\n```", ENGLISH, "code_block"),
        (f"{GOOD}\n~~~\nprint(7 + 8)\n~~~", ENGLISH, "code_block"),
        ("word " * 900, ENGLISH, "long_paragraph"),
        ("\n".join(["so I add seven and eight and get fifteen again"] * 30), ENGLISH, "repetition"),
    ],
)
def test_each_filter_names_its_reason(reasoning: str, question: str, reason: str | None) -> None:
    summary = "是十五。" if question == CHINESE else "It is 15."
    assert unreadable(Reasoned(reasoning, summary), question, ReadableConfig()) == reason


def test_a_summary_may_be_in_another_language() -> None:
    found = Reasoned("The word red comes first, then cat.", "红色的猫")
    assert unreadable(found, "Write in Chinese: red cat", ReadableConfig()) is None


def test_every_filter_can_be_switched_off() -> None:
    off = ReadableConfig(least_language=0, longest_paragraph=10**6, code_blocks=True, most_repeated=1)
    text = "```\n" + "我们 again and again 再来一次 " * 500
    assert unreadable(Reasoned(text, "x"), ENGLISH, off) is None


def test_long_text_in_short_paragraphs_is_readable() -> None:
    lines = [f"step {number}: add {number * 7} to what stood there after {number * 3} others" for number in range(200)]
    assert unreadable(Reasoned("\n".join(lines), "done"), ENGLISH, ReadableConfig()) is None


def test_shares_by_hand() -> None:
    assert language_share("one two 三", "en") == pytest.approx(2 / 3)
    assert language_share("1 + 2 = 3", "zh") == 1
    assert repeated_share(list("ababab"), 2) == pytest.approx(3 / 5)  # ab ba ab ba ab: two different of five
    assert repeated_share(list("abcdef"), 2) == 0
    assert repeated_share(["a"], 2) == 0
