"""`framework bench gpu`: the same code on CPU cores, with a tiny model; without a GPU it is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework import cli
from framework.actors.ray_session import ray_session
from framework.engines.vllm_engine import VllmConfig
from framework.graph.cluster import ClusterConfig
from jobs.bench import gpu
from jobs.bench._checkpoints import tiny_v3


def test_without_a_gpu_it_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu, "machine", lambda: {"gpus": []})
    assert cli.main(["bench", "gpu"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setattr(gpu, "machine", lambda: {"gpus": ["NVIDIA Unheard-of 1, 8192 MiB"]})
    assert cli.main(["bench", "gpu"]) == 2
    assert "--tflops: got 'NVIDIA Unheard-of 1, 8192 MiB'; give the card's" in capsys.readouterr().err


@pytest.mark.slow
def test_its_parts_run_on_cpu_cores(tmp_path: Path) -> None:
    rollout = VllmConfig(
        dtype="float32", max_model_len=128, max_num_seqs=8, kv_cache_gib=0.25, mla=False, warm_up=False
    )
    size = gpu.Size(tiny_v3(), prompts=2, group=2, max_tokens=16, budget=128, repeats=1, rollout=rollout)
    cluster = ClusterConfig(cpus=2)
    with ray_session(cluster):
        rows = {row["what"]: row["value"] for row in gpu.measured(size, cluster, tmp_path, peak_tflops=0.1)}
    positive = ("both ready", "sampler", "learner", "learner, MFU", "learner, kernels a step")
    assert all(rows[name] > 0 for name in (*positive, "weight update, publish to served"))
    assert 0 <= rows["mismatch, mean"] <= rows["mismatch, largest"] < 1e-3
    assert len(rows) == len(positive) + gpu.SHOWN + 3


def test_a_card_has_room_for_what_is_measured() -> None:
    from framework.engines.deepspeed_engine import DeepSpeedConfig
    from framework.models.estimate import GIB, sampler_memory, training_memory
    from framework.stages.memory import rank_layout

    size, cluster = gpu.on_card(), ClusterConfig(gpus_per_node=1, colocate=True)
    engine = DeepSpeedConfig(dtype="bfloat16", token_budget=size.budget, gradient_checkpointing=True)
    learner = training_memory(size.spec, rank_layout(engine, 1, cluster, size.max_tokens)).total / GIB
    assert learner + sampler_memory(size.spec, 1, 0)["weights"] + (size.rollout.kv_cache_gib or 0) < 60
