"""Bounds of numbers: what one refuses, that every number of the configuration has one, and in Python code too."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import yaml

from framework.bounds import (
    COUNT,
    Bound,
    FilledStr,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Probability,
    Seed,
    bounded,
    bounds_of,
    check_value,
    count_of,
    divisors,
)
from framework.config import CONF, RunConfig
from framework.convert import TARGET, Component, convert
from framework.errors import UserError
from framework.graph.code import nested
from framework.targets import TargetResolver

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (PositiveInt, (1, COUNT), (0, -1, COUNT + 1, 2**63, True)),
        (PositiveFloat, (1e-300, 1), (0, -1.0, NAN, INF, -INF, 10**400, False)),
        (NonNegativeFloat, (0, 0.5), (-1e-9, NAN, INF)),
        (Probability, (0, 1, 0.5), (-0.1, 1.1, NAN)),
        (Seed, (0, 2**32 - 1), (-1, 2**32)),
        (int, (-5, 2**63 - 1), (2**63, 10**5000, True)),
        (float, (-1e300,), (NAN, INF, -INF)),
        (Annotated[float, Bound(above=0, infinite=True)], (INF, 1), (0, NAN, -INF)),
        (Annotated[int, count_of(2)], (2,), (1,)),
        (FilledStr, ("a",), ("", "  ")),
        (PositiveInt | None, (None, 1), (0,)),
        (tuple[Probability, ...], ((), (0.5, 1)), ((0.5, 2),)),
        (Mapping[str, PositiveFloat], ({"a": 1},), ({"a": 0},)),
        (Literal["a", 1], ("a", 1), ("b", True)),
    ],
)
def test_what_a_type_takes(hint: Any, good: tuple[Any, ...], bad: tuple[Any, ...]) -> None:
    for value in good:
        check_value(hint, value, "key")
    for value in bad:
        with pytest.raises(UserError, match=r"^key"):
            check_value(hint, value, "key")


@pytest.mark.parametrize(
    ("bound", "text"),
    [
        (Bound(), ""),
        (count_of(2, "a pair"), "at least 2 (a pair)"),
        (Bound(least=0, most=1), "0 to 1"),
        (Bound(above=0, most=1), "above 0, at most 1"),
        (Bound(least=1, most=1, note="always"), "1 (always)"),
        (Bound(least=0, below=1), "at least 0, below 1"),
    ],
)
def test_a_bound_in_words(bound: Bound, text: str) -> None:
    assert str(bound) == text


@dataclass(frozen=True)
@bounded
class Part:
    """With a check of its own, which sees numbers that are within their bounds."""

    rate: PositiveFloat = 1.0
    most: PositiveFloat = 2.0

    def __post_init__(self) -> None:
        if math.log(self.rate) > math.log(self.most):
            raise UserError("rate", self.rate, f"must be at most most={self.most}")


@dataclass(frozen=True)
@bounded
class Whole:
    part: Part = Part()
    sizes: tuple[PositiveInt, ...] = ()
    by_name: Mapping[str, Part] = dataclasses.field(default_factory=dict)
    either: PositiveInt | Part = 1


def no_target(target: str, where: str) -> Any:
    raise AssertionError(target)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"part": {"rate": 0}}, "whole.part.rate: got 0; must be above 0"),
        ({"part": {"rate": 3}}, "whole.part.rate: got 3.0; must be at most most=2.0"),
        ({"sizes": [1, 0]}, "whole.sizes[1]: got 0; must be at least 1"),
        ({"by_name": {"x": {"most": NAN}}}, "whole.by_name.x.most: got nan; must be a finite number, above 0"),
        ({"either": 0}, "whole.either: got 0; must be at least 1"),
        ({"either": {"rate": -1}}, "whole.either.rate: got -1; must be above 0"),
        ({"either": "x"}, "whole.either: got 'x'; must be an integer or a mapping"),
        ({"sizes": [10**5000]}, "whole.sizes[0]: got 'an integer of 16610 bits'; must be of 64 bits with its sign"),
    ],
)
def test_errors_name_the_key_as_it_was_written(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        convert(Whole, values, "whole", no_target)
    assert str(error.value).startswith(message)


def test_classes_built_in_python_check_themselves() -> None:
    for build in (lambda: Part(rate=0), lambda: Part(rate=NAN), lambda: dataclasses.replace(Part(), most=INF)):
        with pytest.raises(UserError, match=r"^Part\.(rate|most): got"):
            build()
    with pytest.raises(UserError, match=r"must be at most most"):
        Part(rate=3.0)
    with pytest.raises(UserError, match=r"^Whole\.sizes\[0\]: got 0"):
        Whole(sizes=(0,))


def test_divisors() -> None:
    for number in (*range(1, 200), 9973, 10_400):
        assert divisors(number) == [d for d in range(1, number + 1) if number % d == 0]
    assert len(divisors(COUNT)) == 2  # a prime, at once


def settings() -> set[type]:
    """Every dataclass that a configuration can be made of: what RunConfig and conf/ name, and what is in those."""
    targets = {
        part[TARGET]
        for file in sorted(CONF.rglob("*.yaml"))
        for part in nested(yaml.safe_load(file.read_text()))
        if isinstance(part, Mapping) and TARGET in part
    }
    waiting: list[Any] = [RunConfig]
    for target in sorted(targets):
        cls = TargetResolver()(target, TARGET)
        config = getattr(sys.modules[cls.__module__], f"{cls.__name__}Config", None)
        waiting.append(cls if dataclasses.is_dataclass(cls) else getattr(cls, "Config", config))
    found: set[type] = set()
    while waiting:
        hint = waiting.pop()
        if hint is not Component and get_args(hint):
            waiting += get_args(hint)
        elif isinstance(hint, type) and dataclasses.is_dataclass(hint) and hint not in found:
            found.add(hint)
            waiting += get_type_hints(hint, include_extras=True).values()
    return found


def numbers(hint: Any) -> Iterator[Any]:
    """Every number within a type, with its bounds if it has some."""
    if get_origin(hint) is Annotated:
        yield from [hint] if get_args(hint)[0] in (int, float) else numbers(get_args(hint)[0])
    elif hint in (int, float):
        yield hint
    elif get_origin(hint) is not Literal:
        for part in get_args(hint):
            yield from numbers(part)


def fields() -> list[tuple[type, str, Any]]:
    """(class, field, type) of every field with a number in it."""
    return [
        (cls, name, hint)
        for cls in sorted(settings(), key=lambda cls: cls.__qualname__)
        for name, hint in get_type_hints(cls, include_extras=True).items()
        if any(numbers(hint))
    ]


def test_the_walk_reaches_far() -> None:
    names = {cls.__name__ for cls in settings()}
    assert names >= {"RunConfig", "GrpoConfig", "LrSchedule", "StepwiseValue", "ContextPhase", "Overlong", "TaskConfig"}
    assert len(fields()) > 120


@pytest.mark.parametrize(("cls", "name", "hint"), fields(), ids=lambda part: getattr(part, "__name__", str(part))[:60])
def test_every_number_has_a_bound(cls: type, name: str, hint: Any) -> None:
    for number in numbers(hint):
        assert any(bounds_of(number)), f"{cls.__name__}.{name} is a plain {number.__name__}: see framework/bounds.py"
    assert cls.__post_init__.__module__ == "framework.bounds", f"put @bounded beneath @dataclass of {cls.__name__}"


def test_a_plain_number_is_found() -> None:
    assert list(numbers(tuple[int, ...] | None)) == [int]
    assert list(numbers(Union[PositiveInt, Mapping[str, float]])) == [PositiveInt, float]  # noqa: UP007
    assert not any(bounds_of(int))
