"""Which language a text is in: py3langid (Lui and Baldwin 2012, 97 languages), whose model comes with it."""

from __future__ import annotations

from functools import cache
from typing import Any

_READ = 4000  # characters from the beginning: more of a text hardly changes the answer


def language_of(text: str) -> tuple[str, float]:
    """Return the ISO 639-1 code of a text's language, and how probable it is, 0 to 1."""
    language, probability = _identifier().classify(text[:_READ])
    return str(language), float(probability)


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
