"""Opens what a run records to, once a process, and hands each stage its tracker."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from framework.errors import UserError
from framework.observe.background import BackgroundSink
from framework.observe.metrics import ProgressDisplay, Tracker
from framework.observe.progress import StageProgress
from framework.observe.tensorboard_sink import TensorBoardTarget
from framework.observe.wandb_sink import TrackingConfig, WandbTarget, check_tracking

log = logging.getLogger("framework.observe")


class RunTracking:
    """Trackers of a run whose stages follow one another. As a context manager it ends the run as the block ended.

    Raises UserError for a configuration that can't work, before anything is created.
    """

    def __init__(
        self,
        config: TrackingConfig,
        run_dir: Path,
        run_config: Mapping[str, Any],
        display: ProgressDisplay | None = None,
    ) -> None:
        check_tracking(config)
        self.run_dir, self._display = run_dir, display or StageProgress()
        self._config = config
        self._sinks: list[BackgroundSink] = []
        if config.mode != "none":
            self._sinks.append(BackgroundSink(WandbTarget(config, run_dir, run_config)))
        if config.tensorboard:
            self._sinks.append(BackgroundSink(TensorBoardTarget(run_dir, config.heat_map_every, config.max_rows)))
        self._current: Tracker | None = None

    def tracker(self, stage: str) -> Tracker:
        """Return the tracker of the stage that starts now; the one before it has finished."""
        self._end_stage(finished=True)
        self._current = Tracker(self.run_dir, stage, self._sinks, self._display)
        return self._current

    def close(self, finished: bool = True) -> None:
        """End the current stage and what it is recorded to; `finished=False` after an error or a stop."""
        try:
            self._end_stage(finished)
        except UserError as error:
            if finished:
                raise
            log.warning("%s", error)  # why the run ends is said by whoever ends it
        finally:
            for sink in self._sinks:  # a run that stops has no time to wait for uploads
                sink.finish(int(not finished), self._config.finish_timeout_s if finished else None)

    def __enter__(self) -> RunTracking:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        self.close(finished=error_type is None)

    def _end_stage(self, finished: bool) -> None:
        current, self._current = self._current, None
        if current is not None:
            current.close(finished)
