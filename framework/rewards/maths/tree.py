"""What an answer is once it is read: a small tree."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

FUNCTIONS: tuple[str, ...] = (
    "sin",
    "cos",
    "tan",
    "cot",
    "sec",
    "csc",
    "arcsin",
    "arccos",
    "arctan",
    "sinh",
    "cosh",
    "tanh",
)
FUNCTIONS += ("log", "ln", "lg", "exp", "sqrt", "cbrt", "abs", "binom")
_COMPUTING = ("call", "factorial", "power", "quotient")
CONSTANTS = ("pi", "e", "i", "inf")


@dataclass(frozen=True)
class Node:
    """One node of the tree.

    Kinds of scalars: number (value), constant and variable (name), sum, product (name "*" if the signs are written),
    quotient, power, root (radicand, degree), call (name: the function), factorial, negative, degrees, percent,
    plusminus (left, right). Others: tuple, interval and set (name: the brackets), list, union, matrix (of tuples),
    relation (name: the signs, blank between).
    """

    kind: str
    parts: tuple[Node, ...] = ()
    name: str = ""
    value: Fraction = Fraction(0)
    digits: int = -1  # of a number written as a decimal: how many stand behind the point; -1: no decimal

    def find(self, *kinds: str) -> bool:
        """Whether a node of one of these kinds is in the tree."""
        return self.kind in kinds or any(part.find(*kinds) for part in self.parts)

    def variables(self) -> frozenset[str]:
        """Names of the variables in the tree."""
        own = frozenset({self.name}) if self.kind == "variable" else frozenset()
        return own.union(*(part.variables() for part in self.parts))

    def names(self) -> frozenset[str]:
        """Names of the functions called in the tree, and its operators that compute."""
        own = frozenset({self.name or self.kind}) if self.kind in _COMPUTING else frozenset()
        return own.union(*(part.names() for part in self.parts))

    @property
    def scalar(self) -> bool:
        """Whether it is one quantity, known or not."""
        return self.kind not in ("tuple", "interval", "set", "list", "union", "matrix", "relation", "plusminus")


def number(value: Fraction | int, digits: int = -1) -> Node:
    """Return the node of a number."""
    return Node("number", value=Fraction(value), digits=digits)
