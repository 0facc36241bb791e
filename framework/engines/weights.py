"""How the policy's weights travel from learners to rollout workers: flat byte buffers with a table of contents.

Each learner rank publishes the tensors that it alone holds, for example its experts, so a version is the union of the
ranks' shares: no rank ever gathers the model. A share stays in the memory of its rank; what crosses Ray, and the
sockets between vLLM's processes, is the table and a reference to it (`types.MemoryFile`). Every worker of a sampler,
tensor-parallel ones too, maps the bytes in place.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from framework.artifacts import check_safetensors_file
from framework.engines.memory_file import MemoryReader, MemoryWriter
from framework.errors import UserError
from framework.types import MemoryFile, PublishedWeights, WeightTensor

TRANSPORT = "published_weights"  # the name of our transport among vLLM's
SERVED_TEXT = "framework_text"  # the name of our renderer of messages among those of vLLM's server
LEAST_LIMIT_S = 60.0
SLOWEST_BYTES_S = 200e6  # a busy core copies some gigabytes a second
ALIGNMENT = 64  # bytes; any dtype may be viewed at such an offset, and copies start on a cache line


def flatten(named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> PublishedWeights:
    """Copy tensors, of any device and dtype, into one new buffer as a share of `version` that stays in this process."""
    tensors = [(name, tensor.detach()) for name, tensor in named_tensors]
    table, size = [], 0
    for name, tensor in tensors:
        table.append(_entry(name, tensor, size))
        size += _padded(tensor.numel() * tensor.element_size())
    published = PublishedWeights(version, tuple(table), np.empty(size, np.uint8))
    for (_, target), (_, source) in zip(unflatten(published), tensors, strict=True):
        target.copy_(source)
    return published


def write(
    named_tensors: Iterable[tuple[str, torch.Tensor]], version: int, owner: str, address: str = ""
) -> tuple[PublishedWeights, MemoryWriter]:
    """Copy tensors as they come into memory that others map: this rank's share of `version`, and who owns the memory.

    A tensor may be freed once the next one is asked for, so one that was gathered is never there beside others.
    `owner` names this process for people; at `address` it answers for the bytes on other machines.
    """
    writer = MemoryWriter(owner)
    table = [_entry(name, tensor, writer.append(tensor, ALIGNMENT)) for name, tensor in named_tensors]
    return PublishedWeights(version, tuple(table), writer.sealed(address)), writer


def unflatten(published: PublishedWeights) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) as views of the bytes, which must not be written to if others have them as well.

    Raises RunFailed if they are in the memory of a process that has ended or given them up.
    """
    if isinstance(published.buffer, MemoryFile):
        reader = MemoryReader(published.buffer)
        try:
            for entry in published.tensors:
                yield entry.name, _typed(reader.view(entry.offset, bytes_of(entry)), entry)
        finally:
            reader.close()
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        buffer = torch.from_numpy(published.buffer)
    for entry in published.tensors:
        size = bytes_of(entry)
        flat = buffer[entry.offset : entry.offset + size] if size else buffer.new_empty(0)
        yield entry.name, _typed(flat, entry)


def update_limit(size: int) -> float:
    """Return how many seconds a step of an update of so many bytes may take, whoever takes it."""
    return LEAST_LIMIT_S + size / SLOWEST_BYTES_S


def bytes_of(entry: WeightTensor) -> int:
    """Bytes of a tensor."""
    return math.prod(entry.shape) * dtype_of(entry).itemsize


def dtype_of(entry: WeightTensor) -> torch.dtype:
    """Torch's dtype of a tensor."""
    found: torch.dtype = getattr(torch, entry.dtype)
    return found


def _entry(name: str, tensor: torch.Tensor, offset: int) -> WeightTensor:
    return WeightTensor(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), offset)


def _typed(flat: torch.Tensor, entry: WeightTensor) -> torch.Tensor:
    return flat.view(dtype_of(entry)).view(entry.shape)


def common_version(shares: Sequence[PublishedWeights]) -> int:
    """Return the version of all shares; raises ValueError if there are none, or they differ, or two hold one tensor."""
    versions = {share.version for share in shares}
    if len(versions) != 1:
        raise ValueError(f"weights of one version expected, got versions {sorted(versions)}")
    names = [entry.name for share in shares for entry in share.tensors]
    if len(names) != len(set(names)):
        twice = next(name for name in sorted(names) if names.count(name) > 1)
        raise ValueError(f"{twice} is in more than one rank's share")
    return versions.pop()


@functools.cache
def register_transport() -> None:
    """Tell vLLM of our transport, of how its server is to read messages, and of the family that transformers lacks.

    Also vLLM's plug-in entry point, for worker processes of its own.
    """
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry

    import framework.models.deepseek_moe  # noqa: F401

    WeightTransferEngineFactory.register_engine(
        TRANSPORT, "framework.engines.weight_transfer", "PublishedWeightsTransfer"
    )
    if SERVED_TEXT not in RENDERER_REGISTRY.renderers:
        RENDERER_REGISTRY.register(SERVED_TEXT, "framework.engines.served_chat", "TextRenderer")
        TokenizerRegistry.register(SERVED_TEXT, "vllm.tokenizers.hf", "CachedHfTokenizer")


def check_safetensors(checkpoint: Path) -> None:
    """Raise UserError unless `checkpoint` holds safetensors files, each as long as its own header says."""
    files = sorted(checkpoint.glob("*.safetensors"))
    if not files:
        raise UserError(str(checkpoint), "no *.safetensors file", "a checkpoint holds its weights in safetensors files")
    for file in files:
        check_safetensors_file(file)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
