"""Estimated memory of a training rank (`framework plan`) against measured, by part, for several families and layouts.

Measured on CPU ranks, exactly: weights, optimizer state and standing gradient buffers are the storages of live tensors,
the rest comes from every allocation and release that PyTorch's CPU allocator reports during one optimizer step of two
micro-batches. What the first backward leaves behind are gradients; the second micro-batch's peak above that are
activations.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import multiprocessing
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch

from framework.algorithms.lm_loss import lm_loss
from framework.engines.deepspeed_engine import DeepSpeedConfig, TrainingEngine
from framework.engines.mtp_step import MtpStep
from framework.models.estimate import PARTS, TrainingMemory, training_memory
from framework.models.families.base import ModelConfig, RankLayout, recast
from framework.models.families.deepseek import DeepseekMoe
from framework.models.families.deepseek_v2 import DeepseekV2
from framework.models.families.deepseek_v3 import DeepseekV3
from framework.models.families.qwen2 import Qwen2
from framework.models.output_head import Asked, scores_of, use_output_head
from framework.models.packed_attention import SegmentLayout, packed_logprobs, use_packed_attention
from framework.models.spec import build_model, parameter_counts
from framework.objectives.lm import StreamLm
from framework.objectives.objective import Share
from jobs.bench._common import report

MIB = 2**20


@dataclass(frozen=True)
class Measured:
    """Bytes of one rank; `peak` is of the whole step, not the sum of the parts."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int


@dataclass(frozen=True)
class Case:
    """A model under an engine's configuration, fed rows of `length` tokens."""

    spec: ModelConfig
    config: DeepSpeedConfig
    length: int

    def estimate(self, world: int) -> TrainingMemory:
        """What `framework plan` would say of a CPU rank."""
        config = self.config
        return training_memory(
            self.spec,
            RankLayout(
                dtype=config.dtype,
                zero_stage=config.zero_stage,
                ep_size=config.ep_size,
                world=world,
                micro_tokens=-(-config.token_budget // config.sp_size),
                checkpointing=config.gradient_checkpointing,
                segment=self.length,
                on_gpu=False,
                mtp=bool(config.mtp_coef),
                sp_size=config.sp_size,
            ),
        )


def measure(case: Case) -> Measured:
    """Train this rank's model for a step of two micro-batches, then measure another; every rank calls it."""
    from torch.autograd.profiler import profile, record_function

    spec, config, length = case.spec, case.config, case.length
    others = _live()  # what earlier engines of this process left; held, so that no address is used again
    model = build_model(spec, seed=0)
    use_output_head(model)
    if config.sp_size > 1:
        use_packed_attention(model)
    engine, rows = TrainingEngine(model, config), max(1, config.token_budget // length)
    tokens = torch.Generator().manual_seed(int(os.environ.get("RANK", 0)) // config.sp_size)
    micros = torch.randint(spec.vocab_size, (2, rows, length + 1), generator=tokens)  # routing decides what is computed
    for index, micro in enumerate(micros):
        engine.backward(_loss(engine, micro), last=index == 1)
    engine.step()
    weights = _size(_storages(_weights(engine.model)))
    optimizer = _size(_storages(_optimizer_tensors(engine.native.optimizer)))
    gathered = list[int]()

    def whole(*_: Any) -> None:
        gathered.append(_size(_storages([*_weights(engine.model), *engine.model.parameters()])) - weights)

    engine.model.lm_head.register_forward_hook(whole, prepend=True)
    with _settled_collectives(), profile(use_cpu=True, profile_memory=True) as profiler:
        for index, micro in enumerate(micros):
            engine.backward(_loss(engine, micro), last=index == 1)
            if index == 0:
                # Counted anew: what gloo's threads release, the profiler does not see.
                gradients = _storages(p.grad for p in engine.model.parameters() if p.grad is not None)
                held = _size(storage for storage in _live() | gradients if storage not in others) - micros.nbytes
            with record_function(f"micro-batch {index}"):
                pass
        engine.step()
    sizes, marks = _replay(profiler)
    second = sizes[marks["micro-batch 0"] :]
    above = max(second[: marks["micro-batch 1"] - marks["micro-batch 0"] + 1]) - second[0]
    return Measured(
        weights=weights + max(gathered),
        gradients=held - weights - optimizer,
        optimizer=optimizer,
        activations=above - max(gathered),
        peak=held + max(second) - second[0],
    )


@contextlib.contextmanager
def _settled_collectives() -> Iterator[None]:
    """Wait after each collective until gloo's thread has let go of its tensors: what it releases, no profiler sees."""

    def settled(collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            done = collective(*args, **kwargs)
            time.sleep(0.005)
            return done

        return call

    names = ("all_to_all_single", "all_reduce", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor")
    patches = {name: settled(getattr(torch.distributed, name)) for name in names}
    with mock.patch.multiple(torch.distributed, **patches):
        yield


def _loss(engine: TrainingEngine, rows_BT: torch.Tensor) -> torch.Tensor:
    """As the trainer's."""
    (micro,), mtp = StreamLm().micro_batches(rows_BT, Share(rows_BT.numel())), MtpStep(engine)
    if engine.sequence_group is not None:
        layout = SegmentLayout.of_lengths(micro.segment_lengths_S.tolist()).spread(engine.sequence_group)
        return lm_loss(packed_logprobs(engine.forward, micro, layout=layout).logprobs_T, micro.mask_T).loss
    more = mtp.inputs(micro)
    more["asked"] = [Asked(micro.targets_T), *more.get("asked", ())]
    found = engine.forward(input_ids=rows_BT[:, :-1], use_cache=False, **more)
    main = lm_loss(scores_of(found.logits).logprobs_T, micro.mask_T).loss
    return mtp.add(main, found.get("mtp_logits"), 1.0)


def _live() -> set[torch.UntypedStorage]:
    gc.collect()
    return _storages(found for found in gc.get_objects() if isinstance(found, torch.Tensor))


def _storages(tensors: Iterable[torch.Tensor]) -> set[torch.UntypedStorage]:
    """Each once: PyTorch keeps one Python object a storage for as long as it lives."""
    return {tensor.untyped_storage() for tensor in tensors if tensor.device.type != "meta"}


def _size(storages: Iterable[torch.UntypedStorage]) -> int:
    return sum(storage.nbytes() for storage in storages)


def _weights(model: torch.nn.Module) -> Iterable[torch.Tensor]:
    for parameter in model.parameters():
        yield getattr(parameter, "ds_tensor", parameter.data)
    yield from model.buffers()


def _optimizer_tensors(optimizer: Any) -> Iterable[torch.Tensor]:
    inner = optimizer.optimizer  # PyTorch's, inside DeepSpeed's
    for group in inner.param_groups:
        yield from group["params"]
    for state in inner.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))
    yield from getattr(optimizer, "fp32_partitioned_groups_flat", ())


def _replay(profiler: Any) -> tuple[list[int], dict[str, int]]:
    """Bytes allocated since the start after each event, and the index of the last event before each mark."""
    sizes, marks = [0], {}
    for event in sorted(profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            sizes.append(sizes[-1] + event.nbytes())
        elif event.name().startswith("micro-batch"):
            marks[event.name()] = len(sizes) - 1
    return sizes, marks


def families(hidden: int, layers: int, vocabulary: int) -> dict[str, ModelConfig]:
    """One model of each kind: eight experts, keys and values of 64, which the CPU has a fused attention kernel for."""
    v3 = DeepseekV3(
        name="v3", vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=layers, dtype="float32",
        num_attention_heads=hidden // 64, intermediate_size=8 * hidden // 3, max_position_embeddings=4096,
        q_lora_rank=hidden // 3, kv_lora_rank=hidden // 3, qk_nope_head_dim=48, qk_rope_head_dim=16, v_head_dim=64,
        n_routed_experts=8, num_experts_per_tok=4, n_group=4, topk_group=2, moe_intermediate_size=hidden // 2,
        first_k_dense_replace=1,
    )  # fmt: skip
    softmax = {"norm_topk_prob": False, "n_shared_experts": 2}
    return {
        "v3": v3,
        "v3 mtp": replace(v3, name="v3 mtp", num_nextn_predict_layers=1),
        "v2": recast(v3, DeepseekV2, name="v2", **softmax),
        "moe": recast(v3, DeepseekMoe, name="moe", **softmax),
        "dense": recast(v3, Qwen2, name="dense", num_key_value_heads=hidden // 64 // 2),
    }


def measure_cases(cases: Sequence[Case]) -> list[Measured]:
    """`measure` of each case, in this rank."""
    return [measure(case) for case in cases]


def on_ranks(world: int, cases: Sequence[Case]) -> list[Measured]:
    """Rank 0's measurements; the ranks are fresh processes joined by gloo."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    with context.Pool(world) as pool:
        return pool.starmap(_rank, [(rank, world, port, cases) for rank in range(world)], chunksize=1)[0]


def _rank(rank: int, world: int, port: int, cases: Sequence[Case]) -> list[Measured]:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    return measure_cases(cases)


def shipped_cases(world: int, tokens: int) -> Iterator[Case]:
    """One rank: every family with and without checkpointing. Two: every ZeRO stage and expert-parallel size."""
    found = families(hidden=384, layers=4, vocabulary=4096)
    base = DeepSpeedConfig(token_budget=tokens)
    if world == 1:
        for spec in found.values():
            for dtype in ("float32", "bfloat16"):
                for checkpointing in (False, True):
                    yield Case(spec, replace(base, dtype=dtype, gradient_checkpointing=checkpointing), tokens // 4)
        return
    for stage in (1, 2, 3):
        for ep_size in (1, 2):
            for dtype in ("float32", "bfloat16"):
                yield Case(found["v3"], replace(base, dtype=dtype, zero_stage=stage, ep_size=ep_size), tokens // 4)


def row(world: int, case: Case, measured: Measured) -> dict[str, Any]:
    """MiB measured of each part, and by how many per cent the estimate differs."""
    estimate, config, counts = case.estimate(world), case.config, parameter_counts(case.spec)
    cells: dict[str, Any] = {
        "family": case.spec.name,
        "million": round((counts.total + counts.mtp) / 1e6, 1),
        "ranks": world,
        "zero": config.zero_stage,
        "ep": config.ep_size,
        "dtype": config.dtype,
        "ckpt": "on" if config.gradient_checkpointing else "off",
    }
    for name in (*PARTS, "peak"):
        found, guess = getattr(measured, name), estimate.total if name == "peak" else getattr(estimate, name)
        cells |= {name: round(found / MIB, 1), f"{name} %": round(100 * (guess / found - 1), 1)}
    return cells


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; `framework bench memory`."""
    parser = argparse.ArgumentParser(prog="framework bench memory", description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of a micro-batch")
    parser.add_argument("--ranks", type=int, nargs="+", choices=[1, 2], default=[1, 2])
    arguments = parser.parse_args(argv)
    rows = []
    for world in arguments.ranks:
        cases = list(shipped_cases(world, arguments.tokens))
        rows += [row(world, *pair) for pair in zip(cases, on_ranks(world, cases), strict=True)]
    worst = {f"largest error of {name}, %": max(abs(r[f"{name} %"]) for r in rows) for name in (*PARTS, "peak")}
    report("memory", rows, {"unit": "MiB of rank 0; % is estimate against measured", **worst})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
