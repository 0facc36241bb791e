"""Positions of a packed row with the same tokens before them, found so that a causal model computes each only once.

All responses to one prompt begin with it, and all prompts with their template: with short responses that is most of a
row. The segments form a trie; its nodes are what the model runs on.

Dimensions: T positions of a packed row, U nodes, Q queries.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

WORTH = 0.95  # nodes / positions above which looking them up costs more than it saves
ALIGNED = 64  # nodes come in multiples: kernels compiled for one number of rows, and its memory, serve again


@dataclass(frozen=True)
class SharedPrefixes:
    """The row in its nodes. Queries that attend: the first `common` positions once, then each segment's others."""

    common: int  # positions that all segments begin with alike; less than the shortest segment
    node_T: torch.Tensor  # int64, the node of each position
    position_U: torch.Tensor  # int64, one position of each node: the first in the row
    node_Q: torch.Tensor  # int64, the node of each query
    place_U: torch.Tensor  # int64, the first query of each node


def shared_prefixes(token_ids_T: torch.Tensor, lengths: Sequence[int]) -> SharedPrefixes | None:
    """Return the nodes of a row whose segments have these lengths, or None if sharing would not pay."""
    ids_T = token_ids_T.cpu().numpy()
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    pieces = [ids_T[start:end] for start, end in itertools.pairwise(starts)]
    node_T, nodes = np.empty(len(ids_T), np.int64), 0
    before: int | None = None  # the segment before, in lexical order: no other has a longer prefix in common
    for index in sorted(range(len(pieces)), key=lambda i: pieces[i].astype(">i8").tobytes()):
        common = 0 if before is None else _common(pieces[before], pieces[index])
        start, end = starts[index], starts[index + 1]
        if before is not None:
            node_T[start : start + common] = node_T[starts[before] : starts[before] + common]
        node_T[start + common : end] = np.arange(nodes, nodes + end - start - common)
        nodes += end - start - common
        before = index
    if nodes > WORTH * len(ids_T):
        return None
    alike = min(_common(pieces[0], piece) for piece in pieces)
    common = min(alike, min(lengths) - 1)
    nodes += _unshare(node_T, starts, common, nodes)
    # Nodes in the order of the row, so that what is not shared stays where it was.
    _, position_U, order_T = np.unique(node_T, return_index=True, return_inverse=True)
    rank_U = np.empty(nodes, np.int64)
    rank_U[np.argsort(position_U)] = np.arange(nodes)
    node_T = rank_U[order_T]
    asking = np.concatenate([np.arange(common), *(np.arange(s + common, e) for s, e in itertools.pairwise(starts))])
    node_Q = node_T[asking]
    _, place_U = np.unique(node_Q, return_index=True)
    arrays = (node_T, np.sort(position_U), node_Q, place_U)
    return SharedPrefixes(common, *(torch.from_numpy(array).to(token_ids_T.device) for array in arrays))


def _unshare(node_T: np.ndarray, starts: np.ndarray, common: int, nodes: int) -> int:
    """Give so many positions a node of their own as are missing to a multiple, in long rows; return how many."""
    missing = -nodes % ALIGNED if nodes >= 8 * ALIGNED else 0
    if not missing:
        return 0
    again_T = np.ones(len(node_T), bool)
    again_T[np.unique(node_T, return_index=True)[1]] = False
    for start in starts[:-1]:  # in what all begin with, only the first segment asks
        again_T[start : start + common] = False
    found = again_T.nonzero()[0][:missing]
    if len(found) < missing:
        return 0
    node_T[found] = np.arange(nodes, nodes + missing)
    return missing


def _common(left: np.ndarray, right: np.ndarray) -> int:
    """Length of the longest common prefix."""
    size = min(len(left), len(right))
    differs = left[:size] != right[:size]
    return int(differs.argmax()) if differs.any() else size
