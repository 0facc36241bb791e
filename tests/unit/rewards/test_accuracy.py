from __future__ import annotations

import json
import threading
import time
from dataclasses import replace

import pytest

from framework.config import compose
from framework.data.tasks import TaskConfig, generate
from framework.errors import UserError
from framework.rewards import accuracy
from framework.rewards.accuracy import Accuracy
from framework.rewards.answers import extract_answer
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
    with pytest.raises(UserError, match="prompt p0: task: got 'geography'"):
        Accuracy()(Prompt("p0", "q", "geography", "a"), response_of("<answer>a</answer>"))


def test_a_copied_question_pays_nothing_under_the_shipped_rewards() -> None:
    reward = compose().reward.components["accuracy"]
    prompts = list(generate("chain_sum", TaskConfig({"min_terms": 3}), seed=1, size=20))
    for prompt in prompts:
        copied = prompt.text.removesuffix("=").removeprefix(
            "State the final answer to the following arithmetic problem:"
        )
        assert reward(prompt, response_of(f"<answer>{copied}</answer>")) == 0.0
        assert reward(replace(prompt, task="math"), response_of(f"<answer>{copied}</answer>")) == 0.0
        assert reward(prompt, response_of(f"<answer>{prompt.answer}</answer>")) == 1.0
        assert reward(replace(prompt, task="math"), response_of(f"<answer>{prompt.answer}</answer>")) == 1.0


def test_an_expression_copied_from_the_question_is_no_answer() -> None:
    prompt = Prompt("p0", "Simplify $\\sqrt{4}$.", "math", "2")
    copied, other = (Accuracy()(prompt, response_of(f"\\boxed{{{answer}}}")) for answer in ("\\sqrt{4}", "2"))
    assert (copied, other) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("text", "where", "answer"),
    [
        ("\\boxed{5} \\boxed{6}", "last", "6"),
        ("\\boxed{\\frac{1}{2}}", "boxed", "\\frac{1}{2}"),
        ("\\boxed{5} then <answer>6</answer>", "last", "6"),
        ("<answer>6</answer> so \\boxed{5}", "last", "5"),
        ("<answer>6</answer> so \\boxed{5}", "tag", "6"),
        ("<answer>\\boxed{5}</answer>", "last", "\\boxed{5}"),
        ("so\n#### 18\nbye", "last", "18"),
        ("so\n#### 18\nbye", "hashes", "18"),
        ("it is 5, then 1,234.5.", "number", "1,234.5"),
        ("it is -7", "number", "-7"),
        ("no number", "number", None),
        ("Answer=[7] Answer=[8]", "regex:Answer=\\[(.*?)\\]", "8"),
        ("x7 x8", "regex:x\\d", "x8"),
        ("nothing", "regex:x\\d", None),
        ("\\boxed{5", "last", None),
        ("<answer>5</answer> tail</answer>", "last", "5"),
        ("<answer>4 <answer>5</answer>", "last", "5"),
        ("<answer>5</answer> <answer>6", "last", "5"),
    ],
)
def test_where_the_answer_stands_is_a_setting(text: str, where: str, answer: str | None) -> None:
    assert extract_answer(text, where) == answer


@pytest.mark.parametrize("where", ["lost", "regex:(", "", "Tag"])
def test_an_unknown_place_is_refused(where: str) -> None:
    with pytest.raises(UserError, match=r"answer_in.*must be one of last, tag, boxed, hashes, number"):
        Accuracy(answer_in=where)


@pytest.mark.parametrize(
    ("text", "finish_reason", "reward"),
    [
        ("The answer is 5", "stop", 1.0),
        ("2 + 3 = 5", "stop", 1.0),
        ("so far 5", "length", 0.0),  # cut off: its last number is not its answer
        ("<answer>5", "stop", 0.0),
        ("5 <answer>6</answer>", "stop", 0.0),
        ("<think>\\boxed{5}</think> The answer is 6.", "stop", 0.0),
        ("<think>\\boxed{6}</think> The answer is 5.", "stop", 1.0),
        ("<think>\\boxed{6}, no</think> So \\boxed{5}", "length", 1.0),
        ("<think>so \\boxed{5}</think>", "stop", 1.0),  # nothing else is said
    ],
)
def test_mathematics_without_a_mark_is_taken_at_the_last_number(text: str, finish_reason: str, reward: float) -> None:
    assert Accuracy()(Prompt("p0", "q", "math", "5"), response_of(text, finish_reason)) == reward


@pytest.mark.parametrize("piece", ["<answer>", "</answer>", "\\boxed{", "####", "1,", "{", "-"])
@pytest.mark.parametrize("where", ["last", "tag", "boxed", "hashes", "number"])
def test_the_search_is_linear(piece: str, where: str) -> None:
    began = time.process_time()
    extract_answer(piece * 300_000, where)  # a quadratic search takes hours
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    ("task", "answer", "reason"),
    [("math", "", "holds nothing"), ("chain_sum", "", "does not score 1 against itself"), ("geo", "a", "")],
)
def test_a_reference_that_cannot_be_judged_names_its_prompt(task: str, answer: str, reason: str) -> None:
    prompt = Prompt("p7", "q", task, answer)
    with pytest.raises(UserError, match=f"prompt p7.*{reason}"):
        Accuracy().check(prompt)


def test_a_verifier_that_raises_on_an_answer_calls_it_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def score(answer: str, entry: dict[str, object]) -> float:
        return 1.0 if answer == "5" else 1 / 0

    monkeypatch.setattr(accuracy, "_gym_verifier", lambda task, params: score)
    assert Accuracy()(chain_sum(), response_of("<answer>6</answer>")) == 0.0
    broken = replace(chain_sum(), answer="7")
    with pytest.raises(UserError, match=r"prompt p0: answer.*ZeroDivisionError"):
        Accuracy()(broken, response_of("<answer>6</answer>"))


def test_math_tasks_are_verified_off_the_main_thread_too() -> None:
    prompt, rewards = Prompt("p0", "q", "gsm8k", "1/2"), list[float]()
    reward = Accuracy(math_tasks=("gsm8k",))
    thread = threading.Thread(target=lambda: rewards.append(reward(prompt, response_of("<answer>0.50</answer>"))))
    thread.start()
    thread.join()
    assert rewards == [1.0]


@pytest.mark.parametrize(
    ("text", "finish_reason", "reward"),
    [
        ("knight", "stop", 1.0),
        ("Ann lies, so Bob tells the truth.\n\nThe answer is **Knight**.", "stop", 1.0),
        ("Answer: knight", "stop", 1.0),
        ("答案是 knight。", "stop", 1.0),
        ("a knight would lie", "stop", 0.0),
        ("The answer is knave.", "stop", 0.0),
        ("", "stop", 0.0),
        ("The answer is knight", "length", 0.0),  # cut off: it may go on
        ("knight <answer>", "stop", 0.0),
    ],
)
def test_a_word_without_a_mark_is_taken_from_the_last_line(text: str, finish_reason: str, reward: float) -> None:
    prompt = Prompt("p0", "q", "logic", "knight")
    assert Accuracy()(prompt, response_of(text, finish_reason)) == reward
    assert Accuracy(answer_in="tag")(prompt, response_of(text, finish_reason)) == 0.0
