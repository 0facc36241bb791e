"""The code behind a stage, as a hash: what a fix touches is run again, what it does not touch is not."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# What starts, plans and shows a run: none of it changes what a stage makes.
NOT_COUNTED = ("cli", "config", "graph", "models.estimate", "observe", "stages.fit", "stages.memory", "stages.placing")


def code_version(stage: object) -> str:
    """Return the hash of the code that `modules_behind` finds; comments, docstrings and layout do not count."""
    found = modules_behind(stage)
    return hashlib.sha256("".join(f"{name}\0{found[name]}\0" for name in sorted(found)).encode()).hexdigest()[:12]


def modules_behind(stage: object) -> dict[str, str]:
    """Return name -> digest of the modules of the stage and of the dataclasses in its fields, and of their imports.

    Imports are followed within the framework, those in functions too; of a plug-in its own module counts.
    """
    waiting = {type(part).__module__ for part in nested(stage) if dataclasses.is_dataclass(part)}
    found: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        module = None if name in found or _belongs(name, NOT_COUNTED) else _read(name)
        if module is not None:
            found[name] = module.digest
            waiting |= module.imports
    return found


def nested(value: Any) -> Iterator[Any]:
    """Yield `value` and everything in it: fields of dataclasses, elements of mappings, lists and tuples."""
    yield value
    inner: Any = ()
    if dataclasses.is_dataclass(value):
        inner = (getattr(value, item.name) for item in dataclasses.fields(value))
    elif isinstance(value, Mapping):
        inner = value.values()
    elif isinstance(value, list | tuple):
        inner = value
    for element in inner:
        yield from nested(element)


@dataclass(frozen=True)
class _Module:
    digest: str
    imports: frozenset[str]  # names within the framework, some of them of no module


@cache
def _read(name: str) -> _Module | None:
    """Parse a module's file; None for a name that is no module (what `from a import b` imports may be anything)."""
    file = _file(name)
    if file is None:
        return None
    tree = ast.parse(file.read_bytes())
    imports: set[str] = set()
    for statement in _statements(tree):
        if isinstance(statement, ast.Import):
            imports.update(alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and statement.module is not None:
            imports.add(statement.module)
            imports.update(f"{statement.module}.{alias.name}" for alias in statement.names)
    digest = hashlib.sha256(ast.dump(tree, annotate_fields=False).encode()).hexdigest()
    return _Module(digest, frozenset(name for name in imports if _belongs(name, ("",))))


def _file(name: str) -> Path | None:
    if not _belongs(name, ("",)):
        source = inspect.getsourcefile(sys.modules[name])
        return None if source is None else Path(source)
    place = ROOT.joinpath(*name.split(".")[1:])
    return next((file for file in (place.with_name(f"{place.name}.py"), place / "__init__.py") if file.is_file()), None)


def _statements(node: Any) -> Iterator[ast.stmt]:
    """Yield the statements under `node`, at any depth, and take the docstrings out of it."""
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        statements = getattr(node, field, None)
        if not isinstance(statements, list):  # a lambda's body, a conditional expression's branch
            continue
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if field == "body" and documented and ast.get_docstring(node, clean=False) is not None:
            del statements[0]
        for statement in statements:
            if isinstance(statement, ast.stmt):
                yield statement
            yield from _statements(statement)


def _belongs(name: str, parts: tuple[str, ...]) -> bool:
    """Whether a module's name is that of one of these parts of the framework, or of something in it."""
    return any(f"{name}.".startswith(f"framework.{part}.".replace("..", ".")) for part in parts)
