"""Where in a response the answer stands. Every search here takes time linear in the response."""

from __future__ import annotations

import re
from collections import deque

from framework.errors import UserError

OPEN, CLOSE, HASHES = "<answer>", "</answer>", "####"
PLACES = ("last", "tag", "boxed", "hashes", "number")
REGEX = "regex:"
_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\[\\{}]|[{}]")
_NUMBER = re.compile(r"(?<![\w.])[-−]?[$€£¥]?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?")


def check_place(where: str) -> None:
    """Raise UserError unless `where` is one of PLACES, or `regex:` and a pattern that compiles."""
    if where in PLACES:
        return
    allowed = f"must be one of {', '.join(PLACES)}, or {REGEX} and a regular expression"
    if not where.startswith(REGEX):
        raise UserError("answer_in", where, allowed)
    try:
        re.compile(where.removeprefix(REGEX))
    except re.error as error:
        raise UserError("answer_in", where, f"{allowed}; this one does not compile: {error}") from None


def extract_answer(text: str, where: str = "last") -> str | None:
    r"""Return the answer of a response, stripped; None if nothing stands at `where`.

    `tag`: what the last closed `<answer>…</answer>` encloses (R1-Zero). `boxed`: the last `\boxed{…}`. `hashes`: the
    rest of the line after the last `####` (GSM8K). `last`: whichever of these three ends last. `number`: the last
    number. `regex:P`: the last match of P, of its first group if it has one.
    """
    if where == "last":
        found = [place(text) for place in (_tag, _boxed, _hashes)]
        return max((item for item in found if item), default=(0, None), key=lambda item: item[0])[1]
    if where.startswith(REGEX):
        matches = list(re.finditer(where.removeprefix(REGEX), text, re.DOTALL))
        return str(matches[-1][1 if matches[-1].re.groups else 0] or "").strip() if matches else None
    item = {"tag": _tag, "boxed": _boxed, "hashes": _hashes, "number": _number}[where](text)
    return item[1] if item else None


def unboxed(text: str) -> str:
    r"""Return what the last `\boxed{…}` of an answer encloses, boxes within boxes opened too; else the text."""
    while (item := _boxed(text)) is not None:
        text = item[1]
    return text


def _tag(text: str) -> tuple[int, str] | None:
    start = text.rfind(OPEN, 0, max(text.rfind(CLOSE), 0))
    if start < 0:
        return None
    end = text.find(CLOSE, start)
    return end, text[start + len(OPEN) : end].strip()


def _boxed(text: str) -> tuple[int, str] | None:
    """One pass over the braces with a stack: an open box costs no second look."""
    opened: list[re.Match[str]] = []
    last: tuple[int, int] | None = None
    for brace in _BRACES.finditer(text):
        if brace[0].endswith("{") and brace[0] != r"\{":
            opened.append(brace)
        elif brace[0] == "}" and opened:
            start = opened.pop()
            if len(start[0]) > 1:
                last = start.end(), brace.start()
    return None if last is None else (last[1], text[slice(*last)].strip())


def _hashes(text: str) -> tuple[int, str] | None:
    start = text.rfind(HASHES)
    if start < 0:
        return None
    end = text.find("\n", start)
    end = len(text) if end < 0 else end
    return end, text[start + len(HASHES) : end].strip()


def _number(text: str) -> tuple[int, str] | None:
    last = next(iter(deque(_NUMBER.finditer(text), maxlen=1)), None)
    return (last.end(), last[0].rstrip(",")) if last else None
