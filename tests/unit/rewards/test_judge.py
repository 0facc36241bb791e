"""The judge against a real HTTP server that answers well, badly, late or not at all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from framework.errors import UserError
from framework.rewards.base import RewardConfig, score_response
from framework.rewards.endpoint import NoAnswer
from framework.rewards.isolation import IsolatedScorer
from framework.rewards.judge import Judge, _orders
from framework.types import Prompt, ResponseGroup, RewardScore
from tests.contract.sample_rewards import response_of
from tests.fake_endpoint import Answer, Handler, Server, drips, half, hangs_up, never, raw, says, serving, status

PROMPT = Prompt("p0", "Say hello.", "general", "Hello there!")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.rewards.endpoint.PAUSE_S", 0.0)


def prefers(text: str) -> Answer:
    """A judge of taste: the answer that holds `text` is much better."""

    def answer(handler: Handler, question: str) -> None:
        a, _, b = question.partition("Answer A:")[2].partition("Answer B:")
        grade = "A>>B" if text in a else "B>>A" if text in b else "A=B"
        says(f"I looked. [[{grade}]]")(handler, question)

    return answer


def judge(server: Server, **change: Any) -> Judge:
    return replace(Judge(url=server.url, model="judge", deadline_s=5.0, retries=2), **change)


def test_an_answer_is_compared_with_the_reference(server: Server) -> None:
    server.answers = [says("They agree. [[correct]]"), says("No. [[incorrect]]")]
    reward = judge(server)
    reward.spent()
    assert [reward(PROMPT, response_of(text)) for text in ("<think>hm</think>Hello!", "Bye.")] == [1.0, 0.0]
    asked = server.asked[0][0]["messages"][0]["content"]
    assert "Hello there!" in asked
    assert "Hello!" in asked
    assert "hm" not in asked.partition("Student's answer:")[2]  # the summary alone
    assert (reward.spent(), reward.spent()) == (14, 0)


def test_all_of_a_response_is_shown_where_that_is_asked(server: Server) -> None:
    server.answers = [says("[[correct]]")]
    judge(server, sees="all")(PROMPT, response_of("<think>plan</think>Hello!"))
    assert "plan" in server.asked[0][0]["messages"][0]["content"]


def test_points_become_a_share(server: Server) -> None:
    server.answers = [says("[[10]]"), says("[[1]]"), says("fine: [[4]]")]
    reward = judge(server, mode="points")
    assert [reward(PROMPT, response_of("Hi.")) for _ in range(3)] == [1.0, 0.0, pytest.approx(1 / 3)]


def test_a_pair_is_judged_four_times_in_both_orders(server: Server) -> None:
    server.answers = [prefers("Hi friend")]
    reward = judge(server, mode="pairs")
    reward.spent()
    assert reward(PROMPT, response_of("Hi friend")) == 1.0
    assert len(server.asked) == 4
    first = [
        body["messages"][0]["content"].partition("Answer A:")[2].startswith("\nHi friend") for body, _ in server.asked
    ]
    assert sorted(first) == [False, False, True, True]
    server.answers = [prefers("Hello there!")]
    assert reward(PROMPT, response_of("Hi friend")) == -1.0
    assert reward.spent() == 56


def test_a_judge_that_always_likes_the_first_moves_nothing(server: Server) -> None:
    server.answers = [says("[[A>>B]]")]
    for text in ("x", "y", "z"):
        assert judge(server, mode="pairs")(PROMPT, response_of(text)) == 0.0


def test_the_order_is_random_between_responses_and_the_same_for_one(server: Server) -> None:
    orders = {tuple(_orders(str(n), 4)) for n in range(50)}
    assert len(orders) > 3
    assert _orders("a", 4) == _orders("a", 4)
    assert {sum(_orders(str(n), 3)) for n in range(50)} == {1, 2}


@pytest.mark.parametrize(
    "bad",
    [
        status(500),
        status(429),
        raw(b"<html>"),
        raw(b'{"choices": [{"mess'),
        raw(b"[1, 2]"),
        raw(b'{"choices": []}'),
        raw(b'{"usage": {"total_tokens": 1e999}, "choices": [{"message": {"content": "[[correct]]"}}]}'),
        raw(b"[" * 100_000),
        half,
        hangs_up,
        says("I would say correct."),
        says("[[correct]] or rather [[incorrect]]"),
        says("[[maybe]]"),
        says("<think>[[correct]]</think>"),
        says("[[correct]]", "length"),
        says(None),
        says(["[[correct]]"]),
    ],
)
def test_a_bad_reply_is_no_verdict_and_is_asked_again(server: Server, bad: Answer) -> None:
    server.answers = [bad, bad, says("[[correct]]")]
    assert judge(server)(PROMPT, response_of("Hello!")) == 1.0
    server.asked.clear()
    server.answers = [bad]
    with pytest.raises(NoAnswer, match=r"no answer of judge at http://127\.0\.0\.1.* in 3 tries; last: "):
        judge(server)(PROMPT, response_of("Hello!"))
    assert len(server.asked) == 3


@pytest.mark.parametrize("bad", [says("[[11]]"), says("[[0]]"), says("[[3]] [[4]]"), says("3"), says("[[3.5]]")])
def test_a_grade_outside_its_scale_is_refused(server: Server, bad: Answer) -> None:
    server.answers = [bad]
    with pytest.raises(NoAnswer):
        judge(server, mode="points", retries=0)(PROMPT, response_of("Hello!"))


@pytest.mark.parametrize("bad", [never, drips])
def test_a_judge_that_does_not_come_to_an_end_is_left_at_the_deadline(server: Server, bad: Answer) -> None:
    server.answers = [bad]
    began = time.monotonic()
    with pytest.raises(NoAnswer, match=r"no answer within 0.3 s"):
        judge(server, deadline_s=0.3, retries=1)(PROMPT, response_of("Hello!"))
    assert time.monotonic() - began < 5


def test_a_gigantic_reply_is_cut(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.rewards.endpoint.MAX_REPLY", 1000)
    server.answers = [raw(b" " * 100_000)]
    with pytest.raises(NoAnswer, match="a reply of more than 1000 bytes"):
        judge(server)(PROMPT, response_of("Hello!"))


def test_what_cannot_get_better_is_not_asked_again(server: Server) -> None:
    server.answers = [status(401)]
    with pytest.raises(NoAnswer, match="refuses: HTTP 401"):
        judge(server)(PROMPT, response_of("Hello!"))
    assert len(server.asked) == 1


def test_the_key_comes_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "abc")
    server.answers = [says("[[correct]]")]
    judge(server, key="JUDGE_KEY")(PROMPT, response_of("Hello!"))
    assert server.asked[0][1] == "Bearer abc"


def test_a_response_that_says_nothing_is_not_shown(server: Server) -> None:
    for text in ("", "<think>on and on", "<think>x</think>  "):
        assert judge(server)(PROMPT, response_of(text)) == 0.0
        assert judge(server, mode="pairs")(PROMPT, response_of(text)) == -1.0
    assert server.asked == []


def test_a_missing_judge_model_or_reference_is_told_before_the_run(server: Server) -> None:
    judge(server).prepare()
    with pytest.raises(UserError, match="model: got 'other'; the endpoint has judge"):
        judge(server, model="other").prepare()
    with pytest.raises(UserError, match=r"url: got 'http://127\.0\.0\.1:1/v1'; no judge answers there"):
        Judge(url="http://127.0.0.1:1/v1", model="judge").prepare()
    with pytest.raises(UserError, match="url: got 'judge:8000'"):
        Judge(url="judge:8000", model="judge")
    with pytest.raises(UserError, match="prompt p0: answer: got ''; the judge needs one for mode pairs"):
        judge(server, mode="pairs").check(replace(PROMPT, answer=""))
    judge(server, mode="points").check(replace(PROMPT, answer=""))


def test_in_the_reward_process_a_lost_verdict_is_a_failed_sample_and_tokens_are_counted(server: Server) -> None:
    server.answers = [says("[[correct]]"), says("what?"), says("[[incorrect]]")]
    config = RewardConfig({"judge": judge(server, retries=0)}, time_limit_s=30.0)
    with IsolatedScorer(config) as scorer:
        scores = scorer.score(ResponseGroup(PROMPT, tuple(map(response_of, ("a", "b", "c")))))
    assert [score.components.get("judge") for score in scores] == [1.0, None, 0.0]
    assert "NoAnswer" in scores[1].error
    assert [score.tokens for score in scores] == [7, 7, 7]


def test_after_a_reply_that_is_no_good_the_judge_is_asked_otherwise(server: Server) -> None:
    server.answers = [says("Hm."), never, says("[[correct]]")]
    assert judge(server, deadline_s=0.5)(PROMPT, response_of("Hello!")) == 1.0
    first, second, third = (body for body, _ in server.asked)
    assert (first["temperature"], second["temperature"], third["temperature"]) == (0.0, 0.5, 0.5)
    server.asked.clear()
    server.answers = [never, says("[[correct]]")]
    assert judge(server, deadline_s=0.5)(PROMPT, response_of("Hello!")) == 1.0
    assert server.asked[0] == server.asked[1]  # nobody has answered that: it is asked again


def test_a_judge_has_its_own_time_beside_that_of_other_rewards(server: Server) -> None:
    def late(handler: Handler, question: str) -> None:
        handler.server.over.wait(1.5)  # type: ignore[attr-defined]
        says("[[correct]]")(handler, question)

    server.answers = [late]
    config = RewardConfig({"judge": judge(server, retries=0)}, time_limit_s=0.5)
    assert config.limit_s == 0.5 + 5.0
    with IsolatedScorer(config) as scorer:
        (score,) = scorer.score(ResponseGroup(PROMPT, (response_of("Hello!"),)))
    assert (score.total, score.error) == (1.0, "")


def test_of_a_silent_judge_a_group_waits_for_two_responses_alone(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answers = [never]
    group = ResponseGroup(PROMPT, tuple(map(response_of, "abcdef")))
    impatient = judge(server, deadline_s=0.2, retries=0, weight=2.0)
    scores = scored_by(impatient, group)
    assert len(server.asked) == 2
    assert all("NoAnswer: " in score.error and "no answer within 0.2 s" in score.error for score in scores)
    assert "not asked" in scores[5].error
    assert capsys.readouterr().err == ""  # no traceback: no line of code explains what an endpoint does
    server.answers = [says("[[correct]]")]
    later = scored_by(replace(impatient, deadline_s=5.0), group)  # the next group is asked about again
    assert [(score.total, score.tokens) for score in later] == [(2.0, 7)] * 6


def scored_by(reward: Judge, group: ResponseGroup) -> list[RewardScore]:
    """A group's scores, as the reward process makes them."""
    components = {"judge": reward.for_group(group)}
    return [score_response(components, group.prompt, response) for response in group.responses]


def test_a_key_that_is_not_set_is_told_before_the_run(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(UserError, match="key: got 'JUDGE_KEY'; must be an environment variable that is set"):
        judge(server, key="JUDGE_KEY").prepare()
    assert server.asked == []
