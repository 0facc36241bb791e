"""Rows spread over two and four ranks give the loss and the gradients of a row on one: MLA with experts, V2, GQA.

`python -m tests.unit.engines.test_sequence_parallel` prints the errors measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

from framework.data.packing import pack
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.trainer import Trainer
from framework.errors import UserError
from framework.models.families.base import ModelConfig, recast
from framework.models.families.deepseek_v2 import DeepseekV2
from framework.models.families.qwen3 import Qwen3
from framework.models.packed_attention import SegmentLayout, forward_packed
from framework.models.sequence_parallel import even_bounds
from framework.models.spec import build_model
from framework.objectives.grpo import Grpo
from framework.objectives.gspo import Gspo
from framework.objectives.lm import DocumentLm, Documents, StreamLm
from framework.objectives.policy_rows import PolicyRows
from framework.types import Minibatch, TrainSample
from tests.distributed import run_ranks
from tests.learners import TINY_V3, VOCAB
from tests.unit.engines.test_expert_parallel import gradients, relative

V3 = replace(TINY_V3, num_attention_heads=4, num_hidden_layers=2)
V2 = recast(V3, DeepseekV2, norm_topk_prob=False, n_shared_experts=2)
QWEN3 = recast(V3, Qwen3, num_attention_heads=4, num_key_value_heads=2, head_dim=16)


def responses() -> Minibatch:
    """Of very uneven lengths, to two long prompts that are computed once, and to a short one."""
    rng, made = np.random.default_rng(0), []
    prompts = [rng.integers(0, VOCAB, n).astype(np.int32) for n in (21, 30, 2)]
    for index, (prompt, n) in enumerate([(0, 1), (0, 17), (0, 40), (1, 3), (1, 3), (1, 29), (2, 1)]):
        made.append(
            TrainSample(
                f"p{prompt}", prompts[prompt], rng.integers(0, VOCAB, n).astype(np.int32), float(rng.normal()),
                rng.uniform(-5.2, -4.6, n).astype(np.float32), np.zeros(n, np.int32),
                old_logprobs=None if index else np.full(n, -5, np.float32),
            )
        )  # fmt: skip
    return Minibatch.of(made)


def documents() -> Documents:
    rng = np.random.default_rng(1)
    return Documents([rng.integers(0, VOCAB, n).astype(np.int32) for n in (5, 40, 17, 3, 29, 17, 58, 8)])


@dataclass(frozen=True)
class Case:
    """A model and what it learns."""

    spec: ModelConfig
    objective: Any
    batch: Any
    engine: dict[str, Any] = field(default_factory=dict)


def cases() -> dict[str, Case]:
    rows_BT = torch.randint(VOCAB, (3, 46), generator=torch.Generator().manual_seed(2))
    twice = {"ep_size": 2}
    depths = replace(V3, num_nextn_predict_layers=2)
    alphas = {"balance_alpha": 1e-2, "device_alpha": 1e-2, "communication_alpha": 1e-2}
    return {
        "V3, GRPO": Case(V3, PolicyRows(Grpo(kl_coef=0.01), 0.8, entropy=True), responses(), twice),
        "V3 and MTP, documents": Case(depths, DocumentLm(), documents(), twice | {"balance_alpha": 1e-2}),
        "V2, rows": Case(V2, StreamLm(), rows_BT, twice | alphas),
        "Qwen3, GSPO": Case(QWEN3, PolicyRows(Gspo(kl_coef=0.01)), responses(), {"zero_stage": 3}),
    }


def trained(name: str, sp_size: int, spread: bool = True) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics of a step and its whole gradients."""
    from deepspeed.utils import groups

    for known in ("_EXPERT_PARALLEL_GROUP", "_EXPERT_DATA_PARALLEL_GROUP"):
        getattr(groups, known).clear()
        getattr(groups, f"{known}_RANKS").clear()
    case, found = cases()[name], dict[str, np.ndarray]()
    more = case.engine if spread else {key: value for key, value in case.engine.items() if key != "ep_size"}
    config = DeepSpeedConfig(token_budget=96, clip=0.0, sp_size=sp_size, **more)
    trainer = Trainer(build_model(case.spec, seed=0), config, case.objective)
    step = trainer.engine.step
    trainer.engine.step = lambda *bad: found.update(gradients(trainer)) or step(*bad)  # type: ignore[method-assign]
    before = trainer.evaluate(case.batch)["loss"]
    result = trainer.step(case.batch)
    metrics = {**result.metrics, "before": before}
    if result.expert_load_LE is not None:
        metrics["most loaded"] = float(result.expert_load_LE.max())
    return metrics, found


def on_ranks(layouts: list[tuple[str, int]]) -> list[Any]:
    return [trained(*layout) for layout in layouts]


def whole_logits() -> float:
    """How far a spread row's logits are from the whole row's, which every rank computes."""
    from framework.engines.deepspeed_engine import init_process_group
    from framework.models.packed_attention import use_packed_attention
    from framework.models.sequence_parallel import sequence_group

    init_process_group(60.0)
    model: Any = build_model(QWEN3, seed=0)
    use_packed_attention(model)
    (micro,) = pack(responses().samples, 400)
    layout = SegmentLayout.of(micro)
    assert layout.shared is not None
    group = sequence_group(torch.distributed.get_rank(), 2, 2)
    with torch.no_grad():
        found, expected = (forward_packed(model, micro, one) for one in (layout.spread(group), layout))
    return float((found - expected).abs().max())


def compare(found: tuple[dict[str, float], dict[str, np.ndarray]], name: str) -> tuple[float, float]:
    """Largest relative errors against a row on one rank: of metrics, of a gradient tensor."""
    metrics, expected = trained(name, 1, spread=False)
    assert found[0].keys() == metrics.keys()
    assert found[1].keys() == expected.keys()
    off = {key: abs(found[0][key] - value) / max(abs(value), 1e-3) for key, value in metrics.items()}
    return max(off.values()), max(relative(found[1][key], value) for key, value in expected.items() if value.any())


TWO = [(name, 2) for name in cases()]
FOUR = [*((name, 4) for name in cases()), ("V3, GRPO", 2)]


@pytest.fixture(scope="module")
def runs() -> dict[tuple[int, str, int], Any]:
    two, four = run_ranks(on_ranks, 2, TWO)[0], run_ranks(on_ranks, 4, FOUR)[0]
    return {(2, *layout): found for layout, found in zip(TWO, two, strict=True)} | {
        (4, *layout): found for layout, found in zip(FOUR, four, strict=True)
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", cases())
def test_spread_rows_train_as_whole_ones(runs: dict[tuple[int, str, int], Any], name: str) -> None:
    for (_, case, _), found in runs.items():
        if case == name:
            metrics, grads = compare(found, name)
            assert metrics < 2e-6
            assert grads < 1e-5


@pytest.mark.slow
def test_every_rank_gets_the_whole_rows_logits() -> None:
    assert max(run_ranks(whole_logits, 2)) < 1e-5


@pytest.mark.parametrize(("world", "heads"), [(3, 4), (2, 3)])
def test_sizes_that_do_not_divide_are_refused(world: int, heads: int) -> None:
    with pytest.raises(UserError, match="sp_size"):
        DeepSpeedConfig(sp_size=2).check_topology(world, 8, heads=heads)


def test_a_row_of_fewer_tokens_than_ranks_is_refused() -> None:
    assert even_bounds(7, 4) == (0, 1, 3, 5, 7)
    with pytest.raises(UserError, match="sp_size"):
        even_bounds(3, 4)


if __name__ == "__main__":
    for world, layouts in ((2, TWO), (4, FOUR)):
        for (name, size), found in zip(layouts, run_ranks(on_ranks, world, layouts)[0], strict=True):
            print(f"{world} ranks, SP {size}, {name}: metrics %.1e, gradients %.1e" % compare(found, name), flush=True)
