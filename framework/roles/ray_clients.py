"""The loop's clients over Ray: rollout workers and reward workers."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from framework.actors.pool import Done, Gone, WorkerPool
from framework.errors import ResponsesLost
from framework.roles.object_store import InStore, references, stays_where_it_is
from framework.stored import Sampled, StoredGroup, StoredResponse
from framework.types import Prompt, ResponseGroup, RewardScore, SamplingParams


@dataclass(frozen=True)
class _Generate:
    """Tag of a call that samples a ticket's group; a recovery starts a new era and ignores older ones."""

    era: int
    ticket: int


@dataclass(frozen=True)
class _Update:
    """Tag of a call that loads a policy version."""

    era: int
    version: int


@dataclass(frozen=True)
class _Sleep:
    """Tag of a call that gives a worker's GPUs to the learner."""


@dataclass(frozen=True)
class _Group:
    """What one call samples."""

    ticket: int
    prompt: Prompt
    params: SamplingParams


class RayRollouts:
    """`rl_clients.Rollouts` over rollout actors. A worker gets prompts only while it serves the newest version.

    Prompts are shared out over all workers that the newest version is on its way to, and held here until it is there:
    otherwise the first worker to acknowledge would get the whole batch, and the others nothing to do.
    Groups of long responses stay in the worker's object store, and only what is to be known of them comes here.
    """

    def __init__(self, pool: WorkerPool, groups_in_flight: int) -> None:
        self._pool, self._limit = pool, groups_in_flight
        self._era = 0
        self._version = -1
        self._weights: Sequence[Any] | None = None  # empty: those that the workers started with
        self._sent: dict[int, _Update] = {}  # worker -> newest update sent to it
        self._serving: dict[int, _Update] = {}  # worker -> newest update that it acknowledged
        self._held: dict[int, list[_Group]] = {}  # worker -> groups that it gets when it serves the newest version
        self._sampling: Counter[int] = Counter()  # groups of this era under way, by worker
        self._sleeping: dict[int, bool] = {}  # workers that were sent to sleep: whether they are there

    def free_slots(self) -> int:
        """Groups that workers can take which serve the newest version, or are loading it."""
        return sum(max(0, self._limit - self._load(worker)) for worker in self._updated(self._sent))

    def submit(self, ticket: int, prompt: Prompt, params: SamplingParams) -> None:
        """Give the group to the least loaded of these workers."""
        worker = min(self._updated(self._sent), key=self._load)
        self._held.setdefault(worker, []).append(_Group(ticket, prompt, params))
        self._release()

    def poll(self) -> list[tuple[int, Sampled | None]]:
        """Return finished groups; None for tickets whose worker died."""
        results: list[tuple[int, Sampled | None]] = []
        for outcome in self._pool.poll(0):
            tag = outcome.tag
            if isinstance(tag, _Update):
                if isinstance(outcome, Done):
                    self._serving[outcome.worker] = tag
            elif isinstance(tag, _Sleep):
                self._sleeping[outcome.worker] = True  # a dead one has no GPU either
            elif isinstance(tag, _Generate) and tag.era == self._era:
                self._sampling[outcome.worker] -= 1
                results.append((tag.ticket, _sampled(outcome) if isinstance(outcome, Done) else None))
        for worker in list(self._sent):
            if worker not in self._pool.ready():  # died: whatever starts in its place has no weights yet
                del self._sent[worker]
                self._serving.pop(worker, None)
                results += [(group.ticket, None) for group in self._held.pop(worker, ())]
        self._send()
        self._release()
        return results

    def publish(self, version: int, weights: Sequence[object]) -> None:
        """Send new weights to every worker, and later to any that restarts; none: they serve what they started with."""
        self._version, self._weights, self._sleeping = version, weights, {}
        self._send()

    def sleep(self) -> bool:
        """Send workers to sleep that have nothing of this era to do; whether all of them sleep.

        A worker that is not ready has no GPU: it builds its engine when it gets weights.
        """
        self._weights = None  # those of the last turn: a worker that restarts must wait for the next
        for worker in self._pool.ready():
            loading = self._sent.get(worker) != self._serving.get(worker)
            if worker not in self._sleeping and not loading and self._sampling[worker] <= 0:
                self._sleeping[worker] = False
                self._pool.call(worker, "sleep", tag=_Sleep())
        return all(self._sleeping.get(worker) for worker in self._pool.ready())

    def synced(self) -> bool:
        """Whether every healthy worker serves the newest version, and at least one does."""
        ready = self._pool.ready()
        return bool(ready) and len(self._updated(self._serving)) == len(ready)

    def forget(self) -> None:
        """Ignore what is being sampled; the next publish counts as new whatever its number."""
        self._era += 1
        self._weights = None
        self._held, self._sampling = {}, Counter()

    def _updated(self, updates: Mapping[int, _Update]) -> list[int]:
        """Healthy workers, awake, for which the newest version is the one in `updates`."""
        newest = _Update(self._era, self._version)
        awake = (worker for worker in self._pool.ready() if worker not in self._sleeping)
        return [worker for worker in awake if updates.get(worker) == newest]

    def _load(self, worker: int) -> int:
        """Groups that the worker has or is to get."""
        loading = self._sent.get(worker) != self._serving.get(worker)
        return self._pool.load(worker) - loading + len(self._held.get(worker, ()))

    def _release(self) -> None:
        """Send held groups to the workers that serve the newest version by now."""
        for worker in self._updated(self._serving):
            for group in self._held.pop(worker, ()):
                tag = _Generate(self._era, group.ticket)
                self._sampling[worker] += 1
                if stays_where_it_is(group.params.n, group.params.max_tokens):
                    returns = 1 + group.params.n
                    self._pool.call(worker, "generate_apart", group.prompt, group.params, tag=tag, returns=returns)
                else:
                    self._pool.call(worker, "generate", group.prompt, group.params, tag=tag)

    def _send(self) -> None:
        update = _Update(self._era, self._version)
        for worker in self._pool.ready() if self._weights is not None else ():
            loading = self._sent.get(worker) != self._serving.get(worker)  # one at a time: calls may overtake another
            if not loading and self._sent.get(worker) != update:
                self._sent[worker] = update
                if self._weights:
                    self._pool.call(worker, "update_weights", self._version, *self._weights, tag=update)
                else:
                    self._serving[worker] = update


def _sampled(outcome: Done) -> Sampled:
    """The group that a call has sampled, with its responses or without."""
    if not outcome.parts:
        group: ResponseGroup = outcome.result
        return group
    prompt, outlines = outcome.result
    places = map(InStore, outcome.parts)
    return StoredGroup(prompt, tuple(StoredResponse(*pair) for pair in zip(outlines, places, strict=False)))


class RayRewards:
    """`rl_loop.Rewards` over reward actors. A worker gets its next group when it is free.

    Groups given out beforehand would wait behind verifiers that hang while other workers have nothing to do.
    """

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._era = 0
        self._waiting: deque[tuple[int, Sampled, tuple[str, ...]]] = deque()

    def submit(self, ticket: int, group: Sampled, votes_by: tuple[str, ...] = ()) -> None:
        """Give the group to a free worker, now or later."""
        self._waiting.append((ticket, group, votes_by))
        self._hand_out()

    def poll(self) -> list[tuple[int, tuple[RewardScore, ...] | ResponsesLost | None]]:
        """Return scored groups; None for tickets whose worker died, ResponsesLost where there is nothing to score."""
        results: list[tuple[int, tuple[RewardScore, ...] | ResponsesLost | None]] = []
        for outcome in self._pool.poll(0):
            if not isinstance(outcome.tag, _Generate) or outcome.tag.era != self._era:
                continue
            if isinstance(outcome, Gone):
                results.append((outcome.tag.ticket, ResponsesLost(outcome.reason)))
            else:
                results.append((outcome.tag.ticket, outcome.result if isinstance(outcome, Done) else None))
        self._hand_out()
        return results

    def forget(self) -> None:
        """Ignore what is being scored."""
        self._era += 1
        self._waiting.clear()

    def _hand_out(self) -> None:
        if self._waiting:
            for worker in free_workers(self._pool):
                if self._waiting:
                    ticket, group, votes_by = self._waiting.popleft()
                    tag = _Generate(self._era, ticket)
                    if isinstance(group, StoredGroup):
                        found = (group.prompt, votes_by, *references(group))
                        self._pool.call(worker, "score_stored", *found, tag=tag, may_go=True)
                    else:
                        verb = ("judge", group, votes_by) if votes_by else ("score", group)
                        self._pool.call(worker, *verb, tag=tag)


def free_workers(pool: WorkerPool) -> list[int]:
    """Workers that are ready and have nothing to do."""
    return [worker for worker in pool.ready() if not pool.load(worker)]
