"""Engine settings made to fit a model that no yaml was written for: context, experts, ZeRO stage."""

from __future__ import annotations

from dataclasses import replace
from math import gcd
from typing import Literal

from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.vllm_engine import VllmConfig
from framework.graph.cluster import ClusterConfig
from framework.models.families.base import ModelConfig
from framework.stages.memory import learner_role


def fit_sampler(engine: VllmConfig, model: ModelConfig) -> VllmConfig:
    """Return `engine` with no more context than the model has, over no more GPUs than its heads can be split."""
    return replace(
        engine,
        max_model_len=min(engine.max_model_len, model.max_position_embeddings),
        tensor_parallel_size=model.tensor_parallel(engine.tensor_parallel_size),
    )


def fit_learner(
    engine: DeepSpeedConfig, model: ModelConfig, cluster: ClusterConfig, workers: int, segment: int
) -> DeepSpeedConfig:
    """Return `engine` with experts spread as far as there are any, and the first ZeRO stage that fits a GPU.

    `segment`: the longest sequence. Stays as it is where not even ZeRO-3 fits: the plan says so.
    """
    experts = model.n_routed_experts if model.num_moe_layers else 1
    fitted = replace(engine, ep_size=gcd(engine.ep_size, experts, workers))
    stages: tuple[Literal[1, 2, 3], ...] = (1, 2, 3)
    for stage in stages[engine.zero_stage - 1 :] if cluster.gpus else ():
        tried = replace(fitted, zero_stage=stage)
        if (
            sum(learner_role(model, tried, workers, cluster, segment, True).memory_gib.values())
            < cluster.gpu_memory_gib
        ):
            return tried
    return fitted
