"""Every command that README.md, docs/ and `--help` show is given, in a folder with files and a run of its own.

`run` and `submit` are given as `plan` of the same words: the runs themselves take minutes; tests/e2e, tests/contract,
tests/ray make such. A benchmark is asked for `--help`; `sample`, `chat`, `serve` and `check` stop where their
engine would start.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

import jobs.check_sync
import jobs.sample
from framework import cli
from framework.commands import COMMANDS
from framework.engines import serving
from framework.errors import did_you_mean
from framework.observe import push
from framework.stages import sampling
from tests.contract.families import write_checkpoint
from tests.fake_pools import fake_pools
from tests.unit.bad_input import CHAT, prompt_line
from tests.unit.observe.synthetic import write_run

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
LESSON = ROOT / "docs" / "how_llms_are_trained.md"
REWARDS = ROOT / "docs" / "rewards.md"
DOCUMENTS = (README, *sorted((ROOT / "docs").glob("*.md")))
WORD = re.compile(r"[A-Z]{2,}")  # DIR, FILE, NAME: what a reader fills in
FILLED = {
    "base": "base", "stage.grpo.critic": "reward_model", "data.train": "prompts.jsonl", "data.heldout": "prompts.jsonl",
    "data.documents": "document*.txt", "benchmark.file": "prompts.jsonl",
    "stage.text.documents": "document*.txt", "stage.text.train": "labelled.tsv", "stage.text.heldout": "labelled.tsv",
    "model": "v3_tiny", "reward": "rule", "bench": "rollout",
    "score": "responses.jsonl", "report": "runs/r1_zero", "lineage": "r1_zero",
}  # fmt: skip
AS_THEY_ARE = (
    "plan",
    "keys",
    "score",
    "report",
    "lineage",
    "completion",
    "sample",
    "push",
    "chat",
    "serve",
    "check",
    "bench",
)


def example_reward() -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```", REWARDS.read_text(), re.MULTILINE | re.DOTALL)
    return str(code)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands speak of: a finished run, a checkpoint, prompts, conversations, documents, responses."""
    folder = tmp_path_factory.mktemp("readme")
    write_run(folder / "runs" / "r1_zero", steps=3)
    write_checkpoint("qwen3", folder / "base")
    config = json.loads((folder / "base" / "config.json").read_text())
    (folder / "base" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    shutil.copytree(folder / "base", folder / "reward_model")
    judge = AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=1)
    judge.save_pretrained(folder / "reward_model")
    (folder / "prompts.jsonl").write_text("".join(prompt_line(f"p{i}", f"What is {i} + 1?") for i in range(64)))
    (folder / "chats.jsonl").write_text(f"{CHAT}\n" * 64)
    pairs = (f'{{"prompt": "What is {i} + 2?", "chosen": "{i + 2}", "rejected": "no"}}\n' for i in range(8))
    (folder / "pairs.jsonl").write_text("".join(pairs))
    (folder / "concise.py").write_text(example_reward())
    (folder / "runs" / "r1").symlink_to("r1_zero")
    for name in ("seed1", "seed2"):
        write_run(folder / "runs" / name, steps=3)
    for number in range(3):
        (folder / f"document{number}.txt").write_text(f"Text {number}.")
    (folder / "labelled.tsv").write_text("sentence\tlabel\nfine\t1\nbleak\t0\n")
    row = {"id": "a", "task": "math", "prompt": "What is 3 + 4?", "answer": "7", "response": "<answer>7</answer>"}
    (folder / "responses.jsonl").write_text(json.dumps(row) + "\n")
    return folder


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(serving, "check_checkpoint", lambda checkpoint: None)  # the run here has no weights
    monkeypatch.setattr(serving, "chat", lambda checkpoint, *_: print(checkpoint))
    monkeypatch.setattr(push, "push", lambda checkpoint, hub_id, *_: print(checkpoint, hub_id))
    monkeypatch.setattr(serving, "serve", lambda checkpoint, host, port, *_: print(checkpoint, host, port))
    monkeypatch.setattr(jobs.sample, "ray_session", lambda cluster: nullcontext())
    monkeypatch.setattr(sampling, "sampling_pools", lambda *_: nullcontext(fake_pools()))
    monkeypatch.setattr(jobs.check_sync, "ray_session", lambda cluster: nullcontext())
    monkeypatch.setattr(jobs.check_sync, "check_sync", lambda *arguments: [])


def commands(text: str) -> list[str]:
    """Lines of the fenced bash blocks, continuation lines joined, comments and prompts ("$ ") removed."""
    blocks = re.findall(r"^```(?:bash|sh|shell|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.removeprefix("$ ") for line in lines if line and not line.startswith("#")]


def shown(text: str) -> list[str]:
    """The commands of the blocks, and those with words of their own between backticks in a sentence or a table."""
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    quoted = re.findall(r"`((?:eval \"\$\()?(?:make|framework) [^`]*)`", rest)
    return list(dict.fromkeys([*commands(text), *(c for c in quoted if len(words_of(c)) > 2 or "make" in c)]))


def of_all_documents() -> list[str]:
    """Those of README.md and docs/, each once."""
    return list(dict.fromkeys(command for document in DOCUMENTS for command in shown(document.read_text())))


def of_help() -> list[str]:
    """The examples of `--help`, each with the command that it is an example of."""
    (subcommands,) = (a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction))
    found = []
    for name, parser in subcommands.choices.items():
        begin = {"score": "score FILE", "check": "check sync", "submit": "submit --address http://head:8265"}
        for action in parser._actions:
            given = " base=DIR" if "base=DIR" in (action.help or "") else ""
            for words in re.findall(r"e\.g\. ([^;,()]+)", action.help or ""):
                if action.dest == "overrides":
                    found.append(f"framework {begin.get(name, name)}{given} {words.strip()}")
    return found


def words_of(command: str) -> list[str]:
    """Words of a command without variables before it and without the virtual environment's path."""
    command = re.sub(r'^eval "\$\((.*)\)"$', r"\1", command)
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"[A-Za-z_]+=.*", words[0]):
        words = words[1:]
    return [words[0].removeprefix(".venv/bin/"), *words[1:]] if words else []


def filled(words: list[str]) -> list[str]:
    """The words with a name of ours for each that the reader is to fill in."""
    result = []
    for word in words:
        key, equals, value = word.rpartition("=")
        name = key if equals else (words[0] if word is not words[0] else "")
        result.append(f"{key}{equals}{FILLED[name]}" if WORD.fullmatch(value) else word)
    if any(word.startswith("from=") for word in words):
        result.append("stage.tokenizer.vocab_size=300")  # the base here has fewer tokens than any real one
    return result


def give(command: str) -> None:
    """Give the command as far as the heading says; raises AssertionError with what it said if it does not work."""
    program, *words = words_of(command) or [""]
    if program == "export":
        return
    if program == "make":
        targets = re.findall(r"^([.a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        for word in words:
            assert "=" in word or word.startswith("-") or word in targets, f"{command}: no target {word}"
            if word.startswith("ARGS="):
                assert cli.main(["plan", "job=r1_zero", *shlex.split(word.removeprefix("ARGS="))]) == 0
        return
    assert program == "framework", command
    name, *rest = filled(words)
    assert name in COMMANDS, f"{command}: {did_you_mean(name, COMMANDS)}"
    if name == "submit":
        assert "--address" in rest, command
        at = rest.index("--address")
        name, rest = "plan", [*rest[:at], *rest[at + 2 :]]
    if name == "run":
        name, rest = "plan", [word for word in rest if word != "--rerun-changed"]
    if name == "bench" and rest:
        rest = [*rest, "--help"]
    if name not in AS_THEY_ARE:  # of other engines: that it is understood
        _, unknown = cli._parser().parse_known_args([name, *rest])
        assert not unknown, f"{command}: unknown {unknown}"
        return
    try:
        code = cli.main([name, *rest])
    except SystemExit as done:  # --help
        code = int(done.code or 0)
    assert code == 0, command


def test_the_readme_shows_how_to_start() -> None:
    found = [words_of(command)[:2] for command in commands(README.read_text())]
    assert ["make", "r1-zero"] in found
    assert ["make", "test"] in found


def test_each_step_of_the_lesson_names_files_that_are_there() -> None:
    steps = LESSON.read_text().split("\n## ")[1:]
    assert len(steps) == 14
    for step in steps:
        found = re.findall(r"`(framework/[\w/.]*)`", step)
        assert found, step.splitlines()[0]
        assert [name for name in found if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("command", of_all_documents())
def test_commands_of_readme_and_docs_work(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    give(command)
    assert capfd.readouterr().out or words_of(command)[0] in ("make", "export")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_of_the_documents_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        file, _, heading = link.partition("#")
        target = (document.parent / file) if file else document
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if heading else []
        assert not heading or heading in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}, link


def test_the_example_reward_scores(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words_of(commands(REWARDS.read_text())[0])[1:]) == 0
    assert json.loads(capfd.readouterr().out)["components"]["concise"] == 1.0


@pytest.mark.parametrize("command", of_help())
def test_examples_of_help_work(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    give(command)
    assert capfd.readouterr().out


def test_all_kinds_of_examples_are_found() -> None:
    words = {words_of(command)[1] for command in of_all_documents()}
    assert words >= {
        "plan",
        "run",
        "keys",
        "score",
        "report",
        "chat",
        "serve",
        "bench",
        "check",
        "submit",
        "completion",
    }
    assert {command.split()[1] for command in of_help()} >= {"plan", "run", "submit", "keys", "score", "check"}


@pytest.mark.parametrize(
    "command",
    [
        "make tset",
        "framework plan job=r1zero",
        "framework run job=r1_zero model=v3_tiny stage.grpo.stpes=3",
        "CUDA_VISIBLE_DEVICES=0 .venv/bin/framework bench rolout",
        "framework report runs/x --open",
        "framework report runs/nope",
        "framework submit job=r1_zero",
        "framework run job=sft base=DIR data.train=nope.jsonl",
        "framework chat runs/nope",
        "framework paln job=r1_zero",
        "make r1-zero ARGS='sede=1'",
    ],
)
def test_a_command_that_cannot_work_is_found(command: str) -> None:
    with pytest.raises(AssertionError):
        give(command)


def test_commands_are_found_in_their_blocks_and_sentences() -> None:
    text = (
        "```bash\n# set up\nmake test\nframework run job=r1_zero \\\n    seed=1  # twice\n```\n```python\nmake x\n```\n"
        'Try `framework score FILE`, or `eval "$(framework completion bash)"`; `framework submit` sends it.\n'
    )
    assert [words_of(command) for command in shown(text)] == [
        ["make", "test"],
        ["framework", "run", "job=r1_zero", "seed=1"],
        ["framework", "score", "FILE"],
        ["framework", "completion", "bash"],
    ]
