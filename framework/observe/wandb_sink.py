"""Weights & Biases: one wandb run for each training run, names under their stage, each stage on its own step axis.

Offline (the default) writes `<run>/wandb/offline-run-*`, one folder for each process that took part; `wandb sync
<run>/wandb/offline-run-*` uploads them in order into the same run, since all carry the same id. wandb's own step is the
time since that id was made, so rows of a resumed process always come after the earlier ones. wandb can't withdraw rows:
steps that a resume repeats stand twice there, and once in the run's own files and report.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from framework.bounds import FilledStr, PositiveInt, Seconds, bounded
from framework.errors import UserError
from framework.observe.charts import load_colours
from framework.observe.metrics import Load
from framework.observe.wandb_workspace import Workspace
from framework.types import SampleRow

log = logging.getLogger(__name__)


@dataclass(frozen=True)
@bounded
class TrackingConfig:
    """Where metrics go besides the run's own files and report."""

    mode: Literal["offline", "online", "none"] = "offline"
    project: FilledStr = "framework"
    entity: str = ""  # wandb team; empty: the key's default
    name: str = ""  # empty: the run directory's name
    tensorboard: bool = False  # event files in the run directory, besides whatever `mode` says
    tags: tuple[str, ...] = ()
    heat_map_every: PositiveInt = 10  # steps between two heat maps of expert load
    max_rows: PositiveInt = 64  # responses in one table
    finish_timeout_s: Seconds = 60.0  # longest wait for an upload at the end; the rest stays on disk for `wandb sync`


def check_tracking(config: TrackingConfig) -> None:
    """Raise UserError for what would fail only once the run is under way; starts nothing."""
    if config.mode == "online" and not os.environ.get("WANDB_API_KEY"):
        raise UserError(
            "WANDB_API_KEY", "", "tracking=wandb_online needs a key there; tracking=wandb_offline needs none"
        )


@dataclass(frozen=True)
class WandbTarget:
    """Opens `WandbSink`s of one run: anew where wandb's process has died. See `background.BackgroundSink`."""

    config: TrackingConfig
    run_dir: Path
    run_config: Mapping[str, Any]
    name: str = "wandb"

    def open(self) -> WandbSink:
        """Open the run; raises UserError if the wandb server refuses the key (online only)."""
        return WandbSink(self.config, self.run_dir, self.run_config)

    def break_off(self) -> None:
        """Kill wandb's process, a child of ours, and forget it: a call that waits for it raises."""
        if "wandb" not in sys.modules:
            return
        import psutil
        import wandb

        token = os.environ.pop("WANDB_SERVICE", None)
        if token is None:
            return
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.name().startswith("wandb-core"):
                    child.kill()
        with contextlib.suppress(Exception):  # it says that its process is gone, which is what was wanted
            wandb.teardown()


class WandbSink:
    """Sends metrics to wandb, whose own process does the writing and uploading. A call may wait for that process.

    Online, a server that can't be reached is recorded for as offline. Raises UserError if it refuses the key.
    """

    def __init__(self, config: TrackingConfig, run_dir: Path, run_config: Mapping[str, Any]) -> None:
        import pandas as pd
        import wandb

        self.config, self._wandb = config, wandb
        self._pandas = pd  # wandb.Table imports it at first use, which would cost the loop half a second
        identity = _identity(run_dir)
        self.run_id, self._created = str(identity["id"]), float(identity["created"])
        online = config.mode == "online"
        try:
            self._run = self._init(run_dir, run_config, online)
        except (wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
            raise UserError(
                "tracking.mode", config.mode, f"wandb refused ({error}); tracking=wandb_offline works"
            ) from None
        except wandb.errors.CommError as error:
            if not online:
                raise
            text = (
                "wandb's server can't be reached (%s): recorded on disk; `wandb sync %s/wandb/offline-run-*` sends it"
            )
            log.warning(text, " ".join(str(error).split()), run_dir)
            self._run = self._init(run_dir, run_config, False)
        self._workspace: Workspace | None = None
        if online and not self._run.offline:
            entity, project = self._run.entity, self._run.project
            self._workspace = Workspace(entity, project, self.run_id, run_dir / "wandb" / "workspace.json")
        self._stages: set[str] = set()
        self._last_row = -1
        self._loads_seen: dict[str, int] = {}  # stage -> step of the newest expert load

    def _init(self, run_dir: Path, run_config: Mapping[str, Any], online: bool) -> Any:
        config = self.config
        settings = {"console": "off", "silent": True, "disable_git": True, "finish_timeout": config.finish_timeout_s}
        return self._wandb.init(
            project=config.project,
            entity=config.entity or None,
            name=config.name or run_dir.resolve().name,
            tags=list(config.tags),
            id=self.run_id,
            resume="allow" if online else None,  # offline there is no server to ask
            mode="online" if online else "offline",
            dir=str(run_dir),
            config=dict(run_config),
            settings=self._wandb.Settings(**settings),
        )

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Record values of one step as `<stage>/<name>`."""
        self._send(stage, step, metrics)

    def samples(self, stage: str, step: int, rows: Sequence[SampleRow]) -> None:
        """A table of responses."""
        names = sorted({name for row in rows for name in row.components})
        columns = ["step", "prompt", "response", "reward", *names, "advantage", "length", "finish_reason", "version"]
        data = [
            [step, row.prompt, row.response, row.reward]
            + [row.components.get(name) for name in names]
            + [row.advantage, row.length, row.finish_reason, row.version]
            for row in rows[: self.config.max_rows]
        ]
        self._send(stage, step, {"samples": self._wandb.Table(columns=columns, data=data)})

    def expert_load(self, stage: str, step: int, load_LE: Load) -> None:
        """A heat map of each expert's load (rows: MoE layers, columns: experts) each `heat_map_every` steps."""
        # Steps come as far apart as their loop likes: what counts is whether a multiple lies between two.
        every, before = self.config.heat_map_every, self._loads_seen.get(stage, step - 1)
        self._loads_seen[stage] = step
        if step // every != before // every:
            caption = f"step {step}; rows: MoE layers, columns: experts; white: the layer's mean, full red: twice it"
            self._send(stage, step, {"experts/load": self._wandb.Image(heat_map_image(load_LE), caption=caption)})

    def close(self, stage: str) -> None:
        """Nothing: later stages write to the same run; `finish` ends it."""

    def finish(self, exit_code: int = 0) -> None:
        """End the wandb run, waiting at most `finish_timeout_s` for an upload. Calling it twice is harmless."""
        if self._workspace is not None:
            self._workspace.close()
        if self._run is not None:
            self._run.finish(exit_code=exit_code)
            self._run = None

    def _send(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        if self._run is None:
            log.warning(
                "wandb run %s is finished: step %d of %s is only in the run's own files", self.run_id, step, stage
            )
            return
        if stage not in self._stages:
            self._stages.add(stage)
            self._run.define_metric(f"{stage}/step", hidden=True)
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self._last_row = max(self._last_row + 1, int((time.time() - self._created) * 1000))
        self._run.log(
            {f"{stage}/{name}": value for name, value in values.items()} | {f"{stage}/step": step}, step=self._last_row
        )
        if self._workspace is not None:
            self._workspace.recorded(stage, values.keys())


def heat_map_image(load_LE: Load, cell: int = 12) -> npt.NDArray[np.uint8]:
    """Colour each expert's load relative to its layer's mean, on white; see `charts.load_colours`.

    Returns [L * cell, E * cell, 3]. A layer without any tokens is grey.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_LE = load_LE / load_LE.mean(axis=1, keepdims=True)
    rgba_LE4 = load_colours(ratio_LE).astype(np.float64)
    opacity_LE1 = rgba_LE4[..., 3:] / 255.0
    rgb_LE3 = (rgba_LE4[..., :3] * opacity_LE1 + 255.0 * (1.0 - opacity_LE1)).round().astype(np.uint8)
    return rgb_LE3.repeat(cell, axis=0).repeat(cell, axis=1)


def _identity(run_dir: Path) -> dict[str, Any]:
    """The run's wandb id and when it was made; the same for every process that works on the run directory."""
    path = run_dir / "wandb" / "identity.json"
    try:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps({"id": secrets.token_hex(4), "created": time.time()}))
            temporary.replace(path)
        identity: dict[str, Any] = json.loads(path.read_text())
        return identity
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(
            str(path), str(error), "must be a writable file with the wandb id; delete it to start a new wandb run"
        ) from None
