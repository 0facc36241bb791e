"""vLLM's engine on a thread of its own: it steps while there are requests, and commands run between two steps.

vLLM's AsyncLLM puts the engine into another process; with small models the messages between the two cost more than
the model does (`framework bench rollout` measures it). Here a request costs two thread switches.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from framework.errors import RunFailed

if TYPE_CHECKING:
    from vllm import LLMEngine, RequestOutput, SamplingParams

T = TypeVar("T")


@dataclass(frozen=True)
class Submission:
    """A request under way: `id` to abort it by, `result` for its last output."""

    id: str
    result: Future[RequestOutput | None]  # None: given up


@dataclass(frozen=True)
class _Command:
    function: Callable[[LLMEngine], Any]
    result: Future[Any]
    fatal: bool


class EngineLoop:
    """Owns the engine; every touch of it happens on the loop's thread, so nothing is locked and no step is torn.

    Once the engine or a fatal command has raised, the loop is dead: what was under way fails with RunFailed, and so
    does everything submitted later. An engine in an unknown state never answers.
    """

    def __init__(self, build: Callable[[], LLMEngine]) -> None:
        self.error: BaseException | None = None
        self.turns = 0  # steps and commands done: whoever waits sees that the engine gets on
        self._build = build
        self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._requests: dict[str, tuple[Future[RequestOutput | None], Callable[[RequestOutput], None] | None]] = {}
        self._ids = itertools.count()
        self._lock = threading.Lock()  # between posting a command and dying
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="vllm-engine", daemon=True)

    def start(self) -> Future[None]:
        """Start the thread; the future ends when the engine is built, with its error if that fails."""
        self._thread.start()
        return self._ready

    def submit(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        on_output: Callable[[RequestOutput], None] | None = None,
    ) -> Submission:
        """Begin to sample; `on_output` is called on the loop's thread with every output, the last one included."""
        request_id = str(next(self._ids))
        result: Future[RequestOutput | None] = Future()

        def add(engine: LLMEngine) -> None:
            engine.add_request(request_id, {"prompt_token_ids": prompt_ids}, params)
            self._requests[request_id] = result, on_output

        def refuse(added: Future[None]) -> None:
            if error := added.exception():
                result.set_exception(error)

        self.call(add).add_done_callback(refuse)
        return Submission(request_id, result)

    def abort(self, request_id: str) -> None:
        """Stop sampling a request that nobody waits for any more."""

        def drop(engine: LLMEngine) -> None:
            if self._requests.pop(request_id, None):
                engine.abort_request([request_id])

        self.call(drop)

    def give_up(self, engine: LLMEngine) -> None:
        """Stop sampling all requests; their results are None. On the loop's thread."""
        engine.abort_request(list(self._requests))
        for result, _ in self._requests.values():
            result.set_result(None)
        self._requests.clear()

    def call(self, function: Callable[[LLMEngine], T], fatal: bool = False) -> Future[T]:
        """Run a function between two steps; if `fatal`, its error ends the loop."""
        command = _Command(function, Future(), fatal)
        with self._lock:
            if self.error is None:
                self._commands.put(command)
            else:
                command.result.set_exception(self._failure())
        return command.result

    @property
    def in_flight(self) -> int:
        """Requests being sampled."""
        return len(self._requests)

    def stop(self) -> None:
        """End the thread after the current step; requests under way fail."""
        self._commands.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            engine = self._build()
            self._ready.set_result(None)
            while self._obey(engine):
                for output in engine.step():
                    self._deliver(output)
                self.turns += 1
            engine.engine_core.shutdown()
            self._die(RunFailed("the rollout engine was stopped"))
        except BaseException as error:  # whatever it was, those who wait must hear of it
            self._die(error)

    def _obey(self, engine: LLMEngine) -> bool:
        """Run the waiting commands, and wait for one while there is nothing to sample; False: stop."""
        while True:
            try:
                command = self._commands.get(block=not engine.has_unfinished_requests())
            except queue.Empty:
                return True
            if command is None:
                return False
            self.turns += 1
            try:
                command.result.set_result(command.function(engine))
            except Exception as error:
                if command.fatal:
                    with self._lock:
                        self.error = error  # before anyone hears of it: from here on nothing is accepted
                command.result.set_exception(error)
                if command.fatal:
                    raise

    def _deliver(self, output: RequestOutput) -> None:
        result, on_output = self._requests[output.request_id]
        if on_output is not None:
            on_output(output)
        if output.finished:
            del self._requests[output.request_id]
            result.set_result(output)

    def _die(self, error: BaseException) -> None:
        with self._lock:
            self.error = error
        if not self._ready.done():
            self._ready.set_exception(error)
        for result, _ in self._requests.values():
            result.set_exception(self._failure())
        self._requests.clear()
        while not self._commands.empty():
            if command := self._commands.get():
                command.result.set_exception(self._failure())

    def _failure(self) -> RunFailed:
        if isinstance(self.error, RunFailed):
            return self.error
        return RunFailed(f"the rollout engine failed: {type(self.error).__name__}: {self.error}")
