"""Engine state saved by other numbers of ranks or experts per rank, through DeepSpeed's universal checkpoints.

A universal checkpoint holds every parameter and its optimizer state whole; loading cuts them up afresh. Three things
that DeepSpeed 0.19's loader gets wrong are mended here: it restores no buffers (the correction biases), copies the
saved groups' settings (under ZeRO-3 the first group's into all) and under ZeRO-3 lets all groups share one step count.
Dimensions: E routed experts.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from framework.engines.deepspeed_engine import Snapshot, TrainingEngine
from framework.files import clear_way, remove_tree

logger = logging.getLogger("framework")


@dataclass(frozen=True)
class Topology:
    """What native engine state is tied to."""

    world: int
    ep_size: int
    zero_stage: int
    dtype: str

    def snapshot_files(self) -> int:
        """Files that hold a snapshot once: ZeRO-3's shards, or else the first replica's experts."""
        return self.world if self.zero_stage == 3 else self.ep_size


def topology(engine: TrainingEngine) -> Topology:
    """Of a running engine."""
    return Topology(engine.world, engine.config.ep_size, engine.config.zero_stage, engine.config.dtype)


def load_universal(engine: TrainingEngine, native: Path, biases: Sequence[torch.Tensor]) -> None:
    """Convert the native checkpoint directory `native` (rank 0, beside it, for as long as it takes) and load it.

    Collective, on a file system that all ranks share. `biases` are the correction biases in layer order.
    """
    converted = native.with_name(native.name + "_universal")
    if engine.rank == 0:
        logger.warning("%s was saved by another number of ranks or expert-parallel size: converting it", native)
        clear_way(converted)
    _raise_together(_convert(native, converted) if engine.rank == 0 else None)
    optimizer, config = engine.native.basic_optimizer, engine.native._config
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    config.load_universal_checkpoint = True  # the engine reads it when it loads; else one would have to build another
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            engine.native.load_checkpoint(str(converted.parent), tag=converted.name)
    finally:
        config.load_universal_checkpoint = False
    for group, ours in zip(optimizer.param_groups, settings, strict=True):
        group.update(ours)
    for state in optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()
    for (_, bias), saved in zip(engine.routing.biases(), biases, strict=True):
        bias.copy_(saved)
    dist.barrier()
    if engine.rank == 0:
        remove_tree(converted)


def _raise_together(error: Exception | None) -> None:
    """Raise rank 0's error on every rank, none of which then waits for it."""
    errors = [None if error is None else f"{type(error).__name__}: {error}"]
    dist.broadcast_object_list(errors, src=0)
    if errors[0] is not None:
        raise RuntimeError(f"cannot be converted: {errors[0]}") from error


def _convert(native: Path, converted: Path) -> Exception | None:
    """Write the universal checkpoint; what went wrong is returned, for the other ranks to hear of."""
    from deepspeed.checkpoint.ds_to_universal import main

    options = argparse.Namespace(
        input_folder=str(native),
        output_folder=str(converted),
        num_extract_workers=1,  # no forks of a process that runs collectives and threads
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=False,
    )
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # its progress bars
            main(options)
    except Exception as error:
        return error
    return None


def reshard(engine: TrainingEngine, saved: Sequence[Snapshot], old: Topology) -> Snapshot:
    """This rank's part of a snapshot whose parts, one a file, were saved under topology `old`."""
    new, experts = topology(engine), engine.config.ep_size
    parameters = []
    for index, parameter in enumerate(engine.model.parameters()):
        is_expert = not getattr(parameter, "allreduce", True)
        shape = torch.Size(getattr(parameter, "ds_shape", parameter.shape))
        if is_expert:  # [E / ep_size, ...] of one rank
            shape = torch.Size([shape[0] * experts // old.ep_size, *shape[1:]])
        whole = _whole([part.parameters[index] for part in saved], shape, old, is_expert)
        if is_expert:
            whole = whole.chunk(experts)[engine.rank % experts]
        parameters.append(_shard(whole, engine.rank, new, is_expert).clone())
    return Snapshot(tuple(parameters), tuple(bias.clone() for bias in saved[0].biases))


def _whole(parts: Sequence[torch.Tensor], shape: torch.Size, old: Topology, is_expert: bool) -> torch.Tensor:
    """One parameter, all experts of it, from the parts of every file; `shape` is that of one expert-parallel rank."""
    stride = old.ep_size if is_expert else 1  # ranks r, r + stride, ... hold the same experts
    if old.zero_stage == 3:
        parts = [torch.cat([p.flatten() for p in parts[r::stride]])[: shape.numel()].view(shape) for r in range(stride)]
    return torch.cat(list(parts)) if is_expert else parts[0]


def _shard(weights: torch.Tensor, rank: int, new: Topology, is_expert: bool) -> torch.Tensor:
    """What rank `rank` keeps of weights that its replica group shares: all, or under ZeRO-3 a padded flat slice."""
    if new.zero_stage < 3:
        return weights
    stride = new.ep_size if is_expert else 1
    ranks = new.world // stride
    length = -(-weights.numel() // ranks)
    flat = weights.flatten()
    padded = torch.cat([flat, flat.new_zeros(length * ranks - flat.numel())])
    return padded[rank // stride * length :][:length]
