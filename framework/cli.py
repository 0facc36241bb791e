"""The `framework` command. Exit codes: 0 done, 1 failed, 2 the input was wrong, 130 stopped and resumable."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import shlex
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from framework.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_STOPPED,
    FrameworkError,
    UserError,
    did_you_mean,
)

COMMANDS = ("plan", "run", "submit", "keys", "report", "score", "check", "chat", "serve", "bench", "completion")
STOP_WAIT_S = 600  # between SIGTERM and SIGKILL of a Ray job: time to write a checkpoint
logger = logging.getLogger("framework")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; every error is one line on stderr."""
    try:
        with _sigterm_as_interrupt():
            return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        print("framework: interrupted; the same command resumes", file=sys.stderr)
        return EXIT_STOPPED
    except Exception as error:
        return _explain(error)
    finally:
        logger.handlers.clear()  # of this command: a caller's next one has another terminal


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, from its first moment on; a run then stops at its next safe point."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _dispatch(argv: list[str]) -> int:
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        raise UserError("command", argv[0], f"{did_you_mean(argv[0], COMMANDS)}commands: {', '.join(COMMANDS)}")
    if argv[:1] == ["bench"] and argv[1:] and not argv[1].startswith("-"):
        return bench(argv[1], argv[2:])  # whose options, --help too, are its own
    arguments, rest = _parser().parse_known_args(argv)
    overrides = getattr(arguments, "overrides", None)
    if overrides is None and rest:
        raise UserError("argument", rest[0], f"see framework {arguments.command} --help")
    if overrides is not None:  # argparse takes no second run of positionals behind an option
        options = [item for item in rest if item.startswith("-")]
        if options:
            raise UserError("option", options[0], f"see framework {arguments.command} --help")
        overrides.extend(rest)
    handlers = {"plan": plan, "run": run, "submit": submit, "keys": keys, "report": report, "score": score}
    handlers |= {"check": check, "chat": chat, "serve": serve, "bench": list_benchmarks, "completion": complete}
    return handlers[arguments.command](arguments)


def plan(arguments: argparse.Namespace) -> int:
    """Print what `run` would do; needs no GPU and starts nothing."""
    from framework.graph.plan import describe_plan, look_ahead
    from framework.models.estimate import describe_parameters

    config, graph = _load(arguments)
    title = f"job {config.job.name}, run directory {config.run_dir}"
    if config.model is not None:
        title += f"\nmodel {config.model.name}: {describe_parameters(config.model)}"
    tried = look_ahead(graph)
    print("\n".join([describe_plan(graph, config.cluster, title), "", *tried]).rstrip())
    return EXIT_DONE


def run(arguments: argparse.Namespace) -> int:
    """Run the graph in this process; finished stages are skipped."""
    from framework.convert import to_plain
    from framework.graph.ownership import owned
    from framework.graph.plan import look_ahead
    from framework.graph.runner import Runner
    from framework.graph.stop import CLEAN_UP_S, StopFlag
    from framework.graph.store import Store, disk_errors
    from framework.observe.collect import collect
    from framework.observe.outcome import outcome
    from framework.observe.progress import awaiting
    from framework.observe.report import write_report
    from framework.observe.tracking import RunTracking
    from framework.observe.wandb_sink import check_tracking
    from framework.roles.cluster import ray_session

    config, graph = _load(arguments)
    if config.tracking is not None:
        check_tracking(config.tracking)
    plain, stop = to_plain(config), StopFlag(config.cluster.deadlines.stop + CLEAN_UP_S)
    with ExitStack() as stack:
        stack.enter_context(stop.on_signals())
        with disk_errors(config.run_dir):
            store = Store(config.run_dir, stack.enter_context(owned(config.run_dir, _taken_over)))
        again = arguments.rerun_changed
        runner = Runner(
            graph, store, config.cluster, config.seed, should_stop=stop, allow_s=stop.allow, rerun_changed=again
        )
        with store.claim(plain):
            if not runner.is_finished():
                look_ahead(graph)
                with awaiting("Ray to start, or to answer"):
                    stack.enter_context(ray_session(config.cluster))
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
    from framework.graph.plan import look_ahead

    config, graph = _load(arguments)
    look_ahead(graph)
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    options = ["--config-dir", str(arguments.config_dir)] if arguments.config_dir else []
    options += ["--rerun-changed"] if arguments.rerun_changed else []
    try:
        client = JobSubmissionClient(arguments.address)
        job = client.submit_job(
            entrypoint=shlex.join(["framework", "run", *arguments.overrides, *options]),
            runtime_env={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}},
            metadata={"run": config.run},
        )
    except AuthenticationError as error:
        found = "one that it refuses" if "RAY_AUTH_TOKEN" in os.environ else "not set"
        raise UserError("RAY_AUTH_TOKEN", found, "must be the cluster's token, with RAY_AUTH_MODE=token") from error
    except (ConnectionError, RuntimeError) as error:
        raise UserError(
            "--address", arguments.address, f"must be a Ray dashboard, e.g. http://head:8265 ({error})"
        ) from None
    print(f"{job} submitted; follow it with: ray job logs --follow --address {arguments.address} {job}")
    return EXIT_DONE


def report(arguments: argparse.Namespace) -> int:
    """Write the run's report, or of several runs a comparison, and print where it is."""
    from framework.observe.comparison import write_comparison
    from framework.observe.report import write_report

    runs = [_run_dir(run) for run in arguments.runs]
    print(write_report(runs[0]) if len(runs) == 1 else write_comparison(runs))
    return EXIT_DONE


def score(arguments: argparse.Namespace) -> int:
    """Print what the rewards give to the responses in a file, a JSON line each."""
    from framework.config import compose
    from framework.rewards.base import RewardConfig
    from framework.roles.score import score_file

    rewards = compose(arguments.overrides, arguments.config_dir).reward
    if not isinstance(rewards, RewardConfig):
        raise UserError("reward", type(rewards).__name__, "must be a framework.rewards.base.RewardConfig")
    score_file(Path(arguments.file), rewards, sys.stdout)
    return EXIT_DONE


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


def find_checkpoint(path: Path) -> Path:
    """Return a checkpoint directory: `path` itself, or the newest checkpoint of the run in it.

    Raises UserError if there is none, or a file of it is missing or damaged.
    """
    from framework.artifacts import MANIFEST, Artifact, Checkpoint

    if not path.is_dir():
        raise UserError("checkpoint", str(path), "must be a checkpoint directory, or a run's directory")
    if (path / "artifacts").is_dir():
        found = sorted(path.glob(f"artifacts/[!.]*/*/{MANIFEST}"), key=lambda file: file.stat().st_mtime)
        artifacts = [Artifact(file.parent) for file in found]
        checkpoints = [artifact.path for artifact in artifacts if artifact.manifest().type == Checkpoint.__name__]
        if not checkpoints:
            raise UserError("checkpoint", str(path), "this run has no finished checkpoint yet")
        path = checkpoints[-1]
    return Checkpoint(path).check().path


def _load(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Compose the configuration, build its graph and check both; creates nothing."""
    from framework.config import build_graph, compose
    from framework.convert import to_plain
    from framework.graph.store import Store

    config = compose(arguments.overrides, arguments.config_dir, weights=arguments.command != "plan")
    graph = build_graph(config)
    graph.check()
    Store(config.run_dir).check_place()
    if arguments.command == "run":
        Store(config.run_dir).check_owner(to_plain(config))
    return config, graph


def _run_dir(run: str) -> Path:
    return Path(run) if Path(run).is_dir() or "/" in run else Path("runs") / run


def _taken_over(other: object) -> NoReturn:
    """End at once: two drivers that save into one directory would leave a checkpoint of neither."""
    print(f"framework: this run was taken over by {other}, which took this process for dead: ended", file=sys.stderr)
    sys.stderr.flush()
    os._exit(EXIT_FAILED)


def _log_to(file: Path) -> None:
    """Log to stderr and to the run's own file."""
    from framework.graph.store import disk_errors

    with disk_errors(file):
        to_file = logging.FileHandler(file)
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    to_terminal = logging.StreamHandler()
    to_terminal.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.handlers[:] = [to_file, to_terminal]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _explain(error: BaseException) -> int:
    """Print one line about `error`, write its traceback to a file if the user isn't to blame; return the exit code."""
    cause = getattr(error, "cause", None)  # Ray wraps what an actor raised
    known = error if isinstance(error, FrameworkError) else cause
    code = known.exit_code if isinstance(known, FrameworkError) else EXIT_FAILED
    shown = cause if isinstance(cause, BaseException) else error
    message = " ".join(str(shown).split()) or type(shown).__name__
    if not isinstance(known, FrameworkError):
        message = f"{type(shown).__name__}: {message}"
    if code == EXIT_FAILED:
        folders = [Path(file.baseFilename).parent for file in logger.handlers if isinstance(file, logging.FileHandler)]
        folder = next(iter(folders), None)  # the run's, once it has one
        with tempfile.NamedTemporaryFile("w", prefix="framework-", suffix=".log", dir=folder, delete=False) as log:
            log.writelines(traceback.format_exception(error))
        message = f"{message} (traceback: {log.name})"
    print(f"framework: {message}", file=sys.stderr)
    return code


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from framework.about import describe_version

        print(describe_version())
        parser.exit()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError("command line", " ".join(sys.argv[1:]), f"{message}; see framework --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="framework", description="Train reasoning models by DeepSeek's published recipe.")
    parser.add_argument("--version", action=_Version, nargs=0, help="versions of this code and its engines")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    helps = {"plan": "say what a run would do and cost", "run": "run or resume a job", "submit": "run as a Ray job"}
    helps |= {"keys": "list settings with type, bounds, default, doc and source"}
    for name, text in helps.items():
        command = commands.add_parser(name, help=text)
        words = "job=r1_zero stage.grpo" if name == "keys" else "job=r1_zero model=v3_tiny seed=1"
        command.add_argument("overrides", nargs="*", help=f"e.g. {words}")
        command.add_argument("--config-dir", type=Path, help="a directory with further yaml files in conf/'s groups")
        if name in ("run", "submit"):
            text = "make anew what other code made; by default finished and begun stages survive a change of code"
            command.add_argument("--rerun-changed", action="store_true", help=text)
        if name == "submit":
            command.add_argument("--address", required=True, help="Ray dashboard, e.g. http://head:8265")
    command = commands.add_parser("check", help="compare learner and sampler after weight updates")
    command.add_argument("what", help="sync")
    command.add_argument("overrides", nargs="*", help="base=DIR, and e.g. cluster=node8")
    command.add_argument("--config-dir", type=Path, help="a directory with further yaml files in conf/'s groups")
    command = commands.add_parser("score", help="say what the rewards give to responses in a file")
    command.add_argument("file", help="JSON lines of id, task, prompt, answer, response")
    command.add_argument("overrides", nargs="*", help="e.g. reward=rule reward.time_limit_s=2")
    command.add_argument("--config-dir", type=Path, help="a directory with further yaml files in conf/'s groups")
    command = commands.add_parser("report", help="write a run's HTML report, or compare runs")
    command.add_argument("runs", nargs="+", metavar="run", help="its directory or name")
    commands.add_parser("chat", help="talk to a checkpoint").add_argument("checkpoint", help="or a run's directory")
    command = commands.add_parser("serve", help="serve a checkpoint")
    command.add_argument("checkpoint", help="or a run's directory")
    command.add_argument("--host", default="127.0.0.1")
    command.add_argument("--port", type=int, default=8000)
    commands.add_parser("bench", help="list the benchmarks; bench NAME runs one, bench NAME --help says how")
    command = commands.add_parser("completion", help='eval "$(framework completion bash)"')
    command.add_argument("shell", choices=["bash"])
    return parser


if __name__ == "__main__":
    sys.exit(main())
