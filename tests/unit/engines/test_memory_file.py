"""Published weights in memory that other processes map: there and back, and gone with their owner."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.engines.memory_file import MemoryReader, MemoryWriter
from framework.engines.weights import ALIGNMENT, unflatten, write
from framework.errors import RunFailed
from framework.types import MemoryFile

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8]
shapes = st.lists(st.integers(0, 5), max_size=3)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(shapes, st.sampled_from(DTYPES)), max_size=6))
def test_tensors_of_any_dtype_and_shape_come_back_bit_for_bit(specs: list[tuple[list[int], torch.dtype]]) -> None:
    tensors = [(f"t{i}", (100 * torch.randn(shape)).to(dtype)) for i, (shape, dtype) in enumerate(specs)]
    published, owner = write(tensors, 4, "learner rank 0")
    back = list(unflatten(published))
    owner.close()  # what is mapped stays
    assert published.version == 4
    assert [name for name, _ in back] == [name for name, _ in tensors]
    for (_, sent), (_, received) in zip(tensors, back, strict=True):
        assert (received.dtype, received.shape) == (sent.dtype, sent.shape)
        assert torch.equal(sent, received)
    assert all(entry.offset % ALIGNMENT == 0 for entry in published.tensors)


def test_a_tensor_may_go_once_the_next_one_is_asked_for() -> None:
    gathered = torch.empty(4)

    def one_at_a_time() -> object:
        for value in range(3):
            yield f"t{value}", gathered.fill_(value).view(2, 2).t()  # not contiguous
            gathered.fill_(-1)

    published, owner = write(one_at_a_time(), 1, "learner rank 0")  # type: ignore[arg-type]
    assert [tensor.tolist() for _, tensor in unflatten(published)] == [[[v, v], [v, v]] for v in (0.0, 1.0, 2.0)]
    owner.close()


def test_a_reader_of_the_whole_has_only_what_it_holds_resident() -> None:
    blocks, size = 8, 8 * 2**20
    published, owner = write(((f"t{n}", torch.full((size,), n, dtype=torch.uint8)) for n in range(blocks)), 1, "rank")
    before, most = _resident(), 0
    for n, (_, tensor) in enumerate(unflatten(published)):
        assert int(tensor[::4096].sum()) == n * size // 4096
        most = max(most, _resident() - before)
    assert most < 3 * size
    owner.close()


def test_what_is_published_can_no_longer_be_changed() -> None:
    owner = MemoryWriter("rank")
    owner.append(torch.ones(4), ALIGNMENT)
    file = owner.sealed()
    with pytest.raises(PermissionError):
        os.pwrite(file.descriptor, b"0", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(file.descriptor, 0)
    owner.close()


def test_memory_that_was_given_up_or_is_another_by_now_is_named() -> None:
    published, owner = write([("w", torch.ones(4))], 1, "learner rank 3")
    assert isinstance(published.buffer, MemoryFile)
    another = dataclasses.replace(published.buffer, name="weights-of-another")
    with pytest.raises(RunFailed, match=r"learner rank 3 .* has published newer weights"):
        MemoryReader(another)
    owner.close()
    with pytest.raises(RunFailed, match=r"learner rank 3 .*has ended, or"):
        list(unflatten(published))


OWNER = """
import sys, time, torch
from framework.engines.weights import write
published, owner = write([("w", torch.ones(2**22))], 1, "learner rank 0")
file = published.buffer
print(file.process, file.descriptor, file.name, file.machine, flush=True)
time.sleep(600)
"""


def test_a_killed_owner_leaves_nothing_behind_but_what_is_mapped() -> None:
    child = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        process, descriptor, name, machine = child.stdout.readline().split()
        file = MemoryFile("learner rank 0", machine, int(process), int(descriptor), name, 2**24)
        reader = MemoryReader(file)
        mapped = reader.view(0, 2**24).view(torch.float32)
        reader.close()
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert int(mapped.sum()) == 2**22
        with pytest.raises(RunFailed, match="has ended"):
            MemoryReader(file)
    finally:
        child.kill()
    assert not list(Path("/dev/shm").glob("*weights-*"))


def _resident() -> int:
    """Bytes of this process's memory that are there, shared ones too."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
