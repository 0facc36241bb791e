"""Online DPO: which responses make the pair, and that its step is DPO's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from framework.algorithms import preference_loss
from framework.data.packing import pack
from framework.objectives.online_dpo import OnlineDpo
from framework.types import TrainSample

VOCAB = 9


def test_the_best_and_the_worst_make_the_pair() -> None:
    assert OnlineDpo().advantages(torch.tensor([0.5, 2.0, -1.0, 0.0])).tolist() == [0.0, 1.0, -1.0, 0.0]
    assert OnlineDpo().advantages(torch.tensor([1.0, 1.0])).tolist() == [0.0, 0.0]


def sample(prompt: str, ids: list[int], advantage: float) -> TrainSample:
    rng, n = np.random.default_rng(sum(ids)), len(ids)
    lengths = np.zeros(n, np.int32)
    return TrainSample(prompt, np.array([1, 2], np.int32), np.array(ids, np.int32), advantage,
                       rng.uniform(-2, -1, n).astype(np.float32), lengths)  # fmt: skip


def test_the_gradient_is_dpo_s() -> None:
    """Of a bigram model: the policy gradient with the pair's weights, and DPO's loss differentiated."""
    generator = torch.Generator().manual_seed(0)
    policy_VV = torch.randn(VOCAB, VOCAB, generator=generator, dtype=torch.float64, requires_grad=True)
    reference_VV = torch.randn(VOCAB, VOCAB, generator=generator, dtype=torch.float64)
    samples = [sample("a", [3, 4, 1], 1.0), sample("a", [5, 1], -1.0), sample("b", [8, 1], 1.0),
               sample("b", [7, 7, 2, 1], -1.0), sample("b", [6], 0.0)]  # fmt: skip

    def logprobs(weight_VV: torch.Tensor, one: TrainSample) -> torch.Tensor:
        before = torch.tensor([one.prompt_ids[-1], *one.response_ids[:-1]]).long()
        return weight_VV.log_softmax(-1)[before, torch.from_numpy(one.response_ids).long()]

    samples = [replace(one, sampler_logprobs=logprobs(policy_VV, one).detach().numpy()) for one in samples]
    known = [logprobs(reference_VV, one).numpy() for one in samples]
    objective = OnlineDpo(kl_coef=0.3)
    weighed = objective.with_kl_reward(samples, known)
    assert weighed[4].advantage == 0.0
    (micro,) = pack(weighed, 99, denominator=objective.average)
    logprobs_T = policy_VV.log_softmax(-1)[micro.token_ids_T, micro.targets_T]
    (ours,) = torch.autograd.grad(objective.loss(logprobs_T, micro).loss, policy_VV)
    gaps = [
        (logprobs(policy_VV, samples[i]).sum() - torch.from_numpy(known[i]).sum())
        - (logprobs(policy_VV, samples[j]).sum() - torch.from_numpy(known[j]).sum())
        for i, j in ((0, 1), (2, 3))
    ]
    (expected,) = torch.autograd.grad(preference_loss.dpo(torch.stack(gaps), 0.3).sum(), policy_VV)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)
    slopes = [weighed[0].advantage, weighed[1].advantage]
    assert slopes[0] == -slopes[1] == pytest.approx(0.3 / (1 + np.exp(0.3 * float(gaps[0].detach()))))
