"""Training steps, vLLM's updates and sleep, memory, and the whole loop, against what the CPU or a fresh one says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from framework.engines.device import device_environment
from framework.engines.vllm_engine import VllmConfig
from tests.distributed import run_ranks
from tests.gpu import devices, needs, parts

pytestmark = pytest.mark.slow
TOLERANCE = {"float32": (1e-3, 5e-4), "bfloat16": (5e-2, 0.3)}  # relative of loss and norm, mean of logprobs in nats


@pytest.fixture(scope="module")
def expected() -> parts.Steps:
    """ZeRO-1 on one rank of the CPU, in float32."""
    (found,) = run_ranks(parts.steps, 1, 1, 1, "float32")
    return found


def same(found: parts.Steps, expected: parts.Steps, dtype: str) -> None:
    relative, absolute = TOLERANCE[dtype]
    np.testing.assert_allclose(found.losses, expected.losses, rtol=relative, atol=relative)
    np.testing.assert_allclose(found.grad_norms, expected.grad_norms, rtol=relative)
    assert float(np.abs(found.logprobs - expected.logprobs).mean()) < absolute  # in bfloat16 tokens change experts


@devices()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_steps_are_those_of_zero_1_on_the_cpu(device: str, zero_stage: int, dtype: str, expected: parts.Steps) -> None:
    if device == "cpu" and (zero_stage, dtype) != (2, "bfloat16"):
        pytest.skip("the contract of learners has it")
    (found,) = run_ranks(parts.steps, 1, zero_stage, 1, dtype, gpu=device == "cuda")
    same(found, expected, dtype)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=needs(1))])
def test_zero_1_on_the_gpu(device: str, expected: parts.Steps) -> None:
    (found,) = run_ranks(parts.steps, 1, 1, 1, "float32", gpu=True)
    same(found, expected, "float32")


@devices(2)
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_two_ranks_with_experts_over_both(device: str, zero_stage: int, expected: parts.Steps) -> None:
    if device == "cpu" and zero_stage != 2:
        pytest.skip("the contract of learners has it")
    for found in run_ranks(parts.steps, 2, zero_stage, 2, "float32", gpu=device == "cuda"):
        same(found, expected, "float32")


@devices()
def test_the_peak_of_memory_is_the_plans(device: str) -> None:
    ((peak, plan),) = run_ranks(parts.peak_and_plan, 1, "bfloat16", gpu=device == "cuda")
    assert peak == pytest.approx(plan, rel=0.1 if device == "cpu" else 0.25)


def engine(device: str, **more: Any) -> VllmConfig:
    """Latent attention under CUDA graphs in bfloat16; on a CPU plain attention in float32."""
    common: dict[str, Any] = {"max_model_len": 256, "max_num_seqs": 8, "kv_cache_gib": 0.25, "warm_up": False}
    if device == "cuda":
        return VllmConfig(dtype="bfloat16", enforce_eager=False, **common, **more)
    return VllmConfig(dtype="float32", mla=False, **common, **more)


def check(found: parts.Sampled) -> None:
    assert found.updated == found.fresh
    assert found.spanning, "the response had ended before the update came"
    assert found.spanning == found.continued


@devices()
def test_an_updated_engine_samples_as_a_fresh_one(device: str, tmp_path: Path) -> None:
    (found,) = run_ranks(parts.sampled, 1, tmp_path, engine(device), gpu=device == "cuda")
    check(found)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=needs(2))])
def test_an_update_of_two_tensor_parallel_workers(device: str, tmp_path: Path) -> None:
    (found,) = run_ranks(parts.sampled, 1, tmp_path, engine(device, tensor_parallel_size=2), gpu=True, devices="0,1")
    check(found)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=needs(1))])
def test_an_engine_that_sleeps_gives_its_memory_back_and_wakes_with_new_weights(device: str, tmp_path: Path) -> None:
    ((awake, asleep, before, after),) = run_ranks(parts.slept, 1, tmp_path, engine(device), gpu=True)
    assert asleep - awake > 0.25 * 2**30, "its cache alone was as much"
    assert before == after


@devices()
def test_published_weights_leave_the_gpu_through_pinned_memory_bit_for_bit(device: str) -> None:
    from framework.engines.memory_file import STAGING_BYTES
    from framework.engines.weights import unflatten, write

    torch.manual_seed(0)
    length = STAGING_BYTES // 2 + 1001 if device == "cuda" else 1001  # two parts of the staging buffer
    tensors = [
        ("long", torch.randn(length, device=device).bfloat16()),
        ("cut", torch.randn(300, 200, device=device).t()[10:]),
        ("scalar", torch.tensor(3.0, device=device)),
    ]
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    published, owner = write(iter(tensors), 1, "learner rank 0")
    assert device == "cpu" or torch.cuda.memory_allocated() == before
    for (_, sent), (_, received) in zip(tensors, unflatten(published), strict=True):
        assert torch.equal(sent.cpu(), received)
    owner.close()


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=needs(1))])
def test_r1_zero_job_on_one_gpu(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from framework.cli import main

    for name, value in device_environment(gpu=True).items():
        monkeypatch.setenv(name, value)
    overrides = [
        "run=gpu",
        f"runs_dir={tmp_path}",
        "cluster.gpus_per_node=1",
        "cluster.colocate=true",
        "stage.pretrain.workers=1",
        "stage.pretrain.steps=40",
        "stage.grpo.steps=8",
        "data.documents=3000",
        "data.heldout_prompts=16",
        "stage.evaluate.k=4",
        "tracking=none",
    ]
    assert main(["run", *overrides]) == 0
    assert (tmp_path / "gpu" / "report.html").is_file()
