"""Where rows come from: files of any common kind, globs, folders, saved `datasets`, data sets of the Hugging Face hub.

    DIR/gsm8k.jsonl   "data/*.parquet"   saved_dataset/train   openai/gsm8k   openai/gsm8k/main/train*.parquet
    "s3://bucket/crawl/*.warc.gz" (gs://, https://: see `data.remote`)

Kinds: .jsonl (.ndjson), .json, .parquet, .csv, .tsv, .arrow and, for documents, .txt and .warc; each also packed, .gz
or .zst.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from framework.data.readers import Row
from framework.data.remote import DataFile, is_remote, remote_files
from framework.data.rows import KINDS, file_rows, kind_of
from framework.errors import UserError, did_you_mean

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(/.+)?")  # owner/name, then a path in it
ALLOWED = "a file, a glob, a folder, a URL or a hub data set (owner/name)"


@dataclass(frozen=True)
class Source:
    """What a data key names, as files that are there, in order."""

    key: str  # e.g. "data.train", for messages
    name: str  # as the user wrote it
    files: tuple[DataFile, ...]

    @property
    def local(self) -> tuple[Path, ...]:
        """Those whose content is watched: files of a far side count by their names alone."""
        return tuple(file for file in self.files if isinstance(file, Path))

    def rows(self) -> Iterator[Row]:
        """Yield every row of every file; raises UserError naming file and line of a fault."""
        for file in self.files:
            yield from file_rows(file)


def find_source(name: str | Path, key: str, split: str = "train") -> Source:
    """Return the files behind `name`; `split` ("train", "test") chooses among a hub data set's files.

    Raises UserError, in `key`'s name, if there are none, or none of a kind that is read.
    """
    text = str(name)
    if not text.strip() or "\0" in text:
        raise UserError(key, text, f"must name {ALLOWED}")
    if is_remote(text):
        from framework.data.hub import hub_id

        if "/resolve/" not in text and (named := hub_id(text, "datasets/")) != text:
            return find_source(named, key, split)
        return Source(key, text, tuple(file for file in remote_files(text, key) if kind_of(file) is not None))
    path = Path(text).expanduser()
    if path.is_file():
        return Source(key, text, (_known(path, key),))
    if path.is_dir():
        return Source(key, text, _folder(path, key))
    if os.path.lexists(path):
        raise UserError(text, _what_it_is(path), f"{key} must be {ALLOWED}")
    if _special(text) and (found := _matches(path, key)):
        return Source(key, text, tuple(_known(file, key) for file in found))
    if _HUB.fullmatch(text) and not path.parent.is_dir() and not _is_plainly_a_file(text):
        from framework.data.hub import hub_files

        return Source(key, text, tuple(_known(file, key) for file in hub_files(text, key, split)))
    raise UserError(text, "no such file", f"{_near(path)}{key} must be {ALLOWED}")


def _special(text: str) -> bool:
    return any(character in text for character in "*?[")


def _matches(pattern: Path, key: str) -> list[Path]:
    """Files of a glob; raises UserError for what it names but can't be looked into, instead of leaving that out."""
    levels = [pattern, *pattern.parents]
    for below, part in list(itertools.pairwise(levels))[::-1]:
        for place in glob.glob(str(part), recursive=True) if _special(below.name) else ():
            _check_folder(Path(place), key)
    matches = [Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]
    for match in matches:
        if not match.exists():
            raise UserError(str(match), _what_it_is(match), f"{key} must be {ALLOWED}")
    return [match for match in matches if match.is_file()]


def _check_folder(path: Path, key: str) -> None:
    """Raise UserError for a folder that hides what is in it: a search would leave it out without a word."""
    if path.is_dir() and not os.access(path, os.R_OK | os.X_OK, effective_ids=True):
        raise UserError(str(path), "permission denied", f"{key}: folders must be readable")


def _what_it_is(path: Path) -> str:
    """Say what lies there that is neither a file nor a folder."""
    try:
        path.stat()
    except OSError as error:
        return "a link that leads nowhere or in a circle" if path.is_symlink() else str(error.strerror)
    return "a device, a pipe or a socket"


def _is_plainly_a_file(text: str) -> bool:
    """A path of two parts with a data file's ending is a file that is missing, no hub data set."""
    return len(PurePosixPath(text).parts) == 2 and kind_of(Path(text)) is not None


def _known(file: Path, key: str) -> Path:
    if kind_of(file) is None:
        raise UserError(key, str(file), f"must end in {', '.join(KINDS)}, or one of them with .gz or .zst")
    return file


def _folder(path: Path, key: str) -> tuple[Path, ...]:
    """Data files of a folder; of a saved `datasets` directory its tables alone."""
    if (path / "dataset_dict.json").is_file():
        splits = sorted(part.name for part in path.iterdir() if part.is_dir())
        raise UserError(key, str(path), f"holds the splits {', '.join(splits)}: name one, as {path}/{splits[0]}")
    for folder, folders, names in os.walk(path):
        _check_folder(Path(folder), key)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for below in (Path(folder, name) for name in [*folders, *names]):
            if below.is_dir():
                _check_folder(below, key)
            elif not below.exists() and kind_of(below) is not None:
                raise UserError(str(below), _what_it_is(below), f"{key} must be {ALLOWED}")
    saved = (path / "state.json").is_file()
    files = [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file() and (file.suffix == ".arrow" if saved else kind_of(file) is not None)
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
        if file.name not in ("dataset_info.json", "state.json")
    ]
    if not files:
        raise UserError(key, str(path), f"a folder without data: must hold files ending in {', '.join(KINDS)}")
    return tuple(files)


def _near(path: Path) -> str:
    try:
        return did_you_mean(path.name, os.listdir(path.parent))
    except OSError:
        return ""
