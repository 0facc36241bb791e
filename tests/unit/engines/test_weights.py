"""Flat buffers of weights, there and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from framework.engines.weights import ALIGNMENT, check_safetensors, common_version, flatten, unflatten
from framework.errors import UserError

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8]
shapes = st.lists(st.integers(0, 5), max_size=3)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(shapes, st.sampled_from(DTYPES)), max_size=6))
def test_tensors_of_any_dtype_and_shape_come_back_bit_for_bit(specs: list[tuple[list[int], torch.dtype]]) -> None:
    tensors = [(f"t{i}", (100 * torch.randn(shape)).to(dtype)) for i, (shape, dtype) in enumerate(specs)]
    published = flatten(tensors, version=4)
    back = list(unflatten(published))
    assert published.version == 4
    assert [name for name, _ in back] == [name for name, _ in tensors]
    for (_, sent), (_, received) in zip(tensors, back, strict=True):
        assert (received.dtype, received.shape) == (sent.dtype, sent.shape)
        assert torch.equal(sent, received)
    assert all(entry.offset % ALIGNMENT == 0 for entry in published.tensors)


def test_strided_and_trained_tensors_are_copied_by_value() -> None:
    weight = torch.nn.Parameter(torch.arange(12.0).view(3, 4))
    published = flatten([("transposed", weight.t())], version=0)
    with torch.no_grad():
        weight.zero_()
    ((_, received),) = unflatten(published)
    assert torch.equal(received, torch.arange(12.0).view(3, 4).t())


def test_reading_copies_nothing_and_takes_buffers_of_the_object_store(recwarn: pytest.WarningsRecorder) -> None:
    published = flatten([("w", torch.ones(4))], version=0)
    published.buffer.flags.writeable = False
    ((_, tensor),) = unflatten(published)
    assert tensor.data_ptr() == published.buffer.ctypes.data
    assert not recwarn.list


def test_shares_of_one_version_that_hold_different_tensors_belong_together() -> None:
    share, other, newer = (flatten([(n, torch.ones(1))], v) for n, v in [("a", 1), ("b", 1), ("b", 2)])
    assert common_version([share, other]) == 1
    for wrong, message in [
        ([], r"versions \[\]"),
        ([share, newer], r"\[1, 2\]"),
        ([share, share], "a is in more than"),
    ]:
        with pytest.raises(ValueError, match=message):
            common_version(wrong)


def test_a_whole_checkpoint_passes_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no \*\.safetensors file"):
        check_safetensors(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3), "b": torch.ones(2, 2)}, file)
    check_safetensors(tmp_path)
    whole = file.read_bytes()
    for damaged, message in [
        (whole[:-1], "damaged or cut off"),
        (whole + b"0", "damaged or cut off"),
        (whole[:20], "unreadable header"),
        (b"", "unreadable header"),
        (np.random.default_rng(0).bytes(200), "unreadable header"),
    ]:
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=message) as raised:
            check_safetensors(tmp_path)
        assert raised.value.where == str(file)
