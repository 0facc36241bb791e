"""One set of conversations out of several, mixed to given shares: R1's 800K (R1 v2 Table 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from framework.artifacts import ChatSet
from framework.bounds import NonNegativeFloat, bounded
from framework.data.chat_shards import Chat, read_chats
from framework.data.mixing import check_shares, mix, mixed_sizes
from framework.data.selection import Drop
from framework.errors import UserError
from framework.graph.nodes import Runtime
from framework.stages.sampled_chats import write_chat_set

SETS = ("reasoning", "general")


@dataclass(frozen=True)
@bounded
class MixConfig:
    """Shares of the sets, to each other. Defaults: R1's 600K of reasoning and 200K of general requests."""

    shares: Mapping[str, NonNegativeFloat] = field(default_factory=lambda: {"reasoning": 626_933, "general": 177_812})

    def __post_init__(self) -> None:
        check_shares(SETS, self.shares, "shares")


@dataclass(frozen=True)
class MixInputs:
    """What rejection sampling kept, and what V3's data are."""

    reasoning: ChatSet
    general: ChatSet


@dataclass(frozen=True)
class Mixed:
    """The mix; dropped.jsonl beside it says which conversations were more than their set's share."""

    chats: ChatSet


@dataclass(frozen=True)
class Mix:
    """The stage."""

    config: MixConfig

    def run(self, inputs: MixInputs, runtime: Runtime) -> Mixed:
        """Mix; raises UserError for shares that the sets cannot fill, or an id that stands in both."""
        sets = {name: list(read_chats(getattr(inputs, name).path / "train.jsonl")) for name in SETS}
        where = f"stage.{runtime.node}.shares"
        _check_ids(sets, where)
        sizes = mixed_sizes({name: len(chats) for name, chats in sets.items()}, self.config.shares, where)
        chats = mix(sets, sizes, runtime.seed)
        kept = {chat.id for chat in chats}
        dropped = [Drop(chat.id, "surplus") for found in sets.values() for chat in found if chat.id not in kept]
        told = ", ".join(f"{sizes[name]:,} of {len(found):,} {name}" for name, found in sets.items())
        return Mixed(write_chat_set(runtime, chats, dropped, told))


def _check_ids(sets: Mapping[str, list[Chat]], where: str) -> None:
    first: dict[str, str] = {}
    for name, chats in sets.items():
        for chat in chats:
            if chat.id in first:
                raise UserError(where, chat.id, f"is the id of a conversation of {first[chat.id]} and of {name}")
            first[chat.id] = name
