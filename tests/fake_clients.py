"""Fakes of the loop's three clients: no Ray, no clock, deaths on demand."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from framework.actors.rank_group import RanksLost
from framework.algorithms.mismatch import Mismatch, check_mismatch
from framework.objectives.grpo import Grpo
from framework.roles.ledger import Ledger
from framework.roles.rl_batch import TrainBatch
from framework.roles.rl_clients import TrainResult
from framework.roles.rl_config import RlConfig
from framework.roles.rl_loop import RlLoop
from framework.types import Prompt, Response, ResponseGroup, RewardScore, SampleRow, SamplingParams
from tests.fakes import FakeLearner


def response(tokens: Sequence[int], version: int = 0, finish: str = "stop") -> Response:
    """A response whose tokens one policy version sampled with probability one half each."""
    ids = np.array(tokens, dtype=np.int32)
    logprobs = np.full(len(ids), np.log(0.5), dtype=np.float32)
    return Response(ids, logprobs, np.full(len(ids), version, dtype=np.int32), finish, str(tokens))  # type: ignore[arg-type]


class FakeRollouts:
    """Workers that finish a group at every poll, the newest first; each `dies_at` poll loses all they hold."""

    def __init__(self, slots: int = 64, dies_at: Sequence[int] = (), seed: int = 0) -> None:
        self.slots, self.dies_at, self.polls = slots, set(dies_at), 0
        self.version = -1
        self.held: deque[tuple[int, Prompt, SamplingParams]] = deque()
        self.issued: list[tuple[int, int]] = []  # ticket, version
        self.limits: dict[int, set[int]] = {}  # version -> max_tokens
        self.seeds: dict[tuple[int, int], set[int | None]] = {}  # version, ticket -> seeds given
        self.rng = random.Random(seed)

    def free_slots(self) -> int:
        return self.slots - len(self.held)

    def submit(self, ticket: int, prompt: Prompt, params: SamplingParams) -> None:
        self.issued.append((ticket, self.version))
        self.limits.setdefault(self.version, set()).add(params.max_tokens)
        self.seeds.setdefault((self.version, ticket), set()).add(params.seed)
        self.held.append((ticket, prompt, params))

    def poll(self) -> list[tuple[int, ResponseGroup | None]]:
        self.polls += 1
        if self.polls in self.dies_at:
            lost: list[tuple[int, ResponseGroup | None]] = [(ticket, None) for ticket, _, _ in self.held]
            self.held.clear()
            return lost
        if not self.held:
            return []
        ticket, prompt, params = self.held.pop()
        tokens = [[self.rng.randrange(2) for _ in range(self.rng.randint(1, 5))] for _ in range(params.n)]
        return [(ticket, ResponseGroup(prompt, tuple(response(row, self.version) for row in tokens)))]

    def publish(self, version: int, weights: Sequence[object]) -> None:
        self.version = version

    def sleep(self) -> bool:
        return not self.held

    def synced(self) -> bool:
        return True

    def forget(self) -> None:
        self.held.clear()


class FakeRewards:
    """Scores with a function of the response; each `dies_at` poll loses what it holds."""

    def __init__(self, score, dies_at: Sequence[int] = ()) -> None:  # type: ignore[no-untyped-def]
        self.score, self.dies_at, self.polls = score, set(dies_at), 0
        self.held: list[tuple[int, ResponseGroup]] = []

    def submit(self, ticket: int, group: ResponseGroup, votes_by: tuple[str, ...] = ()) -> None:
        self.held.append((ticket, group))

    def poll(self) -> list[tuple[int, tuple[RewardScore, ...] | None]]:
        self.polls += 1
        held, self.held = self.held, []
        if self.polls in self.dies_at:
            return [(ticket, None) for ticket, _ in held]
        return [(ticket, tuple(self.score(r) for r in group.responses)) for ticket, group in held]

    def forget(self) -> None:
        self.held = []


class FakeLearnerClient:
    """FakeLearner behind `LearnerClient`; dies in the calls numbered in `dies_at`, and then serves none until started.

    Polls count only while a batch is being trained; `dies_on` says for more of them: name, optimizer steps taken.
    """

    def __init__(
        self,
        dies_at: Sequence[int] = (),
        mismatch: Mismatch | None = None,
        dies_on: Callable[[str, int], bool] = lambda _verb, _steps: False,
    ) -> None:
        self.dies_at, self.dies_on, self.mismatch = set(dies_at), dies_on, mismatch
        self.learner: FakeLearner | None = None
        self.calls: list[str] = []
        self.batch: TrainBatch | None = None
        self.trained: list[TrainBatch] = []
        self.references: list[int] = []

    def start(self) -> None:
        self.learner, self.batch = FakeLearner(), None
        self._called("start")

    def train(self, batch: TrainBatch) -> None:
        assert self.batch is None
        self._called("train")
        self.batch = batch

    def poll(self) -> TrainResult | None:
        if self.batch is None:
            return None
        learner = self._called("poll")
        batch, self.batch = self.batch, None
        if self.mismatch is not None:
            check_mismatch(self.mismatch, batch.gate)
        self.trained.append(batch)
        steps = tuple(learner.train_minibatch(minibatch) for minibatch in batch.minibatches)
        return TrainResult(steps, self.mismatch, 0.1, 10)

    def publish(self, version: int) -> Sequence[object]:
        return [self._called("publish").publish(version)]

    def offload(self) -> None:
        self._called("offload")

    def reset_reference(self) -> None:
        self.references.append(self._called("reset_reference").steps)

    def save(self, directory: Path) -> None:
        self._called("save").save(directory)

    def load(self, directory: Path) -> None:
        self.learner, self.batch = self.learner or FakeLearner(), None
        self._called("load").load(directory)

    def export(self, directory: Path) -> None:
        self._called("export").export(directory)

    def _called(self, verb: str) -> FakeLearner:
        if self.learner is None:
            raise RanksLost("no rank is running")
        self.calls.append(verb)
        if len(self.calls) in self.dies_at or self.dies_on(verb, self.learner.steps):
            self.learner = None
            raise RanksLost("rank 0 died")
        return self.learner


class RecordingTracker:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.metrics: list[tuple[int, dict[str, float]]] = []
        self.rows: list[SampleRow] = []

    def log(self, step, metrics) -> None:  # type: ignore[no-untyped-def]
        self.metrics.append((step, dict(metrics)))

    def samples(self, step, rows) -> None:  # type: ignore[no-untyped-def]
        self.rows += rows

    def expert_load(self, step, load_LE) -> None:  # type: ignore[no-untyped-def]
        pass

    def progress(self, done, total, text="") -> None:  # type: ignore[no-untyped-def]
        pass

    def rewind(self, step) -> None:  # type: ignore[no-untyped-def]
        pass


PROMPTS = [Prompt(f"p{i}", f"q{i}", "t", "1", token_ids=(1, 2)) for i in range(12)]


def ones(response: Response) -> RewardScore:
    return RewardScore(float(response.token_ids.mean()), {"ones": 1.0})


def make_loop(tmp_path: Path, **changes) -> RlLoop:  # type: ignore[no-untyped-def]
    """12 batches of 4 prompts, two steps each; `changes` to RlConfig or to the loop's parts."""
    values = {"steps": 24, "prompts_per_step": 2, "group_size": 4, "minibatches_per_rollout": 2, "max_tokens": 5}
    names = RlConfig.__dataclass_fields__
    config = RlConfig(**{**values, "checkpoint_every": 2, **{k: v for k, v in changes.items() if k in names}})
    return RlLoop(
        config=config,
        algorithm=changes.get("algorithm", Grpo()),
        ledger=Ledger(PROMPTS, config.prompts_per_batch, config.max_staleness, changes.get("seed", 0)),
        rollouts=changes.get("rollouts") or FakeRollouts(),
        rewards=changes.get("rewards") or FakeRewards(ones),
        learner=changes.get("learner") or FakeLearnerClient(),
        tracker=changes.get("tracker") or RecordingTracker(),
        directory=tmp_path,
        policy=tmp_path / "policy",
        should_stop=changes.get("should_stop", lambda: False),
        **{name: changes[name] for name in ("held_out", "finish_export", "saver") if name in changes},
    )
