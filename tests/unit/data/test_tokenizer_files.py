"""A tokenizer encodes as its tokenizer.json says, whatever lies beside it; copies load alike in plain transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from framework.data.tokenizer_files import (
    PROBE,
    copy_tokenizer,
    load_tokenizer,
    loads_alike,
    servable_tokenizer,
    vocabulary_size,
)
from framework.errors import UserError
from tests.tokenizers import build

# (tokenizer_class, model_type) that make transformers put a pre-tokenizer of its own in place of the file's
BESIDE = [("LlamaTokenizerFast", "llama"), ("LlamaTokenizerFast", "qwen3"), ("Qwen2Tokenizer", "qwen2"),
          ("PreTrainedTokenizerFast", "qwen2"), (None, "gpt2"), (None, "gemma3_text")]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("trained") / "tokenizer"
    build("v3", directory)
    return directory


def beside(trained: Path, directory: Path, name: str | None, model_type: str) -> Path:
    shutil.copytree(trained, directory)
    file = directory / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config.pop("tokenizer_class")
    file.write_text(json.dumps(config | ({"tokenizer_class": name} if name else {})))
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    return directory


def reference(directory: Path, text: str) -> list[int]:
    from tokenizers import Tokenizer

    return list(Tokenizer.from_file(str(directory / "tokenizer.json")).encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize(("name", "model_type"), BESIDE)
def test_what_lies_beside_it_changes_nothing(name: str | None, model_type: str, trained: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    base = beside(trained, tmp_path / "base", name, model_type)
    assert not loads_alike(base)  # this is the fault
    tokenizer = load_tokenizer(base)
    assert tokenizer(PROBE, add_special_tokens=False)["input_ids"] == reference(base, PROBE)
    assert tokenizer.decode(tokenizer(PROBE)["input_ids"], skip_special_tokens=True) == PROBE
    (tmp_path / "out").mkdir()
    shutil.copyfile(base / "config.json", tmp_path / "out" / "config.json")
    copy_tokenizer(base, tmp_path / "out")
    for directory in (tmp_path / "out", servable_tokenizer(base)):
        plain = AutoTokenizer.from_pretrained(directory)
        assert plain(PROBE, add_special_tokens=False)["input_ids"] == reference(base, PROBE)
        assert (plain.eos_token_id, plain.bos_token_id) == (tokenizer.eos_token_id, tokenizer.bos_token_id)
        assert plain.chat_template == tokenizer.chat_template


def test_a_copy_that_loads_alike_is_the_same_files(trained: Path, tmp_path: Path) -> None:
    base = beside(trained, tmp_path / "base", "PreTrainedTokenizerFast", "deepseek_v3")
    (tmp_path / "out").mkdir()
    shutil.copyfile(base / "config.json", tmp_path / "out" / "config.json")
    copy_tokenizer(base, tmp_path / "out")
    for file in base.iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    assert servable_tokenizer(base) == base


def test_a_tokenizer_that_is_not_there_or_damaged(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json: got 'no such file'"):
        load_tokenizer(tmp_path)
    shutil.copytree(trained, tmp_path / "cut")
    (tmp_path / "cut" / "tokenizer.json").write_text((trained / "tokenizer.json").read_text()[:-50])
    with pytest.raises(UserError, match="must be a tokenizer"):
        load_tokenizer(tmp_path / "cut")


def test_what_is_loaded_is_held_against_the_file(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedTokenizerFast

    class Other:
        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [0, 1, 2]}

    monkeypatch.setattr(PreTrainedTokenizerFast, "from_pretrained", lambda _: Other())
    with pytest.raises(UserError, match=r"tokenizer_config\.json: got \[0, 1, 2\]; must encode as .*token 0"):
        load_tokenizer(trained)


def test_the_vocabulary_ends_at_its_largest_id(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "gaps")
    file = tmp_path / "gaps" / "tokenizer.json"
    data = json.loads(file.read_text())
    data["model"]["vocab"]["far"] = 69_999
    file.write_text(json.dumps(data))
    tokenizer = load_tokenizer(tmp_path / "gaps")
    assert vocabulary_size(tokenizer) == 70_000 > len(tokenizer)
