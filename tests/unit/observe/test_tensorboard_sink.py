"""TensorBoard beside wandb: what the event files hold."""

from __future__ import annotations

import struct
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboardX.event_file_writer import EventsWriter

from framework.observe.background import BackgroundSink, Patience
from framework.observe.tensorboard_sink import TensorBoardTarget
from framework.observe.tracking import RunTracking
from framework.observe.wandb_sink import TrackingConfig
from framework.types import SampleRow


def events(folder: Path) -> list[tuple[str, int, Any]]:
    """Tag, step and value of everything in the event files (TFRecord: length, checksum, content, checksum)."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in sorted(folder.glob("events.out.*")):
        content, place = file.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack("<Q", content[place : place + 8])
            event = Event.FromString(content[place + 12 : place + 12 + length])
            place += length + 16
            found += [(value.tag, event.step, value) for value in event.summary.value]
    return found


def test_scalars_samples_and_heat_maps_arrive(tmp_path: Path) -> None:
    config = TrackingConfig(mode="none", tensorboard=True, heat_map_every=2)
    with RunTracking(config, tmp_path, {}) as tracking:
        tracker = tracking.tracker("grpo")
        for step in range(1, 4):
            tracker.log(step, {"reward/mean": 0.5 * step})
            tracker.expert_load(step, np.ones((2, 4)))
        tracker.samples(3, [SampleRow("a | b", "<answer>\n4</answer>", 1.0)])
    found = events(tmp_path / "tensorboard")
    rewards = [(step, value.simple_value) for tag, step, value in found if tag == "grpo/reward/mean"]
    assert rewards == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert [step for tag, step, _ in found if tag == "grpo/experts/load"] == [2]
    (text,) = [value.tensor.string_val[0].decode() for tag, _, value in found if tag.startswith("grpo/samples")]
    assert "| a \\| b | &lt;answer><br>4&lt;/answer> | 1.000 |" in text


def test_a_full_disk_costs_no_more_than_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that could not be written is written again once there is room, and nobody waits for ever."""
    full, flush = threading.Event(), EventsWriter.flush

    def refuse(self: EventsWriter) -> Any:
        if full.is_set():
            raise OSError(28, "No space left on device")
        return flush(self)

    monkeypatch.setattr(EventsWriter, "flush", refuse)
    target = TensorBoardTarget(tmp_path, heat_map_every=2, max_rows=4)
    sink = BackgroundSink(target, Patience(retry_s=0.05, retry_most_s=0.05))
    sink.log("grpo", 1, {"reward": 1.0})
    full.set()
    for step in range(2, 30):
        sink.log("grpo", step, {"reward": float(step)})
    time.sleep(0.3)
    full.clear()
    sink.finish(wait_s=30.0)
    assert sink.dropped == 0
    steps = {step for tag, step, _ in events(tmp_path / "tensorboard") if tag == "grpo/reward"}
    assert steps == set(range(1, 30))
