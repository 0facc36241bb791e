"""What a resumed pretraining sends to the tracker: nothing that an earlier process has sent."""

from __future__ import annotations

import json
from pathlib import Path

from framework.roles.supervised_loop import METRICS, _Relay


class Recorder:
    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def log(self, step, metrics) -> None:  # type: ignore[no-untyped-def]
        self.calls.append(("log", step))

    def rewind(self, step) -> None:  # type: ignore[no-untyped-def]
        self.calls.append(("rewind", step))

    def progress(self, done, total, text="") -> None:  # type: ignore[no-untyped-def]
        self.calls.append(("progress", done))


def write(file: Path, *steps: int) -> None:
    with file.open("a") as handle:
        for step in steps:
            handle.write(json.dumps({"step": step, "metrics": {"a": 1.0}, "load": None}) + "\n")


def relay(file: Path) -> tuple[_Relay, Recorder]:
    recorder = Recorder()
    return _Relay(file, recorder, 100), recorder  # type: ignore[arg-type]


def test_a_resume_sends_only_what_is_new_and_its_bar_goes_on(tmp_path: Path) -> None:
    file = tmp_path / METRICS
    file.touch()
    first, sent = relay(file)
    write(file, 10, 20)
    first.pump()
    assert sent.calls == [("log", 10), ("log", 20)]
    write(file, 30)  # by a worker that outlived its driver
    second, sent = relay(file)
    assert second.step == 20
    second.pump()
    assert sent.calls == [("progress", 20), ("log", 30)]
    write(file, 20, 30)  # from the checkpoint before
    third, sent = relay(file)
    third.pump()
    assert sent.calls == [("progress", 30), ("rewind", 20), ("log", 20), ("log", 30)]


def test_a_mark_that_is_damaged_sends_all_again(tmp_path: Path) -> None:
    file = tmp_path / METRICS
    write(file, 10)
    (tmp_path / "relayed").write_text("99999 10")
    first, sent = relay(file)
    first.pump()
    assert sent.calls == [("log", 10)]
