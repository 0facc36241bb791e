from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from framework.data.shards import TokenRows, write_shards
from framework.errors import UserError


def make(directory: Path, tokens: int = 101) -> Path:
    documents = [list(range(start, min(start + 7, tokens))) for start in range(0, tokens, 7)]
    write_shards(directory, {"train": documents, "validation": documents[:3]}, vocab_size=512)
    return directory


def test_rows_overlap_by_the_token_that_is_predicted(tmp_path: Path) -> None:
    rows = TokenRows(make(tmp_path), "train", row_tokens=10, seed=0)
    assert rows.n_rows == 10
    seen = {int(row[0]): row for row in rows.batch(0, 10)}
    assert sorted(seen) == list(range(0, 100, 10))
    for first, row in seen.items():
        np.testing.assert_array_equal(row, np.arange(first, first + 11))


def test_order_is_fixed_by_the_seed_and_new_each_epoch(tmp_path: Path) -> None:
    make(tmp_path)
    one, same, other = (TokenRows(tmp_path, "train", 10, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.batch(12, 4), same.batch(12, 4))
    assert not np.array_equal(one.batch(0, 10), other.batch(0, 10))
    assert not np.array_equal(one.batch(0, 10), one.batch(10, 10))
    across = one.batch(7, 7)  # rows 7 to 13: the end of one epoch and the start of the next
    np.testing.assert_array_equal(across, np.concatenate([one.batch(0, 10)[7:], one.batch(10, 10)[:4]]))


def test_damage_is_named(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(UserError, match="at least one row"):
        TokenRows(tmp_path, "validation", 200, 0)
    (tmp_path / "train-00000.bin").write_bytes((tmp_path / "train-00000.bin").read_bytes()[:-2])
    with pytest.raises(UserError, match="damaged"):
        TokenRows(tmp_path, "train", 10, 0)
    (tmp_path / "meta.json").unlink()
    with pytest.raises(UserError, match="meta"):
        TokenRows(tmp_path, "train", 10, 0)
