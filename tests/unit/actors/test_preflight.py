from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from framework.actors.preflight import GIB, MARK, Look, faults, look, missing_nodes
from framework.graph.cluster import ClusterConfig

GOOD = Look("n1", "1.0 (abc)", {"torch": "2.13.0"}, "", 100 * GIB, (80 * GIB,) * 8, 1000.0)
ON = ClusterConfig(num_nodes=2, gpus_per_node=8, cpus=192, object_store_gib=64)
RAY = {"GPU": 8.0, "object_store_memory": 64.0 * GIB}


def told(found: Look, resources: dict[str, float] | None = None, cluster: ClusterConfig = ON) -> list[str]:
    return faults(found, GOOD, cluster, RAY if resources is None else resources, 999.0)


def test_a_good_node_is_passed_over_in_silence() -> None:
    assert told(GOOD) == []
    assert told(replace(GOOD, gpu_memory=())) == []  # logical GPUs
    assert told(replace(GOOD, gpu_memory=(), shm=0), {"object_store_memory": 1.0}) == []  # a head without GPUs


@pytest.mark.parametrize(
    ("found", "resources", "says"),
    [
        (replace(GOOD, code="1.1 (def)"), RAY, r"has framework 1\.1 \(def\), the driver has 1\.0 \(abc\)"),
        (replace(GOOD, engines={"torch": "2.12.0"}), RAY, r"has torch 2\.12\.0, the driver has 2\.13\.0"),
        (replace(GOOD, engines={}), RAY, r"has torch none, the driver has 2\.13\.0"),
        (replace(GOOD, run_dir="does not see it"), RAY, "does not see it"),
        (replace(GOOD, shm=64 * 2**20), RAY, r"/dev/shm has 0\.06 GiB, 64\.0 are needed"),
        (replace(GOOD, clock=900.0), RAY, "clock is 99 s behind"),
        (replace(GOOD, clock=1100.0), RAY, "clock is 100 s ahead"),
        (replace(GOOD, gpu_memory=(80 * GIB,) * 7), RAY, "driver reports 7 GPUs, Ray was told of 8"),
        (replace(GOOD, gpu_memory=(40 * GIB,) * 8), RAY, r"40 GiB, cluster\.gpu_memory_gib=80"),
        (GOOD, {**RAY, "object_store_memory": 9.0 * GIB}, r"store has 9\.0 GiB, cluster\.object_store_gib=64"),
    ],
)
def test_each_fault_is_named(found: Look, resources: dict[str, float], says: str) -> None:
    (line,) = told(found, resources)
    assert re.search(says, line), line


def test_nodes_that_lack_gpus_are_counted() -> None:
    assert missing_nodes(ON, [{"GPU": 8.0}, {"GPU": 8.0}, {}]) == []
    assert missing_nodes(ON, [{"GPU": 16.0}]) == []
    (line,) = missing_nodes(ON, [{"GPU": 8.0}, {"GPU": 4.0}])
    assert line == "1 nodes of 8 GPUs are missing: those of the cluster have 8, 4"
    assert missing_nodes(ClusterConfig(), [{}]) == []


def test_a_run_directory_that_is_not_shared_is_told_from_one_that_is(tmp_path: Path) -> None:
    (tmp_path / f"{MARK}-t").write_text("t")
    assert look(str(tmp_path), "t").run_dir == ""
    assert list(tmp_path.glob(f"{MARK}-t-*"))
    assert "has another directory" in look(str(tmp_path), "other").run_dir
    assert "does not see the run directory" in look(str(tmp_path / "gone"), "t").run_dir
