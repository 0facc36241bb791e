"""How a program is shut in: three levels, of which the best that the kernel allows is taken.

namespaces  a root of its own, read-only, that holds the interpreter's library and nothing else; a private /tmp in
            memory; no network; process ids, shared memory and host name of its own; a user of its own where the caller
            is root; seccomp
filters     Landlock: reads the interpreter's library, writes its private folder, opens nothing else, no TCP; seccomp:
            no sockets, no other process, no signal to anybody; a user of its own where the caller is root
limits      resource limits alone, and a user of its own where the caller is root: it may read and write what that
            user may, and use the network

Every level has the limits on time, memory, processes, files and output.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import resource
import shutil
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from framework.rewards.sandbox import kernel

LEVELS = ("namespaces", "filters", "limits")  # the strongest first
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_NOBODY = 65534
_FIRST_USER = 0x40000000  # and a sandbox's process id: no account of the host has such a number
_OTHERS = 4096  # threads that a user may have beside the program: no more is known of them
TEMPORARY = "/tmp"


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    cpu_s: int
    memory_mb: int
    files_mb: int
    threads: int
    processes: int
    open_files: ClassVar[int] = 64

    def set(self, others: int = 0) -> None:
        """Set them for this process and all that it starts: memory is shared out, so that the sum keeps the limit.

        `others` are the threads that this user has already, which the kernel counts too.
        """
        memory = (self.memory_mb << 20) // self.processes
        for name, limit in (
            (resource.RLIMIT_AS, memory),
            (resource.RLIMIT_CPU, self.cpu_s),
            (resource.RLIMIT_FSIZE, self.files_mb << 20),
            (resource.RLIMIT_NOFILE, self.open_files),
            (resource.RLIMIT_NPROC, others + self.threads * self.processes),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_MEMLOCK, 0),
            (resource.RLIMIT_MSGQUEUE, 0),
        ):
            hard = resource.getrlimit(name)[1]
            limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(name, (limit, limit))


@dataclass(frozen=True)
class Library:
    """What a program may read: files and folders of the interpreter, and of packages that it may import."""

    readable: tuple[str, ...]
    stdlib: str
    masked: tuple[str, ...]  # folders below that hold whatever else is installed, data sets included
    packages: tuple[str, ...]

    @classmethod
    def of(cls, packages: Sequence[str]) -> Library:
        """Find the interpreter's files; raises ImportError for a package that is not installed."""
        stdlib = sysconfig.get_path("stdlib")
        places = []
        for name in packages:
            found = importlib.util.find_spec(name)
            if found is None or not found.submodule_search_locations:
                raise ImportError(f"{name} is not an installed package")
            place = next(iter(found.submodule_search_locations))
            places += [path for path in (place, f"{place}.libs") if os.path.isdir(path)]
        kind = sysconfig.get_config_var("MULTIARCH") or ""
        system = ["/lib64", "/usr/lib64", *(f"{top}/{kind}" for top in ("/lib", "/usr/lib") if kind)]
        system += ["/etc/ld.so.cache", "/usr/share/zoneinfo"]
        masked = [path for top in (stdlib, "/usr/lib64/python3*") for path in glob.glob(f"{top}/*-packages")]
        return cls(tuple(filter(os.path.exists, system)), stdlib, tuple(masked), tuple(places))

    @property
    def path(self) -> list[str]:
        """A program's `sys.path`."""
        folders = dict.fromkeys(os.path.dirname(place) for place in self.packages)
        return [self.stdlib, os.path.join(self.stdlib, "lib-dynload"), *folders]


class Namespaces:
    """The strongest level. Made once, it moves the calling process in."""

    name = "namespaces"

    def __init__(self, library: Library) -> None:
        self._users = os.geteuid() != 0 or bool(kernel.works(lambda: kernel.unshare(kernel.NEW_MOUNTS)))
        flags = kernel.NEW_MOUNTS | kernel.NEW_NETWORK | kernel.NEW_IPC | kernel.NEW_HOST_NAME
        user, group = os.geteuid(), os.getegid()
        kernel.unshare(flags | (kernel.NEW_USERS if self._users else 0))
        if self._users:
            for name, text in (
                ("setgroups", "deny"),
                ("uid_map", f"{user} {user} 1"),
                ("gid_map", f"{group} {group} 1"),
            ):
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
        kernel.mount("none", "/", flags=kernel.RECURSIVE | kernel.PRIVATE)
        _build_root("/proc", library)

    def fork(self) -> int:
        """Fork a process with process ids, mounts and shared memory of its own; as `os.fork`."""
        return kernel.fork_into(kernel.NEW_PIDS | kernel.NEW_MOUNTS | kernel.NEW_IPC)

    def confine(self, limits: Limits, user: int) -> None:
        """Take this process's rights away, for good."""
        size = f"size={limits.files_mb}m,nr_inodes={64 * limits.files_mb},mode=1777"
        kernel.mount("files", TEMPORARY, "tmpfs", kernel.NO_SUID | kernel.NO_DEV, size)
        os.chdir(TEMPORARY)
        limits.set()
        if self._users:
            kernel.drop_capabilities()
        else:
            become(user)
        kernel.die_with_parent()
        kernel.filter_calls(processes=limits.processes > 1, signals=True)

    def used_bytes(self) -> int:
        """What lies in the private folder beyond the kernel's own limit: nothing."""
        return 0

    def clean(self) -> None:
        """The private folder goes with its program."""

    close = clean


class Filters:
    """What an ordinary process may do to itself."""

    name = "filters"

    def __init__(self, library: Library) -> None:
        self._own_user = os.geteuid() == 0 and _open_to_all(library.stdlib)
        self._folder = _private_folder(self._own_user)
        listable = [*(library.path if library.packages else ()), library.stdlib]
        masked = {os.path.basename(path) for path in library.masked}
        standard = [entry.path for entry in os.scandir(library.stdlib) if entry.name not in masked]
        readable = [*library.readable, *standard, *library.packages, *filter(os.path.exists, _DEVICES)]
        self._inside = kernel.Landlock(readable, listable, [self._folder, os.devnull])
        if reason := kernel.works(lambda: kernel.filter_calls(processes=False, signals=False)):
            raise OSError(reason)

    def fork(self) -> int:
        """Fork, as `os.fork`."""
        return os.fork()

    def confine(self, limits: Limits, user: int) -> None:
        """Take this process's rights away, for good."""
        os.chdir(self._folder)
        tempfile.tempdir = self._folder
        limits.set(0 if self._own_user else _OTHERS)
        if self._own_user:
            become(user)
        elif os.geteuid() == 0:
            kernel.drop_capabilities()
        kernel.die_with_parent()
        self._inside.enforce()
        kernel.filter_calls(processes=False, signals=False)

    def used_bytes(self) -> int:
        """What lies in the private folder."""
        return folder_bytes(self._folder)

    def clean(self) -> None:
        """Empty the private folder."""
        empty_folder(self._folder)

    def close(self) -> None:
        """Remove the private folder."""
        empty_folder(self._folder)
        os.rmdir(self._folder)


class LimitsAlone(Filters):
    """Where the kernel gives nothing else."""

    name = "limits"

    def __init__(self, library: Library) -> None:
        self._own_user = os.geteuid() == 0  # also one that cannot read the library: what is usual is loaded
        self._folder = _private_folder(self._own_user)

    def confine(self, limits: Limits, user: int) -> None:
        """Set limits: no further thread or process."""
        os.chdir(self._folder)
        tempfile.tempdir = self._folder
        limits.set()
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        if self._own_user:
            become(user)
        for restrict in (kernel.die_with_parent, lambda: kernel.filter_calls(processes=False, signals=False)):
            try:
                restrict()
            except OSError:
                continue  # whatever this kernel has of it


Level = Namespaces | Filters | LimitsAlone


def best_level(library: Library, names: Sequence[str]) -> tuple[Level, list[str]]:
    """Enter the first of the levels that the kernel allows; returns it, and why not those before it."""
    kinds: dict[str, type[Level]] = {"namespaces": Namespaces, "filters": Filters, "limits": LimitsAlone}
    reasons: list[str] = []
    for name in names:
        # entering moves the process, so it is tried in another one first
        try:
            if kinds[name] is Namespaces and (why := kernel.works(lambda: _try_namespaces(library))):
                raise OSError(why)
            return kinds[name](library), reasons
        except OSError as error:
            reasons.append(f"no {name}: {error}")
    raise OSError("; ".join(reasons))


def _try_namespaces(library: Library) -> None:
    level = Namespaces(library)
    pid = level.fork()
    if pid == 0:
        code = 1
        try:
            level.confine(Limits(1, 1024, 1, 4, 1), user_number(0))
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1] != 0:
        raise OSError("a process in new namespaces cannot be confined")


def user_number(place: int) -> int:
    """Return a user number of its own for one of the programs that run at a time in this sandbox."""
    return _FIRST_USER + 2 * os.getpid() + place


def become(user: int) -> None:
    """Change from root to a user that owns nothing, or to nobody where user numbers are few."""
    os.setgroups([])
    for number in (user, _NOBODY):
        try:
            os.setresgid(number, number, number)
            os.setresuid(number, number, number)
            return
        except OSError:
            if number == _NOBODY:
                raise


def _build_root(root: str, library: Library) -> None:
    """Make the folder `root` a file system of the library alone, and move there."""
    kernel.mount("root", root, "tmpfs", kernel.NO_SUID, "size=1m,mode=755")
    for path in (*library.readable, library.stdlib, *_DEVICES):
        _bind(path, root)
    for path in library.masked:
        if os.path.isdir(root + path):
            kernel.mount("empty", root + path, "tmpfs", kernel.NO_SUID | kernel.NO_DEV, "size=64k,mode=755")
    for path in library.packages:
        _bind(path, root)
    os.makedirs(root + TEMPORARY, exist_ok=True)
    kernel.make_read_only(root)
    kernel.pivot_to(root)


def _bind(path: str, root: str) -> None:
    if not os.path.exists(path):
        return
    target = root + path
    os.makedirs(target if os.path.isdir(path) else os.path.dirname(target), exist_ok=True)
    if not os.path.isdir(path):
        open(target, "w").close()
    kernel.mount(path, target, flags=kernel.BIND | kernel.RECURSIVE)


def _private_folder(own_user: bool) -> str:
    folder = tempfile.mkdtemp(prefix="program-")
    if own_user:
        os.chmod(folder, 0o1777)
    return folder


def _open_to_all(path: str) -> bool:
    """Whether any user may reach a folder."""
    parts = [path]
    while os.path.dirname(parts[-1]) != parts[-1]:
        parts.append(os.path.dirname(parts[-1]))
    return all(os.stat(part).st_mode & 0o5 == 0o5 for part in parts)


def folder_bytes(folder: str) -> int:
    """Return the size of all files below a folder; what cannot be looked at counts nothing."""
    total, folders = 0, [folder]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except OSError:
            continue
    return total


def empty_folder(folder: str) -> None:
    """Delete what lies in a folder, closed folders too; links are not followed."""
    for top, names, _ in os.walk(folder):
        for name in names:
            if not os.path.islink(os.path.join(top, name)):
                os.chmod(os.path.join(top, name), 0o700)
    for entry in list(os.scandir(folder)):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            os.unlink(entry.path)
