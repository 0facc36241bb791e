"""Commands that start a job graph, or say what it would do: plan, run, submit."""

from __future__ import annotations

import argparse
import logging
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from framework.errors import EXIT_DONE, EXIT_FAILED
from framework.streams import leave

logger = logging.getLogger("framework")


def plan(arguments: argparse.Namespace) -> int:
    """Print what `run` would do, or the computed settings alone; needs no GPU and starts nothing."""
    from framework.actors.awaiting import checking
    from framework.graph.fit import describe_fits
    from framework.graph.plan import describe_plan, look_ahead
    from framework.models.estimate import describe_parameters

    config, graph, fits = _load(arguments)
    if arguments.fit:
        print(describe_fits(fits) or "nothing is computed: the cluster has no GPUs")
        return EXIT_DONE
    title = f"job {config.job.name}, run directory {config.run_dir}"
    if config.model is not None:
        title += f"\nmodel {config.model.name}: {describe_parameters(config.model)}"
    with checking():
        tried = look_ahead(graph)
    parts = [describe_plan(graph, config.cluster, title), describe_fits(fits), *tried]
    print("\n\n".join(part for part in parts if part))
    return EXIT_DONE


def run(arguments: argparse.Namespace) -> int:
    """Run the graph in this process; finished stages are skipped."""
    from framework.actors.awaiting import awaiting, checking
    from framework.actors.preflight import check_nodes
    from framework.actors.ray_session import ray_address, ray_session
    from framework.convert import to_plain
    from framework.graph.disk import disk_errors
    from framework.graph.ownership import owned
    from framework.graph.plan import look_ahead
    from framework.graph.runner import Runner
    from framework.graph.stop import CLEAN_UP_S, StopFlag
    from framework.graph.store import Store
    from framework.observe.collect import collect
    from framework.observe.outcome import outcome
    from framework.observe.report import write_report
    from framework.observe.tracking import RunTracking
    from framework.observe.wandb_sink import check_tracking

    config, graph, _ = _load(arguments)
    if config.tracking is not None:
        check_tracking(config.tracking)
    plain, stop = to_plain(config), StopFlag(config.cluster.deadlines.stop + CLEAN_UP_S)
    with ExitStack() as stack:
        stack.enter_context(stop.on_signals())
        with disk_errors(config.run_dir):
            store = Store(config.run_dir, stack.enter_context(owned(config.run_dir, partial(_lost, config.run_dir))))
        again = arguments.rerun_changed
        runner = Runner(
            graph, store, config.cluster, config.seed, should_stop=stop, allow_s=stop.allow, rerun_changed=again
        )
        with store.claim(plain):
            if not runner.is_finished():
                with checking():
                    look_ahead(graph)
                stop.check()
                with awaiting("Ray to start, or to answer"), disk_errors(config.run_dir):  # /tmp, as a rule
                    stack.enter_context(ray_session(config.cluster))
                if ray_address(config.cluster):  # a local instance has one node, this one
                    with awaiting("every node to say how it is"), disk_errors(config.run_dir):
                        check_nodes(config.cluster, config.run_dir)
                stop.check()
                if config.tracking is not None:
                    with awaiting("what the run is tracked by to open"):
                        tracking = stack.enter_context(RunTracking(config.tracking, config.run_dir, plain))
                    runner = replace(runner, tracker_of=tracking.tracker)
            _log_to(config.run_dir / "run.log")
        runner.run()
    evaluations = collect(config.run_dir).evaluations
    if evaluations:
        logger.info("held-out prompts:\n%s", outcome(evaluations))
    logger.info("report: %s", write_report(config.run_dir))
    return EXIT_DONE


def submit(arguments: argparse.Namespace) -> int:
    """Hand the same run to a Ray cluster as a job."""
    from framework.commands.submission import submit_job
    from framework.graph.plan import look_ahead

    config, graph, _ = _load(arguments)
    look_ahead(graph)
    options = ["--rerun-changed"] if arguments.rerun_changed else []
    job = submit_job(arguments.address, arguments.overrides, options, config.plugins, arguments.config_dir, config.run)
    print(f"{job} submitted; follow it with: ray job logs --follow --address {arguments.address} {job}")
    return EXIT_DONE


def _load(arguments: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Compose the configuration, build its graph and check both, with what was computed; creates nothing.

    What has not the memory that it needs is planned, but not run.
    """
    from framework.actors.awaiting import checking

    with checking():
        return _loaded(arguments)


def _loaded(arguments: argparse.Namespace) -> tuple[Any, Any, Any]:
    from framework.commands.submission import found_conf
    from framework.config import build_graph, compose_fitted
    from framework.convert import to_plain
    from framework.graph.fit import check_fits
    from framework.graph.plan import check_complete
    from framework.graph.store import Store
    from framework.models.find_base import check_weights

    conf = found_conf(arguments.config_dir)
    config, fits = compose_fitted(arguments.overrides, conf, weights=arguments.command != "plan")
    graph = build_graph(config)
    graph.check()
    if config.base is not None:
        check_weights(config.base)
    Store(config.run_dir).check_place()
    if arguments.command != "plan":
        check_fits(fits)
        check_complete(graph)
    if arguments.command == "run":
        Store(config.run_dir).check_owner(to_plain(config))
    return config, graph, fits


def _lost(run_dir: Path, other: object) -> NoReturn:
    """End at once: two drivers that save into one directory would leave a checkpoint of neither.

    The directory may be gone, too (`other` is None): what is trained could be kept nowhere.
    """
    gone = f"{run_dir} was moved or deleted while it was being worked on: ended"
    taken = f"this run was taken over by {other}, which took this process for dead: ended"
    leave(gone if other is None else taken, EXIT_FAILED)


class _RunLog(logging.FileHandler):
    """The run's own file. A full disk ends a run where it loses something; of the log it is said once."""

    _said = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Say it, in place of a traceback for every line."""
        if not self._said:
            self._said = True
            print(f"framework: {self.baseFilename} cannot be written: {sys.exc_info()[1]}", file=sys.stderr)


def _log_to(file: Path) -> None:
    """Log to stderr and to the run's own file."""
    from framework.graph.disk import disk_errors

    with disk_errors(file):
        to_file = _RunLog(file, encoding="utf-8", errors="backslashreplace")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    to_terminal = logging.StreamHandler()
    to_terminal.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.handlers[:] = [to_file, to_terminal]
    logger.setLevel(logging.INFO)
    logger.propagate = False
