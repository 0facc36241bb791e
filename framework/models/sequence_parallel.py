"""A packed row spread over a group of ranks, consecutive tokens on each: only attention exchanges anything.

As DeepSpeed-Ulysses (2309.14509): before attention each rank gives tokens for heads, behind it heads for tokens. Its
own classes want keys and values of one shape, which MLA's are not, and equal parts; here each tensor is exchanged for
itself, in parts of any length. What else looks at several tokens of a row (a loss over a response, a balance loss, a
depth of multi-token prediction) takes sums over the group, which are differentiable.

Losses stay sums over ranks, so DeepSpeed knows nothing of it: for it all ranks are data-parallel.

Dimensions: R ranks of the group, H heads, T tokens of the row, O of them on this rank, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm
from typing import Any

import torch
import torch.distributed as dist

from framework.errors import UserError


def sequence_group(rank: int, world: int, size: int) -> Any:
    """Make the groups of `size` neighbours that share rows and return `rank`'s; None if ranks have rows for themselves.

    A collective of all ranks.
    """
    groups = [dist.new_group(list(range(first, first + size))) for first in range(0, world, size) if size > 1]
    return groups[rank // size] if groups else None


def even_bounds(n_tokens: int, ranks: int) -> tuple[int, ...]:
    """Return where each rank's tokens begin, and the end; raises UserError if there are fewer tokens than ranks."""
    if n_tokens < ranks:
        raise UserError(
            "engine.sp_size", ranks, f"must be at most the tokens of a micro-batch, of which one has {n_tokens}"
        )
    return tuple(n_tokens * r // ranks for r in range(ranks + 1))


@dataclass(frozen=True)
class SequenceShard:
    """This rank's part of a row; made anew for each row."""

    bounds: tuple[int, ...]  # R + 1: rank r of the group holds tokens bounds[r] to bounds[r + 1] - 1
    rank: int  # in the group
    group: Any  # torch.distributed's

    @classmethod
    def of(cls, n_tokens: int, group: Any) -> SequenceShard:
        """Spread a row evenly; raises UserError as `even_bounds`."""
        return cls(even_bounds(n_tokens, dist.get_world_size(group)), dist.get_rank(group), group)

    @property
    def ranks(self) -> int:
        """R."""
        return len(self.bounds) - 1

    @property
    def tokens(self) -> slice:
        """Those on this rank."""
        return slice(self.bounds[self.rank], self.bounds[self.rank + 1])

    @property
    def n_tokens(self) -> int:
        """O."""
        return self.bounds[self.rank + 1] - self.bounds[self.rank]

    def local_lengths(self, segment_lengths_S: torch.Tensor) -> torch.Tensor:
        """Return how many tokens of each segment are on this rank, [S]."""
        ends_S = segment_lengths_S.cumsum(0)
        starts_S = ends_S - segment_lengths_S
        low, high = self.tokens.start, self.tokens.stop
        return (ends_S.clamp(low, high) - starts_S.clamp(low, high)).clamp_min(0)

    def to_heads(self, states_HOD: torch.Tensor) -> torch.Tensor:
        """Give tokens for heads: [H, O, D] to [H / R, T, D]; heads that R does not divide are repeated first."""
        states_HOD = states_HOD.repeat_interleave(lcm(len(states_HOD), self.ranks) // len(states_HOD), 0)
        heads, _, width = states_HOD.shape
        own = heads // self.ranks
        lengths = [end - start for start, end in zip(self.bounds, self.bounds[1:], strict=False)]
        received = self._exchanged(states_HOD, [own * self.n_tokens * width] * self.ranks,
                                   [own * length * width for length in lengths])  # fmt: skip
        parts = torch.split(received, [own * length * width for length in lengths])
        return torch.cat([part.view(own, n, width) for part, n in zip(parts, lengths, strict=True)], 1)

    def to_tokens(self, states_HTD: torch.Tensor) -> torch.Tensor:
        """Give heads for tokens: [H / R, T, D] to [H, O, D]."""
        own, _, width = states_HTD.shape
        lengths = [end - start for start, end in zip(self.bounds, self.bounds[1:], strict=False)]
        sent = torch.cat([part.reshape(-1) for part in torch.split(states_HTD, lengths, 1)])
        received = self._exchanged(sent, [own * length * width for length in lengths],
                                   [own * self.n_tokens * width] * self.ranks)  # fmt: skip
        return received.view(self.ranks * own, self.n_tokens, width)

    def summed(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over the group, on each of its ranks; its gradient is summed likewise."""
        return _Summed.apply(values, self.group)  # type: ignore[no-untyped-call, no-any-return]

    def _exchanged(self, sent: torch.Tensor, sizes: Sequence[int], receives: Sequence[int]) -> torch.Tensor:
        found: torch.Tensor = _Exchanged.apply(sent.reshape(-1), sizes, receives, self.group)  # type: ignore[no-untyped-call]
        return found


class _Exchanged(torch.autograd.Function):
    """All-to-all of flat parts; the gradient goes back as they came."""

    @staticmethod
    def forward(
        ctx: Any, sent: torch.Tensor, sizes: Sequence[int], receives: Sequence[int], group: Any
    ) -> torch.Tensor:
        ctx.sizes, ctx.receives, ctx.group = sizes, receives, group
        received = sent.new_empty(sum(receives))
        dist.all_to_all_single(received, sent.contiguous(), list(receives), list(sizes), group=group)
        return received

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        back = grad.new_empty(sum(ctx.sizes))
        dist.all_to_all_single(back, grad.contiguous(), list(ctx.sizes), list(ctx.receives), group=ctx.group)
        return back, None, None, None


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = grad.clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None
