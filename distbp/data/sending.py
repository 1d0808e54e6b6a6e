"""Rows that one process reads for all: how it describes their source, cuts them into pieces, and how others keep them.

The reader passes the file once, in its order, whoever holds the rows; so a piece is all that it has in memory. The
values are sent as they are in the file and scaled where they arrive, since the scaling needs them all: so they give the
same bits as rows that each process reads for itself. Nothing here communicates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import tee
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distbp.data.part import Kept, check_finite
from distbp.data.source import Shape, Source

Array = NDArray[Any]
PIECE = 1 << 22  # bytes of features read and sent at once


def description(source: Source) -> dict[str, Any]:
    """Return what others must know of a source, as JSON holds it. **Local.**"""
    x, y = next(source.pieces([np.empty(0, np.int64)]))
    return {
        "name": source.name,
        "n_rows": source.n_rows,
        "shape": asdict(Shape.of(source)),
        "x": [x.dtype.str, x.shape[1:]],
        "y": [y.dtype.str, y.shape[1:]],
    }


class Received(Kept):
    """Rows of a source that another process reads.

    Parameters
    ----------
    told
        The `description` of the source.
    """

    def __init__(self, told: dict[str, Any]) -> None:
        shape = told["shape"]
        self.name, self.n_rows, self.n_features = told["name"], told["n_rows"], shape["n_features"]
        self.feature_names, self.classes = tuple(shape["feature_names"]), tuple(shape["classes"])
        self.task, self.n_outputs = shape["task"], shape["n_outputs"]
        self.like = [np.empty((0, *row), dtype) for dtype, row in (told["x"], told["y"])]
        self.expect(np.empty(0, np.int64))

    def expect(self, rows: NDArray[np.int64]) -> None:
        """Make room for rows, which are to come in ascending order."""
        self._rows, self._taken = rows, 0
        self._x, self._y = (np.empty((len(rows), *one.shape[1:]), one.dtype) for one in self.like)

    def take(self, x: Array, y: Array) -> None:
        """Take the next rows."""
        here = slice(self._taken, self._taken + len(x))
        self._x[here], self._y[here] = x, y
        self._taken += len(x)

    def place(self, row: int, column: int | None) -> str:
        """Return how to name a row; the one that reads the file has already named every wrong value in it."""
        return f"{self.name}: row {row}"


def pieces(
    source: Source,
    holders: Iterator[tuple[int, NDArray[np.int64]]],
    allow_nonfinite: bool,
    tick: Callable[[int], None],
) -> Iterator[tuple[int, tuple[Array, Array]]]:
    """Yield (rank, (x, y)) for pieces of the rows, in the file's order, read in one pass. **Local.**

    Parameters
    ----------
    holders
        (first row, the rank that each row is for), for stretches of the file; -1 for a row that none wants.
    tick
        Told how many rows have been read.

    Raises
    ------
    ValueError
        A value cannot be used, or is nan or infinite where that is not allowed; the message names its place.
    """
    x, _ = next(source.pieces([np.empty(0, np.int64)]))
    step = max(1, PIECE // (source.n_features * x.itemsize))

    def plan() -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        for first, rank in holders:
            for start in range(0, len(rank), step):
                wanted = np.flatnonzero(rank[start : start + step] >= 0) + start
                yield wanted + first, rank[wanted]

    to_read, to_send = tee(plan())
    read = source.pieces(rows for rows, _ in to_read)
    for (rows, rank), (x, y) in zip(to_send, read, strict=True):  # strict: the file is read to its end
        if not allow_nonfinite:
            check_finite(source, rows, x, y)
        tick(len(rows))
        for one in np.unique(rank).tolist():
            yield one, (x[rank == one], y[rank == one])
