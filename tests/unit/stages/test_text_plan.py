from __future__ import annotations

import re

from framework.data.cleaning import CleanConfig
from framework.graph.cluster import ClusterConfig
from framework.stages.text_plan import text_notes

V3 = 14_800_000_000_000


def hours(note: str) -> float:
    found = re.search(r"([\d,.]+) core hours", note)
    assert found
    return float(found[1].replace(",", ""))


def test_v3s_text_is_counted_in_documents_hours_and_disk() -> None:
    notes = text_notes(V3, CleanConfig(), ClusterConfig(cpus=6144, num_nodes=64), "collect")
    assert list(notes) == ["collect", "clean", "tokenize"]
    assert text_notes(4_000_000, CleanConfig(), ClusterConfig(), "collect") == {}
    assert all("14,800.000 B tokens in about 14,800,000,000 documents" in note for note in notes.values())
    assert all("on 6144 cores" in note for note in notes.values())
    assert "63.6 TB of result" in notes["clean"]
    assert "59.2 TB of result" in notes["tokenize"]


def test_what_is_not_looked_for_costs_nothing_and_half_the_cores_take_twice_as_long() -> None:
    cluster = ClusterConfig(cpus=64)
    whole = text_notes(V3, CleanConfig(), cluster, "collect")["clean"]
    part = text_notes(V3, CleanConfig(exact=False, near_threshold=None), cluster, "collect")["clean"]
    assert hours(part) < hours(whole)
    assert "63.6 TB of work" in part
    assert "63.6 TB of work" not in whole

    def wall(cores: int) -> float:
        found = re.search(
            r"([\d,.]+) h on", text_notes(V3, CleanConfig(), ClusterConfig(cpus=cores), "collect")["clean"]
        )
        assert found
        return float(found[1].replace(",", ""))

    assert abs(wall(32) / wall(64) - 2) < 0.01
