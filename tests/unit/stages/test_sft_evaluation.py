"""Evaluation in the middle of fine-tuning: when it is asked, what is given on, and how it goes on after a kill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from framework.errors import UserError
from framework.graph.nodes import Runtime
from framework.rewards.accuracy import Accuracy
from framework.rewards.base import RewardConfig
from framework.stages import sft_evaluation
from framework.stages.evaluate import EvaluateConfig
from framework.stages.sft import Sft, SftConfig
from framework.stages.sft_evaluation import EvaluatedTraining
from framework.types import Prompt
from tests.fake_clients import RecordingTracker
from tests.fake_sampling import FakeRun, Killed, fake_sampling
from tests.learners import TINY_V3

PROMPTS = tuple(Prompt(f"p{i}", f"What is {i} + 1?", "math", str(i + 1), token_ids=(1,)) for i in range(4))
ASKED = EvaluateConfig(k=2, temperature=1.0, max_tokens=8, reward=RewardConfig(components={"accuracy": Accuracy()}))
SKILL = {2: 3, 4: 4, 5: 1}  # step -> prompts that the model of that step solves


def answers(checkpoint: Path, prompt: Prompt, place: int) -> str:
    solved = int(prompt.id[1:]) < SKILL[int((checkpoint / "step").read_text())]
    return f"\\boxed{{{prompt.answer if solved else 0}}}"


class Training:
    """Leaves a model that knows its step; `until` lists the stretches."""

    def __init__(self) -> None:
        self.until: list[int] = []

    def __call__(self, until: int, out: Path, runtime: Runtime) -> None:
        self.until.append(until)
        runtime.tracker.progress(until, until, "loss")
        out.mkdir()
        (out / "step").write_text(str(until))


@pytest.mark.parametrize(("export", "given"), [("best", 4), ("last", 5)])
def test_the_best_or_the_last_is_given_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, export: str, given: int
) -> None:
    monkeypatch.setattr(sft_evaluation, "Sampling", fake_sampling(monkeypatch, answers))
    runtime, training = FakeRun(tmp_path).runtime(), Training()
    EvaluatedTraining(2, ASKED, PROMPTS, export).run(5, runtime, training, tmp_path / "out")  # type: ignore[arg-type]
    assert training.until == [2, 4, 5]
    assert isinstance(runtime.tracker, RecordingTracker)
    recorded = [(step, found["evaluation/pass_at_1"]) for step, found in runtime.tracker.metrics]
    assert recorded == [(2, 0.75), (4, 1.0), (5, 0.25)]
    assert (tmp_path / "out" / "step").read_text() == str(given)
    left = sorted(path.name for path in (runtime.work_dir / "evaluated").glob("step_*") if path.is_dir())
    assert left == ["step_000004", "step_000005"]


def test_a_killed_evaluation_goes_on_without_training_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place, training = FakeRun(tmp_path), Training()
    evaluated = EvaluatedTraining(2, ASKED, PROMPTS, "best")
    monkeypatch.setattr(sft_evaluation, "Sampling", fake_sampling(monkeypatch, answers, dies_at=6))
    with pytest.raises(Killed):
        evaluated.run(5, place.runtime(), training, tmp_path / "out")
    assert training.until == [2, 4]
    again = fake_sampling(monkeypatch, answers)
    monkeypatch.setattr(sft_evaluation, "Sampling", again)
    evaluated.run(5, place.runtime(), training, tmp_path / "out")
    assert training.until == [2, 4, 5]
    assert len(again.sampled) == 2 + 4  # what was left at step 4, and all at step 5
    assert (tmp_path / "out" / "step").read_text() == "4"


def test_what_cannot_be_evaluated_is_refused_at_plan() -> None:
    config = SftConfig(checkpoint_every=20)
    with pytest.raises(UserError, match="evaluate_every: got 30; must be a multiple of checkpoint_every=20"):
        replace(config, evaluate_every=30)
    with pytest.raises(UserError, match=r"needs job=sft, and prompts with answers as data\.heldout"):
        Sft(replace(config, evaluate_every=40), TINY_V3)
