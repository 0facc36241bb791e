"""Fine-tuning on conversations on a rank group: stopped in mid-epoch and resumed, it ends where one process does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from framework.artifacts import Checkpoint
from framework.data.chat_shards import ChatRows
from framework.data.chat_template import TemplateConfig
from framework.data.templates import R1_ZERO_CHAT_TEMPLATE
from framework.data.tokenizer_training import TokenizerConfig, train_tokenizer
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.sharded_load import load_sharded
from framework.engines.trainer import Trainer
from framework.errors import Stopped
from framework.graph.cluster import ClusterConfig
from framework.graph.deadlines import Deadlines
from framework.graph.nodes import Runtime
from framework.models.spec import build_model
from framework.observe.metrics import Tracker, read_history
from framework.roles.supervised_data import ChatData
from framework.stages.chats import ChatsConfig, CollectChats, EncodeChats, EncodeInputs
from framework.stages.collect import NoInputs
from framework.stages.sft import Sft, SftConfig, SftInputs
from tests.distributed import run_ranks
from tests.learners import TINY_V3
from tests.ray.test_supervised_loop import weights

pytestmark = pytest.mark.slow
SPEC = replace(TINY_V3, vocab_size=320)
ENGINE = DeepSpeedConfig(ep_size=2, token_budget=128, threads=1, bias_update_speed=1e-3)
CONFIG = SftConfig(
    epochs=8, chats_per_step=3, lr=3e-3, final_lr=3e-4, checkpoint_every=1000, export_every=11, export="best",
    engine=ENGINE,
)  # fmt: skip
CHATS, APART, SEED = 9, 1, 3


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def write_inputs(directory: Path) -> None:
    lines = [
        {"messages": [message("user", f"{i} + {i}?"), message("assistant", f"<think>\nadd\n</think>\n\n{2 * i}" * 2)]}
        for i in range(CHATS)
    ]
    (directory / "chats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    build_model(SPEC, seed=0).save_pretrained(directory / "base")
    texts = [json.dumps(line) for line in lines]
    train_tokenizer(texts, TokenizerConfig(vocab_size=300), directory / "base", 256, R1_ZERO_CHAT_TEMPLATE)


def train_directly(directory: Path) -> dict[str, np.ndarray]:
    """The same training in one process without Ray."""
    sft = stage()
    engine = replace(ENGINE, ep_size=1, schedule=CONFIG.schedule(sft.steps))
    feed = ChatData(directory / "out" / "shards", CONFIG.chats_per_step, CONFIG.epochs).open(SEED)
    trainer = Trainer(load_sharded(directory / "base", engine), engine, feed.objective)
    for step in range(sft.steps):
        trainer.step(feed.batch(step))
    trainer.export(directory / "direct")
    return weights(directory / "direct")


def stage() -> Sft:
    return Sft(CONFIG, SPEC, CHATS - APART)


class StopsAt:
    """A tracker that asks for a stop once it is told of a step."""

    def __init__(self, tracker: Any, step: int) -> None:
        self._tracker, self._step, self.asked = tracker, step, False

    def log(self, step: int, metrics: Any) -> None:
        self.asked = self.asked or step >= self._step
        self._tracker.log(step, metrics)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tracker, name)


def runtime(directory: Path, tracker: Any) -> Runtime:
    (directory / "work").mkdir(exist_ok=True)
    cluster = ClusterConfig(learner_workers=2, learner_cpus=0.5, deadlines=Deadlines(stop=240))
    asked = lambda: bool(getattr(tracker, "asked", False))  # noqa: E731
    return Runtime("sft", directory / "work", directory / "out", SEED, cluster, tracker, asked)


def test_a_stop_in_mid_epoch_and_two_ranks_leave_no_trace(ray_node: None, tmp_path: Path) -> None:
    write_inputs(tmp_path)
    base = Checkpoint(tmp_path / "base")
    with Tracker(tmp_path / "metrics", "sft") as tracker:
        config = ChatsConfig(str(tmp_path / "chats.jsonl"), validation_chats=APART)
        chats = CollectChats(config).run(NoInputs(), runtime(tmp_path, tracker)).chats
        encoded = EncodeChats(256, TemplateConfig("r1")).run(EncodeInputs(base, chats), runtime(tmp_path, tracker))
        inputs = SftInputs(base, encoded.shards, encoded.tokenizer)
        with pytest.raises(Stopped, match=r"stopped after 10 of 22 steps"):
            stage().run(inputs, runtime(tmp_path, StopsAt(tracker, 10)))
        tuned = stage().run(inputs, runtime(tmp_path, tracker)).tuned
    expected = run_ranks(train_directly, 1, tmp_path)[0]
    found = weights(tuned.check().path)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert np.linalg.norm(tensor - expected[name]) <= 1e-5 * np.linalg.norm(expected[name]), name
    assert "｜Assistant｜" in (tuned.path / "chat_template.jinja").read_text()

    best = json.loads((tmp_path / "work" / "best" / "BEST").read_text())
    series = read_history(tmp_path / "metrics").stages["sft"].series
    assert (best["step"], best["loss"]) == (22, series["validation/loss"][22])
    halfway = Checkpoint(tmp_path / "work" / "exports" / "step_000011").check().path
    assert weights(halfway).keys() == found.keys()
    assert any(np.abs(weights(halfway)[name] - found[name]).max() > 1e-4 for name in found)
    assert list(series["train/loss"]) == [10, 20, 22]
    for step, size in ((20, 3), (22, 1)):  # the last step takes the one conversation that is left
        ids, marks = ChatRows(encoded.shards.path / "train", SEED).batch((step - 1) * 3, size)
        assert 0 < series["train/tokens"][step] == sum(map(sum, marks)) < sum(map(len, ids))
    assert series["validation/loss"][22] < 5.0  # a fresh model says 5.7
    files = json.loads(next((tmp_path / "work").glob("batch_000010/learner/engine.json")).read_text())["files"]
    assert {"random_rank0.pt", "random_rank1.pt"} <= files.keys()
    assert not list((tmp_path / "work").glob("*.tmp"))
