"""The best state of a supervised run stays until there is a better one; exports are whole or not there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from framework.errors import DamagedState
from framework.graph.exports import exports_of
from framework.roles.supervised_milestones import Milestones


@dataclass
class FakeTrainer:
    """Saves a number; one whose file says so is damaged."""

    weights: float = 0.0
    engine: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(rank=0, device=torch.device("cpu")))

    def save(self, directory: Path) -> None:
        (directory / "weights").write_text(str(self.weights))

    def load(self, directory: Path) -> None:
        if (text := (directory / "weights").read_text()) == "damaged":
            raise DamagedState(str(directory), "a digest", "another")
        self.weights = float(text)

    def export(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        (directory / "config.json").write_text("{}")


@pytest.fixture(autouse=True)
def process_group(tmp_path: Path) -> Iterator[None]:
    if dist.is_initialized():  # by an engine of an earlier test, for the life of the process
        yield
        return
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def trained(place: Path, losses: list[float], milestones: Milestones) -> FakeTrainer:
    """One evaluation a step; the weights are the step."""
    trainer = FakeTrainer()
    for step, loss in enumerate(losses, start=1):
        trainer.weights = step
        milestones.evaluated(place, trainer, step, loss)  # type: ignore[arg-type]
        milestones.stepped(place, trainer, step)  # type: ignore[arg-type]
    return trainer


def test_the_state_of_the_lowest_loss_is_kept_and_given_on(tmp_path: Path) -> None:
    milestones = Milestones(export="best")
    trainer = trained(tmp_path, [3.0, 2.0, 2.5, float("nan"), 2.0], milestones)
    assert [path.name for path in (tmp_path / "best").glob("step_*")] == ["step_000002"]
    assert "step 2 is given on: its held-out loss is the lowest, 2.0000" in milestones.finish(tmp_path, trainer)  # type: ignore[arg-type]
    assert trainer.weights == 2
    again = trained(tmp_path, [1.0], milestones)  # a resume that goes on to a lower one
    assert milestones.finish(tmp_path, again)  # type: ignore[arg-type]
    assert (again.weights, len(list((tmp_path / "best").glob("step_*")))) == (1, 1)


def test_a_damaged_best_or_none_leaves_the_last(tmp_path: Path) -> None:
    milestones = Milestones(export="best")
    trainer = trained(tmp_path, [1.0, 2.0], milestones)
    (tmp_path / "best" / "step_000001" / "weights").write_text("damaged")
    assert "the last one is given on" in milestones.finish(tmp_path, trainer)  # type: ignore[arg-type]
    assert trainer.weights == 2
    assert "nothing was held out" in milestones.finish(tmp_path / "other", trainer)  # type: ignore[arg-type]
    plain = Milestones()
    trained(tmp_path / "plain", [1.0], plain)
    assert plain.finish(tmp_path / "plain", trainer) == ""  # type: ignore[arg-type]
    assert not (tmp_path / "plain").exists()


def test_a_death_before_the_note_keeps_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    milestones = Milestones(export="best")
    trained(tmp_path, [2.0], milestones)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("framework.roles.supervised_milestones.write_atomically", killed)
    trainer = FakeTrainer(weights=7.0)
    with pytest.raises(KeyboardInterrupt):
        milestones.evaluated(tmp_path, trainer, 7, 1.0)  # type: ignore[arg-type]
    assert "step 1 is given on" in milestones.finish(tmp_path, trainer)  # type: ignore[arg-type]


def test_exports_are_found_by_their_step(tmp_path: Path) -> None:
    place = tmp_path / "state" / "sft-0123456789ab"
    trained(place, [1.0] * 6, Milestones(export_every=3))
    assert [(export.node, export.step) for export in exports_of(tmp_path)] == [("sft", 3), ("sft", 6)]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", b'{"name": 3, "step": 1, "loss": 0.5}'])
def test_a_damaged_note_of_the_best_gives_on_the_last(tmp_path: Path, content: bytes) -> None:
    milestones = Milestones(export="best")
    trainer = trained(tmp_path, [3.0, 1.0, 2.0], milestones)
    (tmp_path / "best" / "BEST").write_bytes(content)
    told = milestones.finish(tmp_path, trainer)  # type: ignore[arg-type]
    assert "BEST is damaged" in told
    assert "the last model is given on" in told
    assert trainer.weights == 3
