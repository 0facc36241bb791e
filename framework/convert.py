"""Plain values (what yaml and JSON hold) to frozen dataclasses and back; a misfit is a UserError with the full key."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from framework.bounds import arm_of, bare, check_value, describe
from framework.errors import UserError, did_you_mean

TARGET = "_target_"
SCALARS = (bool, int, float, str, Path)
Resolve = Callable[[str, str], Any]  # (dotted name, key that holds it) -> the object of that name


class _NeedsTarget:
    """Marks a field whose node says by `_target_` what it is."""


Component = Annotated[Any, _NeedsTarget]


def convert(hint: Any, value: Any, where: str, resolve: Resolve) -> Any:
    """Return `value` as type `hint`; `where` is the dotted key that errors name.

    Ints pass as floats, whole floats (1e9) as ints, ints as strings, and a node with `_target_` as what it names.
    Raises UserError on a wrong type, an unknown or a missing key.
    """
    if hint is Component:
        if value is None:
            return None
        if not _is_node(value):
            raise UserError(where, value, f"must be a group with a {TARGET}")
        return instantiate(value, where, resolve)
    if _is_node(value):
        return _checked_instance(hint, instantiate(value, where, resolve), where)
    if get_origin(hint) is Annotated:
        plain = bare(hint)
        found = _scalar(plain, value, where) if plain in SCALARS else convert(plain, value, where, resolve)
        check_value(hint, value if plain in (int, float) else found, where)  # errors show it as it was written
        return found
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, value, where, resolve)
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        return value
    if origin in (Union, types.UnionType):
        return _union(hint, value, where, resolve)
    if origin is Literal:
        # 1 == True in Python, so the type has to agree as well.
        if any(value == arg and type(value) is type(arg) for arg in args):
            return value
        raise UserError(where, value, did_you_mean(str(value), [str(a) for a in args]) + f"must be {describe(hint)}")
    if origin in (tuple, list, Sequence):
        return _sequence(hint, value, where, resolve)
    if origin in (dict, Mapping):
        return _mapping(hint, value, where, resolve)
    found = _scalar(hint, value, where)
    check_value(hint, found, where)
    return found


def instantiate(node: Mapping[str, Any], where: str, resolve: Resolve) -> Any:
    """Build what `node["_target_"]` names: a dataclass, or a class with a `Config` dataclass inside or beside it."""
    target = resolve(str(node[TARGET]), f"{where}.{TARGET}")
    fields = {key: value for key, value in node.items() if key != TARGET}
    if not isinstance(target, type):
        raise UserError(f"{where}.{TARGET}", node[TARGET], "must name a class")
    config = settings_class(target)
    if config is None:
        raise UserError(f"{where}.{TARGET}", node[TARGET], "must be a dataclass, or have a Config dataclass beside it")
    settings = _dataclass(config, fields, where, resolve)
    return settings if config is target else target(settings)


def settings_class(target: type) -> type | None:
    """Return the dataclass that holds the settings of a class: itself, or its `Config`, inside or beside it."""
    module = sys.modules[target.__module__]
    beside = (getattr(module, f"{target.__name__}Config", None), getattr(module, "Config", None))
    candidates = (target, getattr(target, "Config", None), *beside)
    return next((c for c in candidates if isinstance(c, type) and dataclasses.is_dataclass(c)), None)


def to_plain(value: Any) -> Any:
    """Return `value` as JSON can hold it; the inverse of `convert`, with `_target_` on every dataclass."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {TARGET: _qualified_name(value), **fields}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if dataclasses.is_dataclass(getattr(value, "config", None)):
        return {**to_plain(value.config), TARGET: _qualified_name(value)}
    raise TypeError(f"{_qualified_name(value)} is no configuration: it is neither plain nor a dataclass")


def _is_node(value: Any) -> bool:
    return isinstance(value, Mapping) and TARGET in value


def _qualified_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _checked_instance(hint: Any, built: Any, where: str) -> Any:
    arms = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    # Protocols and Any can't be checked by isinstance; whoever declares such a field takes what it is given.
    classes = [arm for arm in arms if isinstance(arm, type) and not getattr(arm, "_is_protocol", False)]
    if Any not in arms and object not in arms and len(classes) == len(arms) and not isinstance(built, tuple(classes)):
        names = " or ".join(arm.__name__ for arm in classes if arm is not type(None))
        raise UserError(f"{where}.{TARGET}", _qualified_name(built), f"must be a {names}")
    return built


def _dataclass(cls: Any, node: Any, where: str, resolve: Resolve) -> Any:
    if not isinstance(node, Mapping):
        raise UserError(where, node, f"must be a mapping with the keys of {cls.__name__}")
    hints = get_type_hints(cls, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    prefix = f"{where}." if where else ""
    for key in node:
        if key not in fields:
            hint = did_you_mean(str(key), fields) or f"known: {', '.join(sorted(fields))}"
            raise UserError(f"{prefix}{key}", node[key], f"unknown key; {hint}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in node:
            values[name] = convert(hints[name], _completed(node[name], field, hints[name]), f"{prefix}{name}", resolve)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{prefix}{name}", None, f"must be given: {describe(hints[name])}")
    try:
        return cls(**values)
    except UserError as error:
        # A Config checks itself without knowing where it hangs in the tree: name the key as the user wrote it.
        head, name = error.where.partition(".")[0], error.where.rpartition(".")[2]
        inner = name if name in fields else error.where if head in fields else None
        raise error if inner is None else UserError(f"{prefix}{inner}", error.value, error.allowed) from None
    except ValueError as error:
        raise UserError(where, cls.__name__, str(error)) from error


def _completed(value: Any, field: dataclasses.Field[Any], hint: Any) -> Any:
    """A part of which some keys are given: the others are as the whole has them by default, not as the part's class."""
    if not isinstance(value, Mapping) or TARGET in value:
        return value
    made = field.default_factory
    whole = made() if made is not dataclasses.MISSING and hint is made else field.default
    if type(whole) is not hint or not dataclasses.is_dataclass(whole):
        return value
    own = {f.name: getattr(whole, f.name) for f in dataclasses.fields(whole) if f.init}
    return {**{name: to_plain(item) for name, item in own.items() if item != _default(type(whole), name)}, **value}


def _default(cls: Any, name: str) -> Any:
    """What a class says that a field is when nothing is said."""
    field = next(field for field in dataclasses.fields(cls) if field.name == name)
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _union(hint: Any, value: Any, where: str, resolve: Resolve) -> Any:
    arms = [arm for arm in get_args(hint) if arm is not type(None)]
    if value is None and len(arms) < len(get_args(hint)):
        return None
    if len(arms) == 1:
        try:
            return convert(arms[0], value, where, resolve)
        except UserError as error:
            if error.where != where or error.allowed != f"must be {describe(arms[0])}":
                raise
            raise UserError(where, value, f"must be {describe(hint)}") from None
    alone = arm_of(hint, value)
    if alone is not None:  # of its kind: what is wrong with the value is what this arm says
        try:
            return convert(alone, value, where, resolve)
        except UserError as error:
            if error.where != where or error.allowed != f"must be {describe(alone)}":
                raise
    for arm in arms:
        try:
            return convert(arm, value, where, resolve)
        except UserError:
            continue
    raise UserError(where, value, f"must be {describe(hint)}")


def _sequence(hint: Any, value: Any, where: str, resolve: Resolve) -> Any:
    if not isinstance(value, list | tuple):
        raise UserError(where, value, f"must be {describe(hint)}")
    args = get_args(hint)
    if get_origin(hint) is tuple and args[-1] is not Ellipsis:
        if len(value) != len(args):
            raise UserError(where, value, f"must hold {len(args)} values")
        pairs = zip(args, value, strict=True)
        return tuple(convert(arg, item, f"{where}[{i}]", resolve) for i, (arg, item) in enumerate(pairs))
    items = [convert(args[0], item, f"{where}[{i}]", resolve) for i, item in enumerate(value)]
    return items if get_origin(hint) is list else tuple(items)


def _mapping(hint: Any, value: Any, where: str, resolve: Resolve) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise UserError(where, value, f"must be {describe(hint)}")
    key_hint, item_hint = get_args(hint)
    if item_hint is Component:
        known = [key for key, item in value.items() if _is_node(item)]
        for key, item in value.items():
            if not _is_node(item):
                allowed = f"unknown; {did_you_mean(str(key), known)}known: {', '.join(map(str, known)) or 'none'}"
                raise UserError(f"{where}.{key}", item, allowed)
    return {
        convert(key_hint, key, where, resolve): convert(item_hint, item, f"{where}.{key}", resolve)
        for key, item in value.items()
    }


def _scalar(hint: Any, value: Any, where: str) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is bool and isinstance(value, bool):
        return value
    if number and isinstance(value, int) and hint in (int, float):
        check_value(int, value, where)  # before float() meets an integer of a thousand digits
    if hint is int and number and float(value).is_integer():
        return int(value)
    if hint is float and number:
        return float(value)
    if hint is str and (isinstance(value, str) or (number and isinstance(value, int))):
        return _text(str(value), where)
    if hint is Path and isinstance(value, str | Path):
        if not str(value).strip():
            raise UserError(where, value, "must not be empty")
        return Path(_text(str(value), where))
    raise UserError(where, value, f"must be {describe(hint)}")


def _text(value: str, where: str) -> str:
    """Return `value`; raises UserError for what no file name, log or JSON file takes."""
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise UserError(where, value, "must be text in UTF-8, without null characters")
    return value
