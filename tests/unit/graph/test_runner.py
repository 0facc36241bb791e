"""Runs of a toy graph: skipped, resumed, rerun, stopped, on a full disk, over a damaged artifact."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from framework.artifacts import MANIFEST
from framework.errors import RunFailed, Stopped, UserError
from framework.graph import store as store_module
from framework.graph.cluster import ClusterConfig
from framework.graph.nodes import Graph
from framework.graph.runner import Runner, StopFlag
from framework.graph.store import Store, disk_errors, first_difference
from tests.unit.toy_graph import Evaluate, Train, Write

CONFIG = {"seed": 0, "stage": {"train": {"lr": 0.001}}, "tracking": None, "cluster": {"cpus": 2}}


def toy(write: Write | None = None, train: Train | None = None) -> Graph:
    graph = Graph()
    written = graph.add("write", write or Write())
    trained = graph.add("train", train or Train(), corpus=written.out("text"))
    graph.add("evaluate", Evaluate(), checkpoint=trained.out("checkpoint"))
    return graph


def runner(tmp_path: Path, graph: Graph | None = None, **changes: Any) -> Runner:
    return Runner(graph or toy(), Store(tmp_path / "run"), ClusterConfig(), **changes)


def started(caplog: pytest.LogCaptureFixture) -> list[str]:
    names = [record.message.split()[1].rstrip(":") for record in caplog.records if "started" in record.message]
    caplog.clear()
    return names


@pytest.fixture(autouse=True)
def _log_level(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("framework"), "propagate", True)
    caplog.set_level(logging.INFO, logger="framework.graph")


def test_finished_nodes_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not runner(tmp_path).is_finished()
    first = runner(tmp_path).run()
    assert started(caplog) == ["write", "train", "evaluate"]
    assert runner(tmp_path).is_finished()
    assert runner(tmp_path).run() == first
    assert started(caplog) == []


def test_a_change_reruns_the_node_and_what_depends_on_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runner(tmp_path).run()
    started(caplog)
    runner(tmp_path, toy(train=Train(lr=2e-3))).run()
    assert started(caplog) == ["train", "evaluate"]
    runner(tmp_path, toy(write=Write(word="bye"))).run()
    assert "write" in started(caplog)
    runner(tmp_path, seed=1).run()
    assert started(caplog) == ["write", "train", "evaluate"]


def test_a_file_named_in_the_configuration_counts_by_its_content(tmp_path: Path) -> None:
    source, store = tmp_path / "source", Store(tmp_path / "run")
    node = toy(write=Write(source=source)).nodes["write"]
    source.write_text("one")
    first = store.key(node, {}, 0)
    source.write_text("two")
    assert store.key(node, {}, 0) != first
    source.write_text("one")
    assert store.key(node, {}, 0) == first


def test_changed_code_reruns(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    runner(tmp_path).run()
    started(caplog)
    monkeypatch.setattr(store_module, "code_version", lambda stage: "new" if isinstance(stage, Evaluate) else "old")
    runner(tmp_path).run()
    monkeypatch.setattr(store_module, "code_version", lambda stage: "newer" if isinstance(stage, Evaluate) else "old")
    started(caplog)
    runner(tmp_path).run()
    assert caplog.text.count("begins anew: its code, an input or a file has changed") == 1
    assert started(caplog) == ["evaluate"]


def test_manifest_tells_where_an_artifact_comes_from(tmp_path: Path) -> None:
    outputs = runner(tmp_path).run()
    text = outputs["write"].text.manifest()
    model = outputs["train"].checkpoint.manifest()
    assert text.counts == {"train": 3.0}
    assert model.inputs == {"corpus": text.content_hash}
    assert model.stage == "tests.unit.toy_graph.Train"
    assert model.config["lr"] == 1e-3


def test_failed_node_keeps_its_state_and_what_came_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    graph = toy(train=Train(fail="error"))
    with pytest.raises(RunFailed):
        runner(tmp_path, graph).run()
    started(caplog)
    runner(tmp_path, graph).run()
    assert started(caplog) == ["train", "evaluate"]
    (calls,) = (tmp_path / "run" / "state").glob("train-*/calls")
    assert calls.read_text() == "2"


def test_stop_leaves_a_run_that_resumes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    graph, flag = toy(train=Train(fail="stop")), StopFlag()
    with pytest.raises(Stopped):
        runner(tmp_path, graph, should_stop=flag).run()
    with pytest.raises(Stopped, match="train: not started"):
        runner(tmp_path, graph, should_stop=flag).run()
    started(caplog)
    runner(tmp_path, graph).run()
    assert started(caplog) == ["train", "evaluate"]


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """Python's own handlers: a shell starts background jobs with SIGINT ignored, and engines leave handlers behind."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("usual_signals")
def test_signals_set_the_flag_and_are_given_back() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with StopFlag().on_signals() as flag:
        assert not flag()
        os.kill(os.getpid(), signal.SIGTERM)
        assert flag()
    assert {number: signal.getsignal(number) for number in before} == before
    with StopFlag().on_signals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):  # the second one ends the process as usual
            os.kill(os.getpid(), signal.SIGINT)


def test_full_disk_is_the_users_to_solve(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    graph = toy(train=Train(fail="full"))
    with pytest.raises(UserError, match="the disk is full"):
        runner(tmp_path, graph).run()
    started(caplog)
    runner(tmp_path, graph).run()
    assert started(caplog) == ["train", "evaluate"]


@pytest.mark.parametrize("damage", ["short", "missing", "manifest", "0 bytes"])
def test_a_damaged_artifact_is_said_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    outputs = runner(tmp_path).run()
    checkpoint = outputs["train"].checkpoint.path
    file = checkpoint / ("config.json" if damage in ("short", "missing") else MANIFEST)
    if damage == "missing":
        file.unlink()
    elif damage == "0 bytes":  # as two drivers left it that published into one directory
        manifest = json.loads(file.read_text())
        file.write_text(json.dumps({**manifest, "files": dict.fromkeys(manifest["files"], 0)}))
    else:
        file.write_text("short")
    assert not runner(tmp_path).is_finished()
    started(caplog)
    again = runner(tmp_path).run()
    assert "train: its result is damaged" in caplog.text
    assert damage == "0 bytes" or file.name in caplog.text
    assert started(caplog) == ["train"]
    assert again == outputs
    assert runner(tmp_path).is_finished()
    assert len(list((tmp_path / "run" / "artifacts").glob(".damaged-train-*"))) == 1


def test_half_built_outputs_are_not_taken_for_finished(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path / "run")
    node = toy().nodes["write"]
    key = store.key(node, {}, 0)
    (store.begin(node, key) / "text").mkdir()
    assert store.outputs(node, key) is None
    runner(tmp_path).run()
    assert started(caplog)[0] == "write"
    assert not list((tmp_path / "run" / "artifacts").glob(".building*"))
    assert store.latest("write", "text") == store.run_dir / "artifacts" / f"write-{key}" / "text"
    assert (store.run_dir / "artifacts" / f"write-{key}" / "text" / MANIFEST).is_file()


def test_run_directory_belongs_to_its_configuration(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    store.open_run(CONFIG)
    store.open_run({**CONFIG, "tracking": {"mode": "none"}, "cluster": {"cpus": 64}})
    with pytest.raises(UserError, match=r"stage\.train\.lr: got 0\.002; .* was made with stage\.train\.lr=0\.001"):
        store.open_run({**CONFIG, "stage": {"train": {"lr": 0.002}}})
    assert json.loads((store.run_dir / "config.json").read_text())["stage"] == CONFIG["stage"]


def test_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not a run"):
        Store(tmp_path).open_run(CONFIG)
    assert os.listdir(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_unwritable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)  # root, as whom tests may run, can write to any real folder
    with pytest.raises(UserError, match="must be writable and have room") as error:
        Store(tmp_path / "run").open_run(CONFIG)
    assert error.value.where == str(tmp_path / "run")


@pytest.mark.parametrize(
    "text",
    [
        "Error while serializing: I/O error: No space left on device (os error 28)",  # safetensors
        "write(): fd 4 failed with No space left on device",  # torch, of old
        "[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/0: file write failed",
        "[('from', 'to', \"[Errno 28] No space left on device: 'from' -> 'to'\")]",  # shutil.copytree
    ],
)
def test_a_full_disk_in_the_words_of_libraries(text: str) -> None:
    with pytest.raises(UserError, match=r"weights: got 'the disk is full'"), disk_errors(Path("weights")):
        raise RuntimeError(text)


def test_a_full_disk_under_torch(tmp_path: Path) -> None:
    import torch

    full = tmp_path / "weights"
    full.symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"weights: got 'the disk is full'"), disk_errors(full):
        torch.save(torch.zeros(1 << 20), full)
    with pytest.raises(RuntimeError, match="a bug"), disk_errors(full):
        raise RuntimeError("a bug")


def test_file_in_the_way_of_the_run_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a file is in its way"):
        Store(tmp_path / "file" / "run").open_run(CONFIG)


def test_first_difference() -> None:
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 1}}) is None
    assert first_difference({"a": {"b": 1}}, {"a": {}}) == ("a.b", 1, "absent")
    assert first_difference({"a": [1, 2]}, {"a": [1, 3]}) == ("a", [1, 2], [1, 3])


def test_stage_that_builds_elsewhere_is_a_bug_that_is_named(tmp_path: Path) -> None:
    store, node = Store(tmp_path / "run"), toy().nodes["write"]
    store.begin(node, "key")
    outputs = node.outputs_type(text=replace(node.output_types["text"](tmp_path)))
    with pytest.raises(RuntimeError, match="must be built in"):
        store.commit(node, "key", outputs, {})
