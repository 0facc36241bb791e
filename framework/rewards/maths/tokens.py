"""Cuts a normalised answer into tokens, each sign in one spelling."""

from __future__ import annotations

import re

from framework.rewards.maths.tree import CONSTANTS, FUNCTIONS

MAX_TOKENS = 600
_TOKEN = re.compile(
    r"(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,4}(?![\dA-Za-z.]))?)"
    r"|(?P<command>\\(?:begin|end)\s*\{[A-Za-z]+\*?\}|\\[A-Za-z]+|\\[{}|%&])|(?P<letters>[A-Za-zα-ωΑ-Ω]+)|(?P<sign><=|>=|!=|==|\*\*|\S)"
)
_SIGNS = {r"\le": "<=", r"\ge": ">=", r"\ne": "!=", r"\approx": "=", "==": "=", r"\equiv": "=", r"\to": "="}
_SIGNS |= {
    "或": "or",
    "和": "and",
    "与": "and",
    "且": "and",
    r"\times": "*",
    r"\cdot": "*",
    "**": "^",
    r"\bullet": "*",
    r"\mid": "|",
    r"\|": "|",
}
GREEK: tuple[str, ...] = (
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "varepsilon",
    "zeta",
    "eta",
    "theta",
    "kappa",
    "lambda",
    "mu",
)
GREEK += ("nu", "xi", "rho", "sigma", "tau", "phi", "varphi", "chi", "psi", "omega", "Delta", "Omega", "Gamma", "Phi")


class Unreadable(Exception):
    """This text is not wholly an answer of the kinds that are known."""


def tokens_of(text: str) -> list[tuple[str, str, bool]]:
    """Return (kind, token, whether white space precedes it)."""
    tokens: list[tuple[str, str, bool]] = []
    end = 0
    for match in _TOKEN.finditer(text):
        spaced, end = match.start() > end, match.end()
        kind, token = match.lastgroup or "", match[0]
        for piece in _letters(token) if kind == "letters" else [token]:
            piece = _SIGNS.get(piece, piece)
            tokens.append(("sign" if piece in _SIGNS.values() else kind, piece, spaced))
            spaced = False
    if len(tokens) > MAX_TOKENS:
        raise Unreadable("too long")
    return tokens


def _letters(run: str) -> list[str]:
    """Split a run of letters into names that are known and variables of one letter; a word of four is no product."""
    if run in (*FUNCTIONS, *CONSTANTS, "infinity", "oo", "and", "or", "U", *GREEK):
        return [run]
    if run.lower() in ("infinity", "inf", "pi", "sqrt", "and", "or"):
        return [run.lower()]
    for name in sorted((*FUNCTIONS, "pi"), key=len, reverse=True):
        if run.startswith(name) and len(run) > len(name):
            return [name, *_letters(run[len(name) :])]
        if name == "pi" and run.endswith(name) and len(run) <= 4:
            return [*_letters(run[:-2]), name]
    if len(run) > 3:
        raise Unreadable(run)
    return list(run)
