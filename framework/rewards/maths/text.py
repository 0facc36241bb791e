"""First step: one spelling for what may be written in many ways. Nothing is read here, only respelt."""

from __future__ import annotations

import re
import unicodedata

MAX_CHARS = 2000  # no answer is longer; a million characters must not reach a parser

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-", strict=True))
_SUBSCRIPT = re.compile("(?<=[A-Za-z])[₀-₉]")
_SUPERSCRIPT = re.compile("[" + "".join(_SUPERSCRIPTS) + "]+")
_VULGAR = re.compile("[¼½¾⅐-⅞]")
_UNSEEN = re.compile("[\u00ad\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # hyphens and marks of direction
_SYMBOLS = str.maketrans(
    {
        "−": "-", "–": "-", "‐": "-", "‑": "-", "﹣": "-", "×": r"\times ", "✕": r"\times ", "⋅": r"\cdot ",
        "·": r"\cdot ", "∙": r"\cdot ", "÷": "/", "∕": "/", "⁄": "/", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ",
        "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∪": r"\cup ", "∈": r"\in ",
        "°": r"^\circ ", "±": r"\pm ", "√": r"\sqrt ", "∛": r"\sqrt[3]", "∅": r"\emptyset ", "“": '"', "”": '"',
        "’": "'", "‘": "'", "\u200b": "", "\u2060": "", "\ufeff": "", "。": ".", "、": ",", "…": r"\ldots ",
        "⋯": r"\ldots ", "θ": r"\theta ", "ℝ": r"\mathbb{R}", "¢": " cents ", "∶": ":", "º": r"^\circ ",
    }
)  # fmt: skip
_DROPPED = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|bigl|bigr|Bigl|Bigr|big|Big|limits|nolimits)(?![A-Za-z])\s*\.?(?=[^\d]|$)"
    r"|\\(?:bf|it|rm|sf|tt|em)(?![A-Za-z])|\\[!]|(?<![\dA-Za-z)}])\*\*|\*\*(?![\dA-Za-z({\\-])|`"
    r"|</?(?:b|i|u|em|strong|code|p|span)>"
    r"|[\u2713\u2714\u2705\ufe0f]"  # ticks
)
_THOUSANDS = re.compile(r"(?<=\d),\s*\\!\s*(?=\d{3}(?!\d))")  # 11,\! 111, as MATH writes it
_SPACES = re.compile(r"\\[,;: ]|\\(?:quad|qquad|space|hspace\{[^{}]*\})(?![A-Za-z])|~|\s+")
_DELIMITERS = re.compile(r"\\[()\[\]](?!\d*(?:pt|em|ex)\])|\\?\$")
_RENAMED = {
    r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\leq": r"\le", r"\geq": r"\ge", r"\neq": r"\ne",
    r"\leqslant": r"\le", r"\geqslant": r"\ge", r"\lt": "<", r"\gt": ">", r"\lbrace": r"\{", r"\rbrace": r"\}",
    r"\lbrack": "[", r"\rbrack": "]", r"\lvert": "|", r"\rvert": "|", r"\vert": "|", r"\dots": r"\ldots",
    r"\cdots": r"\ldots", r"\degree": r"^\circ", r"\div": "/", r"\varnothing": r"\emptyset", r"\ast": r"\cdot",
    r"\colon": ":", r"\langle": "(", r"\rangle": ")", r"\land": "and", r"\lor": "or",
}  # fmt: skip
_COMMAND = re.compile(r"\\[A-Za-z]+")
_COLOUR = re.compile(r"\\(?:text)?color\s*\{[^{}]*\}")
_EMPHASIS = re.compile(r"(?<![\dA-Za-z)}])\*\*([^*]+)\*\*")
_MONEY = re.compile(r"\b(?:US|HK|NZ|[ACRS]) ?\\?\$")
_LEADS = re.compile(r"^(?:(?:\\(?:therefore|(?:Long)?[Rr]ightarrow|implies|to)(?![A-Za-z])|[∴⇒→⟹]|[-=]>) *)+")
_ROW_GAP = re.compile(r"(\\\\)\s*\[\d*\.?\d*\s*(?:pt|em|ex|mm|cm)\]")
_NEXT_EQUATION = re.compile(r"(?<=[\w)}])[ \t]*\n\s*(?=[A-Za-z](?:_?\w)? *=)")
_TIMES_TEN = re.compile(r"(?<=\d) ?[xX] ?(?=10 ?(?:\^|\*\*|\{\}\^))")
_WRAPPER = re.compile(
    r"\\(?:text|mbox|mathrm|textbf|textit|textrm|mathbf|mathit|mathsf|texttt|bold|operatorname|rm|bf|underline)"
    r"\s*\{([^{}]*)\}"
)
_GROUPED = (
    re.compile(r"(?<![\d.,])\d{1,3}(?:[ _'\u00a0\u2009\u202f]\d{3})+(?!\d)"),  # 10 000, 10_000, 10'000
    re.compile(r"(?<![\d.,(\[{])\d{1,3}(?:,\d{3})+(?![\d,])"),  # 1,234,567
    re.compile(r"(?<![\d.,(\[{])\d{1,2}(?:,\d{2})+,\d{3}(?![\d,])"),  # 12,34,567 (India)
    re.compile(r"(?<=[(\[{])\d{1,3}(?:,\d{3})+\.\d+(?![\d,])"),
)
_EUROPEAN = re.compile(r"(?<![\d.,])(\d{1,3}(?:\.\d{3})+),(\d+)(?![\d,])|(?<![\d.,])(\d{1,3}(?:\.\d{3}){2,})(?![\d.,])")


def normalise(text: str, limit: int = MAX_CHARS) -> str:
    """Return `text` in one spelling: ASCII digits and signs, no thousands marks, no LaTeX that is mere layout.

    Text longer than `limit` is no answer: it comes back empty. Currency signs go, for `$` also delimits LaTeX.
    """
    text = text.strip()
    if len(text) > limit:
        return ""
    text = _ROW_GAP.sub(r"\1", _UNSEEN.sub("", text))
    text = text.replace(
        "\\\\", r" \cr " if r"\begin" in text else "\\"
    )  # rows of a matrix; else escaped once too often
    text = _NEXT_EQUATION.sub(", ", _MONEY.sub(" $", _EMPHASIS.sub(r" \1 ", text)))
    text = _SUPERSCRIPT.sub(lambda m: "^{" + "".join(_SUPERSCRIPTS[c] for c in m[0]) + "}", text)
    text = _SUBSCRIPT.sub(lambda m: "_" + unicodedata.normalize("NFKC", m[0]), text)
    text = _VULGAR.sub(lambda m: f" {unicodedata.normalize('NFKC', m[0])} ", text)
    text = unicodedata.normalize("NFKC", text.translate(_SYMBOLS)).translate(_SYMBOLS)
    text = _THOUSANDS.sub(",", text)
    text = _COMMAND.sub(lambda m: _RENAMED.get(m[0], m[0]), text)
    text = _DROPPED.sub("", text.replace(r"{,}", ",").replace(r"\%", "%").replace(r"\-", ""))
    text = _DELIMITERS.sub(" ", _COLOUR.sub(" ", text))
    for _ in range(4):  # wrappers within wrappers
        text = _WRAPPER.sub(lambda m: f" {m[1].strip()} " if m[1].strip() else " ", text)
    text = _SPACES.sub(" ", text)
    text = re.sub(r"[€£¥₹₽₩฿]|\b(?:US|HK|A|C)(?=\d)", " ", text)
    text = _TIMES_TEN.sub(r"\\times ", _LEADS.sub("", _plain_numbers(text).strip()))
    text = re.sub(r"\.(?:\s*\.)+", r"\\ldots ", text).strip().rstrip(".,;:?\\ ").strip()
    for quote in "'\"*__":  # quotation marks, or Markdown's emphasis
        if len(text) > 1 and text[0] == text[-1] == quote:
            text = text[1:-1].strip()
    text = re.sub(r"^(?:minus|negative) (?=[\d.\\])", "-", text, flags=re.IGNORECASE)
    return re.sub(r"(?<=[^\W\d_]{2})[.!?]+$", "", text)


def _plain_numbers(text: str) -> str:
    def joined(match: re.Match[str]) -> str:
        return re.sub(r"[^\d.]", "", match[0])

    text = _EUROPEAN.sub(lambda m: f"{m[1].replace('.', '')}.{m[2]}" if m[1] else m[3].replace(".", ""), text)
    for pattern in _GROUPED:
        text = pattern.sub(joined, text)
    return text


def compact(text: str) -> str:
    """Return normalised text without blanks, except between digits: "1 8" is not 18."""
    return re.sub(r"(?<!\d) +| +(?!\d)", "", text)


def words_of(text: str) -> str:
    """Return normalised text as words alone: case, articles, punctuation and LaTeX's signs dropped."""
    words = re.findall(r"[^\W_]+|[-+*/^=<>|%]", text.replace("\\", " ").casefold())
    return " ".join(word for word in words if word not in ("the", "a", "an")) or " ".join(words)
