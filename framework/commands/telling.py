"""Commands that only tell: report, lineage, score, keys, bench, completion."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from framework.commands import COMMANDS
from framework.errors import EXIT_DONE, UserError, did_you_mean


def report(arguments: argparse.Namespace) -> int:
    """Write the run's report, or of several runs a comparison, and print where it is."""
    from framework.observe.comparison import write_comparison
    from framework.observe.report import write_report

    runs = [_run_dir(run) for run in arguments.runs]
    print(write_report(runs[0]) if len(runs) == 1 else write_comparison(runs))
    return EXIT_DONE


def lineage(arguments: argparse.Namespace) -> int:
    """Print the stages behind an artifact, back to raw text."""
    from framework.graph.lineage import describe, find_artifact
    from framework.targets import TargetResolver

    for line in describe(find_artifact(arguments.artifact, arguments.step), TargetResolver()):
        print(line)
    return EXIT_DONE


def score(arguments: argparse.Namespace) -> int:
    """Print what the rewards give to the responses in a file, a JSON line each."""
    from framework.actors.awaiting import checking
    from framework.config import compose_rewards
    from framework.rewards.base import RewardConfig
    from framework.rewards.score_file import score_file

    with checking():
        rewards = compose_rewards(arguments.overrides, arguments.config_dir)
    if not isinstance(rewards, RewardConfig):
        raise UserError("reward", type(rewards).__name__, "must be a framework.rewards.base.RewardConfig")
    score_file(Path(arguments.file), rewards, sys.stdout)
    return EXIT_DONE


def keys(arguments: argparse.Namespace) -> int:
    """Print settings, two lines each."""
    from framework.about import describe_keys

    print(describe_keys(arguments.overrides, arguments.config_dir))
    return EXIT_DONE


def complete(arguments: argparse.Namespace) -> int:
    """Print a completion script."""
    from framework.about import completion

    print(completion(COMMANDS))
    return EXIT_DONE


def list_benchmarks(arguments: argparse.Namespace) -> int:
    """Print each benchmark's name and what it measures."""
    from framework.about import benchmarks

    for name, doc in benchmarks().items():
        print(f"{name:10} {doc}")
    return EXIT_DONE


def bench(name: str, arguments: Sequence[str]) -> int:
    """Run jobs/bench/<name>.py."""
    from framework.about import benchmarks

    names = list(benchmarks())
    if name not in names:
        raise UserError("benchmark", name, f"{did_you_mean(name, names)}benchmarks: {', '.join(names) or 'none'}")
    result = importlib.import_module(f"jobs.bench.{name}").main(list(arguments))
    return EXIT_DONE if result is None else int(result)


def _run_dir(run: str) -> Path:
    return Path(run) if Path(run).is_dir() or "/" in run else Path("runs") / run
