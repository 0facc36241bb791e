"""Text by shards on Ray Data: the same result on 1, 2 and 4 workers, however the corpus is cut, and after a kill."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from framework.artifacts import SHARDS, PromptSet, TokenizerDir, read_json
from framework.data.cleaning import CleanConfig
from framework.data.readers import write_prompts
from framework.data.shards import TokenRows
from framework.data.text.beside import Died, OneByOne
from framework.data.text.shard_files import Done, read_text, whole_file
from framework.data.text.token_steps import TokenizeConfig
from framework.data.tokenizer_training import TokenizerConfig
from framework.errors import Stopped, UserError
from framework.graph.cluster import ClusterConfig
from framework.graph.nodes import Runtime
from framework.graph.runner import NullTracker
from framework.stages import connect
from framework.stages import read_text as read_text_stage
from framework.stages.clean import Clean, CleanInputs
from framework.stages.collect import NoInputs
from framework.stages.documents import CollectDocuments, DocumentsConfig
from framework.stages.shard_runs import run_shards
from framework.stages.tokenizer import Tokenize, TokenizeInputs, TokenizerInputs, TrainTokenizer
from framework.types import Prompt
from tests.ray.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_node")]
RNG = random.Random(0)
WORDS = [f"word{place}" for place in range(400)]
QUESTION = "which of the nine trains from here to the harbour is the last to leave"


def corpus() -> list[str]:
    """Documents with copies to the letter, others with a word changed, and chains of those; some share a passage."""
    texts = [" ".join(RNG.choices(WORDS, k=60)) for _ in range(160)]
    texts += [text.upper() for text in texts[:20]]
    texts += [f"{text} end" for text in texts[10:40]] + [f"{text} end two" for text in texts[20:30]]
    texts += [f"{texts[0][:90]} {QUESTION} {place}" for place in range(5)]
    RNG.shuffle(texts)
    return texts


def write_corpus(directory: Path, texts: list[str], files: int) -> str:
    directory.mkdir()
    bounds = np.linspace(0, len(texts), files + 1).astype(int)
    for place, (first, end) in enumerate(itertools.pairwise(bounds)):
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts[first:end])
        (directory / f"{place:03d}.jsonl").write_text(rows)
    return str(directory)


def runtime(directory: Path, workers: int) -> Runtime:
    cluster = ClusterConfig(cpus=workers)
    return Runtime("node", directory / "work", directory / "out", 3, cluster, NullTracker(), lambda: False)


@dataclass(frozen=True)
class Result:
    documents: dict[str, list[tuple[str, str]]]
    dropped: dict[str, int]
    samples: str
    tokenizer: str
    rows: list[list[int]]
    shards: int


def whole(source: str, directory: Path, workers: int) -> Result:
    """All text stages."""
    write_prompts(directory / "prompts" / "train.jsonl", [Prompt("a", "what is it", "t", "1")])
    write_prompts(directory / "prompts" / "heldout.jsonl", [Prompt("held", QUESTION, "t", "1")])
    collect = CollectDocuments(DocumentsConfig(source, validation_documents=12))
    text = collect.run(NoInputs(), runtime(directory / "collect", workers)).text
    inputs = CleanInputs(text, PromptSet(directory / "prompts"))
    text = Clean(CleanConfig()).run(inputs, runtime(directory / "clean", workers)).text
    train = TrainTokenizer(TokenizerConfig(vocab_size=300, train_documents=50), 64, 300)
    tokenizer: TokenizerDir = train.run(TokenizerInputs(text), runtime(directory / "tokenizer", workers)).tokenizer
    tokens = TokenizeInputs(text, tokenizer)
    shards = Tokenize(TokenizeConfig(fim_rate=0.3, split_rate=0.3)).run(tokens, runtime(directory / "tokens", workers))
    rows = TokenRows(shards.shards.path, "train", 64, seed=1)
    listing = read_json(text.path / SHARDS)
    return Result(
        {split: [(d.id, d.text) for d in read_text(text.path, split)] for split in ("train", "validation")},
        {name: count for name, count in listing["counts"].items() if name.startswith("dropped")},
        (text.path / "dropped_samples.jsonl").read_text(),
        (tokenizer.path / "tokenizer.json").read_text(),
        rows.batch(0, rows.n_rows).tolist(),
        len(list(text.path.glob("train-*.jsonl"))),
    )


def test_neither_workers_nor_shards_change_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = corpus()
    few, many = (write_corpus(tmp_path / f"corpus{files}", texts, files) for files in (3, 7))
    results = []
    for place, (source, size, workers) in enumerate(((few, 2**20, 1), (few, 40_000, 2), (many, 9_000, 4))):
        monkeypatch.setattr(read_text_stage, "MIB", size // 64)
        if place:  # clusters over three partitions, in rounds
            monkeypatch.setattr(connect, "FEW_PAIRS", 0)
            monkeypatch.setattr(connect, "partitions_of", lambda records: 3)
        results.append(whole(source, tmp_path / f"run{place}", workers))
    assert [result.shards for result in results] == [1, 3, 14]
    assert replace(results[1], shards=1) == results[0]
    assert replace(results[2], shards=1) == results[0]
    found = results[0]
    assert found.dropped == {
        "dropped": 65, "dropped.contaminated": 5, "dropped.exact_duplicate": 20, "dropped.near_duplicate": 40,
    }  # fmt: skip
    assert sum(map(len, found.documents.values())) == 160
    assert len(found.documents["validation"]) <= 12


@dataclass(frozen=True)
class Slow:
    """Makes a file a shard, each once."""

    directory: Path

    def __call__(self, number: int) -> Done:
        with (self.directory / "calls").open("a") as calls:
            calls.write(f"{number} {os.getpid()}\n")
        if number == 7 and (self.directory / "poison").exists():
            raise UserError(f"shard {number}", "poison", "must be none")
        time.sleep(0.2)
        with whole_file(self.directory / f"made-{number}") as writer:
            writer.write(b"x" * number)
        return Done({f"made-{number}": writer.note()}, {"made": 1})


def test_what_is_done_is_not_made_again_and_an_error_comes_as_it_was_raised(tmp_path: Path) -> None:
    step, run = Slow(tmp_path / "step"), runtime(tmp_path, 2)
    step.directory.mkdir()
    (step.directory / "poison").touch()
    with pytest.raises(UserError, match="shard 7: got 'poison'"):
        run_shards(step, 8, run, "shards")
    (step.directory / "poison").unlink()
    made = {file.name for file in step.directory.glob("done-*")}
    assert made
    (step.directory / "made-0").write_bytes(b"too long")  # not as its record says: made again
    before = len((step.directory / "calls").read_text().splitlines())
    done = run_shards(step, 8, run, "shards")
    calls = (step.directory / "calls").read_text().splitlines()
    assert [shard.files[f"made-{number}"].bytes for number, shard in enumerate(done)] == list(range(8))
    again = {int(call.split()[0]) for call in calls[before:]}
    assert again == {n for n in range(8) if f"done-{n:05d}.json" not in made} | {0}
    assert len({call.split()[1] for call in calls}) > 1  # workers of their own, not this process alone


@dataclass(frozen=True)
class Deadly:
    """Works on three rows a shard; one row of all ends the process that works on it."""

    directory: Path
    alone: bool = False

    def careful(self) -> Deadly:
        return replace(self, alone=True)

    def __call__(self, number: int) -> Done:
        lost = 0
        with OneByOne() as beside:
            for row in range(3):
                try:
                    beside.of(f"row {row}", work_on, number, row) if self.alone else work_on(number, row)
                except Died:
                    lost += 1
        return Done({}, {"rows": 3 - lost, "lost": lost, "careful": int(self.alone)})


def work_on(number: int, row: int) -> None:
    if (number, row) == (2, 1):
        os.kill(os.getpid(), signal.SIGSEGV)


def test_a_row_that_kills_its_worker_is_lost_alone(tmp_path: Path) -> None:
    done = run_shards(Deadly(tmp_path / "step"), 4, runtime(tmp_path, 2), "shards")
    assert [shard.counts["lost"] for shard in done] == [0, 0, 1, 0]
    assert [shard.counts["careful"] for shard in done] == [0, 0, 1, 0]
    assert not list((tmp_path / "step").glob("begun-*"))


@dataclass(frozen=True)
class Hanging:
    """Its third shard stops the process that works on it, the first time."""

    directory: Path

    def __call__(self, number: int) -> Done:
        if number == 2 and not (self.directory / "stopped").exists():
            (self.directory / "stopped").write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        return Done({}, {"process": os.getpid()})


def test_a_process_that_hangs_is_replaced_and_a_stop_does_not_wait_for_it(tmp_path: Path) -> None:
    run = runtime(tmp_path, 2)
    quick = replace(run.cluster, deadlines=replace(run.cluster.deadlines, silent=5.0))
    step = Hanging(tmp_path / "step")
    done = run_shards(step, 4, replace(run, cluster=quick), "shards")
    stopped = int((step.directory / "stopped").read_text())
    assert done[2].counts["process"] != stopped
    assert not psutil.pid_exists(stopped)

    other = Hanging(tmp_path / "other")
    asked = replace(run, should_stop=(other.directory / "stopped").exists)
    began = time.monotonic()
    with pytest.raises(Stopped):
        run_shards(other, 4, asked, "shards")
    assert time.monotonic() - began < 50
    os.kill(int((other.directory / "stopped").read_text()), signal.SIGKILL)


SCRIPT = """
import sys, ray
from pathlib import Path
from framework.stages.shard_runs import run_shards
from tests.ray.test_text import Slow, runtime
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[2])
step = Slow(Path(sys.argv[1]))
run_shards(step, 40, runtime(step.directory, 2), "shards")
"""


def test_a_killed_step_goes_on_where_it_was(tmp_path: Path) -> None:
    directory = tmp_path / "step"
    directory.mkdir()
    ray_dir = f"/tmp/k{os.getpid()}"
    driver = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(directory), ray_dir],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    try:
        while len(list(directory.glob("done-*"))) < 5:
            assert driver.poll() is None
            time.sleep(0.05)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    time.sleep(1)  # tasks that were under way end with their raylet
    made = {int(file.stem[5:]) for file in directory.glob("done-*")}
    assert 5 <= len(made) < 40
    before = len((directory / "calls").read_text().splitlines())
    done = run_shards(Slow(directory), 12, runtime(tmp_path, 2), "shards")
    assert [shard.files[f"made-{number}"].bytes for number, shard in enumerate(done)] == list(range(12))
    again = {int(call.split()[0]) for call in (directory / "calls").read_text().splitlines()[before:]}
    assert again == set(range(12)) - made
    assert not list(directory.glob(".made-*"))
