"""What only a GPU shows: bf16 kernels, NCCL, and the whole loop with both engines on one device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from framework.engines.device import device_environment
from tests.learners import minibatch, samples, tiny_learner, tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; see tests/gpu/README.md"),
]


@pytest.fixture(autouse=True)
def told_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As actors of a cluster with GPUs are: what PyTorch sees decides nothing."""
    for name, value in device_environment(gpu=True).items():
        monkeypatch.setenv(name, value)


def test_learner_logprobs_on_the_gpu_are_those_of_the_cpu() -> None:
    from framework.data.packing import pack, unpack_responses
    from framework.models.packed_attention import packed_logprobs, use_packed_attention

    model = tiny_model()
    use_packed_attention(model)
    chosen = samples()
    expected: dict[int, np.ndarray] = {}
    with torch.no_grad():
        for micro in pack(chosen, 512):
            expected |= unpack_responses(packed_logprobs(model, micro).logprobs_T, micro)
    learner = tiny_learner(token_budget=512)
    for index, found in enumerate(learner.logprobs(chosen)):
        np.testing.assert_allclose(found, expected[index], atol=2e-3)


def test_a_bf16_step_moves_the_policy_and_stays_finite() -> None:
    learner = tiny_learner(dtype="bfloat16", zero_stage=2)
    before = np.concatenate(learner.logprobs(samples()))
    result = learner.train_minibatch(minibatch())
    assert np.isfinite(result.metrics["loss"])
    assert np.isfinite(result.metrics["grad_norm"])
    assert not np.allclose(before, np.concatenate(learner.logprobs(samples())))


def test_published_weights_leave_the_gpu_through_pinned_memory_bit_for_bit() -> None:
    from framework.engines.memory_file import STAGING_BYTES
    from framework.engines.weights import unflatten, write

    torch.manual_seed(0)
    tensors = [
        ("long", torch.randn(STAGING_BYTES // 2 + 1001, device="cuda").bfloat16()),  # two parts of the staging buffer
        ("cut", torch.randn(300, 200, device="cuda").t()[10:]),
        ("scalar", torch.tensor(3.0, device="cuda")),
    ]
    before = torch.cuda.memory_allocated()
    published, owner = write(iter(tensors), 1, "learner rank 0")
    assert torch.cuda.memory_allocated() == before
    for (_, sent), (_, received) in zip(tensors, unflatten(published), strict=True):
        assert torch.equal(sent.cpu(), received)
    owner.close()


def test_r1_zero_job_on_one_gpu(tmp_path: Path) -> None:
    from framework.cli import main

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
