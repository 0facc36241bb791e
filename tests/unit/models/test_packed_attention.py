"""Packed, padded and one-by-one forwards of real transformers models: one loss, one gradient."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from framework.data.packing import pack, pack_padded
from framework.models import packed_attention as attention
from framework.models.packed_attention import (
    SegmentLayout,
    forward_packed,
    packed_attention,
    packed_logprobs,
    use_packed_attention,
)
from framework.models.shared_prefixes import shared_prefixes
from framework.objectives.dapo import Dapo
from framework.objectives.grpo import Grpo
from framework.objectives.policy import PolicyObjective
from framework.types import PolicyMicroBatch, TrainSample

VOCAB = 64
SHAPES = [(3, 5), (1, 1), (6, 17), (4, 4), (2, 9), (3, 5), (8, 1), (5, 12)]


def moe() -> Any:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    config = DeepseekV3Config(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=2, n_shared_experts=1, n_routed_experts=8, q_lora_rank=16,
        kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=12, n_group=4, topk_group=2,
        num_experts_per_tok=3, first_k_dense_replace=1, initializer_range=0.2, max_position_embeddings=64,
    )  # fmt: skip
    return DeepseekV3ForCausalLM(config)


def dense() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, max_position_embeddings=64,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


@pytest.fixture(scope="module", params=[moe, dense])
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return request.param()


def samples() -> list[TrainSample]:
    rng = np.random.default_rng(0)
    return [
        TrainSample(
            prompt_id=f"p{i}",
            prompt_ids=rng.integers(0, VOCAB, n_prompt).astype(np.int32),
            response_ids=rng.integers(0, VOCAB, n_response).astype(np.int32),
            advantage=float(rng.normal()),
            sampler_logprobs=rng.uniform(-6, -2, n_response).astype(np.float32),
            weight_versions=np.zeros(n_response, np.int32),
        )
        for i, (n_prompt, n_response) in enumerate(SHAPES)
    ]


Result = tuple[float, dict[str, torch.Tensor]]


def packed_result(model: Any, micros: list[PolicyMicroBatch], config: PolicyObjective) -> Result:
    model = copy.deepcopy(model)
    use_packed_attention(model)
    divisor = config.denominator(len(SHAPES), sum(r for _, r in SHAPES))
    total = 0.0
    for micro in micros:
        loss = config.loss(packed_logprobs(model, micro).logprobs_T, micro).loss / divisor
        loss.backward()
        total += loss.item()
    return total, gradients(model)


def plain_result(model: Any, config: PolicyObjective, rows: list[list[TrainSample]]) -> Result:
    """transformers' own attention on right-padded rows with a 2D mask; the loss written out for GRPO without KL."""
    model = copy.deepcopy(model)
    divisor = config.denominator(len(SHAPES), sum(r for _, r in SHAPES))
    total = 0.0
    for batch in rows:
        width = max(len(s.prompt_ids) + len(s.response_ids) for s in batch)
        ids_BT, mask_BT = torch.zeros(2, len(batch), width, dtype=torch.int64)
        for b, s in enumerate(batch):
            tokens = torch.from_numpy(np.concatenate([s.prompt_ids, s.response_ids]))
            ids_BT[b, : len(tokens)], mask_BT[b, : len(tokens)] = tokens, 1
        logprobs_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits.log_softmax(-1)
        loss = torch.zeros(())
        for b, s in enumerate(batch):
            first, n = len(s.prompt_ids) - 1, len(s.response_ids)
            targets = torch.from_numpy(s.response_ids).long()
            logprobs_R = logprobs_BTV[b, first : first + n].gather(1, targets[:, None])[:, 0]
            ratio_R = (logprobs_R - torch.from_numpy(s.sampler_logprobs)).exp()
            clipped_R = ratio_R.clamp(-9, 11)
            per_token_R = torch.minimum(ratio_R * s.advantage, clipped_R * s.advantage)
            loss = loss - (per_token_R.mean() if config.average == "response" else per_token_R.sum())
        (loss / divisor).backward()
        total += loss.item() / divisor
    return total, gradients(model)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(ours: Result, theirs: Result) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in ours[1].items():
        expected = theirs[1][name]
        error = float((gradient - expected).norm() / expected.norm().clamp_min(1e-8))
        assert error < 2e-5, (name, error)


@pytest.mark.parametrize("kind", ["response", "token"])
def test_packed_padded_and_one_by_one_agree(model: Any, kind: Any) -> None:
    config = (Grpo if kind == "response" else Dapo)(kl_coef=0.0, clip_low=10, clip_high=10)
    everything = samples()
    alone = plain_result(model, config, [[s] for s in everything])
    assert_same(plain_result(model, config, [everything[:4], everything[4:]]), alone)
    assert_same(packed_result(model, pack(everything, 200, denominator=kind), config), alone)
    assert_same(packed_result(model, pack(everything, 30, denominator=kind), config), alone)
    assert_same(packed_result(model, pack_padded(everything, 60, denominator=kind), config), alone)
    both_ranks = [micro for rank in range(2) for micro in pack(everything, 30, rank=rank, ranks=2, denominator=kind)]
    assert_same(packed_result(model, both_ranks, config), alone)
    shuffled = [everything[i] for i in np.random.default_rng(1).permutation(len(everything))]
    assert_same(packed_result(model, pack(shuffled, 60, denominator=kind), config), alone)


def test_an_empty_micro_batch_adds_nothing(model: Any) -> None:
    config = Grpo(kl_coef=0.1)
    loss, empty_gradients = packed_result(model, pack([], 30), config)
    assert loss == 0.0
    assert empty_gradients  # the graph is there, so collectives in the backward pass still run
    assert all(gradient.abs().sum() == 0 for gradient in empty_gradients.values())


def test_logits_match_a_plain_forward_at_every_position(model: Any) -> None:
    (micro,) = pack(samples(), 200)
    packed = copy.deepcopy(model)
    use_packed_attention(packed)
    with torch.no_grad():
        logits_TV = forward_packed(packed, micro)
        pieces = micro.token_ids_T.split(micro.segment_lengths_S.tolist())
        expected_TV = torch.cat([model(input_ids=piece[None], use_cache=False).logits[0] for piece in pieces])
        kept = torch.tensor([0, 7, 30])
        torch.testing.assert_close(forward_packed(packed, micro, keep_K=kept), logits_TV[kept])
    torch.testing.assert_close(logits_TV, expected_TV, rtol=1e-4, atol=1e-5)


def test_logprobs_and_entropy_at_trained_positions(model: Any) -> None:
    (micro,) = pack(samples(), 200)
    packed = copy.deepcopy(model)
    use_packed_attention(packed)
    with torch.no_grad():
        result = packed_logprobs(packed, micro, temperature=0.5, entropy=True)
        all_TV = (forward_packed(packed, micro) / 0.5).log_softmax(-1)
    expected_T = all_TV.gather(1, micro.targets_T[:, None])[:, 0] * micro.mask_T
    torch.testing.assert_close(result.logprobs_T, expected_T, rtol=1e-5, atol=1e-5)
    expected_entropy_T = -(all_TV.exp() * all_TV).sum(-1) * micro.mask_T
    torch.testing.assert_close(result.entropy_T, expected_entropy_T, rtol=1e-5, atol=1e-5)


def test_gradient_checkpointing_carries_the_layout(model: Any) -> None:
    (micro,) = pack(samples(), 200)
    results = []
    for checkpointing in (False, True):
        trained = copy.deepcopy(model).train()
        use_packed_attention(trained)
        if checkpointing:
            trained.gradient_checkpointing_enable({"use_reentrant": False})
        loss = packed_logprobs(trained, micro).logprobs_T.sum()
        loss.backward()
        results.append((loss.item(), gradients(trained)))
    assert_same(results[1], results[0])


def test_runs_of_equal_lengths() -> None:
    layout = SegmentLayout.of_lengths([5, 5, 3, 5, 1])
    assert layout.runs == ((2, 5), (1, 3), (1, 5), (1, 1))
    assert layout.n_tokens == 19


@pytest.mark.parametrize("lengths", [[4, 4, 4], [7], [1, 5, 2, 2, 9, 1], [3, 1, 3]])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention_equals_a_block_diagonal_mask(lengths: list[int], kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    total = sum(lengths)
    shapes = [(1, 4, total, 6), (1, kv_heads, total, 6), (1, kv_heads, total, 3)]
    states = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]
    segment_T = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    allowed_TT = (segment_T[:, None] == segment_T) & torch.ones(total, total).tril().bool()
    q, k, v = states[0], *(x.repeat_interleave(4 // kv_heads, 1) for x in states[1:])
    scores = (q @ k.mT * 0.3).masked_fill(~allowed_TT, -torch.inf)
    expected = (scores.softmax(-1) @ v).transpose(1, 2)
    output, _ = packed_attention(
        torch.nn.Identity(), *states, None, scaling=0.3, segments=SegmentLayout.of_lengths(lengths)
    )
    torch.testing.assert_close(output, expected)
    weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    ours = torch.autograd.grad((output * weights).sum(), states)
    theirs = torch.autograd.grad((expected * weights).sum(), states)
    torch.testing.assert_close(ours, theirs)


def test_what_packing_cannot_do_is_refused(model: Any) -> None:
    packed = copy.deepcopy(model)
    use_packed_attention(packed)
    with pytest.raises(ValueError, match="forward_packed"):
        packed(input_ids=torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="layout of 3 tokens"):
        packed(input_ids=torch.zeros(1, 4, dtype=torch.int64), segments=SegmentLayout.of_lengths([3]))
    with pytest.raises(ValueError, match="layout"):
        packed(input_ids=torch.zeros(2, 4, dtype=torch.int64), segments=SegmentLayout.of_lengths([4]))


@pytest.mark.parametrize("queries", [2, 1024])
@pytest.mark.parametrize("window", [1, 4, 100])
def test_windows_hold_within_segments_and_shared_prefixes(
    window: int, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "QUERIES", queries)
    lengths, heads, width = [9, 9, 3], 2, 4
    ids_T = torch.tensor([*range(6), 20, 21, 22, *range(6), 30, 31, 32, *range(3)])
    total = sum(lengths)
    first_T = {}  # queries, keys and values of a node are alike: by the prefix that ends there
    starts = [0, 9, 18]
    nodes = [
        first_T.setdefault(tuple(ids_T[start : start + place + 1].tolist()), len(first_T))
        for start, length in zip(starts, lengths, strict=True)
        for place in range(length)
    ]
    q, k, v = (torch.randn(1, heads, len(first_T), width)[:, :, nodes] for _ in range(3))
    mask_TT = torch.zeros(total, total, dtype=torch.bool)
    for start, length in zip(starts, lengths, strict=True):
        square = torch.ones(length, length, dtype=torch.bool)
        mask_TT[start : start + length, start : start + length] = square.tril().triu(1 - window)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask_TT).transpose(1, 2)
    plain = SegmentLayout.of_lengths(lengths)
    found = packed_attention(torch.nn.Module(), q, k, v, None, segments=plain, sliding_window=window)[0]
    torch.testing.assert_close(found, expected)
    shared = replace(plain, shared=shared_prefixes(ids_T, lengths))
    assert shared.shared is not None
    at_U = shared.shared.position_U
    found = packed_attention(
        torch.nn.Module(), q[:, :, at_U], k[:, :, at_U], v[:, :, at_U], None, segments=shared, sliding_window=window
    )[0]
    torch.testing.assert_close(found, expected[:, at_U])


@pytest.mark.parametrize("key", ["softcap", "s_aux"])
def test_attention_of_other_kinds_is_refused(key: str) -> None:
    x = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match=key):
        packed_attention(torch.nn.Module(), x, x, x, None, segments=SegmentLayout.of_lengths([2]), **{key: 1.0})
