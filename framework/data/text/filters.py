"""Quality rules as they were published, a function each: why a document goes, or None. For text in words with blanks.

C4: Raffel et al. 2020 (1910.10683), section 2.2; as FineWeb took it over (Penedo et al. 2024, 2406.17557, section 3.5):
without its list of bad words, and without the rule that a line must end in punctuation, which drops a third of the web.
Gopher: Rae et al. 2021 (2112.11446), Table A1 and section A.1.1. FineWeb: 2406.17557, section 3.6.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_CITATION = re.compile(r"\[\d+\]|\[edit\]|\[citation needed\]")
_SENTENCE = re.compile(r"[.!?。！？](?=\s|$|[\"'”’])")
_ENDS = (".", "!", "?", '"', "'", "”", "。", "！", "？")
_BULLETS = ("•", "-", "*", "‣", "◦", "●")
# most of a document's characters in its most frequent n-gram, and in all n-grams that stand in it twice
_TOP_GRAMS = {2: 0.20, 3: 0.18, 4: 0.16}
_REPEATED_GRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


def c4_lines(text: str) -> str:
    """Return a text without lines of fewer than three words, on JavaScript or policies, and without citation marks."""
    kept = []
    for line in text.split("\n"):
        line = _CITATION.sub("", line)
        lower = line.lower()
        if len(line.split()) >= 3 and "javascript" not in lower and not any(policy in lower for policy in _POLICIES):
            kept.append(line)
    return "\n".join(kept)


def c4(text: str) -> str | None:
    """C4's rules for a whole page, after `c4_lines`: placeholder text, code, fewer than three sentences."""
    if "lorem ipsum" in text.lower():
        return "c4_lorem_ipsum"
    if "{" in text:
        return "c4_curly_bracket"
    return "c4_few_sentences" if len(_SENTENCE.findall(text)) < 3 else None


def gopher_quality(text: str) -> str | None:
    """Gopher's quality rules: number and length of words, symbols, bullets, ellipses, letters, stop words."""
    words = text.split()
    size = len(words)
    if not 50 <= size <= 100_000:
        return "gopher_word_count"
    if not 3 <= sum(map(len, words)) / size <= 10:
        return "gopher_word_length"
    if max(text.count("#"), text.count("...") + text.count("…")) / size > 0.1:
        return "gopher_symbols"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if sum(line.startswith(_BULLETS) for line in lines) > 0.9 * len(lines):
        return "gopher_bullets"
    if sum(line.endswith(("...", "…")) for line in lines) > 0.3 * len(lines):
        return "gopher_ellipses"
    if sum(any(map(str.isalpha, word)) for word in words) < 0.8 * size:
        return "gopher_letters"
    return "gopher_stop_words" if len(_STOP_WORDS.intersection(map(str.lower, words))) < 2 else None


def gopher_repetition(text: str) -> str | None:
    """Gopher's repetition rules: lines, paragraphs and n-grams of words that a document says again."""
    for kind, parts, most in (("paragraphs", text.split("\n\n"), 0.3), ("lines", text.splitlines(), 0.3)):
        parts = [part.strip() for part in parts if part.strip()]
        copies, characters = _copies(parts)
        if parts and (copies / len(parts) > most or characters / len(text) > 0.2):
            return f"gopher_repeated_{kind}"
    words = text.split()
    for n, most in _TOP_GRAMS.items():
        if _top_gram(words, n) > most * len(text):
            return f"gopher_top_{n}_gram"
    for n, most in _REPEATED_GRAMS.items():
        if _in_repeated_grams(words, n) > most * len(text):
            return f"gopher_repeated_{n}_grams"
    return None


def fineweb(text: str) -> str | None:
    """FineWeb's own rules: lines that end in no punctuation, that are said again, that are short."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return "fineweb_empty"
    if sum(line.endswith(_ENDS) for line in lines) <= 0.12 * len(lines):
        return "fineweb_no_punctuation"
    if _copies(lines)[1] >= 0.1 * len(text):
        return "fineweb_repeated_lines"
    return "fineweb_short_lines" if sum(len(line) < 30 for line in lines) >= 0.67 * len(lines) else None


def _copies(parts: Sequence[str]) -> tuple[int, int]:
    """How many parts were there before, and how many characters they have."""
    seen: set[str] = set()
    copies = characters = 0
    for part in parts:
        if part in seen:
            copies, characters = copies + 1, characters + len(part)
        seen.add(part)
    return copies, characters


def _top_gram(words: Sequence[str], n: int) -> int:
    """Characters of all occurrences of the most frequent n-gram that stands there twice."""
    counts = Counter(zip(*(words[start:] for start in range(n)), strict=False))
    if not counts:
        return 0
    most = max(counts.values())
    if most < 2:
        return 0
    return most * max(sum(map(len, gram)) + n - 1 for gram, count in counts.items() if count == most)


def _in_repeated_grams(words: Sequence[str], n: int) -> int:
    """Characters of the words in n-grams that stood there before, each counted once."""
    seen: set[tuple[str, ...]] = set()
    characters, place = 0, 0
    while place + n <= len(words):
        gram = tuple(words[place : place + n])
        if gram in seen:
            characters += sum(map(len, gram)) + n - 1
            place += n
        else:
            seen.add(gram)
            place += 1
    return characters
