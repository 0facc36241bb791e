"""What vLLM 0.32's CPU backend gets wrong in speculative decoding, put right through its registry of kernels."""

from __future__ import annotations

import torch


def register_cpu_kernels() -> None:
    """Replace the kernel that spreads per-request values over draft tokens; call it once the engine is built.

    vLLM's own writes into an int64 copy of its output, so that temperatures, which are floats, never arrive: drafts
    were judged, and tokens sampled, at whatever temperature the memory held.
    """
    from vllm.triton_utils.dispatcher import register_kernels

    register_kernels({"vllm.v1.sample.rejection_sampler.expand_kernel": expand_values})


def expand_values(
    output: torch.Tensor,
    values: torch.Tensor,
    cu_num_tokens: torch.Tensor,
    replace_from: float,
    replace_to: float,
    MAX_NUM_TOKENS: int | None = None,
) -> None:
    """Write values[i] cu_num_tokens[i] - cu_num_tokens[i-1] times to `output`, `replace_from` as `replace_to`."""
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1)).long()
    output.copy_(torch.where(values == replace_from, replace_to, values).repeat_interleave(counts))
