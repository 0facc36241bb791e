"""`framework score`: what the configured rewards give to responses in a file, in the process that training uses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from framework.data.layouts.prompts import MATH
from framework.data.readers import Row, read_rows
from framework.errors import UserError, did_you_mean
from framework.rewards.base import RewardConfig
from framework.rewards.isolation import IsolatedScorer
from framework.types import Prompt, Response, ResponseGroup, RewardScore

REQUIRED = ("prompt", "answer", "response")
OPTIONAL = ("id", "task", "entry", "rewards", "finish_reason", "token_ids", "opened")
REASONS = ("stop", "length", "abort")


def score_file(path: Path, rewards: RewardConfig, out: TextIO) -> int:
    """Write one JSON line for each row of `path` to `out`; return how many rows a reward failed on.

    A row is a JSON object: `prompt` (the question), `answer` (the reference) and `response`; optional are `id` (else
    file and line), `task` ("math"), `entry` (a verifier's record), `rewards` (names), `finish_reason` ("stop"),
    `token_ids` (of the response, which rewards of length read), `opened` (what the template says on the model's
    behalf). Further columns are the prompt's `columns`.
    Raises UserError that names file and line for a bad row, before anything is scored.
    """
    rows = [(*_read(row, rewards), row.fields.get("id", row.where)) for row in read_rows(path)]
    failed = 0
    with IsolatedScorer(rewards) as scorer:
        for prompt, response, key in rows:
            (score,) = scorer.score(ResponseGroup(prompt, (response,)))
            failed += bool(score.error)
            print(json.dumps({"id": key, **describe(score)}), file=out, flush=True)
    return failed


def describe(score: RewardScore) -> dict[str, Any]:
    """Return a score as its JSON line has it."""
    return {
        "score": score.total,
        "components": dict(score.components),
        "extracted": score.extracted,
        "error": score.error or None,
        **({"tokens": score.tokens} if score.tokens else {}),
    }


def _read(row: Row, rewards: RewardConfig) -> tuple[Prompt, Response]:
    fields = {"id": row.where, "task": MATH, **row.fields}
    for name in REQUIRED:
        if name not in fields:
            close = [key for key in fields if key not in (*REQUIRED, *OPTIONAL)]
            hint = did_you_mean(name, close)
            raise UserError(row.where, f"no field '{name}'", f"{hint}fields {', '.join(REQUIRED)} must be there")
    texts = {name: _text(row.where, name, fields.pop(name)) for name in ("id", "task", *REQUIRED)}
    entry = fields.pop("entry", "")
    reason, opened = fields.pop("finish_reason", "stop"), fields.pop("opened", "")
    if reason not in REASONS:
        raise UserError(f"{row.where}: finish_reason", reason, f"must be one of {', '.join(REASONS)}")
    chosen = _list(row.where, "rewards", fields.pop("rewards", []), str)
    for name in chosen:
        if name not in rewards.components:
            allowed = f"{did_you_mean(name, rewards.components)}the rewards are {', '.join(rewards.components)}"
            raise UserError(f"{row.where}: rewards", name, allowed)
    ids = _list(row.where, "token_ids", fields.pop("token_ids", []), int)
    if wrong := [id for id in ids if not 0 <= id < 2**31]:
        raise UserError(f"{row.where}: token_ids", wrong[0], "must be ids of tokens, 0 to 2147483647")
    token_ids = np.array(ids, np.int32)
    prompt = Prompt(
        id=texts["id"],
        text=texts["prompt"],
        task=texts["task"],
        answer=texts["answer"],
        rewards=tuple(chosen),
        entry=json.dumps(entry) if isinstance(entry, Mapping) else _text(row.where, "entry", entry),
        columns=fields,
        opened=_text(row.where, "opened", opened),
    )
    zeros = np.zeros(len(token_ids))
    versions = np.zeros(len(token_ids), np.int32)
    return prompt, Response(token_ids, zeros.astype(np.float32), versions, reason, texts["response"])


def _text(where: str, name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if name in ("id", "answer") and isinstance(value, int | float) and type(value) is not bool and isfinite(value):
        return str(value)  # 18 as JSON's number
    raise UserError(f"{where}: {name}", value, "must be a string")


def _list(where: str, name: str, value: object, kind: type) -> list[Any]:
    if not isinstance(value, list) or not all(type(item) is kind for item in value):
        raise UserError(f"{where}: {name}", value, f"must be a list of {'strings' if kind is str else 'integers'}")
    return value
