"""Bounds of settings, written in their types: `steps: PositiveInt = 10`, `top_p: Annotated[float, Bound(above=0)] = 1`.

`framework.convert` checks them on what yaml and the command line hold, under the key that the user wrote; a `bounded`
dataclass checks them also when Python code builds it. A number without a bound of its own is finite and fits 64 bits.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from framework.errors import UserError

Class = TypeVar("Class", bound=type)
COUNT = 2**31 - 1  # the most that any count may be: kernels and files index with 32 bits
INT64 = 2**63 - 1


@dataclass(frozen=True)
class Bound:
    """Where a number lies: `least` and `most` may be reached, `above` and `below` may not. `note` explains a value."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    infinite: bool = False  # positive infinity is a value too
    note: str = ""  # e.g. "0: off"

    def check(self, value: object, where: str) -> None:
        """Raise UserError unless `value` is a number within the bound."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(where, value, f"must be a number{self._noted()}")
        if isinstance(value, int) and abs(value) > INT64:
            raise UserError(
                where, f"an integer of {value.bit_length()} bits", f"must be {str(self) or 'of 64 bits with its sign'}"
            )
        if isinstance(value, float) and not math.isfinite(value) and not (self.infinite and value > 0):
            raise UserError(where, value, f"must be a finite number{f', {self}' if str(self) else ''}")
        too_low = (self.least is not None and value < self.least) or (self.above is not None and value <= self.above)
        too_high = (self.most is not None and value > self.most) or (self.below is not None and value >= self.below)
        if too_low or too_high:
            most = f"at most {COUNT}" if too_high and self.most == COUNT else ""
            raise UserError(where, value, f"must be {most or self}")

    def __str__(self) -> str:
        """As in "must be ...", e.g. "at least 1", "0 to 1", "above 0, at most 2 (1: off)"; empty without an end."""
        if self.least is not None and self.most not in (None, COUNT):
            between = "" if self.least == self.most else f" to {self.most:.15g}"
            return f"{self.least:.15g}{between}{self._noted()}"
        most = None if self.most == COUNT else self.most  # of no interest to whoever wrote too small a number
        ends = (("at least", self.least), ("above", self.above), ("at most", most), ("below", self.below))
        texts = [f"{text} {end:.15g}" for text, end in ends if end is not None]
        return f"{', '.join(texts)}{self._noted()}" if texts else ""

    def _noted(self) -> str:
        return f" ({self.note})" if self.note else ""


@dataclass(frozen=True)
class Filled:
    """A text of at least one character that is not blank."""

    def check(self, value: object, where: str) -> None:
        """Raise UserError for a blank text."""
        if not isinstance(value, str) or not value.strip():
            raise UserError(where, value, "must not be empty")

    def __str__(self) -> str:
        return "not empty"


Finite = Bound()
Positive = Bound(least=1, most=COUNT)
NonNegative = Bound(least=0, most=COUNT)
PositiveInt = Annotated[int, Positive]
NonNegativeInt = Annotated[int, NonNegative]
FiniteFloat = Annotated[float, Finite]
PositiveFloat = Annotated[float, Bound(above=0)]
NonNegativeFloat = Annotated[float, Bound(least=0)]
Probability = Annotated[float, Bound(least=0, most=1)]
Seconds = Annotated[float, Bound(above=0, most=31_536_000)]  # no clock waits longer than a year
Seed = Annotated[int, Bound(least=0, most=2**32 - 1)]  # numpy takes no larger one
FilledStr = Annotated[str, Filled()]


def count_of(least: int, note: str = "") -> Bound:
    """The bound of a count that is at least so many."""
    return Bound(least=least, most=COUNT, note=note)


def bounded(cls: Class) -> Class:
    """Let a dataclass check its fields as it is built, before its own `__post_init__`; put it beneath `@dataclass`."""
    after = getattr(cls, "__post_init__", None)

    def check(self: Any) -> None:
        cls: Any = type(self)
        hints = _hints(cls)
        for item in dataclasses.fields(self):
            if item.init:
                check_value(hints[item.name], getattr(self, item.name), f"{cls.__name__}.{item.name}")
        if after is not None:
            after(self)

    type.__setattr__(cls, "__post_init__", check)
    return cls


def check_value(hint: Any, value: Any, where: str) -> None:
    """Raise UserError if a part of `value` lies outside the bound, or the choices, that `hint` has for it."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = list(bounds_of(hint))
        if not bounds or args[0] not in (int, float):
            check_value(args[0], value, where)
        for bound in bounds:
            bound.check(value, where)
    elif hint in (int, float):
        Finite.check(value, where)
    elif origin in (Union, types.UnionType):
        arm = arm_of(hint, value)
        if arm is not None:
            check_value(arm, value, where)
    elif origin is Literal:
        # 1 == True in Python, so the type has to agree as well.
        if not any(value == arg and type(value) is type(arg) for arg in args):
            raise UserError(where, value, f"must be {describe(hint)}")
    elif origin in (tuple, list, Sequence) and isinstance(value, list | tuple):
        for i, item in enumerate(value):
            check_value(args[i] if origin is tuple and args[-1] is not Ellipsis else args[0], item, f"{where}[{i}]")
    elif origin in (dict, Mapping) and isinstance(value, Mapping):
        for key, item in value.items():
            check_value(args[1], item, f"{where}.{key}")


def arm_of(hint: Any, value: Any) -> Any | None:
    """Return the arm of a union that is of the value's kind (number, text, list, mapping); None if not just one is."""
    found = [arm for arm in get_args(hint) if isinstance(value, kind_of(arm)) and arm is not type(None)]
    if isinstance(value, bool):
        found = [arm for arm in found if bare(arm) is bool]
    return found[0] if len(found) == 1 else None


def kind_of(hint: Any) -> tuple[type, ...]:
    """Return the classes of plain values that a type may be given as."""
    hint = bare(hint)
    origin = get_origin(hint)
    if origin is Literal:
        return tuple({type(arg) for arg in get_args(hint)})
    if origin in (tuple, list, Sequence):
        return (list, tuple)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return (Mapping, hint)
    if origin in (dict, Mapping):
        return (Mapping,)
    kinds: dict[Any, tuple[type, ...]] = {int: (int, float), float: (int, float), Path: (str, Path)}
    return kinds.get(hint, (hint,) if isinstance(hint, type) else ())


def bounds_of(hint: Any) -> Iterator[Bound | Filled]:
    """Yield the bounds that stand in an `Annotated` type."""
    if get_origin(hint) is Annotated:
        yield from (item for item in get_args(hint)[1:] if isinstance(item, Bound | Filled))


def bare(hint: Any) -> Any:
    """Return the type without its bounds."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def describe(hint: Any, bounds: bool = False) -> str:
    """Return a type as a user reads it, e.g. "one of 'a', 'b'", with its bounds "an integer, at least 1"."""
    ends = [str(bound) for bound in bounds_of(hint) if bounds and str(bound)]
    hint = bare(hint)
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(arg, bounds) for arg in args)
    if origin is Literal:
        return "one of " + ", ".join(repr(arg) for arg in args)
    if origin in (tuple, list, Sequence):
        return f"a list of {describe(args[0], bounds)}" if args else "a list"
    if origin in (dict, Mapping) or dataclasses.is_dataclass(hint):
        return "a mapping"
    names = {int: "an integer", float: "a number", str: "a string", bool: "true or false", Path: "a path"}
    name = "null" if hint is type(None) else names.get(hint, getattr(hint, "__name__", str(hint)))
    return ", ".join([name, *ends])


def divisors(number: int) -> list[int]:
    """Return the divisors of a positive number in rising order, in as many steps as its root has."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return small + [number // d for d in reversed(small) if d * d != number]


def check_divides(key: str, size: int, wholes: Mapping[str, int]) -> None:
    """Raise UserError unless `size`, the value of `key`, divides each of these named numbers."""
    for name, number in wholes.items():
        if number % size:
            raise UserError(key, size, f"must divide the {number} {name}: one of {divisors(number)}")


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)
