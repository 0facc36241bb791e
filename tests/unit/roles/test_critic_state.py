"""A critic's own note in a checkpoint: any damage is noticed, so that an older checkpoint can serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from framework.errors import DamagedState
from framework.objectives.ppo import Ppo
from framework.roles.critic import STATE, ActorCritic
from framework.roles.rl_batch import TrainBatch
from framework.types import Minibatch
from tests.learners import samples


class Group:
    """A rank group that keeps nothing."""

    outstanding: tuple[Any, ...] = ()

    def save(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)

    def load(self, directory: Path) -> None:
        assert directory.is_dir()

    def begin(self, verb: str, *given: Any) -> None:
        pass

    def train(self, batch: TrainBatch) -> None:
        pass


def new(kl_coef: float) -> ActorCritic:
    return ActorCritic(cast(Any, Group()), cast(Any, Group()), Ppo(kl_coef=kl_coef, kl_target=1.0))


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    new(0.25).save(tmp_path)
    other = new(0.5)
    other.load(tmp_path)
    assert other._kl_coef == 0.25
    whole = (tmp_path / STATE).read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1
        (tmp_path / STATE).write_bytes(changed)
        with pytest.raises(DamagedState, match=r"critic\.json"):
            new(0.5).load(tmp_path)
    (tmp_path / STATE).unlink()
    with pytest.raises(DamagedState, match=r"critic\.json"):
        new(0.5).load(tmp_path)
    (tmp_path / STATE).write_text('{"kl_coef": 0.125}')  # of a time before the digest
    other.load(tmp_path)
    assert other._kl_coef == 0.125


def test_a_kl_that_is_not_finite_spoils_no_later_batch() -> None:
    """Its ranks name what is not finite; where they may leave out the step, the next one has a coefficient still."""
    found, given = new(0.25), samples()
    zeros = [np.zeros(sample.length, np.float32) for sample in given]
    batch = TrainBatch((Minibatch.of(given),), (), 0)
    with np.errstate(invalid="ignore"):
        found._train(batch, zeros, None, [zero + np.float32(np.nan) for zero in zeros])
    assert found._kl_coef == 0.25
    found._train(batch, zeros, None, zeros)
    assert found._kl_coef != 0.25
