"""The command line on the toy job: exit codes, one-line errors, what `run` leaves behind. Ray is not started."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from unittest.mock import Mock

import pytest

from framework import about, cli
from framework.actors import ray_session as cluster_module
from framework.config import group_options
from framework.errors import RunFailed, UserError
from framework.graph import plan as plan_module
from framework.graph.found import find_checkpoint
from framework.observe import tracking as tracking_module
from tests.unit.bad_input import TOY, TOY_CONF
from tests.unit.observe.synthetic import evaluate


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cluster_module, "ray_session", lambda cluster: nullcontext())
    handlers, propagate = cli.logger.handlers[:], cli.logger.propagate
    yield
    for handler in cli.logger.handlers:
        handler.close()
    cli.logger.handlers[:], cli.logger.propagate = handlers, propagate
    cli.logger.setLevel(logging.NOTSET)


def framework(tmp_path: Path, command: str, *overrides: str) -> int:
    toy = [item.replace("{tmp}", str(tmp_path)) for item in TOY]
    return cli.main([command, *toy, "--config-dir", str(TOY_CONF), *overrides])


def tracked(tmp_path: Path, *overrides: str) -> int:
    toy = [item.replace("{tmp}", str(tmp_path)) for item in TOY if item != "~tracking"]
    return cli.main(["run", *toy, "tracking=none", "--config-dir", str(TOY_CONF), *overrides])


def test_plan_prints_and_creates_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert framework(tmp_path, "plan") == 0
    out = capsys.readouterr().out
    assert "2. train  (Train)" in out
    assert "in   corpus: TextSet from write.text" in out
    assert not list(tmp_path.iterdir())


def test_a_reader_that_has_seen_enough_ends_a_command_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read, write = os.pipe()
    os.close(read)
    pipe = os.fdopen(write, "w")
    monkeypatch.setattr(sys, "stdout", pipe)
    assert cli.main(["keys", "job=r1_zero"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.undo()
    with suppress(BrokenPipeError):
        pipe.close()
    monkeypatch.setattr(about, "describe_keys", Mock(side_effect=BrokenPipeError("of an engine")))
    assert cli.main(["keys", "job=r1_zero"]) == 1
    assert "BrokenPipeError: of an engine" in capsys.readouterr().err


def test_a_run_stopped_before_it_has_begun_starts_no_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan_module, "look_ahead", lambda graph: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(cluster_module, "ray_session", Mock(side_effect=AssertionError))
    assert framework(tmp_path, "run") == 130
    assert "stopped before the first stage; the same command starts the run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "overrides",
    ["", "model=v3_671b cluster=h800_512", "cluster=node8 engine.rollout.max_model_len=512"],
)
def test_shipped_job_plans_at_every_scale(overrides: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "job=r1_zero", *overrides.split()]) == 0, capsys.readouterr().err
    assert "Checkpoint from pretrain.base" in capsys.readouterr().out


@pytest.mark.parametrize("model", [model for model in group_options("model") if "_tiny" in model])
def test_every_tiny_model_plans_on_the_laptop(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "job=r1_zero", f"model={model}"]) == 0, capsys.readouterr().err
    assert " parameters" in capsys.readouterr().out


def test_run_then_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert framework(tmp_path, "run") == 0
    first = capsys.readouterr().err
    assert "[2/3] train: finished in" in first
    assert framework(tmp_path, "run") == 0
    assert "[2/3] train: finished before, skipped" in capsys.readouterr().err
    assert "report: " in first
    log = (tmp_path / "runs" / "toy" / "run.log").read_text()
    assert log.count("train: started") == 1
    assert find_checkpoint(str(tmp_path / "runs" / "toy")).path.name == "checkpoint"


def test_a_run_ends_with_its_evaluations_and_their_gain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert framework(tmp_path, "run") == 0
    evaluate(tmp_path / "runs" / "toy", "base", 0.25, {})
    evaluate(tmp_path / "runs" / "toy", "rl", 0.5, {})
    capsys.readouterr()
    assert framework(tmp_path, "run") == 0
    heading, names, base, rl, gain, report = capsys.readouterr().err.splitlines()[-6:]
    assert heading.endswith(" held-out prompts:")
    assert names.split()[:2] == ["checkpoint", "prompts"]
    assert base.split()[:3] == ["base", "192", "25.0%"]
    assert rl.split()[:3] == ["rl", "192", "50.0%"]
    assert gain.startswith("gain of rl over base in pass@1: +25.0 ± 4.8 points")
    assert report.endswith("report.html")


def test_failure_is_one_line_and_a_traceback_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert framework(tmp_path, "run", "stage.train.fail=crash") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("framework: ValueError: a bug over two lines (traceback: ")
    file = Path(last.rpartition(": ")[2].rstrip(")"))
    assert "Traceback" in file.read_text()
    assert framework(tmp_path, "run", "stage.train.fail=crash") == 0  # the same command resumes
    file.unlink()


def test_stop_is_130(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert framework(tmp_path, "run", "stage.train.fail=stop") == 130
    assert "the same command resumes" in capsys.readouterr().err.splitlines()[-1]


def test_stop_that_takes_ray_down_too_is_130(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert framework(tmp_path, "run", "stage.train.fail=killed") == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "framework: train: stopped (raylet is gone); the same command resumes it"
    assert framework(tmp_path, "run", "stage.train.fail=killed") == 0


PROCESS = """
import sys
from contextlib import nullcontext
from framework import about, cli
from framework.actors import ray_session as cluster
cluster.ray_session = lambda config: nullcontext()
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_second_start_of_a_run_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    toy = [item.replace("{tmp}", str(tmp_path)) for item in TOY]
    command = [sys.executable, "-c", PROCESS, "run", *toy, "--config-dir", str(TOY_CONF), "stage.train.fail=sleep"]
    at, text = Path(__file__).parents[2], {"stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command, cwd=at, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while not list(tmp_path.glob("runs/toy/state/train-*/calls")):
            assert time.monotonic() < until
            assert first.poll() is None
            time.sleep(0.1)
        second = subprocess.run(command, cwd=at, timeout=60, **text)  # type: ignore[call-overload]
        assert second.returncode == 2
        assert f"process {first.pid} on " in second.stderr
        assert "choose another run=NAME" in second.stderr
        assert len(second.stderr.splitlines()) == 1
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()
    third = subprocess.run(command, cwd=at, timeout=60, **text)  # type: ignore[call-overload]
    assert third.returncode == 0
    assert f"taken over from process {first.pid}" in third.stderr
    assert next(tmp_path.glob("runs/toy/state/train-*/calls")).read_text() == "2"


def test_a_run_that_is_refused_before_it_starts_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise UserError("cluster.num_nodes x cluster.gpus_per_node", 8, "the Ray cluster has 0 GPUs")

    def everything() -> list[Path]:
        return sorted(path for path in tmp_path.rglob("*") if path.parent.name != "owner")

    for refused in ((cluster_module, "ray_session"), (tracking_module, "RunTracking")):
        with monkeypatch.context() as patch:
            patch.setattr(*refused, refuse)
            assert tracked(tmp_path, "cluster.cpus=3") == 2
        assert everything() == []
    assert framework(tmp_path, "run", "stage.train.fail=error") == 1
    before, config = everything(), (tmp_path / "runs" / "toy" / "config.json").read_text()
    monkeypatch.setattr(cluster_module, "ray_session", refuse)
    assert framework(tmp_path, "run", "stage.train.fail=error", "cluster.cpus=3") == 2
    assert (everything(), (tmp_path / "runs" / "toy" / "config.json").read_text()) == (before, config)
    assert "has 0 GPUs" in capsys.readouterr().err.splitlines()[-1]


def test_full_disk_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert framework(tmp_path, "run", "stage.train.fail=full") == 2
    assert "the disk is full" in capsys.readouterr().err.splitlines()[-1]


def test_a_disk_that_fills_up_while_a_stage_is_tracked_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert framework(tmp_path, "run") == 0
    run_dir = tmp_path / "runs" / "toy"
    (run_dir / "metrics.jsonl").symlink_to("/dev/full")  # the kernel's own "No space left on device"
    before = sorted(run_dir.glob("artifacts/*"))
    shutil.rmtree(before[0])
    capsys.readouterr()
    assert tracked(tmp_path) == 2
    assert "metrics.jsonl: got 'No space left on device'" in capsys.readouterr().err.splitlines()[-1]
    assert sorted(run_dir.glob("artifacts/[!.]*")) == before[1:]


def test_errors_that_ray_wraps_keep_their_code_and_line(capsys: pytest.CaptureFixture[str]) -> None:
    class Wrapped(Exception):
        cause = UserError("data/x.jsonl:3", "{", "must be JSON")

    assert cli._explain(Wrapped("a long remote traceback")) == 2
    assert capsys.readouterr().err == "framework: data/x.jsonl:3: got '{'; must be JSON\n"
    assert cli._explain(RunFailed("too many rewards failed")) == 1
    assert "too many rewards failed (traceback: " in capsys.readouterr().err


def test_benchmarks_are_found_by_listing_their_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import jobs.bench

    (tmp_path / "toy_bench.py").write_text("def main(argv):\n    return 0 if argv == ['--size', '3'] else 1\n")
    monkeypatch.setattr(about, "BENCHMARKS", tmp_path)
    monkeypatch.setattr(jobs.bench, "__path__", [str(tmp_path)])
    assert cli.main(["bench", "toy_bench", "--size", "3"]) == 0


@pytest.mark.parametrize("argv", [["--help"], ["run", "--help"]])
def test_help(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(argv)
    assert done.value.code == 0
    assert "framework" in capsys.readouterr().out


LEFT_OVER = """
import atexit, threading, time
from framework import cli
atexit.register(print, "cleaned up")
threading.Thread(target=time.sleep, args=[60]).start()
cli.main = lambda: 130
cli.entry()
"""


def test_the_exit_code_is_the_commands_whatever_threads_are_left() -> None:
    ended = subprocess.run([sys.executable, "-c", LEFT_OVER], capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout) == (130, "cleaned up\n"), ended.stderr


def test_a_traceback_goes_elsewhere_if_the_runs_folder_is_gone_or_full(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    cli.logger.handlers[:] = [logging.FileHandler(tmp_path / "run" / "run.log")]
    shutil.rmtree(tmp_path / "run")
    assert cli._explain(RunFailed("of the run")) == 1
    file = Path(capsys.readouterr().err.rpartition(": ")[2].rstrip(")\n"))
    assert "of the run" in file.read_text()
    file.unlink()
    monkeypatch.setattr(cli.tempfile, "NamedTemporaryFile", Mock(side_effect=OSError(28, "No space left on device")))
    assert cli._explain(RunFailed("of the run")) == 1
    assert "of the run (traceback: nowhere, [Errno 28] No space left" in capsys.readouterr().err
