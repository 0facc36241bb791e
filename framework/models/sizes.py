"""The sizes that a published config.json must name for a model to be built of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from framework.errors import UserError

SIZES = (
    "hidden_size",
    "vocab_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)


def check_sizes(file: Path, written: Mapping[str, Any]) -> None:
    """Raise UserError, naming file and key, for a size below 1."""
    for key in SIZES:
        if isinstance(written.get(key), int) and written[key] < 1:
            raise UserError(f"{file}: {key}", written[key], "must be at least 1")
