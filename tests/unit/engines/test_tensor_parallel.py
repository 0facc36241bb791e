"""Tensor parallelism 1, 2 and 4 over gloo: the same losses, gradients, weights and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from framework.errors import UserError
from framework.models.families.gpt2 import Gpt2
from tests.distributed import run_ranks

SPEC = Gpt2("tiny", vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            max_position_embeddings=32, dtype="float32", initializer_range=0.2, bos_token_id=0, eos_token_id=0,
            pad_token_id=None)  # fmt: skip


def batch(step: int) -> torch.Tensor:
    return torch.randint(0, 64, (6, 17), generator=torch.Generator().manual_seed(step))


def trainer(cut: bool) -> Any:
    from framework.engines.deepspeed_engine import DeepSpeedConfig
    from framework.engines.lr_schedule import LrSchedule
    from framework.engines.trainer import Trainer
    from framework.models.spec import build_model
    from framework.objectives.lm import StreamLm

    # The softmax does not feel the keys' biases: their gradient is rounding alone, which a small epsilon would blow up.
    schedule = LrSchedule(lr=1e-2)
    engine = DeepSpeedConfig(schedule=schedule, eps=1e-4, token_budget=48, clip=0.5, tensor_parallel=cut)
    return Trainer(build_model(SPEC, 0), engine, StreamLm())


def train(cut: bool, out: str, resumed: bool = False) -> list[tuple[float, float]]:
    """Ten steps; losses and gradient norms."""
    made, found = trainer(cut), []
    for step in range(10):
        if resumed and step == 5:
            made.save(Path(out, "state"))
            made = trainer(cut)
            made.load(Path(out, "state"))
        result = made.step(batch(step))
        found.append((result.metrics["loss"], result.metrics["grad_norm"]))
    found.append((made.evaluate(batch(99))["loss"], 0.0))
    made.export(Path(out))
    return found


def weights(directory: Path) -> dict[str, torch.Tensor]:
    from transformers import GPT2LMHeadModel

    return dict(GPT2LMHeadModel.from_pretrained(directory).state_dict())


def test_one_two_and_four_ranks_train_alike(tmp_path: Path) -> None:
    """One is DeepSpeed's engine; two stop in the middle and go on from what they saved."""
    (whole,) = run_ranks(train, 1, False, str(tmp_path / "whole"))
    expected = weights(tmp_path / "whole")
    for ranks in (2, 4):
        out = tmp_path / str(ranks)
        results = run_ranks(train, ranks, True, str(out), ranks == 2)
        assert all(result == results[0] for result in results)
        for (loss, norm), (loss_1, norm_1) in zip(results[0], whole, strict=True):
            assert loss == pytest.approx(loss_1, abs=1e-5)
            assert norm == pytest.approx(norm_1, abs=1e-4)
        for name, tensor in weights(out).items():
            torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=0)


def test_what_cannot_be_cut_is_refused() -> None:
    from framework.engines.tensor_parallel import check_tensor_parallel
    from framework.models.table.bert import Bert

    with pytest.raises(UserError, match=r"3 ranks'; must divide model\.num_attention_heads=4"):
        check_tensor_parallel(SPEC.hf_config(), 3)
    with pytest.raises(UserError, match="GPT-2 alone"):
        check_tensor_parallel(Bert("b", 64, 32, 2, 4, 64, 32, bos_token_id=None, eos_token_id=None).hf_config(), 2)


def test_fused_rows_are_dealt_head_by_head() -> None:
    from framework.engines.tensor_parallel import rank_order

    assert rank_order(4, 2).tolist() == [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]
