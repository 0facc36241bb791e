"""Losses of two tiny trainings, checked in as losses.json. They change only with a stated reason; then run

OMP_NUM_THREADS=1 python -m tests.goldens.losses
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.lr_schedule import LrSchedule
from framework.engines.trainer import Trainer
from framework.objectives.lm import StreamLm
from tests.learners import VOCAB, minibatch, tiny_learner, tiny_model

FILE = Path(__file__).with_name("losses.json")
STEPS = 6
Curves = dict[str, dict[str, list[float]]]  # training -> metric -> its value at each step


def train() -> Curves:
    """Pretraining and GRPO steps with everything on that changes a loss: bias update, balance loss, clipping, KL."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of sums depends on it
    try:
        return {"pretraining": _pretrain(), "grpo": _grpo()}
    finally:
        torch.set_num_threads(threads)


def _pretrain() -> dict[str, list[float]]:
    schedule = LrSchedule(lr=3e-3, kind="cosine", warmup_steps=2, total_steps=STEPS)
    config = DeepSpeedConfig(schedule=schedule, bias_update_speed=1e-3, balance_alpha=1e-3, token_budget=128)
    trainer = Trainer(tiny_model(), config, StreamLm())
    start_B1 = torch.arange(8).unsqueeze(1)
    rows_BT = (start_B1 * 7 + torch.arange(33) * (start_B1 % 3 + 1)) % VOCAB  # arithmetic progressions: learnable
    results = [trainer.step(rows_BT) for _ in range(STEPS)]
    return {name: [r.metrics[name] for r in results] for name in ("loss", "grad_norm", "balance_loss", "lr")}


def _grpo() -> dict[str, list[float]]:
    learner = tiny_learner(kl_coef=0.05)
    results = [learner.train_minibatch(minibatch(seed=seed)) for seed in range(STEPS)]
    return {name: [r.metrics[name] for r in results] for name in ("loss", "grad_norm", "ref_kl", "ratio", "lr")}


if __name__ == "__main__":
    FILE.write_text(json.dumps(train(), indent=1) + "\n")
