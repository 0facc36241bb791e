"""Speculative decoding with a trained MTP module in real vLLM: accepted often, the model's own distribution, updated.

One engine process for all of it: starting vLLM and training the module cost most of the time.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from framework.config import compose
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.expert_parallel import own_tensors
from framework.engines.lr_schedule import LrSchedule
from framework.engines.trainer import Trainer
from framework.engines.vllm_engine import VllmConfig, VllmSampler
from framework.engines.weights import flatten
from framework.errors import UserError
from framework.objectives.lm import StreamLm
from framework.types import Prompt, SamplingParams
from tests.distributed import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
STATES, ROW, STEPS, N, TEMPERATURE = 24, 65, 150, 2000, 0.8
PROMPT = (3, 7, 1, 5)
CONFIG = VllmConfig(dtype="float32", max_model_len=64, mla=False, kv_cache_gib=0.25, speculative_tokens=1)


def markov_rows(seed: int) -> torch.Tensor:
    """Rows [16, ROW] of a chain in which each token has a few likely successors."""
    chances = np.random.default_rng(0).dirichlet(np.full(STATES, 0.05), size=STATES).cumsum(-1)
    rng = np.random.default_rng(seed + 1)
    rows_BT = np.empty((16, ROW), np.int64)
    rows_BT[:, 0] = rng.integers(0, STATES, 16)
    for t in range(1, ROW):
        rows_BT[:, t] = (rng.random((16, 1)) > chances[rows_BT[:, t - 1]]).sum(-1).clip(0, STATES - 1)
    return torch.from_numpy(rows_BT)


def log_softmax(model: Any, rows_BT: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=rows_BT, use_cache=False).logits / TEMPERATURE, -1)


def chi_square(counts: np.ndarray, chances: np.ndarray) -> tuple[float, int]:
    """Statistic and degrees of freedom over cells expected at least five times, the rest as one."""
    expected = chances * counts.sum()
    large = expected >= 5
    pairs = [*zip(counts[large], expected[large], strict=True), (counts[~large].sum(), expected[~large].sum())]
    pairs = [(found, wanted) for found, wanted in pairs if wanted > 1]
    return sum((found - wanted) ** 2 / wanted for found, wanted in pairs), len(pairs) - 1


def drafted(directory: Path) -> dict[str, Any]:
    """Train, sample with drafts, update; everything that the tests below look at."""
    spec = replace(compose(["model=v3_tiny_mtp"]).model, vocab_size=64, max_position_embeddings=64, eos_token_id=63)
    config = DeepSpeedConfig(schedule=LrSchedule(lr=4e-3, warmup_steps=10), mtp_coef=0.3)
    from framework.models.spec import build_model

    trainer = Trainer(build_model(spec, 0), config, StreamLm())
    metrics = [trainer.step(markov_rows(step)).metrics for step in range(STEPS)][-1]
    trainer.export(directory)
    save_tokenizer(directory)
    model: Any = trainer.engine.model
    sampled = asyncio.run(sample_and_update(directory, model))

    # What the second and third token should be: over all first ones, by the model's own probabilities.
    first_V = log_softmax(model, torch.tensor([PROMPT]))[0, -1].exp()
    seconds_VV = log_softmax(model, torch.tensor([[*PROMPT, token] for token in range(64)]))[:, -1].exp()
    gaps = []
    for ids, logprobs in sampled["responses"][:200]:
        exact_TV = log_softmax(model, torch.tensor([[*PROMPT, *ids]]))[0, len(PROMPT) - 1 : -1]
        gaps.append(np.abs(exact_TV.gather(-1, torch.tensor(ids)[:, None])[:, 0].numpy() - logprobs).max())
    seconds = np.bincount([ids[1] for ids, _ in sampled["responses"]], minlength=64)
    return {
        "accuracy": metrics["mtp_accuracy_1"],
        "second": chi_square(seconds, (first_V @ seconds_VV).double().numpy()),
        "gap": float(max(gaps)),
        **{name: sampled[name] for name in ("rate", "rate_after", "draft_weights", "published")},
    }


async def sample_and_update(directory: Path, model: Any) -> dict[str, Any]:
    sampler = VllmSampler(CONFIG)
    await sampler.start(directory)
    prompt, params = Prompt("p", "", "", "", token_ids=PROMPT), SamplingParams(TEMPERATURE, max_tokens=6, n=250)

    async def rate() -> tuple[float, list[Any]]:
        drafts, accepted = await sampler.drafts()
        groups = [await sampler.generate(prompt, params) for _ in range(N // params.n)]
        after = await sampler.drafts()
        return (after[1] - accepted) / (after[0] - drafts), [r for group in groups for r in group.responses]

    before, responses = await rate()
    with torch.no_grad():  # a module that knows nothing any more; the main model stays
        for parameter in model.mtp_modules.parameters():
            parameter.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(1))
    await sampler.update_weights([flatten(own_tensors(model), 1)])
    after, _ = await rate()
    weights = await asyncio.wrap_future(sampler._running().call(draft_projection))
    await sampler.stop()
    return {
        "rate": before,
        "rate_after": after,
        "responses": [(r.token_ids.tolist(), r.logprobs) for r in responses],
        "draft_weights": weights,
        "published": model.mtp_modules[0].eh_proj.weight.detach().numpy().copy(),
    }


def draft_projection(engine: Any) -> np.ndarray:
    """eh_proj of vLLM's drafting module."""
    worker = engine.engine_core.engine_core.model_executor.driver_worker.worker
    (layer,) = worker.get_draft_model().model.layers.values()
    return layer.eh_proj.weight.detach().numpy().copy()


def save_tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({str(i): i for i in range(64)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="63").save_pretrained(directory)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return dict(run_ranks(drafted, 1, tmp_path_factory.mktemp("mtp"))[0])


def test_a_trained_module_is_accepted_about_as_often_as_it_is_right(found: dict[str, Any]) -> None:
    assert found["rate"] > 0.3
    assert found["rate"] == pytest.approx(found["accuracy"], abs=0.2)


def test_drafting_keeps_the_models_distribution(found: dict[str, Any]) -> None:
    statistic, freedom = found["second"]
    assert freedom >= 3
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5  # four standard deviations
    assert found["gap"] < 1e-3


def test_drafts_follow_every_weight_update(found: dict[str, Any]) -> None:
    np.testing.assert_array_equal(found["draft_weights"], found["published"])
    assert found["rate_after"] < 0.5 * found["rate"]


def test_a_model_without_modules_cannot_draft(tmp_path: Path) -> None:
    from jobs.bench._checkpoints import save_checkpoint

    spec = compose(["model=v3_tiny"]).model
    save_checkpoint(spec, tmp_path)
    with pytest.raises(UserError, match="speculative_tokens"):
        asyncio.run(VllmSampler(CONFIG).start(tmp_path))
