"""How nodes of the tree travel: MPI moves their bytes, distbp adds them, in the order it is given.

A message is one row of bytes: the tallies (float64: cost, rows, flags), then a vector laid out like theta.

    Gathered   for short messages: every rank gathers all nodes and adds them all
    InParts    for long ones: rank p gathers the p-th part of every node, adds that part, and the parts are gathered

Element-wise addition gives the same bits for any cut of a vector, so both give the same result.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mpi4py.MPI import Comm

Array = NDArray[Any]
Pairs = list[tuple[int, int]]


class Rows:
    """Rows of bytes, each some tallies (float64) and then a vector of `dtype`, padded to whole cache lines."""

    def __init__(self, n_rows: int, n_tallies: int, n: int, dtype: Any) -> None:
        self.head = n_tallies * 8
        self.n_bytes = -(-(self.head + n * np.dtype(dtype).itemsize) // 64) * 64
        self.dtype = np.dtype(dtype)
        self.bytes = np.zeros((n_rows, self.n_bytes), np.uint8)
        self.tallies = self.bytes[:, : self.head].view(np.float64)
        self.vectors = self.bytes[:, self.head : self.head + n * self.dtype.itemsize].view(dtype)
        self._views = list(zip(self.tallies, self.vectors, strict=True))  # of each row, made once

    def more(self, n_rows: int) -> Rows:
        """Return other rows of the same layout."""
        return Rows(n_rows, self.head // 8, self.vectors.shape[1], self.dtype)

    def add(self, i: int, j: int) -> None:
        """Add row `j` to row `i`."""
        for into, other in zip(self._views[i], self._views[j], strict=True):
            np.add(into, other, out=into)


class Gathered:
    """Every rank gets all nodes and adds them all.

    Parameters
    ----------
    comm
        All ranks.
    n_nodes
        How many nodes each rank sends.
    pairs
        The additions that fold all ranks' nodes, in rank order.
    like
        Rows of the message's layout.
    """

    def __init__(self, comm: Comm, n_nodes: list[int], pairs: Pairs, like: Rows) -> None:
        self.comm, self.pairs = comm, pairs
        self.all = like.more(sum(n_nodes))
        self.counts = [n * like.n_bytes for n in n_nodes]

    def total(self, own: Array) -> Rows:
        """Return the sum, in row 0, of the nodes of all ranks; `own` holds this rank's as bytes. **Collective.**"""
        self.comm.Allgatherv(own, [self.all.bytes, self.counts])
        for i, j in self.pairs:
            self.all.add(i, j)
        return self.all


class InParts:
    """Each rank adds one part of all nodes, then the parts are gathered. Parameters as for `Gathered`."""

    def __init__(self, comm: Comm, n_nodes: list[int], pairs: Pairs, like: Rows) -> None:
        self.comm, self.sum = comm, like
        words = like.n_bytes // 8  # of 8 bytes: counts stay below 2^31 up to 16 GiB
        self.starts = [words * p // comm.size for p in range(comm.size + 1)]
        self.lengths = [stop - start for start, stop in pairwise(self.starts)]
        mine = self.lengths[comm.rank]
        in_rank_order = [(j, r) for r, n in enumerate(n_nodes) for j in range(n)]
        arriving = sorted(in_rank_order)  # the j-th nodes of all ranks travel together
        place = [arriving.index(node) for node in in_rank_order]
        self.pairs = [(place[i], place[j]) for i, j in pairs]
        self.parts = np.empty((len(arriving), mine), np.uint64)
        self.rounds = []  # the j-th node of every rank that has one: j, where they arrive, what goes out, what comes in
        arrived = 0
        for j in range(max(n_nodes)):
            senders = [int(j < n) for n in n_nodes]
            outgoing = (self.lengths, self.starts[:-1]) if senders[comm.rank] else ([0] * comm.size, [0] * comm.size)
            counts = [mine * sends for sends in senders]
            incoming = (counts, [0, *accumulate(counts)][:-1])
            self.rounds.append((j, self.parts[arrived : arrived + sum(senders)], outgoing, incoming))
            arrived += sum(senders)
        n_head = min(max(like.head // 8 - self.starts[comm.rank], 0), mine)  # words of tallies in this rank's part
        self.heads = self.parts[:, :n_head].view(np.float64)
        self.tails = self.parts[:, n_head:].view(like.dtype)

    def total(self, own: Array) -> Rows:
        """Return the sum, in row 0, of the nodes of all ranks; `own` holds this rank's as bytes. **Collective.**"""
        for j, into, outgoing, incoming in self.rounds:
            sent = own[j].view(np.uint64) if j < len(own) else np.empty(0, np.uint64)
            self.comm.Alltoallv([sent, outgoing], [into, incoming])
        for i, j in self.pairs:
            self.heads[i] += self.heads[j]
            self.tails[i] += self.tails[j]
        self.comm.Allgatherv(self.parts[0], [self.sum.bytes[0].view(np.uint64), (self.lengths, self.starts[:-1])])
        return self.sum
