"""Multiple choice: which option a response chooses, in whatever layout it says so. Every search here is linear.

A choice is what a mark encloses (`\\boxed{B}`, `<answer>(b)</answer>`, `#### B`), else what the last "the answer is …"
names, else a last or first line that is nothing but an option: "(B)", "B.", "b", "B) Paris", "Paris". A letter inside a
word or before one ("A dog", "B12") is none; nor is a choice between two ("B or C").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from framework.bounds import bounded
from framework.errors import UserError
from framework.rewards.answers import extract_answer
from framework.rewards.base import Reward
from framework.types import Prompt, Response

TASK = "options"  # of prompts whose answer is the letter of one of `Prompt.columns["options"]`
LETTERS = "ABCDE"  # where a prompt does not list its options
_LATEX = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathsf|rm|bf)\s*\{([^{}]*)\}")
_FULL_WIDTH = re.compile("[Ａ-Ｚａ-ｚ０-９]")
_MARKUP = re.compile(
    r"[*`$\"“”「」《》{}\u200b→⇒∴]|[-=]>|(?<![A-Za-z])'|'(?![A-Za-z])|</?(?:b|strong|em|i|u)>|\\[()\[\]]|\\[,;! ]"
)
_CUE = re.compile(
    r"\b(?:answers?|ans\b\.?|correct(?=\s*[:：])|choice|option)"
    r"(?: (?:choice|option|letter|here|to this question|to the question))?"
    r"(?:\s*(?:is|['’]s|would be|must be|should be|will be|remains|[-–—](?=\s)|[:=：])){1,3}\s*"
    r"(?:(?:indeed|therefore|thus|clearly|definitely|probably|most likely|then|simply|just|,)\s*)*"
    r"|(?:\b(?:respuesta|antwort|r[ée]ponse|resposta|risposta|ответ)(?: correct[ae])?|答え|解答|정답)"
    r"\s*(?:(?:es|ist|est|é|è)\b|[-–—:：は은는]){1,2}\s*|[【\[]答案[】\]]\s*[:：]?\s*"
    r"|选项\s*(?=[(（]?[A-Z][)）]?是?[正对])|答案(?:选项)?(?:应该|应当|应)?\s*[是为选:：]{1,3}\s*|(?<![不别非])(?:应|故|因此|所以|我)?选择?\s*[:：]?\s*(?=[(（]?[A-Z])"
    r"|\b(?:I|we)(?:'d| would| will|'ll)? (?:choose|pick|select|go with)\s+",
    re.IGNORECASE,
)
_IS_RIGHT = re.compile(
    r"(?:^|(?<=[\s(（]))(?:option |choice |answer )?[(（\[]?([A-Za-z])[)）\]]? "
    r"is (?:the |clearly |therefore |thus |indeed )*(?:correct|right|best|true|answer)\b(?! (?:that|to))",
    re.MULTILINE,
)
_LETTER = re.compile(
    r"(?:option|choice|letter|answer)?\s*([(（\[【]?)\s*([A-Za-z])(?:\s*([)）\]】]))?([.。:：,，;；、!]?)", re.I
)
_GOES_ON = re.compile(r"(?:because|since|as|which|and|so|for|due|given|[-–—(（])", re.IGNORECASE)
_ANOTHER = re.compile(
    r"\s*(?:[,，、/&]|\bor\b|\band\b|或|和)\s*(?:also )?(?:option |choice )?[(（]?([A-Za-z])[)）]?(?![\w'’+-])", re.I
)
_REFUSES = re.compile(r"(?:not|neither|none|either|both|unclear|unknown)\b", re.IGNORECASE)
MAX_CHARS = 4000  # of a fragment: no option is longer
MAX_CUES = 20  # the last of a response that says it over and over
_SO = re.compile(
    r"(?:(?:so|thus|hence|therefore|it(?:['’]s)?|that['’]s|is|must|be|select|choose|pick|that|leaves)[,:]?\s+){1,5}",
    re.IGNORECASE,
)
_DENIED = re.compile(r"是?(?:错|不|非)")
CJK = "\u2e80"  # from here on no letter of a Latin word
_END = ".。!！;；,， \t"


@dataclass(frozen=True, kw_only=True)
@bounded
class Options(Reward):
    """1 if the response chooses the right option, else 0."""

    fails_as_wrong: ClassVar[bool] = True

    def __call__(self, prompt: Prompt, response: Response) -> float:
        """Return 1.0 or 0.0. Raises UserError for a reference that is none of the options."""
        return float(self.extracted(prompt, response) == reference_letter(prompt))

    def extracted(self, prompt: Prompt, response: Response) -> str | None:
        """Return the letter of the option that the response chooses."""
        return chosen_option(prompt.opened + response.text, options_of(prompt))

    def check(self, prompt: Prompt) -> None:
        """Raise UserError if the prompt's reference is none of its options."""
        reference_letter(prompt)


def options_of(prompt: Prompt) -> dict[str, str]:
    """Letter -> text of a prompt's options; A to E without texts where it lists none."""
    found = prompt.columns.get("options")
    if isinstance(found, Mapping) and found:
        return {str(letter).upper(): str(text) for letter, text in found.items()}
    return dict.fromkeys(LETTERS, "")


def reference_letter(prompt: Prompt) -> str:
    """Return the letter of the right option; raises UserError if the reference names none."""
    options = options_of(prompt)
    letter = _read(_plain(prompt.answer), _normalised(options))
    if letter is None:
        allowed = f"must be one of the options {', '.join(options)}, as its letter or its text"
        raise UserError(f"prompt {prompt.id}: answer", prompt.answer, allowed)
    return letter


def chosen_option(response: str, options: Mapping[str, str]) -> str | None:
    """Return the letter that a response chooses, or None; what stands before the last `</think>` does not count."""
    text = response.rpartition("</think>")[2]
    known = _normalised(options)
    marked = extract_answer(text)
    if marked is not None:
        plain = _plain(marked)
        return _read(plain, known, cued=True) or _cued(plain, known) or None
    plain = _plain(text)
    if (found := _cued(plain, known)) is not None:
        return found or None
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    for line, neighbour in ((lines[-1:], lines[-2:-1]), (lines[:1], lines[1:2])):
        found = _read("".join(line), known) or _concluded("".join(line), known)
        if found and _read("".join(neighbour), known) in (None, found):  # else it is a list of the options
            return found
    return None


def _cued(text: str, options: Mapping[str, str]) -> str | None:
    """The option that the last statement of an answer names; "" if that leaves it open; None without a statement."""
    cues = [(match.end(), match) for match in _CUE.finditer(text)]
    cues += [(match.start(1), match) for match in _IS_RIGHT.finditer(text) if match[1].upper() in options]
    for place, cue in sorted(cues, key=lambda item: item[0], reverse=True)[:MAX_CUES]:
        if cue.re is _IS_RIGHT and (cue[1].isupper() or cue[0] != cue[1]):
            return cue[1].upper()
        rest = text[place : place + 2000].split("\n", 1)[0].strip()
        if not rest:  # "Answer:" and the letter on the next line
            rest = text[place : place + 2000].strip().split("\n", 1)[0].strip()
        if found := _read(rest, options, cued=True) or _read(rest.split(". ")[0], options, cued=True):
            return found
        if _REFUSES.match(rest) or _between_two(rest, options):
            return ""
    return None


def _read(text: str, options: Mapping[str, str], cued: bool = False) -> str | None:
    """The option that a fragment begins with, or whose text it is; nothing else may stand there but a reason.

    Where it was announced (`cued`), anything may follow a letter that is set off: "(B) as shown".
    """
    text = text[:MAX_CHARS].strip(" \t\"'“”\n")
    by_text = [letter for letter, known in options.items() if known and known == _folded(text)]
    if len(by_text) == 1 and len(text.strip(_END)) > 1:
        return by_text[0]
    match = _LETTER.match(text)
    if match and match[2].upper() in options and not _between_two(text, options):
        letter, rest = match[2].upper(), text[match.end() :]
        enclosed, stopped = bool(match[1] and match[3]) or bool(match[3]), bool(match[4])
        said = _folded(rest)
        if _DENIED.match(rest) or (not cued and _lists(said, letter, options)):
            return None
        own = bool(said) and bool(options[letter]) and options[letter].startswith(said[:80])
        own = own or (bool(options[letter]) and said.startswith(options[letter]))
        if not rest.strip(_END):
            return letter
        if (rest[0].isspace() and (own or _GOES_ON.match(rest.strip()))) or rest[0] >= CJK:
            return letter
        if (enclosed or stopped) and (cued or own or not options[letter] or (stopped and match[4] in ",，;；")):
            return letter
    return by_text[0] if len(by_text) == 1 else None


def _lists(said: str, letter: str, options: Mapping[str, str]) -> bool:
    """Whether what follows a letter names other options too: it repeats the question."""
    return sum(bool(text) and text in said for other, text in options.items() if other != letter) > 1


def _concluded(line: str, options: Mapping[str, str]) -> str | None:
    """The option of a line such as "So it must be B."."""
    match = _SO.match(line)
    rest = line[match.end() :] if match else ""
    return _read(rest, options) if rest[:1].isupper() or rest[:1] in "(（[" else None


def _between_two(text: str, options: Mapping[str, str]) -> bool:
    """Whether a fragment begins with a choice between options: "B or C", "A, B"."""
    first = _LETTER.match(text.strip())
    if first is None or first[2].upper() not in options:
        return False
    end = first.end() - len(first[4]) if first[4] in ",，、" else first.end()
    another = _ANOTHER.match(text.strip(), end)
    if another is None or another[1].upper() not in options or another[1].isupper() != first[2].isupper():
        return False
    return another[1].upper() != first[2].upper()


def _plain(text: str) -> str:
    """Without the marks of LaTeX and Markdown."""
    return _MARKUP.sub("", _LATEX.sub(r"\1", _FULL_WIDTH.sub(lambda m: chr(ord(m[0]) - 0xFEE0), text))).strip()


def _folded(text: str) -> str:
    return " ".join(_plain(text).casefold().split()).strip(_END)


def _normalised(options: Mapping[str, str]) -> dict[str, str]:
    return dict(_folded_options(tuple(options.items())))


@lru_cache(maxsize=256)
def _folded_options(options: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return tuple((letter, _folded(text)) for letter, text in options)
