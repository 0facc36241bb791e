"""Where a process computes is the cluster's to say, whatever PyTorch finds on the machine."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch

from framework.engines.checkpoint import _random_states, _restore_random_states
from framework.engines.cpu.environment import worker_environment
from framework.engines.device import DEVICE, device_environment, on_gpu
from tests.learners import minibatch, tiny_learner

ROOT = Path(__file__).parents[3]
REFUSES = {"framework/rewards/reward_model.py"}  # a GPU that it was told of and that is not there; it chooses nothing
QUESTIONS = {"is_available", "device_count", "current_accelerator", "is_initialized"}
OF = {"cuda", "accelerator"}


def questions(source: str) -> list[str]:
    """What a file asks PyTorch about the machine, e.g. torch.cuda.is_available."""
    names = (ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute))
    return [name for name in names if name.rpartition(".")[2] in QUESTIONS and OF & set(name.split("."))]


def test_nothing_asks_pytorch_whether_there_is_a_gpu() -> None:
    assert questions("if torch.cuda.is_available(): pass") == ["torch.cuda.is_available"]
    files = [file for folder in ("framework", "jobs") for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    asking = {str(file.relative_to(ROOT)) for file in files if questions(file.read_text())}
    assert asking == REFUSES


def test_a_cpu_jobs_decisions_are_the_same_on_a_machine_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    import deepspeed

    asked: dict[str, Any] = {}
    join, initialize = deepspeed.init_distributed, deepspeed.initialize

    def joined(**options: Any) -> Any:
        asked["backend"] = options["dist_backend"]
        return join(**options)

    def initialized(**options: Any) -> Any:
        asked["overlap"] = options["config"]["zero_optimization"]["overlap_comm"]
        asked["activation"] = options["config"]["expert_parallel"].get("expert_activation")
        return initialize(**options)

    monkeypatch.setattr(deepspeed, "init_distributed", joined)
    monkeypatch.setattr(deepspeed, "initialize", initialized)
    monkeypatch.delenv(DEVICE, raising=False)
    decisions = []
    for gpus in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpus=gpus: gpus)
        learner = tiny_learner()
        loss = learner.train_minibatch(minibatch()).metrics["loss"]
        norms = {type(module).__name__ for module in learner.engine.model.modules() if "Norm" in type(module).__name__}
        states = _random_states()
        _restore_random_states(states)
        decisions.append((dict(asked), str(learner.engine.device), loss, norms, sorted(states)))
    assert decisions[0] == decisions[1]
    assert decisions[1][:2] == ({"backend": "gloo", "overlap": False, "activation": asked["activation"]}, "cpu")
    assert asked["activation"] is not None


def test_an_actor_is_told_and_one_for_the_cpu_sees_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DEVICE, raising=False)
    assert not on_gpu()  # a process that nobody told
    cpu, gpu = worker_environment(1, on_gpu=False), worker_environment(1, on_gpu=True)
    assert cpu["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in gpu  # Ray's to set
    for environment, expected in ((cpu, False), (gpu, True)):
        monkeypatch.setenv(DEVICE, environment[DEVICE])
        assert on_gpu() is expected
    assert device_environment(gpu=False).items() <= cpu.items()
