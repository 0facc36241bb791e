"""Data files of a data set on the Hugging Face hub, through `huggingface_hub` with its cache and token."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from framework.data.rows import kind_of
from framework.errors import UserError

logger = logging.getLogger("framework.data")

_NAMES = {"train": ("train",), "test": ("test", "validation", "valid", "dev", "eval")}  # by preference


def hub_id(name: str, kind: str = "") -> str:
    """Return owner/name of a link to a repository's page on the hub ("datasets/" for data sets), or `name` as it is."""
    from huggingface_hub import constants

    home = f"{constants.ENDPOINT}/{kind}"
    if not name.startswith(home):
        return name
    return "/".join(name.removeprefix(home).split("/")[:2])


def hub_files(name: str, key: str, split: str) -> list[Path]:
    """Download and return the files of owner/name[/PATTERN]; without a pattern those of `split`.

    Raises UserError, one line, if the hub cannot be reached, the data set is not there, or its files are ambiguous.
    """
    owner, title, *rest = name.split("/", 2)
    repository = f"{owner}/{title}"
    try:
        found = _listed(repository)
        chosen = _chosen(found, rest[0] if rest else "", key, name, split)
        from huggingface_hub import hf_hub_download

        offline = not reachable()
        return [
            Path(hf_hub_download(repository, file, repo_type="dataset", local_files_only=offline)) for file in chosen
        ]
    except UserError:
        raise
    except Exception as error:  # its errors share no base: HTTP, offline mode, no such repository, no token
        reason = "the hub cannot be reached and the data set is not in its cache"
        if reachable():
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        allowed = f"no such file here, and as a data set of the hub: {reason}"
        raise UserError(key, name, allowed) from None


def _listed(repository: str) -> list[str]:
    """Data files of the repository, from the hub, or from the cache where it cannot be reached."""
    from huggingface_hub import HfApi, snapshot_download

    if not reachable():
        cached = Path(snapshot_download(repository, repo_type="dataset", local_files_only=True))
        names = [file.relative_to(cached).as_posix() for file in cached.rglob("*") if file.is_file()]
    else:
        names = HfApi().list_repo_files(repository, repo_type="dataset")
    return sorted(file for file in names if kind_of(Path(file)) not in (None, ".txt") and not file.startswith("."))


def reachable() -> bool:
    """Whether the hub answers; the hub's own calls try for half a minute, and log each try."""
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=5.0)
    except Exception as error:  # of whichever HTTP library it is built on
        logger.info("hub: %s", error)
        return False
    return True


def _chosen(files: Sequence[str], pattern: str, key: str, name: str, split: str) -> list[str]:
    listed = ", ".join(files[:8]) + (" …" if len(files) > 8 else "")
    if pattern:
        chosen = [file for file in files if fnmatch.fnmatch(file, pattern) or file.startswith(f"{pattern}/")]
        if not chosen:
            raise UserError(key, name, f"matches none of its files: {listed or 'it has no data files'}")
        return chosen
    for word in _NAMES[split]:
        chosen = [file for file in files if word in file.lower()]
        if chosen:
            break
    else:
        chosen = list(files) if split == "train" else []
    if not chosen:
        raise UserError(key, name, f"has no {split} files; its files: {listed or 'none that is data'}")
    folders = sorted({PurePosixPath(file).parent.as_posix() for file in chosen})
    if len(folders) > 1:
        owner_title = "/".join(name.split("/")[:2])
        options = ", ".join(f"{owner_title}/{folder}/{split}*" for folder in folders[:6])
        raise UserError(key, name, f"holds several: name one of {options}")
    return chosen
