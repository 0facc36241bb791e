"""How vLLM's engine is put to sleep and woken: sleep mode needs a GPU, so a double records the calls."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from framework.engines.engine_loop import EngineLoop
from framework.engines.vllm_engine import VllmConfig, VllmSampler
from framework.engines.weights import flatten
from framework.types import Prompt, SamplingParams


class RecordedEngine:
    """Samples for ever; records what is asked of it."""

    vllm_config = SimpleNamespace(speculative_config=None, parallel_config=SimpleNamespace(tensor_parallel_size=1))
    engine_core = SimpleNamespace(shutdown=lambda: None)

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.requests: list[str] = []

    def add_request(self, request_id: str, prompt: Any, params: Any) -> None:
        self.requests.append(request_id)

    def has_unfinished_requests(self) -> bool:
        return bool(self.requests)

    def step(self) -> list[Any]:
        return []

    def abort_request(self, ids: list[str]) -> None:
        self.requests = [one for one in self.requests if one not in ids]
        self.calls.append(("abort", len(ids)))

    def reset_prefix_cache(self, reset_running_requests: bool) -> bool:
        self.calls.append("reset_prefix_cache")
        return True

    def collective_rpc(self, method: Any, timeout: float, kwargs: Any = None) -> None:
        assert timeout > 0
        if isinstance(method, str):
            self.calls.append(method)

    def set_weight_version(self, version: str) -> None:
        self.calls.append(("version", version))

    def sleep(self, level: int) -> None:
        self.calls.append(("sleep", level))

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(("wake", tags))


async def test_it_gives_up_sleeps_wakes_its_weights_loads_and_wakes_its_cache() -> None:
    engine = RecordedEngine()
    sampler = VllmSampler(VllmConfig(max_model_len=64), sleeps=True)
    sampler._loop, sampler._vocabulary, sampler.version = EngineLoop(lambda: engine), 8, 0  # type: ignore[arg-type, return-value]
    await asyncio.wrap_future(sampler._loop.start())
    prompt = Prompt("p", "", "", "", token_ids=(1,))
    sampling = asyncio.create_task(sampler.generate(prompt, SamplingParams(max_tokens=8, n=2)))
    await asyncio.sleep(0)  # it submits
    await asyncio.wrap_future(sampler._loop.call(lambda engine: None))  # the engine has the request
    await sampler.sleep()
    assert (await sampling).responses == ()
    share = flatten([("w", torch.from_numpy(np.zeros(2, np.float32)))], 1)
    await sampler.update_weights([share])
    await sampler.update_weights([share])
    update = ["start_weight_update", "update_weights", "finish_weight_update"]
    woken = [("wake", ["weights"]), "reset_prefix_cache", *update, ("wake", ["kv_cache"]), ("version", "1")]
    awake = ["reset_prefix_cache", *update, ("version", "1")]
    assert engine.calls == [("abort", 1), ("sleep", 2), *woken, *awake]
    await sampler.stop()
