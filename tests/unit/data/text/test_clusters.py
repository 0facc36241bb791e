"""Connected components over partitions are those of one process, whatever the graph and however it is dealt."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from framework.data.text import clean_steps, clusters, partitions
from framework.data.text.clusters import cluster_name
from framework.data.text.duplicates import DROP, EDGE, PLACE, MinHash, component_drops, near_edges, without_copies
from framework.data.text.partitions import Dealer, dealt, save
from framework.data.text.shard_files import Done, whole_file
from framework.stages import connect
from tests.unit.stages.test_collect import runtime

NODES = 40


def edges_of(pairs: list[tuple[int, int]], rng: random.Random) -> np.ndarray:
    """Pairs of documents whose places are in no order that their numbers have."""
    places = [(rng.randrange(2), rng.getrandbits(64), rng.getrandbits(64), rng.randrange(5), n) for n in range(NODES)]
    found = np.empty(len(pairs), EDGE)
    for row, pair in enumerate(pairs):
        for end, node in zip(("first", "other"), sorted(pair, key=lambda n: places[n]), strict=True):
            for (name, _), value in zip(PLACE, places[node], strict=True):
                found[f"{end}_{name}"][row] = value
    return found


def connected(edges: np.ndarray, files: int, directory: Path) -> tuple[np.ndarray, dict[str, int]]:
    near, found = directory / "near", []
    for number, part in enumerate(np.array_split(edges, files)):
        name = f"edges-{number:05d}.bin"
        with whole_file(near / name) as writer:
            found.append(Done({name: save(writer, part)}))
    place, parts, done = connect.connect(near, found, runtime(directory))
    assert parts > 1
    drops = [np.fromfile(place / f"near-{part:05d}.bin", DROP) for part in range(parts)]
    for of_one in drops:
        assert (np.sort(of_one, order=("shard", "row")) == of_one).all()
    return np.sort(np.concatenate(drops), order=("shard", "row")), dict(done.shown)


GRAPHS = st.lists(st.tuples(st.integers(0, NODES - 1), st.integers(0, NODES - 1)).filter(lambda p: p[0] != p[1]))
CHAIN = [(n, n + 1) for n in range(NODES - 1)]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(GRAPHS, st.integers(1, 3), st.integers(2, 6), st.integers(0, 99))
def test_clusters_over_partitions_are_those_of_one_process(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    pairs: list[tuple[int, int]],
    files: int,
    parts: int,
    seed: int,
) -> None:
    monkeypatch.setattr(connect, "FEW_PAIRS", -1)
    monkeypatch.setattr(connect, "partitions_of", lambda records: parts)
    monkeypatch.setattr(clusters, "_TOGETHER", 3)
    monkeypatch.setattr(partitions, "_BUFFER", 4)
    for graph in (pairs, CHAIN + pairs):
        edges = edges_of(graph, random.Random(seed))
        drops, sizes = connected(edges, files, tmp_path_factory.mktemp("graph"))
        expected, clusters_of = component_drops(np.unique(edges))
        assert (drops == np.sort(expected, order=("shard", "row"))).all()
        assert sizes == {cluster_name(size): count for size, count in clusters_of.items()}


def test_the_records_of_a_partition_come_back_whether_or_not_they_waited_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype = np.dtype([("key", "<u8"), ("value", "<u4")])
    records = np.array([(number * 7919, number) for number in range(100)], dtype)
    for buffer in (8, 1000):
        monkeypatch.setattr(partitions, "_BUFFER", buffer)
        with whole_file(tmp_path / "records") as writer, whole_file(tmp_path / "ends") as ends:
            dealer = Dealer(writer, 7, dtype)
            for start in range(0, 100, 9):
                dealer.add(records[start : start + 9])
            save(ends, dealer.finish())
        for part in range(7):
            found = dealt(tmp_path / "records", tmp_path / "ends", dtype, part)
            assert found.tolist() == records[records["key"] % 7 == part].tolist()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ends", "records"]


def test_copies_that_are_left_out_early_change_no_cluster() -> None:
    rng, minhash = random.Random(1), MinHash(32, 2, 0.5)
    texts = [" ".join(rng.choices("abcdef", k=8)) for _ in range(20)]
    texts += [rng.choice(texts) for _ in range(40)]
    signatures = np.array([minhash.signature(text.split()) for text in texts])
    places = np.array([(0, rng.getrandbits(64), 0, 0, row) for row in range(len(texts))], PLACE)
    entries = minhash.entries(signatures, places)
    few, copies = without_copies(entries)
    assert len(few) < len(entries)
    whole, parted = near_edges(entries, minhash), np.concatenate([copies, near_edges(few, minhash)])
    assert component_drops(np.unique(parted))[0].tolist() == component_drops(whole)[0].tolist()
    assert clean_steps.partitions_of(10**9) > 1
