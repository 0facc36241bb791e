"""Every command that README.md shows works: plans compose, make targets, benchmarks and files exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from framework import cli
from framework.about import benchmarks
from framework.config import build_graph, compose

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PLACEHOLDER = re.compile(r"[A-Z_]{2,}|.*[<…].*|.*\.\.\..*")  # RUN, CHECKPOINT, <name>, [overrides...]


def commands(text: str) -> list[str]:
    """Lines of the fenced bash blocks, continuation lines joined, comments and prompts ("$ ") removed."""
    blocks = re.findall(r"^```(?:bash|sh|shell|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.removeprefix("$ ") for line in lines if line and not line.startswith("#")]


def words_of(command: str) -> list[str]:
    """Words of a command without variables before it and without the virtual environment's path."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"[A-Za-z_]+=.*", words[0]):
        words = words[1:]
    return [words[0].removeprefix(".venv/bin/"), *words[1:]] if words else []


def check(command: str) -> None:
    """Raise UserError or AssertionError if a `framework` or `make` command could not work as it is written."""
    program, *words = words_of(command) or [""]
    if program == "make":
        targets = re.findall(r"^([.a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        for word in words:
            assert "=" in word or word.startswith("-") or word in targets, f"{command}: no target {word}"
        for word in words:
            if word.startswith("ARGS="):
                build_graph(compose(["job=r1_zero", *shlex.split(word.removeprefix("ARGS="))])).check()
    if program == "framework":
        if words[0] == "bench" and len(words) > 1:
            assert words[1] in benchmarks() or PLACEHOLDER.fullmatch(words[1]), f"{command}: no such benchmark"
            return
        arguments, rest = cli._parser().parse_known_args(words)
        if arguments.command in ("plan", "run", "submit"):
            overrides = [item for item in (*arguments.overrides, *rest) if not PLACEHOLDER.fullmatch(item)]
            build_graph(compose(overrides, arguments.config_dir))
        else:
            assert not rest, f"{command}: unknown {rest}"


def test_the_readme_shows_how_to_start() -> None:
    if not README.is_file():
        pytest.skip("README.md is not written yet")
    shown = [words_of(command)[:2] for command in commands(README.read_text())]
    assert ["make", "r1-zero"] in shown
    assert ["make", "test"] in shown


@pytest.mark.parametrize("command", commands(README.read_text()) if README.is_file() else [])
def test_commands_of_the_readme_work(command: str) -> None:
    check(command)


def test_files_that_the_readme_links_to_exist() -> None:
    if not README.is_file():
        pytest.skip("README.md is not written yet")
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", README.read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize(
    "command",
    [
        "make tset",
        "framework plan job=r1zero",
        "framework run job=r1_zero model=v3_tiny stage.grpo.stpes=3",
        "CUDA_VISIBLE_DEVICES=0 .venv/bin/framework bench rolout",
        "framework report runs/x --open",
        "make r1-zero ARGS='sede=1'",
    ],
)
def test_a_command_that_cannot_work_is_found(command: str) -> None:
    with pytest.raises(Exception, match=r"no target|got '|unknown|no such|did you mean"):
        check(command)


def test_commands_are_found_in_their_blocks() -> None:
    text = (
        "```bash\n# set up\nmake test\nframework run job=r1_zero \\\n    seed=1  # twice\n```\n```python\nmake x\n```\n"
    )
    assert [words_of(command) for command in commands(text)] == [
        ["make", "test"],
        ["framework", "run", "job=r1_zero", "seed=1"],
    ]
    for command in commands(text):
        check(command)
