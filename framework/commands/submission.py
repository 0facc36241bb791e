"""`framework submit`: the same run as a Ray job, with what lies on this machine alone: plug-ins and yaml files."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from framework.errors import UserError

STOP_WAIT_S = 600  # between SIGTERM and SIGKILL of a Ray job: time to write a checkpoint
SENT_CONF = "sent_conf_"  # how the directory of further yaml files is called on the cluster; a digest follows


def submit_job(
    address: str, overrides: Sequence[str], options: Sequence[str], plugins: Sequence[str], conf: Path | None, run: str
) -> str:
    """Hand `framework run` to the cluster whose dashboard is at `address`; return the job's id.

    Raises UserError for a dashboard that does not answer, a token that it refuses, or a plug-in that cannot be sent.
    """
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    with to_send(plugins, conf) as (modules, name):
        command = ["framework", "run", *overrides, *(["--config-dir", name] if name else []), *options]
        environment = {
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
            **({"py_modules": modules} if modules else {}),
        }
        try:
            client = JobSubmissionClient(address)
            return str(
                client.submit_job(entrypoint=shlex.join(command), runtime_env=environment, metadata={"run": run})
            )
        except AuthenticationError as error:
            found = "one that it refuses" if "RAY_AUTH_TOKEN" in os.environ else "not set"
            raise UserError("RAY_AUTH_TOKEN", found, "must be the cluster's token, with RAY_AUTH_MODE=token") from error
        except (ConnectionError, RuntimeError) as error:
            allowed = f"must be a Ray dashboard, e.g. http://head:8265 ({error})"
            raise UserError("--address", address, allowed) from None
        except ValueError as error:  # a folder of more than Ray takes
            raise UserError("plugins", ", ".join(plugins), f"cannot be sent: {error}") from None


@contextmanager
def to_send(plugins: Sequence[str], conf: Path | None) -> Iterator[tuple[list[str], str]]:
    """Yield the files and folders that the job needs beside its Python path, and the name there of `conf`, or "".

    A plug-in that is installed, not lying in a folder of its own, is taken to be installed on the cluster too.
    """
    places = [place for place in dict.fromkeys(map(place_of, plugins)) if not _installed(place)]
    with tempfile.TemporaryDirectory() as folder:
        modules = [str(place if place.is_dir() else _as_package(place, Path(folder))) for place in places]
        if conf is None:
            yield modules, ""
            return
        files = [file for file in sorted(conf.rglob("*")) if file.suffix in (".yaml", ".yml")]
        told = "".join(f"{file.relative_to(conf)}\0{file.read_text()}\0" for file in files)
        copy = Path(folder, SENT_CONF + hashlib.sha256(told.encode()).hexdigest()[:8])
        for file in files:
            (copy / file.relative_to(conf)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy / file.relative_to(conf))
        copy.mkdir(exist_ok=True)
        yield [*modules, str(copy)], copy.name


def _as_package(file: Path, folder: Path) -> Path:
    """Copy a module into a folder of its name, for a job's client sends folders alone: it is imported as before."""
    package = folder / file.stem
    package.mkdir()
    shutil.copyfile(file, package / "__init__.py")
    return package


def found_conf(conf: Path | None) -> Path | None:
    """Return the directory of further yaml files: of a job that was submitted, where Ray has put it."""
    if conf is None or not conf.name.startswith(SENT_CONF):
        return conf
    return next((place for folder in sys.path if (place := Path(folder, conf)).is_dir()), conf)


def place_of(plugin: str) -> Path:
    """Return the file, or the package's folder, of a plug-in; raises UserError for what is neither."""
    spec = find_spec(plugin.partition(".")[0])
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    place = folders[0] if len(folders) == 1 else spec.origin if spec is not None and not folders else None
    if place is None or not (Path(place).is_dir() or place.endswith(".py")):
        raise UserError("plugins", plugin, "cannot be sent to the cluster: must be a .py file or one package's folder")
    return Path(place)


def _installed(place: Path) -> bool:
    folders = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return "site-packages" in place.parts or any(place.is_relative_to(folder) for folder in folders)
