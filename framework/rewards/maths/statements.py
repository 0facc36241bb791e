"""Answers that are words: what says the same, and whole numbers written in Chinese."""

from __future__ import annotations

import re
from fractions import Fraction

from framework.rewards.maths.text import words_of

# Each line is one statement, in the words that `words_of` leaves; "solution" stands for roots and values too.
_SAME = {
    "nothing": "no solution|no real solution|none|emptyset|empty set|null set|no such solution"
    "|无解|没有解|无实数解|空集",
    "endless": "infinitely many|infinitely many solution|infinite solution|infinite number of solution"
    "|无穷多|无穷多个|无数个|无穷多解|无数解",
    "missing": "dne|does not exist|doesn t exist|do not exist|not exist|limit does not exist|不存在",
    "undefined": "undefined|not defined|未定义|无意义|没有意义",
    "yes": "yes|是|是的",
    "no": "no|否|不是",
    "all": "all real number|all real|any real number|every real number|mathbb r|set of all real number"
    "|全体实数|任意实数|所有实数",
}
_STATEMENTS = {words: name for name, line in _SAME.items() for words in line.split("|")}
_NOUNS = {"solutions": "solution", "root": "solution", "roots": "solution", "numbers": "number", "reals": "real"}
_LEAD = re.compile(r"(?:there (?:is|are|exists?)|(?:it|they|we|equation|system) (?:has|have|is)|on|in|at|by|is|are) ")
_SAYS = re.compile(r"(yes|no|true|false)[,.;:] ?(.+)", re.IGNORECASE | re.DOTALL)
_TAKES_BACK = re.compile(r"\b(?:yes|no|true|false|but|or|maybe|unless)\b", re.IGNORECASE)

_DIGITS = {character: value for value, character in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_TENS, _BIG = {"十": 10, "百": 100, "千": 1000}, {"万": 10**4, "亿": 10**8}
_NUMERAL = "".join((*_DIGITS, *_TENS, *_BIG))
_MEASURES = (
    "个 只 元 块 岁 人 天 年 月 周 小时 分钟 秒 米 厘米 千米 公里 平方米 平方厘米 克 千克 公斤 吨 "
    "本 张 支 条 辆 名 位 次 倍 件 朵 颗 棵 "
    "头 匹 双 杯 瓶 箱 盒 袋 升 毫升 页 道 题 层 栋 间 组 种 度"
)
_CHINESE = re.compile(
    rf"(?P<sign>[负正]?)(?:百分之(?P<percent>[{_NUMERAL}]+)|(?P<under>[{_NUMERAL}]+)分之(?P<over>[{_NUMERAL}]+)"
    rf"|(?P<whole>[{_NUMERAL}]+)(?:点(?P<behind>[{''.join(_DIGITS)}]+))?)"
    rf"(?:(?:{'|'.join(sorted(_MEASURES.split(), key=len, reverse=True))})(?![多半余几])[\u4e00-\u9fff]{{0,6}})?"
)


def same_statement(reference: str, answer: str) -> bool:
    """Whether two normalised texts say the same thing in other words: "no solution", "There are no real roots"."""
    said = _statement(reference)
    return said is not None and _statement(answer) == said


def bare_words(text: str) -> str:
    """Return the words of a normalised answer without what leads to them ("on Monday") or explains a yes or no."""
    answered = _SAYS.fullmatch(text)
    if answered is not None and not _TAKES_BACK.search(answered[2]):
        text = answered[1]
    return _LEAD.sub("", words_of(text), count=1)


def _statement(text: str) -> str | None:
    if re.sub(r"\s", "", text) in ("{}", r"\{\}"):
        return "nothing"
    words = _LEAD.sub("", words_of(text), count=1)
    words = re.sub(r" (?:to|for|of) (?:this|equation|system|it|x)(?: equation| system)?$", "", words)
    return _STATEMENTS.get(" ".join(_NOUNS.get(word, word) for word in words.split()))


def chinese_number(text: str) -> Fraction | None:
    """Return the value of 一百零五, 三点一四, 四分之三, 百分之五十 or 负五, with a measure word or not; else None."""
    match = _CHINESE.fullmatch(text.replace(" ", ""))
    if match is None:
        return None
    sign = -1 if match["sign"] == "负" else 1
    parts = [_whole(match[name]) if match[name] else None for name in ("percent", "under", "over", "whole")]
    percent, under, over, whole = parts
    if percent is not None:
        return Fraction(sign * percent, 100)
    if under and over is not None:
        return Fraction(sign * over, under)
    if whole is None:
        return None
    behind = "".join(str(_DIGITS[character]) for character in match["behind"] or "")
    return sign * (whole + Fraction(int(behind or "0"), 10 ** len(behind)))


def _whole(text: str) -> int | None:
    """Return a whole number in Chinese numerals, by places (一万二千) or digit by digit (二〇二四); None: malformed."""
    if all(character in _DIGITS for character in text):
        return None if len(text) > 1 and "两" in text else int("".join(str(_DIGITS[character]) for character in text))
    total, section, digit, place, gap = 0, 0, None, 10**9, False  # place: the unit read last; gap: 零 follows it
    for character in text:
        if character in _DIGITS:
            if digit:
                return None
            digit, gap = _DIGITS[character], gap or _DIGITS[character] == 0
        elif character in _TENS:
            if _TENS[character] >= place or (digit is None and character != "十") or digit == 0:
                return None
            place, section = _TENS[character], section + (digit or 1) * _TENS[character]
            digit, gap = None, False
        else:
            read = section + (digit or 0)
            if not read or _BIG[character] == place or (character == "万" and total % 10**8):
                return None
            total = total + read * 10**4 if character == "万" else (total + read) * 10**8
            section, digit, place, gap = 0, None, _BIG[character], False
    if digit and place > 10 and not gap:
        digit *= place // 10  # 一万二 is 12,000
    return total + section + (digit or 0)
