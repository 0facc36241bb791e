"""Judges one document by what is in it: language, quality, passages of benchmarks; and takes personal data out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from framework.data.cleaning import CleanConfig, Contamination, words
from framework.data.layouts.prompts import load_prompts
from framework.data.readers import read_prompts
from framework.data.text.beside import Died, OneByOne
from framework.data.text.filters import c4, c4_lines, fineweb, gopher_quality, gopher_repetition
from framework.data.text.language import language_of
from framework.data.text.personal import scrub
from framework.data.text.shard_files import Document
from framework.types import Prompt

Rule = Callable[[str], str | None]


@dataclass(frozen=True)
class Verdict:
    """What becomes of a document: it goes for a reason, or stays as `document`."""

    document: Document
    reason: str = ""
    of: str = ""  # of which prompt it has a passage; what a rule failed with
    words: Sequence[str] = ()  # of a document that stays, where duplicates are looked for
    language: str = ""  # empty: not looked for


@lru_cache(maxsize=1)
def judge_of(config: CleanConfig, heldout: Path | None) -> Judge:
    """Return the judge of a process, which has read every benchmark."""
    return Judge(config, heldout)


def judged(config: CleanConfig, heldout: Path | None, document: Document) -> Verdict:
    """Judge a document."""
    return judge_of(config, heldout).verdict(document)


def judged_beside(beside: OneByOne, where: str, config: CleanConfig, heldout: Path | None, found: Document) -> Verdict:
    """Judge a document, at `where`, in a process beside this one; it goes if that does not survive it."""
    try:
        return beside.of(where, judged, config, heldout, found)
    except Died as died:
        return Verdict(found, "failed", str(died))


class Judge:
    """The rules of a configuration."""

    def __init__(self, config: CleanConfig, heldout: Path | None) -> None:
        self._config = config
        rules: list[tuple[bool, tuple[Rule, ...]]] = [
            (config.c4, (c4,)),
            (config.gopher, (gopher_quality, gopher_repetition)),
            (config.fineweb, (fineweb,)),
        ]
        self._rules = [rule for wanted, found in rules if wanted for rule in found]
        prompts = list(_benchmarks(config, heldout)) if config.decontamination_words else []
        self._contamination = Contamination(prompts, config.decontamination_words) if prompts else None

    def verdict(self, document: Document) -> Verdict:
        """Judge a document. One that a rule fails on goes, and is counted: it must not end the run of all others."""
        try:
            return self._verdict(document)
        except Exception as error:
            return Verdict(document, "failed", f"{type(error).__name__}: {error}")

    def _verdict(self, document: Document) -> Verdict:
        config, text, language = self._config, document.text, ""
        if config.languages:
            language, probability = language_of(text)
            if language not in config.languages:
                return Verdict(document, "language", language=language)
            if probability < config.language_score:
                return Verdict(document, "language_unsure", language=language)
        if config.c4:
            text = c4_lines(text)
        for rule in self._rules:
            if reason := rule(text):
                return Verdict(document, reason, language=language)
        found = words(text) if self._contamination or config.near_threshold is not None else ()
        if self._contamination and (prompt := self._contamination.prompt_in(found)) is not None:
            return Verdict(document, "contaminated", prompt, language=language)
        if config.scrub:
            text = scrub(text)
        return Verdict(replace(document, text=text), words=found, language=language)


def _benchmarks(config: CleanConfig, heldout: Path | None) -> Iterator[Prompt]:
    if heldout is not None:
        yield from read_prompts(heldout)
    for name in config.benchmarks:
        yield from load_prompts(name, None, "stage.clean.benchmarks", "test")
