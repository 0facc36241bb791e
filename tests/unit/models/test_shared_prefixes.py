"""Equal prefixes are found, and computing them once changes no logprob and no gradient."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from framework.data.packing import pack
from framework.models import shared_prefixes as prefixes_module
from framework.models.families.base import ModelConfig, recast
from framework.models.families.qwen2 import Qwen2
from framework.models.packed_attention import SegmentLayout, packed_logprobs, use_packed_attention
from framework.models.shared_prefixes import WORTH, shared_prefixes
from framework.models.spec import build_model
from framework.types import TrainSample
from tests.learners import TINY_V3, VOCAB

SEGMENTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=8)


@given(SEGMENTS)
def test_two_positions_share_a_node_if_all_tokens_up_to_them_are_the_same(segments: list[list[int]]) -> None:
    row_T = torch.tensor([token for segment in segments for token in segment])
    prefixes = [tuple(segment[: end + 1]) for segment in segments for end in range(len(segment))]
    shared = shared_prefixes(row_T, [len(segment) for segment in segments])
    different = len(set(prefixes))
    assert (shared is None) == (different > WORTH * len(row_T))
    if shared is not None:
        node_T, position_U = shared.node_T.tolist(), shared.position_U.tolist()
        assert len(position_U) == different
        assert position_U == sorted(position_U)
        for a, b in itertools.combinations(range(len(row_T)), 2):
            assert (node_T[a] == node_T[b]) == (prefixes[a] == prefixes[b])
        assert all(node_T.index(node) == position_U[node] for node in range(different))


def groups(sizes: tuple[int, ...] = (4, 3, 1)) -> tuple[TrainSample, ...]:
    """Responses to prompts that begin with one template; two responses of a group begin alike."""
    rng = np.random.default_rng(0)
    template, made = rng.integers(0, VOCAB, 20), []
    for prompt, size in enumerate(sizes):
        prompt_ids = np.concatenate([template, rng.integers(0, VOCAB, 4 + prompt)]).astype(np.int32)
        opening = rng.integers(0, VOCAB, 3)
        for index in range(size):
            tail = rng.integers(0, VOCAB, int(rng.integers(1, 9)))
            response = np.concatenate([opening, tail] if index < 2 else [tail]).astype(np.int32)
            old = rng.normal(-4, 0.3, len(response)).astype(np.float32)
            versions = np.zeros(len(response), np.int32)
            made.append(TrainSample(f"p{prompt}", prompt_ids, response, 1.0, old, versions))
    return tuple(made)


@pytest.mark.parametrize("spec", [TINY_V3, recast(TINY_V3, Qwen2, num_key_value_heads=1)],
                         ids=["v3", "qwen2"])  # fmt: skip
@pytest.mark.parametrize("aligned", [1, 7])
def test_shared_prefixes_change_neither_logprobs_nor_gradients(
    spec: ModelConfig, aligned: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (micro,) = pack(groups(), token_budget=1000)
    fewest = SegmentLayout.of(micro).n_tokens
    monkeypatch.setattr(prefixes_module, "ALIGNED", aligned)
    layout = SegmentLayout.of(micro)
    assert layout.shared is not None
    assert layout.n_tokens == -(-fewest // aligned) * aligned
    assert layout.n_tokens < 0.5 * len(micro.token_ids_T)
    plain = SegmentLayout.of_lengths(micro.segment_lengths_S.tolist())
    model: Any = build_model(spec, seed=0)
    use_packed_attention(model)
    found = []
    for used in (layout, plain):
        model.zero_grad()
        result = packed_logprobs(model, micro, 0.7, entropy=True, layout=used)
        weights_T = torch.sin(torch.arange(len(micro.mask_T)))
        (weights_T * result.logprobs_T).sum().backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append([result.logprobs_T.detach(), result.entropy_T, *gradients])
    assert len(found[0]) == len(found[1])
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
