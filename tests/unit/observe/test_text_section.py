"""The report's part on text, of a set that was really cleaned."""

from __future__ import annotations

from pathlib import Path

from framework.artifacts import TextSet, write_manifest
from framework.data.cleaning import CleanConfig
from framework.data.text.shard_files import Document, document_id, write_text
from framework.graph.cluster import ClusterConfig
from framework.graph.nodes import Runtime
from framework.graph.runner import NullTracker
from framework.observe.collect import collect
from framework.observe.text_section import text_section
from framework.stages.clean import Clean, CleanInputs


def test_what_went_is_shown_with_its_share_and_a_sample(tmp_path: Path) -> None:
    texts = [f"{place} " + " ".join(f"w{place}{word}" for word in range(40)) for place in range(18)]
    texts += [f"{texts[0]} <b>", texts[1].upper()]
    documents = [Document(document_id("", text), text) for text in texts]
    write_text(tmp_path / "in", {"train": documents, "validation": [Document("0" * 32, "another")]})
    out = tmp_path / "run" / "artifacts" / "clean-0123456789ab"
    runtime = Runtime("clean", tmp_path / "work", out, 0, ClusterConfig(), NullTracker(), lambda: False)
    cleaned = Clean(CleanConfig()).run(CleanInputs(TextSet(tmp_path / "in")), runtime).text
    write_manifest(cleaned, "framework.stages.clean.Clean", {}, {}, "0")
    section = text_section(collect(tmp_path / "run"))
    assert "text, 2 shards" in section
    assert '<td class="left">kept</td><td>19</td><td>90.5%</td>' in section
    assert '<td class="left">exact duplicate</td><td>1</td>' in section
    assert '<td class="left">near duplicate</td><td>1</td>' in section
    assert "documents in a cluster of near copies" in section
    assert "<b>" not in section
    assert "&lt;b&gt;" in section or f"{texts[0][:20]}" in section
