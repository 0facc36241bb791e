"""Progress on a terminal and in a log."""

from __future__ import annotations

import contextlib
import io
import os
import time

import pytest

from framework.actors.awaiting import awaiting, format_seconds
from framework.observe.progress import ProgressConfig, StageProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_now_and_then_and_always_the_last() -> None:
    now = [0.0]
    log = io.StringIO()
    progress = StageProgress(ProgressConfig(seconds_between_lines=5.0), log, lambda: now[0])
    for done in range(101):
        progress.progress("grpo", done, 100, f"reward 0.{done}")
        now[0] += 0.125
    assert log.getvalue().splitlines() == [
        "[grpo] 0/100   0% 0 s  reward 0.0",
        "[grpo] 40/100  40% 5 s, 8 s left  reward 0.40",
        "[grpo] 80/100  80% 10 s, 2 s left  reward 0.80",
        "[grpo] 100/100 100% 12 s  reward 0.100",
    ]


def test_a_watcher_that_has_gone_ends_nothing() -> None:
    read, write = os.pipe()
    os.close(read)
    stream = open(write, "w")  # noqa: SIM115
    progress = StageProgress(ProgressConfig(seconds_between_lines=0.0), stream)
    for done in range(3):
        progress.progress("grpo", done, 3)
    with contextlib.suppress(BrokenPipeError):
        stream.close()


def test_the_last_line_appears_once() -> None:
    log = io.StringIO()
    progress = StageProgress(stream=log, clock=lambda: 0.0)
    progress.progress("eval", 1, 1)
    progress.progress("eval", 1, 1)
    assert log.getvalue() == "[eval] 1/1 100% 0 s\n"


def test_the_estimate_counts_only_what_this_process_did() -> None:
    now = [0.0]
    log = io.StringIO()
    progress = StageProgress(ProgressConfig(seconds_between_lines=0.0), log, lambda: now[0])
    progress.progress("grpo", 90, 100)
    now[0] = 10.0
    progress.progress("grpo", 95, 100)
    assert log.getvalue().splitlines()[-1] == "[grpo] 95/100  95% 10 s, 10 s left"


def test_an_unknown_total_is_shown_as_such() -> None:
    log = io.StringIO()
    StageProgress(stream=log, clock=lambda: 0.0).progress("collect", 3, 0)
    assert log.getvalue() == "[collect] 3/0   -  0 s\n"


def test_a_terminal_gets_a_bar_with_the_text_as_it_is() -> None:
    terminal = Terminal()
    progress = StageProgress(stream=terminal)
    progress.progress("pretrain", 1, 4, "loss [red]1.5")
    progress.progress("pretrain", 4, 4, "loss [red]1.2")
    progress.close("pretrain")
    shown = terminal.getvalue()
    assert "pretrain" in shown
    assert "4/4" in shown
    assert "loss [red]1.2" in shown


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")]
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_what_is_awaited_is_said_until_it_is_there() -> None:
    stream = io.StringIO()
    with awaiting("Ray to start", every_s=0.02, stream=stream):
        time.sleep(0.15)
    lines = stream.getvalue().splitlines()
    assert 2 <= len(lines) <= 8
    assert set(lines) == {"waiting for Ray to start: 0 s"}
    time.sleep(0.05)
    assert stream.getvalue().splitlines() == lines
    with awaiting("what is there at once", every_s=5.0, stream=stream):
        pass
    assert stream.getvalue().splitlines() == lines
