"""Next-token training as a Ray Train run with DeepSpeed inside.

The workers are restarted from the newest checkpoint when one dies. They write metrics to a file in the
stage's work directory (which Ray Train needs on shared storage anyway); the driver relays them to the tracker.
"""

from __future__ import annotations

import json
import logging
import math
import re
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.actors.causes import cause, is_collective, is_death
from framework.actors.pulse import beat
from framework.engines.cpu.environment import worker_environment
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.errors import DamagedState, NotFinite, RunFailed, Stopped, UserError
from framework.files import remove_tree, write_atomically
from framework.graph.deadlines import Deadlines
from framework.graph.store import as_disk_error
from framework.models.families.base import ModelConfig
from framework.protocols import Tracker
from framework.roles.rank_watch import RankWatch, pulse_name
from framework.roles.supervised_data import Data
from framework.roles.supervised_milestones import Milestones

if TYPE_CHECKING:
    from framework.engines.trainer import Trainer

KEPT = 2  # checkpoints: the newest, and one to fall back to
METRICS, STOP, SAVING = "worker_metrics.jsonl", "STOP", "saving-"
RELAYED = "relayed"  # how far METRICS has gone to the tracker
SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's list of checkpoints
STOP_CHECK_S, STOP_CHECK_STEPS = 2.0, 10  # between looks at the stop file, whichever comes first: the ranks agree

logger = logging.getLogger("framework")


@dataclass(frozen=True)
class LmRun:
    """Everything a worker needs; paths are on storage that all workers share."""

    model: ModelConfig | Path  # fresh weights of these sizes, or those of a Hugging Face checkpoint
    engine: DeepSpeedConfig
    data: Data
    out: Path  # the Hugging Face checkpoint
    work_dir: Path
    steps: int
    validate_every: int
    checkpoint_every: int
    seed: int
    workers: int = 1
    min_workers: int = 0  # elastic: as many workers as there is room for, from this number to `workers`; 0: always all
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    max_failures: int = 5  # restarts in a row without a new checkpoint between them
    deadlines: Deadlines = Deadlines()
    milestones: Milestones = Milestones()


def train_lm(
    run: LmRun,
    tracker: Tracker,
    should_stop: Callable[[], bool],
    allow_s: Callable[[float], None] = lambda seconds: None,
) -> None:
    """Train to the end and export; continues from the newest checkpoint in work_dir.

    Raises UserError (wrong input, full disk) at once, and an error that two starts from one checkpoint raise alike;
    RunFailed after `max_failures` others, or Stopped. A worker that hangs is killed, as `deadlines` say, and a stop
    waits `deadlines.stop` for the step under way: then the last checkpoint stands.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    _check_room(run)
    (run.work_dir / STOP).unlink(missing_ok=True)
    metrics = run.work_dir / METRICS
    metrics.touch()
    environment = worker_environment(run.engine.threads or run.cpus_per_worker, run.gpus_per_worker > 0)
    trainer = partial(
        TorchTrainer,
        _worker,
        train_loop_config={"run": run},
        torch_config=TorchConfig(
            backend="nccl" if run.gpus_per_worker else "gloo", timeout_s=math.ceil(run.engine.collective_timeout_s)
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(run.min_workers, run.workers) if run.min_workers else run.workers,
            use_gpu=run.gpus_per_worker > 0,
            resources_per_worker={
                "CPU": run.cpus_per_worker,
                **({"GPU": run.gpus_per_worker} if run.gpus_per_worker else {}),
            },
        ),
        run_config=ray.train.RunConfig(
            name="train",
            storage_path=str(run.work_dir.resolve()),
            failure_config=ray.train.FailureConfig(max_failures=0),  # counted below
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=KEPT),
            worker_runtime_env={"env_vars": environment},
        ),
    )
    outcome: list[BaseException | None] = []
    restarted = threading.Event()
    saved = run.work_dir / "train" / SNAPSHOT

    def fit() -> None:
        said = ""
        failures = 0  # Ray Train can't start its own count afresh once a restart has got further
        before: bytes | None = None
        while not outcome:
            for torn in run.work_dir.glob(f"{SAVING}*"):  # of killed workers
                remove_tree(torn)
            _check_snapshot(saved)
            try:
                trainer().fit()
                outcome.append(None)
            except BaseException as error:  # handed to the main thread below
                found = _as_framework_error(error, run.work_dir)
                newest = saved.read_bytes() if saved.is_file() else None
                restarted.set()
                again = newest == before and str(found) == said and not _is_death(error)
                failures, before, said = (failures + 1 if newest == before else 1), newest, str(found)
                at_once = again or isinstance(found, UserError | NotFinite)
                if at_once or failures > run.max_failures or should_stop():
                    outcome.append(found)
                else:
                    logger.warning("%s; restarting from the newest checkpoint (%d)", found, failures)

    thread = threading.Thread(target=fit, daemon=True)
    relay = _Relay(metrics, tracker, run.steps)
    ranks = RankWatch(str(run.out), run.workers, run.deadlines)
    ranks.begin()
    thread.start()
    patience = _Patience(run, allow_s)
    while thread.is_alive():
        if should_stop():
            (run.work_dir / STOP).touch()
            if patience.over():
                outcome.append(None)  # no restart
                raise Stopped("stopped before the step under way had ended; the last checkpoint stands, resume from it")
        thread.join(timeout=0.3)
        if restarted.is_set():
            restarted.clear()
            ranks.begin()
        ranks.check()
        relay.pump()
    relay.pump()
    if outcome[0] is not None:
        raise outcome[0]
    if not relay.exported:
        raise Stopped(f"stopped after {relay.step} of {run.steps} steps; the same command resumes")


class _Patience:
    """How long a stop waits: `deadlines.stop` for the step under way, then for a checkpoint that is being written."""

    def __init__(self, run: LmRun, allow_s: Callable[[float], None]) -> None:
        self._run, self._allow = run, allow_s
        self._until: float | None = None
        self._saving = False

    def over(self) -> bool:
        """Whether it is; the first call begins it."""
        now = time.monotonic()
        if self._until is None:
            self._until = now + self._run.deadlines.stop
        if not self._saving and any(self._run.work_dir.glob(f"{SAVING}*")):
            self._saving = True
            self._until = max(self._until, now + self._run.deadlines.save)
            self._allow(self._run.deadlines.save)
        return now > self._until


def _check_room(run: LmRun) -> None:
    """Raise UserError, by name, if the cluster has no place for the ranks, however long one waits."""
    import ray

    least = run.min_workers or run.workers
    for name, each in (("CPU", run.cpus_per_worker), ("GPU", run.gpus_per_worker)):
        has = ray.cluster_resources().get(name, 0)
        if least * each > has:
            allowed = f"the Ray cluster has {has:g} {name}s: fewer workers, or less for each (cluster.learner_cpus)"
            raise UserError(f"{name}s of {least} training workers", f"{least * each:g}", allowed)


def _is_death(error: BaseException) -> bool:
    """Whether a worker died rather than raised: the same may well not happen again."""
    failures = list(getattr(error, "worker_failures", {}).values()) or [error]
    return any(is_death(getattr(failure, "_base_exc", None) or failure) for failure in failures)


def _as_framework_error(error: BaseException, work_dir: Path) -> BaseException:
    """The framework's own error behind Ray Train's, or RunFailed with the last line of the worker's traceback."""
    failures = list(getattr(error, "worker_failures", {}).values())
    for candidate in [*failures, error]:
        if (known := _known(candidate, work_dir)) is not None:
            return known
    # a rank that died or raised by itself, rather than one whose collective waited for it
    own = [failure for failure in failures if not is_collective(cause(failure))]
    return RunFailed(f"training worker failed: {cause((own or failures or [error])[0])}")


def _known(error: BaseException | None, work_dir: Path) -> UserError | RunFailed | None:
    """What an error of Ray Train's wraps, if that is one of the framework's or the user's disk is to blame for it."""
    while error is not None:
        if isinstance(error, UserError | RunFailed):
            return error
        if (disk_error := as_disk_error(error, work_dir)) is not None:
            return disk_error
        wrapped = (getattr(error, name, None) for name in ("cause", "controller_failure", "_base_exc", "__cause__"))
        error = next((inner for inner in wrapped if isinstance(inner, BaseException)), None)
    return None


class _Relay:
    """Moves finished lines of the workers' metrics file to the tracker."""

    def __init__(self, file: Path, tracker: Tracker, steps: int) -> None:
        self._file, self._tracker, self._steps = file, tracker, steps
        self._mark = file.with_name(RELAYED)
        self._offset, self.step = self._relayed()
        self._old = file.stat().st_size
        self.exported = False  # by these workers
        if self.step:
            tracker.progress(self.step, steps)

    def _relayed(self) -> tuple[int, int]:
        """Bytes that an earlier process has relayed, and the last step in them: none of it is sent again."""
        try:
            offset, step = map(int, self._mark.read_text().split())
        except (FileNotFoundError, ValueError):
            return 0, 0
        return (offset, step) if offset <= self._file.stat().st_size else (0, 0)

    def pump(self) -> None:
        """Log what has been written since the last call."""
        with self._file.open("rb") as handle:
            handle.seek(self._offset)
            text = handle.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            self._log(json.loads(line))
        if whole:
            write_atomically(self._mark, f"{self._offset} {self.step}")

    def _log(self, record: dict[str, Any]) -> None:
        import numpy as np

        if record.get("note"):
            logger.warning("%s", record["note"])
        step = record["step"]
        self.exported = bool(record.get("exported")) and self._offset > self._old
        if step <= self.step:
            self._tracker.rewind(step)
        self.step = step
        metrics = record["metrics"]
        if record.get("load"):
            load_LE = np.asarray(record["load"], dtype=np.float64)
            metrics["experts/max_over_mean"] = float((load_LE.max(-1) / load_LE.mean(-1)).mean())
            self._tracker.expert_load(step, load_LE)
        if metrics:
            self._tracker.log(step, metrics)
        if "train/loss" in metrics:
            text = f"loss {metrics['train/loss']:.3f}  {metrics['train/tokens_per_s']:,.0f} tokens/s"
            self._tracker.progress(step, self._steps, text)


def _worker(config: dict[str, Any]) -> None:
    """One data-parallel rank. Runs inside Ray Train."""
    import ray.train
    import torch
    import torch.distributed as dist

    from framework.engines.sharded_load import build_sharded, load_sharded
    from framework.engines.trainer import Trainer

    run: LmRun = config["run"]
    turns = 0  # what has been done: whoever waits for this rank sees that it gets on
    beat(pulse_name(str(run.out), ray.train.get_context().get_world_rank()), lambda: turns)
    torch.set_num_threads(run.engine.threads or max(1, int(run.cpus_per_worker)))
    rank = ray.train.get_context().get_world_rank()
    feed = run.data.open(run.seed)
    engine, world = run.engine, ray.train.get_context().get_world_size()
    if run.min_workers:  # experts spread as far as this number of workers allows
        engine = replace(engine, ep_size=math.gcd(engine.ep_size, world))
    if isinstance(run.model, ModelConfig):
        model = build_sharded(run.model, run.seed, engine)
    else:
        model = load_sharded(run.model, engine, run.seed if feed.objective.scalar_head else None)
    if feed.vocab_size > model.config.vocab_size:
        allowed = f"the tokenizer has {feed.vocab_size} tokens: it does not match this model"
        raise UserError("model.vocab_size", model.config.vocab_size, allowed)
    trainer = Trainer(model, engine, feed.objective)
    _restore(run, trainer, rank)
    step = trainer.engine.steps
    started, tokens = time.monotonic(), 0.0
    look_at, looked_at, looked = step + 1, step, time.monotonic()
    while step < run.steps:
        turns += 1
        result = trainer.step(feed.batch(step))
        step, tokens = result.step, tokens + result.metrics["tokens"]
        validate = step % run.validate_every == 0 or step == run.steps
        if rank == 0 and (step % 10 == 0 or step == run.steps):
            metrics = {f"train/{name}": float(value) for name, value in result.metrics.items()}
            metrics["train/tokens_per_s"] = tokens / (time.monotonic() - started)
            _write(run, step, metrics, result.expert_load_LE)
            started, tokens = time.monotonic(), 0.0
        if validate and feed.held_out is not None:
            found = trainer.evaluate(feed.held_out)
            if rank == 0:
                _write(run, step, {f"validation/{name}": value for name, value in found.items()}, None)
            run.milestones.evaluated(run.work_dir, trainer, step, found["loss"])
            started, tokens = time.monotonic(), 0.0
        run.milestones.stepped(run.work_dir, trainer, step)
        turns += 1
        stopping = False
        if step >= look_at:
            each = (time.monotonic() - looked) / max(1, step - looked_at)
            ahead = min(STOP_CHECK_STEPS, max(1, int(STOP_CHECK_S / max(each, 1e-9))))
            asked = float(rank == 0 and (run.work_dir / STOP).exists())
            flag = torch.tensor([asked, float(ahead)], device=trainer.engine.device)
            dist.broadcast(flag, src=0)
            stopping, look_at = bool(flag[0].item()), step + int(flag[1].item())
            looked_at, looked = step, time.monotonic()
        if step % run.checkpoint_every == 0 or stopping:
            with tempfile.TemporaryDirectory(prefix=SAVING, dir=run.work_dir) as directory:
                trainer.save(Path(directory))
                ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(directory))
        if stopping:
            return
    turns += 1
    told = run.milestones.finish(run.work_dir, trainer)
    trainer.export(run.out)
    if rank == 0:
        _write(run, step, {}, None, told, exported=True)


def _restore(run: LmRun, trainer: Trainer[Any, Any], rank: int) -> None:
    """Load the newest checkpoint that is whole. Collective: all ranks find the same ones damaged.

    What lies in the folder counts, not Ray Train's list of it: digests tell a checkpoint that a death cut off.
    """
    newest_first = sorted((run.work_dir / "train").glob("checkpoint_*/"), reverse=True)
    damaged: list[DamagedState] = []
    for directory in newest_first:
        try:
            trainer.load(directory)
        except DamagedState as error:
            damaged.append(error)
            continue
        if damaged and rank == 0:
            text = f"checkpoint {damaged[0].where} is damaged ({damaged[0]}): going on from {directory.name}"
            _write(run, trainer.engine.steps, {}, None, text)
        return
    if damaged:
        allowed = f"{damaged[0].allowed}; no older checkpoint is left: without {run.work_dir} the stage starts anew"
        raise UserError(damaged[0].where, damaged[0].value, allowed)


def _check_snapshot(file: Path) -> None:
    """Put Ray Train's list of checkpoints aside if it would not start with it: damaged, or naming what is gone."""
    try:
        listed = re.findall(r"checkpoint_\d{4}-[\w.-]+", json.dumps(json.loads(file.read_text())))
        broken = [name for name in listed if not (file.parent / name).is_dir()]
    except FileNotFoundError:
        return
    except ValueError as error:
        broken = [str(error)]
    if broken:
        logger.warning("%s is damaged (%s): the checkpoints beside it count without it", file, broken[0])
        file.replace(file.with_name(f"{file.name}.damaged"))


def _write(
    run: LmRun, step: int, metrics: dict[str, float], load_LE: Any, note: str = "", exported: bool = False
) -> None:
    record = {"step": step, "metrics": metrics, "load": None if load_LE is None else load_LE.tolist(), "note": note}
    record |= {"exported": exported}
    with (run.work_dir / METRICS).open("ab", buffering=0) as file:  # in one write: a killed worker leaves no torn line
        file.write(json.dumps(record).encode() + b"\n")
