"""What the command line says of itself: keys, version, benchmarks, completion; plug-ins beside the caller."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from framework import cli
from framework.about import benchmarks, completion, describe_keys, describe_version
from framework.config import compose, setting_keys
from framework.convert import to_plain
from framework.errors import UserError
from framework.keys import SYNONYMS, like

JOBS = ("r1_zero", "sft", "grpo", "eval", "reward_model", "dpo", "rlhf")
REWARD = """
from dataclasses import dataclass
from framework.rewards.base import Reward

@dataclass(frozen=True, kw_only=True)
class Short(Reward):
    longest: int = 10  # characters

    def __call__(self, prompt, response):
        return float(len(response.text) <= self.longest)
"""
REWARD_YAML = """
_target_: framework.rewards.base.RewardConfig
components:
  short: {_target_: my_rewards.Short, longest: 20}
"""


def test_every_setting_has_a_type_a_doc_and_a_source() -> None:
    root = Path(cli.__file__).parents[1]
    for job in JOBS:
        keys = setting_keys([f"job={job}"])
        assert len({key.name for key in keys}) == len(keys) > 120
        for key in keys:
            file, _, line = key.source.rpartition(":")
            field = key.name.rpartition(".")[2].removesuffix("[]")
            assert re.search(rf"\b{field}_?:", (root / file).read_text().splitlines()[int(line) - 1]), key
            assert key.doc, key
            assert key.type, key


def test_the_values_are_those_of_the_run() -> None:
    shown = {key.name: key for key in setting_keys(["job=r1_zero", "stage.grpo.steps=8", "seed=3"])}
    config = compose(["job=r1_zero", "stage.grpo.steps=8", "seed=3"])
    assert shown["seed"].value == "3"
    grpo = config.stage["grpo"]
    assert shown["stage.grpo.steps"].value == "8"
    for item in dataclasses.fields(grpo):
        value = getattr(grpo, item.name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert float(shown[f"stage.grpo.{item.name}"].value) == value
    assert shown["stage.grpo.steps"].default == "10400"
    assert shown["stage.grpo.steps"].type == "an integer, at least 1"
    assert shown["stage.grpo.steps"].doc == "optimizer steps in all"
    assert to_plain(grpo)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("learning_rate", "engine.learner.schedule.lr"),
        ("lr", "engine.learner.schedule.lr"),
        ("num_generations", "stage.grpo.group_size"),
        ("beta", "algorithm.kl_coef"),
        ("zero_stag", "engine.learner.zero_stage"),
        ("tp", "engine.rollout.tensor_parallel_size"),
    ],
)
def test_a_key_is_found_by_its_last_name(word: str, expected: str) -> None:
    assert expected in like(word, (key.name for key in setting_keys(["job=r1_zero"])))
    with pytest.raises(UserError, match=rf"unknown key; did you mean .*{expected}"):
        compose(["job=r1_zero", f"stage.grpo.{word}=1"])


def test_synonyms_lead_to_names_that_exist() -> None:
    last = {key.name.rpartition(".")[2] for job in JOBS for key in setting_keys([f"job={job}"])}
    assert set(SYNONYMS.values()) <= last
    assert describe_keys(["job=r1_zero", "stage.grpo.steps"]).startswith("stage.grpo.steps=160\n    an integer")
    with pytest.raises(UserError, match=r"PREFIX: got 'learning_rate'; did you mean engine\.learner\.schedule\.lr"):
        describe_keys(["job=r1_zero", "learning_rate"])


def test_version_names_the_code_and_its_engines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out.strip() == describe_version()
    for name in ("framework 0", "torch 2", "vllm 0", "deepspeed 0", "ray 2"):
        assert name in describe_version()


def test_benchmarks_are_listed_and_say_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench"]) == 0
    out = capsys.readouterr().out
    assert all(name in out and doc and doc in out for name, doc in benchmarks().items())
    with pytest.raises(SystemExit) as done:
        cli.main(["bench", "rollout", "--help"])
    assert done.value.code == 0
    assert "--prompts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("framework", "be"), ["bench"]),
        (("framework", "bench", "roll"), ["rollout"]),
        (("framework", "plan", "stage.grpo.st"), ["stage.grpo.steps="]),
        (("framework", "run", "model", "=", "v3_6"), ["v3_671b"]),
    ],
)
def test_bash_completes(words: tuple[str, ...], expected: list[str], tmp_path: Path) -> None:
    script = tmp_path / "completion.sh"
    script.write_text(completion(cli.COMMANDS))
    line = " ".join(words).replace(" = ", "=")
    ask = f"""source {script}; compopt() {{ :; }}; COMP_LINE={line!r} COMP_POINT=${{#COMP_LINE}}
        COMP_POINT={len(line)}; COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}
        _framework; printf '%s\\n' "${{COMPREPLY[@]}}" """
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected


def test_plugins_beside_the_caller_need_no_path(tmp_path: Path) -> None:
    """From a fresh process: a reward in ten lines and its .yml, in the directory in which the command is given."""
    (tmp_path / "my_rewards.py").write_text(REWARD)
    (tmp_path / "conf" / "reward").mkdir(parents=True)
    (tmp_path / "conf" / "reward" / "short.yml").write_text(REWARD_YAML)
    command = [sys.executable, "-m", "framework.cli", "plan", "job=r1_zero", "reward=short", "--config-dir", "conf"]
    command += ["stage.evaluate.right_by=[short]"]
    found = subprocess.run([*command, "plugins=[my_rewards]"], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    missing = subprocess.run([*command, "plugins=[my_reward]"], cwd=tmp_path, capture_output=True, text=True)
    assert missing.returncode == 2
    assert "plugins: got 'my_reward'; did you mean 'my_rewards'?" in missing.stderr
