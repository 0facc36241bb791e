"""A sampler whose two worker processes each hold half of the model: what updates do to it, and what they cost.

One engine for all of it: it takes as long to start as three others.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from vllm import envs

from framework.engines import update_progress
from framework.engines.cpu.environment import worker_environment
from framework.engines.share_server import ShareServer
from framework.engines.vllm_engine import VllmConfig, VllmSampler
from framework.engines.weights import write
from framework.errors import RunFailed
from framework.models.families.deepseek_v3 import DeepseekV3
from framework.models.spec import build_model
from framework.types import MemoryFile, Prompt, PublishedWeights, Response, SamplingParams
from jobs.bench._checkpoints import save_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SPEC = DeepseekV3(
    name="tp", vocab_size=512, hidden_size=512, num_hidden_layers=24, num_attention_heads=8, intermediate_size=1024,
    max_position_embeddings=128, dtype="float32", q_lora_rank=64, kv_lora_rank=64, qk_nope_head_dim=32,
    qk_rope_head_dim=16, v_head_dim=32, n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1,
    moe_intermediate_size=256, first_k_dense_replace=1, initializer_range=0.02,
)  # fmt: skip
CONFIG = VllmConfig(
    "float32", max_model_len=64, max_num_seqs=8, kv_cache_gib=0.05, tensor_parallel_size=2, mla=False, warm_up=False
)
PROMPT = Prompt("p", "", "", "", token_ids=(5, 6, 7))


class Policy:
    """What two expert-parallel learner ranks hold, in memory of this process."""

    def __init__(self) -> None:
        self.model = build_model(SPEC, seed=1).float().eval()
        self.version = 0
        self.owners: list[object] = []
        self.servers = [ShareServer("127.0.0.1") for _ in range(2)]

    def publish(self, seed: int) -> list[PublishedWeights]:
        """Move every weight and correction bias; rank 1 publishes the upper half of each layer's experts."""
        from transformers.core_model_loading import revert_weight_conversion

        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
            for name, buffer in self.model.named_buffers():
                if name.endswith("e_score_correction_bias"):
                    buffer.add_(0.3 * torch.randn_like(buffer))
        self.version += 1
        tensors = list(revert_weight_conversion(self.model, self.model.state_dict()).items())
        shares: list[PublishedWeights] = []
        for rank, server in enumerate(self.servers):
            own = [(name, tensor) for name, tensor in tensors if self.rank_of(name) == rank]
            published, owner = write(own, self.version, f"learner rank {rank}", server.address)
            server.offer(published)
            self.owners.append(owner)
            shares.append(published)
        return shares

    @staticmethod
    def rank_of(name: str) -> int:
        expert = name.partition(".experts.")[2].partition(".")[0]
        return int(bool(expert) and int(expert) >= 2)

    @torch.no_grad()
    def logprobs(self, response: Response) -> np.ndarray:
        ids = [*PROMPT.token_ids, *response.token_ids.tolist()]
        logprobs = self.model(torch.tensor([ids])).logits[0, len(PROMPT.token_ids) - 1 : -1].float().log_softmax(-1)
        return logprobs.gather(1, torch.tensor(ids[len(PROMPT.token_ids) :])[:, None])[:, 0].numpy()


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy()


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmSampler]:
    envs.disable_envs_cache()  # an engine that this process had before has fixed what the environment was then
    checkpoint = save_checkpoint(SPEC, tmp_path_factory.mktemp("tp") / "base")
    sampler = VllmSampler(CONFIG)
    with pytest.MonkeyPatch.context() as patch:  # workers are started as an actor starts them, with its allocator
        for name, value in worker_environment(1, on_gpu=False).items():
            patch.setenv(name, value)
        patch.setenv("VLLM_WORKER_MULTIPROCESSING_METHOD", "spawn")
        asyncio.run(sampler.start(Path(checkpoint), weights_follow=True))
    yield sampler
    if sampler.healthy:
        asyncio.run(sampler.stop())
        return
    for worker in workers():  # an engine that has failed leaves them to the end of its process
        worker.kill()


def workers() -> list[psutil.Process]:
    """The engine's worker processes, first rank first."""
    titles = {" ".join(child.cmdline()): child for child in psutil.Process().children()}
    found = [title for title in sorted(titles) if "VLLM::Worker" in title]  # ..._TP0, ..._TP1
    assert len(found) == 2, list(titles)
    return [titles[title] for title in found]


async def assert_samples_from(policy: Policy, sampler: VllmSampler) -> None:
    group = await sampler.generate(PROMPT, SamplingParams(max_tokens=8, n=2, seed=policy.version))
    for response in group.responses:
        assert set(response.weight_versions.tolist()) == {policy.version}
        np.testing.assert_allclose(response.logprobs, policy.logprobs(response), atol=2e-4)


async def test_both_workers_map_every_update_and_hardly_grow_by_it(policy: Policy, sampler: VllmSampler) -> None:
    grown: list[int] = []
    for seed in range(4):
        shares = policy.publish(seed)
        before = [worker.memory_info().rss for worker in workers()]
        for worker in workers():
            Path(f"/proc/{worker.pid}/clear_refs").write_text("5")  # the peak starts anew
        assert await sampler.update_weights(shares) == policy.version
        grown += [_peak(worker.pid) - was for worker, was in zip(workers(), before, strict=True)]
        await assert_samples_from(policy, sampler)
    size = sum(share.size for share in shares)
    assert size > 150e6
    print(f"model {size / 1e6:.0f} MB, workers grew by {[round(n / 1e6, 1) for n in grown]} MB at most")
    assert max(grown) < 0.1 * size


async def test_workers_elsewhere_fetch_what_they_load_and_each_byte_once(policy: Policy, sampler: VllmSampler) -> None:
    shares = policy.publish(7)
    remote = [dataclasses.replace(s, buffer=dataclasses.replace(_file(s), machine="another")) for s in shares]
    before = [server.sent for server in policy.servers]
    assert await sampler.update_weights(remote) == policy.version
    await assert_samples_from(policy, sampler)
    sent = [server.sent - was for server, was in zip(policy.servers, before, strict=True)]
    of_experts = shares[1].size
    assert sent[1] == of_experts  # half of each expert to each worker
    whole = ("norm", "_a_proj", "mlp.gate.")  # what both workers have: norms, routers, projections to latents
    twice = sum(int(np.prod(t.shape)) * 4 for t in shares[0].tensors if any(part in t.name for part in whole))
    once = sum(int(np.prod(t.shape)) * 4 for t in shares[0].tensors)
    assert sent[0] == once + twice


async def test_a_worker_that_stops_in_an_update_is_named(
    policy: Policy, sampler: VllmSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update_progress, "update_limit", lambda size: 10.0)
    second = workers()[1]
    os.kill(second.pid, signal.SIGSTOP)
    try:
        with pytest.raises(RunFailed, match=r"10 s; late is tensor-parallel rank 1 of 2: has not begun"):
            await sampler.update_weights(policy.publish(8))
    finally:
        os.kill(second.pid, signal.SIGCONT)
    assert not sampler.healthy


def _file(share: PublishedWeights) -> MemoryFile:
    assert isinstance(share.buffer, MemoryFile)
    return share.buffer


def _peak(process: int) -> int:
    """Bytes resident at most since `clear_refs`, shared ones too."""
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])
