"""`framework sample` on fake workers: its lines, its file, its settings; errors come before anything starts."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import jobs.sample
from framework.cli import main
from framework.stages import sampling
from framework.types import Prompt, ResponseGroup, RewardScore, SamplingParams
from tests.contract.families import write_checkpoint
from tests.fake_pools import FakePool, respond, score


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "base"
    write_checkpoint("qwen3_tied", path)
    return path


class Sampled:
    """What the workers were asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[Prompt, SamplingParams]] = []
        self.engines: list[Any] = []

    def pools(self, cluster: object, engine: Any, *_: object) -> object:
        self.engines.append(engine)
        pools = sampling.SamplingPools(FakePool(generate=self.respond), FakePool(score=self.score))  # type: ignore[arg-type]
        return nullcontext(pools)

    def respond(self, prompt: Prompt, params: SamplingParams) -> ResponseGroup:
        self.asked.append((prompt, params))
        if prompt.text == "What is 9 + 2?" and len(self.asked) <= 10:
            raise KeyboardInterrupt
        return respond(prompt, params)

    def score(self, group: ResponseGroup) -> tuple[RewardScore, ...]:
        if group.prompt.text == "What is 5 + 2?":
            return (RewardScore(0.0, error="reward accuracy raised ValueError"), *score(group)[1:])
        return score(group)


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> Sampled:
    found = Sampled()
    monkeypatch.setattr(jobs.sample, "ray_session", lambda _: nullcontext())
    monkeypatch.setattr(sampling, "sampling_pools", found.pools)
    return found


def write_prompts(path: Path, size: int) -> str:
    rows = ({"question": f"What is {i} + 2?", "answer": f"#### {i + 2}", "level": i} for i in range(size))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_line_a_response_and_a_summary(
    tmp_path: Path, base: Path, sampled: Sampled, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_prompts(tmp_path / "questions.jsonl", 7)
    monkeypatch.chdir(tmp_path)
    assert (
        main(["sample", f"base={base}", f"data.train={file}", "n=3", "limit=6", "max_tokens=20", "temperature=1"]) == 0
    )
    output = capfd.readouterr()
    rows = [json.loads(line) for line in output.out.splitlines()]
    assert len(rows) == 18
    first = next(row for row in rows if row["prompt"] == "What is 4 + 2?")
    assert (first["answer"], first["task"], first["level"], first["finish_reason"], first["tokens"]) == (
        "6",
        "math",
        4,
        "stop",
        2,
    )
    assert set(first) >= {"id", "sample", "response", "score", "components", "extracted", "error"}
    assert sorted(row["sample"] for row in rows if row["id"] == first["id"]) == [0, 1, 2]
    assert [row["error"] is None for row in rows].count(False) == 1
    summary = output.err.splitlines()[-1]
    assert summary.startswith("18 responses to 6 prompts: mean score 0.")
    assert "0.0% truncated, 100.0% with an answer, 1 without a score (for example: reward accuracy raised" in summary
    assert {(p.n, p.max_tokens, p.temperature, p.top_p) for _, p in sampled.asked} == {(3, 20, 1.0, 1.0)}
    assert not list(tmp_path.glob("runs"))


def test_what_is_not_given_is_as_in_training_and_cut_to_the_context(
    tmp_path: Path, base: Path, sampled: Sampled, capfd: pytest.CaptureFixture[str]
) -> None:
    """The model's context is 128 tokens."""
    file = write_prompts(tmp_path / "questions.jsonl", 2)
    assert main(["sample", f"base={base}", f"data.heldout={file}", "stage.grpo.temperature=0.7"]) == 0
    params = sampled.asked[0][1]
    assert (params.n, params.temperature) == (4, 0.7)
    assert params.max_tokens == 128 - max(len(prompt.token_ids) for prompt, _ in sampled.asked)
    assert sampled.engines[0].max_model_len == 128
    said = f"max_tokens cut from 256 to {params.max_tokens}: the model's context of 128, "
    assert any(line.startswith(said) for line in capfd.readouterr().err.splitlines())


def test_a_file_is_written_whole_and_a_killed_command_goes_on(
    tmp_path: Path, base: Path, sampled: Sampled, capfd: pytest.CaptureFixture[str]
) -> None:
    file, out = write_prompts(tmp_path / "questions.jsonl", 12), tmp_path / "found" / "out.jsonl"
    command = ["sample", f"base={base}", f"data.train={file}", "n=2", f"out={out}", "groups_in_flight=1"]
    assert main(command) == 130
    assert not out.exists()
    before = len(sampled.asked)
    assert main([*command, "top_p=0.5"]) == 2
    assert "top_p: got 0.5; " in capfd.readouterr().err.splitlines()[-1]
    assert main(command) == 0
    ids = [prompt.id for prompt, _ in sampled.asked]
    assert len(ids) - before == 5  # under way, sampled and not scored yet, not scored at all, and the last two
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prompt"] for row in rows[::2]] == [f"What is {i} + 2?" for i in range(12)]
    assert not list(tmp_path.glob("found/*.part"))
    assert capfd.readouterr().out == ""
    assert main(command) == 2
    assert "is there already" in capfd.readouterr().err
    assert main(["score", str(out)]) == 0  # its lines are what `score` reads
    scored = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [row["id"] for row in scored] == [row["id"] for row in rows]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("n=0", "n: got 0; must be at least 1"),
        ("n=many", "n: got 'many'; must be an integer"),
        ("top_p=2", "top_p: got 2; must be above 0, at most 1"),
        ("temperature=0", "n: got 4; must be 1 at temperature 0"),
        ("max_tokens=1.5", "max_tokens: got 1.5; must be an integer"),
        ("limit=-1", "limit: got -1; must be at least 0"),
        ("votes_by=accuracy", "votes_by: got 'accuracy'; unknown key"),
        ("data.train=missing.jsonl", "missing.jsonl: got 'no such file'"),
        ("base=r1_zroe", "base: got 'r1_zroe'; no such directory"),
        ("reward=rules", "reward: got 'rules'; did you mean 'rule'?"),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_starts(
    tmp_path: Path, base: Path, sampled: Sampled, capfd: pytest.CaptureFixture[str], arguments: str, reason: str
) -> None:
    file = write_prompts(tmp_path / "questions.jsonl", 2)
    assert main(["sample", f"base={base}", f"data.train={file}", *arguments.split()]) == 2
    output = capfd.readouterr()
    assert reason in output.err
    assert len(output.err.splitlines()) == 1
    assert (output.out, sampled.engines) == ("", [])


def test_a_prompt_that_fills_the_context_is_told(
    tmp_path: Path, base: Path, sampled: Sampled, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write_prompts(tmp_path / "questions.jsonl", 1)
    Path(file).write_text(json.dumps({"question": "word " * 200, "answer": "#### 1"}))
    assert main(["sample", f"base={base}", f"data.train={file}"]) == 2
    assert "the model's context of 128" in capfd.readouterr().err
