"""Bad input, row by row: exit code 2, one clear line on stderr, nothing created or overwritten.

Add a row to CASES: what is wrong, the command line, and what the line must say. `{tmp}` is a fresh directory with a
finished run in {tmp}/runs/toy; `prepare` may put more into it before the command runs.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from framework.cli import main
from framework.convert import to_plain
from framework.graph.store import Store

TOY_CONF = Path(__file__).parent / "conf"
TOY = ("job=toy", "~stage", "~data", "~engine", "~algorithm", "~reward", "~tracking", "runs_dir={tmp}/runs")


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


CASES = (
    Case("unknown key", run("stage.train.lrr=1"), ("stage.train.lrr", "did you mean 'lr'?")),
    Case("unknown nested key", run("model.hiden_size=1"), ("model.hiden_size", "did you mean 'hidden_size'?")),
    Case("unknown top-level key", run("sed=1"), ("sed: got 1", "did you mean 'seed'?")),
    Case("added unknown key", run("+sedd=1"), ("sedd: got 1", "did you mean 'seed'?")),
    Case("unknown stage of the job", run("stage.trian.lr=1"), ("stage.trian", "did you mean 'train'?")),
    Case("wrong type", run("stage.train.lr=fast"), ("stage.train.lr", "'fast'", "must be a number")),
    Case("fraction for a whole number", run("model.num_hidden_layers=1.5"), ("model.num_hidden_layers", "1.5")),
    Case("not one of the choices", run("model.dtype=float16"), ("model.dtype", "'float32', 'bfloat16'")),
    Case("numbers that do not divide", run("model.n_group=3"), ("model.n_group: got 3", "1, 2, 4, 8")),
    Case("a stage's own check", run("stage.write.lines=4"), ("stage.write.lines: got 4", "multiple of 3")),
    Case("unknown job", run("job=r1zero"), ("job: got 'r1zero'", "options:")),
    Case("unknown model", run("model=v3_tin"), ("model: got 'v3_tin'", "did you mean 'v3_tiny'?", "v3_671b")),
    Case("unknown stage", run("stage@stage.train=toy_trian"), ("toy_trian", "did you mean 'toy_train'?")),
    Case("unknown cluster", run("cluster=labtop"), ("cluster: got 'labtop'", "did you mean 'laptop'?")),
    Case("group set to a mapping", run("model={a:1}"), ("model: got {'a': 1}", "v3_tiny")),
    Case("override without a value", run("seed"), ("override: got 'seed'", "key=value")),
    Case("override that does not parse", run("seed={"), ("override: got 'seed={'", "key=value")),
    Case("sweep", run("seed=1,2"), ("seed=1,2", "one value")),
    Case("interpolation of nothing", run("seed=${sed}"), ("seed", "'sed' not found")),
    Case("mandatory value", run("model.vocab_size=???"), ("model.vocab_size", "must be given")),
    Case("run name with a slash", run("run=../x"), ("run: got '../x'", "must be a directory name")),
    Case("foreign target", run("job._target_=os.system"), ("job._target_", "'os.system'", "plugins")),
    Case("no such build function", run("job._target_=tests.unit.toy_graph.biuld"), ("did you mean 'build'?",)),
    Case(
        "edge of the wrong type",
        run("job._target_=tests.unit.toy_graph.build_miswired"),
        ("train.base wants Checkpoint, got TextSet from write.text",),
    ),
    Case("no GPU-less cluster of nothing", run("cluster.num_nodes=0"), ("cluster.num_nodes: got 0", "at least 1")),
    Case("no config directory", ("plan", *TOY, "--config-dir", "{tmp}/nope"), ("--config-dir", "nope")),
    Case(
        "run directory of another configuration",
        run("stage.train.lr=0.5"),
        ("stage.train.lr: got 0.5", "stage.train.lr=0.001", "run=NAME"),
    ),
    Case(
        "run directory that is none",
        run("run=mine"),
        ("runs/mine", "not a run", "run=NAME"),
        write("runs/mine/notes.txt", "mine"),
    ),
    Case("a file where runs should go", run("runs_dir={tmp}/file"), ("{tmp}/file", "in its way"), write("file", "")),
    Case("unknown command", ("trian",), ("command: got 'trian'", "commands: plan, run")),
    Case("unknown option", ("plan", "--gpus", "8"), ("--gpus",)),
    Case("unknown benchmark", ("bench", "rolout"), ("benchmark: got 'rolout'", "benchmarks:")),
    Case("report of no run", ("report", "{tmp}/nope"), ("nope",)),
    Case("chat without a checkpoint", ("chat", "{tmp}/nope"), ("checkpoint: got", "must be a checkpoint directory")),
    Case("chat with an empty directory", ("chat", "{tmp}"), ("config.json", "a Checkpoint needs config.json")),
    Case("chat with a run that has no checkpoint", ("chat", "{tmp}/runs/toy"), ("no finished checkpoint yet",)),
    Case("damaged checkpoint", ("serve", "{tmp}/checkpoint"), ("model.safetensors", "damaged"), damaged_checkpoint),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
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


def test_names_of_the_cases_differ() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


def finished_run(tmp: Path) -> None:
    """Put the toy job's run directory there, as a run of the unchanged configuration leaves it."""
    from framework.config import compose

    config = compose([item.replace("{tmp}", str(tmp)) for item in TOY], TOY_CONF)
    Store(config.run_dir).open_run(to_plain(config))
    (config.run_dir / "artifacts").mkdir()


def snapshot(tmp: Path) -> dict[str, str]:
    """Every path under `tmp` with a hash of its content."""
    return {
        os.path.relpath(path, tmp): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "directory"
        for path in sorted(tmp.rglob("*"))
    }
