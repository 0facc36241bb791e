"""What others' checkpoints bring along must not fail after training: stale shards, generation settings, file modes."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from framework.models.public_layout import (
    INDEX,
    dequantised,
    savable_generation_config,
    save_tensors,
    stored_tensors,
    without_stale_copies,
)

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Two shards; the second also holds an old copy of the first one's tensor, of another shape."""
    directory = tmp_path / "base"
    directory.mkdir()
    save_file({"a": torch.ones(2)}, directory / FIRST)
    save_file({"a": torch.zeros(3), "b": torch.full((2,), 2.0)}, directory / SECOND)
    (directory / INDEX).write_text(json.dumps({"weight_map": {"a": FIRST, "b": SECOND}}))
    (directory / "config.json").write_text("{}")
    (directory / "tokenizer.json").write_text("{}")
    return directory


def test_the_index_says_which_copy_counts(sharded: Path, tmp_path: Path) -> None:
    tensors = stored_tensors(sharded)
    assert {name: tensor[...].tolist() for name, tensor in tensors.items()} == {"a": [1.0, 1.0], "b": [2.0, 2.0]}
    for clean in (dequantised, without_stale_copies):
        copy = clean(sharded, tmp_path / clean.__name__)
        assert copy != sharded
        assert load_file(copy / SECOND).keys() == {"b"}
        assert load_file(copy / FIRST)["a"].tolist() == [1.0, 1.0]
        assert clean(copy, tmp_path / "again") == copy  # nothing stale is left
        assert (copy / "tokenizer.json").is_file()


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_weights_are_as_readable_as_the_umask_says(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        save_tensors({"a": torch.ones(2)}, tmp_path / "x.safetensors")
        save_tensors({"a": torch.zeros(2)}, tmp_path / "x.safetensors")  # over an older one
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o666 & ~mask
    assert load_file(tmp_path / "x.safetensors")["a"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("published", "kept"),
    [
        ({"temperature": 0.9, "top_p": 0.6, "bos_token_id": 1}, {"do_sample": True, "temperature": 0.9, "top_p": 0.6}),
        ({"do_sample": True, "temperature": 0.6, "eos_token_id": [1, 2]}, {"temperature": 0.6, "eos_token_id": [1, 2]}),
        (
            {"num_return_sequences": 4, "num_beams": 1, "eos_token_id": 7},
            {"num_return_sequences": 4, "do_sample": True},
        ),
        ({"num_return_sequences": 4, "num_beams": 2, "temperature": -1.0, "eos_token_id": 7}, {"eos_token_id": 7}),
        ({"temperature": -1.0, "eos_token_id": 7}, {"eos_token_id": 7}),
        ({"watermarking_config": 5, "eos_token_id": 7}, {"eos_token_id": 7}),
        ({"eos_token_id": 7}, {"eos_token_id": 7, "do_sample": None}),
    ],
)
def test_generation_settings_can_be_saved_again(
    published: dict[str, Any], kept: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(published))
    found = savable_generation_config(tmp_path)
    found.save_pretrained(tmp_path / "saved")
    assert {key: getattr(found, key) for key in kept} == kept


def test_settings_that_load_are_refused_when_saved_without_the_repair(tmp_path: Path) -> None:
    from transformers import GenerationConfig

    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 0.9}))
    with pytest.raises(ValueError, match="invalid"):
        GenerationConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "saved")
    savable_generation_config(tmp_path).save_pretrained(tmp_path / "saved")
