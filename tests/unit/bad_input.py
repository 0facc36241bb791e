"""What the tests of bad input share: a case is what is wrong, the command line, and what the one line must say.

`{tmp}` is a fresh directory with a finished run in {tmp}/runs/toy; `prepare` may put more into it before the command
runs. Exit code 2, one clear line on stderr, nothing created or overwritten.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest

from framework.cli import main
from framework.config import RunConfig, compose
from framework.convert import to_plain
from framework.graph.store import Store

TOY_CONF = Path(__file__).parent / "conf"
TOY = ("job=toy", "~recipe", "~data", "~engine", "~algorithm", "~reward", "~tracking", "runs_dir={tmp}/runs")


def nothing(tmp: Path) -> None:
    """The directory serves as it is."""


def write(name: str, text: str) -> Callable[[Path], None]:
    """Return a `prepare` that puts a file there."""

    def prepare(tmp: Path) -> None:
        (tmp / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp / name).write_text(text)

    return prepare


def damaged_checkpoint(tmp: Path) -> None:
    """A finished checkpoint that lost bytes afterwards."""
    from framework.artifacts import Checkpoint, write_manifest

    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        write(f"checkpoint/{name}", "{}      ")(tmp)
    write_manifest(Checkpoint(tmp / "checkpoint"), "stage", {}, {}, "")
    (tmp / "checkpoint" / "model.safetensors").write_text("{}")


def safetensors() -> bytes:
    """A safetensors file of one tensor of two zeros."""
    header = json.dumps({"weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


def checkpoint(name: str = "checkpoint", **files: str | bytes) -> Callable[[Path], None]:
    """Return a `prepare` that puts a small whole checkpoint without a manifest there, some files replaced."""
    whole: dict[str, str | bytes] = {
        "config": json.dumps({"vocab_size": 3}),
        "tokenizer": json.dumps({"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "<s>"}]}),
        "weights": safetensors(),
    }
    names = {"config": "config.json", "tokenizer": "tokenizer.json", "weights": "model.safetensors"}
    names["index"] = "model.safetensors.index.json"

    def prepare(tmp: Path) -> None:
        (tmp / name).mkdir()
        for key, content in (whole | files).items():
            (tmp / name / names[key]).write_bytes(content.encode() if isinstance(content, str) else content)

    return prepare


def prompt_files(train: str | None, heldout: str | None = None) -> Callable[[Path], None]:
    """Return a `prepare` that puts train.jsonl and heldout.jsonl there; None for the first: no such file."""

    def prepare(tmp: Path) -> None:
        if train is not None:
            write("train.jsonl", train)(tmp)
        write("heldout.jsonl", heldout or prompt_line("held out", "What is 3 + 4?"))(tmp)

    return prepare


def prompt_line(key: str, text: str, **more: object) -> str:
    """One line of a prompt file."""
    return json.dumps({"id": key, "prompt": text, "answer": "7", "task": "chain_sum", **more}) + "\n"


def full_disk(name: str) -> Callable[[Path], None]:
    """Return a `prepare` after which writing file `name` meets a full disk: the kernel's own ENOSPC."""

    def prepare(tmp: Path) -> None:
        (tmp / name).symlink_to("/dev/full")

    return prepare


@dataclass(frozen=True)
class Case:
    """One way to be wrong."""

    name: str
    command: tuple[str, ...]
    says: tuple[str, ...]  # each must be in the one line
    prepare: Callable[[Path], None] = nothing


def run(*overrides: str) -> tuple[str, ...]:
    """`framework run` of the toy job."""
    return ("run", *TOY, *overrides, "--config-dir", str(TOY_CONF))


def r1_zero(*overrides: str) -> tuple[str, ...]:
    """`framework run` of the shipped job."""
    return ("run", "job=r1_zero", "runs_dir={tmp}/runs", *overrides)


def own_prompts(*overrides: str) -> tuple[str, ...]:
    """`framework run` of the shipped job on the user's prompts."""
    files = ("data.train_prompts_file={tmp}/train.jsonl", "data.heldout_prompts_file={tmp}/heldout.jsonl")
    return r1_zero(*files, *overrides)


def sft(*overrides: str) -> tuple[str, ...]:
    """`framework run` of fine-tuning on the user's conversations."""
    files = ("data.train={tmp}/chats.jsonl", "base={tmp}/base")
    return ("run", "job=sft", "runs_dir={tmp}/runs", *files, *overrides)


def grpo(*overrides: str) -> tuple[str, ...]:
    """`framework run` of GRPO on the user's model and prompts."""
    return ("run", "job=grpo", "runs_dir={tmp}/runs", "base={tmp}/base", "data.train={tmp}/train.jsonl", *overrides)


def grpo_files(*lines: str) -> Callable[[Path], None]:
    """A file of prompts, and what is looked at of a base checkpoint before a run."""

    def prepare(tmp: Path) -> None:
        sft_files()(tmp)
        question = {"question": "What is 1 + 2?", "answer": "1 + 2 = 3\n#### 3"}
        (tmp / "train.jsonl").write_text("\n".join(lines or [json.dumps(question)]))

    return prepare


def write_tokenizer(directory: Path) -> None:
    """A tokenizer of one token, with a chat template."""
    model = {"type": "WordLevel", "vocab": {"<s>": 0}, "unk_token": "<s>"}
    (directory / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}{% endif %}"
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<s>", "chat_template": template}))


def sft_files(*lines: str, model_type: str = "deepseek_v3") -> Callable[[Path], None]:
    """A file of conversations, and what is looked at of a base checkpoint before a run."""

    def prepare(tmp: Path) -> None:
        (tmp / "base").mkdir()
        config = {"model_type": model_type, "hidden_size": 128, "num_hidden_layers": 3}
        (tmp / "base" / "config.json").write_text(json.dumps(config))
        write_tokenizer(tmp / "base")
        (tmp / "chats.jsonl").write_text("\n".join(lines))

    return prepare


CHAT = json.dumps({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]})
GOOD = prompt_line("one", "What is 1 + 2?")


def check_case(case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Run the command and look at what it says and leaves behind."""
    finished_run(tmp_path)
    case.prepare(tmp_path)
    before = snapshot(tmp_path)
    capfd.readouterr()
    code = main([item.replace("{tmp}", str(tmp_path)) for item in case.command])
    out, err = capfd.readouterr()
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("framework: ")
    for part in case.says:
        assert part.replace("{tmp}", str(tmp_path)) in err
    assert snapshot(tmp_path) == before


@cache
def _toy() -> RunConfig:
    return compose(TOY[:-1], TOY_CONF)


def finished_run(tmp: Path) -> None:
    """Put the toy job's run directory there, as a run of the unchanged configuration leaves it."""
    config = replace(_toy(), runs_dir=tmp / "runs")
    Store(config.run_dir).open_run(to_plain(config))
    (config.run_dir / "artifacts").mkdir()


def snapshot(tmp: Path) -> dict[str, str]:
    """Every path under `tmp` with a hash of its content."""
    return {
        os.path.relpath(path, tmp): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "directory"
        for path in sorted(tmp.rglob("*"))
        if "owner" not in path.parts  # who had it last
    }
