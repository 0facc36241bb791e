"""The MoE layer, forward and backward, in every implementation at hand; on a GPU also a whole model's share of peak.

Implementations take turns inside one process. Expert parallelism runs on two processes, each with its own tokens,
beside two processes that hold all experts each: the cores and the tokens are the same.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from framework.engines.deepspeed_engine import DeepSpeedConfig, TrainingEngine
from framework.engines.device import on_gpu
from framework.engines.expert_parallel import moe_layers
from framework.models.estimate import training_memory
from framework.models.families.base import ModelConfig, RankLayout
from framework.models.families.deepseek_v3 import DeepseekV3
from framework.models.spec import build_model, parameter_counts
from jobs.bench._common import report, run_as_worker, spread

WARM_UP = 2
TRANSFORMERS = ("eager", "grouped_mm", "batched_mm")
COPIES = 2**29  # bytes that batched_mm may copy: it gives each token its experts' weights
AUTOEP = {  # attributes of DeepSpeed's GroupedExperts
    "autoep grouped_mm": {"use_grouped_mm": True, "gate_up_impl": "separate"},
    "autoep grouped_mm, gate and up as one": {"use_grouped_mm": True, "gate_up_impl": "fused"},
    "autoep loop": {"use_grouped_mm": False, "gate_up_impl": "separate"},
}
ZERO_STAGES = (1, 3)
ROW = 4096  # tokens of a whole model's rows
MOST_LAYERS = 48  # of the real one
FILL = 0.85  # of the GPU's free memory: the estimate is within a tenth, and memory fragments
H100_TFLOPS = 989.0  # dense bf16 peak of H100, H800 and H200


@dataclass(frozen=True)
class Shape:
    """Sizes of one MoE layer."""

    name: str
    hidden: int
    experts: int
    top_k: int
    width: int

    def model(self, layers: int = 1, vocabulary: int = 512, heads: int = 4) -> DeepseekV3:
        """A V3 model of such layers; attention as small as it gets."""
        return DeepseekV3(
            name=self.name, vocab_size=vocabulary, hidden_size=self.hidden, num_hidden_layers=layers,
            num_attention_heads=heads, intermediate_size=self.width, max_position_embeddings=8192, q_lora_rank=64,
            kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32, n_routed_experts=self.experts,
            num_experts_per_tok=self.top_k, n_group=4, topk_group=4, moe_intermediate_size=self.width,
            first_k_dense_replace=0, initializer_range=0.02,
        )  # fmt: skip


SHAPES = {
    "few": Shape("few", hidden=128, experts=8, top_k=2, width=64),  # v3_tiny's
    "many": Shape("many", hidden=256, experts=64, top_k=6, width=64),
    "wide": Shape("wide", hidden=512, experts=8, top_k=2, width=512),
    "30b_a3b": Shape("30b_a3b", hidden=2048, experts=128, top_k=8, width=768),  # Qwen3-30B-A3B's layer
}


def passes(layer: nn.Module, tokens: int, hidden: int) -> Callable[[], None]:
    """One forward and backward of `layer` on random tokens; gradients are computed, not accumulated."""
    weights = [p for p in layer.parameters() if p.requires_grad]
    device, dtype = weights[0].device, weights[0].dtype
    x_BTH = torch.randn(1, tokens, hidden, device=device, dtype=dtype, requires_grad=True)

    def run() -> None:
        output = layer(x_BTH)
        output = output[0] if isinstance(output, tuple) else output
        # allow_unused: an expert that no token chose
        torch.autograd.grad(output.square().sum(), [x_BTH, *weights], allow_unused=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def variants(shape: Shape, dtype: Any, tokens: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """(implementation, its forward and backward); transformers' own, then AutoEP's."""
    spec = replace(shape.model(), dtype=dtype)
    device = "cuda" if on_gpu() else "cpu"
    copies = tokens * shape.top_k * 3 * shape.hidden * shape.width * 4
    for name in TRANSFORMERS[: 3 if copies <= COPIES else 2]:
        model: Any = build_model(spec, seed=0).to(device)
        model.set_experts_implementation(name)
        yield f"transformers {name}", passes(model.model.layers[0].mlp, tokens, shape.hidden)
    model = TrainingEngine(build_model(spec, seed=0), DeepSpeedConfig(dtype=dtype)).model
    layer: Any = moe_layers(model)[0][1]
    for name, attributes in AUTOEP.items():
        run = passes(layer, tokens, shape.hidden)
        yield name, partial(_with_attributes, layer.experts, attributes, run)


def _with_attributes(module: nn.Module, attributes: dict[str, Any], run: Callable[[], None]) -> None:
    for key, value in attributes.items():
        setattr(module, key, value)
    run()


def interleaved(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each, taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(WARM_UP + repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if index >= WARM_UP:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def parallel_rank(rank: int, port: int, shape: Shape, dtype: Any, tokens: int, repeats: int, results: Any) -> None:
    """One of two processes: experts spread over both, then all of them in each."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(port))  # fmt: skip
    torch.set_num_threads(1)
    runs = {}
    for ep_size in (2, 1):
        config = DeepSpeedConfig(dtype=dtype, ep_size=ep_size)
        layer = moe_layers(TrainingEngine(build_model(replace(shape.model(), dtype=dtype), 0), config).model)[0][1]
        runs[f"autoep grouped_mm, EP {ep_size}, 2 processes"] = passes(layer, tokens, shape.hidden)
    seconds = interleaved(runs, repeats)
    torch.distributed.barrier()
    if rank == 0:
        results.put(seconds)


def two_processes(shape: Shape, dtype: str, tokens: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of both expert-parallel sizes on two processes with `tokens` each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    ranks = [
        context.Process(target=parallel_rank, args=(rank, port, shape, dtype, tokens, repeats, results))
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    seconds: dict[str, list[float]] = results.get(timeout=300)
    for process in ranks:
        process.join()
    return seconds


def whole_spec(shape: Shape, layers: int) -> ModelConfig:
    """A model of `layers` such layers, with DeepSeek's attention at the size that V2-Lite has it."""
    attention = {"q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64}
    spec = shape.model(layers, vocabulary=32768, heads=16)
    return replace(spec, dtype="bfloat16", v_head_dim=128, **attention)  # type: ignore[arg-type]


def layers_that_fit(shape: Shape, tokens: int, free_bytes: float) -> int:
    """The largest whole model, in layers, that trains in this memory under either ZeRO stage; 0 if not one."""
    layers = 0
    while layers < MOST_LAYERS:
        spec = whole_spec(shape, layers + 1)
        layouts = [RankLayout("bfloat16", stage, 1, 1, tokens, segment=min(tokens, ROW)) for stage in ZERO_STAGES]
        if max(training_memory(spec, layout).total for layout in layouts) > FILL * free_bytes:
            break
        layers += 1
    return layers


def whole_model(shape: Shape, layers: int, tokens: int, repeats: int) -> list[dict[str, Any]]:
    """Training steps of a model of `layers` such layers under ZeRO-1 and ZeRO-3, with the share of the GPU's peak.

    FLOPs are 6 per active parameter and token; attention's own are left out.
    """
    spec = whole_spec(shape, layers)
    rows = []
    for stage in ZERO_STAGES:
        engine = TrainingEngine(build_model(spec, 0), DeepSpeedConfig(dtype="bfloat16", zero_stage=stage))
        ids_BT = torch.randint(0, spec.vocab_size, (max(1, tokens // ROW), min(tokens, ROW)), device=engine.device)

        def step(engine: TrainingEngine = engine, ids_BT: torch.Tensor = ids_BT) -> None:
            logits = engine.forward(input_ids=ids_BT, use_cache=False).logits
            engine.backward(nn.functional.cross_entropy(logits.flatten(0, 1), ids_BT.flatten()), last=True)
            float(engine.step().grad_norm)

        median = spread(interleaved({"step": step}, repeats)["step"])["median"]
        flops = 6.0 * parameter_counts(spec).active * ids_BT.numel() / median
        row: dict[str, Any] = {
            "variant": f"whole model, {layers} layers, ZeRO-{stage}", "shape": shape.name, "tokens": ids_BT.numel(),
            "ms": median * 1e3, "tokens_per_s": ids_BT.numel() / median, "tflops": flops / 1e12,
        }  # fmt: skip
        rows.append(row | ({"mfu": flops / 1e12 / H100_TFLOPS} if on_gpu() else {}))
        del engine, step
        free_memory()
    return rows


def free_memory() -> None:
    """Give what nobody holds any more back to the GPU."""
    gc.collect()
    if on_gpu():
        torch.cuda.empty_cache()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; `framework bench experts`."""
    parser = argparse.ArgumentParser(prog="framework bench experts", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--shapes", nargs="+", choices=list(SHAPES), help="30b_a3b on a GPU, else all the others by default"
    )
    parser.add_argument("--tokens", type=int, help="of one pass, each process; 16384 on a GPU, else 2048 by default")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="bfloat16 on a GPU, else float32 by default")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, help="of the whole model; by default what a GPU holds, none without one")
    arguments = parser.parse_args(argv)
    gpu = arguments.device == "cuda"
    run_as_worker(arguments.threads, gpu)
    torch.set_num_threads(arguments.threads)
    tokens, dtype = arguments.tokens or (16384 if gpu else 2048), arguments.dtype or ("bfloat16" if gpu else "float32")
    rows, notes = [], dict[str, Any]()
    for name in arguments.shapes or (["30b_a3b"] if gpu else list(SHAPES)[:3]):
        shape = SHAPES[name]
        runs = dict(variants(shape, dtype, tokens))
        found = {key: (tokens, values) for key, values in interleaved(runs, arguments.repeats).items()}
        fastest = min(found, key=lambda key: spread(found[key][1])["median"])
        notes[f"fastest in one process, {name}"] = fastest
        if not gpu:
            pair = two_processes(shape, dtype, tokens, arguments.repeats)
            found |= {key: (2 * tokens, values) for key, values in pair.items()}
        rows += [row(key, name, n, dtype, values) for key, (n, values) in found.items()]
        del runs
        free_memory()
        layers = arguments.layers
        if layers is None:
            layers = layers_that_fit(shape, tokens, torch.cuda.mem_get_info()[0]) if gpu else 0
        if layers:
            whole = whole_model(shape, layers, tokens, arguments.repeats)
            notes[f"whole model, {name}, ZeRO-1 / ZeRO-3"] = whole[0]["tokens_per_s"] / whole[1]["tokens_per_s"]
            rows += whole
    report("experts", rows, notes | {"threads of a process": arguments.threads})
    return 0


def row(name: str, shape: str, tokens: int, dtype: str, seconds: list[float]) -> dict[str, Any]:
    """One line of the table."""
    found = spread(seconds)
    return {
        "variant": name, "shape": shape, "dtype": dtype, "tokens": tokens, "ms": found["median"] * 1e3,
        "min_ms": found["min"] * 1e3, "tokens_per_s": tokens / found["median"],
    }  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
