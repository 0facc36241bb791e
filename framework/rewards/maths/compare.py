"""Last step: do two trees agree? Collections part by part, numbers exactly, expressions at a few points."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import mpmath

from framework.rewards.maths.tokens import Unreadable
from framework.rewards.maths.tree import Node, number
from framework.rewards.maths.values import PRECISION, Value, evaluate, is_finished, same

POINTS = 3  # at which expressions with variables are compared
MAX_ITEMS = 60
ROUNDED, SHORT, LONG = 4, 3, 6  # significant digits; see `numbers_agree`
_FLIPPED = {">": "<", ">=": "<="}


def numbers_agree(reference: Node, answer: Node) -> bool:
    """Compare two numbers.

    Equal is equal: 0.5, 1/2, 50/100, 5e-1. A percent sign is a unit: 50% is 50 and 0.5, but for references below 1
    only the latter. A decimal stands for a value that it rounds, or cuts off, in three cases: the reference has no
    finite decimal expansion and the decimal ROUNDED significant digits, three of them behind the point (0.3333 for
    1/3); it is the reference, has SHORT, and the answer has no finite expansion (pi for 3.14); it has LONG and the
    other is a longer decimal. Integers are exact.
    """
    a, b = evaluate(_bare(reference)), evaluate(_bare(answer))
    if same(a, b):
        if _is_percent(reference) == _is_percent(answer) or not isinstance(a, Fraction):
            return True
        return _is_percent(reference) or abs(a) >= 1 or a == 0
    if _is_percent(reference) != _is_percent(answer):
        return same(evaluate(reference), evaluate(answer))
    return _rounds(reference, a, answer, b)


def _rounds(reference: Node, a: Value, answer: Node, b: Value) -> bool:
    long_a, long_b = not _terminates(a), not _terminates(b)
    if long_a and not long_b:
        return _is_rounded(answer, a, ROUNDED)
    if long_b and not long_a:
        return _is_rounded(reference, b, SHORT)
    if long_a or long_b or Fraction(a).denominator == 1:
        return False
    return _is_rounded(answer, a, LONG) or (Fraction(b).denominator > 1 and _is_rounded(reference, b, LONG))


def _is_rounded(decimal: Node, exact: Value, least: int) -> bool:
    decimal = _bare(decimal)
    if (
        decimal.kind != "number"
        or decimal.digits < min(least - 1, 3)
        or (not isinstance(exact, Fraction) and exact.imag)
    ):
        return False
    shift = 10**decimal.digits
    written = decimal.value * shift
    if written.denominator != 1 or len(str(abs(written.numerator))) < least:
        return False
    if isinstance(exact, Fraction):
        scaled = abs(exact) * shift
        negative, cut, rest = exact < 0, scaled.numerator // scaled.denominator, scaled % 1
    else:
        with mpmath.workdps(PRECISION):
            size = abs(exact.real) * shift
            if mpmath.isinf(size):
                return False
            negative, cut = exact.real < 0, int(mpmath.floor(size))
            rest = size - cut
    return (written < 0) == negative and abs(written.numerator) in (cut, cut + (rest >= 0.5))


def _terminates(value: Value) -> bool:
    if not isinstance(value, Fraction):
        return False
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def _is_percent(node: Node) -> bool:
    return node.kind == "percent" or (node.kind == "negative" and _is_percent(node.parts[0]))


def _bare(node: Node) -> Node:
    """The number without its percent sign; a negative literal as one number."""
    if node.kind == "percent":
        return _bare(node.parts[0])
    if node.kind == "negative" and (inner := _bare(node.parts[0])).kind == "number":
        return Node("number", value=-inner.value, digits=inner.digits)
    return node


def scalars_agree(reference: Node, answer: Node, allowed: frozenset[str] = frozenset()) -> bool:
    """Compare two scalars; where the reference is a number the answer must be a finished one."""
    try:
        if reference.variables():
            return expressions_agree(reference, answer)
        if answer.variables() or not is_finished(answer, allowed | reference.names()):
            return False
        return numbers_agree(reference, answer)
    except Unreadable:
        return False


def expressions_agree(reference: Node, answer: Node) -> bool:
    """Whether both have the same value wherever they have one; variables stand for positive numbers."""
    return _ratio(reference, answer) == 1


def _ratio(left: Node, right: Node) -> Value | None:
    """Return left / right if it is the same at all points, else None; 1 where both are 0."""
    names = left.variables() | right.variables()
    ratios: list[Value] = []
    for point in range(POINTS):
        try:
            variables = {name: _coordinate(name, point) for name in names}
            a, b = evaluate(left, variables), evaluate(right, variables)
        except Unreadable:
            continue
        if same(a, b):
            ratios.append(Fraction(1))
        elif not a or not b:
            return None
        else:
            with mpmath.workdps(PRECISION):
                ratios.append(mpmath.mpc(_mp(a)) / _mp(b))
    if len(ratios) < 2 or not all(same(a, b) for a, b in pairwise(ratios)):
        return None
    return ratios[0]


def _mp(value: Value) -> Value:
    return mpmath.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _coordinate(name: str, point: int) -> Value:
    draw = int.from_bytes(hashlib.sha256(f"{name}:{point}".encode()).digest()[:4], "big")
    return Fraction(draw, 2**31) + Fraction(1, 3)


def nodes_agree(reference: Node, answer: Node, allowed: frozenset[str] = frozenset()) -> bool:
    """Compare two readings of any kind; see the cases below for what counts as the same."""
    a, b = canonical(reference), canonical(answer)
    if a.kind == "relation" and b.kind == "relation":
        return _relations_agree(a, b)
    if a.kind == "relation" and a.name == "=" and a.parts[0].kind == "variable":
        return nodes_agree(a.parts[1], b, allowed)  # y = 2x + 1, answered by 2x + 1
    if b.kind == "relation" and set(b.name.split()) == {"="} and a.kind != "list":
        return nodes_agree(a, b.parts[-1], allowed)
    if a.scalar and b.scalar:
        return scalars_agree(a, b, allowed)
    if {a.kind, b.kind} == {"tuple", "matrix"}:
        a, b = _as_tuple(a), _as_tuple(b)
    if a.kind == b.kind == "list" and not a.find("relation"):
        b = _numbered_roots(b)
    if len(a.parts) != len(b.parts) or len(a.parts) > MAX_ITEMS or a.scalar or b.scalar:
        return False
    if a.kind in ("list", "set") and b.kind in ("list", "set"):
        return _unordered(a, b, allowed)
    if a.kind == b.kind == "union":
        return _unordered(a, b, allowed)
    brackets = ("tuple", "interval")
    ordered = (a.kind in brackets and b.kind in brackets and a.name == b.name) or a.kind == b.kind == "matrix"
    ordered = (
        ordered or {a.kind, b.kind} == {"list", "tuple"} or ("matrix" in (a.kind, b.kind) and _rows(a) and _rows(b))
    )
    if not ordered:
        return False
    pairs = list(zip(a.parts, b.parts, strict=True))
    if "matrix" in (a.kind, b.kind):
        if any(len(x.parts) != len(y.parts) for x, y in pairs):
            return False
        pairs = [pair for x, y in pairs for pair in zip(x.parts, y.parts, strict=True)]
    return all(nodes_agree(_side(x, y), _side(y, x), allowed) for x, y in pairs)


def _side(item: Node, other: Node) -> Node:
    """In lists of equations next to bare values only the values count: x = 1, y = 2 is (1, 2)."""
    is_equation = item.kind == "relation" and item.name == "=" and other.kind != "relation"
    return item.parts[1] if is_equation else item


def _rows(node: Node) -> bool:
    return node.kind == "matrix" or all(part.kind in ("tuple", "interval") for part in node.parts)


def _as_tuple(node: Node) -> Node:
    """A matrix of one column or row as a tuple; anything else as it is."""
    if node.kind == "matrix" and (len(node.parts) == 1 or all(len(row.parts) == 1 for row in node.parts)):
        return Node("tuple", tuple(item for row in node.parts for item in row.parts), "()")
    return node


def _numbered_roots(node: Node) -> Node:
    """x_1 = 1, x_2 = 2 as the values alone."""
    named = all(item.kind == "relation" and item.name == "=" and len(item.parts) == 2 for item in node.parts)
    names = [item.parts[0].name.partition("_") for item in node.parts if named and item.parts[0].kind == "variable"]
    numbered = len(names) == len(node.parts) and len({name for name, _, _ in names}) == 1
    return Node("list", tuple(item.parts[1] for item in node.parts)) if numbered and all(n[2] for n in names) else node


def _unordered(a: Node, b: Node, allowed: frozenset[str]) -> bool:
    left = list(b.parts)
    for item in a.parts:
        for place, candidate in enumerate(left):
            if (item.kind == "relation") == (candidate.kind == "relation") and nodes_agree(item, candidate, allowed):
                del left[place]
                break
        else:
            return False
    return not left


def _relations_agree(a: Node, b: Node) -> bool:
    a, b = _forward(a), _forward(b)
    if a.name != b.name or len(a.parts) != len(b.parts):
        return False
    if len(a.parts) != 2 or not all(part.scalar for part in (*a.parts, *b.parts)):
        return all(nodes_agree(x, y) for x, y in zip(a.parts, b.parts, strict=True))
    if a.parts[0].kind == b.parts[0].kind == "variable" and not a.parts[1].variables():
        return a.parts[0] == b.parts[0] and scalars_agree(a.parts[1], b.parts[1])
    ratio = _ratio(*(Node("sum", (x.parts[0], Node("negative", (x.parts[1],)))) for x in (a, b)))
    if ratio is None:
        return False
    return a.name in ("=", "!=") or (not isinstance(ratio, Fraction) and ratio.real > 0) or ratio == 1


def _forward(node: Node) -> Node:
    """Write > as <."""
    signs = node.name.split()
    if signs and all(sign in _FLIPPED for sign in signs):
        return Node("relation", node.parts[::-1], " ".join(_FLIPPED[sign] for sign in signs[::-1]))
    return node


def canonical(node: Node) -> Node:
    """One form for what is written in several: roots as a list, bounds of a variable as an interval."""
    if (node.scalar or node.kind == "plusminus") and node.find("plusminus"):
        return _two(node)
    if node.kind == "relation":
        node = _forward(node)
        if node.name.startswith(r"\in"):
            return canonical(node.parts[-1])
        if (bounds := _interval(node)) is not None:
            return bounds
        if node.name == "=" and (node.parts[1].kind == "list" or node.parts[1].find("plusminus")):
            return canonical(node.parts[1])
    if node.kind == "list" and node.name == "and" and (both := _intersection(node)) is not None:
        return both
    if node.kind in ("list", "set"):
        items: list[Node] = []
        for item in node.parts:
            inner = canonical(item)
            items += inner.parts if inner.kind == "list" else [inner]
        names = {item.parts[0] for item in items if item.kind == "relation" and item.name == "="}
        if len(names) == 1 and next(iter(names)).kind == "variable":  # x = 1 or x = 2
            items = [item.parts[1] if item.kind == "relation" else item for item in items]
        pairs = all(item.kind in ("interval", "tuple", "union") and len(item.parts) > 1 for item in items)
        if len(items) > 1 and pairs and any(item.kind == "interval" for item in items):
            return Node("union", tuple(items))
        if len(items) == 1:
            return items[0]
        return Node(node.kind, tuple(items), node.name)
    return node


def _two(node: Node) -> Node:
    """Both values of a scalar with a plus-minus in it."""
    return Node("list", (_with_sign(node, True), _with_sign(node, False)))


def _with_sign(node: Node, plus: bool) -> Node:
    parts = tuple(_with_sign(part, plus) for part in node.parts)
    if node.kind != "plusminus":
        return replace(node, parts=parts)
    left, right = parts
    if not plus:
        right = Node("negative", (right,)) if right.kind != "number" else number(-right.value, right.digits)
    return right if left == number(0) else Node("sum", (left, right))


def _intersection(node: Node) -> Node | None:
    """x >= 2 and x < 5 as [2, 5); None where the two are no bounds of one variable, or nothing lies between them."""
    bounds = [_interval(_forward(item)) if item.kind == "relation" else None for item in node.parts]
    if len(bounds) != 2 or any(item is None or not item.find("constant") for item in bounds):
        return None
    names = {name for item in node.parts for name in item.variables()}
    ends = [(item.parts, item.name) for item in bounds if item is not None]
    upper = [end for end in ends if end[0][0].find("constant") and not end[0][1].find("constant")]
    lower = [end for end in ends if end[0][1].find("constant") and not end[0][0].find("constant")]
    if len(names) != 1 or len(upper) != 1 or len(lower) != 1:
        return None
    low, high = lower[0][0][0], upper[0][0][1]
    try:
        a, b = evaluate(low), evaluate(high)
    except Unreadable:
        return None
    if not (isinstance(a, Fraction) and isinstance(b, Fraction) and a < b):
        return None
    return Node("interval", (low, high), lower[0][1][0] + upper[0][1][1])


def _interval(node: Node) -> Node | None:
    """x > 3 as (3, inf), 2 < x <= 5 as (2, 5]; None for other relations."""
    signs, parts = node.name.split(), node.parts
    if not signs or not all(sign in ("<", "<=") for sign in signs):
        return None
    infinite = Node("constant", name="inf")
    if len(parts) == 3:
        low, middle, high = parts
        left, right = signs
    elif parts[1].kind == "variable":
        (low, middle), high, left, right = parts, infinite, signs[0], "<"
    else:
        (middle, high), low, left, right = parts, Node("negative", (infinite,)), "<", signs[0]
    if middle.kind != "variable" or low.variables() or high.variables() or not (low.scalar and high.scalar):
        return None
    brackets = ("[" if left == "<=" else "(") + ("]" if right == "<=" else ")")
    return Node("interval", (low, high), brackets)
