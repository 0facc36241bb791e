"""Runs of a toy graph: skipped, resumed, rerun, stopped, on a full disk, over a damaged artifact."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from framework import artifacts
from framework.artifacts import MANIFEST, Checkpoint, TextSet
from framework.errors import RunFailed, Stopped, UserError
from framework.graph import store as store_module
from framework.graph.cluster import ClusterConfig
from framework.graph.disk import disk_errors
from framework.graph.nodes import Graph, Runtime
from framework.graph.runner import Runner
from framework.graph.settings import differences, settings_of
from framework.graph.stop import StopFlag
from framework.graph.store import Store
from tests.unit.toy_graph import Evaluate, Nothing, Texts, Train, Write
from tests.unprivileged import folder_of_nobody

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


def test_a_named_file_without_permission_is_one_line() -> None:
    with folder_of_nobody() as folder:
        (folder / "source").write_text("one")
        (folder / "source").chmod(0)
        node = toy(write=Write(source=folder / "source")).nodes["write"]
        with pytest.raises(UserError, match="source: got 'Permission denied'; must be a file that can be read"):
            Store(folder / "run").key(node, {}, 0)


def code_is(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Pretend these versions of the code of stages, by class; "old" of all others."""
    monkeypatch.setattr(store_module, "code_version", lambda stage: versions.get(type(stage).__name__, "old"))


def test_a_finished_run_survives_its_code(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    code_is(monkeypatch)
    first = runner(tmp_path).run()
    started(caplog)
    code_is(monkeypatch, Write="new", Evaluate="new")
    assert runner(tmp_path).is_finished()
    assert runner(tmp_path).run() == first
    assert "write: finished before, skipped" in caplog.text
    assert caplog.text.count("made by other code (old, now new): --rerun-changed makes it anew") == 2
    assert started(caplog) == []
    assert not runner(tmp_path, rerun_changed=True).is_finished()
    runner(tmp_path, rerun_changed=True).run()
    assert started(caplog) == ["write", "evaluate"]  # the new text is the old one: nothing in it is new to train
    runner(tmp_path, rerun_changed=True).run()
    assert started(caplog) == []


def test_a_stage_goes_on_under_changed_code_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    code_is(monkeypatch)
    graph = toy(train=Train(fail="error"))
    with pytest.raises(RunFailed):
        runner(tmp_path, graph).run()
    code_is(monkeypatch, Train="new")
    runner(tmp_path, graph).run()
    assert "goes on from its last checkpoint, though its code has changed (old, now new)" in caplog.text
    (calls,) = (tmp_path / "run" / "state").glob("train-*/calls")
    assert calls.read_text() == "2"


def test_with_rerun_changed_a_begun_stage_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code_is(monkeypatch)
    graph = toy(train=Train(fail="error"))
    with pytest.raises(RunFailed):
        runner(tmp_path, graph).run()
    code_is(monkeypatch, Train="new")
    with pytest.raises(RunFailed):  # its first call again
        runner(tmp_path, graph, rerun_changed=True).run()
    runner(tmp_path, graph, rerun_changed=True).run()
    (calls,) = (tmp_path / "run" / "state").glob("train-*/calls")
    assert calls.read_text() == "2"


@dataclass(frozen=True)
class Long:
    """Writes a line a step, from where its work directory ends."""

    length: ClassVar[str] = "steps"
    steps: int = 2
    lr: float = 1.0
    newer: int = 7  # a setting that an older version did not have

    def run(self, inputs: Nothing, runtime: Runtime) -> Texts:
        file = runtime.work_dir / "done"
        done = len(file.read_text()) if file.exists() else 0
        (runtime.work_dir / "begun_at").write_text(str(done))
        file.write_text("." * self.steps)
        directory = runtime.artifact_dir("text")
        (directory / "train-00000.jsonl").write_text("x\n" * self.steps)
        return Texts(TextSet(directory))


def long(tmp_path: Path, **settings: Any) -> tuple[int, int]:
    """Lines of the result, and the step at which the run began."""
    graph = Graph()
    graph.add("long", Long(**settings))
    text = runner(tmp_path, graph).run()["long"].text
    newest = max((tmp_path / "run" / "state").glob("long-*/begun_at"), key=lambda file: file.stat().st_mtime_ns)
    return len((text.path / "train-00000.jsonl").read_text().splitlines()), int(newest.read_text())


def test_a_finished_stage_can_be_extended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert long(tmp_path, steps=2) == (2, 0)
    assert long(tmp_path, steps=5) == (5, 2)
    assert "goes on from the last checkpoint of its 2 steps, to 5" in caplog.text
    assert long(tmp_path, steps=3) == (3, 0)  # what has seen 5 steps is not what 3 make
    assert "begins anew" in caplog.text
    assert long(tmp_path, steps=9) == (9, 5)
    assert long(tmp_path, steps=9, lr=2.0) == (9, 0)
    assert long(tmp_path, steps=2)[0] == 2


def test_a_longer_stage_is_the_same_run(tmp_path: Path) -> None:
    def configured(steps: int, **more: Any) -> dict[str, Any]:
        return {"stage": {"grpo": {"_target_": "framework.roles.rl_config.RlConfig", "steps": steps, **more}}}

    store = Store(tmp_path / "run")
    store.open_run(configured(160))
    store.open_run(configured(320))
    with pytest.raises(UserError, match=r"stage\.grpo\.steps: got 160; .* was made with stage\.grpo\.steps=320"):
        store.open_run(configured(160))
    store.open_run(configured(320, newer=3))  # a setting that the code has got since
    moved = configured(320, newer=3)
    moved["stage"]["grpo"]["_target_"] = "framework.roles.rl_config.RlConfig"
    store.open_run(moved)
    moved["stage"]["grpo"]["_target_"] = "framework.roles.rl_config.OtherConfig"
    with pytest.raises(UserError, match="_target_"):
        store.open_run(moved)


def test_a_setting_that_newer_code_adds_changes_no_key(tmp_path: Path) -> None:
    graph, store = Graph(), Store(tmp_path / "run")
    node = graph.add("long", Long())
    key = store.key(node, {}, 0)
    before = {"_target_": "Long"}
    assert settings_of(Long()) == before
    assert store.key(graph.add("other", Long(newer=8)), {}, 0) != key
    assert settings_of(Long(steps=3)) == {**before, "steps": 3}


def test_what_another_run_has_made_is_taken_over_and_outlives_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = runner(tmp_path).run()
    started(caplog)
    other = Runner(toy(train=Train(lr=2e-3)), Store(tmp_path / "other"), ClusterConfig())
    found = other.run()
    assert "write: taken from run run, which has made the same" in caplog.text
    assert started(caplog) == ["train", "evaluate"]
    shutil.rmtree(tmp_path / "run")
    text = found["write"].text
    assert text.path.is_relative_to(tmp_path / "other")
    assert text.verify().manifest().content_hash == found["train"].checkpoint.manifest().inputs["corpus"]
    assert other.is_finished()
    code_is(monkeypatch, Write="new")
    Runner(toy(), Store(tmp_path / "third"), ClusterConfig()).run()
    assert started(caplog) == ["write", "train", "evaluate"]  # of other code: not taken
    assert first["write"].text.path.name == "text"


def test_what_is_damaged_or_unfinished_elsewhere_is_made_here(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outputs = runner(tmp_path).run()
    (outputs["write"].text.path / "train-00000.jsonl").write_text("short")
    (outputs["evaluate"].report.path / MANIFEST).unlink()
    started(caplog)
    Runner(toy(), Store(tmp_path / "other"), ClusterConfig()).run()
    assert started(caplog) == ["write", "evaluate"]


def test_an_input_without_manifest_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for name in Checkpoint.required:
        (base / name).write_text("{}")
    read: list[str] = []
    digest = artifacts.file_digest
    monkeypatch.setattr(artifacts, "file_digest", lambda file: read.append(file.name) or digest(file))
    graph = Graph()
    for name in ("one", "two"):
        graph.add(name, Evaluate(), checkpoint=Checkpoint(base))

    def base_files() -> list[str]:
        found = [name for name in read if name != "report.json"]
        read.clear()
        return sorted(found)

    assert not runner(tmp_path, graph).is_finished()
    (tmp_path / "run").mkdir()
    runner(tmp_path, graph).run()
    assert base_files() == sorted([*Checkpoint.required] * 2)  # nothing was kept before there was a run
    runner(tmp_path, graph).is_finished()
    runner(tmp_path, graph).run()
    assert base_files() == []
    (base / "config.json").write_text('{"a": 1}')
    runner(tmp_path, graph).run()
    assert base_files() == ["config.json"]


def test_manifest_tells_where_an_artifact_comes_from(tmp_path: Path) -> None:
    outputs = runner(tmp_path).run()
    text = outputs["write"].text.manifest()
    model = outputs["train"].checkpoint.manifest()
    assert text.counts == {"train-00000": 3.0}
    assert model.inputs == {"corpus": text.content_hash}
    assert model.stage == "tests.unit.toy_graph.Train"
    assert model.config["lr"] == 1e-3


def test_what_a_set_dropped_is_counted_by_its_reason(tmp_path: Path) -> None:
    from framework.graph.store import _counts

    (tmp_path / "train.jsonl").write_text('{"id": "a"}\n')
    (tmp_path / "validation.jsonl").write_text("")
    reasons = ("wrong", "wrong", "repetition")
    (tmp_path / "dropped.jsonl").write_text("".join(json.dumps({"id": "x", "reason": r}) + "\n" for r in reasons))
    assert _counts(tmp_path) == {
        "train": 1.0, "validation": 0.0, "dropped": 3.0, "dropped.wrong": 2.0, "dropped.repetition": 1.0,
    }  # fmt: skip


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
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("usual_signals")
@dataclass(frozen=True)
class Untidy(Write):
    """Leaves a large file in its own directory."""

    keeps_work: ClassVar[bool] = False

    def run(self, inputs: Nothing, runtime: Runtime) -> Texts:
        (runtime.work_dir / "large").touch()
        return super().run(inputs, runtime)


def test_work_that_nobody_needs_goes_once_the_outputs_are_whole(tmp_path: Path) -> None:
    for _ in range(2):
        runner(tmp_path, toy(write=Untidy())).run()
        (left,) = (tmp_path / "run" / "state").glob("train-*")
        assert not list((tmp_path / "run" / "state").glob("write-*"))
        assert (left / "calls").exists()
        key = next((tmp_path / "run" / "artifacts").glob("write-*")).name
        (tmp_path / "run" / "state" / key / "killed-before").mkdir(parents=True)


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


@pytest.mark.usefixtures("usual_signals")
def test_a_stop_waits_for_nobody_for_ever() -> None:
    """Whatever the main thread hangs in; what is worth waiting for may ask for more time."""
    ended: list[tuple[float, str]] = []
    began = time.monotonic()
    with StopFlag(0.3, lambda text: ended.append((time.monotonic() - began, text))).on_signals():
        time.sleep(0.5)
        assert not ended, "nobody has asked it to stop"
        began = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)
        while not ended and time.monotonic() < began + 5:
            time.sleep(0.05)
    ((after, text),) = ended
    assert 0.3 <= after < 1
    assert "the last checkpoint stands" in text

    ended.clear()
    with StopFlag(0.1, lambda text: ended.append((0, text))).on_signals() as flag:
        os.kill(os.getpid(), signal.SIGTERM)
        flag.allow(100)
        time.sleep(0.6)
    time.sleep(0.3)
    assert not ended, "a checkpoint was being written, and then the run had ended by itself"


@pytest.mark.usefixtures("usual_signals")
def test_a_signal_is_heard_while_the_main_thread_is_in_a_librarys_code() -> None:
    """Python calls its handler only once that code returns: a tokenizer may train for an hour."""
    ended = list[str]()
    with StopFlag(0.1, ended.append).on_signals():
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        hashlib.pbkdf2_hmac("sha256", b"word", b"salt", 5_000_000)  # a second or more
        assert len(ended) == 1  # by now, and not later


def test_a_stop_as_a_stage_ends_is_a_stop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    graph, flag = toy(train=Train(fail="unbuilt")), StopFlag()
    with pytest.raises(Stopped, match="train: stopped"):
        runner(tmp_path, graph, should_stop=flag).run()
    started(caplog)
    runner(tmp_path, graph).run()
    assert started(caplog) == ["train", "evaluate"]


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


def test_a_flipped_byte_of_an_input_is_seen_before_its_stage_starts(tmp_path: Path) -> None:
    outputs = runner(tmp_path).run()
    text = outputs["write"].text.path / "train-00000.jsonl"
    text.write_bytes(text.read_bytes().replace(b"hello", b"hellp"))
    for made in (tmp_path / "run" / "artifacts").glob("train-*"):
        shutil.rmtree(made)
    with pytest.raises(
        UserError, match=r"train-00000\.jsonl: .*damaged or changed; without .* makes it again"
    ) as found:
        runner(tmp_path).run()
    shutil.rmtree(found.value.allowed.partition("without ")[2].partition(" the same")[0])
    assert runner(tmp_path).run() == outputs


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
    with pytest.raises(
        UserError, match=r"stage\.train\.lr: got 0\.002; .* was made with stage\.train\.lr=0\.001: give that"
    ):
        store.open_run({**CONFIG, "stage": {"train": {"lr": 0.002}}})
    assert json.loads((store.run_dir / "config.json").read_text())["stage"] == CONFIG["stage"]


@pytest.mark.parametrize("content", [b"[]", b"\xff\xfe", b"3", b""])
def test_damaged_notes_of_a_run_are_named_or_made_anew(tmp_path: Path, content: bytes) -> None:
    store = Store(tmp_path / "run")
    store.open_run(CONFIG)
    (store.run_dir / "inputs.json").write_bytes(content)  # digests, that can be taken again
    with Store(store.run_dir)._known_digests() as known:
        assert known == {}
    (store.run_dir / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json: got ['\"]not JSON"):
        store.open_run(CONFIG)


def test_damaged_steps_of_a_stage_are_named(tmp_path: Path) -> None:
    node, store = Graph().add("train", Long(steps=4)), Store(tmp_path / "run")
    store.open_run(CONFIG)
    asked = store.work_dir(node, {}, 0) / "length"
    asked.write_text("fou")
    with pytest.raises(UserError, match=r"length: got .* must be the steps that were asked for"):
        store.work_dir(node, {}, 0)


def test_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not a run"):
        Store(tmp_path).open_run(CONFIG)
    assert os.listdir(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EIO, errno.ESTALE])
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
        "1048576 requested and 4096 written",  # numpy
        "Not enough free space to write 33554432 bytes after offset 128",  # numpy, before it begins
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


def test_differences() -> None:
    assert list(differences({"a": {"b": 1}}, {"a": {"b": 1}})) == []
    assert list(differences({"a": {"b": 1}}, {"a": {}})) == [("a.b", 1, "absent")]
    assert list(differences({"a": [1, 2], "c": 1}, {"a": [1, 3], "c": 2})) == [("a", [1, 2], [1, 3]), ("c", 1, 2)]


def test_stage_that_builds_elsewhere_is_a_bug_that_is_named(tmp_path: Path) -> None:
    store, node = Store(tmp_path / "run"), toy().nodes["write"]
    store.begin(node, "key")
    outputs = node.outputs_type(text=replace(node.output_types["text"](tmp_path)))
    with pytest.raises(RuntimeError, match="must be built in"):
        store.commit(node, "key", outputs, {})
