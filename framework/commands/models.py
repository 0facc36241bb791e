"""Commands that take a model: sample, chat, serve, push, check."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import warnings
from dataclasses import fields
from typing import TYPE_CHECKING

from framework.errors import EXIT_DONE, EXIT_FAILED, UserError

if TYPE_CHECKING:
    from framework.engines.serving import TalkOptions


def sample(arguments: argparse.Namespace) -> int:
    """Print a model's responses to prompts, and what the rewards give to them, a JSON line each."""
    importlib.import_module("jobs.sample").main(arguments.overrides, arguments.config_dir)
    return EXIT_DONE


def chat(arguments: argparse.Namespace) -> int:
    """Talk to a checkpoint on this terminal."""
    _hush("ERROR")
    from framework.actors.awaiting import awaiting
    from framework.engines import serving
    from framework.graph.found import find_checkpoint

    found, options = find_checkpoint(arguments.checkpoint, arguments.step), _talk_options(arguments)
    serving.check_checkpoint(found.path)
    print(f"{found.name} ({found.what}): {found.path}", file=sys.stderr)
    serving.chat(found.path, options, found.name, lambda: awaiting("vLLM to start"))
    return EXIT_DONE


def serve(arguments: argparse.Namespace) -> int:
    """Serve a checkpoint behind OpenAI's protocol."""
    _hush("ERROR")
    from framework.engines import serving
    from framework.graph.found import find_checkpoint

    found, options = find_checkpoint(arguments.checkpoint, arguments.step), _talk_options(arguments)
    print(f"{found.name} ({found.what}): {found.path}", file=sys.stderr)
    serving.serve(found.path, arguments.host, arguments.port, options, found.name, arguments.further)
    return EXIT_DONE


def _hush(level: str) -> None:
    """Before PyTorch and vLLM are imported, here or in the process that takes over: they greet, warn and foretell."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", level)
    logging.getLogger("vllm").setLevel(level)  # some of it speaks before vLLM has read its own level
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning,ignore::DeprecationWarning")
    warnings.simplefilter("ignore", FutureWarning)


def push(arguments: argparse.Namespace) -> int:
    """Put a checkpoint on the Hugging Face hub."""
    from framework.graph.found import find_checkpoint, find_run
    from framework.observe.model_card import card_of
    from framework.observe.push import push as push_to_hub

    found = find_checkpoint(arguments.checkpoint, arguments.step)
    print(f"{found.name} ({found.what}): {found.path}", file=sys.stderr)
    card = card_of(arguments.hub_id.rpartition("/")[2], found.path, find_run(arguments.checkpoint))
    print(push_to_hub(found.path, arguments.hub_id, card, arguments.private, arguments.revision))
    return EXIT_DONE


def _talk_options(arguments: argparse.Namespace) -> TalkOptions:
    """The options that were given; raises UserError that names the one that is wrong."""
    from framework.engines.serving import TalkOptions

    names = {item.name for item in fields(TalkOptions)}
    given = {key: value for key, value in vars(arguments).items() if key in names and value is not None}
    try:
        return TalkOptions(**given)
    except UserError as error:
        name = error.where.rpartition(".")[2].replace("_", "-")
        raise UserError(f"--{name}", error.value, error.allowed) from None


def check(arguments: argparse.Namespace) -> int:
    """Publish a model's weights, update its samplers, and compare every logprob of learner and sampler."""
    from framework.config import compose

    if arguments.what != "sync":
        raise UserError("check", arguments.what, "must be sync")
    config = compose(["job=grpo", *arguments.overrides], arguments.config_dir)
    return EXIT_DONE if importlib.import_module("jobs.check_sync").main(config) else EXIT_FAILED
