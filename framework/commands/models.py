"""Commands that take a model: sample, chat, serve, check."""

from __future__ import annotations

import argparse
import importlib

from framework.errors import EXIT_DONE, EXIT_FAILED, UserError


def sample(arguments: argparse.Namespace) -> int:
    """Print a model's responses to prompts, and what the rewards give to them, a JSON line each."""
    importlib.import_module("jobs.sample").main(arguments.overrides, arguments.config_dir)
    return EXIT_DONE


def chat(arguments: argparse.Namespace) -> int:
    """Talk to a checkpoint on this terminal."""
    from framework.engines import serving
    from framework.graph.found import find_checkpoint

    serving.chat(find_checkpoint(arguments.checkpoint).path)
    return EXIT_DONE


def serve(arguments: argparse.Namespace) -> int:
    """Serve a checkpoint behind OpenAI's protocol."""
    from framework.engines import serving
    from framework.graph.found import find_checkpoint

    serving.serve(find_checkpoint(arguments.checkpoint).path, arguments.host, arguments.port)
    return EXIT_DONE


def check(arguments: argparse.Namespace) -> int:
    """Publish a model's weights, update its samplers, and compare every logprob of learner and sampler."""
    from framework.config import compose

    if arguments.what != "sync":
        raise UserError("check", arguments.what, "must be sync")
    config = compose(["job=grpo", *arguments.overrides], arguments.config_dir)
    return EXIT_DONE if importlib.import_module("jobs.check_sync").main(config) else EXIT_FAILED
