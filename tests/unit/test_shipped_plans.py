"""Every published model on every shipped GPU cluster: fitted, or refused by name with what would fit."""

from __future__ import annotations

import re
from itertools import product

import pytest

from framework import cli
from framework.config import CONF, build_graph, compose, compose_fitted, named_model
from framework.errors import UserError
from framework.graph.fit import check_fits, describe_fits
from framework.graph.plan import describe_plan, shared_memory

CLUSTERS = ("node8", "h200_256", "h800_512")
PUBLISHED = sorted(file.stem for file in (CONF / "model").glob("*.yaml") if "tiny" not in file.stem)
# Those that are trained by the published recipe; GPT-2 and the encoders are job=transformers's.
MODELS = [name for name in PUBLISHED if named_model(name).policy and "gpt2" not in name]
# Weights, gradients and optimizer take 18 bytes a parameter: more than one node has beside a row's activations.
TOO_LARGE = {("node8", model) for model in ("llama_70b", "v1_67b", "v2_236b", "v3_671b")}


@pytest.mark.parametrize(("model", "cluster"), list(product(MODELS, CLUSTERS)))
def test_a_published_model_fits_or_is_refused_with_what_would(model: str, cluster: str) -> None:
    config, fits = compose_fitted([f"cluster={cluster}", f"model={model}"])
    graph = build_graph(config)
    graph.check()
    plan, engine = describe_plan(graph, config.cluster, ""), config.stage["grpo"].engine
    if (cluster, model) in TOO_LARGE:
        assert "DOES NOT FIT" in plan
        with pytest.raises(UserError, match=r"^stage\.grpo: got .* GiB of each GPU.*; would fit: .*GPUs of \d+ GiB"):
            check_fits(fits)
        return
    check_fits(fits)
    assert "DOES NOT FIT" not in plan
    used = config.cluster.rollout_workers * engine.rollout.tensor_parallel_size
    if config.cluster.colocate:
        assert used == config.cluster.learner_workers == config.cluster.gpus
        together = shared_memory(graph.nodes["grpo"].stage.estimate(config.cluster), config.cluster)
        assert set(together) == (set() if config.cluster.turns else {"rollout", "learner"})
        assert config.cluster.turns or f"together on one GPU: {sum(together.values()):.1f} GiB" in plan
        assert sum(together.values()) <= config.cluster.gpu_memory_gib
    else:
        assert used + config.cluster.learner_workers == config.cluster.gpus
    assert engine.rollout.kv_cache_gib  # or vLLM would take nine tenths of a card that a learner shares


@pytest.mark.parametrize("cluster", ["h200_256", "h800_512"])
def test_published_lengths_fit_with_rows_over_several_gpus(cluster: str) -> None:
    """R1-Zero's 65,536 tokens (R1 supplement B.1), V3's context extension to 131,072 (section 4.3)."""
    stage = compose([f"cluster={cluster}", "model=v3_671b"]).stage
    assert stage["grpo"].longest == 65_536
    assert stage["grpo"].engine.learner.token_budget >= 65_536 + 1024
    assert max(phase.row_tokens for phase in stage["pretrain"].extend) == 131_072
    assert min(stage["grpo"].engine.learner.sp_size, stage["pretrain"].engine.sp_size) > 1


@pytest.mark.parametrize("cluster", ["h200_256", "h800_512"])
def test_what_would_fit_does(cluster: str) -> None:
    whole = ["engine.learner.sp_size=1", "stage.pretrain.engine.sp_size=1"]  # rows that no GPU holds alone
    overrides = [f"cluster={cluster}", "model=v3_671b", *whole]
    _, fits = compose_fitted(overrides)
    told = re.search(r"max_tokens=(\d+) with engine\.rollout\.max_model_len=(\d+)", fits["grpo"].misfit)
    rows = re.search(r"rows of at most ([\d,]+) tokens", fits["pretrain"].misfit)
    assert told is not None
    assert rows is not None
    longest = rows[1].replace(",", "")
    shorter = [f"stage.grpo.max_tokens={told[1]}", f"engine.rollout.max_model_len={told[2]}"]
    phase = f"stage.pretrain.extend=[{{steps: 1000, rows_per_step: 1920, row_tokens: {longest}, lr: 7.3e-6}}]"
    config, fits = compose_fitted([*overrides, *shorter, phase, f"stage.evaluate.max_tokens={told[1]}"])
    check_fits(fits)
    assert "DOES NOT FIT" not in describe_plan(build_graph(config), config.cluster, "")


def test_what_is_given_is_kept_and_the_rest_fitted_around_it() -> None:
    given = {
        "stage.grpo.engine.rollout.tensor_parallel_size": 4,
        "stage.grpo.engine.learner.zero_stage": 3,
        "stage.grpo.engine.rollout.max_num_seqs": 5,
        "cluster.learner_workers": 4,
        "engine.learner.token_budget": 40_000,
    }
    config = compose(["model=qwen_7b", "cluster=node8", *(f"{key}={value}" for key, value in given.items())])
    engine = config.stage["grpo"].engine
    assert (engine.rollout.tensor_parallel_size, engine.learner.zero_stage, engine.rollout.max_num_seqs) == (4, 3, 5)
    assert (config.cluster.learner_workers, config.cluster.rollout_workers) == (4, 2)
    assert engine.learner.token_budget == 40_000
    apart = compose(["model=qwen_7b", "cluster=node8", "cluster.colocate=false"]).cluster
    assert apart.learner_workers < apart.gpus
    assert not apart.colocate


def test_what_can_never_fit_is_planned_but_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model=v1_67b", "cluster=node8"]
    assert cli.main(["plan", *words]) == 0
    out = capsys.readouterr().out
    assert "stage.grpo: DOES NOT FIT" in out
    assert "would fit: cluster.num_nodes=2" in out
    assert cli.main(["run", *words]) == 2
    assert "stage.grpo: got 'more memory than a GPU has'; rows of" in capsys.readouterr().err


def test_the_plan_says_what_was_computed_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "model=moe_16b", "cluster=node8", "stage.grpo.engine.learner.ep_size=8"]) == 0
    out = capsys.readouterr().out
    assert "stage.grpo: each GPU holds learner ZeRO-1, EP 8 " in out
    assert "stage.grpo.engine.rollout.tensor_parallel_size=2\n" in out
    assert "stage.grpo.engine.learner.ep_size=" not in out  # given


def test_own_models_are_fitted_by_the_same_rules() -> None:
    assert describe_fits(compose_fitted([])[1]) == ""  # nothing to share on a laptop
    config = compose(["model=llama_tiny", "~engine.rollout.max_model_len"])
    assert config.model is not None
    assert config.stage["grpo"].engine.rollout.max_model_len == config.model.max_position_embeddings


def test_plan_fit_prints_the_computed_settings_alone(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "--fit", "job=r1_zero"]
    assert cli.main([*command, "model=qwen_7b", "cluster=node8"]) == 0
    told = capsys.readouterr().out
    assert "cluster.learner_workers=8" in told
    assert "about" not in told
    assert cli.main([*command, "model=v3_671b", "cluster=node8"]) == 0
    assert "DOES NOT FIT" in capsys.readouterr().out
    assert cli.main(command) == 0
    assert capsys.readouterr().out == "nothing is computed: the cluster has no GPUs\n"
