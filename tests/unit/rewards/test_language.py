from __future__ import annotations

import time
from dataclasses import replace

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
        ("所以 x 等于", (0, 2, 0)),
        ("我们先把三角形的面积加起来", (0, 8, 0)),  # 我们 先 把 三角形 的 面积 加 起来
        ("option B, a dog, I go, plan A, f(x)", (6, 0, 0)),  # a letter alone is a name
        ("мы add два", (1, 0, 2)),
        ("A中B", (0, 1, 0)),
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
        ("prompt", "二加二等于几?", "<think>我们计算 is</think>", 2 / 3),
        ("en", "", "<think>2 + 2 = 4</think>", 0.0),
        ("en", "", "", 0.0),
        ("en", "", "opened in the prompt</think> 中文", 1.0),
        ("en", "", "<think>cut off 中", 2 / 3),
    ],
)
def test_share_of_the_target_language(target: str, question: str, text: str, reward: float) -> None:
    score = LanguageConsistency(target=target)(Prompt("p0", question, "t", "a"), response_of(text))
    assert score == pytest.approx(reward)


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("so \\frac{1}{2} holds", (2, 0, 0)),
        ("所以 \\frac{a}{b} 等于 $\\sqrt{x}$", (0, 2, 0)),
        ("thus $x = \\alpha \\cdot y$ holds", (2, 0, 0)),
        ("thus \\(x + abc\\) and \\[ \\int f(x) dx \\] hold", (3, 0, 0)),
        ("as \\begin{align} x &= ab \\end{align} shows", (2, 0, 0)),
        ("$x \\text{ is even}$", (2, 0, 0)),
        ("因此 $x \\text{ 是偶数}$", (0, 3, 0)),
        ("$因为$ so", (1, 1, 0)),  # no language hides in mathematics
        ("it costs $5 and then $6 more", (5, 0, 0)),  # dollars, no mathematics
        ("run ```python\nfor item in items:\n    print(item)\n``` now", (2, 0, 0)),
        ("run ```python\nfor item in items", (1, 0, 0)),
        ("运行 `print(total)` 得到", (0, 2, 0)),
        ("see https://example.org/some/page?x=words for more", (3, 0, 0)),
        ("参见 https://example.org/页 了", (0, 3, 0)),
        ("1,000 + 2.5e10 = 3x2 \\leq \\infty", (0, 0, 0)),
        ("\\boxed{5} done", (1, 0, 0)),
        ("x_1 and my_var and f2", (2, 0, 0)),
        ("<b>bold</b> text", (2, 0, 0)),
        ("<div class='box red'>bold</div>&nbsp;text<br/>", (2, 0, 0)),
        ('see <a href="http://x.org/a">the page</a> here', (4, 0, 0)),
        ("a < b and c > d = e", (1, 0, 0)),  # signs, no tag
        ("~~~\nfor item in items\n~~~\ndone", (1, 0, 0)),
        ("the file /usr/local/bin/tool and ./src/main.py or and/or", (6, 0, 0)),
        ("we get x² + y² = ½ and Ⅳ", (3, 0, 0)),
        ("所以 x² = ①", (0, 1, 0)),
        ("ＡＢＣ ｗｏｒｄｓ", (2, 0, 0)),
        ("мы видим $\\frac{1}{2}$", (0, 0, 2)),
    ],
)
def test_what_is_written_alike_in_every_language_is_no_word(text: str, counts: tuple[int, int, int]) -> None:
    assert count_words(text) == counts


def test_kanji_among_kana_are_japanese_not_chinese() -> None:
    english, chinese, other = count_words("日本語で考えます。今日はとても暑いですね")
    assert (english, chinese) == (0, 0)
    assert other > 4
    assert count_words("日语的さ这个字很常见也很好写")[1] > 4  # one kana does not make Chinese Japanese


def test_latex_does_not_make_chinese_reasoning_english() -> None:
    text = "<think>" + "我们计算 \\frac{1}{2} \\times \\sqrt{16} = 2 。" * 20 + "</think>"
    prompt = Prompt("p0", "计算 $\\frac{1}{2} \\times \\sqrt{16}$", "t", "a")
    assert LanguageConsistency()(prompt, response_of(text)) == 1.0
    assert LanguageConsistency(target="en")(prompt, response_of(text)) == 0.0


PIECES = [
    *"$`a我",
    "a ",
    "$$",
    "\\(",
    "\\[",
    "```",
    "\\begin{a}",
    "\\text{",
    "\\a{",
    "a_",
    "<a",
    "<a b=",
    "&a",
    "/a",
    "かa",
    "我か",
    "a@",
    "www.",
    "\\a[",
    "x.",
]


@pytest.mark.parametrize("piece", PIECES)
def test_counting_words_takes_linear_time(piece: str) -> None:
    began = time.process_time()
    count_words(piece * 20_000)  # a quadratic pattern takes minutes
    assert time.process_time() - began < 15


def test_words_not_characters_are_counted() -> None:
    """Four characters of Chinese beside two words of English are half of the reasoning, not two thirds."""
    score = LanguageConsistency(target="zh")(
        Prompt("p0", "", "t", "a"), response_of("<think>我们 计算 the sum</think>")
    )
    assert score == 0.5


def test_the_data_may_say_the_language_of_its_question() -> None:
    prompt = Prompt("p0", "2乘3等于几？ red blue green white black", "t", "a", columns={"language": "zh"})
    assert LanguageConsistency()(prompt, response_of("<think>我们计算</think>")) == 1.0
    assert LanguageConsistency()(replace(prompt, columns={}), response_of("<think>我们计算</think>")) == 0.0


def test_an_environment_without_the_dictionary_counts_characters_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("framework.rewards.language._segmenter", lambda: None)
    LanguageConsistency().prepare()
    assert "without rjieba each Chinese character counts as a word" in capfd.readouterr().err
    assert count_words("我们计算") == (0, 4, 0)


def test_reasoning_and_main_language() -> None:
    assert reasoning_of("<think>a</think>b</think>c") == "a"
    assert main_language("2 + 2") == "en"


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(UserError, match="'fr'; must be one of 'prompt', 'en', 'zh'"):
        LanguageConsistency(target="fr")  # type: ignore[arg-type]
