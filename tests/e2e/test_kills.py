"""Processes killed for real in the middle of GRPO: the run goes on or resumes, and the ledger shows nothing lost."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.e2e.runs import N_PROMPTS, Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
BATCHES, PROMPTS_PER_BATCH = 30, 4
EPOCHS = BATCHES * PROMPTS_PER_BATCH // N_PROMPTS
LONG = f"stage.grpo.steps={2 * BATCHES}"


def test_a_killed_driver_and_a_stopped_one_resume_with_the_same_command(grpo_run: Callable[..., Run]) -> None:
    run = grpo_run(LONG)
    run.start()
    run.until(lambda: run.batches_trained() >= 3)
    run.processes()
    assert run.process is not None
    run.process.kill()
    assert run.wait() == -signal.SIGKILL
    killed_at = run.batches_trained()
    assert 3 <= killed_at < BATCHES

    run.start()
    run.until(lambda: run.batches_trained() >= killed_at + 3)
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 130
    assert "the same command resumes" in run.output.splitlines()[-1]
    stopped_at = run.batches_trained()
    assert killed_at + 3 <= stopped_at < BATCHES

    run.start()
    assert run.wait() == 0, run.output[-3000:]
    run.assert_each_prompt_was_trained_once_an_epoch(EPOCHS)
    assert sorted(run.metrics("grpo")["reward/mean"]) == list(range(2, 2 * BATCHES + 1, 2))


def test_killed_actors_are_replaced_and_the_run_ends_by_itself(grpo_run: Callable[..., Run]) -> None:
    run = grpo_run(LONG)
    run.start()
    deaths = {
        "RewardWorker": "reward worker 0 lost",
        "RolloutWorker": "rollout worker 0 lost",
        "LearnerWorker": "learner lost",
    }
    for number, (role, notice) in enumerate(deaths.items()):
        run.until(lambda enough=4 * number + 2: run.batches_trained() >= enough)  # type: ignore[misc]
        run.actor(role).kill()
        run.until(lambda notice=notice: notice in run.output)  # type: ignore[misc]
    assert run.batches_trained() < BATCHES
    assert run.wait() == 0, run.output[-3000:]
    run.assert_each_prompt_was_trained_once_an_epoch(EPOCHS)
    assert sorted(run.metrics("grpo")["reward/mean"]) == list(range(2, 2 * BATCHES + 1, 2))
