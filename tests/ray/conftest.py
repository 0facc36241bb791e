"""A local Ray that the tests of a module share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ray_node() -> Iterator[None]:
    import ray

    os.environ.setdefault("RAY_worker_niceness", "0")  # as `start_ray` does: at Ray's 15 a busy machine starves workers
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as directory:  # socket paths must be short
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=directory,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
        )
        yield
        ray.shutdown()
