"""Where `_target_` becomes an object, and whose modules it may name."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.errors import FrameworkError, UserError, did_you_mean
from framework.rewards.blame import error_text, place_of_error

ROOT = Path(__file__).resolve().parent.parent
OWN_MODULES = ("framework", "jobs")


def find_plugins(plugins: Sequence[str]) -> None:
    """Let modules beside the caller be found, in workers too; raises UserError for one that is nowhere."""
    if not plugins:
        return
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if here not in paths:  # what Ray and the reward processes start with
        os.environ["PYTHONPATH"] = os.pathsep.join([here, *paths])
    for name in plugins:
        top = name.partition(".")[0]
        if not re.fullmatch(r"[A-Za-z_][\w.]*", name) or importlib.util.find_spec(top) is None:
            nearby = {file.stem for file in Path(here).glob("*.py")} | {
                f.parent.name for f in Path(here).glob("*/*.py")
            }
            allowed = f"{did_you_mean(top, nearby)}must be a module in {here} or on PYTHONPATH"
            raise UserError("plugins", name, allowed)


@dataclass(frozen=True)
class TargetResolver:
    """The one place where `_target_` becomes an object."""

    plugins: tuple[str, ...] = ()

    def __call__(self, target: str, where: str) -> Any:
        """Import and return the object of dotted name `target`."""
        prefixes = (*OWN_MODULES, *self.plugins)
        if not any(target.startswith(f"{prefix}.") for prefix in prefixes):
            raise UserError(where, target, f"must start with {', '.join(prefixes)}; add your own module to `plugins`")
        module_name, _, name = target.rpartition(".")
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise  # the module exists and lacks one of its own imports
            raise UserError(where, target, f"no module named {error.name}") from None
        if not hasattr(module, name):
            public = [key for key in vars(module) if not key.startswith("_")]
            raise UserError(where, target, f"{did_you_mean(name, public)}{module_name} has no {name}")
        return getattr(module, name)


@contextmanager
def blaming_plugins(plugins: Sequence[str]) -> Iterator[None]:
    """Make a UserError with file and line of whatever a plug-in's code raises in the block, on import for instance.

    What it prints goes to standard error, for standard output is the command's own; where it goes to (`os.chdir`) does
    not count, for paths on the command line are of the place where that was given.
    """
    here = os.getcwd() if plugins else ""
    try:
        with redirect_stdout(sys.stderr) if plugins else nullcontext():
            yield
    except (FrameworkError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a script that ends itself as it is imported must not end the command
        place = place_of_error(error)
        own = any(Path(place.rpartition(":")[0]).is_relative_to(ROOT / name) for name in OWN_MODULES)
        if not plugins or not place or own:
            raise
        allowed = f"code of one of them fails: {error_text(error)} ({place})"
        raise UserError("plugins", ", ".join(plugins), allowed) from error
    finally:
        if plugins:
            os.chdir(here)
