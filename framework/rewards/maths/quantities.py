"""What people write around a number or an option: units, the answer phrase, the letter of a choice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from framework.rewards.maths.statements import chinese_number

# Units of one family measure the same thing: two of them that differ are two answers. Others are not compared.
_FAMILIES = {
    "length": "mm cm dm m km in inch ft foot yd yard mi mile millimeter centimeter meter kilometer metre kilometre "
    "centimetre millimetre "
    "米 厘米 千米 公里",
    "mass": "mg g kg gram kilogram lb pound oz ounce ton tonne 克 千克 公斤 吨",
    "time": "ms s sec second min minute h hr hour day week month year 秒 分钟 小时 天 周 月 年",
    "money": "cent dollar euro buck usd eur 元 角 分",
    "angle": "degree deg 度 rad radian",
    "volume": "ml l liter litre milliliter gallon quart pint cup 升 毫升",
}
_ONE_NAME = {
    "metre": "m", "meter": "m", "centimetre": "cm", "millimetre": "mm",
    "millimeter": "mm", "centimeter": "cm", "kilometer": "km", "kilometre": "km",
    "inch": "in", "foot": "ft", "feet": "ft", "inches": "in", "yard": "yd", "mile": "mi", "gram": "g",
    "kilogram": "kg", "pound": "lb", "ounce": "oz", "tonne": "ton", "sec": "s", "second": "s", "minute": "min",
    "hr": "h", "hour": "h", "buck": "dollar", "usd": "dollar", "eur": "euro", "liter": "l", "litre": "l",
    "milliliter": "ml", "deg": "degree", "度": "degree", "radian": "rad",
    "米": "m", "厘米": "cm", "千米": "km", "公里": "km", "克": "g", "千克": "kg", "公斤": "kg",
    "吨": "ton", "秒": "s", "分钟": "min", "小时": "h", "天": "day", "周": "week", "月": "month", "年": "year",
    "升": "l", "毫升": "ml",
}  # fmt: skip
_FAMILY = {_ONE_NAME.get(unit, unit): family for family, units in _FAMILIES.items() for unit in units.split()}
_OTHERS = "of km/h mph kph m/s rad radian degree percent ppm hz khz mhz ghz w kw j kj n pa kpa v mol kcal cal °c k"
_FAMILY_OF_TWO = ("千米", "千克", "千瓦", "千卡", "千焦", "千赫", "百分")
_KNOWN = {unit for units in (*_FAMILIES.values(), _OTHERS) for unit in units.split()} | set(_ONE_NAME)
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "百": 2, "千": 3, "万": 4, "亿": 8}
_LETTERS = r"A-Za-z\u00b5\u03a9\u03bc\u4e00-\u9fff"
_QUANTITY = re.compile(
    r"(?P<number>.*?[\d})])\s*(?P<unit>(?:\^\\circ\s*[CF]?|%|(?<=[\d})\s])(?=/?[" + _LETTERS + r"(]))[^\d=<>+\\]*"
    r"(?:\^\{?[23]\}?)?[^\d=<>+\\]*)",
    re.DOTALL,
)
_ORDINAL = re.compile(r"(?:st|nd|rd|th|ish)\b", re.IGNORECASE)
# How units are written in LaTeX -> as in prose
_UNIT_SPELLINGS = (
    (re.compile(r"\\frac\s*\{ ?([A-Za-z]+) ?\}\s*\{ ?([A-Za-z]+) ?((?:\^\{?[23]\}?)?) ?\}$"), r"\1/\2\3"),
    (re.compile(r"(?<=[A-Za-z]) ?\\cdot ?(?=[A-Za-z])"), "·"),
    (re.compile(r"(?<=[A-Za-z]) ?([A-Za-z]+) ?\^ ?\{ ?-1 ?\}$"), r"/\1"),
    (re.compile(r"\\mu ?(?=[A-Za-z]{1,2}$)"), "\u03bc"),
    (re.compile(r"\\Omega$"), "\u03a9"),
    (re.compile(r"(?<=[\d\s])((?:[cdkm]?m|in|ft|yd))([23])$"), r"\1^\2"),
)
_RATES = {"mph": "mi/h", "kph": "km/h", "kmh": "km/h", "kmph": "km/h"}
_LONE_UNITS = "\u03a9mgshLlVWNJKF"  # letters that mean a unit where they follow a number
_NUMERAL = re.compile(
    r"-?(?:(?<!\d)\d+\s+\d+/\d+|\d+\s*\\frac\s*\{\d+\}\s*\{\d+\}|\\frac\s*\{-?\d+\}\s*\{\d+\}"
    r"|\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?:\s*/\s*\d+)?|\.\d+)"
)
_PHRASE = re.compile(
    r".*(?:\b(?:final\s+)?answer(?:\s+is|\s*:|\s*=)+(?:\s*:)?|\b(?:is|are|was|equals|equal\s+to|be|total\s+of|get|gets|has|have|costs?"
    r"|makes?|made|earns?|spends?|needs?|pays?|left)\b|答案(?:是|为|:)*|等于|[是为]|[:=]|\\approx)\s*",
    re.IGNORECASE | re.DOTALL,
)
_VERB = re.compile(
    r"[A-Za-z' ]*?\b(?:is|are)\b:?\s*(?=\S)|[\u4e00-\u9fff]*?[是为]:?\s*(?=\S)|(?:either|both)\s+", re.IGNORECASE
)
_LABEL = re.compile(
    r"(?:(?:the\s+)?(?:correct\s+)?(?:final\s+)?(?:answer|option|choice)(?:\s+is|\s*:)?\s*|答案\s*(?:是|为|:)?\s*|选项?\s*)*"
    r"(?:[({]\s*(?P<a>[A-Ja-j])\s*[)}]|[\[【](?P<b>[A-J])[\]】]|(?P<c>[A-J])\s*[).:]|(?P<e>[A-J])(?=$|\.\s*$)|(?P<d>[A-J])(?=\s|\.|,))"
    r"\s*(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_IS_RIGHT = re.compile(r"^is (?:the )?(?:correct|right|best)(?: (?:answer|option|choice))?(?=\W|$)", re.IGNORECASE)
_DOUBT = re.compile(
    r"\b(?:or|not|no|never|isn'?t|n't|either|between|than|at\s+(?:least|most)|unknown|cannot|can'?t|wrong|incorrect"
    r"|maybe|perhaps|nearly|almost|neither|nor|but|if|unless|\w+n't|(?:and|or)\s+(?:above|below|up|over|under|more|less|fewer)"
    r"|(?:opposite|inverse|reciprocal|negation)\s+of|except|plus|minus|divided|multiplied|up\s+to|guess|half|double|twice|negative|dozen|squared|cubed"
    r"|factorial|(?:square|cube|root|sum|product|difference|power)\s+of|(?:over|under|above|below|times)(?=\s+[-$\d]))\b"
    r"|不|或|\\ldots|\.\.\.",
    re.IGNORECASE,
)
_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_ENGLISH = {word: value for value, word in enumerate(_UNITS.split())}
_ENGLISH |= {word: value for value, word in zip(range(20, 100, 10), _TENS.split(), strict=True)}
_PARTS = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
          "ninth": 9, "tenth": 10}  # fmt: skip

_MIXED = re.compile(
    r"(?:(?P<digits>\d+)|(?P<words>[a-z -]+)) and "
    rf"(?P<part>(?:an?|one|two|three|four|five) (?:{'|'.join(_PARTS)})s?)(?: [a-z]+)?"
)


def split_unit(text: str, strict: bool) -> tuple[str, str] | None:
    """Split "18 dollars" into the number's text and its unit; None if what follows is no unit.

    `strict`, for a reference: the unit must be a known one, or a word of three letters apart from the number.
    """
    for pattern, spelling in _UNIT_SPELLINGS:
        text = pattern.sub(spelling, text)
    match = _QUANTITY.fullmatch(text)
    if match is None or not match["unit"].strip():
        return None
    unit = match["unit"].strip()
    spaced = text[match.end("number")].isspace()
    if unit.startswith(r"^\circ") or unit == "%":
        return match["number"], unit
    first = re.match(r"[^\W\d_]+(?:/[^\W\d_]+)?", unit.lstrip("(/"))
    word = first[0] if first else ""
    if _DOUBT.search(unit) or not word or _ORDINAL.match(unit):
        return None
    known = singular(word) in _KNOWN or word.lower() in _KNOWN or word.split("/")[0].lower() in _KNOWN
    known = known or not word.isascii() or word.lower() in _SCALES
    if strict and not ((known and (len(word) > 1 or spaced)) or (spaced and len(word) >= 3)):
        return None
    if len(word) == 1 and word.isascii() and (word not in _LONE_UNITS or (len(unit) > 1 and unit[1] not in "^/ ")):
        return None
    if len(word) == 2 and not known and not spaced:
        return None
    return match["number"], unit


def scale_of(unit: str) -> tuple[int, str]:
    """Return the power of ten that a unit begins with ("million dollars": 6), and the rest of it."""
    total, rest = 0, unit
    for _ in range(3):
        for word, power in _SCALES.items():
            if rest[:2] in _FAMILY_OF_TWO:
                break  # 千 of 千米 is no thousand
            if rest.lower().startswith(word) and (not word.isascii() or not rest[len(word) : len(word) + 1].isalpha()):
                total, rest = total + power, rest[len(word) :].lstrip()
                break
    return total, rest


def singular(unit: str) -> str:
    """Return a unit's one name: "metres" and "m" are the same."""
    bare = re.sub(r"^(?:(?:square|sq|cubic|cu)\b\.?\s*|平方|立方)", "", unit.strip().lower())
    word = re.split(r"[\s^(]", bare)[0].rstrip(".")
    if word in _ONE_NAME:
        return _ONE_NAME[word]
    word = word.removesuffix("s") if len(word) > 2 else word
    return _ONE_NAME.get(word, word)


def units_differ(left: str, right: str) -> bool:
    """Whether two units of one family are not the same: another scale (cents for dollars), or an area for a length.

    Of rates (km/h, miles per hour) both parts count, where both units have both.
    """
    above, below = _rate(left), _rate(right)
    if above[1] and below[1] and units_differ(above[1], below[1]):
        return True
    left, right = above[0], below[0]
    a, b = singular(left), singular(right)
    if a not in _FAMILY or _FAMILY[a] != _FAMILY.get(b):
        return False
    return a != b or _dimension(left) != _dimension(right)


def _rate(unit: str) -> tuple[str, str]:
    """Return what a unit counts and, for a rate, in what: "km/h" is ("km", "h")."""
    unit = _RATES.get(unit.strip().lower(), unit.strip())
    match = re.fullmatch(r"([^/]*\w)\s*(?:/|\bper\b|\ban?\b|每)\s*(\w[^/]*)", unit)
    return (match[1], match[2]) if match else (unit, "")


def _dimension(unit: str) -> int:
    """Return 2 for an area, 3 for a volume, else 1."""
    powers = {2: r"\^\{?2|\bsq(?:uare)?\b|平方", 3: r"\^\{?3|\bcu(?:bic)?\b|立方"}
    return next((power for power, pattern in powers.items() if re.search(pattern, unit.lower())), 1)


def after_phrase(text: str) -> str | None:
    """Return what stands behind "the answer is", "so x =", "答案是"; None without such a phrase."""
    match = _PHRASE.match(text)
    return text[match.end() :].strip() if match and match.end() < len(text) else None


def option_of(text: str) -> tuple[str, str] | None:
    """Return the letter of "B.", "(B)", "B) text", "option B", in capitals, and the text behind it; None without."""
    match = _LABEL.fullmatch(text)
    if match is None:
        return None
    if re.match(r"\s*(?:[,/&]|or\b|and\b)\s*\(?[A-J]\b", match["rest"]):
        return None  # several
    letter = next(match[group] for group in "abcde" if match[group])
    rest = _IS_RIGHT.sub("", match["rest"])
    if match["d"] and (not letter.isupper() or (rest.strip() and not rest.lstrip().startswith((".", ",")))):
        return None
    return letter.upper(), rest.strip(" .,:;)")


def only_number(text: str) -> str | None:
    """Return the number in prose that holds one alone, and nothing that doubts or compares it; else None."""
    if _DOUBT.search(text) or re.search(r"[-+*/^<>=\\]\s*(?![\d\s])|[\^<>]", _NUMERAL.sub(" ", text)):
        return None
    numerals = _NUMERAL.findall(text)
    if len(numerals) != 1 or not re.search(r"[^\W\d_]{2}|[\u4e00-\u9fff]", text):
        return None
    start = text.index(numerals[0])
    if _ORDINAL.match(text, start + len(numerals[0])):
        return None
    around = text[max(0, start - 1) : start] + text[start + len(numerals[0]) :][:1]
    if re.search(r"[A-Za-z_]", around[:1] if start else ""):
        return None
    found = split_unit(text[start:], strict=False)
    return text[start:] if found and found[0].strip() == numerals[0].strip() else numerals[0]


def spelt_number(text: str) -> Fraction | None:
    """Return the value of a number in words, "minus two hundred and five", "3 and a half", 四分之三; also of "18k"."""
    if (mixed := _MIXED.fullmatch(text.lower())) is not None:
        whole = Fraction(mixed["digits"]) if mixed["digits"] else _spelt_words(mixed["words"])
        part = _spelt_words(mixed["part"])
        return None if whole is None or whole.denominator > 1 or part is None or part >= 1 else whole + part
    if (thousands := re.fullmatch(r"(\d+(?:\.\d+)?)k", text)) is not None:
        return Fraction(thousands[1]) * 1000
    value = chinese_number(text)
    return _spelt_words(text) if value is None else value


def _spelt_words(text: str) -> Fraction | None:
    words = text.lower().replace("-", " ").split()
    sign = -1 if words[:1] in (["minus"], ["negative"]) else 1
    words = words[1:] if sign < 0 else words
    if len(words) > 1 and words[0] in ("a", "an") and words[1] in ("half", *_PARTS, *_SCALES):
        words[0] = "one"
    if words[:1] == ["half"]:
        words = ["one", *words]
    value, read = _cardinal(words)
    if value is None:
        return None
    rest, parts = words[read:], 1
    part = rest[0].removesuffix("s") if rest else ""
    if part in _PARTS:
        if (part == rest[0]) != (value == 1):
            return None  # "twenty fifth" is a place in an order
        parts, rest = _PARTS[part], rest[1:]
    if len(rest) > 3 or any(
        word in _ENGLISH or word in _SCALES or word == "and" or not word.isalpha() for word in rest
    ):
        return None
    return None if _DOUBT.search(" ".join(rest)) else Fraction(sign * value, parts)


def _cardinal(words: Sequence[str]) -> tuple[int | None, int]:
    """Return the cardinal number that the words begin with, and how many of them say it; None if they say none.

    Its parts come in order: what a scale ("thousand") multiplies stands before it, and each scale is smaller than the
    one before it.
    """
    total, group, place, least = 0, 0, 0, 10**15  # least: the smallest scale so far
    room = 1000  # what may still be added to the group: below 100 behind "hundred", below 10 behind "twenty"
    while place < len(words):
        word = words[place]
        joined = word == "and" and place and words[place - 1] in _SCALES and words[place + 1 : place + 2]
        if joined and words[place + 1] in _ENGLISH:
            place += 1
            continue
        scale = 10 ** _SCALES[word] if word.isascii() and word in _SCALES else 0
        if word in _ENGLISH and _ENGLISH[word] < room and (_ENGLISH[word] or place == 0):
            value = _ENGLISH[word]
            group, room = group + value, 10 if value >= 20 else 0
        elif scale == 100 and 0 < group < 100:
            group, room = 100 * group, 100
        elif scale > 100 and group and scale < least:
            total, group, room, least = total + group * scale, 0, 1000, scale
        else:
            break
        place += 1
    return (total + group, place) if place else (None, 0)


def first_phrase(text: str) -> str | None:
    """Return what stands behind the first verb of a sentence: "The roots are x = 1 and x = 2"; else None."""
    match = _VERB.match(text)
    return text[match.end() :].strip() if match else None


def doubts(text: str) -> bool:
    """Whether a phrase names alternatives, denies or compares: "not 5", "more than 5", "5 or 6"."""
    return _DOUBT.search(text) is not None
