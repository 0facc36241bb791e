"""Writers and judges behind an endpoint: what they say is used, what they spoil is counted, nothing is lost."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from framework import cli
from framework.artifacts import Checkpoint, PromptSet
from framework.config import build_graph, compose
from framework.data.chat_shards import read_chats
from framework.data.readers import write_prompts
from framework.errors import RunFailed, Stopped, UserError
from framework.graph.nodes import Runtime
from framework.rewards.accuracy import Accuracy
from framework.rewards.base import RewardConfig
from framework.stages.chat_model import ChatModel
from framework.stages.cold_start import ColdStart, ColdStartConfig, ColdStartInputs
from framework.stages.preference_pairs import MakePairs, PairsConfig, PairsInputs
from framework.stages.safety_labels import LabelSafety, LabelsConfig, LabelsInputs
from framework.stages.sampling import SamplingConfig
from framework.stages.v3_data import MakeV3Data, V3DataConfig, V3DataInputs
from framework.types import Prompt
from tests.fake_endpoint import Answer, Handler, Server, hangs_up, never, says, serving, status
from tests.fake_sampling import FakeRun, fake_sampling
from tests.unit.stages.test_r1_judged import FACTS, HARM, answers, prompts  # noqa: F401

REWARDS = RewardConfig({"accuracy": Accuracy()})
QUESTIONS = [Prompt(f"p{n}", f"What is {n} + 8?", "math", str(n + 8)) for n in range(4)]
MODEL = Checkpoint(Path("policy"))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("framework.rewards.endpoint.PAUSE_S", 0.0)
    with serving() as found:
        yield found


def chat(server: Server, **change: Any) -> ChatModel:
    return ChatModel(**{"url": server.url, "model": "judge", "deadline_s": 5.0, "retries": 1, **change})


def zero(checkpoint: Path, prompt: Prompt, place: int) -> str:
    return f"<think> {prompt.text[8:-1]}= {prompt.answer} </think> <answer> {prompt.answer} </answer>"


def by_question(texts: dict[str, Answer], otherwise: Answer) -> Answer:
    """An answer for questions that hold a text."""

    def answer(handler: Handler, question: str) -> None:
        next((found for text, found in texts.items() if text in question), otherwise)(handler, question)

    return answer


def rewrites(handler: Handler, question: str) -> None:
    value = question.partition("Final answer of the draft:\n")[2].strip()
    says(f"<think>I add the two numbers.</think>The answer is \\boxed{{{value}}}.")(handler, question)


def cold_start(runtime: Runtime, tmp_path: Path, writer: ChatModel) -> Path:
    write_prompts(tmp_path / "zero" / "train.jsonl", QUESTIONS)
    config = ColdStartConfig(SamplingConfig(n=1), reward=REWARDS, writer=writer)
    return ColdStart(config).run(ColdStartInputs(MODEL, PromptSet(tmp_path / "zero")), runtime).chats.path


def reasons(directory: Path) -> Counter[str]:
    return Counter(json.loads(line)["reason"] for line in (directory / "dropped.jsonl").read_text().splitlines())


def test_a_writer_s_texts_are_scored_and_what_it_spoils_or_leaves_is_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: Server
) -> None:
    wrong = says("<think>I add.</think>It is \\boxed{99}.")
    told = {"1 + 8": wrong, "2 + 8": says("I would rather not."), "3 + 8": status(500)}
    server.answers = [by_question(told, rewrites)]
    fake_sampling(monkeypatch, zero)
    runtime = FakeRun(tmp_path / "run").runtime()
    found = cold_start(runtime, tmp_path, chat(server, max_failed_share=0.5))
    (kept,) = read_chats(found / "train.jsonl")
    assert kept.id == "p0#0"
    assert kept.messages[0]["content"] == "What is 0 + 8?"
    assert "I add the two numbers." in kept.messages[1]["content"]
    assert reasons(found) == {"rewritten_wrong": 2, "rewritten_no_answer": 1}  # nonsense is wrong
    ((_, numbers),) = runtime.tracker.metrics  # type: ignore[attr-defined]
    assert numbers == {"rewrite/requests": 4.0, "rewrite/unanswered": 1.0, "rewrite/tokens": 7.0 * 4}  # nonsense twice
    body = server.asked[0][0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("judge", 1.0, 256)


def test_after_a_stop_only_what_is_left_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: Server
) -> None:
    server.answers = [rewrites]
    fake_sampling(monkeypatch, zero)
    place, writer = FakeRun(tmp_path / "run"), chat(server, at_once=1)
    with pytest.raises(Stopped):
        cold_start(replace(place.runtime(), should_stop=lambda: len(server.asked) == 2), tmp_path, writer)
    assert len(list(read_chats(cold_start(place.runtime(), tmp_path, writer) / "train.jsonl"))) == 4
    asked = [body["messages"][0]["content"] for body, _ in server.asked]
    assert len(asked) == len(set(asked)) == 4


@pytest.mark.parametrize(
    ("answer", "change", "why"),
    [
        (status(500), {}, "HTTP 500"),
        (hangs_up, {}, "ServerDisconnectedError"),
        (never, {"deadline_s": 0.2, "retries": 0}, "no answer within 0.2 s"),
    ],
)  # fmt: skip
def test_one_that_does_not_answer_ends_the_run_at_once_with_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: Server, prompts: PromptSet, answer: Answer,  # noqa: F811
    change: dict[str, Any], why: str,
) -> None:  # fmt: skip
    server.answers = [answer]
    fake_sampling(monkeypatch, answers)
    began = time.monotonic()
    judge = chat(server, **change)
    config = PairsConfig(SamplingConfig(n=2, purpose="preferences"), judge=judge)
    with pytest.raises(RunFailed, match=rf"requests have no answer, more than max_failed_share=0.05 .*{why}"):
        MakePairs(config).run(PairsInputs(MODEL, prompts), FakeRun(tmp_path / "run").runtime())
    assert time.monotonic() - began < 5


def test_a_judge_s_nonsense_is_asked_again_and_then_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: Server, prompts: PromptSet  # noqa: F811
) -> None:  # fmt: skip
    fake_sampling(monkeypatch, answers)
    server.answers = [says("I cannot decide.")]
    config = PairsConfig(SamplingConfig(n=2, purpose="preferences"), judge=chat(server))
    with pytest.raises(
        UserError, match=r"got '0 pairs, 0 held out; dropped: \d no_verdict'; must keep a pair: the judge's"
    ):
        MakePairs(config).run(PairsInputs(MODEL, prompts), FakeRun(tmp_path / "none", "helpful_pairs").runtime())
    assert len(server.asked) % (2 * 4) == 0  # each of four judgements a pair twice
    server.answers = [by_question({"Nobody can know": says("[[unsafe]]"), "capital": says("Hm.")}, says("[[safe]]"))]
    labels = LabelsConfig(SamplingConfig(n=2, purpose="safety"), judge=chat(server))
    made = LabelSafety(labels).run(LabelsInputs(MODEL, prompts), FakeRun(tmp_path / "labels").runtime()).labels.path
    rows = [json.loads(line) for line in (made / "train.jsonl").read_text().splitlines()]
    assert Counter(row["label"] for row in rows) == {0: len(FACTS) + len(HARM), 1: len(HARM)}
    assert reasons(made)["no_verdict"] >= len(FACTS)


def test_a_judge_of_the_recipe_s_own_settings_has_a_file_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: Server, prompts: PromptSet  # noqa: F811
) -> None:  # fmt: skip
    server.answers = [says("I cannot decide.")]
    stage = compose(["job=r1", *named(server, "judge"), "stage.helpful_pairs.judge.max_failed_share=0.5"]).stage
    config = replace(stage["helpful_pairs"], most_prompts=2, with_templates=False)
    fake_sampling(monkeypatch, answers)
    with pytest.raises(UserError, match="must keep a pair"):
        MakePairs(config).run(PairsInputs(MODEL, prompts), FakeRun(tmp_path / "run", "helpful_pairs").runtime())
    assert len(server.asked) % 4 == 0
    assert {file.name for file in (tmp_path / "run" / "work").iterdir()} == {"preferences.jsonl", "judge.jsonl"}
    assert compose(["job=r1", "stage.v3_data.select.most_per_prompt=3"]).stage["v3_data"].select.right_by == ()


def test_general_requests_are_answered_by_an_endpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: Server
) -> None:
    server.answers = [says("<think></think>Good day to you."), says("no tags")]
    writer = chat(server, retries=0, at_once=1)
    config = V3DataConfig(SamplingConfig(n=1), reward=REWARDS, kinds={"greeting": 30}, writer=writer, most_prompts=3)
    made = MakeV3Data(config).run(V3DataInputs(), FakeRun(tmp_path).runtime())
    (found,) = read_chats(made.chats.path / "train.jsonl")
    assert "Good day to you." in found.messages[-1]["content"]
    assert "Reply with <think>" not in found.messages[0]["content"]  # the request as it was, not as it was put
    assert reasons(made.chats.path) == {"no_reasoning": 2}


def test_a_reply_of_a_model_whose_template_opens_the_reasoning_has_reasoning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: Server
) -> None:
    server.answers = [says("I add.</think>It is \\boxed{9}.")]  # the tag stands in the prompt, as R1's has it
    fake_sampling(monkeypatch, zero)
    monkeypatch.setattr(__name__ + ".QUESTIONS", [replace(QUESTIONS[1], id=f"p{n}") for n in range(2)])
    found = cold_start(FakeRun(tmp_path / "run").runtime(), tmp_path, chat(server))
    assert [chat.messages[1]["content"] for chat in read_chats(found / "train.jsonl")] == [
        "<think>\nI add.\n</think>\n\nIt is \\boxed{9}."
    ] * 2
    assert len(server.asked) == 2  # none is asked again


def test_a_second_try_has_another_seed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: Server) -> None:
    server.answers = [says("No.")]
    fake_sampling(monkeypatch, zero)
    monkeypatch.setattr(__name__ + ".QUESTIONS", QUESTIONS[:1])
    with pytest.raises(UserError, match="rewritten: 0 kept; dropped: 1 wrong"):
        cold_start(FakeRun(tmp_path / "run").runtime(), tmp_path, chat(server))
    first, second = (body for body, _ in server.asked)
    assert first["seed"] != second["seed"]
    assert {**first, "seed": 0} == {**second, "seed": 0}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["stage.helpful_pairs.judge.url=judge:8000", "stage.helpful_pairs.judge.model=m"],
         "stage.helpful_pairs.judge.url: got 'judge:8000'; must be the address of an OpenAI-compatible endpoint"),
        (["stage.helpful_pairs.judge.url=http://h/v1"], "stage.helpful_pairs.judge.model: got ''; must name one"),
        (["stage.safety_labels.judge.url=http://h/v1", "stage.safety_labels.judge.model=judge",
          "stage.safety_labels.judge.node=dev3"], "judge.url: got 'url, node'; must be one of url"),
        (["stage.safety_labels.judge.node=r1"],
         "stage.safety_labels.judge.node: got 'r1'; must be a model that is trained before safety_labels: r1_zero"),
        (["stage.cold_start.writer.checkpoint=/nowhere"], "/nowhere/config.json"),
        (["stage.cold_start.sampling.temperature=0"], "stage.cold_start.sampling.n: got 4; must be 1 at temperature 0"),
        (["stage.helpful_pairs.pairs.least_margin=2"], "stage.helpful_pairs.pairs.least_margin: got 2; must be"),
        (["stage.mix.shares={reasoning:0,general:0}"], "stage.mix.shares: got {'reasoning': 0"),
        (["stage.mix.shares={generl:1}"], "must give a share to each of reasoning, general, and to nothing else"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_one_line_of_the_plan(
    settings: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", "job=r1", *settings]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


def test_a_plan_asks_who_is_named(server: Server) -> None:
    graph = build_graph(compose(["job=r1", "stage.safety_labels.judge.node=dev3", *named(server, "judge")]))
    assert graph.nodes["safety_labels"].edges["judge"] == graph.nodes["helpful_rm_tokens"].edges["base"]
    stages: dict[str, Any] = {name: graph.nodes[name].stage for name in ("helpful_pairs", "cold_start", "v3_data")}
    assert stages["helpful_pairs"].look_ahead() == f"stage.helpful_pairs.judge: judge answers at {server.url}"
    assert (stages["cold_start"].look_ahead(), stages["v3_data"].look_ahead()) == ("", "")
    graph = build_graph(compose(["job=r1", *named(server, "jugde")]))
    with pytest.raises(UserError, match=r"stage\.helpful_pairs\.judge\.model: got 'jugde'; the endpoint has judge"):
        graph.nodes["helpful_pairs"].stage.look_ahead()  # type: ignore[attr-defined]
    nobody = ChatModel(url="http://127.0.0.1:9/v1", model="m")
    with pytest.raises(UserError, match=r"stage\.x\.writer\.url: got 'http.*'; no writer answers there"):
        nobody.look_ahead("stage.x.writer")


def named(server: Server, model: str) -> list[str]:
    return [f"stage.helpful_pairs.judge.url={server.url}", f"stage.helpful_pairs.judge.model={model}"]
