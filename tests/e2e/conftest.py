"""One whole R1-Zero run, which the tests of kills start from too."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.runs import SMALL, Run


@pytest.fixture(scope="session")
def ray_dir() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory, ray_dir: Path) -> Iterator[Run]:
    """The R1-Zero job run to its end, once for all tests."""
    run = Run(tmp_path_factory.mktemp("runs"), "whole", ("job=r1_zero", *SMALL), ray_dir)
    run.start()
    try:
        assert run.wait() == 0, run.output[-5000:]
        yield run
    finally:
        run.close()


@pytest.fixture
def grpo_run(whole_run: Run, tmp_path: Path, ray_dir: Path) -> Iterator[Callable[..., Run]]:
    """Call it with overrides to get a run of GRPO alone, from the whole run's base model, not yet started."""
    made = []

    def make(*overrides: str) -> Run:
        start = (
            "job=grpo_only",
            f"stage.start.base={whole_run.artifact('pretrain', 'base')}",
            f"stage.start.prompts={whole_run.artifact('collect', 'prompts')}",
        )
        small = [text for text in SMALL if not text.startswith(("stage.pretrain", "stage.evaluate"))]
        run = Run(tmp_path, "grpo", (*start, *small, *overrides), ray_dir)
        made.append(run)
        return run

    yield make
    for run in made:
        run.close()
