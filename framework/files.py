"""Files that outlive a process: digests that notice any flipped byte, and removals that a network disk may refuse."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHUNK = 16 << 20  # bytes
logger = logging.getLogger("framework")
_told: set[Path] = set()  # folders whose removals have failed and been said


def quick_digest(file: Path) -> str:
    """Return the 128-bit XXH3 of a file's bytes: 0.05 s per GiB, against SHA-256's 0.6; for damage, not for malice."""
    import xxhash

    hasher = xxhash.xxh3_128()
    with file.open("rb") as handle:
        while chunk := handle.read(CHUNK):
            hasher.update(chunk)  # without the GIL
    return str(hasher.hexdigest())


def quick_digests(directory: Path, names: Iterable[str], threads: int = 4) -> dict[str, str]:
    """Return name -> `quick_digest` of files in `directory`, a few at a time."""
    listed = list(names)
    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(listed, pool.map(lambda name: quick_digest(directory / name), listed), strict=True))


def text_digest(text: str) -> str:
    """Return the 128-bit XXH3 of a text."""
    import xxhash

    return str(xxhash.xxh3_128(text.encode()).hexdigest())


def shares(sizes: Mapping[str, int], holders: Mapping[str, Iterable[int]]) -> dict[int, list[str]]:
    """Deal files out to the ranks that hold them, largest first to whom has least: rank -> names.

    Every rank that is given the same arguments returns the same.
    """
    load: dict[int, int] = {}
    found: dict[int, list[str]] = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        rank = min(holders[name], key=lambda rank: (load.get(rank, 0), rank))
        load[rank] = load.get(rank, 0) + sizes[name]
        found.setdefault(rank, []).append(name)
    return found


def remove_tree(path: Path) -> bool:
    """Remove a directory that nobody needs any more; return whether it is gone.

    What refuses (a file that another NFS client holds open, an I/O error) is said once for its folder and moved out of
    the way, so that the name is free.
    """
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return True
    except OSError as error:
        if path.parent not in _told:
            _told.add(path.parent)
            logger.warning("%s can't be removed (%s); it stays on the disk and the run goes on", path, error)
        return False
    return True


def clear_way(path: Path) -> None:
    """Make sure that nothing is called `path`: what can't be removed gets another name. Raises OSError if it can't."""
    if not remove_tree(path) and path.exists():
        left = [path.with_name(f".left-{path.name}.{number}") for number in range(1000)]
        path.rename(next(other for other in left if not other.exists()))


def write_atomically(file: Path, text: str) -> None:
    """Replace a file's content so that a reader sees the old or the new one, whole."""
    temporary = file.with_name(f"{file.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, file)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name; a copy on another file system, or one without links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
