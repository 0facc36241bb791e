"""A tensor whose bytes are on another machine: whoever copies a part of it into place receives that part alone.

vLLM's loaders cut what they need out of a checkpoint's tensor (narrow, view, transpose ...) and copy it into their own.
So views of a `RemoteTensor` are worked out without data, and `copy_` from one fetches what the view covers. Whatever
else is done with it fetches the view first: right for every loader, if more than the least for some.

vLLM's own sharded transport records the same cuts (`sharded_rdt_fake.FakeRDTTensor`); that needs NVIDIA's NIXL to fetch
them, and refuses loaders that do anything but cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_map

Fetch = Callable[[torch.Tensor, torch.Tensor], None]  # (a view without data, the tensor to fill, like it in shape)


class RemoteTensor(torch.Tensor):
    """Like its `cut`, a meta tensor that is a view of the whole; `fetch` brings what a view covers."""

    cut: torch.Tensor
    fetch: Fetch

    @staticmethod
    def __new__(cls, cut: torch.Tensor, fetch: Fetch) -> RemoteTensor:
        made: RemoteTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            cut.shape,
            strides=cut.stride(),
            storage_offset=cut.storage_offset(),
            dtype=cut.dtype,
            device=torch.device("cpu"),
        )
        made.cut, made.fetch = cut, fetch
        return made

    def here(self) -> torch.Tensor:
        """What this view covers, fetched."""
        found = torch.empty(self.cut.shape, dtype=self.cut.dtype)
        self.fetch(self.cut, found)
        return found

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch types it by its own default
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.copy_.default and isinstance(args[1], cls):
            return _copy(args[0], args[1])
        if func.is_view and isinstance(args[0], cls):
            whole = args[0]
            return tree_map(lambda cut: cls(cut, whole.fetch), func(whole.cut, *args[1:], **kwargs))
        here = tree_map(lambda one: one.here() if isinstance(one, cls) else one, (tuple(args), kwargs))
        return func(*here[0], **here[1])


def _copy(target: torch.Tensor, source: RemoteTensor) -> torch.Tensor:
    if target.is_meta:  # vLLM counts elements before it loads them
        return target.copy_(source.cut)
    if target.shape == source.cut.shape and target.dtype == source.cut.dtype:
        source.fetch(source.cut, target)
        return target
    return target.copy_(source.here())
