"""A verifier's own record of a task as JSON that gives back every value in its type.

JSON knows lists and keys of text alone. A verifier that compares boards of tuples, or looks a vertex up by its number,
refuses its own reference after a plain round trip. So whatever JSON would change is written as an object of one key
that names the type: (1, 2) as {"$tuple": [1, 2]}, {0: 1} as {"$dict": [[0, 1]]}. All else stays as it is, so a record
that was written by `json.dumps` reads as what it says.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np

MARK = "$"
Walk = Callable[[Any], Any]

# type -> (name, what JSON can hold of a value, the value from that); the parts are walked on their own
_TYPES: Mapping[type, tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = MappingProxyType(
    {
        tuple: ("tuple", list, tuple),
        set: ("set", lambda value: sorted(value, key=repr), set),
        frozenset: ("frozenset", lambda value: sorted(value, key=repr), frozenset),
        complex: ("complex", lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
        bytes: ("bytes", bytes.hex, bytes.fromhex),
        range: ("range", lambda value: [value.start, value.stop, value.step], lambda parts: range(*parts)),
        Fraction: ("fraction", str, Fraction),
        Decimal: ("decimal", str, Decimal),
        datetime: ("datetime", datetime.isoformat, datetime.fromisoformat),
        date: ("date", date.isoformat, date.fromisoformat),
        time: ("time", time.isoformat, time.fromisoformat),
        timedelta: (
            "timedelta",
            lambda value: [value.days, value.seconds, value.microseconds],
            lambda parts: timedelta(*parts),
        ),
    }
)
_BY_NAME = {MARK + name: read for name, _, read in _TYPES.values()}


def encode_entry(entry: Mapping[str, Any]) -> str:
    """Return a record as JSON; raises TypeError, with the place, for a value of a type that would not come back."""
    return json.dumps(_plain(dict(entry), "entry"), allow_nan=False)


def decode_entry(text: str) -> dict[str, Any]:
    """Return the record that `encode_entry` wrote, or any JSON object; raises ValueError if it is neither."""
    try:
        found = _typed(json.loads(text))
    except (TypeError, ArithmeticError) as error:  # a mark with other contents than `encode_entry` writes
        raise ValueError(f"a marked value cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"must be an object, not {type(found).__name__}")
    return found


def _plain(value: Any, where: str) -> Any:
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {MARK + "float": str(value)}
    if kind is list:
        return [_plain(item, f"{where}[{place}]") for place, item in enumerate(value)]
    if kind is dict:
        if all(type(key) is str for key in value) and not any(key.startswith(MARK) for key in value):
            return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
        return {MARK + "dict": [[_plain(key, where), _plain(item, f"{where}.{key}")] for key, item in value.items()]}
    if isinstance(value, np.ndarray) and value.dtype != object:
        return {MARK + "array": [value.dtype.str, _plain(value.tolist(), where)]}
    if isinstance(value, np.generic):
        return {MARK + "numpy": [value.dtype.str, _plain(value.item(), where)]}
    if kind in _TYPES:
        name, write, _ = _TYPES[kind]
        return {MARK + name: _plain(write(value), where)}
    raise TypeError(f"{where} is of type {kind.__module__}.{kind.__qualname__}, which JSON cannot give back")


def _typed(value: Any) -> Any:
    if isinstance(value, list):
        return [_typed(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1 or not next(iter(value)).startswith(MARK):
        return {key: _typed(item) for key, item in value.items()}
    (name, content), *_ = value.items()
    inner = _typed(content)
    if name == MARK + "float":
        return float(inner)
    if name == MARK + "dict":
        return dict(inner)
    if name == MARK + "array":
        return np.array(inner[1], dtype=inner[0])
    if name == MARK + "numpy":
        return np.array(inner[1], dtype=inner[0])[()]
    return _BY_NAME[name](inner) if name in _BY_NAME else {name: inner}
