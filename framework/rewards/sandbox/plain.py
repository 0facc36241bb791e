"""Plain data as JSON, exactly: what crosses between a program and the tests that judge it. Never pickle.

Only built-in types come out of `decode`, so that nothing of a program's own (a class with an `__eq__` that always
agrees) reaches a test. What JSON has no word for is an object of one key that names the type.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

_LARGE = 10**4000  # Python reads no decimal number of more than 4,300 digits
_MAX_LENGTH = 10_000_000  # of a range: a test may ask for all of it


class NotPlain(ValueError):
    """A value that is no plain data, or a text that `encode` did not write."""


def encode(value: Any) -> str:
    """Return a value as one line; a subclass's values as those of the built-in type. Raises NotPlain."""
    try:
        return json.dumps(_plain(value))
    except NotPlain:
        raise
    except (RecursionError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise NotPlain(f"{type(error).__name__}: {error}"[:200]) from None


def decode(text: str | bytes) -> Any:
    """Return what `encode` wrote; raises NotPlain for any other text."""
    try:
        return _typed(json.loads(text))
    except NotPlain:
        raise
    except (RecursionError, TypeError, ValueError, ArithmeticError, KeyError, IndexError) as error:
        raise NotPlain(f"{type(error).__name__}: {error}"[:200]) from None


def _plain(value: Any) -> Any:
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        number = int.__int__(value)
        return number if -_LARGE < number < _LARGE else {"$int": hex(number)}
    if isinstance(value, float):
        real = float.__float__(value)
        return real if math.isfinite(real) else {"$float": repr(real)}
    if isinstance(value, list):
        return [_plain(item) for item in list.__iter__(value)]
    for kind, name, write in _WRITERS:
        if isinstance(value, kind):
            return {name: write(value)}
    if isinstance(value, dict):
        return {"$dict": [[_plain(key), _plain(dict.__getitem__(value, key))] for key in dict.__iter__(value)]}
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return _plain(value.tolist())
    raise NotPlain(f"a value of type {type(value).__name__} is no plain data")


_WRITERS: tuple[tuple[type | tuple[type, ...], str, Callable[[Any], Any]], ...] = (
    (tuple, "$tuple", lambda value: [_plain(item) for item in tuple.__iter__(value)]),
    (set, "$set", lambda value: [_plain(item) for item in set.__iter__(value)]),
    (frozenset, "$frozenset", lambda value: [_plain(item) for item in frozenset.__iter__(value)]),
    (deque, "$deque", lambda value: [_plain(item) for item in deque.__iter__(value)]),
    ((bytes, bytearray), "$bytes", lambda value: bytes(value).hex()),
    (complex, "$complex", lambda value: [_plain(value.real), _plain(value.imag)]),
    (range, "$range", lambda value: [value.start, value.stop, value.step]),
    (Fraction, "$fraction", str),
    (Decimal, "$decimal", str),
)


def _range(parts: list[int]) -> range:
    found = range(*parts)
    if found and (found[-1] - found[0]) // found.step >= _MAX_LENGTH:
        raise NotPlain("a range of more numbers than a test can look at")
    return found


_READERS: dict[str, Callable[[Any], Any]] = {
    "$int": lambda text: int(text, 16),
    "$float": lambda text: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[text],
    "$tuple": tuple,
    "$set": set,
    "$frozenset": frozenset,
    "$deque": deque,
    "$bytes": bytes.fromhex,
    "$complex": lambda parts: complex(*parts),
    "$range": _range,
    "$fraction": Fraction,
    "$decimal": Decimal,
    "$dict": lambda pairs: dict(pairs),
}


def _typed(value: Any) -> Any:
    if isinstance(value, list):
        return [_typed(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise NotPlain("an object of several keys")
    ((name, content),) = value.items()
    if name not in _READERS:
        raise NotPlain(f"a value of unknown type {name[:40]!r}")
    return _READERS[name](_typed(content))
