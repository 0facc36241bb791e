"""Loading a checkpoint into the ranks of a learner: none holds the whole model, and none its experts twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from framework.engines import expert_parallel
from framework.engines.checkpoint import checked_tensors, load_hf
from framework.engines.deepspeed_engine import DeepSpeedConfig, init_process_group
from framework.models import public_layout
from framework.models.spec import model_class


def load_sharded(directory: Path, config: DeepSpeedConfig) -> Any:
    """Build the model of a checkpoint as `TrainingEngine` needs it on this rank (a collective under ZeRO-3).

    Under ZeRO-1 and 2 only this rank's experts have values. Under ZeRO-3 every parameter is a shard from the start:
    rank 0 reads one whole parameter at a time and hands it round. Raises UserError as `load_hf`.
    """
    if config.zero_stage < 3:
        return load_hf(directory, config.dtype, config.ep_size)
    import deepspeed
    from transformers.initialization import no_init_weights

    init_process_group(config.collective_timeout_s)
    dtype = getattr(torch, config.dtype)
    hf_config, stored = checked_tensors(directory)
    tensors = public_layout.local_experts(stored, 0, 1, dtype)  # all of a layer's, fused
    section = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3},
        "bf16": {"enabled": dtype == torch.bfloat16},
    }
    with no_init_weights(), deepspeed.zero.Init(config_dict_or_path=section):
        model = model_class(hf_config)._from_config(hf_config, dtype=dtype)
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if dist.get_rank() == 0:
                parameter.data.copy_(tensors[name][...])
    for name, module in model.named_modules():  # zero.Init casts buffers too: what must be float32 is made again
        if hasattr(module, "inv_freq"):
            for key, buffer in type(module)(module.config).named_buffers(recurse=False):
                module._buffers[key] = buffer.to(module._buffers[key].device)
        elif (bias := module._buffers.get(expert_parallel.BIAS)) is not None:
            stored_bias = tensors[f"{name}.{expert_parallel.BIAS}"][...]
            module._buffers[expert_parallel.BIAS] = stored_bias.to(bias.device, torch.float32)
    return model
