"""Computes what was read, within bounds, and says whether it is a finished value or work left undone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import mpmath
from mpmath.libmp import NoConvergence

from framework.rewards.maths.tokens import Unreadable
from framework.rewards.maths.tree import Node

PRECISION = 40  # decimal digits
TOLERANCE = mpmath.mpf(10) ** -25
MAX_BITS = 20_000  # of an exact power
MAX_LOG10 = 50_000  # of any power
MAX_FACTORIAL = 500
Value = Any  # a Fraction, or mpmath's mpf or mpc


def evaluate(node: Node, variables: Mapping[str, Value] | None = None) -> Value:
    """Return the value of a scalar, exact where it is rational; raises Unreadable for what has none or is too large."""
    try:
        with mpmath.workdps(PRECISION):
            value = _value(node, variables or {})
            value = value if isinstance(value, Fraction) else mpmath.mpc(value)
    except (ZeroDivisionError, OverflowError, ValueError, TypeError, MemoryError, NoConvergence) as error:
        raise Unreadable(str(error)) from None
    if not isinstance(value, Fraction) and (mpmath.isnan(value.real) or mpmath.isnan(value.imag)):
        raise Unreadable("not a number")
    return value


def same(left: Value, right: Value) -> bool:
    """Whether two values are equal; those that are not rational, to 25 digits."""
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left == right
    with mpmath.workdps(PRECISION):
        a, b = _number(left), _number(right)
        if mpmath.isinf(a) or mpmath.isinf(b):
            return bool(a == b)
        return bool(abs(a - b) <= TOLERANCE * max(abs(a), abs(b), TOLERANCE))


def is_finished(node: Node, allowed: frozenset[str] = frozenset()) -> bool:
    """Whether a number without variables stands there as a result: nothing in it is left to be computed.

    71/6, 3e5, \\sqrt{12}, (1+\\sqrt5)/2 and 2\\pi are; 7 + 8 - 9, 2 \\cdot 3, 8/2, 2^{10}, |-5| and 1/(2/3) are not.
    `allowed` names what the reference itself leaves so ("quotient", "power", "factorial", functions).
    """
    if node.kind in ("number", "constant"):
        return True
    if not all(is_finished(part, allowed) for part in node.parts):
        return False
    if node.kind == "sum":
        return _no_like_terms(node)
    if node.kind == "product":
        return _scientific(node) or (not _rational(node) and sum(map(_rational, node.parts)) <= 1)
    if node.kind == "quotient":
        if not _rational(node):
            return True
        top, bottom = node.parts
        whole = evaluate(node).denominator == 1 and "quotient" not in allowed
        return (top.kind, bottom.kind) in _LITERALS and not whole
    if node.kind in ("power", "factorial", "call"):
        return (node.name or node.kind) in allowed or not _rational(node)
    return True  # negative, root, degrees, percent


_LITERALS = [(a, b) for a in ("number", "negative") for b in ("number", "negative")]


def _rational(node: Node) -> bool:
    """Whether the value is rational; one that only rounding tells from a rational of small denominator counts so."""
    value = evaluate(node)
    if isinstance(value, Fraction):
        return True
    if value.imag or mpmath.isinf(value):
        return False
    with mpmath.workdps(PRECISION):
        scaled = value.real * 27720  # of all denominators up to 12
        return bool(abs(scaled) < 10**12 and abs(scaled - mpmath.nint(scaled)) < TOLERANCE * 10**12)


def _scientific(node: Node) -> bool:
    """Whether it is a number times a power of ten."""
    return len(node.parts) == 2 and node.parts[1].name == "10^" and node.parts[0].kind in ("number", "negative")


def _no_like_terms(node: Node) -> bool:
    """Whether no two terms could be added up: none is a rational multiple of another."""
    values = [evaluate(term) for term in node.parts]
    if len(values) > 8:
        return False
    for place, left in enumerate(values):
        for right in values[:place]:
            if (isinstance(left, Fraction) and isinstance(right, Fraction)) or not left or not right:
                return False
            with mpmath.workdps(PRECISION):
                ratio = _number(left) / _number(right)
                scaled = ratio.real * 27720
                if abs(ratio.imag) < TOLERANCE and abs(scaled - mpmath.nint(scaled)) < TOLERANCE * 10**12:
                    return False
    return True


def _number(value: Value) -> Value:
    if isinstance(value, Fraction):
        return mpmath.mpf(value.numerator) / value.denominator
    return value


def _value(node: Node, variables: Mapping[str, Value]) -> Value:
    match node.kind:
        case "number":
            return node.value
        case "constant":
            return {"pi": +mpmath.pi, "e": +mpmath.e, "i": mpmath.mpc(0, 1), "inf": mpmath.inf}[node.name]
        case "variable":
            if node.name not in variables:
                raise Unreadable(node.name)
            return variables[node.name]
        case "power":
            return _power(*(_value(part, variables) for part in node.parts))
        case "call":
            return _call(node, variables)
    if not node.scalar:
        raise Unreadable(node.kind)
    parts = [_value(part, variables) for part in node.parts]
    match node.kind:
        case "negative":
            return -parts[0]
        case "sum":
            return _fold(parts, lambda a, b: a + b)
        case "product":
            return _fold(parts, lambda a, b: a * b)
        case "quotient":
            return _fold(parts, lambda a, b: a / b)
        case "degrees":
            return parts[0]  # a unit; inside a trigonometric function it counts
        case "percent":
            return parts[0] / 100
        case "root":
            return _root(*parts)
        case "factorial":
            return _factorial(parts[0])
    raise Unreadable(node.kind)


def _fold(parts: list[Value], operation: Any) -> Value:
    result = parts[0]
    for part in parts[1:]:
        if isinstance(result, Fraction) != isinstance(part, Fraction):
            result, part = _number(result), _number(part)
        result = operation(result, part)
        if isinstance(result, Fraction) and max(abs(result.numerator), result.denominator).bit_length() > 4 * MAX_BITS:
            raise Unreadable("too large")
    return result


def _power(base: Value, exponent: Value) -> Value:
    whole = isinstance(exponent, Fraction) and exponent.denominator == 1
    if isinstance(base, Fraction) and whole:
        bits = max(abs(base.numerator), base.denominator).bit_length() * abs(exponent)
        if bits <= MAX_BITS:
            return base ** int(exponent)
    if base == 0:
        return Fraction(0) if isinstance(exponent, Fraction) and exponent > 0 else mpmath.nan
    b, x = _number(base), _number(exponent)
    if abs(x) > 10**9 or abs(x) * abs(mpmath.log10(abs(b))) > MAX_LOG10:
        raise Unreadable("too large")
    if isinstance(exponent, Fraction) and exponent.denominator == 2:
        return _power(_root(base, Fraction(2)), Fraction(exponent.numerator))
    return mpmath.power(b, x)


def _root(radicand: Value, degree: Value) -> Value:
    if not isinstance(degree, Fraction) or degree.denominator != 1 or not 2 <= degree <= 100:
        raise Unreadable("degree of a root")
    n = int(degree)
    if isinstance(radicand, Fraction) and (radicand >= 0 or n % 2):
        sign = -1 if radicand < 0 else 1
        top, bottom = (_whole_root(part, n) for part in (abs(radicand.numerator), radicand.denominator))
        if top is not None and bottom is not None:
            return sign * Fraction(top, bottom)
        return sign * mpmath.root(abs(_number(radicand)), n)
    return mpmath.root(mpmath.mpc(_number(radicand)), n)


def _whole_root(value: int, degree: int) -> int | None:
    if degree == 2:
        root = math.isqrt(value)
    elif value.bit_length() < 3000:
        root = int(mpmath.nint(mpmath.root(mpmath.mpf(value), degree)))
    else:
        return None
    return root if root**degree == value else None


def _factorial(value: Value) -> Value:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= MAX_FACTORIAL:
        raise Unreadable("factorial")
    return Fraction(math.factorial(int(value)))


def _call(node: Node, variables: Mapping[str, Value]) -> Value:
    argument = _value(node.parts[0], variables)
    if node.name == "abs":
        return abs(argument)
    if node.name == "binom":
        n, k = argument, _value(node.parts[1], variables)
        if not (isinstance(n, Fraction) and isinstance(k, Fraction) and n.denominator == k.denominator == 1):
            raise Unreadable("binomial")
        if not 0 <= k <= n <= MAX_FACTORIAL:
            raise Unreadable("binomial")
        return Fraction(math.comb(int(n), int(k)))
    x = _number(argument)
    if node.parts[0].kind == "degrees":
        x = x * mpmath.pi / 180
    if node.name in ("log", "lg", "ln"):
        if len(node.parts) > 1:
            return mpmath.log(x) / mpmath.log(_number(_value(node.parts[1], variables)))
        return mpmath.log10(x) if node.name == "lg" else mpmath.log(x)
    if (node.name == "exp" and abs(x) > MAX_LOG10) or (node.name != "exp" and abs(x) > 10**12):
        raise Unreadable("too large")
    names = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}
    return getattr(mpmath, names.get(node.name, node.name))(x)
