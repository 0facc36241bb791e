"""Answers that are a time of day, a date, or a quantity in two units (2 hours 30 minutes)."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise

from framework.rewards.maths.quantities import singular

Moment = tuple[str, int, Fraction]  # what kind it is, how many units it is written in, and its size

_CLOCK = re.compile(r"(?:at )?(?P<hour>\d{1,2}):(?P<minute>[0-5]\d)(?: ?(?P<half>[ap])\.? ?m\.?)?", re.IGNORECASE)
_MONTHS: tuple[str, ...] = ("january", "february", "march", "april", "may", "june")
_MONTHS += ("july", "august", "september", "october", "november", "december")
_MONTH = rf"(?P<name>(?:{'|'.join(f'{name[:3]}(?:{name[3:]})?' for name in _MONTHS)})|sept)\.?"
_DAY = r"(?P<d>\d{1,2})(?:st|nd|rd|th)?"
_DATES = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?P<y>\d{4})(?P<sign>[-/.])(?P<m>\d{1,2})(?P=sign)(?P<d>\d{1,2})",
        r"(?P<y>\d{4}) ?年 ?(?P<m>\d{1,2}) ?月 ?(?P<d>\d{1,2}) ?[日号]",
        rf"(?:on )?{_MONTH} {_DAY},? (?P<y>\d{{4}})",
        rf"(?:on )?(?:the )?{_DAY} (?:of )?{_MONTH},? (?P<y>\d{{4}})",
    )
]
# Units of one line are multiples of its first; a calendar month has no length in days.
_SCALES = (
    {"s": 1, "min": 60, "h": 3600, "day": 86_400, "week": 604_800},
    {"month": 1, "year": 12},
    {"mm": 1, "cm": 10, "dm": 100, "m": 1000, "km": 1_000_000},
    {"in": 1, "ft": 12, "yd": 36, "mi": 63_360},
    {"mg": 1, "g": 1000, "kg": 1_000_000, "ton": 1_000_000_000},
    {"oz": 1, "lb": 16},
    {"cent": 1, "dollar": 100},
    {"ml": 1, "l": 1000},
)
_PART = re.compile(r"(\d+(?: \d+/\d+|/\d+|\.\d+)?) ?([A-Za-z]+|[\u4e00-\u9fff]+)\.?(?:(?: ?,)?(?: ?and\b)? ?|$)")


def read_moment(text: str) -> Moment | None:
    """Return what a normalised text says, comparable by kind and size; None if it is none of these."""
    if (clock := _CLOCK.fullmatch(text)) is not None:
        hour = int(clock["hour"])
        if clock["half"]:
            hour = hour % 12 + (12 if clock["half"].lower() == "p" else 0) if 1 <= hour <= 12 else 24
        return ("clock", 1, Fraction(hour * 60 + int(clock["minute"]))) if hour < 24 else None
    for pattern in _DATES:
        if (date := pattern.fullmatch(text)) is not None:
            parts = date.groupdict()
            month = int(parts["m"]) if parts.get("m") else 1 + [name[:3] for name in _MONTHS].index(_short(parts))
            return "date", 1, Fraction(int(parts["y"]) * 10_000 + month * 100 + int(parts["d"]))
    return _quantity(text)


def same_moment(reference: str, answer: str) -> bool:
    """Whether two texts say the same moment; a reference in one unit is left to the comparison of numbers."""
    wanted = read_moment(reference)
    if wanted is None or (wanted[0] not in ("clock", "date") and wanted[1] < 2):
        return False
    found = read_moment(answer)
    return found is not None and (found[0], found[2]) == (wanted[0], wanted[2])


def _short(parts: dict[str, str]) -> str:
    return parts["name"][:3].lower()


def _quantity(text: str) -> Moment | None:
    parts, at = [], 0
    while (match := _PART.match(text, at)) is not None:
        parts.append((match[1], singular(match[2])))
        at = match.end()
    if not parts or at < len(text) or len(parts) > 4:
        return None
    units = [unit for _, unit in parts]
    if "h" in units:  # 2h30m
        units = ["min" if unit == "m" else unit for unit in units]
    scale = next((scale for scale in _SCALES if all(unit in scale for unit in units)), None)
    if scale is None or any(scale[a] <= scale[b] for a, b in pairwise(units)):
        return None
    try:
        size = sum(
            (sum(map(Fraction, number.split())) * scale[unit] for (number, _), unit in zip(parts, units, strict=True)),
            Fraction(0),
        )
    except ZeroDivisionError:
        return None
    return next(iter(scale)), len(parts), Fraction(size)
