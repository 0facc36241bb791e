"""What is there for CPUs alone, and the one place that switches it. Where there is a GPU nothing of it runs.

Each entry names the dependency that it mends or makes faster, and the version that was looked at: a test asks for
another look when that changes, and one tries whether the fault is still there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from framework.engines.cpu.matmul import use_fast_matmul
from framework.engines.cpu.rms_norm import use_fast_norms
from framework.engines.device import on_gpu


@dataclass(frozen=True)
class Tuning:
    """One thing that is done for CPUs."""

    package: str
    version: str  # of it, for which this was found
    why: str


TUNINGS = {
    "matmul": Tuning("torch", "2.13.0", "MKL leaves half of a CPU with AVX-512 idle that is not Intel's"),
    "rms_norm": Tuning(
        "transformers", "5.19.0", "its RMSNorm keeps normalised states too, and passes over them once more"
    ),
    "environment": Tuning("ray", "2.60.0", "its jemalloc keeps activations, which glibc gives back at every step"),
    "draft_kernels": Tuning("vllm", "0.32.0", "temperatures never arrive at drafts: written into an int64 copy"),
    "decode_scheduler": Tuning(
        "vllm", "0.32.0", "60 us of Python a request and step; costs less on GPUs, but helps there too"
    ),
    "rotary": Tuning("vllm", "0.32.0", "its kernel misplaces the heads of a [T, heads, dim] query, as DeepSeek's has"),
    "latent_attention": Tuning("vllm", "0.32.0", "with AMX it packs MLA's weights, and raises for float32"),
    "block_size": Tuning("vllm", "0.32.0", "blocks of 128 tokens: short prompts are never found in the prefix cache"),
    "whole_prompts": Tuning("vllm", "0.32.0", "takes back a draw for each part of a prompt; CPU generators cannot"),
}


def tune_training(model: nn.Module) -> None:
    """Make a model's training on this machine's CPU faster; does nothing on GPUs."""
    if not on_gpu():
        use_fast_matmul()
        use_fast_norms(model)


def sampler_arguments(on_cpu: bool, mla: bool, dtype: str) -> dict[str, Any]:
    """vLLM's engine arguments that differ on CPUs."""
    from vllm.config import CompilationConfig

    found: dict[str, Any] = {"scheduler_cls": "framework.engines.cpu.decode_scheduler.DecodeScheduler"}  # imports vLLM
    if not on_cpu:
        return found
    # The attention kernels take blocks of multiples of 32 (MLA's choose for themselves).
    block_size = None if mla else 32
    rotary = CompilationConfig(custom_ops=["-rotary_embedding"])
    if mla and dtype == "float32":
        found["attention_backend"] = "CPU_MLA"
    return {**found, "compilation_config": rotary, "block_size": block_size, "enable_chunked_prefill": False}


def mend_drafts(on_cpu: bool) -> None:
    """Replace the kernel that judges drafts, once the engine is built."""
    if on_cpu:
        from framework.engines.cpu.draft_kernels import register_cpu_kernels

        register_cpu_kernels()
