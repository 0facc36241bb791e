"""Who may import whom, read from the syntax trees; and that importing light parts loads no engine."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FIRST = (
    "inherit",
    "types",
    "stored",
    "artifacts",
    "protocols",
    "errors",
    "bounds",
    "convert",
    "keys",
    "named_groups",
    "files",
    "rotation",
    "streams",
)
PURE = ("algorithms", "data", "rewards", "models")
GRAPH = ("graph", "actors")  # actors: what stands between the driver and any of its Ray actors
# A layer may import itself and what is listed. `graph` knows no stage; stages know its Runtime and ClusterConfig.
ALLOWED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(FIRST, FIRST),
    **dict.fromkeys(PURE, (*FIRST, *PURE)),
    "graph": FIRST,
    "actors": (*FIRST, "graph"),
    "objectives": (*FIRST, *PURE),
    "engines": (*FIRST, *PURE, "objectives"),
    "roles": (*FIRST, *PURE, *GRAPH, "objectives", "engines", "observe"),
    "observe": (*FIRST, *PURE, *GRAPH),
    "stages": (*FIRST, *PURE, *GRAPH, "objectives", "engines", "roles", "observe"),
    "targets": (*FIRST, *PURE),
    "config": (*FIRST, *PURE, *GRAPH, "targets"),
    "about": (*FIRST, *PURE, *GRAPH, "config"),
    "__main__": ("cli", "streams"),
    "commands": (*FIRST, *PURE, *GRAPH, "engines", "roles", "observe", "config", "about", "targets"),
    "cli": ("errors", "commands", "about", "streams"),
}
HYDRA = ("hydra", "omegaconf")
HEAVY = ("ray", "vllm", "deepspeed", "hydra", "omegaconf", "transformers", "wandb")
FILES = sorted((ROOT / "framework").rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, anywhere in it, with the line; `from a.b import c` counts as a.b.c."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def layer(file: Path) -> str:
    part = file.relative_to(ROOT / "framework").parts[0]
    return part.removesuffix(".py")


def violations(source: str, here: str) -> list[str]:
    """Imports of `source`, a file of layer `here`, that its layer does not allow."""
    found = []
    for module, line in imported(ast.parse(source)):
        top, *rest = module.split(".")
        if top == "jobs" and here != "commands":
            found.append(f"{line}: {module}")
        if top == "framework" and rest and rest[0] != here and rest[0] not in ALLOWED[here]:
            found.append(f"{line}: {module}")
        if top in HYDRA and here != "config":
            found.append(f"{line}: {module}")
        if top in HEAVY and here in (*FIRST, "algorithms", "objectives", "rewards", "graph") and top != "transformers":
            found.append(f"{line}: {module}")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_imports_point_down(file: Path) -> None:
    if layer(file) == "__init__":
        return
    assert violations(file.read_text(), layer(file)) == []


def test_every_part_of_the_framework_has_a_layer() -> None:
    assert {layer(file) for file in FILES} - {"__init__"} <= set(ALLOWED)


@pytest.mark.parametrize(
    ("here", "source"),
    [
        ("algorithms", "import ray"),
        ("algorithms", "def f():\n    from framework.engines import weights"),
        ("objectives", "from framework.engines.deepspeed_engine import TrainingEngine"),
        ("algorithms", "from framework.objectives.grpo import Grpo"),
        ("objectives", "import deepspeed"),
        ("engines", "from framework.roles.learner import Learner"),
        ("graph", "from framework.models.spec import ModelConfig"),
        ("graph", "import framework.stages.grpo"),
        ("roles", "import omegaconf"),
        ("stages", "from jobs.r1_zero import build"),
    ],
)
def test_a_violation_is_seen(here: str, source: str) -> None:
    assert violations(source, here)


@pytest.mark.parametrize(
    "module",
    [
        "framework.algorithms.policy_loss",
        "framework.objectives.rloo",
        "framework.config",
        "framework.cli",
        "framework.graph.runner",
        "framework.graph.plan",
        "framework.models.spec",
        "framework.engines.vllm_engine",
        "framework.engines.deepspeed_engine",
    ],
)
def test_light_imports_stay_light(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{m.split('.')[0] for m in sys.modules}} & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_files_stay_short(file: Path) -> None:
    assert len(file.read_text().splitlines()) < 400
