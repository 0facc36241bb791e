"""The two recipes of numbers: the same keys in both, and published figures against papers, written by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import pytest
import yaml

from framework.config import CONF, compose

# What may differ otherwise than by a number: switches by which small models learn at all, and what is off at this size.
SWITCHES = {
    "stage.clean.exact",  # generated sums are repeats of one another
    # a small model's own answers hardly differ
    "stage.helpful_pairs.with_templates", "stage.safety_labels.with_templates",
    "stage.helpful_pairs.pairs.balance",
    "stage.distill_qwen.pretrained_here", "stage.distill_llama.pretrained_here",  # no published student is that small
}  # fmt: skip
OFF = {
    "stage.clean.near_threshold",
    *(f"stage.{stage}.ramp" for stage in ("pretrain", "v3_base", "qwen_base", "llama_base")),
}
BY_MODEL = "learning_rates"  # a table whose keys are names of models
CHANGING = {"values", "until"}  # a number that is another from given steps on

PRETRAIN = {  # V3 section 4.2; context extension: 4.3
    "steps": (242_861, "14.8T tokens"), "rows_per_step": (15_360, "batch"), "row_tokens": (4096, "sequence"),
    "ramp.start_rows": (3072, "batch"), "ramp.tokens": (469e9, "batch"),
    "engine.bias_update_speed": ({"values": [0.001, 0.0], "until": [234_914]}, "gamma for 14.3T tokens, then 0"),
    "engine.balance_alpha": (1e-4, "alpha"),
    "engine.mtp_coef": ({"values": [0.3, 0.1], "until": [166_567]}, "lambda for 10T tokens, then 0.1"),
    "engine.schedule.lr": (2.2e-4, ""), "engine.schedule.warmup_steps": (2000, ""),
    "engine.schedule.total_steps": (242_861, "14.8T tokens"), "engine.schedule.final_ratio": (0.1, "2.2e-5"),
    "engine.schedule.decay_start": (0.685853, "step 166,567 of 242,861: 10T tokens"),
    "engine.schedule.decay_end": (0.967278, "4.3T tokens later"),
    "engine.schedule.tail_start": (0.989072, "the last 167B tokens"), "engine.schedule.tail_lr": (7.3e-6, ""),
}  # fmt: skip
EXTENSION = [
    {"steps": 1000, "rows_per_step": 1920, "row_tokens": 32_768, "lr": 7.3e-6},
    {"steps": 1000, "rows_per_step": 480, "row_tokens": 131_072, "lr": 7.3e-6},
]
STUDENTS = {"qwen_1_5b": 1e-4, "qwen_7b": 8e-5, "qwen_14b": 7e-5, "qwen_32b": 6e-5, "llama_8b": 5e-5, "llama_70b": 2e-5}
TUNING = {"chats_per_step": 128, "max_tokens": 32_768, "lr": 5e-5, "final_lr": 5e-6}
SAMPLING = {"k": 64, "temperature": 0.6, "top_p": 0.95, "max_tokens": 32_768}
REWARD_MODEL = {"epochs": 1, "prompts_per_step": 256, "max_tokens": 8192, "lr": 6e-6}
CLIP = {"algorithm.clip_low": 10, "algorithm.clip_high": 10}
LENGTHS = {"values": [32_768, 65_536], "until": [8200]}


def figures(stage: str, source: str, values: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    return {f"stage.{stage}.{key}": (value, source) for key, value in values.items()}


# Key -> (figure, paper and section).
PUBLISHED: dict[str, tuple[Any, str]] = {
    **figures("clean", "R1 v2 D.1: 10-grams", {"decontamination_words": 10}),
    **figures("tokenizer", "V3 section 4.1, tokenizer.json", {"vocab_size": 128_000 + 815, "digits_per_token": 3}),
    **figures("tokenize", "V3 section 4.1", {"fim_rate": 0.1}),
    **{
        f"stage.{stage}.{key}": (value, f"V3 section 4.2: {what}")
        for stage in ("pretrain", "v3_base")
        for key, (value, what) in PRETRAIN.items()
    },
    **{f"stage.{stage}.extend": (EXTENSION, "V3 section 4.3") for stage in ("pretrain", "v3_base")},
    **figures("evaluate", "R1 v2 D.1", SAMPLING),
    **figures("evaluate_each", "R1 v2 D.1", SAMPLING),
    **figures("grpo", "Nature, Methods", {"max_tokens": LENGTHS}),
    **figures("r1_zero", "Nature, Methods", {"max_tokens": LENGTHS}),
    **figures("cold_start", "R1 v2 Table 4: 26K + 17K + 8K + 22K + 15K", {"expected_prompts": 88_000}),
    **figures("cold_start", "R1 v2 B.3.2", {"sampling.temperature": 1.0}),
    **figures("dev1", "R1 v2 B.4, fine-tuning: 2-3 epochs", {**TUNING, "epochs": 3}),
    **figures("dev2", "R1 v2 section 3.2", {"max_tokens": 32_768, **CLIP}),
    **figures("rejection", "R1 v2 Table 4: 26K + 17K + 8K + 22K + 15K", {"expected_prompts": 88_000}),
    **figures("v3_data", "R1 v2 Table 5, general", {"expected_prompts": 177_812}),
    **figures("mix", "R1 v2 Table 5", {"shares.reasoning": 395_285 + 211_129 + 10_124 + 10_395}),
    **figures("mix", "R1 v2 Table 5", {"shares.general": 177_812}),
    **figures("dev3", "R1 v2 B.4, fine-tuning; R1 v1: 2 epochs", {**TUNING, "epochs": 2}),
    **figures("dev3", "R1 v2 Table 5", {"expected_chats": 804_745}),
    **figures("helpful_pairs", "R1 v2 B.3", {"expected_prompts": 66_000, "pairs.judgements": 4}),
    **figures("helpful_pairs", "R1 v2 B.3: kept above 1", {"pairs.least_margin": 1.0}),
    **figures("safety_labels", "R1 v2 B.3", {"expected_prompts": 106_000}),
    **figures("helpful_rm", "R1 v2 B.3", {**REWARD_MODEL, "expected_prompts": 66_000}),
    **figures("safety_rm", "R1 v2 B.3", {**REWARD_MODEL, "expected_prompts": 106_000}),
    **figures("r1", "R1 v2 section 3.2", {"steps": 1700, "late_steps": 400, "temperature": 0.7, **CLIP}),
    **figures("r1", "R1 v2 section 3.2", {"max_tokens": 32_768}),
    **{
        key: figure
        for student in ("distill_qwen", "distill_llama")
        for key, figure in figures(
            student,
            "R1 v2 B.4.3, Table 6: 2-3 epochs; Table 5",
            {"epochs": 2, "chats_per_step": 64, "max_tokens": 32_768, BY_MODEL: STUDENTS, "expected_chats": 804_745},
        ).items()
    },
    **figures("qwen_zero", "R1 v2 section 4.1: more than 10K", {"steps": 10_000, "max_tokens": 32_768}),
    **figures("qwen_zero", "R1 v2 B.4.1, Qwen-32B-Zero", {"engine.learner.schedule.lr": 2e-6}),
    "rl.steps": (10_400, "Nature, Methods"),
    "rl.prompts_per_step": (32, "Nature, Methods"),
    "rl.group_size": (16, "Nature, Methods"),
    "rl.minibatches_per_rollout": (16, "Nature, Methods: 8,192 outputs in 16 minibatches"),
    "rl.max_staleness": (0, "Nature, Methods: rollout, then training"),
    "engine.learner.schedule.lr": (3e-6, "Nature, Methods"),
    "engine.learner.weight_decay": (0.1, "V3 section 4.2; R1 does not say"),
}
# Numbers that no paper states.
OURS = {
    "stage.clean.near_threshold", "stage.tokenizer.train_documents", "stage.tokenize.split_rate",
    *(f"stage.{stage}.{key}" for stage in ("pretrain", "v3_base")
      for key in ("ramp.multiple", "validate_every", "validation_rows", "workers", "checkpoint_every")),
    "stage.dev1.expected_chats", "stage.dev2.steps", "stage.r1.minibatches_per_rollout",
    *(f"stage.{stage}.most_prompts"
      for stage in ("cold_start", "rejection", "v3_data", "helpful_pairs", "safety_labels")),
    *(f"stage.{stage}.select.most_per_prompt" for stage in ("cold_start", "rejection")),
    *(f"stage.{stage}.sampling.{key}" for stage in ("cold_start", "rejection", "v3_data", "helpful_pairs",
      "safety_labels") for key in ("n", "temperature", "top_p", "max_tokens")),
    *(f"stage.{stage}.judging.{key}" for stage in ("helpful_pairs", "safety_labels")
      for key in ("n", "temperature", "top_p", "max_tokens")),
    "stage.helpful_pairs.pairs.longest_ratio", "stage.r1_zero.evaluate_every",
    "rl.checkpoint_every", "engine.rollout.max_model_len", "engine.learner.schedule.warmup_steps",
} - {"stage.cold_start.sampling.temperature"}  # fmt: skip
# Students that a laptop pretrains: a published run is given theirs, and reads none of these.
UNREAD = ("stage.student_tokenizer.", "stage.qwen_base.", "stage.llama_base.")


@cache
def recipe(name: str) -> dict[str, Any]:
    """Dotted key -> value; `${key}` is what that key has."""
    found = dict(flat(yaml.safe_load((CONF / "recipe" / f"{name}.yaml").read_text())))
    return {
        key: found[value[2:-1]] if isinstance(value, str) and value.startswith("${") else value
        for key, value in found.items()
    }


def flat(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Single settings; a number that changes at given steps and a table by model are one."""
    if not isinstance(value, dict) or set(value) == CHANGING or where.endswith(BY_MODEL):
        yield where, value
        return
    for key, item in value.items():
        yield from flat(item, f"{where}.{key}".removeprefix("."))


def kind(value: Any) -> str:
    """What a setting holds; a number stays one where it changes with the steps."""
    if isinstance(value, dict) and set(value) == CHANGING:
        return kind(value["values"][0])
    if isinstance(value, dict):
        return f"table of {sorted(set(map(kind, value.values())))}"
    return "list" if isinstance(value, list) else type(value).__name__


def test_both_recipes_have_the_same_keys_and_differ_in_numbers_alone() -> None:
    laptop, published = recipe("laptop"), recipe("published")

    def of_keys(settings: Mapping[str, Any]) -> set[str]:  # what is off in one of them is a key without any below it
        return {next((off for off in OFF if key == off or key.startswith(f"{off}.")), key) for key in settings}

    assert of_keys(laptop) == of_keys(published)
    assert all(laptop[key] is None for key in OFF)
    for key in laptop.keys() & published.keys() - OFF:
        assert kind(laptop[key]) == kind(published[key]), key
        if isinstance(laptop[key], bool | str) and key not in SWITCHES and not key.startswith("models."):
            assert laptop[key] == published[key], key
    assert all(laptop[key] != published[key] for key in SWITCHES)


@pytest.mark.parametrize("key", PUBLISHED)
def test_each_figure_is_its_paper_s(key: str) -> None:
    figure, source = PUBLISHED[key]
    assert recipe("published")[key] == figure, source
    assert source


def test_every_number_of_the_published_recipe_is_either_a_paper_s_or_ours() -> None:
    numbers = {
        key
        for key, value in recipe("published").items()
        if not isinstance(value, bool | str) and not key.startswith(UNREAD)
    }
    assert not OURS & PUBLISHED.keys()
    assert numbers == OURS | PUBLISHED.keys()


def test_both_recipes_name_the_rate_of_every_student_that_they_train() -> None:
    for name in ("laptop", "published"):
        found = recipe(name)
        for stage in ("distill_qwen", "distill_llama"):
            assert found[f"models.{stage}"] in found[f"stage.{stage}.{BY_MODEL}"]


def test_on_a_laptop_what_rl_stages_have_in_common_is_still_said_once() -> None:
    words = ("rl.steps=80", "rl.minibatches_per_rollout=2", "engine.learner.schedule.lr=1e-5")
    stage = compose(["job=r1", *words]).stage
    for name in ("r1_zero", "dev2", "r1", "qwen_zero"):
        learner = stage[name].engine.learner
        assert (stage[name].steps, stage[name].minibatches_per_rollout) == (80, 2)
        assert learner.schedule.lr == (2e-4 if name == "qwen_zero" else 1e-5)  # whose paper gives it a rate of its own
