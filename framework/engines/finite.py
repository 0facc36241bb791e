"""Numbers that are not finite: found before they move the weights, named, and tolerated as often as is allowed.

A loss or logprob that is not finite makes the gradient so too, on every rank, by the sum over ranks; DeepSpeed leaves
out a step whose gradient norm is not finite, on all ranks alike. So ranks agree without a collective of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from framework.errors import NotFinite

SHOWN = 4  # samples named in an error


def name_samples(ids: Sequence[str]) -> str:
    """Name a micro-batch's samples in an error: the first few, and how many there are."""
    shown = ", ".join(repr(name) for name in ids[:SHOWN])
    return f"samples {shown}" + (f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else "")


def first_bad_gradient(optimizer: Any, names: dict[int, str]) -> str:
    """Return the name of this rank's first parameter whose reduced gradient is not finite; "" if there is none.

    `optimizer` is DeepSpeed's, between the last backward and the step; `names`: by the parameters' Python ids.
    """
    if hasattr(optimizer, "fp32_groups_gradients"):  # bfloat16 under ZeRO-1 has an optimizer of its own
        grouped, gradients = optimizer.bf16_groups, dict(enumerate(optimizer.fp32_groups_gradients))
    else:
        grouped = getattr(optimizer, "params_in_partition", None) or getattr(optimizer, "fp16_groups", [])
        gradients = optimizer.averaged_gradients
    for index, parameters in enumerate(grouped):
        for parameter, gradient in zip(parameters, gradients.get(index) or (), strict=False):
            if gradient is not None and not bool(gradient.isfinite().all()):
                return names.get(id(parameter), "a parameter")
    return ""


@torch.no_grad()
def first_bad_weight(tensors: Sequence[tuple[str, torch.Tensor]]) -> str:
    """Return the name of the first tensor with a number that is not finite, or whose square is not; "" if none has.

    A weight of 1e30 is finite, but nothing that is multiplied by it stays so: the next step would be the first to fail,
    when the checkpoint of this one has taken a good one's place.
    """
    filled = [(name, tensor) for name, tensor in tensors if tensor.numel()]
    if not filled:
        return ""
    largest = torch.stack([m.float() for m in torch._foreach_norm([t for _, t in filled], ord=float("inf"))])
    bad = (~largest.square().isfinite()).nonzero()
    return filled[int(bad[0])][0] if len(bad) else ""


def report(step: int, rank: int, world: int, forward: str = "", gradient: str = "", weight: str = "") -> str:
    """Return what the lowest rank that found something says, the same on all ranks (a collective).

    What a forward found comes first: by the sum over ranks it spoils every rank's gradients.
    """
    shares: list[tuple[str, str, str]] = [(forward, gradient, weight)]
    if world > 1:
        gathered: list[Any] = [None] * world
        dist.all_gather_object(gathered, shares[0])
        shares = gathered
    texts = ("{}", "the gradient of {}", "weight {} (or its square)")
    for text, found in zip(texts, zip(*shares, strict=True), strict=True):
        for index, name in enumerate(found):
            if name:
                at = index if world > 1 else rank
                return f"step {step}, rank {at} of {world}: {text.format(name)} is not finite"
    return f"step {step}: the gradient norm is not finite"


def check_tolerated(said: str, skipped: int, allowed: int) -> None:
    """Raise NotFinite unless this many skipped steps are allowed."""
    if skipped > allowed:
        before = f" ({skipped - 1} such steps were skipped before)" if skipped > 1 else ""
        raise NotFinite(
            f"{said}; the step was not taken{before}. A lower learning rate or clip may help; "
            f"skip_nonfinite: N leaves out up to N such steps"
        )


def poisoned(loss: torch.Tensor, found: str) -> torch.Tensor:
    """Return a loss whose gradient is not finite either, where something was found."""
    return loss * float("nan") if found else loss


def parameter_names(model: nn.Module) -> dict[int, str]:
    """Names by the parameters' Python ids."""
    return {id(parameter): name for name, parameter in model.named_parameters()}
