"""Who works on a run's directory: one driver at a time, on this host or any other that shares the disk.

<run>/owner/000007.json    the seventh owner: host, process, since when; touched every few seconds while it lives

The highest number owns. Taking over is making the next number, which only one process can (a hard link fails if the
name is there, on NFS as well; locks of the operating system don't hold everywhere). An owner is dead if its process is
gone, as far as this host can see it, or else if its file has not been touched for a while by the file server's clock.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from uuid import uuid4

import psutil

from framework.errors import RunFailed, UserError
from framework.files import write_atomically

OWNER = "owner"
MISSED = 3  # signs of life in a row for which there is no file: the run's directory is gone
logger = logging.getLogger("framework")


@dataclass(frozen=True)
class Pulse:
    """Seconds between two signs of life, and of silence that make an owner on another host a dead one."""

    every_s: float = 5.0
    dead_after_s: float = 60.0


PULSE = Pulse()


@dataclass(frozen=True)
class Owner:
    """A process that works, or worked, on a run."""

    host: str
    system: str  # which kernel's which process table: a process number means nothing elsewhere
    process: int
    started: float  # of the process, seconds after the system's start: numbers are used again, and clocks are set
    since: float  # seconds since 1970
    released: bool = False

    @staticmethod
    def this_process() -> Owner:
        """Of this process, from now on."""
        return Owner(socket.gethostname(), _system(), os.getpid(), started_at(os.getpid()), time.time())

    def is_gone(self) -> bool | None:
        """Whether its process has ended; None if that can't be seen from here."""
        if self.released:
            return True
        if self.system != _system():
            return None
        try:
            process = psutil.Process(self.process)
            zombie = process.status() == psutil.STATUS_ZOMBIE
            since_1970 = self.started > 1e9  # as an earlier version noted it, which may be at work there still
            started = process.create_time() if since_1970 else started_at(self.process)
            return bool(zombie or abs(started - self.started) > 1.0)
        except psutil.NoSuchProcess:
            return None if psutil.pid_exists(self.process) else True  # a system that hides others' processes

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.since))
        return f"process {self.process} on {self.host} since {since}"


Lost = Callable[[Owner | None], object]  # told who has taken the run over; None: its directory is gone


class Ownership:
    """A run directory that this process owns until `release`; its heart beats in a thread."""

    def __init__(self, file: Path, owner: Owner, pulse: Pulse, on_lost: Lost) -> None:
        self.file, self.owner = file, owner
        self._pulse, self._on_lost = pulse, on_lost
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run-owner", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise RunFailed if another process has taken the run over: what it publishes must not be ours."""
        if (other := self._successor()) is not None:
            raise RunFailed(f"{self.file.parent.parent} was taken over by {other}, which took this process for dead")
        if not self.file.is_file():
            raise RunFailed(f"{self.file.parent.parent} was moved or deleted while it was being worked on")

    def release(self) -> None:
        """Let the next one have the run."""
        self._released.set()
        self._thread.join()
        if self._successor() is None and self.file.is_file():
            with suppress(OSError):  # a full disk, or a folder that was removed: the process is about to be gone
                write_atomically(self.file, json.dumps(asdict(replace(self.owner, released=True))))

    def _successor(self) -> Owner | None:
        newest = _newest(self.file.parent)
        return None if newest is None or newest.name <= self.file.name else _read(newest)

    def _beat(self) -> None:
        missed = 0
        while not self._released.wait(self._pulse.every_s):
            try:
                successor = self._successor()
                if successor is not None:
                    self._on_lost(successor)
                    return
                os.utime(self.file)
                missed = 0
            except FileNotFoundError:
                missed += 1
                if missed == MISSED:
                    self._on_lost(None)
                    return
            except OSError:  # the disk is away for a moment, or for good: the run itself will hear of it
                continue


def own(run_dir: Path, on_lost: Lost, pulse: Pulse = PULSE) -> Ownership:
    """Take the directory, which exists, if nobody has it or who has it is dead; else raise UserError that names it.

    An owner on another host is watched until its heart beats, or it counts as dead.
    """
    folder = run_dir / OWNER
    folder.mkdir(exist_ok=True)
    while True:
        newest = _newest(folder)
        number = 0 if newest is None else int(newest.stem)
        if newest is not None and (before := _read(newest)) is not None and not _is_dead(newest, before, pulse):
            allowed = "is at work there; wait for it, stop it, or choose another run=NAME"
            raise UserError(str(run_dir), str(before), allowed)
        owner, file = Owner.this_process(), folder / f"{number + 1:06d}.json"
        if not _create(file, json.dumps(asdict(owner))):
            continue
        if _newest(folder) != file:  # others came and went since we looked
            file.unlink()
            continue
        if newest is not None and before is not None and not before.released:
            logger.warning("%s: taken over from %s, which is dead", run_dir, before)
        for old in folder.glob("*.json"):
            if old.name < file.name:
                with suppress(OSError):  # gone already, or nothing of ours
                    old.unlink()
        return Ownership(file, owner, pulse, on_lost)


@contextmanager
def owned(run_dir: Path, on_lost: Lost, pulse: Pulse = PULSE) -> Iterator[Ownership]:
    """`own` for the length of a block; a directory that holds nothing else afterwards goes with it."""
    created = [place for place in (run_dir, *run_dir.parents) if not place.exists()]
    ownership: Ownership | None = None
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        ownership = own(run_dir, on_lost, pulse)
        yield ownership
    finally:
        if ownership is not None:
            ownership.release()
        with suppress(OSError):  # the folder may have gone meanwhile
            if not [entry.name for entry in run_dir.iterdir() if entry.name != OWNER]:
                if ownership is not None:
                    ownership.file.unlink()
                (run_dir / OWNER).rmdir()  # not if it is another's
                for place in created:
                    place.rmdir()


def _is_dead(file: Path, owner: Owner, pulse: Pulse) -> bool:
    gone = owner.is_gone()
    if gone is not None:
        return gone
    last, told = touched_at(file), False  # it can't be seen from here: it lives if it touches its file again
    began = time.monotonic()  # the file may bear a time to come, where a clock was wrong
    while True:
        touched, now = touched_at(file), _server_time(file.parent)
        silent = max(now - touched, time.monotonic() - began) if touched is not None else 0.0
        if touched is None or last is None or silent > pulse.dead_after_s:
            return True
        if touched != last:
            return False
        if not told and silent > 2 * pulse.every_s:
            told = True
            text = "%s gives no sign of life: waiting %.0f s for one before its run is taken over"
            logger.warning(text, owner, pulse.dead_after_s - silent)
        time.sleep(min(1.0, pulse.every_s / 2))


def touched_at(file: Path) -> float | None:
    """When a file was touched last, by the file server's clock; None if it is gone."""
    try:
        with file.open("rb") as handle:  # an open file's attributes are fresh on NFS, a name's may not be
            return os.fstat(handle.fileno()).st_mtime
    except FileNotFoundError:
        return None


def _server_time(folder: Path) -> float:
    """What the file server's clock says now: hosts' own clocks differ."""
    probe = folder / f".{uuid4().hex}"
    try:
        with probe.open("wb") as handle:
            handle.write(b"1")
            handle.flush()
            os.fsync(handle.fileno())
            return os.fstat(handle.fileno()).st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _create(file: Path, text: str) -> bool:
    """Make a file with its whole content, unless there is one: false."""
    temporary = file.with_name(f".{uuid4().hex}")
    try:
        temporary.write_text(text)
        os.link(temporary, file)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _newest(folder: Path) -> Path | None:
    return max((file for file in folder.glob("*.json") if file.stem.isdigit()), default=None)


def _read(file: Path) -> Owner | None:
    """The owner in a file; None for one that is gone, or damaged: nobody can be waited for."""
    try:
        found = Owner(**json.loads(file.read_text()))
        numbers = int(found.process), float(found.started), float(found.since), time.gmtime(found.since)
    except (FileNotFoundError, IsADirectoryError, ValueError, TypeError, OverflowError):
        return None
    return found if isinstance(found.process, int) and numbers[0] > 0 else None


def started_at(process: int) -> float:
    """When a process of this system began, in seconds after the system's start: setting its clock changes nothing."""
    try:
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            raise psutil.NoSuchProcess(process) from None
        return float(psutil.Process(process).create_time())  # no Linux


def _system() -> str:
    """This kernel and process table: the same for two processes that can see one another."""
    boot, table = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    try:
        return f"{boot.read_text().strip()} {os.readlink(table)}"
    except OSError:  # no Linux
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"
