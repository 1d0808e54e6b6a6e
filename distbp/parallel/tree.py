"""The fixed tree: the sum over shards has the same bits, whoever holds them and however the bytes travel.

A node covers the shards from `start` up to `stop`; its value is left child + right child, where the left child covers
the largest power of two of shards that is smaller than the node. (This is node (k, i) of the binary tree over shard
numbers, neighbours first; a node whose right half would be empty is its left child.) A rank adds up the complete
nodes inside its range of shards, and only those travel (messages.py); they too are added in the tree's order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distbp.parallel.messages import Gathered, InParts, Rows
from distbp.parallel.world import World, shards_of

Array = NDArray[Any]
Node = tuple[int, int]
Partial = Callable[[int, int, Array, Array], None]

SHORT = 1 << 16  # bytes of all nodes together, up to which every rank gathers them all
STACK = 1 << 22  # bytes of gradient sums computed at once; beyond, shards are computed and added one by one


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


def additions(leaves: Sequence[Node]) -> list[tuple[int, int]]:
    """Return the additions that fold neighbouring nodes into the node they make up, in the tree's order.

    Each pair (i, j) means: value i += value j. The whole sum ends in value 0.
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

    fold(leaves[0][0], leaves[-1][1])
    return pairs


@lru_cache
def shard_additions(n: int) -> list[tuple[int, int]]:
    """Return the additions that fold the `n` shards of one node."""
    return additions([(s, s + 1) for s in range(n)])


def fold_shards(values: Array, add: Callable[[Array, Array], Array] = np.add) -> Array:
    """Return the sum over the first axis, one value a shard, in the tree's order. **Local.** Overwrites `values`."""
    for i, j in shard_additions(len(values)):
        values[i] = add(values[i], values[j])
    first: Array = values[0]
    return first


class TreeSum:
    """The sum over all shards of a run, for one rank.

    Parameters
    ----------
    world, n_shards
        Who holds which of the V shards.
    n_tallies
        Numbers that ride in front of the vector.
    n, dtype
        The vector's.
    """

    def __init__(self, world: World, n_shards: int, n_tallies: int, n: int, dtype: Any) -> None:
        ranges = [shards_of(r, world.size, n_shards) for r in range(world.size)]
        per_rank = [complete_nodes(own.start, own.stop, n_shards) for own in ranges]
        self.nodes = per_rank[world.rank]
        widest = max(stop - start for start, stop in self.nodes)
        row_bytes = Rows(0, n_tallies, n, dtype).n_bytes
        self.stack = min(1 << max(0, (STACK // row_bytes).bit_length() - 1), 1 << (widest - 1).bit_length())
        deep = (widest - 1).bit_length() - (self.stack.bit_length() - 1)
        self.rows = Rows(len(self.nodes) - 1 + self.stack + deep, n_tallies, n, dtype)
        self.transport: Gathered | InParts | None = None
        if world.comm and world.size > 1:
            pairs = additions([node for nodes in per_rank for node in nodes])
            n_nodes = [len(nodes) for nodes in per_rank]
            kind = Gathered if row_bytes * sum(n_nodes) <= SHORT else InParts
            self.transport = kind(world.comm, n_nodes, pairs, Rows(1, n_tallies, n, dtype))

    def sum(self, partial: Partial, flags: Array) -> tuple[Array, Array]:
        """Return (tallies, vector) summed over all shards: the same bits on every rank. **Collective.**

        Parameters
        ----------
        partial
            ``partial(start, stop, tallies, vectors)`` writes the partial sums of the own shards `start` ... `stop` - 1,
            one row each.
        flags
            (n_tallies,) of this rank, not of a shard: small whole numbers, of which sums in any order are exact.

        Returns
        -------
        tallies, vector
            Buffers that the next call overwrites.
        """
        for i, (start, stop) in enumerate(self.nodes):
            self._node(start, stop, i, partial)
        self.rows.tallies[0] += flags
        total = self.transport.total(self.rows.bytes[: len(self.nodes)]) if self.transport else self.rows
        return total.tallies[0], total.vectors[0]

    def _node(self, start: int, stop: int, row: int, partial: Partial) -> None:
        """Bring the value of one node into a row; the rows after it are scratch."""
        n = stop - start
        if n <= self.stack:
            partial(start, stop, self.rows.tallies[row : row + n], self.rows.vectors[row : row + n])
            for i, j in shard_additions(n):
                self.rows.add(row + i, row + j)
        else:
            cut = middle(start, stop)
            self._node(start, cut, row, partial)
            self._node(cut, stop, row + 1, partial)
            self.rows.add(row, row + 1)
