"""Bad files and directories, row by row: data, checkpoints, runs. See tests/unit/bad_input.py."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.bad_input import (
    CHAT,
    GOOD,
    Case,
    check_case,
    checkpoint,
    damaged_checkpoint,
    full_disk,
    grpo,
    grpo_files,
    own_prompts,
    prompt_files,
    prompt_line,
    r1_zero,
    run,
    safetensors,
    sft,
    sft_files,
    write,
)

LINE = b'{"prompt": "What is 1 + 2?", "answer": "3"}\n'


def placed(place: Callable[[Path], object]) -> Callable[[Path], None]:
    """Return a `prepare` for GRPO on a user's model, which places something more."""

    def prepare(tmp: Path) -> None:
        grpo_files()(tmp)
        place(tmp)

    return prepare


def raw(name: str, content: bytes = LINE) -> Callable[[Path], None]:
    """Return such a `prepare` that writes these bytes."""
    return placed(lambda tmp: (tmp / name).write_bytes(content))


CASES = (
    Case("report of no run", ("report", "{tmp}/nope"), ("nope",)),
    Case("chat without a checkpoint", ("chat", "{tmp}/nope"), ("checkpoint: got", "must be a checkpoint directory")),
    Case("chat with an empty directory", ("chat", "{tmp}"), ("config.json", "a Checkpoint needs config.json")),
    Case("chat with a run that has no checkpoint", ("chat", "{tmp}/runs/toy"), ("no finished checkpoint yet",)),
    Case("damaged checkpoint", ("serve", "{tmp}/checkpoint"), ("model.safetensors", "damaged"), damaged_checkpoint),
    Case(
        "run with a damaged manifest",
        ("chat", "{tmp}/runs/toy"),
        ("runs/toy/artifacts/train-1/checkpoint/manifest.json", "must be a manifest as the framework writes it"),
        write("runs/toy/artifacts/train-1/checkpoint/manifest.json", '{"type": "Checkp'),
    ),
    Case(
        "checkpoint with cut-off weights",
        ("chat", "{tmp}/checkpoint"),
        ("model.safetensors: got", "cut off"),
        checkpoint(weights=safetensors()[:-1]),
    ),
    Case(
        "checkpoint with unreadable weights",
        ("serve", "{tmp}/checkpoint"),
        ("model.safetensors", "an unreadable header"),
        checkpoint(weights="<html>404</html>"),
    ),
    Case(
        "checkpoint that lacks a shard",
        ("chat", "{tmp}/checkpoint"),
        ("model-2.safetensors", "no such file"),
        checkpoint(index=json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}})),
    ),
    Case(
        "checkpoint without weights",
        ("chat", "{tmp}/checkpoint"),
        ("no *.safetensors file",),
        lambda tmp: (checkpoint()(tmp), (tmp / "checkpoint" / "model.safetensors").unlink())[-1],
    ),
    Case(
        "checkpoint with a damaged config",
        ("serve", "{tmp}/checkpoint"),
        ("config.json", "must be JSON"),
        checkpoint(config='{"vocab_size": 3'),
    ),
    Case(
        "checkpoint with another model's tokenizer",
        ("chat", "{tmp}/checkpoint"),
        ("tokenizer.json: got '3 tokens'", "does not match the model, whose vocab_size is 2"),
        checkpoint(config=json.dumps({"vocab_size": 2})),
    ),
    Case(
        "edge from a damaged checkpoint",
        run("job._target_=tests.unit.toy_graph.build_on_base", "stage.train.base={tmp}/checkpoint"),
        ("{tmp}/checkpoint/model.safetensors", "damaged"),
        damaged_checkpoint,
    ),
    Case(
        "edge from a checkpoint with another model's tokenizer",
        run("job._target_=tests.unit.toy_graph.build_on_base", "stage.train.base={tmp}/checkpoint"),
        ("tokenizer.json", "does not match the model"),
        checkpoint(config=json.dumps({"vocab_size": 2})),
    ),
    Case("report of a directory that is no run", ("report", "{tmp}"), ("{tmp}",)),
    Case(
        "unknown task",
        r1_zero("data.tasks.lego_chain={}", "data.documents_files=[{tmp}/corpus.jsonl]"),
        ("data.tasks.lego_chain", "must name a reasoning-gym data set"),
    ),
    Case(
        "prompt of a task without a verifier",
        own_prompts(),
        ("prompt one: task: got 'chain_summ'", "did you mean 'chain_sum'?", "one of math_tasks"),
        prompt_files(json.dumps({"id": "one", "prompt": "What is 1 + 2?", "answer": "3", "task": "chain_summ"})),
    ),
    Case("missing data file", own_prompts(), ("{tmp}/train.jsonl: got 'no such file'",), prompt_files(None)),
    Case("empty data file", own_prompts(), ("{tmp}/train.jsonl: got 'an empty file'",), prompt_files("")),
    Case(
        "corrupt data file",
        own_prompts(),
        ("{tmp}/train.jsonl:2", "is not JSON"),
        prompt_files(GOOD + '{"id": "two", "prom'),
    ),
    Case(
        "data file without answers",
        own_prompts(),
        ("{tmp}/train.jsonl:1: got 'columns id, prompt, anwser'", "did you mean 'anwser'?", "data.columns={answer:"),
        prompt_files(json.dumps({"id": "one", "prompt": "What is 1 + 2?", "anwser": "3"})),
    ),
    Case(
        "data file that names a prompt twice",
        own_prompts(),
        ("{tmp}/train.jsonl:2: id: got 'one'", "first used at {tmp}/train.jsonl:1"),
        prompt_files(GOOD + GOOD),
    ),
    Case(
        "held-out prompt among the train prompts",
        own_prompts(),
        ("held-out prompt", "also in the train prompts"),
        prompt_files(GOOD, prompt_line("other", "What is 1 + 2?")),
    ),
    Case(
        "prompt longer than the context",
        own_prompts(),
        ("{tmp}/train.jsonl: prompt long: tokens", "must be at most 192", "256"),
        prompt_files(GOOD + prompt_line("long", "one and " * 200)),
    ),
    Case(
        "tokenized prompt longer than the context",
        own_prompts(),
        ("{tmp}/heldout.jsonl: prompt long: tokens: got 'at least 193'",),
        prompt_files(GOOD, prompt_line("long", "What?", token_ids=[5] * 193)),
    ),
    Case(
        "tokenized prompt with a token beyond the vocabulary",
        own_prompts(),
        ("{tmp}/train.jsonl: prompt far: token: got 70000; must be 0 to 511",),
        prompt_files(GOOD + prompt_line("far", "What?", token_ids=[5, 70000])),
    ),
    Case(
        "prompt that asks for a reward that the run lacks",
        own_prompts(),
        ("{tmp}/train.jsonl:1: rewards: got 'acuracy'", "did you mean 'accuracy'?"),
        prompt_files(prompt_line("one", "What is 1 + 2?", rewards=["acuracy"])),
    ),
    Case("no conversations", ("run", "job=sft", "base={tmp}/base"), ("data.train: got None",), sft_files()),
    Case("no base", ("run", "job=sft", "data.train={tmp}/chats.jsonl"), ("base: got None",), sft_files(CHAT)),
    Case("no such conversations", sft("data.train={tmp}/chat.jsonl"), ("did you mean 'chats.jsonl'",), sft_files()),
    Case("no such base", sft("base={tmp}/bases"), ("base: got '{tmp}/bases'", "hub id"), sft_files(CHAT)),
    Case(
        "base of another model",
        sft("model=v3_tiny"),
        ("model: got 'v3_tiny'", "config.json says qwen2"),
        sft_files(model_type="qwen2"),
    ),
    Case(
        "base of other sizes",
        sft("model=v3_tiny"),
        ("model: got 'v3_tiny'", "has first_k_dense_replace=1, but", "says 3"),
        sft_files(CHAT),
    ),
    Case("an encoder", sft(), ("config.json: got 'model_type=bert'", "an encoder"), sft_files(CHAT, model_type="bert")),
    Case("no train prompts", grpo("data.train={tmp}/none.jsonl"), ("none.jsonl", "no such file"), grpo_files()),
    Case("no answer", grpo(), ("train.jsonl:1", "answer"), grpo_files('{"question": "1 + 1?"}')),
    Case("nothing held out", grpo(), ("data.heldout_share", "name data.heldout"), grpo_files()),
    Case("no base for GRPO", ("run", "job=grpo", "data.train={tmp}/train.jsonl"), ("base: got None",), grpo_files()),
    Case(
        "bad conversation",
        sft(),
        ("{tmp}/chats.jsonl:2: messages", "a role and a content"),
        sft_files(CHAT, '{"messages": ["hi"]}'),
    ),
    Case(
        "all conversations set apart",
        sft("data.validation_chats=1"),
        ("data.validation_chats", "less than the 1"),
        sft_files(CHAT),
    ),
    Case(
        "warm-up as long as fine-tuning",
        sft("stage.sft.warmup_steps=1"),
        ("stage.sft.warmup_steps", "the 1 steps"),
        sft_files(CHAT),
    ),
    *(
        Case(f"prompts: {name}", grpo(), (f"{{tmp}}/train.jsonl{at}: got", *says), raw("train.jsonl", content))
        for name, content, at, *says in (
            ("UTF-16", LINE.decode().encode("utf-16"), ":1", "is not UTF-8"),
            ("Latin-1", LINE + '{"prompt": "é?", "answer": "1"}'.encode("latin-1"), ":2", "is not UTF-8"),
            ("nothing but blanks", b"\n  \n", "", "an empty file"),
            ("a number of 5,000 digits", LINE + b'{"prompt": "x?", "answer": ' + b"9" * 5000 + b"}", ":2", "thousands"),
            ("NaN", LINE + b'{"prompt": "x?", "answer": NaN}', ":2", "holds NaN, which is no number"),
            ("an infinity", LINE + b'{"prompt": "x?", "answer": "1", "level": -Infinity}', ":2", "holds -Infinity"),
            ("a number beyond all", LINE + b'{"prompt": "x?", "answer": 1e400}', ":2: answer", "a text or a number"),
            ("a field twice", LINE + b'{"prompt": "x?", "answer": "1", "answer": "2"}', ":2", "field 'answer' twice"),
            ("a scalar", LINE + b"5", ":2", "must be a JSON object"),
            ("a list for an answer", LINE + b'{"prompt": "x?", "answer": [1]}', ":2: answer", "a text or a number"),
            ("truth for an answer", LINE + b'{"prompt": "x?", "answer": true}', ":2: answer", "a text or a number"),
            ("an empty question", LINE + b'{"prompt": " ", "answer": "1"}', ":2: prompt", "must not be empty"),
            ("half a surrogate pair", LINE + b'{"prompt": "\\ud800", "answer": "1"}', ":2: prompt", "no text"),
            ("too deep", b"[" * 100_000, ":1", "nested too deeply"),
            ("an id that is a list", LINE + b'{"id": [1], "prompt": "x?", "answer": "1"}', ":2: id", "a text or a num"),
            (
                "no such role",
                LINE + b'{"prompt": [{"role": "x", "content": "y"}], "answer": "1"}',
                ":2: prompt[0]: role",
            ),
            ("tokens below 0", LINE + b'{"prompt": "x?", "answer": "1", "token_ids": [-1]}', ":2: token_ids", "ids"),
            ("old Mac's line ends", LINE.rstrip() + b"\r" + LINE, ":1", "is not JSON: Extra data"),
        )
    ),
    *(
        Case(f"prompts: {name}", grpo(f"data.train={{tmp}}/{file}"), (f"{{tmp}}/{file}: got", says), prepare)
        for name, file, says, prepare in (
            ("gz that is none", "t.jsonl.gz", "is a damaged gzip file", raw("t.jsonl.gz", LINE)),
            ("gz cut off", "t.jsonl.gz", "ended before", raw("t.jsonl.gz", gzip.compress(LINE)[:-9])),
            ("zst that is none", "t.jsonl.zst", "is a damaged zst file", raw("t.jsonl.zst", LINE)),
            ("parquet that is none", "t.parquet", "must be a readable parquet file", raw("t.parquet", LINE)),
            ("a table without rows", "t.csv", "an empty file", raw("t.csv", b"question,answer\n")),
            ("a pipe", "p.jsonl", "a device, a pipe or a socket", placed(lambda tmp: os.mkfifo(tmp / "p.jsonl"))),
            ("a circle", "l.jsonl", "in a circle", placed(lambda tmp: (tmp / "l.jsonl").symlink_to("l.jsonl"))),
            ("an endless file", "z.jsonl", "a device", placed(lambda tmp: (tmp / "z.jsonl").symlink_to("/dev/zero"))),
        )
    ),
    Case(
        "prompts: a folder without any",
        grpo("data.train={tmp}/d"),
        ("{tmp}/d", "a folder without"),
        placed(lambda tmp: (tmp / "d").mkdir()),
    ),
    Case("prompts: a file of an unknown kind", grpo("data.train={tmp}/t.exe"), ("t.exe", "must end in"), raw("t.exe")),
    Case("prompts: a name of nothing", grpo('data.train=""'), ("data.train: got ''; must name a file",), grpo_files()),
    Case("documents: a name of nothing", r1_zero('data.documents_files=[""]'), ("data.documents_files: got ''",)),
    Case("conversations: NaN", sft(), ("{tmp}/chats.jsonl:1", "holds NaN"), sft_files('{"messages": NaN}')),
    Case("full disk", run(), ("{tmp}/runs/toy", "the disk is full"), full_disk("runs/toy/config.json.tmp")),
    Case("report on a full disk", ("report", "{tmp}/runs/toy"), ("No space left",), full_disk("runs/toy/report.tmp")),
    Case("unwritable output folder", run("runs_dir=/sys/runs"), ("/sys/runs", "that can be made and written")),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    check_case(case, tmp_path, capfd)
