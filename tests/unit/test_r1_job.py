"""The R1 job: its nodes, its published figures, written here by hand, and what a changed setting makes anew."""

from __future__ import annotations

from functools import cache

import pytest

from framework.config import RunConfig, build_graph, compose
from framework.errors import UserError
from framework.graph.nodes import Graph
from framework.graph.plan import check_complete, describe_plan
from framework.graph.settings import settings_of

# As the recipe's users name them.
NAMES = (
    "tokenizer", "v3_base", "r1_zero", "cold_start", "dev1", "dev2", "rejection", "v3_data", "dev3", "helpful_rm",
    "safety_rm", "r1", "distill_qwen", "distill_llama", "qwen_zero",
)  # fmt: skip
EVALUATED = ("v3_base", "r1_zero", "dev1", "dev2", "dev3", "r1", "distill_qwen", "distill_llama", "qwen_zero")


@cache
def made(*overrides: str) -> tuple[RunConfig, Graph]:
    config = compose(["job=r1", *overrides])
    return config, build_graph(config)


def published() -> tuple[RunConfig, Graph]:
    return made("model=v3_671b", "cluster=h800_512")


@pytest.mark.parametrize("overrides", [(), ("model=v3_671b", "cluster=h800_512")], ids=["laptop", "published"])
def test_the_graph_has_the_recipe_s_nodes_and_evaluates_every_checkpoint(overrides: tuple[str, ...]) -> None:
    _, graph = made(*overrides)
    graph.check()
    assert set(NAMES) <= set(graph.nodes)
    assert {name.removeprefix("eval_") for name in graph.nodes if name.startswith("eval_")} == set(EVALUATED)


def test_dev3_starts_again_from_the_base_model() -> None:
    _, graph = made()
    starts = {name: graph.nodes[name].edges["base"].node for name in ("dev1", "dev2", "dev3", "r1", "r1_zero")}  # type: ignore[union-attr]
    assert starts == {"r1_zero": "v3_base", "dev1": "v3_base", "dev2": "dev1", "dev3": "v3_base", "r1": "dev3"}


def test_a_setting_of_dev2_changes_dev2_and_what_comes_behind_it() -> None:
    (_, before), (_, after) = made(), made("stage.dev2.algorithm.clip_high=5")
    changed = {name for name in before.nodes if _key(before, name) != _key(after, name)}
    assert changed == {"dev2"}
    rerun = {node.name for node in after.order() if node.name in changed or changed & _upstream(after, node.name)}
    assert {"rejection", "mix", "dev3", "r1", "distill_qwen", "eval_r1"} <= rerun
    assert rerun.isdisjoint({"v3_base", "r1_zero", "cold_start", "dev1", "v3_data", "qwen_zero", "eval_dev1"})


def test_general_requests_are_evaluated_by_rule_a_reward_model_or_a_judge() -> None:
    where = "stage.evaluate_each.reward.components.helpful={_target_: framework.rewards."
    assert set(made()[1].nodes["eval_r1"].edges) == {"checkpoint", "prompts", "general"}
    edges = made(where + "reward_model.PreferenceModel, squash: true}")[1].nodes["eval_dev1"].edges
    assert edges["helpful"] == made()[1].nodes["r1"].edges["helpful"]
    judged = made(where + "judge.Judge, url: 'http://h/v1', model: m, mode: points}")[0].stage["evaluate_each"]
    assert judged.reward.components["helpful"].mode == "points"


def _key(graph: Graph, name: str) -> str:
    return repr(settings_of(graph.nodes[name].stage))


def _upstream(graph: Graph, name: str) -> set[str]:
    found = set(graph.nodes[name].upstream())
    return found.union(*(_upstream(graph, other) for other in found))


def test_fine_tunings_are_as_published() -> None:
    stage = published()[0].stage  # R1 v2 B.4.1; epochs: "2-3"
    for name in ("dev1", "dev3"):
        tuning = stage[name]
        assert (tuning.lr, tuning.final_lr, tuning.chats_per_step, tuning.max_tokens) == (5e-5, 5e-6, 128, 32_768)
        assert tuning.epochs in (2, 3)
        assert tuning.schedule(1000).at(0) == 5e-5
        assert tuning.schedule(1000).at(1000) == pytest.approx(5e-6)
    assert stage["dev3"].expected_chats == 804_745  # Table 5
    shares = stage["mix"].shares
    assert shares == {"reasoning": 395_285 + 211_129 + 10_124 + 10_395, "general": 177_812}


def test_reinforcement_learning_is_as_published() -> None:
    stage = published()[0].stage  # Nature, Methods; R1 v2 section 3.2, B.4.1
    for name in ("r1_zero", "dev2", "r1", "qwen_zero"):
        rl = stage[name]
        assert (rl.prompts_per_step, rl.group_size) == (32, 16)
        assert (rl.algorithm.kl_coef, rl.algorithm.reference_reset_steps) == (0.001, 400)
        assert rl.temperature == (0.7 if name == "r1" else 1.0)
    for name in ("dev2", "r1"):
        assert (stage[name].algorithm.clip_high, stage[name].longest) == (10, 32_768)
        assert set(stage[name].reward.components) >= {"accuracy", "format", "language"}
    for name in ("r1_zero", "qwen_zero"):
        assert stage[name].reward.components["language"].weight == 0  # measured alone
    assert stage["r1_zero"].steps == 10_400
    assert (stage["r1"].steps, stage["r1"].late_steps) == (1_700, 400)
    assert stage["qwen_zero"].steps >= 10_000
    assert stage["cold_start"].sampling.temperature == 1.0


def test_reward_models_and_their_data_are_as_published() -> None:
    stage = published()[0].stage  # R1 v2 B.3
    for name, prompts in (("helpful_rm", 66_000), ("safety_rm", 106_000)):
        trained = stage[name]
        assert (trained.lr, trained.prompts_per_step, trained.epochs, trained.max_tokens) == (6e-6, 256, 1, 8192)
        assert trained.expected_prompts == prompts
        assert trained.schedule(100).at(99) == 6e-6
    assert (stage["helpful_rm"].loss, stage["safety_rm"].loss) == ("pairwise", "sigmoid")
    pairs = stage["helpful_pairs"].pairs
    assert (pairs.judgements, pairs.least_margin, pairs.balance) == (4, 1.0, True)


# R1 v2 Table 6
RATES = {"qwen_1_5b": 1e-4, "qwen_7b": 8e-5, "qwen_14b": 7e-5, "qwen_32b": 6e-5, "llama_8b": 5e-5, "llama_70b": 2e-5}


@pytest.mark.parametrize(("student", "rate"), RATES.items())
def test_students_are_tuned_at_their_published_rates(student: str, rate: float) -> None:
    overrides = ("model=v3_671b", "cluster=h800_512", f"models.distill_qwen={student}")
    tuning = made(*overrides)[1].nodes["distill_qwen"].stage.config
    assert (tuning.lr, tuning.final_lr, tuning.chats_per_step, tuning.max_tokens) == (rate, rate / 10, 64, 32_768)
    assert tuning.epochs in (2, 3)


def test_a_student_without_a_rate_and_a_model_that_is_not_there_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="learning_rates: got 'llama_tiny'; must have this student's rate"):
        made("models.distill_qwen=llama_tiny")
    with pytest.raises(UserError, match=r"models\.distill_qwen: got 'qwen_2b'; did you mean 'qwen_32b'"):
        made("models.distill_qwen=qwen_2b")
    with pytest.raises(UserError, match=r"stage\.distill_llama\.think_tags: got 'found'; must be added or spelled"):
        made("stage.distill_llama.think_tags=found")
    with pytest.raises(UserError, match=r"stage\.r1\.late_steps: got 200; must be at most steps=160"):
        made("stage.r1.late_steps=200")
    with pytest.raises(UserError, match=r"models\.distil_qwen: got 'qwen_7b'; did you mean 'distill_qwen'"):
        made("models.distil_qwen=qwen_7b")


def test_the_published_plan_names_the_paper_s_hours_and_what_a_run_still_lacks() -> None:
    config, graph = published()
    text = describe_plan(graph, config.cluster, "")
    for hours in ("101,000 H800 hours", "5,000 H800 hours", "41,000 H800 hours"):
        assert hours in text
    ours = {
        name: float(note.split("here ")[1].split(" GPU")[0].replace(",", ""))
        for name, note in graph.notes.items()
        if "here" in note
    }
    assert ours["r1_zero"] == pytest.approx(101_000, rel=0.02)  # what the utilisation was set by
    assert ours["dev2"] + ours["r1"] == pytest.approx(41_000, rel=0.05)
    assert ours["cold_start"] + ours["rejection"] == pytest.approx(5_000, rel=0.5)
    assert "before a run: stage.distill_qwen.base: got None; must name a checkpoint of qwen_32b" in text
    with pytest.raises(UserError, match=r"stage\.distill_qwen\.base"):
        check_complete(graph)
    check_complete(made()[1])


def test_every_stage_that_samples_gets_an_engine_for_the_machine() -> None:
    stage = made()[0].stage
    for name in ("cold_start", "rejection", "v3_data", "helpful_pairs", "safety_labels", "evaluate_each"):
        assert not stage[name].engine.mla  # plain attention: a tiny latent suits no MLA kernel of a CPU
    stage = published()[0].stage
    for name in ("cold_start", "rejection"):
        assert stage[name].engine.tensor_parallel_size > 1
