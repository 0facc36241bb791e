from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.data.packing import (
    PackingPlan,
    pack,
    pack_documents,
    pack_padded,
    plan_packing,
    to_device,
    unpack_responses,
)
from framework.errors import UserError
from framework.types import Denominator, MicroBatch, PolicyMicroBatch, TrainSample

LENGTHS = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 20)), max_size=24)


def sample(n_prompt: int, n_response: int, name: str = "p", seed: int = 0) -> TrainSample:
    rng = np.random.default_rng([seed, n_prompt, n_response])
    return TrainSample(
        prompt_id=name,
        prompt_ids=rng.integers(1, 100, n_prompt).astype(np.int32),
        response_ids=rng.integers(1, 100, n_response).astype(np.int32),
        advantage=float(rng.normal()),
        sampler_logprobs=-rng.random(n_response, np.float32),
        weight_versions=np.zeros(n_response, np.int32),
    )


def samples_of(shapes: list[tuple[int, int]]) -> list[TrainSample]:
    return [sample(p, r, f"p{i}", seed=i) for i, (p, r) in enumerate(shapes)]


def of_all_ranks(
    samples: list[TrainSample], budget: int, ranks: int, **options: object
) -> list[list[PolicyMicroBatch]]:
    return [pack(samples, budget, rank=rank, ranks=ranks, **options) for rank in range(ranks)]  # type: ignore[arg-type]


def test_hand_worked() -> None:
    first = TrainSample(
        prompt_id="a",
        prompt_ids=np.array([5, 6, 7], np.int32),
        response_ids=np.array([8, 9], np.int32),
        advantage=1.5,
        sampler_logprobs=np.array([-0.1, -0.2], np.float32),
        weight_versions=np.zeros(2, np.int32),
        old_logprobs=np.array([-0.3, -0.4], np.float32),
    )
    second = TrainSample(
        prompt_id="b",
        prompt_ids=np.array([1], np.int32),
        response_ids=np.array([2], np.int32),
        advantage=-1.0,
        sampler_logprobs=np.array([-0.5], np.float32),
        weight_versions=np.zeros(1, np.int32),
    )
    (micro,) = pack([second, first], 5, ref_logprobs=[np.float32([-0.7]), np.float32([-0.8, -0.9])])
    assert micro.sample_index_S == (1, 0)  # longest first
    assert micro.segment_lengths_S.tolist() == [4, 1]  # the last token of a response predicts nothing
    assert micro.token_ids_T.tolist() == [5, 6, 7, 8, 1]
    assert micro.position_ids_T.tolist() == [0, 1, 2, 3, 0]
    assert micro.targets_T.tolist() == [6, 7, 8, 9, 2]
    assert micro.mask_T.tolist() == [0, 0, 1, 1, 1]
    assert micro.weights_T.tolist() == [0, 0, 0.5, 0.5, 1]
    assert micro.advantages_T.tolist() == [0, 0, 1.5, 1.5, -1]
    for values_T, expected in (
        (micro.old_logprobs_T, [0, 0, -0.3, -0.4, -0.5]),
        (micro.sampler_logprobs_T, [0, 0, -0.1, -0.2, -0.5]),
        (micro.ref_logprobs_T, [0, 0, -0.8, -0.9, -0.7]),
    ):
        torch.testing.assert_close(values_T, torch.tensor(expected))
    for denominator in ("token", "constant"):
        (other,) = pack([second, first], 7, denominator=denominator)  # type: ignore[arg-type]
        assert other.weights_T.equal(other.mask_T)
        assert other.ref_logprobs_T.abs().sum() == 0
    (padded,) = pack_padded([second, first], 8)
    assert padded.token_ids_T.tolist() == [1, 0, 0, 0, 5, 6, 7, 8]
    assert padded.targets_T.tolist() == [2, 0, 0, 0, 6, 7, 8, 9]
    assert padded.mask_T.tolist() == [1, 0, 0, 0, 0, 0, 1, 1]
    assert padded.segment_lengths_S.tolist() == [4, 4]


@given(LENGTHS, st.integers(32, 80), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_every_sample_is_packed_once_within_the_budget(shapes: list[tuple[int, int]], budget: int, ranks: int) -> None:
    samples = samples_of(shapes)
    packed = of_all_ranks(samples, budget, ranks)
    assert len({len(micros) for micros in packed}) == 1  # ranks stay in step
    assert len(packed[0]) >= 1
    micros = [micro for share in packed for micro in share]
    assert sorted(i for micro in micros for i in micro.sample_index_S) == list(range(len(samples)))
    found = {}
    for micro in micros:
        assert 1 <= micro.token_ids_T.numel() <= budget
        assert micro.segment_lengths_S.sum() == micro.token_ids_T.numel()
        lengths = micro.segment_lengths_S.tolist()
        for index, *rows in zip(
            micro.sample_index_S, micro.token_ids_T.split(lengths), micro.targets_T.split(lengths), strict=False
        ):
            found[index] = rows
        if not micro.sample_index_S:
            assert micro.token_ids_T.numel() == 1
            assert micro.mask_T.sum() == 0
    for index, original in enumerate(samples):
        tokens = [*original.prompt_ids.tolist(), *original.response_ids.tolist()]
        assert [row.tolist() for row in found[index]] == [tokens[:-1], tokens[1:]]
    trained = sum(float(micro.mask_T.sum()) for micro in micros)
    assert trained == sum(len(s.response_ids) for s in samples)
    assert sum(float(micro.weights_T.sum()) for micro in micros) == pytest.approx(len(samples))


@given(LENGTHS, st.integers(32, 80), st.integers(1, 3), st.booleans())
@settings(max_examples=40, deadline=None)
def test_unpacking_gives_back_each_samples_values(
    shapes: list[tuple[int, int]], budget: int, ranks: int, padded: bool
) -> None:
    samples = samples_of(shapes)
    found = {}
    for rank in range(ranks):
        for micro in (pack_padded if padded else pack)(samples, budget, rank=rank, ranks=ranks):
            found |= unpack_responses(micro.sampler_logprobs_T, micro)
    assert found.keys() == set(range(len(samples)))
    for index, original in enumerate(samples):
        np.testing.assert_array_equal(found[index], original.sampler_logprobs)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_ranks_are_balanced(lengths: list[int], ranks: int) -> None:
    plan = plan_packing(lengths, 64, ranks)
    tokens = [sum(lengths[i] for micro in rank for i in micro) for rank in plan.ranks]
    # Longest-first greedy: the fullest rank got its last sequence while it was the emptiest.
    assert max(tokens) - min(tokens) <= max(lengths)
    for rank in plan.ranks:
        fills = [sum(lengths[i] for i in micro) for micro in rank]
        assert fills == sorted(fills, reverse=True)
        # Best fit: at most one micro-batch with samples is half empty.
        assert sum(0 < fill <= 32 for fill in fills) <= 1


def test_best_fit_takes_the_tightest_gap() -> None:
    # 56 and 50 open two micro-batches; 8 fits both and belongs where it leaves no room, 6 then fits the other only.
    assert plan_packing([6, 56, 8, 50], 64, 1).ranks == (((1, 2), (3, 0)),)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30)), min_size=1, max_size=60), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_responses_to_one_prompt_stay_together_where_that_costs_little(
    shapes: list[tuple[int, int]], ranks: int
) -> None:
    lengths, prompts = [length for _, length in shapes], [str(prompt) for prompt, _ in shapes]
    plan, alone = plan_packing(lengths, 64, ranks, prompts), plan_packing(lengths, 64, ranks)

    def steps(of: PackingPlan) -> int:
        return sum(max(sum(lengths[i] for i in m) for m in micros) for micros in zip(*of.ranks, strict=True))

    assert sorted(i for rank in plan.ranks for micro in rank for i in micro) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in micro) <= 64 for rank in plan.ranks for micro in rank)
    assert steps(plan) <= 1.02 * steps(alone)
    places = [{prompts[i] for i in micro} for rank in plan.ranks for micro in rank]
    if plan != alone:
        assert sum(map(len, places)) == len(set(prompts))  # each in one micro-batch


def test_whole_groups_are_dealt() -> None:
    # Dealt one by one both prompts would be on both ranks.
    assert plan_packing([5, 5, 5, 5], 20, 2).ranks == (((0, 2),), ((1, 3),))
    assert plan_packing([5, 5, 5, 5], 20, 2, ["a", "a", "b", "b"]).ranks == (((0, 1),), ((2, 3),))
    assert plan_packing([5, 5, 5, 5], 10, 2, ["a", "a", "b", "b"]).ranks == (((0, 1),), ((2, 3),))  # filled to the last
    # One of four and one of two: two ranks would wait for the longer one.
    assert plan_packing([5] * 6, 20, 2, ["a"] * 4 + ["b"] * 2) == plan_packing([5] * 6, 20, 2)


def test_no_samples_still_make_one_step_on_every_rank() -> None:
    for share in of_all_ranks([], 8, 3):
        assert [micro.sample_index_S for micro in share] == [()]


def test_padded_rows_keep_the_order_and_the_budget() -> None:
    samples = samples_of([(2, 3), (2, 20), (2, 2), (2, 3)])
    micros = pack_padded(samples, 44)
    assert [micro.sample_index_S for micro in micros] == [(0, 1), (2, 3)]
    assert [micro.segment_lengths_S.tolist() for micro in micros] == [[21, 21], [4, 4]]
    shares = [pack_padded(samples, 44, rank=rank, ranks=2) for rank in range(2)]
    assert [[micro.sample_index_S for micro in share] for share in shares] == [[(0, 2)], [(1, 3)]]


@pytest.mark.parametrize("packer", [pack, pack_padded])
def test_a_sample_over_the_budget_is_the_users_error(packer: object) -> None:
    with pytest.raises(UserError, match=r"token_budget: got 30; must hold the longest sequence, 31 tokens"):
        packer(samples_of([(4, 4), (12, 20)]), 30)  # type: ignore[operator]


def test_arrays_that_disagree_are_refused() -> None:
    good = sample(2, 3, "name")
    with pytest.raises(ValueError, match="'name': 2 sampler logprobs for 3 tokens"):
        pack([replace(good, sampler_logprobs=np.zeros(2, np.float32))], 8)
    with pytest.raises(ValueError, match="0 prompt"):
        pack([replace(good, prompt_ids=np.zeros(0, np.int32))], 8)
    with pytest.raises(UserError, match="learner ranks"):
        pack([good], 8, ranks=0)


def test_documents() -> None:
    documents = [np.array([7, 8, 9], np.int32), np.array([4, 5, 6, 7], np.int32)]
    marks = [np.array([0, 0, 1], np.int32), np.array([1, 1, 0, 1], np.int32)]
    (micro,) = pack_documents(documents, 8)
    assert micro.mask_T.tolist() == [1, 1, 1, 0, 1, 1, 0]
    assert micro.targets_T.tolist() == [5, 6, 7, 0, 8, 9, 0]
    (micro,) = pack_documents(documents, 8, trained=marks)
    assert micro.mask_T.tolist() == [1, 0, 1, 0, 0, 1, 0]


def test_documents_are_dealt_to_ranks_and_have_nothing_of_reinforcement_learning() -> None:
    documents = [np.arange(10 * i, 10 * i + n, dtype=np.int32) for i, n in enumerate((3, 5, 2, 4))]
    shares = [pack_documents(documents, 8, rank=rank, ranks=2) for rank in range(2)]
    assert [[micro.sample_index_S for micro in share] for share in shares] == [[(1, 2)], [(3, 0)]]
    assert [micro.sample_index_S for micro in pack_documents(documents, 8)] == [(1, 0), (3, 2)]
    (micro,) = shares[1]
    assert micro.token_ids_T.tolist() == [30, 31, 32, 33, 0, 1, 2]
    assert (micro.segment_lengths_S.tolist(), micro.position_ids_T.tolist()) == ([4, 3], [0, 1, 2, 3, 0, 1, 2])
    assert type(micro) is MicroBatch
    with pytest.raises(ValueError, match="2 marks for 3 tokens"):
        pack_documents(documents[:1], 8, trained=[np.ones(2, np.int32)])


@pytest.mark.parametrize("denominator", ["response", "token", "constant"])
def test_padded_rows_carry_the_signal_that_packed_ones_carry(denominator: Denominator) -> None:
    samples = samples_of([(3, 2), (1, 4), (2, 1)])
    samples[1] = replace(samples[1], old_logprobs=np.float32([-1, -2, -3, -4]))
    ref = [np.full(len(s.response_ids), i + 0.5, np.float32) for i, s in enumerate(samples)]
    (packed,) = pack(samples, 64, denominator=denominator, ref_logprobs=ref)
    (padded,) = pack_padded(samples, 64, denominator=denominator, ref_logprobs=ref)
    for name in ("weights_T", "advantages_T", "old_logprobs_T", "sampler_logprobs_T", "ref_logprobs_T", "targets_T"):
        one, other = (unpack_responses(getattr(micro, name), micro) for micro in (packed, padded))
        assert {i: one[i].tolist() for i in range(3)} == {i: other[i].tolist() for i in range(3)}, name
    assert unpack_responses(padded.ref_logprobs_T, padded)[2].tolist() == [2.5]
    assert unpack_responses(padded.old_logprobs_T, padded)[1].tolist() == [-1, -2, -3, -4]
    (unknown,) = pack_padded(samples, 64)
    assert unknown.ref_logprobs_T.tolist() == [0] * 12
    assert unpack_responses(unknown.weights_T, unknown)[0].tolist() == [0.5, 0.5]


def test_a_refused_plan_names_key_and_value() -> None:
    with pytest.raises(UserError) as budget:
        plan_packing([3, 5], 4, 1)
    assert (budget.value.where, budget.value.value) == ("token_budget", 4)
    with pytest.raises(UserError) as ranks:
        plan_packing([3], 4, 0)
    assert (ranks.value.where, ranks.value.value) == ("learner ranks", 0)
    assert plan_packing([4], 4, 1).ranks == (((0,),),)
    assert plan_packing([], 0, 2).ranks == (((),), ((),))


def test_to_device_moves_every_tensor() -> None:
    (micro,) = pack(samples_of([(2, 3)]), 8)
    moved = to_device(micro, "meta")
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 10
    assert all(tensor.is_meta for tensor in tensors)
    assert moved.sample_index_S == micro.sample_index_S
