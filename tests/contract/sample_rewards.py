"""Rewards that behave and rewards that do not. A response's text says which behaviour it asks for."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from framework.rewards.base import Reward, RewardConfig
from framework.types import Prompt, Response, ResponseGroup


@dataclass(frozen=True, kw_only=True)
class Obedient(Reward):
    """Does what the text says; any number is returned as the reward."""

    def __call__(self, prompt: Prompt, response: Response) -> float:
        command, _, argument = response.text.partition(" ")
        match command:
            case "raise":
                raise ZeroDivisionError("no such luck")
            case "nan":
                return float("nan")
            case "none":
                return None  # type: ignore[return-value]
            case "numpy":
                return np.float32(0.5)  # type: ignore[return-value]
            case "hang":
                time.sleep(3600)
            case "hang_with_child":
                helper = subprocess.Popen(["sleep", "3600"])
                Path(argument).write_text(str(helper.pid))
                time.sleep(3600)
            case "hold":  # in C, with the interpreter's lock: no thread of this process can run
                ctypes.PyDLL(None).sleep(3600)
            case "exit":
                os._exit(3)
            case "quit":
                sys.exit(4)
            case "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "allocate":
                return float(len(bytearray(1 << 40)))
            case "print":
                print("x" * 100_000, flush=True)
                return float(len(sys.stdin.read()))
            case "environment":
                return float(argument in os.environ)
            case "fork":  # a copy that comes back and goes on as if it were the worker
                return 1.0 if os.fork() else 7.0
            case "leave":
                sys.exit("no such table")
            case "interrupt":
                raise KeyboardInterrupt
            case "untold":
                raise Untold
            case "deaf":
                sys.stderr.close()
                raise ZeroDivisionError("no such luck")
            case "surrogate":
                raise ZeroDivisionError("no \ud83d\nluck")
            case "enormous":
                return 1e308
            case "background":  # what it starts outlives it
                os.system("sleep 60 &")
                os._exit(5)
            case "spoil":
                prompt.columns["left"].pop()
                response.token_ids.sort()
                return float(len(prompt.columns["left"]))
        return float(command)


class Untold(Exception):
    """Cannot say what happened."""

    def __str__(self) -> str:
        raise RuntimeError


@dataclass(frozen=True, kw_only=True)
class Verifier(Obedient):
    """The same as a verifier: what it cannot bear is wrong. A prompt with the answer "bad" has no usable reference."""

    fails_as_wrong: ClassVar[bool] = True

    def check(self, prompt: Prompt) -> None:
        if prompt.answer == "bad":
            raise ValueError("no such reference")
        if prompt.answer == "hang":
            time.sleep(3600)


@dataclass(frozen=True, kw_only=True)
class Voter(Reward):
    """Numbers vote by value; "none" gives no answer, and "hang" is one that no comparison survives."""

    def __call__(self, prompt: Prompt, response: Response) -> float:
        return 0.0

    def extracted(self, prompt: Prompt, response: Response) -> str | None:
        if response.text == "lost":
            time.sleep(3600)
        return None if response.text == "none" else response.text

    def agree(self, prompt: Prompt, first: str, second: str) -> bool:
        if "hang" in (first, second):
            time.sleep(3600)
        if "exit" in (first, second):
            os._exit(3)
        return float(first) == float(second)


@dataclass(frozen=True, kw_only=True)
class Unpreparable(Reward):
    """Cannot be loaded."""

    def prepare(self) -> None:
        raise ImportError("no module named verifier")


@dataclass(frozen=True, kw_only=True)
class Unsendable(Reward):
    """Holds what no other process can be given."""

    lock: object = dataclasses.field(default_factory=threading.Lock)


@dataclass(frozen=True, kw_only=True)
class Illegible(Reward):
    """Finds an answer that is no text."""

    def __call__(self, prompt: Prompt, response: Response) -> float:
        return 1.0

    def extracted(self, prompt: Prompt, response: Response) -> str | None:
        return 5  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True)
class Suicidal(Reward):
    """Its process ends while it loads."""

    def prepare(self) -> None:
        os._exit(7)


CONFIG = RewardConfig({"obedient": Obedient(weight=2.0)}, time_limit_s=1.0)


def group_of(*texts: str, task: str = "t", answer: str = "", rewards: tuple[str, ...] = ()) -> ResponseGroup:
    """A response group with these texts; everything else is filler."""
    return ResponseGroup(Prompt("p0", "question", task, answer, rewards), tuple(map(response_of, texts)))


def response_of(text: str, finish_reason: str = "stop", n_tokens: int = 3) -> Response:
    """A finished response with this text."""
    token_ids, logprobs = np.arange(n_tokens, dtype=np.int32), np.zeros(n_tokens, np.float32)
    return Response(token_ids, logprobs, np.zeros(n_tokens, np.int32), finish_reason, text)  # type: ignore[arg-type]
