from __future__ import annotations

import json
import threading

import pytest

from framework.rewards.accuracy import Accuracy, extract_answer, math_answers_agree
from framework.types import Prompt
from tests.contract.sample_rewards import response_of


def chain_sum(entry: bool = True) -> Prompt:
    record = {"question": "2 + 3 =", "answer": "5", "metadata": {"source_dataset": "chain_sum"}}
    return Prompt("p0", "2 + 3 =", "chain_sum", "5", entry=json.dumps(record) if entry else "")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer> 5 </answer>", "5"),
        ("<answer>4</answer> no, <answer>5\n</answer> done", "5"),
        ("<answer>a<b</answer>", "a<b"),
        ("<answer></answer>", ""),
        ("5", None),
        ("<answer>5", None),
        ("", None),
    ],
)
def test_the_last_closed_answer_counts(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<think>2+3</think> <answer>5</answer>", 1.0),
        ("<answer> 5.0 </answer>", 1.0),
        ("<answer>6</answer>", 0.0),
        ("<answer>it is 5</answer>", 0.0),  # reasoning-gym gives this one part of the score
        ("<answer>56</answer>", 0.0),
        ("<answer></answer>", 0.0),
        ("5", 0.0),
    ],
)
def test_reasoning_gym_tasks_are_right_or_wrong(text: str, reward: float) -> None:
    assert Accuracy()(chain_sum(), response_of(text)) == reward
    assert Accuracy()(chain_sum(entry=False), response_of(text)) == reward


def test_the_stored_entry_is_what_is_verified() -> None:
    # countdown accepts any expression that reaches the target, so its verifier needs the entry's metadata
    import reasoning_gym

    entry = reasoning_gym.create_dataset("countdown", seed=1, size=1)[0]
    target, numbers = entry["metadata"]["target"], entry["metadata"]["numbers"]
    prompt = Prompt("p0", entry["question"], "countdown", entry["answer"], entry=json.dumps(entry))
    assert Accuracy()(prompt, response_of(f"<answer>{entry['metadata']['expression']}</answer>")) == 1.0
    assert Accuracy()(prompt, response_of(f"<answer>{target}</answer>")) == 0.0
    assert Accuracy()(prompt, response_of(f"<answer>{'+'.join(map(str, numbers))}+1</answer>")) == 0.0


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(ValueError, match="'geography' is neither"):
        Accuracy()(Prompt("p0", "q", "geography", "a"), response_of("<answer>a</answer>"))


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("1/2", "0.5"),
        ("\\frac{1}{2}", "1/2"),
        ("2", "$\\sqrt{4}$"),
        ("x+1", "1 + x"),
        ("{1,2}", "\\{2, 1\\}"),
        ("(1,2)", "(1, 2)"),
        ("1,000", "1000"),
        ("50%", "0.5"),
        ("7", "\\boxed{7}"),
    ],
)
def test_math_answers_that_agree(reference: str, answer: str) -> None:
    assert math_answers_agree(reference, answer)


@pytest.mark.parametrize(
    ("reference", "answer"), [("3", "4"), ("3", "1 2 3"), ("3", "1 or 3"), ("x", "y"), ("5", "\\frac{"), ("5", "((")]
)
def test_math_answers_that_do_not(reference: str, answer: str) -> None:
    assert not math_answers_agree(reference, answer)


def test_a_reference_without_mathematics_is_an_error() -> None:
    with pytest.raises(ValueError, match="reference answer ''"):
        math_answers_agree("", "1")


def test_math_tasks_are_verified_off_the_main_thread_too() -> None:
    prompt, rewards = Prompt("p0", "q", "gsm8k", "1/2"), list[float]()
    reward = Accuracy(math_tasks=("gsm8k",))
    thread = threading.Thread(target=lambda: rewards.append(reward(prompt, response_of("<answer>0.50</answer>"))))
    thread.start()
    thread.join()
    assert rewards == [1.0]
