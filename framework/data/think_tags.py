"""The think tags of a student that keeps its own tokenizer: found as tokens, added as tokens, or spelled out.

R1's students have both as tokens of their own (Qwen: 151648 and 151649); the names of reserved tokens were given up for
them. Here they are added behind the last token, in rows that the embedding has to spare.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from framework.artifacts import read_json
from framework.data.reasoning import CLOSE, OPEN
from framework.data.tokenizer_files import copy_files, load_tokenizer
from framework.errors import UserError

ThinkTags = Literal["found", "added", "spelled"]
TAGS = (OPEN, CLOSE)


def prepare_think_tags(directory: Path, how: ThinkTags, rows: int | None, where: str) -> None:
    """Make sure that a tokenizer's own files, in `directory`, have the tags; `rows`: of the model's embedding.

    found: both must be single tokens. added: what is none becomes one. spelled: ordinary tokens must spell them.
    Raises UserError, naming `where`, for a tag that is missing, cannot be spelled, or finds no row.
    """
    missing = [tag for tag in TAGS if len(_ids(load_tokenizer(directory), tag)) != 1]
    if how == "found" and missing:
        allowed = "the student's tokenizer has no such token: added makes it one, spelled writes it in ordinary tokens"
        raise UserError(where, f"found, but no {' and no '.join(missing)}", allowed)
    if how == "added" and missing:
        _add(directory, missing, rows, where)
    tokenizer = load_tokenizer(directory)
    for tag in TAGS:
        if (said := tokenizer.decode(_ids(tokenizer, tag))).strip() != tag:
            raise UserError(where, how, f"the student's tokenizer cannot say {tag}: it reads back as {said!r}")


def check_think_tags(student: Path, how: ThinkTags, where: str) -> None:
    """Raise UserError as `prepare_think_tags` will for a student's checkpoint, which stays as it is."""
    rows = read_json(student / "config.json").get("vocab_size")
    with TemporaryDirectory() as place:
        copy_files(student, Path(place))
        prepare_think_tags(Path(place), how, rows, where)


def _add(directory: Path, tags: list[str], rows: int | None, where: str) -> None:
    file = directory / "tokenizer.json"
    data = read_json(file)
    tokenizer = load_tokenizer(directory)
    first = 1 + max(tokenizer.get_vocab().values())
    if rows is not None and first + len(tags) > rows:
        allowed = f"needs {len(tags)} more tokens, and the model's {rows} rows hold {first} already: "
        raise UserError(where, "added", allowed + "give up names of reserved tokens for the tags, or use spelled")
    shape = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    data["added_tokens"] += [{"id": first + place, "content": tag, **shape} for place, tag in enumerate(tags)]
    file.write_text(json.dumps(data, ensure_ascii=False))
    config = directory / "tokenizer_config.json"
    if config.is_file() and "added_tokens_decoder" in (found := read_json(config)):
        found["added_tokens_decoder"] |= {
            str(first + place): {"content": tag, **shape} for place, tag in enumerate(tags)
        }
        config.write_text(json.dumps(found, indent=2, ensure_ascii=False))


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
