"""Is a mathematical answer right? Every step may refuse, and what is refused is wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from framework.rewards.answers import HASHES, extract_answer, unboxed
from framework.rewards.maths import quantities
from framework.rewards.maths.compare import canonical, nodes_agree, scalars_agree
from framework.rewards.maths.moments import same_moment
from framework.rewards.maths.parser import parse
from framework.rewards.maths.statements import bare_words, same_statement
from framework.rewards.maths.text import compact, normalise, words_of
from framework.rewards.maths.tokens import Unreadable
from framework.rewards.maths.tree import Node, number
from framework.rewards.maths.values import evaluate, is_finished

MAX_REFERENCE_CHARS = 20_000
_BRACE = re.compile(r"\\.|[{}]")
_CUT = re.compile(r"\\(?:frac|binom|sqrt|boxed|overline)\s*$|\\(?:frac|binom)\s*(?:\{[^{}]*\}|\d)\s*$")
_RATIO = re.compile(r"(?<![\d.:])\d+(?:\.\d+)?(?: ?: ?\d+(?:\.\d+)?| to \d+(?:\.\d+)?)+(?![\d:])")
_REMARK = re.compile(r"(.*\S) ?\((?:since|because|as|for|from|check|so|i\.e\.) [^()]*\)", re.DOTALL)
_DATE_LIKE = re.compile(r"\d+(?:[-/:]\d+){2,}|\d+[-:]\d+(?:[-:]\d+)*")


class ReferenceWithoutContent(ValueError):
    """There is nothing in a reference answer that another could agree with."""


@dataclass(frozen=True)
class Reading:
    """A reference, or the candidate of an answer, as it was read."""

    text: str  # normalised
    node: Node | None = None  # None: mere words
    unit: str = ""
    option: str = ""  # the letter of a choice
    variable: str = ""  # x of x = 5

    @property
    def is_number(self) -> bool:
        """Whether it is one number."""
        return self.node is not None and self.node.scalar and not self.node.variables()


def math_answers_agree(reference: str, answer: str) -> bool:
    """Whether `answer` states what `reference` states; never raises for any answer.

    Raises ReferenceWithoutContent, a ValueError, for a reference without anything to compare to.
    """
    expected = read_reference(reference)
    text = _candidate(answer)
    if not text:
        return False
    if "\\approx" in text[1:]:  # an exact value, and about how much that is
        exact = text.partition(r"\approx")[0]
        if parse(exact) is not None and math_answers_agree(reference, exact):
            return True
    if compact(text) == compact(expected.text):
        return True
    if same_statement(expected.text, text) or same_statement(expected.text, quantities.after_phrase(text) or ""):
        return True
    if same_moment(expected.text, text) or same_moment(expected.text, quantities.after_phrase(text) or ""):
        return True
    if _RATIO.fullmatch(expected.text):
        return _ratio_of(text) == _ratio_of(expected.text)
    if expected.option:
        return _option_agrees(expected, text)
    if expected.is_number:
        return _number_agrees(expected, text)
    if expected.node is not None:
        return any(node is not None and nodes_agree(expected.node, node) for node in _readings(text))
    return _words_agree(expected.text, text) or _latex_agrees(expected.text, text)


@lru_cache(4096)
def read_reference(reference: str) -> Reading:
    """Return a reference's reading; raises ReferenceWithoutContent if there is nothing in it."""
    text = _candidate(reference, MAX_REFERENCE_CHARS)
    if not text:
        raise ReferenceWithoutContent(f"the reference answer {reference[:80]!r} holds nothing to compare to")
    if _is_cut_off(text):
        raise ReferenceWithoutContent(f"the reference answer {reference[:80]!r} is LaTeX that breaks off")
    found = quantities.option_of(text)
    if found and (len(text) > 1 or text.isupper()):
        rest = found[1]
        if not rest or text[0] in "([" or re.match(r"[A-J]\s*\)", text):
            return Reading(rest, option=found[0])
    if (spelt := quantities.spelt_number(text)) is not None:
        return Reading(text, number(spelt))
    if _DATE_LIKE.fullmatch(text) or _mere_letters(text):
        return Reading(text)
    node = parse(text)
    split = quantities.split_unit(text, strict=True)
    inner = parse(split[0]) if split and (node is None or node.variables()) else None
    if split and inner is not None and _finished(inner, inner.names()):
        scaled, unit = _scaled(inner, split[1])
        return Reading(text, scaled, unit)
    return Reading(text) if node is None else _reference_of(text, node)


def _is_cut_off(text: str) -> bool:
    """Whether braces do not close, or a command has none of its arguments: only its own text could agree with it."""
    depth = 0
    for brace in _BRACE.findall(text):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        if depth < 0:
            return True
    return depth > 0 or _CUT.search(text) is not None


def is_copy(reference: str, answer: str, question: str) -> bool:
    """Whether `answer` is work copied from the question: an expression there, not written as `reference` is.

    A literal, or a fraction in lowest terms, is an answer wherever it stands.
    """
    text = _candidate(answer)
    node, expected = parse(text), read_reference(reference)
    if node is None or not node.scalar or node.kind in ("number", "constant", "variable") or node == expected.node:
        return False
    if node.kind == "negative" and node.parts[0].kind in ("number", "constant"):
        return False
    if node.kind == "quotient" and all(part.kind == "number" for part in node.parts):
        value = evaluate(node) if node.parts[1].value else None
        if value is None or value.denominator == abs(node.parts[1].value) != 1:
            return False
    return text.replace(" ", "") in normalise(question, MAX_REFERENCE_CHARS).replace(" ", "")


def _candidate(answer: str, limit: int | None = None) -> str:
    """One candidate of several: the last box, or what follows `####`; normalised."""
    if HASHES in answer:
        answer = extract_answer(answer, "hashes") or ""
    inner = unboxed(answer[: 10 * MAX_REFERENCE_CHARS])
    return normalise(inner) if limit is None else normalise(inner, limit)


def _reference_of(text: str, node: Node) -> Reading:
    if node.kind == "relation" and node.name == "=" and node.parts[0].kind == "variable":
        value = node.parts[1]
        if value.scalar and not value.variables() and _finished(value, value.names()):
            return Reading(text, value, variable=node.parts[0].name)
    if not node.scalar or node.variables():
        return Reading(text, canonical(node))
    try:
        evaluate(node)
    except Unreadable:
        return Reading(text)  # without a value, or too large for one: only its own text agrees with it
    return Reading(text, node, "degree" if node.kind == "degrees" else "")


def _mere_letters(text: str) -> bool:
    """Whether it is a word: letters that only multiply are no mathematics; p - q is."""
    if text.lower() in ("pi", "inf", "infinity") or re.fullmatch(r"[a-z](?: ?- ?[a-z])+", text):
        return False
    return bool(re.fullmatch(r"[^\W\d_](?:[^\W\d_]|[ '\-.,])+", text))


def _finished(node: Node, allowed: frozenset[str]) -> bool:
    try:
        return node.scalar and not node.variables() and is_finished(node, allowed)
    except Unreadable:
        return False


def _number_agrees(expected: Reading, text: str) -> bool:
    found = read_number(text)
    if found is None or found.node is None or expected.node is None:
        return False
    if expected.variable and found.variable and expected.variable != found.variable:
        return False
    if quantities.units_differ(expected.unit, found.unit):
        return False
    return scalars_agree(expected.node, found.node)


def read_number(text: str, depth: int = 3) -> Reading | None:
    """Return the one number that a normalised answer states, or None: it states none, several, or doubts it."""
    if _RATIO.fullmatch(text):
        return None
    node = parse(text)
    if node is not None:
        variable, node = _right_side(node)
        if node.scalar and not node.variables():
            return Reading(text, node, "degree" if node.kind == "degrees" else "", variable=variable)
        if not node.variables():
            return None  # several, or a collection
    if (split := quantities.split_unit(text, strict=False)) is not None:
        inner = parse(split[0])
        if inner is not None:
            variable, inner = _right_side(inner)
            if inner.scalar and not inner.variables():
                scaled, unit = _scaled(inner, split[1])
                return Reading(text, scaled, unit, variable=variable)
    if (value := quantities.spelt_number(text)) is not None:
        return Reading(text, number(value))
    if depth == 0:
        return None
    if (remark := _REMARK.fullmatch(text)) is not None and not quantities.doubts(text):
        return read_number(remark[1], depth - 1)
    rest = quantities.after_phrase(text)
    if rest is None and (option := quantities.option_of(text)) is not None:
        rest = option[1]
    if rest is not None and not quantities.doubts(text):
        return read_number(rest, depth - 1)
    alone = quantities.only_number(text)
    return read_number(alone, 0) if alone is not None and alone != text else None


def _right_side(node: Node) -> tuple[str, Node]:
    """x = 5 states 5, and so do 5 = x and 2 + 3 = 5; {5} too."""
    variable = ""
    if node.kind == "relation" and set(node.name.split()) == {"="}:
        first, last = node.parts[0], node.parts[-1]
        if last.variables() and not first.variables():
            first, last = last, first
        variable = first.name if first.kind == "variable" else ""
        node = last
    if len(node.parts) == 1 and (node.kind == "set" or (node.kind == "interval" and node.name == "[]")):
        node = node.parts[0]
    return variable, node


def _scaled(node: Node, unit: str) -> tuple[Node, str]:
    power, rest = quantities.scale_of(unit)
    if _is_percent(rest):
        return Node("percent", (node,)), rest
    return (number(evaluate(node) * 10**power) if power and node.kind == "number" else node), rest


def _is_percent(unit: str) -> bool:
    return unit == "%" or quantities.singular(unit) == "percent"


def _readings(text: str) -> list[Node | None]:
    """The answer as a whole, else what its last phrase leaves."""
    phrases = (text, quantities.first_phrase(text), quantities.after_phrase(text))
    read = (node for phrase in phrases if phrase and (node := parse(phrase)) is not None)
    return list(islice(read, 1))


def _option_agrees(expected: Reading, text: str) -> bool:
    found = quantities.option_of(text)
    if found is None and (rest := quantities.after_phrase(text)):
        found = quantities.option_of(rest)
    if found is not None:
        return found[0] == expected.option and not _contradicts(expected.text, found[1])
    return bool(expected.text) and math_answers_agree(expected.text, text)


def _contradicts(expected: str, found: str) -> bool:
    """Whether both letters come with a number, and these differ."""
    numbers = [node for text in (expected, found) if (node := parse(text)) is not None and node.kind == "number"]
    return len(numbers) == 2 and numbers[0].value != numbers[1].value


def _words_agree(reference: str, text: str) -> bool:
    wanted = words_of(reference)
    if not wanted:
        return False
    rest = quantities.after_phrase(text) or ""
    return wanted in (words_of(text), words_of(rest)) or bare_words(reference) in (bare_words(text), bare_words(rest))


def _ratio_of(text: str) -> tuple[str, ...] | None:
    """The parts of the one ratio in a text, "3:2" or "3 to 2"; None if it has none, several, or doubts it."""
    found = _RATIO.findall(text)
    return tuple(re.split(r" ?: ?| to ", found[0])) if len(found) == 1 and not quantities.doubts(text) else None


def _latex_agrees(reference: str, text: str) -> bool:
    """What only math-verify can read (integrals, sums, logic): both must be LaTeX that it reads as an expression."""
    if "\\" not in reference or "\\" not in text or len(text) > 500 or text.count("^") > 20:
        return False
    import math_verify
    from sympy import Basic

    config = [math_verify.LatexExtractionConfig()]
    gold, found = (math_verify.parse(f"${item}$", config, parsing_timeout=None) for item in (reference, text))
    if not gold or not found or not isinstance(gold[0], Basic) or not isinstance(found[0], Basic):
        return False
    return bool(math_verify.verify(gold[:1], found[:1], timeout_seconds=None))
