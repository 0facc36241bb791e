"""A learner's memory for the plan: as configured, and for every ZeRO stage and expert-parallel size beside it."""

from __future__ import annotations

from dataclasses import replace
from math import gcd

from framework.bounds import divisors
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.graph.cluster import ClusterConfig
from framework.graph.plan import RoleEstimate
from framework.models.families.base import ModelConfig, RankLayout


def rank_layout(engine: DeepSpeedConfig, workers: int, cluster: ClusterConfig, segment: int) -> RankLayout:
    """What decides the memory of one of `workers` ranks; `segment` is the most tokens that attend to each other."""
    return RankLayout(
        dtype=engine.dtype,
        zero_stage=engine.zero_stage,
        ep_size=engine.ep_size,
        world=workers,
        micro_tokens=-(-engine.token_budget // engine.sp_size),
        checkpointing=engine.gradient_checkpointing,
        segment=segment,
        on_gpu=cluster.gpus > 0,
        mtp=bool(engine.mtp_coef),
        sp_size=engine.sp_size,
    )


def learner_role(
    spec: ModelConfig, engine: DeepSpeedConfig, workers: int, cluster: ClusterConfig, segment: int
) -> RoleEstimate:
    """Estimate `workers` ranks of `engine`; `segment` is the most tokens that attend to each other."""
    from framework.models.estimate import training_memory

    layout = rank_layout(engine, workers, cluster, segment)
    most = gcd(workers, spec.n_routed_experts) if spec.num_moe_layers else 1
    table = {
        f"EP {size}": {
            f"ZeRO-{stage}": training_memory(spec, replace(layout, zero_stage=stage, ep_size=size)).gib()
            for stage in (1, 2, 3)
        }
        for size in divisors(most)
    }
    return RoleEstimate(
        "learner",
        workers,
        workers if cluster.gpus else 0,
        training_memory(spec, layout).gib(),
        choices=table,
        chosen=(f"EP {engine.ep_size}", f"ZeRO-{engine.zero_stage}"),
    )
