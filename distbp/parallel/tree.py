"""The fixed tree: the sum over shards has the same bits, whoever holds them and however the bytes travel.

A node covers the shards from `start` up to `stop`; its value is left child + right child, where the left child covers
the largest power of two of shards that is smaller than the node. (This is node (k, i) of the binary tree over shard
numbers, neighbours first; a node whose right half would be empty is its left child.) A rank adds up the complete
nodes inside its range of shards, and only those travel; then everybody adds the nodes in the tree's order. MPI moves
bytes and never adds.

A message is one row of bytes: the tallies (float64: cost, rows, flags), then a vector laid out like theta.

    short messages   every rank gathers all nodes and adds them all
    long messages    rank p gathers the p-th part of every node, adds that part, and the parts are gathered

Element-wise addition gives the same bits for any cut of a vector, so both give the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distbp.parallel.world import World, shards_of

Array = NDArray[Any]
Node = tuple[int, int]

SHORT = 1 << 16  # bytes of all nodes together, up to which every rank gathers them all
STACK = 1 << 22  # bytes of gradient sums computed at once; beyond, shards are computed and added one by one


def middle(start: int, stop: int) -> int:
    """Return where a node of two shards or more is cut in two."""
    return start + (1 << (stop - start - 1).bit_length() - 1)


def complete_nodes(first: int, last: int, n_shards: int) -> list[Node]:
    """Return the largest nodes that lie inside the shards `first` ... `last` - 1, in order.

    Examples
    --------
    >>> complete_nodes(2, 5, 8)
    [(2, 4), (4, 5)]
    """

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


class Rows:
    """Rows of bytes, each some tallies (float64) and then a vector of `dtype`, padded to whole cache lines."""

    def __init__(self, n_rows: int, n_tallies: int, n: int, dtype: Any) -> None:
        self.head = n_tallies * 8
        self.n_bytes = -(-(self.head + n * np.dtype(dtype).itemsize) // 64) * 64
        self.dtype = np.dtype(dtype)
        self.bytes = np.zeros((n_rows, self.n_bytes), np.uint8)
        self.tallies = self.bytes[:, : self.head].view(np.float64)
        self.vectors = self.bytes[:, self.head : self.head + n * self.dtype.itemsize].view(dtype)

    def add(self, i: int, j: int) -> None:
        """Add row `j` to row `i`."""
        self.tallies[i] += self.tallies[j]
        self.vectors[i] += self.vectors[j]


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

    Attributes
    ----------
    rows
        Where a rank's partial sums are computed and added.
    """

    def __init__(self, world: World, n_shards: int, n_tallies: int, n: int, dtype: Any) -> None:
        self.world = world
        per_rank = []
        for r in range(world.size):
            own = shards_of(r, world.size, n_shards)
            per_rank.append(complete_nodes(own.start, own.stop, n_shards))
        self.nodes = per_rank[world.rank]
        self.n_nodes = [len(nodes) for nodes in per_rank]
        widest = max(stop - start for start, stop in self.nodes)
        row_bytes = Rows(0, n_tallies, n, dtype).n_bytes
        self.stack = min(1 << max(0, (STACK // row_bytes).bit_length() - 1), 1 << (widest - 1).bit_length())
        deep = (widest - 1).bit_length() - (self.stack.bit_length() - 1)
        self.rows = Rows(len(self.nodes) - 1 + self.stack + deep, n_tallies, n, dtype)
        if world.size > 1:
            self.pairs = additions([node for nodes in per_rank for node in nodes])
            self.short = row_bytes * sum(self.n_nodes) <= SHORT
            self.total = Rows(1, n_tallies, n, dtype)
            if self.short:
                self.gathered = Rows(sum(self.n_nodes), n_tallies, n, dtype)
            else:
                self._plan_parts(per_rank)

    def _plan_parts(self, per_rank: list[list[Node]]) -> None:
        """Cut a row into one part a rank, in words of 8 bytes, and lay out where the parts of all nodes arrive."""
        size, rank = self.world.size, self.world.rank
        words = self.rows.n_bytes // 8
        self.starts = [words * p // size for p in range(size + 1)]
        self.lengths = [b - a for a, b in zip(self.starts, self.starts[1:], strict=False)]
        order = sorted((j, r) for r, nodes in enumerate(per_rank) for j in range(len(nodes)))  # as they arrive
        place = {key: i for i, key in enumerate(order)}
        arrived = [place[j, r] for r, nodes in enumerate(per_rank) for j in range(len(nodes))]
        self.part_pairs = [(arrived[i], arrived[j]) for i, j in self.pairs]
        self.parts = np.empty((len(order), self.lengths[rank]), np.uint64)

    def sum(self, partial: Callable[[int, int, Array, Array], None], flags: Array) -> tuple[Array, Array]:
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
        return self.share()

    def _node(self, start: int, stop: int, row: int, partial: Callable[[int, int, Array, Array], None]) -> None:
        """Bring the value of one node into a row; rows below it are scratch."""
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

    def share(self) -> tuple[Array, Array]:
        """Add up the nodes of all ranks. **Collective.**"""
        if self.world.size == 1:
            return self.rows.tallies[0], self.rows.vectors[0]
        own = self.rows.bytes[: len(self.nodes)]
        if self.short:
            self._gather(own)
            for i, j in self.pairs:
                self.gathered.add(i, j)
            return self.gathered.tallies[0], self.gathered.vectors[0]
        self._sum_parts(own)
        return self.total.tallies[0], self.total.vectors[0]

    def _gather(self, own: Array) -> None:
        assert self.world.comm
        counts = [n * self.rows.n_bytes for n in self.n_nodes]
        self.world.comm.Allgatherv(own, [self.gathered.bytes, counts])

    def _sum_parts(self, own: Array) -> None:
        """Exchange parts, one round for the j-th node of every rank; add this rank's part; gather the sums."""
        comm, rank = self.world.comm, self.world.rank
        assert comm
        starts, lengths, arrived = self.starts, self.lengths, 0
        nothing = [0] * self.world.size
        for j in range(max(self.n_nodes)):
            present = [int(j < n) for n in self.n_nodes]
            sent = own[j].view(np.uint64) if present[rank] else np.empty(0, np.uint64)
            into = self.parts[arrived : arrived + sum(present)]
            counts = [lengths[rank] * p for p in present]
            offsets = [sum(counts[:r]) for r in range(len(counts))]
            outgoing = (lengths, starts[:-1]) if present[rank] else (nothing, nothing)
            comm.Alltoallv([sent, outgoing], [into, (counts, offsets)])
            arrived += sum(present)
        n_head = min(max(self.rows.head // 8 - starts[rank], 0), lengths[rank])  # words of tallies in this part
        heads, tails = self.parts[:, :n_head].view(np.float64), self.parts[:, n_head:].view(self.rows.dtype)
        for i, j in self.part_pairs:
            heads[i] += heads[j]
            tails[i] += tails[j]
        comm.Allgatherv(self.parts[0], [self.total.bytes[0].view(np.uint64), (lengths, starts[:-1])])
