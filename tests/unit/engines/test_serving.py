"""Talking to a checkpoint: what the model's own files say, what a conversation remembers, ports. No engine starts."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from framework import cli
from framework.engines import serving
from framework.engines.serving import Conversation, TalkOptions, chat_engine, chat_params, check_port
from framework.errors import UserError
from framework.graph.exports import EXPORTS, export_name
from framework.graph.found import find_checkpoint
from tests.contract.families import write_checkpoint
from tests.tokenizers import build


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "base"
    write_checkpoint("qwen3_tied", path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096, "dtype": "float32"}))
    own = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "max_new_tokens": 700}
    (path / "generation_config.json").write_text(json.dumps(own))
    return path


def test_the_models_own_files_say_how_unless_options_do(base: Path, tmp_path: Path) -> None:
    params, engine = chat_params(base, TalkOptions()), chat_engine(base, TalkOptions())
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens, params.n) == (0.6, 0.95, 20, 700, 1)
    assert (engine.dtype, engine.max_model_len, engine.tensor_parallel_size) == ("float32", 4096, 1)
    options = TalkOptions(0.0, 0.5, 64, dtype="bfloat16", tensor_parallel=2, max_model_len=256, seed=3)
    params, engine = chat_params(base, options), chat_engine(base, options)
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens, params.seed) == (0.0, 0.5, 0, 64, 3)
    assert (engine.dtype, engine.max_model_len, engine.tensor_parallel_size) == ("bfloat16", 256, 2)
    (tmp_path / "config.json").write_bytes((base / "config.json").read_bytes())
    plain = chat_params(tmp_path, TalkOptions())
    assert (plain.temperature, plain.top_p, plain.top_k, plain.max_tokens) == (1.0, 1.0, 0, 2048)


def test_a_conversation_is_remembered_until_it_outgrows_the_context(tmp_path: Path) -> None:
    tokenizer = build("chatml", tmp_path)
    talk = Conversation(tokenizer, "Be brief.", room=120)
    assert tokenizer.decode(talk.ask("first question")).count("first question") == 1
    talk.answered("first answer")
    asked = tokenizer.decode(talk.ask("second question"))
    assert [text in asked for text in ("Be brief.", "first question", "first answer", "second question")] == [True] * 4
    talk.answered("second answer")
    while not talk.forgotten:
        asked = tokenizer.decode(ids := talk.ask("more"))
        assert len(ids) <= 120
        talk.answered("yes")
    assert "first question" not in asked
    assert "Be brief." in asked
    with pytest.raises(UserError, match=r"this line: got .* tokens'; must be at most 120"):
        talk.ask("long " * 200)
    assert tokenizer.decode(talk.ask("and now?")).count("and now?") == 1  # a line too long ends nothing


def test_control_tokens_of_a_user_stay_text(tmp_path: Path) -> None:
    tokenizer = build("chatml", tmp_path)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    plain = Conversation(tokenizer, "", 500).ask("hello").count(end)
    assert Conversation(tokenizer, "", 500).ask("hello <|im_end|>").count(end) == plain


def test_a_taken_port_is_one_line_at_once(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["serve", str(base), "--port", str(port)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"framework: --port: got {port}; must be a free port of 127.0.0.1: Address already in use"
    check_port("127.0.0.1", port)
    with pytest.raises(UserError, match="--port: got 70000"):
        check_port("127.0.0.1", 70000)
    with pytest.raises(UserError, match=r"--host: got 'nowhere\.invalid'"):
        check_port("nowhere.invalid", 8000)


def test_serve_gives_vllm_the_runs_name_its_dtype_and_what_is_passed_on(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, command: given.append(command))
    port = socket.socket()
    port.bind(("127.0.0.1", 0))
    free = str(port.getsockname()[1])
    port.close()
    command = [
        "serve",
        str(base),
        "--port",
        free,
        "--tensor-parallel",
        "2",
        "--",
        "--eager",
        "--swap",
        "1",
    ]
    assert cli.main(command) == 0
    ((*words,),) = given
    pairs = dict(itertools.pairwise(words))
    assert (pairs["--served-model-name"], pairs["--dtype"], pairs["--tensor-parallel-size"]) == ("base", "float32", "2")
    assert words[-3:] == ["--eager", "--swap", "1"]
    assert f"base (a directory): {base}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--temperature", "3"], "--temperature: got 3.0; must be 0 to 2 (0: greedy)"),
        (["--top-p", "0"], "--top-p: got 0.0; must be above 0, at most 1"),
        (["--max-tokens", "0"], "--max-tokens: got 0; must be at least 1"),
        (["--dtype", "int4"], "--dtype: got 'int4'; "),
        (["--max-model-len", "9000"], "--max-model-len: got 9000; must be at most 4096, the model's context"),
        (["--max-tokens", "4096"], "--max-tokens: got 4096; must be below the context of 4096"),
        (["--step", "3"], "--step: got 3; goes with a run"),
    ],
)
def test_wrong_options_are_one_line(
    options: list[str], reason: str, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(coroutine: Any) -> None:
        coroutine.close()
        raise AssertionError("an engine would start")

    monkeypatch.setattr(serving.asyncio, "run", run)
    assert cli.main(["chat", str(base), *options]) == 2
    assert reason in capsys.readouterr().err.splitlines()[-1]


def test_vllm_is_quiet_from_its_first_import_on() -> None:
    words = "import sys; from framework.commands.models import _hush; _hush('ERROR'); import vllm.triton_utils"
    found = subprocess.run([sys.executable, "-c", words], check=True, capture_output=True, text=True)
    assert (found.stdout, found.stderr) == ("", "")


def test_a_run_is_found_by_its_name_and_a_step(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    export = tmp_path / "runs" / "mine" / "state" / "grpo-0123456789ab" / EXPORTS / export_name(20)
    export.parent.mkdir(parents=True)
    os.symlink(base, export)
    (tmp_path / "runs" / "mine" / "artifacts").mkdir()
    found = find_checkpoint("mine", step=20)
    assert (found.name, found.what) == ("mine-20", "stage grpo after 20 steps")
    assert found.path.samefile(base)
    with pytest.raises(UserError, match=r"--step: got 30; .*has 20"):
        find_checkpoint("mine", step=30)
    with pytest.raises(UserError, match="no finished checkpoint yet"):
        find_checkpoint("mine")
    with pytest.raises(UserError, match="checkpoint: got 'mien'; did you mean 'mine'"):
        find_checkpoint("mien")
