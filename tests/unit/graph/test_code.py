"""What counts as the code of a stage: the modules it is made of, by what they do and not how they look."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.config import build_graph, compose
from framework.graph import code
from framework.graph.code import code_version, modules_behind
from framework.graph.nodes import Graph
from tests.unit import toy_graph


@pytest.fixture(scope="module")
def graph() -> Graph:
    return build_graph(compose([]))


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the framework to edit."""
    shutil.copytree(code.ROOT, tmp_path / "framework", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code, "ROOT", tmp_path / "framework")
    code._read.cache_clear()
    yield tmp_path / "framework"
    code._read.cache_clear()


def versions(graph: Graph) -> dict[str, str]:
    code._read.cache_clear()
    return {node.name: code_version(node.stage) for node in graph.order()}


def test_imports_count_also_those_in_functions_and_those_of_configured_parts(graph: Graph) -> None:
    behind = {node.name: modules_behind(node.stage) for node in graph.order()}
    assert {"framework.roles.rl_loop", "framework.algorithms.advantages", "framework.rewards.format"} <= {
        *behind["grpo"]
    }
    assert "framework.engines.trainer" in behind["pretrain"]
    assert not any(
        part in name for name in behind["pretrain"] for part in (".observe", ".cli", ".graph", ".vllm_engine")
    )


@pytest.mark.parametrize(
    ("file", "old", "new", "reruns"),
    [
        ("algorithms/advantages.py", "1e-6", "1e-7", {"grpo"}),
        ("stages/collect.py", "7919 * seed", "7920 * seed", {"collect"}),
        ("algorithms/advantages.py", "import torch", "# a comment\nimport torch", set()),
        ("algorithms/advantages.py", '"""', '"""Again: ', set()),
        ("observe/charts.py", "annotations", "annotations\nCOLOUR = 1", set()),
        ("graph/plan.py", "annotations", "annotations\nCOLOUR = 1", set()),
    ],
)
def test_an_edit_reruns_what_it_touches(
    graph: Graph, copy: Path, file: str, old: str, new: str, reruns: set[str]
) -> None:
    before, text = versions(graph), (copy / file).read_text()
    assert old in text
    (copy / file).write_text(text.replace(old, new, 1))
    after = versions(graph)
    assert {name for name in after if after[name] != before[name]} == reruns


def test_a_class_from_outside_counts_by_its_own_module() -> None:
    assert "tests.unit.toy_graph" in modules_behind(toy_graph.Train())
    assert "framework.artifacts" in modules_behind(toy_graph.Train())
