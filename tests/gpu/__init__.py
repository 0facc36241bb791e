"""What the first hour on a GPU should show. Each test runs small on the CPU too, so that it does not rot."""

from __future__ import annotations

from typing import Any

import pytest
import torch


def needs(gpus: int) -> list[Any]:
    """Marks of a test that needs so many CUDA devices."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    reason = f"needs {gpus} CUDA device{'s' if gpus > 1 else ''}, here are {found}; see tests/gpu/README.md"
    return [pytest.mark.gpu, pytest.mark.skipif(found < gpus, reason=reason)]


def devices(gpus: int = 1) -> Any:
    """Parametrize `device`: "cpu", and "cuda" where there are GPUs."""
    return pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs(gpus))])
