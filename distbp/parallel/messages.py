"""How nodes of the tree travel between hosts: MPI moves their bytes, distbp adds them, in the order it is given.

    Gathered   for short vectors: every host gathers all nodes and adds them all
    InParts    for long ones: host p gathers the p-th part of every node, adds that part, and the parts are gathered

Element-wise addition gives the same bits for any cut of a vector, so both give the same result.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mpi4py.MPI import Comm

Array = NDArray[Any]
Pairs = list[tuple[int, int]]
Cut = tuple[list[int], list[int]]  # of a vector: how many numbers each rank has, and where they begin
SHORT = 1 << 16  # bytes of all nodes together, up to which every host gathers them all


def transport(comm: Comm, n_nodes: list[int], pairs: Pairs, n: int, dtype: Any) -> Gathered | InParts:
    """Return what suits vectors of this length. Parameters as for `Gathered`."""
    short = sum(n_nodes) * n * np.dtype(dtype).itemsize <= SHORT
    return (Gathered if short else InParts)(comm, n_nodes, pairs, n, dtype)


def gather(comm: Comm, own: Array | None, into: Array, cut: Cut) -> None:
    """Bring every rank's numbers to all; `own` None: they are in their place already. **Collective.**

    In one message for each rank: MPICH's Allgatherv cuts long ones into pieces of 32 KiB that each wait for the link.
    """
    comm.Iallgatherv(own, [into.reshape(-1), cut]).Wait()


class Gathered:
    """Every host gets all nodes and adds them all.

    Parameters
    ----------
    comm
        One rank of every host.
    n_nodes
        How many nodes each host sends.
    pairs
        The additions that fold the nodes of all hosts, in the order of `comm`.
    n, dtype
        Of the vectors.
    """

    def __init__(self, comm: Comm, n_nodes: list[int], pairs: Pairs, n: int, dtype: Any) -> None:
        self.comm, self.pairs = comm, pairs
        self.all = np.empty((sum(n_nodes), n), dtype)
        self.counts = [k * n for k in n_nodes]

    def total(self, own: Sequence[Array]) -> Array:
        """Return the sum, (n,), of the nodes of all hosts; `own` holds this one's, (n,) each. **Collective.**"""
        self.comm.Allgatherv(np.ascontiguousarray(own), [self.all, self.counts])
        for i, j in self.pairs:
            self.all[i] += self.all[j]
        total: Array = self.all[0]
        return total


class InParts:
    """Each host adds one part of all nodes, then the parts are gathered. Parameters as for `Gathered`."""

    def __init__(self, comm: Comm, n_nodes: list[int], pairs: Pairs, n: int, dtype: Any) -> None:
        self.comm, self.sum = comm, np.empty(n, dtype)
        starts = [n * p // comm.size for p in range(comm.size + 1)]
        lengths = [stop - start for start, stop in pairwise(starts)]
        mine = lengths[comm.rank]
        self.cut: Cut = (lengths, starts[:-1])
        in_rank_order = [(j, r) for r, k in enumerate(n_nodes) for j in range(k)]
        arriving = sorted(in_rank_order)  # the j-th nodes of all hosts travel together
        place = [arriving.index(node) for node in in_rank_order]
        self.pairs = [(place[i], place[j]) for i, j in pairs]
        self.parts = np.empty((len(arriving), mine), dtype)
        self.rounds = []  # the j-th node of every host that has one: j, where they arrive, what goes out, what comes in
        arrived = 0
        for j in range(max(n_nodes)):
            senders = [int(j < k) for k in n_nodes]
            outgoing = self.cut if senders[comm.rank] else ([0] * comm.size, [0] * comm.size)
            counts = [mine * sends for sends in senders]
            incoming = (counts, [0, *accumulate(counts)][:-1])
            self.rounds.append((j, self.parts[arrived : arrived + sum(senders)], outgoing, incoming))
            arrived += sum(senders)

    def total(self, own: Sequence[Array]) -> Array:
        """Return the sum, (n,), of the nodes of all hosts; `own` holds this one's, (n,) each. **Collective.**"""
        for j, into, outgoing, incoming in self.rounds:
            sent = np.ascontiguousarray(own[j]) if j < len(own) else self.sum[:0]
            self.comm.Alltoallv([sent, outgoing], [into, incoming])
        for i, j in self.pairs:
            self.parts[i] += self.parts[j]
        gather(self.comm, self.parts[0], self.sum, self.cut)
        return self.sum
