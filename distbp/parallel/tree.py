"""The fixed tree: the sum over shards has the same bits, whoever holds them and however the bytes travel.

A node covers the shards from `start` up to `stop`; its value is left child + right child, where the left child covers
the largest power of two of shards that is smaller than the node. (This is node (k, i) of the binary tree over shard
numbers, neighbours first; a node whose right half would be empty is its left child.) A rank adds up the complete
nodes inside its range of shards; then a host those of its ranks; and only these travel between hosts (messages.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Node = tuple[int, int]


def middle(start: int, stop: int) -> int:
    """Return where a node of two shards or more is cut in two."""
    return start + (1 << (stop - start - 1).bit_length() - 1)


def complete_nodes(first: int, last: int, n_shards: int) -> list[Node]:
    """Return the largest nodes inside the shards `first` ... `last` - 1, in order; (2, 5, 8) gives (2, 4), (4, 5)."""

    def inside(start: int, stop: int) -> list[Node]:
        if stop <= first or start >= last:
            return []
        if first <= start and stop <= last:
            return [(start, stop)]
        cut = middle(start, stop)
        return inside(start, cut) + inside(cut, stop)

    return inside(0, n_shards)


def additions(leaves: Sequence[Node], root: Node | None = None) -> list[tuple[int, int]]:
    """Return the additions that fold neighbouring nodes into the node they make up, in the tree's order.

    Each pair (i, j) means: value i += value j. The sum, `root` (by default of all leaves), ends in its first leaf's
    value.
    """
    index = {node: i for i, node in enumerate(leaves)}
    pairs = []

    def fold(start: int, stop: int) -> int:
        if (start, stop) in index:
            return index[start, stop]
        cut = middle(start, stop)
        left, right = fold(start, cut), fold(cut, stop)
        pairs.append((left, right))
        return left

    fold(*(root or (leaves[0][0], leaves[-1][1])))
    return pairs


def fold_shards(values: Array, add: Callable[[Array, Array], Array] = np.add) -> Array:
    """Return the sum over the first axis, one value a shard, in the tree's order. **Local.** Overwrites `values`."""
    for i, j in additions([(s, s + 1) for s in range(len(values))]):
        values[i] = add(values[i], values[j])
    first: Array = values[0]
    return first


def fold_stack(values: Array) -> None:
    """Do as `fold_shards`, with one addition for each level of the tree: the sum ends in ``values[0]``. **Local.**"""
    step = 1
    while step < len(values):
        right = values[step :: 2 * step]
        left = values[:: 2 * step][: len(right)]
        left += right
        step *= 2
