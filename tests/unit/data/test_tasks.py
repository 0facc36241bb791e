"""Every reasoning-gym data set either works from generation to verdict, or is refused by name."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest
import reasoning_gym
from reasoning_gym.factory import DATASETS

from framework.data.entries import decode_entry
from framework.data.readers import read_prompts, write_prompts
from framework.data.tasks import TaskConfig, generate, same_text, split_of
from framework.data.templates import R1_ZERO_CHAT_TEMPLATE, render_chat, render_r1_zero
from framework.errors import UserError
from framework.rewards.accuracy import Accuracy, gym_score
from framework.types import Prompt
from tests.contract.sample_rewards import response_of

REFUSED = {
    "boxnet": "states no answer",
    "rush_hour": "states no answer",
    "composite": "name its parts",
}
# As small as they go: by default one entry takes seconds.
SMALL: dict[str, dict[str, object]] = {
    "knight_swap": {"max_nodes": 6, "min_pieces": 1, "max_pieces": 1, "min_steps": 2},
    "intermediate_integration": {"problem_types": ["log_inverse_trig"], "problem_type_weights": [1.0]},
    "futoshiki": {"min_board_size": 4, "max_board_size": 4},
    "zebra_puzzles": {"num_people": 2, "num_characteristics": 2},
    "puzzle24": {"max_value": 4},
}
ENTRIES = 2
SEED = 20


@cache
def prompts_of(task: str) -> tuple[Prompt, ...]:
    return tuple(generate(task, TaskConfig(SMALL.get(task, {})), SEED, ENTRIES))


def test_the_refused_ones_are_among_the_data_sets() -> None:
    assert REFUSED.keys() | SMALL.keys() <= DATASETS.keys()
    assert len(DATASETS) > 100


@pytest.mark.parametrize("task", sorted(DATASETS))
def test_every_data_set_scores_its_own_reference_after_a_file_or_is_refused(task: str, tmp_path: Path) -> None:
    if task in REFUSED:
        with pytest.raises(UserError, match=REFUSED[task]) as caught:
            list(generate(task, TaskConfig(), SEED, ENTRIES))
        assert caught.value.where == f"data.tasks.{task}"
        return
    prompts = prompts_of(task)
    write_prompts(tmp_path / "prompts.jsonl", {prompt.id: prompt for prompt in prompts}.values())
    for prompt in read_prompts(tmp_path / "prompts.jsonl"):
        assert prompt in prompts  # nothing changes on the way through a file
        assert gym_score(prompt, prompt.answer) >= 1.0
        assert gym_score(prompt, prompt.answer) >= 1.0  # and the first call leaves nothing behind
        assert Accuracy()(prompt, response_of(f"<answer>{prompt.answer}</answer>")) == 1.0


@pytest.mark.parametrize("task", sorted(DATASETS.keys() - REFUSED.keys()))
def test_questions_and_records_are_reasoning_gyms_to_the_letter(task: str) -> None:
    params = SMALL.get(task, {})
    entries = list(reasoning_gym.create_dataset(task, size=ENTRIES, seed=SEED, **params))
    for prompt, entry in zip(prompts_of(task), entries, strict=True):
        assert prompt.text == entry["question"]
        assert repr(decode_entry(prompt.entry)) == repr({**entry, "params": params})
        assert entry["question"].strip() in render_r1_zero(prompt.text)
        assert render_chat(R1_ZERO_CHAT_TEMPLATE, [{"role": "user", "content": prompt.text}], bos_token="") == (
            render_r1_zero(prompt.text)
        )


@pytest.mark.parametrize(
    ("task", "params"),
    [
        ("decimal_arithmetic", {"min_num_decimal_places": 1, "max_num_decimal_places": 2}),
        ("word_ladder", {"min_word_length": 3, "max_word_length": 3}),
    ],
)
def test_the_verifier_knows_the_parameters_of_its_task(task: str, params: dict[str, int]) -> None:
    for prompt in generate(task, TaskConfig(params), 3, 5):
        assert gym_score(prompt, prompt.answer) >= 1.0


def test_an_example_that_its_own_verifier_refuses_is_left_out() -> None:
    # of 300, two name as example a conclusion that is no more than one of the premises
    prompts = list(generate("propositional_logic", TaskConfig(), seed=77, size=300))
    assert 290 < len(prompts) < 300
    assert all(gym_score(prompt, prompt.answer) >= 1.0 for prompt in prompts)


def test_a_wrong_answer_is_still_wrong() -> None:
    for task in ("arc_agi", "rearc", "graph_color", "rubiks_cube", "circuit_logic", "sudoku"):
        for prompt in prompts_of(task):
            assert Accuracy()(prompt, response_of("<answer>nonsense</answer>")) == 0.0


@pytest.mark.parametrize(
    ("task", "params"),
    [
        ("chain_sum", {"seed": 3}),
        ("chain_sum", {"min_terms": "three"}),
        ("rearc", {"board_format_opts": {"row_delimiter": "|"}}),
        ("number_format", {"min_num_candidates": -4}),
    ],
)
def test_parameters_that_a_data_set_cannot_use_are_one_clear_error(task: str, params: dict[str, object]) -> None:
    with pytest.raises(UserError, match="reasoning-gym says") as caught:
        list(generate(task, TaskConfig(params), 0, 2))
    assert caught.value.where == f"data.tasks.{task}.params"


def test_white_space_is_kept_from_the_question_to_the_template() -> None:
    grid = "    1  2\n\t3   4\n\n  5"
    assert f"User: {grid}. Assistant:" in render_r1_zero(f"\n{grid}  \n")
    messages = [{"role": "user", "content": f"\n{grid}  \n"}]
    assert render_chat(R1_ZERO_CHAT_TEMPLATE, messages, bos_token="") == render_r1_zero(grid)


def test_questions_that_look_the_same_stay_on_one_side() -> None:
    for number in range(200):
        text = f"Is {number} in  the\n grid?"
        assert {split_of(other, 0.5) for other in (text, text.upper(), " ".join(text.split()), text + " \n")} == {
            split_of(text, 0.5)
        }
    assert same_text("Ａ\n b") == "a b"


def test_a_record_that_another_program_wrote_is_read() -> None:
    entry = reasoning_gym.create_dataset("maze", seed=1, size=1)[0]
    prompt = Prompt("p", entry["question"], "maze", entry["answer"], entry=json.dumps(entry))
    assert gym_score(prompt, entry["answer"]) == 1.0
    assert json.loads(json.dumps(asdict(prompt)))["text"] == entry["question"]
