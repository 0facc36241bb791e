"""The order of the data: every row once an epoch, a function of the seed and the place alone, whatever the batches."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.data import shuffle
from framework.data.shards import RowBatch, TokenRows, write_shards
from framework.engines.batch_schedule import BatchRamp, BatchSchedule
from framework.objectives.lm import StreamLm
from framework.objectives.objective import Share

ROW, N_ROWS = 4, 23
RAMPS = st.builds(
    lambda start, grow, tokens: BatchSchedule(start + grow, ROW, BatchRamp(start, tokens)),
    st.integers(1, 6), st.integers(0, 9), st.integers(1, 600),
)  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("shards")
    write_shards(directory, {"train": [list(range(N_ROWS * ROW + 1))]}, vocab_size=512)
    return directory


class CountedRows(TokenRows):
    """Knows how many rows were read."""

    reads = 0

    def read(self, place: int) -> np.ndarray:
        self.reads += 1
        return super().read(place)


def seen(rows: CountedRows, batches: BatchSchedule, steps: range, ranks: int) -> list[list[int]]:
    """Rows (by their first token) that each step trains on, from the micro-batches of all ranks together."""
    found = []
    for step in steps:
        batch, taken, forwards, placeholders = RowBatch(rows, batches.first_row(step), batches.rows_at(step)), [], [], 0
        rows.reads = 0
        for rank in range(ranks):
            micros = list(StreamLm().micro_batches(batch, Share(3 * ROW, rank, ranks)))
            for micro in micros:
                assert float(micro.mask_T.sum()) == len(micro.sample_index_S) * ROW
                taken += [int(first) // ROW for first in micro.token_ids_T[::ROW]] if micro.sample_index_S else []
                placeholders += not micro.sample_index_S
            forwards.append(len(micros))
        assert len(set(forwards)) == 1  # or ranks would wait for each other's experts in vain
        assert rows.reads == batches.rows_at(step) + placeholders  # no rank reads what another trains on
        found.append(sorted(taken))
    return found


@settings(max_examples=40)
@given(RAMPS, st.integers(0, 3), st.integers(1, 7), st.integers(1, 7), st.integers(0, 20))
def test_a_step_sees_the_same_rows_on_any_ranks_and_after_any_resume(
    shards: Path, batches: BatchSchedule, seed: int, ranks: int, others: int, resumed: int
) -> None:
    steps = 25
    whole = seen(CountedRows(shards, "train", ROW, seed), batches, range(steps), ranks)
    again = seen(CountedRows(shards, "train", ROW, seed), batches, range(resumed, steps), others)
    assert whole[resumed:] == again
    assert [len(rows) for rows in whole] == [batches.rows_at(step) for step in range(steps)]
    stream = TokenRows(shards, "train", ROW, seed).batch(0, batches.first_row(steps))[:, 0] // ROW
    ends = [batches.first_row(step) for step in range(steps + 1)]
    assert whole == [sorted(stream[a:b].tolist()) for a, b in itertools.pairwise(ends)]
    for start in range(0, len(stream) - N_ROWS + 1, N_ROWS):  # each epoch has every row once
        assert sorted(stream[start : start + N_ROWS]) == list(range(N_ROWS))


@settings(max_examples=40)
@given(st.integers(1, 600), st.integers(0, 5), st.integers(0, 3))
def test_an_order_without_a_table_has_every_item_once(size: int, seed: int, epoch: int) -> None:
    assert sorted(shuffle._permuted(f"{seed} {epoch}", item, size) for item in range(size)) == list(range(size))


def test_orders_of_seeds_and_epochs_have_nothing_in_common() -> None:
    size = 2000
    orders = [[shuffle._permuted(key, item, size) for item in range(size)] for key in ("0 0", "0 1", "1 0")]
    orders.append(list(range(size)))
    for one, other in itertools.combinations(orders, 2):
        assert abs(np.corrcoef(one, other)[0, 1]) < 4 / size**0.5  # 4 standard deviations of independent orders
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 8  # 1 is expected, with deviation 1
    assert abs(np.corrcoef(orders[0][:-1], orders[0][1:])[0, 1]) < 4 / size**0.5  # nor neighbours with each other


def test_the_rows_of_v3_are_shuffled_without_a_table() -> None:
    size = 14_800_000_000_000 // 4096
    places = range(size - 8, size + 8)  # across the end of an epoch
    found = [shuffle.shuffled(0, place, size) for place in places]
    assert found == [shuffle.shuffled(0, place, size) for place in places]
    assert len(set(found)) == 16
    assert max(found) < size
    assert shuffle._order.cache_info().currsize <= 4


def test_a_sample_is_drawn_from_everywhere_and_repeats() -> None:
    drawn = [list(shuffle.sampled(range(1000), 1000, 100, seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] == sorted(set(drawn[0]))
    assert drawn[0] != drawn[2]
    for sample in drawn:
        assert len(sample) == 100
        assert 5 <= sum(item >= 900 for item in sample) <= 20
    assert list(shuffle.sampled(range(7), 7, 9, 0)) == list(range(7))
