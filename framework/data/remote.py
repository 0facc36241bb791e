"""Files that are not on a disk here: s3://, gs://, https:// and whatever else fsspec opens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from framework.errors import UserError


@dataclass(frozen=True, order=True)
class RemoteFile:
    """A URL with what readers ask of a Path."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part."""
        return PurePosixPath(self.url).name

    @property
    def suffix(self) -> str:
        """The ending."""
        return PurePosixPath(self.url).suffix

    @property
    def suffixes(self) -> list[str]:
        """All endings."""
        return PurePosixPath(self.url).suffixes

    def open(self, mode: str = "rb") -> BinaryIO:
        """Open it to read; raises OSError as a Path does."""
        import fsspec

        return cast(BinaryIO, fsspec.open(self.url, mode).open())

    def size(self) -> int:
        """Bytes."""
        return int(_system(self.url)[0].size(self.url))


DataFile = Path | RemoteFile


def size_of(file: DataFile) -> int:
    """Bytes of a file; 0 where the far side does not say."""
    return file.size() if isinstance(file, RemoteFile) else file.stat().st_size


def is_remote(name: str) -> bool:
    """Whether a name is a URL."""
    return "://" in name


def remote_files(url: str, key: str) -> tuple[RemoteFile, ...]:
    """Return the files behind a URL, a glob or a folder, in order; raises UserError, in `key`'s name, for none."""
    system, path = _system(url, key)
    try:
        if any(character in path for character in "*?["):
            found = system.glob(path)
        elif system.isdir(path):
            found = system.find(path)
        else:
            found = [path] if system.exists(path) else []
    except Exception as error:  # of the far side's own library: no rights, no network, no such bucket
        raise UserError(url, " ".join(str(error).split())[:200], f"{key} must be readable") from None
    if not found:
        raise UserError(url, "no such file", f"{key} must be a file, a glob or a folder")
    return tuple(RemoteFile(system.unstrip_protocol(name)) for name in sorted(found))


def _system(url: str, key: str = "") -> tuple[Any, str]:
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # s3fs and gcsfs are packages of their own
        raise UserError(
            url, " ".join(str(error).split()), f"{key or 'it'} must be of a kind that fsspec opens here"
        ) from None
    return system, str(path)
