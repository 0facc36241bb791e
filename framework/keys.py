"""Every setting of a job, read from the dataclasses that it is made of: type, bounds, default, doc and source."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import json
import shlex
import textwrap
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from framework.bounds import bare, describe
from framework.convert import TARGET, Component, Resolve, settings_class, to_plain

ROOT = Path(__file__).resolve().parent.parent
# Other frameworks' names for what has another name here; the last part of a key.
SYNONYMS = {
    "learning_rate": "lr", "batch_size": "prompts_per_step", "train_batch_size": "rows_per_step", "beta": "kl_coef",
    "num_generations": "group_size", "epsilon": "clip_low", "cliprange": "clip_low", "epsilon_high": "clip_high",
    "max_steps": "steps", "total_steps": "steps", "num_train_epochs": "epochs", "max_new_tokens": "max_tokens",
    "max_completion_length": "max_tokens", "max_response_length": "max_tokens", "max_seq_length": "max_model_len",
    "tp": "tensor_parallel_size", "ep": "ep_size", "gpus": "gpus_per_node", "nodes": "num_nodes",
    "max_grad_norm": "clip", "grad_clip": "clip", "warmup": "warmup_steps", "save_steps": "checkpoint_every",
    "eval_steps": "validate_every", "output_dir": "runs_dir", "name": "run", "micro_batch_size": "token_budget",
}  # fmt: skip


@dataclass(frozen=True)
class Key:
    """A setting, as `framework keys` shows it."""

    name: str  # dotted, as it is written before "="
    type: str  # with its bounds
    value: str  # in the job as composed
    default: str  # of the class; empty: must be given
    doc: str  # the comment beside the field
    source: str  # file:line

    def __str__(self) -> str:
        """Two lines: the setting, and all about it."""
        default = f"default {self.default}" if self.default else "must be given"
        default = "" if self.default == self.value != "" else default
        about = "; ".join(part for part in (self.type, default, self.doc) if part)
        return f"{self.name}={self.value}\n    {about}  [{self.source}]"


def list_keys(cls: type, node: Any, resolve: Resolve, prefix: str = "") -> Iterator[Key]:
    """Yield the settings of a dataclass and of all that is in it; `node` holds what yaml says of it."""
    hints, fields = get_type_hints(cls, include_extras=True), documented(cls)
    node = node if isinstance(node, Mapping) else {}
    for item in dataclasses.fields(cls):
        if not item.init:
            continue
        name, hint = f"{prefix}{item.name}", hints[item.name]
        given = node.get(item.name)
        inner = list(_inner(hint, given, name, resolve))
        if not inner or not _is_group(hint):
            default = _default(item)
            value = _shown(given) if item.name in node else default
            doc, source = fields.get(item.name, ("", ""))
            yield Key(name, describe(hint, bounds=True), value, default, doc, source)
        yield from inner


def _inner(hint: Any, given: Any, name: str, resolve: Resolve) -> Iterator[Key]:
    """Settings within a field."""
    if isinstance(given, Mapping) and TARGET in given:
        cls = settings_class(resolve(str(given[TARGET]), f"{name}.{TARGET}"))
        yield from list_keys(cls, given, resolve, f"{name}.") if cls is not None else ()
        return
    origin, args = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield from list_keys(hint, given, resolve, f"{name}.")
    elif origin in (Union, types.UnionType):
        for arm in args:
            yield from _inner(arm, given, name, resolve)
    elif origin in (dict, Mapping) and isinstance(given, Mapping):
        for key, item in given.items():
            yield from _inner(args[1], item, f"{name}.{key}", resolve)
    elif origin in (tuple, list, Sequence):
        yield from _inner(args[0], None, f"{name}[]", resolve)


def _is_group(hint: Any) -> bool:
    """Whether a field is only a name for what is in it."""
    hint = bare(hint) if hint is not Component else hint
    return hint is Component or get_origin(hint) in (dict, Mapping) or dataclasses.is_dataclass(hint)


def _default(item: dataclasses.Field[Any]) -> str:
    if item.default is not dataclasses.MISSING:
        return _shown(item.default)
    return "" if item.default_factory is dataclasses.MISSING else _shown(item.default_factory())


def _shown(value: Any) -> str:
    """As it is written in an override."""
    plain = to_plain(value)
    if isinstance(plain, Mapping):
        return "{" + ", ".join(f"{key}: {_shown(item)}" for key, item in plain.items() if key != TARGET) + "}"
    if isinstance(plain, list):
        return "[" + ", ".join(map(_shown, plain)) + "]"
    words = {None: "null", True: "true", False: "false", "": "''"}
    return words[plain] if plain is None or isinstance(plain, bool) or plain == "" else str(plain)


def documented(cls: type) -> dict[str, tuple[str, str]]:
    """Return field -> (comment beside or above it, file:line), those of base classes too."""
    found: dict[str, tuple[str, str]] = {}
    of_class = (cls.__doc__ or "").strip().partition("\n")[0]
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base) or "__annotations__" not in vars(base):
            continue
        file = Path(inspect.getsourcefile(base) or "?")
        lines, first = inspect.getsourcelines(base)
        place = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file
        statements = ast.parse(textwrap.dedent("".join(lines))).body[0]
        assert isinstance(statements, ast.ClassDef)
        for node in statements.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                doc = _comment(lines, node.lineno - 1, (node.end_lineno or node.lineno) - 1)
                found[node.target.id] = doc or of_class, f"{place}:{first + node.lineno - 1}"
    return found


def _comment(lines: list[str], first: int, last: int) -> str:
    """The comment behind a statement, else the comment lines above it."""
    _, mark, behind = lines[last].rpartition("  # ")
    if mark:
        return behind.strip()
    above: list[str] = []
    while first > 0 and lines[first - 1].strip().startswith("# "):
        first -= 1
        above.insert(0, lines[first].strip().removeprefix("# "))
    return " ".join(above)


def like(word: str, names: Iterable[str]) -> list[str]:
    """Return the keys that end in `word`, or in what it is called here; else those of nearly this name."""
    by_last: dict[str, list[str]] = {}
    for name in names:
        by_last.setdefault(name.rpartition(".")[2], []).append(name)
    for wanted in (word, SYNONYMS.get(word, "")):
        if wanted in by_last:
            return by_last[wanted]
    close = difflib.get_close_matches(word, by_last, n=2, cutoff=0.75)
    return [name for last in close for name in by_last[last]]


def how_to_quote(override: str) -> str:
    """Say how a value is written in which a character means something to Hydra's grammar."""
    key, _, value = override.partition("=")
    if value.startswith("~/"):
        return f"no shell fills in ~ behind a key: write {key}=$HOME/{value[2:]}"
    is_list = value.startswith("[") and value.endswith("]")
    items = value[1:-1].split(",") if is_list else [value]
    quoted = [json.dumps(item.strip(" \"'"), ensure_ascii=False) for item in items]
    example = f"{key}=[{','.join(quoted)}]" if is_list else f"{key}={quoted[0]}"
    shown = shlex.quote(example if len(example) < 150 else 'key="value"')
    return f"a value with a blank or any of ~ ( ) [ ] {{ }} , : = & # ' \" in it goes in quotes, twice: {shown}"
