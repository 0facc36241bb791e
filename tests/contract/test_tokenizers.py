"""vLLM loads the tokenizer of a copy, and what it is given of another's checkpoint, as tokenizer.json says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from framework.data.tokenizer_files import PROBE, copy_tokenizer, load_tokenizer, servable_tokenizer
from tests.tokenizers import build


@pytest.mark.parametrize(("name", "model_type"), [("LlamaTokenizerFast", "llama"), ("Qwen2Tokenizer", "qwen2")])
def test_vllm_encodes_as_the_file_says(name: str, model_type: str, tmp_path: Path) -> None:
    from vllm.tokenizers import get_tokenizer

    base, copy = tmp_path / "base", tmp_path / "copy"
    build("v3", base)
    file = base / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "tokenizer_class": name}))
    (base / "config.json").write_text(json.dumps({"model_type": model_type}))
    copy.mkdir()
    shutil.copyfile(base / "config.json", copy / "config.json")
    copy_tokenizer(base, copy)
    expected = load_tokenizer(base)(PROBE)["input_ids"]
    assert get_tokenizer(str(base))(PROBE)["input_ids"] != expected  # this is the fault
    for directory in (copy, servable_tokenizer(base)):
        assert get_tokenizer(str(directory))(PROBE)["input_ids"] == expected
