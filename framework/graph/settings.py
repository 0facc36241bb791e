"""What configured values say, so that two of them can be compared across versions of the code."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from framework.convert import TARGET, Resolve, settings_class, to_plain
from framework.errors import UserError

ABSENT = "absent"


def settings_of(value: Any) -> Any:
    """Return what a configured value says beyond its defaults, as JSON can hold it; classes by name, without module."""
    if dataclasses.is_dataclass(getattr(value, "config", None)) and not dataclasses.is_dataclass(value):
        return {**settings_of(value.config), TARGET: type(value).__qualname__}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        given = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        given = {f.name: given[f.name] for f in dataclasses.fields(value) if not _is_default(f, given[f.name])}
        return {TARGET: type(value).__qualname__, **{name: settings_of(item) for name, item in given.items()}}
    if isinstance(value, Mapping):
        return {str(key): settings_of(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [settings_of(item) for item in value]
    return to_plain(value)


def _is_default(field_: dataclasses.Field[Any], value: Any) -> bool:
    if field_.default is not dataclasses.MISSING:
        return type(value) is type(field_.default) and bool(value == field_.default)
    if field_.default_factory is not dataclasses.MISSING:
        default = field_.default_factory()
        return type(value) is type(default) and bool(value == default)
    return False


def beyond_defaults(plain: Any, resolve: Resolve, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of what plain settings (`to_plain`) say beyond the defaults of today's classes.

    Of a class that `resolve` does not find: its name under `_target_`, and all its settings.
    """
    if isinstance(plain, Mapping) and plain:
        defaults = _defaults(plain[TARGET], resolve) if TARGET in plain else {}
        if defaults is None:
            yield f"{where}.{TARGET}".removeprefix("."), plain[TARGET]
        for key, value in plain.items():
            if key == TARGET or (defaults and key in defaults and _same(defaults[key], value)):
                continue
            path = f"{where}.{key}".removeprefix(".").removeprefix("config.")
            before = defaults.get(key) if defaults else None
            kind = value.get(TARGET) if isinstance(value, Mapping) and path != "config" else None
            if kind is not None and not (isinstance(before, Mapping) and _same(before.get(TARGET), kind)):
                yield path, str(kind).rpartition(".")[2]
            yield from beyond_defaults(value, resolve, path if path != "config" else "")
    elif isinstance(plain, list) and any(isinstance(item, Mapping) for item in plain):
        for number, item in enumerate(plain):
            yield from beyond_defaults(item, resolve, f"{where}[{number}]")
    else:
        yield where, plain


def _defaults(target: object, resolve: Resolve) -> dict[str, Any] | None:
    """The defaults of a class by its dotted name, as JSON holds them; None if it is not there, or has no settings."""
    try:
        found = resolve(str(target), TARGET)
    except UserError:
        return None
    settings = settings_class(found) if isinstance(found, type) else None
    if settings is None:
        return None
    defaults = {}
    for item in dataclasses.fields(settings):
        if item.default is not dataclasses.MISSING:
            defaults[item.name] = to_plain(item.default)
        elif item.default_factory is not dataclasses.MISSING:
            defaults[item.name] = to_plain(item.default_factory())
    return defaults


def _same(one: Any, other: Any) -> bool:
    return not any(differences(one, other)) and isinstance(one, bool) == isinstance(other, bool)


def without(settings: Mapping[str, Any], dotted: str) -> dict[str, Any]:
    """Return nested settings less one of them."""
    first, _, rest = dotted.partition(".")
    left = {key: value for key, value in settings.items() if key != first}
    return left | {first: without(settings[first], rest)} if rest and first in settings else left


def setting(value: Any, dotted: str) -> Any:
    """Return one attribute of the attributes of a value, such as "config.steps"."""
    for name in dotted.split("."):
        value = getattr(value, name)
    return value


def differences(theirs: Any, ours: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted key, their value, our value) of all differences of two plain configurations.

    Classes (`_target_`) are the same if their names are, wherever they live.
    """
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for key in sorted({*theirs, *ours}):
            path = f"{where}.{key}" if where else str(key)
            yield from differences(theirs.get(key, ABSENT), ours.get(key, ABSENT), path)
    elif where.endswith(TARGET) and ABSENT not in (theirs, ours):
        if str(theirs).rpartition(".")[2] != str(ours).rpartition(".")[2]:
            yield where, theirs, ours
    elif theirs != ours:
        yield where, theirs, ours
