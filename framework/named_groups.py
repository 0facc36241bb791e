"""A stage's node may name a file of a group: `stage.rlhf.algorithm: ppo`, and keys beneath it may be set as well."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

BY_NAME = ("algorithm", "reward")  # groups whose files a stage's node may name
_BENEATH = re.compile(rf"([+~]*)stage\.(\w+)\.({'|'.join(BY_NAME)})\.(.+)", re.DOTALL)

Compose = Callable[[Sequence[str]], dict[str, Any]]
Beneath = Mapping[tuple[str, str], Sequence[str]]  # (stage, group) -> overrides of the group's own keys


def compose_beside_names(overrides: Sequence[str], compose: Compose) -> tuple[dict[str, Any], Beneath]:
    """Compose all but the overrides beneath a name, which would take the name's place; return them beside it."""
    found = [_BENEATH.fullmatch(override) for override in overrides]
    node = compose([override for override, match in zip(overrides, found, strict=True) if match is None])
    if not any(found):
        return node, {}
    stages, beneath, others = node.get("stage") or {}, defaultdict[tuple[str, str], list[str]](list), list[str]()
    for override, match in zip(overrides, found, strict=True):
        if match is not None and isinstance((stages.get(match[2]) or {}).get(match[3]), str):
            beneath[match[2], match[3]].append(f"{match[1]}{match[3]}.{match[4]}")
        else:
            others.append(override)
    return compose(others), beneath


def fill_names(stages: Mapping[str, Any], beneath: Beneath, compose: Compose) -> None:
    """Put what a group's file has, and what was set beneath it, in the place of each name."""
    for stage, item in stages.items():
        for group in BY_NAME:
            if isinstance(item, dict) and isinstance(item.get(group), str):
                item[group] = compose([f"{group}={item[group]}", *beneath.get((stage, group), ())])[group]
