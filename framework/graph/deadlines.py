"""How long a run waits for whom: the one table that every wait of the product looks into.

A worker that hangs without dying (a stuck kernel, a dead network, a stopped process) is found in three ways:

    no sign of life   its process has not beaten its pulse for `silent_s`
    no progress       it beats, counts what it does (vLLM: engine steps), and the count stands for the verb's floor
    no answer         it has not answered for `factor` times the longest of its role's recent times at this verb, but
                      no sooner than the verb's floor; a verb that no worker of the role has answered yet: `first_s`

After a tenth of the time the run says whom it waits for, and since when. After the whole of it the worker is killed and
replaced as if it had died: its work is given back, nothing is lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from framework.bounds import Bound, Seconds, bounded

RECENT = 32  # times of a verb that are remembered
NOTICE_SHARE, NOTICE_MOST_S = 0.1, 60.0


@dataclass(frozen=True)
@bounded
class Deadlines:
    """The table, in seconds: `cluster.deadlines.*`. A verb's value is its floor."""

    factor: Annotated[float, Bound(least=1)] = 10.0  # times the longest of the role's recent times
    first: Seconds = 1800.0  # for a verb that its role has not answered yet
    silent: Seconds = 60.0  # without a beat of the worker's pulse
    place: Seconds = 300.0  # for a place in the cluster: then the run ends and names what is missing
    start: Seconds = 600.0  # load and warm up
    generate: Seconds = 120.0
    update_weights: Seconds = 120.0
    score: Seconds = 60.0  # no less than its group's time limits allow
    train: Seconds = 120.0  # a whole batch
    publish: Seconds = 120.0
    save: Seconds = 300.0
    load: Seconds = 600.0
    export: Seconds = 600.0
    step: Seconds = 120.0  # a stretch of steps of pretraining or fine-tuning, about 2 s of them
    other: Seconds = 120.0  # what has no value of its own, e.g. logprobs
    stop: Seconds = 45.0  # after SIGTERM or Ctrl-C, for a role that is at work: then the last checkpoint stands
    ray: Seconds = 40.0  # for Ray's own processes, once they don't answer

    def floor(self, verb: str) -> float:
        """The least that `verb` may take; a verb's variants, as generate_apart, have its own."""
        return float(getattr(self, verb, getattr(self, verb.partition("_")[0], self.other)))

    def limit(self, verb: str, longest: float | None, least: float = 0.0) -> float:
        """How long a call may take; `longest`: of its role's recent times, None before the first."""
        return max(self.floor(verb), least, self.first if longest is None else self.factor * longest)

    def notice(self, limit: float) -> float:
        """After how much of `limit` the run says whom it waits for."""
        return min(NOTICE_SHARE * limit, NOTICE_MOST_S)
