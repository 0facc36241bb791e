"""The first weights of a learner's ranks, read or drawn: none holds the whole model, and none its experts twice."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from framework.engines import expert_parallel
from framework.engines.checkpoint import checked_tensors, load_hf
from framework.engines.deepspeed_engine import DeepSpeedConfig, init_process_group, shape_of
from framework.models import public_layout
from framework.models.families.base import ModelConfig
from framework.models.initial import draw_weights
from framework.models.spec import EXPERTS, empty_model


def load_sharded(directory: Path, config: DeepSpeedConfig, head_seed: int | None = None) -> Any:
    """Build the model of a checkpoint as `TrainingEngine` needs it on this rank (a collective under ZeRO-3).

    Under ZeRO-1 and 2 only this rank's experts have values. Under ZeRO-3 every parameter is a shard from the start:
    rank 0 reads one whole parameter at a time and hands it round. `head_seed` and errors as `load_hf`'s.
    """
    if config.zero_stage < 3:
        return load_hf(directory, config.dtype, config.ep_size, head_seed)
    import deepspeed

    init_process_group(config.collective_timeout_s)
    dtype = getattr(torch, config.dtype)
    found, stored = checked_tensors(directory, head_seed)
    tensors = public_layout.local_experts(stored, 0, 1, dtype)  # all of a layer's, fused
    model = _shards(found, dtype)
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if dist.get_rank() == 0:
                known = name if name in tensors else public_layout.public_name(model, name)
                parameter.data.copy_(tensors[known][...])
    for name, module in model.named_modules():
        if (bias := module._buffers.get(expert_parallel.BIAS)) is not None:
            bias.copy_(tensors[f"{name}.{expert_parallel.BIAS}"][...])
    return model


def build_sharded(spec: ModelConfig, seed: int, config: DeepSpeedConfig) -> Any:
    """Build a fresh model as `load_sharded` does one of a checkpoint, in config.dtype, weights as `build_model`'s.

    They depend on no number of ranks: a rank draws what it keeps of each parameter.
    """
    init_process_group(config.collective_timeout_s)
    empty = _shards if config.zero_stage == 3 else empty_model
    model = empty(spec.hf_config(), getattr(torch, config.dtype))
    for name, parameter in model.named_parameters():
        shape = shape_of(parameter)
        size = prod(shape)
        if config.zero_stage == 3:
            kept_N = parameter.ds_tensor
            first = dist.get_rank() * kept_N.numel()
            kept_N = kept_N[: max(0, size - first)]  # the last shards are padded
        elif EXPERTS in name:
            ep_rank = dist.get_rank() % config.ep_size
            kept_N = parameter.data.view(-1).chunk(config.ep_size)[ep_rank]
            first = ep_rank * kept_N.numel()
        else:
            kept_N, first = parameter.data.view(-1), 0
        draw_weights(kept_N, first, name, shape, model, seed)
    return model


def _shards(config: Any, dtype: torch.dtype) -> Any:
    """Build the model of a Hugging Face config without values, every parameter a ZeRO-3 shard."""
    import deepspeed

    section = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3},
        "bf16": {"enabled": dtype == torch.bfloat16},
    }
    with deepspeed.zero.Init(config_dict_or_path=section):
        model = empty_model(config, dtype)
    for module in model.modules():  # zero.Init casts buffers too: the rotary frequencies are made again
        if hasattr(module, "inv_freq"):
            for key, buffer in type(module)(module.config).named_buffers(recurse=False):
                module._buffers[key] = buffer.to(module._buffers[key].device)
    return model
