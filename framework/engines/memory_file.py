"""Bytes that one process writes once and others of its machine map in place: a file in memory without a name.

Linux's memfd: no limit of /dev/shm applies, and nothing is left behind, as its pages go once the last process that has
it open or mapped closes it or is killed. Others reach it through the owner's entry in /proc, so no path can clash.
"""

from __future__ import annotations

import fcntl
import functools
import mmap
import os
import secrets
import socket
import warnings
from pathlib import Path

import torch

from framework.errors import RunFailed
from framework.types import MemoryFile

STAGING_BYTES = 64 * 2**20  # of pinned memory, through which a GPU's tensors pass
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@functools.cache
def machine() -> str:
    """What processes have in common that can map each other's files: a kernel since its start, and process ids."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()}-{boot}-{os.stat('/proc/self/ns/pid').st_ino}"


class MemoryWriter:
    """A file that grows by `append`, and is never changed again once it is `sealed`."""

    def __init__(self, owner: str) -> None:
        self._owner, self._name = owner, f"weights-{secrets.token_hex(8)}"  # a process id may be another one's later
        self._descriptor = os.memfd_create(self._name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._size = 0
        self._staging: torch.Tensor | None = None

    def append(self, tensor: torch.Tensor, alignment: int) -> int:
        """Copy a tensor of any device and dtype behind what is there; return its offset in bytes."""
        offset = -(-self._size // alignment) * alignment
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        self._size = offset + flat.numel()
        os.ftruncate(self._descriptor, self._size)
        for part in torch.split(flat, STAGING_BYTES):
            at = offset + (part.data_ptr() - flat.data_ptr())
            _write(self._descriptor, part if part.device.type == "cpu" else self._staged(part), at)
        return offset

    def sealed(self, address: str = "") -> MemoryFile:
        """Return the reference to give away; the file stays until `close`, and for whoever has mapped it by then."""
        fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, SEALS)
        self._staging = None
        return MemoryFile(self._owner, machine(), os.getpid(), self._descriptor, self._name, self._size, address)

    def close(self) -> None:
        """Give the memory back. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()

    def _staged(self, part: torch.Tensor) -> torch.Tensor:
        if self._staging is None:
            self._staging = torch.empty(STAGING_BYTES, dtype=torch.uint8, pin_memory=True)
        return self._staging[: part.numel()].copy_(part)


def _write(descriptor: int, part: torch.Tensor, offset: int) -> None:
    rest = part.numpy().data
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


def opened(file: MemoryFile, flags: int = os.O_RDONLY) -> int:
    """Return a descriptor of another process's file. Raises RunFailed if that has closed it, or has ended.

    A process id, and a descriptor, may be another one's by now, so the file's name is compared.
    """
    gone = f"{file.owner} (process {file.process}) has ended, or has published newer weights since"
    try:
        descriptor = os.open(f"/proc/{file.process}/fd/{file.descriptor}", flags | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise RunFailed(gone) from error
    except PermissionError as error:
        raise RunFailed(f"no right to map the memory of {file.owner}: both must run as one user") from error
    if os.readlink(f"/proc/self/fd/{descriptor}") != f"/memfd:{file.name} (deleted)":
        os.close(descriptor)
        raise RunFailed(gone)
    return descriptor


class MemoryReader:
    """Opens what a process of this machine has sealed; raises RunFailed as `opened`."""

    def __init__(self, file: MemoryFile) -> None:
        self._descriptor = opened(file)

    def view(self, offset: int, size: int) -> torch.Tensor:
        """Map `size` bytes, [bytes] uint8, not to be written to; they count as this process's while the tensor lives.

        A mapping of its own for every view: so a reader of a whole model never has more than a part of it resident.
        """
        if not size:
            return torch.empty(0, dtype=torch.uint8)
        start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        window = mmap.mmap(self._descriptor, offset + size - start, mmap.MAP_SHARED, mmap.PROT_READ, offset=start)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            return torch.frombuffer(window, dtype=torch.uint8, count=size, offset=offset - start)

    def close(self) -> None:
        """Views stay valid."""
        os.close(self._descriptor)
