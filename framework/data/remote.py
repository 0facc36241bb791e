"""Files that are not on a disk here: s3://, gs://, https:// and whatever else fsspec opens.

S3 and GCS are read by pyarrow, which every environment of the framework has; the others by fsspec, where it knows them.
Keys and regions come from where the clouds' own tools take them (AWS_ACCESS_KEY_ID, AWS_PROFILE, ~/.aws,
GOOGLE_APPLICATION_CREDENTIALS, the machine's role); AWS_ENDPOINT_URL and STORAGE_EMULATOR_HOST name another server.
FSSPEC_S3_ANON=true and FSSPEC_GS_ANON=true read public buckets without a key.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from framework.errors import UserError

_BUFFER = 4 << 20  # bytes asked for at once
_PATIENCE = timedelta(seconds=60)  # with a far side that does not answer


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
        if (place := _bucket_of(self.url)) is not None:
            system, path = place
            return cast(BinaryIO, io.BufferedReader(system.open_input_file(path), _BUFFER))
        import fsspec

        return cast(BinaryIO, fsspec.open(self.url, mode).open())

    def size(self) -> int:
        """Bytes."""
        if (place := _bucket_of(self.url)) is not None:
            system, path = place
            return int(system.get_file_info(path).size or 0)
        return int(_system(self.url)[0].size(self.url) or 0)


DataFile = Path | RemoteFile


def size_of(file: DataFile) -> int:
    """Bytes of a file; 0 where the far side does not say."""
    return file.size() if isinstance(file, RemoteFile) else file.stat().st_size


def is_remote(name: str) -> bool:
    """Whether a name is a URL."""
    return "://" in name


def remote_files(url: str, key: str) -> tuple[RemoteFile, ...]:
    """Return the files behind a URL, a glob or a folder, in order; raises UserError, in `key`'s name, for none."""
    try:
        found = sorted(_found(url, key))
    except UserError:
        raise
    except Exception as error:  # of the far side's own library: no rights, no network, no such bucket
        raise UserError(url, " ".join(str(error).split())[:300], f"{key} must be readable") from None
    if not found:
        raise UserError(url, "no such file", f"{key} must be a file, a glob or a folder")
    return tuple(RemoteFile(name) for name in found)


def _found(url: str, key: str) -> Iterator[str]:
    if (place := _bucket_of(url)) is not None:
        scheme = url.partition("://")[0]
        yield from (f"{scheme}://{path}" for path in _listed(*place))
        return
    system, path = _system(url, key)
    if any(character in path for character in "*?["):
        names = system.glob(path)
    elif system.isdir(path):
        names = system.find(path)
    else:
        names = [path] if system.exists(path) else []
    yield from map(system.unstrip_protocol, names)


def _listed(system: Any, path: str) -> Iterator[str]:
    """Files of a bucket: those of a glob, below a folder, or one; fsspec's own search takes an error for nothing."""
    from fsspec.utils import glob_translate
    from pyarrow.fs import FileSelector, FileType

    special = re.search(r"[*?\[]", path)
    folder = path[: special.start()].rpartition("/")[0] if special else path.rstrip("/")
    wanted = re.compile(glob_translate(path)) if special else None
    if wanted is None and (info := system.get_file_info(folder)).type == FileType.File:
        yield info.path
        return
    for info in system.get_file_info(FileSelector(folder, recursive=True, allow_not_found=True)):
        if info.type == FileType.File and (wanted is None or wanted.match(info.path)):
            yield info.path


def _bucket_of(url: str) -> tuple[Any, str] | None:
    """pyarrow's file system of a bucket and the path in it; None of a URL of another kind."""
    scheme, _, path = url.partition("://")
    return (_buckets(scheme, path.partition("/")[0]), path) if scheme in ("s3", "gs", "gcs") else None


@lru_cache(maxsize=16)
def _buckets(scheme: str, bucket: str) -> Any:
    import fsspec
    from pyarrow import fs

    kind = "s3" if scheme == "s3" else "gs"
    # fsspec reads FSSPEC_S3_ANON when it is imported
    anonymous = str(fsspec.config.conf.get(kind, {}).get("anon", "")).lower() in ("1", "true")
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if kind == "s3" else ("STORAGE_EMULATOR_HOST",)
    server = next(filter(None, map(os.environ.get, names)), "")
    protocol, _, host = server.rpartition("://")
    place = {"endpoint_override": host, "scheme": protocol or "https"} if server else {}
    if kind == "gs":
        return fs.GcsFileSystem(anonymous=anonymous, retry_time_limit=_PATIENCE, **place)
    if server:
        return fs.S3FileSystem(anonymous=anonymous, **place)
    named = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return fs.S3FileSystem(anonymous=anonymous, region=named or fs.resolve_s3_region(bucket))


def _system(url: str, key: str = "") -> tuple[Any, str]:
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # some kinds are packages of their own
        raise UserError(
            url, " ".join(str(error).split()), f"{key or 'it'} must be of a kind that fsspec opens here"
        ) from None
    return system, str(path)
