"""The `framework` command. Exit codes: 0 done, 1 failed, 2 the input was wrong, 130 stopped and resumable."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import logging
import os
import select
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from framework.commands import COMMANDS
from framework.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_STOPPED,
    FrameworkError,
    UserError,
    did_you_mean,
)
from framework.streams import outlive_readers

AT_ONCE = ("plan", "run", "keys", "score", "lineage", "completion")  # commands that have nothing to undo
UNWINDING_S = 50.0  # a command that was asked to stop may take to undo what it has begun

logger = logging.getLogger("framework")


def entry() -> NoReturn:
    """The command as a process of its own.

    Ray, wandb and bars leave threads behind. One that wakes while the interpreter is taken down aborts the process, and
    the exit code would be lost: what is registered for the exit runs, and then nothing more.
    """
    outlive_readers("stderr", *(["stdout"] if sys.argv[1:2] == ["run"] else []))
    code = main()
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):  # a reader that has gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; every error is one line on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with _ended_by_signals(at_once=arguments[:1] != [] and arguments[0] in AT_ONCE):
            return _dispatch(arguments)
    except KeyboardInterrupt:
        print("framework: interrupted; the same command resumes", file=sys.stderr)
        return EXIT_STOPPED
    except Exception as error:
        unread = isinstance(error, BrokenPipeError) and arguments[:1] != ["run"] and _reader_has_gone()
        return EXIT_DONE if unread else _explain(error)
    finally:
        logger.handlers.clear()  # of this command: a caller's next one has another terminal


def _reader_has_gone() -> bool:
    """Whether whoever read standard output (`| head`) has closed it, having seen enough."""
    asked = select.poll()
    try:
        asked.register(sys.stdout, 0)
    except OSError:  # there is no file behind it
        return False
    return any(event & select.POLLERR for _, event in asked.poll(0))


@contextmanager
def _ended_by_signals(at_once: bool) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end a command with 130 from its first moment on.

    What has begun something is ended by an exception, which unwinds it; one that is swallowed on its way, or cannot be
    heard, costs UNWINDING_S at most. `at_once` is for what has begun nothing: an exception amid the imports of engines
    may be swallowed there, or abort the process, so the handlers of `__main__` stay. A run sets handlers of its own
    before it begins.
    """
    stays = at_once and callable(signal.getsignal(signal.SIGTERM))
    if stays or threading.current_thread() is not threading.main_thread():
        yield
        return
    timers: list[threading.Timer] = []

    def unwind(*_: object) -> NoReturn:
        if not timers:
            timers.append(threading.Timer(UNWINDING_S, _give_up))
            timers[0].daemon = True
            timers[0].start()
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    heard = [number for number in numbers if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, unwind) for number in heard}
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _give_up() -> NoReturn:
    """End the process: it was asked to stop and goes on."""
    try:
        os.write(2, b"framework: interrupted; the same command resumes\n")
    finally:
        os._exit(EXIT_STOPPED)


def _dispatch(argv: list[str]) -> int:
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        raise UserError("command", argv[0], f"{did_you_mean(argv[0], COMMANDS)}commands: {', '.join(COMMANDS)}")
    from framework.commands import models, running, telling

    if argv[:1] == ["bench"] and argv[1:] and not argv[1].startswith("-"):
        return telling.bench(argv[1], argv[2:])  # whose options, --help too, are its own
    further: list[str] = []
    if argv[:1] == ["serve"] and "--" in argv:  # what stands behind it is for vLLM
        argv, further = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    arguments, rest = _parser().parse_known_args(argv)
    arguments.further = further
    overrides = getattr(arguments, "overrides", None)
    if overrides is None and rest:
        raise UserError("argument", rest[0], f"see framework {arguments.command} --help")
    if overrides is not None:  # argparse takes no second run of positionals behind an option
        options = [item for item in rest if item.startswith("-")]
        if options:
            raise UserError("option", options[0], f"see framework {arguments.command} --help")
        overrides.extend(rest)
    handlers = {"plan": running.plan, "run": running.run, "submit": running.submit, "keys": telling.keys}
    handlers |= {
        "report": telling.report,
        "lineage": telling.lineage,
        "score": telling.score,
        "bench": telling.list_benchmarks,
    }
    handlers |= {
        "sample": models.sample,
        "check": models.check,
        "chat": models.chat,
        "serve": models.serve,
        "push": models.push,
        "lineage": telling.lineage,
        "completion": telling.complete,
    }
    return handlers[arguments.command](arguments)


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
        message = f"{message} (traceback: {_keep_traceback(error)})"
    print(f"framework: {message}", file=sys.stderr)
    return code


def _keep_traceback(error: BaseException) -> str:
    """Write it into the run's folder, once there is one; where that is full or gone, elsewhere; return the file."""
    folders = [Path(file.baseFilename).parent for file in logger.handlers if isinstance(file, logging.FileHandler)]
    failed: OSError | None = None
    for folder in (*folders[:1], None):
        try:
            with tempfile.NamedTemporaryFile("w", prefix="framework-", suffix=".log", dir=folder, delete=False) as log:
                log.writelines(traceback.format_exception(error))
            return log.name
        except OSError as refused:
            failed = refused
    return f"nowhere, {failed}"


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from framework.about import describe_version

        print(describe_version())
        parser.exit()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError("command line", " ".join(sys.argv[1:]), f"{message}; see framework --help")


def _add_talk_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("checkpoint", help="its directory, or a run's name or directory")
    command.add_argument("--step", type=int, help="of a run: the policy after so many optimizer steps (export_every)")
    command.add_argument("--dtype", help="bfloat16, float16 or float32; by default as trained")
    command.add_argument("--tensor-parallel", type=int, help="GPUs that the model is spread over")
    command.add_argument("--max-model-len", type=int, help="tokens of question and answer together")


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
        if name == "plan":
            text = "only what was computed for the model on the cluster, and what would fit where nothing does"
            command.add_argument("--fit", action="store_true", help=text)
        if name == "submit":
            command.add_argument("--address", required=True, help="Ray dashboard, e.g. http://head:8265")
    command = commands.add_parser("check", help="compare learner and sampler after weight updates")
    command.add_argument("what", help="sync")
    command.add_argument("overrides", nargs="*", help="base=DIR, and e.g. cluster=node8")
    command.add_argument("--config-dir", type=Path, help="a directory with further yaml files in conf/'s groups")
    command = commands.add_parser("sample", help="print a model's responses to prompts, with their scores")
    words = "base=DIR data.train=FILE n=4 temperature=1 top_p=1 max_tokens=256 seed=0 limit=10 out=FILE reward=answer"
    command.add_argument("overrides", nargs="*", help=f"{words}, and other settings of job=grpo, whose sampling it is")
    command.add_argument("--config-dir", type=Path, help="a directory with further yaml files in conf/'s groups")
    command = commands.add_parser("score", help="say what the rewards give to responses in a file")
    command.add_argument("file", help="JSON lines of prompt, answer, response, and e.g. id and task")
    command.add_argument("overrides", nargs="*", help="e.g. reward=rule reward.time_limit_s=2")
    command.add_argument("--config-dir", type=Path, help="a directory with further yaml files in conf/'s groups")
    command = commands.add_parser("report", help="write a run's HTML report, or compare runs")
    command.add_argument("runs", nargs="+", metavar="run", help="its directory or name")
    command = commands.add_parser("lineage", help="say where an artifact comes from, stage by stage")
    command.add_argument("artifact", help="its directory, or a run's name or directory: its last checkpoint")
    command.add_argument("--step", type=int, help="of a run: the policy after so many optimizer steps (export_every)")
    command = commands.add_parser("chat", help="talk to a checkpoint")
    _add_talk_options(command)
    for name, kind, text in (
        ("--temperature", float, "0: greedy; by default the model's own generation config"),
        ("--top-p", float, "by default the model's own generation config"),
        ("--max-tokens", int, "of an answer"),
        ("--seed", int, "of the sampling"),
        ("--system", str, "a system message"),
    ):
        command.add_argument(name, type=kind, help=text)
    command = commands.add_parser("serve", help="serve a checkpoint; options behind -- are vLLM's own")
    _add_talk_options(command)
    command.add_argument("--host", default="127.0.0.1")
    command.add_argument("--port", type=int, default=8000)
    command = commands.add_parser("push", help="put a checkpoint on the Hugging Face hub, with a model card")
    command.add_argument("checkpoint", help="its directory, or a run's name or directory")
    command.add_argument("hub_id", help="owner/name; made if it is not there")
    command.add_argument("--step", type=int, help="of a run: the policy after so many optimizer steps (export_every)")
    command.add_argument("--private", action="store_true", help="if the repository is made, only its owner sees it")
    command.add_argument("--revision", help="a branch, made if it is not there; by default main")
    commands.add_parser("bench", help="list the benchmarks; bench NAME runs one, bench NAME --help says how")
    command = commands.add_parser("completion", help='eval "$(framework completion bash)"')
    command.add_argument("shell", choices=["bash"])
    return parser


if __name__ == "__main__":
    entry()
