"""Fresh weights in parts: the same whatever the layout, and no rank makes more of them than it keeps."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import torch

from framework.engines.deepspeed_engine import DeepSpeedConfig, TrainingEngine
from framework.engines.expert_parallel import all_tensors
from framework.engines.sharded_load import build_sharded
from framework.models import initial
from framework.models.spec import build_model
from tests.distributed import run_ranks
from tests.learners import TINY_V3

LAYOUTS = [(1, 1), (2, 2), (1, 3), (2, 3)]  # expert-parallel size, ZeRO stage
SPEC, SEED = replace(TINY_V3, n_routed_experts=6, n_group=2, q_lora_rank=33), 3


def build_in_parts() -> list[tuple[float, int]]:
    """On this rank, for each layout: the largest difference from `build_model`'s weights, and the experts drawn."""
    expected = dict(all_tensors(TrainingEngine(build_model(SPEC, SEED), DeepSpeedConfig()).model))
    found = []
    for ep_size, zero_stage in LAYOUTS:
        config = DeepSpeedConfig(ep_size=ep_size, zero_stage=zero_stage)
        with mock.patch.object(initial, "_normal", wraps=initial._normal) as draw:
            model = build_sharded(SPEC, SEED, config)
        experts = sum(".experts.down_proj" in call.args[0] for call in draw.call_args_list)
        engine = TrainingEngine(model, config)
        tensors = {name: tensor.clone() for name, tensor in all_tensors(engine.model)}
        assert tensors.keys() == expected.keys()
        found.append((max(float((tensors[n] - expected[n]).abs().max()) for n in tensors), experts))
    return found


def test_a_rank_draws_what_it_keeps_and_all_layouts_start_alike() -> None:
    moe_layers = SPEC.num_moe_layers
    for found in run_ranks(build_in_parts, 2):
        assert [difference for difference, _ in found] == [0.0] * len(LAYOUTS)
        whole, half = 6 * moe_layers, 3 * moe_layers
        assert [experts for _, experts in found] == [whole, half, half, half]


def test_weights_are_cast_from_the_same_draw() -> None:
    config = DeepSpeedConfig(dtype="bfloat16")
    for (name, ours), theirs in zip(
        build_sharded(SPEC, SEED, config).named_parameters(), build_model(SPEC, SEED).parameters(), strict=True
    ):
        assert torch.equal(ours, theirs.bfloat16()), name
