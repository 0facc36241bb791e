"""Every published model on every shipped GPU cluster: a plan that fits, or one of the few that are known not to."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from framework.config import CONF, build_graph, compose
from framework.graph.plan import describe_plan, shared_memory
from framework.stages.memory import learner_role

CLUSTERS = ("node8", "h200_256", "h800_512")
MODELS = sorted(file.stem for file in (CONF / "model").glob("*.yaml") if "tiny" not in file.stem)
# Weights, gradients and optimizer take 18 bytes a parameter: more than one node has beside a row's activations.
TOO_LARGE = {("node8", model) for model in ("qwen_32b", "llama_70b", "v1_67b", "v2_236b", "v3_671b")}
# Rows of 32K tokens and more are too long for 80 GiB (README): both phases of context extension, and GRPO.
ROWS_TOO_LONG = {("h800_512", "v3_671b"): 3}
# Sampler and learner fit each by itself, but not together on the card that they share: nothing moves them off it.
TOGETHER_TOO_LARGE = {
    ("node8", "moe_16b"), ("h200_256", "v3_671b"), ("h800_512", "llama_70b"), ("h800_512", "v1_67b"),
    ("h800_512", "v2_236b"), ("h800_512", "v3_671b"),
}  # fmt: skip


@pytest.mark.parametrize(("model", "cluster"), list(product(MODELS, CLUSTERS)))
def test_a_published_model_fits_or_is_known_not_to(model: str, cluster: str) -> None:
    config = compose([f"cluster={cluster}", f"model={model}"])
    graph = build_graph(config)
    graph.check()
    rollout = config.engine.rollout
    assert config.cluster.rollout_workers * rollout.tensor_parallel_size == config.cluster.gpus
    plan = describe_plan(graph, config.cluster, "")
    if (cluster, model) in TOO_LARGE:
        assert "DOES NOT FIT" in plan
        ranks = config.cluster.learner_workers
        best = replace(config.engine.learner, zero_stage=3, ep_size=ranks if config.model.num_moe_layers else 1)
        role = learner_role(config.model, best, ranks, config.cluster, rollout.max_model_len, packed=True)
        assert sum(role.memory_gib.values()) > config.cluster.gpu_memory_gib
    else:
        together = shared_memory(graph.nodes["grpo"].stage.estimate(config.cluster), config.cluster)
        assert set(together) == {"rollout", "learner"}
        assert f"together on one GPU: {sum(together.values()):.1f} GiB" in plan
        too_large = (cluster, model) in TOGETHER_TOO_LARGE
        assert (sum(together.values()) > config.cluster.gpu_memory_gib) == too_large
        assert plan.count("DOES NOT FIT") == ROWS_TOO_LONG.get((cluster, model), 0) + too_large


def test_every_fit_is_of_a_shipped_cluster_and_model() -> None:
    fits = {(file.parent.name, file.stem) for file in (CONF / "fit").glob("*/*.yaml")}
    assert fits <= set(product(CLUSTERS, MODELS))
