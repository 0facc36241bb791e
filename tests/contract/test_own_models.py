"""Every family from a checkpoint as others write it: plan, fine-tuning, GRPO with weight updates, export, sampling.

Two ranks each: mixtures of experts are spread over both. vLLM loads the fine-tuned model, takes GRPO's update, and must
then sample from the policy that transformers reads from the export.
"""

from __future__ import annotations

import asyncio
import json
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from framework.config import build_graph, compose
from framework.data.tokenizer_files import load_tokenizer
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.lr_schedule import LrSchedule
from framework.engines.published_policy import PublishedPolicy
from framework.engines.serving import Conversation
from framework.engines.sharded_load import load_sharded
from framework.engines.trainer import Trainer
from framework.engines.vllm_engine import VllmConfig, VllmSampler
from framework.graph.plan import describe_plan
from framework.models.families.find import check_same, of_base
from framework.models.spec import parameter_counts
from framework.objectives.grpo import Grpo
from framework.objectives.lm import DocumentLm, Documents
from framework.objectives.policy_rows import PolicyRows
from framework.stages.training import copy_tokenizer
from framework.types import Float32, Minibatch, Prompt, PublishedWeights, SamplingParams, TrainSample
from tests.contract.families import CHECKPOINTS, CONTEXT, write_checkpoint
from tests.distributed import run_ranks
from tests.learners import copied

# All eighteen take minutes of two cores, so a usual run learns one of each kind: tied and dense, experts under names of
# their own, windows, transposed weights. vLLM, an engine a family, is on request.
EVERY = bool(os.environ.get("FRAMEWORK_FAMILY_TABLE"))
USUAL = ("llama3_tied", "mixtral", "gemma3", "gpt2")
needs_the_engines = pytest.mark.skipif(not EVERY, reason="set FRAMEWORK_FAMILY_TABLE=1: minutes of two cores")
LEARNING = [pytest.param(name, marks=() if name in USUAL else needs_the_engines) for name in CHECKPOINTS]
PROMPT = tuple(range(5, 45))  # longer than the windows, and a block of vLLM's
TOLERANCE = 2e-4  # nats, float32
START_S, FAMILY_S = 300.0, 120.0  # at most, on a busy machine: the engines' imports, and each family


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own")
    for name in CHECKPOINTS:
        write_checkpoint(name, path / name / "base")
    lines = (json.dumps({"question": f"What is {i} + 2?", "answer": f"#### {i + 2}"}) for i in range(40))
    (path / "prompts.jsonl").write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_plan_needs_the_base_alone_and_counts_its_parameters(name: str, directory: Path) -> None:
    from safetensors import safe_open

    base = directory / name / "base"
    config = compose(["job=grpo", f"base={base}", f"data.train={directory}/prompts.jsonl",
                      "stage.grpo.max_tokens=32", "stage.evaluate.max_tokens=32"])  # fmt: skip
    graph = build_graph(config)
    graph.check()
    assert "parameters" in describe_plan(graph, config.cluster, "parameters")
    assert config.model is not None
    check_same(config.model, base)  # sizes there and back
    assert config.model.max_position_embeddings == CONTEXT
    with safe_open(base / "model.safetensors", "pt") as stored:
        keys = [key for key in stored.keys() if not key.endswith("e_score_correction_bias")]  # noqa: SIM118
        assert parameter_counts(config.model).total == sum(stored.get_tensor(key).numel() for key in keys)
    assert config.model.rough == (name == "olmo2")


def sequences() -> tuple[TrainSample, ...]:
    rng, made = np.random.default_rng(0), []
    for i, length in enumerate((30, 70, 1, 40)):
        prompt, response = (rng.integers(3, 290, size).astype(np.int32) for size in (9, length))
        logprobs, versions = np.full(length, -5.5, np.float32), np.zeros(length, np.int32)
        made.append(TrainSample(f"p{i}", prompt, response, (-1.0) ** i, logprobs, versions))
    return tuple(made)


@dataclass(frozen=True)
class Learned:
    """What one rank has to tell of a family."""

    logprobs: list[Float32]  # after GRPO
    published: PublishedWeights
    losses: tuple[float, ...]  # of fine-tuning


def learn(directory: Path, names: tuple[str, ...]) -> dict[str, Learned | str]:
    """On each of two ranks: two steps of fine-tuning, export, two of GRPO, publish, export; or a family's traceback."""
    return {name: _traced(_learn, directory / name) for name in names}


def _traced(function: Callable[..., Any], *args: Any) -> Any:
    """What the function returns, or its traceback: a family that fails does not hide the others."""
    try:
        return function(*args)
    except Exception:
        return traceback.format_exc()


def _learn(path: Path) -> Learned:
    spec = of_base(path / "base")
    parallel = 2 if spec.num_moe_layers else 1
    config = DeepSpeedConfig(schedule=LrSchedule(lr=3e-3), token_budget=2 * CONTEXT, ep_size=parallel)
    trainer = Trainer(load_sharded(path / "base", config), config, DocumentLm())
    chats = [np.concatenate([s.prompt_ids, s.response_ids]) for s in sequences()]
    losses = tuple(trainer.step(Documents(chats)).metrics["loss"] for _ in range(2))
    trainer.export(path / "tuned")
    learner = PublishedPolicy(load_sharded(path / "tuned", config), config, PolicyRows(Grpo(kl_coef=0.0)))
    for _ in range(2):
        learner.train_minibatch(Minibatch.of(sequences()))
        published = copied(learner.publish())  # this process ends before it is read
    learner.export(path / "policy")
    return Learned(learner.logprobs(sequences()), published, losses)


def sample(directory: Path, shares: dict[str, list[PublishedWeights]]) -> dict[str, Any]:
    """In a process of its own, an engine after the other: responses before and after the update, and a chat."""
    return {name: _traced(_sample, directory / name / "tuned", published) for name, published in shares.items()}


def _sample(checkpoint: Path, published: list[PublishedWeights]) -> tuple[list[Any], str]:
    return asyncio.run(_responses(checkpoint, published))


async def _responses(checkpoint: Path, published: list[PublishedWeights]) -> tuple[list[Any], str]:
    config = VllmConfig(
        dtype="float32", max_model_len=CONTEXT, max_num_seqs=4, kv_cache_gib=0.03, mla=False, warm_up=False,
        cores=(min(os.sched_getaffinity(0)),),
    )  # fmt: skip
    sampler, params = VllmSampler(config), SamplingParams(max_tokens=40, n=2)
    await sampler.start(checkpoint)
    try:
        groups = [await sampler.generate(Prompt("p", "", "", "", token_ids=PROMPT), params)]
        await sampler.update_weights(published)
        groups.append(await sampler.generate(Prompt("p", "", "", "", token_ids=PROMPT), params))
        asked = Conversation(load_tokenizer(checkpoint), "", CONTEXT).ask("What is 1 + 2?")
        chat = "".join([piece async for piece in sampler.stream(asked, SamplingParams(max_tokens=8))])
    finally:
        await sampler.stop()
    return [[(r.token_ids, r.logprobs) for r in group.responses] for group in groups], chat


@pytest.fixture(scope="module")
def asked(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The families of this session's tests: with `-k gpt2` one engine starts, not eighteen."""
    items = [item for item in request.session.items if "learned" in getattr(item, "fixturenames", ())]
    names = dict.fromkeys(item.callspec.params["name"] for item in items)  # type: ignore[attr-defined]
    return tuple(name for name in names if EVERY or name in USUAL)


@pytest.fixture(scope="module")
def learned(directory: Path, asked: tuple[str, ...]) -> list[dict[str, Any]]:
    ranks: list[dict[str, Any]] = run_ranks(learn, 2, directory, asked, timeout_s=START_S + FAMILY_S * len(asked))
    for name in _learnt(ranks):
        for when in ("tuned", "policy"):
            copy_tokenizer(directory / name / "base", directory / name / when)
    return ranks


@pytest.fixture(scope="module")
def sampled(directory: Path, asked: tuple[str, ...], learned: list[dict[str, Any]]) -> dict[str, Any]:
    shares = {name: [rank[name].published for rank in learned] for name in _learnt(learned)}
    found: dict[str, Any] = run_ranks(sample, 1, directory, shares, timeout_s=START_S + FAMILY_S * len(asked))[0]
    return dict.fromkeys(asked, "not learned") | found


def _learnt(ranks: list[dict[str, Any]]) -> list[str]:
    return [name for name in ranks[0] if all(isinstance(rank[name], Learned) for rank in ranks)]


@pytest.mark.slow
@pytest.mark.timeout(START_S + FAMILY_S * len(CHECKPOINTS) if EVERY else 300)
@pytest.mark.parametrize("name", LEARNING)
def test_transformers_reads_the_export_and_computes_the_same(
    name: str, directory: Path, learned: list[dict[str, Any]]
) -> None:
    assert name in _learnt(learned), [rank[name] for rank in learned]
    model = _transformers(directory / name / "policy")
    index = json.loads((directory / name / "policy" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == _stored(directory / name / "base")  # a tied head is stored as the base does
    for row, ours in zip(sequences(), learned[0][name].logprobs, strict=True):
        np.testing.assert_allclose(ours, _logprobs(model, row.prompt_ids, row.response_ids), atol=TOLERANCE)
    assert learned[0][name].losses[1] < learned[0][name].losses[0]


@needs_the_engines
@pytest.mark.slow
@pytest.mark.timeout(2 * (START_S + FAMILY_S * len(CHECKPOINTS)))  # the first one learns and samples for all
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_vllm_samples_from_the_policy_after_the_update(name: str, directory: Path, sampled: dict[str, Any]) -> None:
    assert not isinstance(sampled[name], str), sampled[name]
    responses, chat = sampled[name]
    assert chat
    for when, group in zip(("tuned", "policy"), responses, strict=True):
        model = _transformers(directory / name / when)
        for ids, logprobs in group:
            np.testing.assert_allclose(logprobs, _logprobs(model, PROMPT, ids), atol=TOLERANCE)
    tuned = _logprobs(_transformers(directory / name / "tuned"), PROMPT, responses[1][0][0])
    assert np.abs(tuned - responses[1][0][1]).max() > 0.01  # the update changed something that shows


def _stored(directory: Path) -> set[str]:
    from safetensors import safe_open

    with safe_open(directory / "model.safetensors", "pt") as stored:
        return set(stored.keys())


def _transformers(directory: Path) -> Any:
    from transformers import AutoModelForCausalLM

    import framework.models.deepseek_moe  # noqa: F401

    model, report = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


@torch.no_grad()
def _logprobs(model: Any, prompt: Any, response: Any) -> Float32:
    ids = torch.tensor([[*map(int, prompt), *map(int, response)]])
    logprobs_RV = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    found: Float32 = logprobs_RV.gather(1, ids[0, len(prompt) :, None])[:, 0].numpy()
    return found
