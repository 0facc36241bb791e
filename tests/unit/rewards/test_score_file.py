"""`framework score`: one JSON line a row on stdout, all else on stderr; bad rows are one line with file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from framework.cli import main

ROW = {"id": "a", "task": "math", "prompt": "What is 9 + 9?", "answer": "18"}
R1_ZERO = "<think>9 + 9</think> <answer>{}</answer>"


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def scored(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "score_plugin.py").write_text(
        "from dataclasses import dataclass\n"
        "from framework.rewards.base import Reward\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(Reward):\n"
        "    def __call__(self, prompt, response):\n"
        "        print('seen', prompt.columns['level'])\n"
        "        return 1 / int(response.text)\n"
    )
    (folder / "reward").mkdir()
    (folder / "reward" / "mine.yaml").write_text(
        "_target_: framework.rewards.base.RewardConfig\ncomponents:\n  mine:\n    _target_: score_plugin.Mine\n"
    )
    return folder


def test_rows_are_scored_by_the_jobs_rewards(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    responses = [
        R1_ZERO.format("18 dollars"),
        "so \\boxed{17} \\boxed{18}",
        R1_ZERO.format("9 + 9"),
        "nothing",
        "it is 18",
    ]
    hang = R1_ZERO.format("9^{9^{9^{9}}}")
    rows = [ROW | {"id": str(place), "response": text} for place, text in enumerate([*responses, hang])]
    assert main(["score", write(tmp_path / "rows.jsonl", *rows)]) == 0
    found = scored(capfd.readouterr().out)
    assert [row["id"] for row in found] == list("012345")
    assert [row["components"]["accuracy"] for row in found] == [1.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    assert [row["components"]["format"] for row in found] == [1.0, 0.0, 1.0, 0.0, 0.0, 1.0]
    assert [row["score"] for row in found] == [2.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    assert [row["extracted"] for row in found[:4]] == ["18 dollars", "18", "9 + 9", None]
    assert not any(row["error"] for row in found)


def test_a_reward_of_ones_own_prints_to_stderr_and_its_errors_name_its_line(
    tmp_path: Path, plugin: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(plugin))
    rows = [ROW | {"id": name, "response": text, "level": 3} for name, text in (("x", "2"), ("y", "0"))]
    arguments = ["reward=mine", "plugins=[score_plugin]", "--config-dir", str(plugin)]
    assert main(["score", write(tmp_path / "rows.jsonl", *rows), *arguments]) == 0
    output = capfd.readouterr()
    good, bad = scored(output.out)
    assert (good["score"], good["components"], bad["score"]) == (0.5, {"mine": 0.5}, 0.0)
    assert bad["error"] == f"reward mine raised ZeroDivisionError: division by zero ({plugin}/score_plugin.py:7)"
    assert output.err.count("seen 3") == 2
    assert "prompt y: reward mine raised:" in output.err


def test_a_row_without_id_and_task_goes_by_its_line_as_mathematics(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "rows.jsonl", {"prompt": "2+3?", "answer": 5, "response": "\\boxed{5}"})
    assert main(["score", file, "reward=answer"]) == 0
    (found,) = scored(capfd.readouterr().out)
    assert (found["id"], found["score"], found["extracted"]) == (f"{file}:1", 1.0, "5")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"response": "x", "prompt": "absent"}, "rows.jsonl:2: got \"no field 'prompt'\""),
        ({"response": None}, "rows.jsonl:2: response: got None; must be a string"),
        ({"responce": "x"}, "rows.jsonl:2: got \"no field 'response'\"; did you mean 'responce'?"),
        ({"response": "x", "rewards": ["acuracy"]}, "rows.jsonl:2: rewards: got 'acuracy'; did you mean 'accuracy'?"),
        ({"response": "x", "finish_reason": "done"}, "rows.jsonl:2: finish_reason: got 'done'; must be one of stop"),
        ({"response": "x", "token_ids": [1, 10**12]}, "rows.jsonl:2: token_ids: got 1000000000000; must be ids of"),
        ({"response": "x", "token_ids": [-1]}, "rows.jsonl:2: token_ids: got -1; must be ids of tokens"),
        ({"response": "x", "answer": 1e400}, "rows.jsonl:2: "),
        ({"response": "x", "token_ids": "12"}, "rows.jsonl:2: token_ids: got '12'; must be a list of integers"),
    ],
)
def test_a_bad_row_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], change: dict[str, Any], reason: str
) -> None:
    row = {key: value for key, value in (ROW | change).items() if value != "absent"}
    file = write(tmp_path / "rows.jsonl", ROW | {"response": "x"}, row)
    assert main(["score", file]) == 2
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert reason in output.err


def test_a_file_that_is_no_json_or_not_there_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.jsonl").write_text('{"id": 1}\nnot json\n')
    for name, reason in (("bad.jsonl", "bad.jsonl:"), ("none.jsonl", "none.jsonl")):
        assert main(["score", str(tmp_path / name)]) == 2
        output = capfd.readouterr()
        assert reason in output.err
        assert output.err.count("\n") == 1


def test_a_plugin_that_fails_on_import_names_its_line(
    tmp_path: Path, plugin: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sources = (
        ("div_plugin", "x = 1\ny = x / 0\n", 2),
        ("syntax_plugin", "def f(:\n", 1),
        ("script_plugin", "import sys\n\nsys.exit(0)\n", 3),
    )
    for name, source, line in sources:
        (plugin / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(str(plugin))
        target = f"reward.components.accuracy._target_={name}.Mine"
        file = write(tmp_path / "rows.jsonl", ROW | {"response": "x"})
        assert main(["score", file, target, f"plugins=[{name}]"]) == 2
        output = capfd.readouterr()
        assert f"{plugin}/{name}.py:{line}" in output.err
        assert output.err.count("\n") == 1
