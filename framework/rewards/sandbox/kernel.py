"""What the sandbox asks of Linux that Python has no function for: namespaces, mounts, seccomp, Landlock, capabilities.

Everything here raises OSError with the kernel's own reason. Nothing but the standard library: the sandbox's process
imports this file before it gives its rights up.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
from collections.abc import Callable, Iterable

CLONE_THREAD = 0x10000
NEW_MOUNTS, NEW_IPC, NEW_HOST_NAME, NEW_USERS = 0x20000, 0x8000000, 0x4000000, 0x10000000
NEW_PIDS, NEW_NETWORK = 0x20000000, 0x40000000
READ_ONLY, NO_SUID, NO_DEV, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 4096, 16384, 1 << 18
DETACH = 2
KEPT_DESCRIPTOR = 300  # and above: what a fork keeps until it is shut in
_SIGCHLD = 17
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38

# PyDLL keeps the interpreter's lock during a call, which `fork_into` needs.
_libc = ctypes.PyDLL(None, use_errno=True)

_COMMON = {  # numbers that all architectures share
    "pidfd_send_signal": 424,
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_open": 434,
    "clone3": 435,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "mount_setattr": 442,
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
    "memfd_secret": 447,
}
# x86_64, aarch64; None: there is no such call
_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "add_key": (248, 217),
    "bpf": (321, 280),
    "capset": (126, 91),
    "chroot": (161, 51),
    "clone": (56, 220),
    "execve": (59, 221),
    "execveat": (322, 281),
    "fanotify_init": (300, 262),
    "fcntl": (72, 25),
    "fork": (57, None),
    "ioctl": (16, 29),
    "ioprio_set": (251, 30),
    "kcmp": (312, 272),
    "keyctl": (250, 219),
    "kill": (62, 129),
    "memfd_create": (319, 279),
    "migrate_pages": (256, 238),
    "mount": (165, 40),
    "move_pages": (279, 239),
    "mq_open": (240, 180),
    "msgctl": (71, 187),
    "msgget": (68, 186),
    "msgrcv": (70, 188),
    "msgsnd": (69, 189),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pivot_root": (155, 41),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "request_key": (249, 218),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "semctl": (66, 191),
    "semget": (64, 190),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "setns": (308, 268),
    "setpriority": (141, 140),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmget": (29, 194),
    "socket": (41, 198),
    "syslog": (103, 116),
    "tgkill": (234, 131),
    "tkill": (200, 130),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vfork": (58, None),
}
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of _NUMBERS, AUDIT_ARCH


def number(name: str) -> int | None:
    """Return a system call's number on this machine; None if it has none. Raises OSError on another architecture."""
    if platform.machine() not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no table of system calls for {platform.machine()}")
    return _COMMON[name] if name in _COMMON else _NUMBERS[name][_ARCHITECTURES[platform.machine()][0]]


def call(name: str, *arguments: object) -> int:
    """Do a system call; raises OSError."""
    return _checked(name, _libc.syscall(number(name), *map(_as_long, arguments)))


def fork_into(flags: int) -> int:
    """Fork into new namespaces: 0 in the child, the child's process id in the parent. For a process of one thread."""
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = int(_libc.syscall(number("clone"), ctypes.c_long(flags | _SIGCHLD), *[ctypes.c_long(0)] * 4))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0
    reason = ctypes.get_errno()
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(reason, f"clone: {os.strerror(reason)}")
    return pid


def unshare(flags: int) -> None:
    """Move this process into new namespaces."""
    _checked("unshare", _libc.unshare(ctypes.c_int(flags)))


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """Mount, as in mount(2)."""
    result = _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())
    _checked(f"mount of {source} on {target}", result)


def make_read_only(path: str) -> None:
    """Make a mount and all below it read-only, and deaf to set-user-id bits; needs Linux 5.12."""
    attributes = struct.pack("=QQQQ", READ_ONLY | NO_SUID, 0, 0, 0)
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    call("mount_setattr", -100, path.encode(), 0x8000, buffer, len(attributes))  # AT_FDCWD, AT_RECURSIVE


def pivot_to(directory: str) -> None:
    """Make a mount the root, and let go of the old root."""
    os.chdir(directory)
    call("pivot_root", b".", b".")
    _checked("umount2", _libc.umount2(b".", ctypes.c_int(DETACH)))
    os.chdir("/")


def drop_capabilities() -> None:
    """Give up what a user namespace's creator may do in it."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0), 8)
    call("capset", header, ctypes.create_string_buffer(24))


def die_with_parent() -> None:
    """Ask to be killed when the process that forked this one ends."""
    _prctl(_PR_SET_PDEATHSIG, 9)


def hide_memory() -> None:
    """Let no process of the same user read this one's memory or descriptors."""
    _prctl(_PR_SET_DUMPABLE, 0)


def no_new_rights() -> None:
    """No program that this one starts gets more rights than it has."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


# Of what needs no other right, these reach other processes of the same user (their memory, priority, shared memory,
# queues), the kernel's insides, or memory that no limit counts.
_DENIED = (
    *("add_key", "bpf", "chroot", "fanotify_init", "fsconfig", "fsmount", "fsopen", "fspick", "io_uring_enter"),
    *("io_uring_register", "io_uring_setup", "ioprio_set", "kcmp", "keyctl", "memfd_create", "memfd_secret"),
    *("migrate_pages", "mount", "mount_setattr", "move_mount", "move_pages", "mq_open", "msgctl", "msgget", "msgrcv"),
    *("msgsnd", "name_to_handle_at", "open_by_handle_at", "open_tree", "perf_event_open", "personality"),
    *("pidfd_getfd", "pidfd_open", "pidfd_send_signal", "pivot_root", "process_madvise", "process_vm_readv"),
    *("process_vm_writev", "ptrace", "request_key", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "sched_setaffinity"),
    *("sched_setattr", "sched_setparam", "sched_setscheduler", "semctl", "semget", "semop", "semtimedop", "setns"),
    *("setpriority", "shmat", "shmctl", "shmget", "socket", "syslog", "tkill", "umount2", "unshare", "userfaultfd"),
)
_STARTS = ("fork", "vfork", "execve", "execveat")
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000


def filter_calls(processes: bool, signals: bool) -> None:
    """Refuse system calls that a program does not need (seccomp); for good, in everything it starts too.

    Without `processes` it can start threads, but no process. Without `signals` it can signal nobody but itself.
    """
    no_new_rights()
    code = b"".join(struct.pack("=HBBI", *line) for line in _filter(processes, signals))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer)))
    _prctl(_PR_SET_SECCOMP, 2, ctypes.addressof(program))


def _filter(processes: bool, signals: bool) -> list[tuple[int, int, int, int]]:
    """The filter in classic BPF: (code, jump if true, jump if false, constant)."""
    lines = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, _ARCHITECTURES[platform.machine()][1]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, 0, 1, 0x40000000),  # x86's second numbering of the same calls
        (_RETURN, 0, 0, _REFUSE | errno.EPERM),
        (_EQUAL, 0, 1, number("clone3") or 0),
        (_RETURN, 0, 0, _REFUSE | errno.ENOSYS),  # its flags lie in memory; the C library then calls clone
    ]
    for name in (*_DENIED, *(() if processes else _STARTS)):
        if (found := number(name)) is not None:
            lines += [(_EQUAL, 0, 1, found), (_RETURN, 0, 0, _REFUSE | errno.EPERM)]
    # call, its argument, the test, and whether the call goes on when the test holds
    tests: list[tuple[str, int, int, int, bool]] = [
        ("prctl", 0, _EQUAL, _PR_SET_PDEATHSIG, False),
        *(("fcntl", 1, _EQUAL, command, False) for command in (8, 10, 15)),  # F_SETOWN, F_SETSIG, F_SETOWN_EX
        *(("ioctl", 1, _EQUAL, request, False) for request in (0x8901, 0x8902, 0x5412)),  # FIOSETOWN … TIOCSTI
    ]
    tests.append(("prlimit64", 0, _EQUAL, 0, True))  # its own limits alone
    if not processes:
        tests.append(("clone", 0, _ANY_BIT, CLONE_THREAD, True))
    if not signals:
        tests += [(name, 0, _EQUAL, os.getpid(), True) for name in ("kill", "tgkill")]
    for name, argument, test, value, goes_on in tests:
        refuse = (_RETURN, 0, 0, _REFUSE | errno.EPERM)
        lines += [
            (_EQUAL, 0, 4, number(name) or 0),
            (_LOAD, 0, 0, 16 + 8 * argument),
            (test, 1, 0, value) if goes_on else (test, 0, 1, value),
            refuse,
            (_LOAD, 0, 0, 0),
        ]
    return [*lines, (_RETURN, 0, 0, _ALLOW)]


_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3
_FILE_RIGHTS = 1 << 0 | 1 << 1 | _READ_FILE | 1 << 14 | 1 << 15  # of what Landlock knows, those that a file can have


class Landlock:
    """What a process may still do with files: read below `readable`, list `listable`, anything below `writable`."""

    def __init__(self, readable: Iterable[str], listable: Iterable[str], writable: Iterable[str]) -> None:
        version = call("landlock_create_ruleset", None, 0, 1)
        handled = (1 << {1: 13, 2: 14}.get(version, 15 if version < 5 else 16)) - 1
        fields = [handled, 3 if version >= 4 else 0, 3 if version >= 6 else 0]  # files; TCP; abstract sockets, signals
        size = 8 if version < 4 else 16 if version < 6 else 24
        attributes = ctypes.create_string_buffer(struct.pack("=QQQ", *fields), 24)
        first = call("landlock_create_ruleset", attributes, size, 0)
        self.descriptor = fcntl.fcntl(first, fcntl.F_DUPFD_CLOEXEC, KEPT_DESCRIPTOR)
        os.close(first)
        for paths, rights in ((readable, _READ_FILE | _READ_FOLDER), (listable, _READ_FOLDER), (writable, handled)):
            for path in paths:
                self._allow(path, rights)

    def _allow(self, path: str, rights: int) -> None:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not os.path.isdir(path):
                rights &= _FILE_RIGHTS
            rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, place), 12)
            call("landlock_add_rule", self.descriptor, 1, rule, 0)
        finally:
            os.close(place)

    def enforce(self) -> None:
        """Bind this process and all that it starts."""
        no_new_rights()
        call("landlock_restrict_self", self.descriptor, 0)
        os.close(self.descriptor)


def _prctl(option: int, *arguments: int) -> None:
    values = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    _checked("prctl", _libc.prctl(ctypes.c_int(option), *values))


def _checked(what: str, result: int) -> int:
    if result < 0:
        reason = ctypes.get_errno()
        raise OSError(reason, f"{what}: {os.strerror(reason)}")
    return result


def _as_long(value: object) -> object:
    return ctypes.c_long(value) if isinstance(value, int) else value


def works(action: Callable[[], object]) -> str:
    """Try something in a process of its own; return why it failed, or an empty string."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        reason = b""
        try:
            action()
        except BaseException as error:
            reason = str(error).encode()[:500] or b"failed"
        os.write(theirs, reason)
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        told = pipe.read().decode(errors="replace")
    status = os.waitpid(pid, 0)[1]
    return told or ("" if status == 0 else f"ended with status {status}")
