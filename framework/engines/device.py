"""Where this process computes: what whoever started it has said, never what PyTorch finds on the machine.

The cluster's settings decide: `cluster.gpus_per_node: 0` means CPU cores, on a machine with GPUs as well. Actors are
told through their environment, by the variable that DeepSpeed itself reads; a process that nobody told is on the CPU.
"""

from __future__ import annotations

import os

DEVICE = "DS_ACCELERATOR"


def on_gpu() -> bool:
    """Whether this process was started for a GPU."""
    return os.environ.get(DEVICE, "cpu") == "cuda"


def device_environment(gpu: bool) -> dict[str, str]:
    """What tells a process where it computes; one for the CPU sees no GPU: Ray leaves them visible to everyone."""
    return {DEVICE: "cuda"} if gpu else {DEVICE: "cpu", "CUDA_VISIBLE_DEVICES": ""}
