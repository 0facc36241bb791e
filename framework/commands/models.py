"""Commands that take a model: chat, serve, check."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from framework.errors import EXIT_DONE, EXIT_FAILED, UserError


def chat(arguments: argparse.Namespace) -> int:
    """Talk to a checkpoint on this terminal."""
    checkpoint = find_checkpoint(Path(arguments.checkpoint))
    from framework.engines import serving

    serving.chat(checkpoint)
    return EXIT_DONE


def serve(arguments: argparse.Namespace) -> int:
    """Serve a checkpoint behind OpenAI's protocol."""
    checkpoint = find_checkpoint(Path(arguments.checkpoint))
    from framework.engines import serving

    serving.serve(checkpoint, arguments.host, arguments.port)
    return EXIT_DONE


def check(arguments: argparse.Namespace) -> int:
    """Publish a model's weights, update its samplers, and compare every logprob of learner and sampler."""
    from framework.config import compose

    if arguments.what != "sync":
        raise UserError("check", arguments.what, "must be sync")
    config = compose(["job=grpo", *arguments.overrides], arguments.config_dir)
    return EXIT_DONE if importlib.import_module("jobs.check_sync").main(config) else EXIT_FAILED


def find_checkpoint(path: Path) -> Path:
    """Return a checkpoint directory: `path` itself, or the last checkpoint of the run in it, the newest of its place.

    Raises UserError if there is none, or a file of it is missing or damaged.
    """
    from framework.artifacts import MANIFEST, Artifact, Checkpoint
    from framework.observe.collect import places

    if not path.is_dir():
        raise UserError("checkpoint", str(path), "must be a checkpoint directory, or a run's directory")
    if (path / "artifacts").is_dir():
        found = sorted(path.glob(f"artifacts/[!.]*/*/{MANIFEST}"), key=lambda file: file.stat().st_mtime)
        manifests = {file.parent: Artifact(file.parent).manifest() for file in found}
        place = places(manifests.values())
        checkpoints = {path: m for path, m in manifests.items() if m.type == Checkpoint.__name__}
        if not checkpoints:
            raise UserError("checkpoint", str(path), "this run has no finished checkpoint yet")
        path = sorted(checkpoints, key=lambda path: place(checkpoints[path]))[-1]
    return Checkpoint(path).check().path
