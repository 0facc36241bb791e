"""The Scorer protocol, against the fake, the in-process scorer and the isolated one; then what only isolation gives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from framework.errors import FrameworkError, RunFailed, UserError
from framework.protocols import Scorer
from framework.rewards.format import Format
from framework.rewards.isolation import InProcessScorer, IsolatedScorer
from framework.types import RewardScore
from tests.contract import sample_rewards
from tests.contract.sample_rewards import (
    CONFIG,
    Illegible,
    Obedient,
    Suicidal,
    Unpreparable,
    Unsendable,
    Verifier,
    group_of,
)
from tests.fakes import FakeScorer


@pytest.fixture(scope="module")
def isolated() -> Iterator[IsolatedScorer]:
    with IsolatedScorer(CONFIG) as scorer:
        yield scorer


@pytest.fixture(params=["fake", "in_process", "isolated"])
def scorer(request: pytest.FixtureRequest, isolated: IsolatedScorer) -> Scorer:
    match request.param:
        case "fake":
            return FakeScorer(lambda prompt, response: 2.0 * Obedient()(prompt, response))
        case "in_process":
            return InProcessScorer(CONFIG)
        case _:
            return isolated


def test_scores_come_in_the_order_of_the_responses(scorer: Scorer) -> None:
    assert [score.total for score in scorer.score(group_of("1", "-2.5", "0", "numpy"))] == [2.0, -5.0, 0.0, 1.0]


def test_an_empty_group_has_no_scores(scorer: Scorer) -> None:
    assert scorer.score(group_of()) == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [("raise", "ZeroDivisionError: no such luck"), ("nan", "nan"), ("none", "None")],
)
def test_a_bad_reward_fails_its_sample_only(scorer: Scorer, text: str, reason: str) -> None:
    good, bad, also_good = scorer.score(group_of("1", text, "2"))
    assert (good.total, bad.total, also_good.total) == (2.0, 0.0, 4.0)
    assert reason in bad.error
    assert not good.error
    assert not also_good.error


def test_components_are_kept_and_their_weighted_sum_is_the_total() -> None:
    config = replace(CONFIG, components={"a": Obedient(weight=2.0), "b": Obedient(weight=0.5)})
    with IsolatedScorer(config) as scorer:
        (both,), (only_b,) = scorer.score(group_of("3")), scorer.score(group_of("3", rewards=("b",)))
    assert (both.total, both.components) == (7.5, {"a": 3.0, "b": 3.0})
    assert (only_b.total, only_b.components) == (1.5, {"b": 3.0})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hang", "timed out after 1 s"),
        ("exit", "died: exit code 3"),
        ("quit", "died: exit code 4"),
        ("leave", "died: exit code 1, SystemExit: no such table ("),
        ("interrupt", "died: exit code 1, KeyboardInterrupt ("),
        ("background", "died: exit code 5"),
        ("segfault", "died: killed by SIGSEGV"),
        ("allocate", "MemoryError"),
    ],
)
def test_a_fatal_reward_fails_its_sample_only(isolated: IsolatedScorer, text: str, reason: str) -> None:
    scores = isolated.score(group_of("1", text, "2", "3"))
    assert [score.total for score in scores] == [2.0, 0.0, 4.0, 6.0]
    assert reason in scores[1].error
    assert isolated.score(group_of("5"))[0].total == 10.0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("untold", "raised Untold: (its text cannot be had: RuntimeError) ("),
        ("deaf", "raised ZeroDivisionError: no such luck ("),
        ("surrogate", "raised ZeroDivisionError: no \\ud83d luck ("),
        ("enormous", "add up to inf, which is not a finite number"),
    ],
)
def test_an_error_is_one_line_that_any_file_takes(isolated: IsolatedScorer, text: str, reason: str) -> None:
    (score,) = isolated.score(group_of(text))
    assert reason in score.error
    assert score.error.encode().decode().splitlines() == [score.error]
    assert (score.total, isolated.score(group_of("5"))[0].total) == (0.0, 10.0)


def test_a_copy_that_a_reward_forks_scores_nothing(isolated: IsolatedScorer) -> None:
    """Its lines would be taken for the scores of the responses behind it."""
    for _ in range(3):
        assert [score.total for score in isolated.score(group_of("3", "fork", "4", "5"))] == [6.0, 2.0, 8.0, 10.0]


def test_what_a_reward_does_to_a_prompt_or_response_changes_no_other_value(isolated: IsolatedScorer) -> None:
    group = group_of("spoil", "spoil", "spoil")
    spoiled = replace(group, prompt=replace(group.prompt, columns={"left": [1, 2, 3]}))
    assert [score.total for score in isolated.score(spoiled)] == [4.0, 4.0, 4.0]


def test_an_answer_that_is_no_text_is_told() -> None:
    with IsolatedScorer(replace(CONFIG, components={"a": Illegible()})) as scorer:
        assert "`extracted` returned 5, not a text" in scorer.score(group_of("1"))[0].error


def test_a_reward_may_print_and_read_without_disturbing_the_protocol(isolated: IsolatedScorer) -> None:
    assert [score.total for score in isolated.score(group_of("print", "1"))] == [0.0, 2.0]


def test_a_response_of_a_megabyte_passes_both_pipes(isolated: IsolatedScorer) -> None:
    (score,) = isolated.score(group_of("nosuchnumber" * 100_000))
    assert "could not convert" in score.error
    assert len(score.error) <= 500


def test_what_a_hanging_reward_started_dies_with_it(isolated: IsolatedScorer, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    (score,) = isolated.score(group_of(f"hang_with_child {pid_file}"))
    assert "timed out" in score.error
    assert is_dead(int(pid_file.read_text()))


def test_closing_kills_the_child() -> None:
    scorer = IsolatedScorer(CONFIG)
    child = scorer.pid
    scorer.close()
    assert is_dead(child)


@pytest.mark.parametrize("text", ["hang", "hold"])
def test_what_scores_ends_with_who_asked_and_lets_go_of_its_pipe(text: str) -> None:
    code = (
        "import os, threading, time\n"
        "from framework.rewards.isolation import IsolatedScorer\n"
        "from tests.contract.sample_rewards import CONFIG, group_of\n"
        "scorer = IsolatedScorer(CONFIG)\n"
        f"threading.Thread(target=scorer.score, args=(group_of('{text}'),)).start()\n"
        "time.sleep(0.5)\n"
        "os._exit(130)"
    )
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, timeout=120)  # until the pipe is closed
    assert (done.returncode, done.stderr) == (130, b"")


def test_a_child_stopped_by_a_signal_is_replaced(isolated: IsolatedScorer) -> None:
    isolated.score(group_of("1"))
    os.kill(isolated.pid, signal.SIGSTOP)  # the request fills the pipe and nobody reads
    (score,) = isolated.score(group_of("1" * (1 << 20)))
    assert "timed out" in score.error
    assert isolated.score(group_of("1"))[0].total == 2.0


def test_rewards_see_only_the_environment_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "x")
    monkeypatch.setenv("VERIFIER_URL", "x")
    with IsolatedScorer(replace(CONFIG, environment=("VERIFIER_URL",))) as scorer:
        secret, url = scorer.score(group_of("environment SECRET_KEY", "environment VERIFIER_URL"))
    assert (secret.total, url.total) == (0.0, 2.0)


def test_rewards_see_the_cards_that_their_worker_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # without it every card of the machine is visible
    with IsolatedScorer(CONFIG) as scorer:
        (found,) = scorer.score(group_of("environment CUDA_VISIBLE_DEVICES"))
    assert found.total == 2.0


@pytest.mark.parametrize(
    ("reward", "error", "reason"),
    [
        (Unpreparable(), UserError, "cannot be loaded: ImportError: no module named verifier"),
        (Suicidal(), RunFailed, "died while it started: exit code 7"),
        (Unsendable(), UserError, "cannot be sent there: TypeError: cannot pickle"),
    ],
)
def test_rewards_that_cannot_be_loaded_stop_the_run(
    reward: Unpreparable | Suicidal | Unsendable, error: type[FrameworkError], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        IsolatedScorer(replace(CONFIG, components={"bad": reward}))


@pytest.fixture(scope="module")
def verifying() -> Iterator[IsolatedScorer]:
    components = {"format": Format(), "verifier": Verifier(weight=2.0)}
    with IsolatedScorer(replace(CONFIG, components=components, time_limit_s=3.0)) as scorer:
        yield scorer


@pytest.mark.parametrize("text", ["hang", "exit", "segfault"])
def test_an_answer_that_a_verifier_cannot_bear_is_wrong_and_its_other_rewards_count(
    verifying: IsolatedScorer, text: str
) -> None:
    scores = verifying.score(group_of("1", text, text, "3"))
    zero = RewardScore(0.0, {"format": 0.0, "verifier": 0.0})
    assert scores[1:3] == (zero, zero)
    assert [scores[0].total, scores[3].total] == [2.0, 6.0]
    assert not any(score.error for score in scores)


@pytest.mark.parametrize(("answer", "reason"), [("bad", "no such reference"), ("hang", "reference answer timed out")])
def test_a_reference_that_cannot_be_judged_fails_its_group(verifying: IsolatedScorer, answer: str, reason: str) -> None:
    began = time.monotonic()
    scores = verifying.score(group_of("1", "2", "3", answer=answer))
    assert all(reason in score.error for score in scores)
    assert time.monotonic() - began < 6  # once for the group
    assert verifying.score(group_of("1"))[0].total == 2.0


@pytest.mark.parametrize("text", ["raise", "hang"])
def test_an_error_names_the_authors_file_and_line(isolated: IsolatedScorer, text: str) -> None:
    (score,) = isolated.score(group_of(text))
    file = sample_rewards.__file__
    lines = Path(file).read_text().splitlines()
    line = next(n for n, source in enumerate(lines, 1) if f'case "{text}":' in source) + 1
    assert f"({file}:{line})" in score.error


def test_a_reward_that_always_hangs_is_told_within_twice_its_limit(isolated: IsolatedScorer) -> None:
    began = time.monotonic()
    scores = isolated.score(group_of(*["hang"] * 16))
    assert time.monotonic() - began < 2 * 1.0 + 2
    assert all("timed out after 1 s" in score.error for score in scores)
    assert "not tried" in scores[15].error


def test_what_a_reward_prints_and_its_traceback_are_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "reward-0.log"
    with IsolatedScorer(CONFIG, log) as scorer:
        scorer.score(group_of("print", "raise", "exit", "raise"))
    text = log.read_text()
    assert "x" * 100_000 in text
    assert text.count("prompt p0: reward obedient raised:") == 2
    assert "sample_rewards.py" in text
    assert "ZeroDivisionError: no such luck" in text


def test_a_replaced_process_costs_no_second_import(isolated: IsolatedScorer) -> None:
    began = time.monotonic()
    for _ in range(20):
        isolated.score(group_of("exit"))
    assert time.monotonic() - began < 10  # loading the rewards takes longer than half a second


def test_the_loader_is_replaced_too(isolated: IsolatedScorer) -> None:
    loader = isolated._loader._process.pid
    os.kill(loader, signal.SIGKILL)
    isolated.score(group_of("exit"))
    assert isolated.score(group_of("4"))[0].total == 8.0
    assert isolated._loader._process.pid != loader


def is_dead(pid: int) -> bool:
    """Whether the process ends within a few seconds; one that waits to be reaped counts as dead."""
    for _ in range(50):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False
