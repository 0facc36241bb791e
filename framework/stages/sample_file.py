"""Scored groups on disk, a JSON line a prompt, written as they finish: a kill loses none but those under way."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from framework.data.readers import parse_json
from framework.errors import UserError
from framework.files import text_digest
from framework.graph.settings import differences
from framework.stages.eval_numbers import JudgedGroup
from framework.types import Prompt, Response, ResponseGroup, RewardScore, ScoredGroup

SETTINGS = "settings"  # what the first line tells


class SampleFile:
    """The groups of one sampling, to be added to by one process at a time.

    `settings` is all that the responses depend on besides their prompts. Raises UserError for a file that was begun
    with other settings, that another process writes, or whose lines are damaged; the half line of a killed process
    is cut off. Logprobs are not kept: they read as not a number.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any] | None = None) -> None:
        self.path, self._settings = path, json.loads(json.dumps(dict(settings or {})))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab+")
        except OSError as error:
            raise UserError(str(path), error.strerror or str(error), "must be a file that can be written") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UserError(str(path), "in use", "another process samples into it") from None
        except OSError:  # a file system without locks
            pass
        self._cut_torn_end()
        if os.fstat(self._file.fileno()).st_size == 0:
            self._write({SETTINGS: self._settings})
        else:
            self._check_settings()

    def groups(self, prompts: Sequence[Prompt]) -> Iterator[JudgedGroup]:
        """Yield the groups of these prompts that are there; a prompt whose tokens have changed since has none."""
        wanted = {prompt.id: prompt for prompt in prompts}
        for where, line in self._lines():
            if SETTINGS in line:
                continue
            try:
                if line.pop("digest", None) not in (None, text_digest(json.dumps(line))):  # early lines had none
                    raise ValueError("its digest is another one")
                prompt = wanted.get(line["id"])
                if prompt is not None and line["prompt"] == _digest(prompt):
                    del wanted[prompt.id]
                    yield _group(prompt, line)
            except (KeyError, TypeError, ValueError) as error:
                found = f"{type(error).__name__}: {error}"
                raise UserError(where, found, "is damaged: remove the line, and its prompt is sampled again") from None

    def append(self, group: JudgedGroup) -> None:
        """Add a group; it is there once this returns."""
        scored = group.scored
        responses = [
            {"text": r.text, "token_ids": r.token_ids.tolist(), "finish_reason": r.finish_reason}
            for r in scored.group.responses
        ]
        scores = [
            {"total": s.total, "components": dict(s.components), "error": s.error, "extracted": s.extracted}
            for s in scored.scores
        ]
        prompt = scored.group.prompt
        line: dict[str, Any] = {"id": prompt.id, "prompt": _digest(prompt), "responses": responses, "scores": scores}
        line["votes"] = list(group.votes)
        self._write({**line, "digest": text_digest(json.dumps(line))})

    def close(self) -> None:
        """Let another process have it."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise UserError(str(self.path), error.strerror or str(error), "must have room; nothing is lost") from None

    def _lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{self.path}:{number}"
                found = parse_json(line, where, first=False)
                if not isinstance(found, dict):
                    raise UserError(where, type(found).__name__, "is damaged: remove the line")
                yield where, found

    def _cut_torn_end(self) -> None:
        self._file.seek(0)
        whole = 0
        for line in self._file:
            whole += len(line) if line.endswith(b"\n") else 0
        self._file.truncate(whole)

    def _check_settings(self) -> None:
        where, first = next(self._lines())
        before = first.get(SETTINGS)
        if not isinstance(before, dict):
            raise UserError(where, "no settings", "must be a file that sampling has begun")
        for key, theirs, ours in differences(before, self._settings):
            allowed = f"{self.path} was begun with {str(theirs)[:100]}: give that, or delete it to begin anew"
            raise UserError(key, ours if len(str(ours)) < 100 else f"{str(ours)[:100]}…", allowed)


def _digest(prompt: Prompt) -> str:
    return text_digest(" ".join(map(str, prompt.token_ids)))[:16]


def _group(prompt: Prompt, line: Mapping[str, Any]) -> JudgedGroup:
    responses = []
    for found in line["responses"]:
        ids = np.asarray(found["token_ids"], np.int32)
        nothing, versions = np.full(len(ids), np.nan, np.float32), np.zeros(len(ids), np.int32)
        responses.append(Response(ids, nothing, versions, found["finish_reason"], found["text"]))
    scores = tuple(RewardScore(**score) for score in line["scores"])
    scored = ScoredGroup(ResponseGroup(prompt, tuple(responses)), scores)
    return JudgedGroup(scored, tuple(map(int, line["votes"])))
