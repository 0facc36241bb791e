"""What the stages of a job have in common is said once above them; each stage's own node says what is different.

A settings class names what it takes from above by `inherits`, field -> key ("" for fields of its own):

    inherits: ClassVar[Mapping[str, str]] = {"": "rl", "algorithm": "algorithm"}

makes `stage.dev2.algorithm.clip_high` what the node of `dev2` says, else what `algorithm.clip_high` says. A node that
names its own `_target_` is whole: nothing is added to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from framework.convert import TARGET, Resolve, settings_class
from framework.errors import UserError, did_you_mean

UNSAID = object()


def inherit(node: dict[str, Any], resolve: Resolve) -> dict[str, str]:
    """Complete the stages of a plain configuration, in place; returns a stage's key -> the key that it was taken from.

    Raises UserError for a key of `rl` and the like that the stages do not have.
    """
    taken: dict[str, str] = {}
    given = node.get("stage")
    stages: dict[str, Any] = given if isinstance(given, dict) else {}
    for name, own in stages.items():
        if not isinstance(own, Mapping) or TARGET not in own:
            continue
        where = f"stage.{name}"
        target = resolve(str(own[TARGET]), f"{where}.{TARGET}")
        cls = settings_class(target) if isinstance(target, type) else None
        for field, key in getattr(cls, "inherits", {}).items():
            common = _at(node, key)
            if field and field not in own:
                _check_given(cls, field, key, common)
            if common is None:
                continue
            if field:
                own = {**own, field: _merged(common, own.get(field, UNSAID), f"{where}.{field}", key, taken)}
            else:
                _check_names(cls, common, key)
                bare = {key: value for key, value in own.items() if key != TARGET}
                own = {TARGET: own[TARGET], **_merged(common, bare, where, key, {})}
        stages[name] = own
    return taken


def as_written(error: UserError, taken: Mapping[str, str]) -> UserError:
    """Name in an error the key that the user wrote: the common one, where the stage's value was taken from it."""
    where = taken.get(error.where)
    return error if where is None else UserError(where, error.value, error.allowed)


def _at(node: Mapping[str, Any], key: str) -> Any:
    found: Any = node
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _check_given(cls: Any, field: str, key: str, common: Any) -> None:
    """Raise UserError for what was left out or set to null above, and in the stage itself."""
    default = getattr(cls, field, None)
    parts = isinstance(common, Mapping) and TARGET not in common and dataclasses.is_dataclass(default)
    names = [f"{key}.{item.name}" for item in dataclasses.fields(cast("Any", default))] if parts else [key]
    for name in names:
        found = common.get(name.rpartition(".")[2]) if parts else common
        if found is None:
            raise UserError(name, None, "must be given: a stage of this job needs it")


def _merged(common: Any, own: Any, where: str, key: str, taken: dict[str, str]) -> Any:
    """Return `own` with what it leaves unsaid taken from `common`."""
    if own is UNSAID:
        taken.update({f"{where}{end}": f"{key}{end}" for end in _keys(common)})
        return common
    if not isinstance(common, Mapping) or not isinstance(own, Mapping) or TARGET in own:
        return own
    both = {name: _merged(item, own.get(name, UNSAID), f"{where}.{name}", f"{key}.{name}", taken)
            for name, item in common.items()}  # fmt: skip
    return {**both, **{name: item for name, item in own.items() if name not in common}}


def _keys(value: Any) -> Iterator[str]:
    """Every key in a value, with a dot before it, and the value itself: the empty one."""
    yield ""
    for name, item in value.items() if isinstance(value, Mapping) else ():
        yield from (f".{name}{end}" for end in _keys(item))


def _check_names(cls: Any, common: Mapping[str, Any], key: str) -> None:
    names = [item.name for item in dataclasses.fields(cls)]
    for name, value in common.items():
        if name not in names:
            hint = did_you_mean(str(name), names) or f"known: {', '.join(sorted(names))}"
            raise UserError(f"{key}.{name}", value, f"unknown key; {hint}")


def given_in(node: Mapping[str, Any]) -> Callable[[str], bool]:
    """Whether yaml or the command line give a key."""

    def given(key: str) -> bool:
        found: Any = node
        for part in key.split("."):
            if not isinstance(found, Mapping) or part not in found:
                return False
            found = found[part]
        return True

    return given


def with_values(node: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plain configuration with values set at dotted keys."""
    changed = dict(node)
    for key, value in values.items():
        first, _, rest = key.partition(".")
        changed[first] = with_values(changed.get(first) or {}, {rest: value}) if rest else value
    return changed
