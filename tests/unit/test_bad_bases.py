"""Bad base models, row by row: what is wrong with one is a line of `plan`, before anything is evaluated or trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from framework.cli import main
from tests.contract.families import write_checkpoint
from tests.unit.bad_input import prompt_line

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3 and prompts for it."""
    folder = tmp_path_factory.mktemp("base")
    write_checkpoint("qwen3", folder / "base")
    text(config={"max_position_embeddings": 4096})(folder / "base")
    (folder / "prompts.jsonl").write_text("".join(prompt_line(f"p{i}", f"What is {i} + 1?") for i in range(64)))
    return folder


def text(name: str = "config.json", content: str | bytes | None = None, **changes: Any) -> Change:
    """Write a file, or change keys of the JSON object in it."""

    def change(base: Path) -> None:
        if content is not None:
            (base / name).write_bytes(content.encode() if isinstance(content, str) else content)
        for file, keys in changes.items():
            place = base / f"{file}.json"
            place.write_text(json.dumps(json.loads(place.read_text()) | keys))

    return change


def without(name: str, instead: str = "") -> Change:
    """Take a file away, or put a folder, or a file of another name, in its place."""

    def change(base: Path) -> None:
        (base / name).unlink()
        if instead == name:
            (base / name).mkdir()
        elif instead:
            (base / instead).write_text("{}")

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """Change the tensors."""

    def changed(base: Path) -> None:
        tensors = load_file(base / "model.safetensors")
        change(tensors)
        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})

    return changed


def cut(size: int) -> Change:
    """Keep the weights' first bytes, or all but so many."""
    return lambda base: (base / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:size])


INDEX = "model.safetensors.index.json"
NAMES = ("config.json", "generation_config.json", "tokenizer_config.json")
CASES: dict[str, tuple[Change, str, str]] = {
    **{f"{name}: not JSON": (text(name, "{"), name, "must be JSON") for name in NAMES},
    **{f"{name}: empty": (text(name, ""), name, "must be JSON") for name in NAMES},
    **{f"{name}: a list": (text(name, "[]"), name, "got 'list'; must be a JSON object") for name in NAMES},
    **{f"{name}: Latin-1": (text(name, b'{"a": "\xe9"}'), name, "must be JSON") for name in NAMES},
    **{f"{name}: a folder": (without(name, name), name, "Is a directory") for name in NAMES},
    "no config": (without("config.json"), "config.json", "no such file"),
    "no tokenizer": (without("tokenizer.json"), "tokenizer.json", "a tokenizer needs it"),
    "no weights": (without("model.safetensors"), "base", "no *.safetensors file"),
    "weights of another kind": (without("model.safetensors", "pytorch_model.bin"), "base", "but pytorch_model.bin"),
    "an adapter alone": (without("model.safetensors", "adapter_config.json"), "base", "but adapter_config.json"),
    "weights that are a folder": (without("model.safetensors", "model.safetensors"), "model.safetensors", "no file"),
    "weights cut off": (cut(-9), "model.safetensors", "cut off"),
    "a header cut off": (cut(50), "model.safetensors", "an unreadable header"),
    "a header of 2^64 bytes": (text("model.safetensors", b"\xff" * 8 + b"{}"), "model.safetensors", "an unreadable"),
    "a missing shard": (text(INDEX, '{"weight_map": {"a": "model-2.safetensors"}}'), "model-2.safetensors", INDEX),
    "an index of no files": (text(INDEX, '{"weight_map": {"a": 5}}'), INDEX, "which file"),
    "an index of a list": (text(INDEX, '{"weight_map": []}'), INDEX, "which file"),
    "an index that leads out": (text(INDEX, '{"weight_map": {"a": "../x.safetensors"}}'), INDEX, "which file"),
    "a tensor that is not where the index says": (
        text(INDEX, '{"weight_map": {"a.weight": "model.safetensors"}}'), "a.weight", "says that it is there",
    ),
    "a missing tensor": (weights(lambda t: t.pop("model.norm.weight")), "model.norm.weight", "no such tensor"),
    "an unknown tensor": (weights(lambda t: t.update(x=torch.ones(2))), "x", "an unknown tensor"),
    "a tensor of another shape": (
        weights(lambda t: t.update({"model.norm.weight": torch.ones(7)})), "model.norm.weight", "must be (64,)",
    ),
    "a quantised tensor": (
        weights(lambda t: t.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)})), "model.norm.weight", "I8",
    ),
    "names of an adapter": (
        weights(lambda t: [t.update({f"base_model.{name}": t.pop(name)}) for name in list(t)]), "", "no such tensor",
    ),
    "a quantised model": (text(config={"quantization_config": {"quant_method": "gptq"}}), "config.json", "fp8"),
    "heads that the weights do not have": (text(config={"num_attention_heads": 4}), "q_proj", "by config.json"),
    "a vocabulary that the weights do not have": (text(config={"vocab_size": 999}), "embed_tokens", "by config.json"),
    "a vocabulary smaller than the tokenizer": (text(config={"vocab_size": 9}), "tokenizer.json", "does not match"),
    "families in a list": (text(config={"model_type": ["qwen3"]}), "config.json", "a family that transformers knows"),
    "heads of none": (text(config={"num_attention_heads": 0}), "num_attention_heads: got 0", "must be at least 1"),
    "a context of less than nothing": (
        text(config={"max_position_embeddings": -1}), "max_position_embeddings: got -1", "must be at least 1",
    ),
    "a longest text that is a text": (
        text(tokenizer_config={"model_max_length": "x"}), "tokenizer.json", "must be a tokenizer",
    ),
    "no such family": (text(config={"model_type": "nope"}), "config.json", "a family that transformers knows"),
    "a rotary embedding of no kind": (
        text(config={"rope_parameters": {"rope_type": "mrope"}}), "config.json", "must be one of default, linear",
    ),
    "heads that vLLM's CPU build has no kernel for": (
        text(config={"head_dim": 16}), "model.head_dim: got 16", "must be one of 32, 48",
    ),
    "a size that is a text": (text(config={"hidden_size": "64"}), "config.json", "hidden_size"),
    "tokens beyond the model": (
        text(tokenizer={"added_tokens": [{"id": 5000, "content": "<x>", "special": True, "single_word": False,
                                          "lstrip": False, "rstrip": False, "normalized": False}]}),
        "tokenizer.json", "5001 tokens",
    ),
    "an end token that is no token": (text(tokenizer_config={"eos_token": "<end>"}), "eos_token", "never trained"),
    "a template that is no jinja": (text("chat_template.jinja", "{% for %}"), "messages", "the chat template says"),
    "a template that never ends": (
        text("chat_template.jinja", "{% for i in range(10 ** 9) %}x{% endfor %}"), "messages", "chat template says",
    ),
    "a template that drops what is said": (text("chat_template.jinja", "x"), "messages[0]", "drops it"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_base(name: str, sound: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    change, where, says = CASES[name]
    shutil.copytree(sound / "base", tmp_path / "base")
    change(tmp_path / "base")
    command = ["plan", "job=grpo", f"base={tmp_path / 'base'}", f"data.train={sound / 'prompts.jsonl'}"]
    assert main([*command, f"runs_dir={tmp_path / 'runs'}"]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1), err
    assert where in err.partition("; ")[0], err
    assert says in err


def test_a_sound_base_is_planned(sound: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Also with settings for generating that transformers would not save, and its writer's kernels and -1 for none."""
    shutil.copytree(sound / "base", tmp_path / "base")
    text(config={"_attn_implementation": "flash_attention_2", "pad_token_id": -1})(tmp_path / "base")
    text("generation_config.json", '{"do_sample": false, "temperature": 0.7}')(tmp_path / "base")
    command = ["plan", "job=grpo", f"base={tmp_path / 'base'}", f"data.train={sound / 'prompts.jsonl'}"]
    assert main([*command, f"runs_dir={tmp_path / 'runs'}"]) == 0, capfd.readouterr().err


def test_a_job_that_makes_its_own_base_takes_none(sound: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "job=r1_zero", f"base={sound / 'base'}"]) == 2
    assert "must be left out: job r1_zero makes its own base model" in capfd.readouterr().err
