"""The ranks of a host share memory: one theta, one state of the rule, and each rank's work where all can read it.

Ranks that share memory are a host here. What they write before `meet`, all of them may read after it. On the other
hosts are as many ranks each; those of the same number are connected (`across`) and carry the bytes between hosts.
A host may be one rank, which shares with nobody: one process, or the plain way of a run with several ranks, in which
each has its own theta and takes the same whole step. Which it is changes no bit: all that is shared out is.

Memory is an anonymous file (memfd_create) that the host's ranks map: nothing to clean up, no limit of /dev/shm.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distbp.parallel.messages import Cut, gather
from distbp.parallel.tree import Node, complete_nodes
from distbp.parallel.world import World, shards_of

if TYPE_CHECKING:
    from mpi4py.MPI import Comm

Array = NDArray[Any]
Shapes = Mapping[str, tuple[tuple[int, ...], Any]]  # name: shape, dtype
LINE = 64  # bytes: arrays begin at a cache line


class Host:
    """The ranks that share memory with this one.

    Parameters
    ----------
    world
        All ranks.
    comm
        The host's, None where it is one rank.
    across
        The ranks of this one's number on all hosts, None where there is one host.
    threads
        Workers of each rank; they share out its shards like ranks.
    overlap
        Whether messages travel while the next layer is computed.

    Attributes
    ----------
    rank, size
        This rank's number in the host, and how many it has.
    number, n_hosts
        The host's, and how many there are.
    """

    def __init__(self, world: World, comm: Comm | None, across: Comm | None, threads: int, overlap: bool) -> None:
        self.world, self.comm, self.across, self.threads = world, comm, across, threads
        self.rank, self.size = (comm.rank, comm.size) if comm else (0, 1)
        self.number, self.n_hosts = (across.rank, across.size) if across else (0, 1)
        self._aside = across.Dup() if across else None
        self._carrier = ThreadPoolExecutor(1, "messages") if across and overlap else None
        self._places: dict[tuple[int, int], Cut] = {}  # of `spread`, by V and the numbers of a row

    def shards(self, worker: int, n_shards: int) -> range:
        """Return the shards of a worker (a thread of a rank), numbered over all ranks: those of its rank, cut again."""
        return shards_of(worker, self.world.size * self.threads, n_shards)

    def nodes(self, n_shards: int) -> list[list[Node]]:
        """Return the complete nodes of the tree that each worker of this host holds."""
        n_workers = self.size * self.threads
        workers = range(self.number * n_workers, (self.number + 1) * n_workers)
        held = [self.shards(worker, n_shards) for worker in workers]
        return [complete_nodes(of.start, of.stop, n_shards) for of in held]

    def shards_of_hosts(self, n_shards: int) -> list[range]:
        """Return the shards that the ranks of each host hold; hosts are runs of ranks."""
        return [shards_of(host, self.n_hosts, n_shards) for host in range(self.n_hosts)]

    def meet(self) -> None:
        """Wait for the host's other ranks. **Collective over the host.**"""
        if self.comm:
            self.comm.Barrier()

    def broadcast(self, array: Array) -> None:
        """Overwrite an array of the shared memory by that of world rank 0's host. **Collective.**"""
        self.meet()
        if self.across and self.rank == 0:
            World(self.across).broadcast(array)
        self.meet()

    def spread(self, rows: Array, aside: bool = False) -> None:
        """Bring the rows of every shard, (V, ...), to this host. **Collective.** Each rank has written its shards'.

        This rank sends its own and receives those of its counterparts; with `meet`, the host has all. `aside`: while a
        job that was sent may still be talking.
        """
        comm = self._aside if aside else self.across
        if not comm:
            return
        gather(comm, None, rows, self._place(len(rows), rows[0].size))

    def _place(self, n_shards: int, n_each: int) -> Cut:
        """Return how many numbers each counterpart sends and where they go, if a shard's row has `n_each` of them."""
        place = self._places.get((n_shards, n_each))
        if not place:
            ranks = range(self.rank, self.world.size, self.size)  # hosts are runs of ranks
            own = [shards_of(r, self.world.size, n_shards) for r in ranks]
            place = [len(shards) * n_each for shards in own], [shards.start * n_each for shards in own]
            self._places[n_shards, n_each] = place
        return place

    def link(self) -> tuple[float, float]:
        """Return what a message between hosts takes: seconds, and seconds a byte; 0 where none is. **Collective.**"""
        if not self.across:
            return 0.0, 0.0
        found = []
        for n_bytes in (8, 1 << 19):
            mine, of_all = np.zeros(n_bytes, np.uint8), np.empty(n_bytes * self.n_hosts, np.uint8)
            seconds = []
            for _ in range(4):
                self.across.Barrier()
                started = time.perf_counter()
                self.across.Allgather(mine, of_all)
                seconds.append(time.perf_counter() - started)
            found.append(min(seconds))
        rounds = math.ceil(math.log2(self.n_hosts))
        told = self.world.exchange([found[0] / rounds, max(found[1] - found[0], 0) / (1 << 19) / (self.n_hosts - 1)])
        return max(latency for latency, _ in told), max(byte for _, byte in told)

    def send(self, job: Callable[[], object], carried: bool = True) -> Future[object] | None:
        """Do a job that talks to the other hosts: now, or in a thread, one after another, while this one computes."""
        if self._carrier and carried:
            return self._carrier.submit(job)
        job()
        return None

    def close(self) -> None:
        """Give back what the host holds of MPI; its memory lives as long as its arrays. **Collective.**"""
        if self._carrier:
            self._carrier.shutdown()
        for comm in (self._aside, self.across, self.comm):
            if comm:
                comm.Free()
        self.comm = self.across = self._aside = self._carrier = None

    def allocate(self, shapes: Shapes) -> dict[str, Array] | None:
        """Return new arrays of zeros that the host's ranks share; None if that fails. **Collective over the host.**"""
        if not self.comm:
            return {name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()}
        starts, n_bytes = {}, LINE
        for name, (shape, dtype) in shapes.items():
            starts[name] = n_bytes
            n_bytes += -(-math.prod(shape) * np.dtype(dtype).itemsize // LINE) * LINE
        mine, memory = World(self.comm), None
        path, sign = "", secrets.token_bytes(LINE)
        with contextlib.suppress(OSError, AttributeError, ValueError):
            if self.rank == 0:
                file = os.memfd_create("distbp")
                os.ftruncate(file, n_bytes)
                memory = _mapped(file, n_bytes)
                memory[:LINE] = sign
                path = f"/proc/{os.getpid()}/fd/{file}"
        path, told = mine.from_rank_0([path, sign.hex()])
        with contextlib.suppress(OSError, ValueError):
            if self.rank and path:
                file = os.open(path, os.O_RDWR)
                memory = _mapped(file, n_bytes)
                os.close(file)  # the mapping stays
                memory = memory if memory[:LINE].hex() == told else None
        good = all(mine.exchange(memory is not None))
        if self.rank == 0 and path:
            os.close(int(path.rpartition("/")[2]))
        if not good or memory is None:
            return None
        arrays = {}
        for name, (shape, dtype) in shapes.items():
            arrays[name] = np.frombuffer(memory, dtype, math.prod(shape), starts[name]).reshape(shape)
        return arrays


def _mapped(file: int, n_bytes: int) -> mmap.mmap:
    """Map a file's memory, in large pages where the system gives them."""
    memory = mmap.mmap(file, n_bytes)
    with contextlib.suppress(OSError, AttributeError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def open_host(
    world: World, share: bool, threads: int, overlap: bool, shapes: Callable[[Host], Shapes], say: Callable[[str], None]
) -> tuple[Host, dict[str, Array]]:
    """Return this rank's host, and memory of the `shapes` it asks for. **Collective.**

    Where sharing is not wanted, or not possible on some host (then that is said), each rank is a host of its own.
    `threads` is the same on every rank; the other parameters as for `Host`.
    """
    several = world.comm is not None and world.size > 1
    if several:
        from mpi4py import MPI

        overlap = overlap and MPI.Query_thread() == MPI.THREAD_MULTIPLE
    if world.comm and several and share:
        near = world.comm.Split_type(MPI.COMM_TYPE_SHARED)
        sizes = world.exchange([near.size, world.rank - near.rank])
        why = ""
        if any(size != near.size or first != r // near.size * near.size for r, (size, first) in enumerate(sizes)):
            why = "hosts hold unequal numbers of ranks, or ranks that are not neighbours"
        elif near.size > 1:
            across = world.comm.Split(near.rank) if world.size > near.size else None
            host = Host(world, near, across, threads, overlap)
            memory = host.allocate(shapes(host))
            if all(world.exchange(memory is not None)):
                return host, memory or {}
            why = "the ranks of a host cannot map the same memory"
        if why:
            say(f"each rank keeps its own theta: {why}")
    alone = Host(world, None, world.comm.Dup() if world.comm and several else None, threads, overlap)
    return alone, alone.allocate(shapes(alone)) or {}
