"""Where the seconds of a batch go: sampling and scoring overlap training, so phases need not sum to the step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class PhaseClock:
    """Seconds of the current batch by phase. Generation and scoring are means over groups, from submit to result."""

    now: Callable[[], float] = time.monotonic
    _started: float = field(init=False)
    _issued: dict[int, float] = field(default_factory=dict, init=False)
    _sampled: dict[int, float] = field(default_factory=dict, init=False)
    _generating: list[float] = field(default_factory=list, init=False)
    _scoring: list[float] = field(default_factory=list, init=False)
    _publishing: float | None = field(default=None, init=False)
    _sync: float | None = field(default=None, init=False)
    _waited: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._started = self.now()

    def issued(self, ticket: int) -> None:
        """A prompt went to a rollout worker."""
        self._issued[ticket] = self.now()

    def sampled(self, ticket: int) -> None:
        """Its group came back."""
        self._sampled[ticket] = self.now()
        self._generating.append(self._sampled[ticket] - self._issued.pop(ticket, self._sampled[ticket]))

    def scored(self, ticket: int) -> None:
        """Its rewards came back."""
        self._scoring.append(self.now() - self._sampled.pop(ticket, self.now()))

    def training(self) -> None:
        """The learner starts on a batch; until here it waited."""
        self._waited = self.now() - self._started

    def published(self) -> None:
        """New weights are on their way."""
        self._publishing = self.now()

    def acknowledged(self) -> None:
        """Every rollout worker serves the newest weights; may be called again and again."""
        if self._publishing is not None:
            self._sync, self._publishing = self.now() - self._publishing, None

    def finish_batch(self) -> dict[str, float]:
        """Return the batch's metrics in seconds and start the next; `time/sync_s` is of the version trained on."""
        metrics = {"time/step_s": self.now() - self._started, "time/wait_s": self._waited}
        for name, seconds in (("generate", self._generating), ("score", self._scoring)):
            if seconds:
                metrics[f"time/{name}_s"] = sum(seconds) / len(seconds)
        if self._sync is not None:
            metrics["time/sync_s"] = self._sync
        self._started, self._sync = self.now(), None
        self._generating, self._scoring = [], []
        return metrics
