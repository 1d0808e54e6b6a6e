"""The rows of one part that a rank holds, ready for the network: scaled, in its dtype, decoded or where they lie.

Rows that fit in `data.memory` (and those of a format that can only be read from its beginning) are kept decoded;
others are read from the source batch by batch. Both go through the same element-wise arithmetic, so they give the
same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distbp.data import scaling
from distbp.data.shards import Share
from distbp.data.source import Source

Array = NDArray[Any]


class Kept(Source):
    """A source's rows, read once and kept as they are: for formats that are read from their beginning."""

    again = True

    def __init__(self, source: Source, rows: NDArray[np.int64]) -> None:
        self.name, self.n_rows, self.n_features = source.name, source.n_rows, source.n_features
        self.feature_names, self.classes = source.feature_names, source.classes
        self.task, self.n_outputs, self._place = source.task, source.n_outputs, source.place
        self._rows = rows
        self._x, self._y = source.read(rows)

    def read(self, rows: NDArray[np.int64]) -> tuple[Array, Array]:
        """Return x and y of rows that are kept, in any order."""
        found = np.searchsorted(self._rows, rows)
        return self._x[found], self._y[found]

    def place(self, row: int, column: int | None) -> str:
        """Return how to name one feature of a row, or its target (None), to the user."""
        return self._place(row, column)


def blocks(share: Share, own_shard: int) -> Iterator[NDArray[np.int64]]:
    """Yield the file's row numbers of one of a share's shards, in blocks of a fixed size."""
    first, last = share.starts[own_shard], share.starts[own_shard + 1]
    for start in range(first, last, scaling.BLOCK):
        yield share.at(np.arange(start, min(start + scaling.BLOCK, last)))


def shard_statistics(
    source: Source, share: Share, allow_nonfinite: bool, tick: Callable[[int], None]
) -> tuple[Array, Array]:
    """Return the statistics of x and of y for each own shard, (k, 5, columns) each. **Local.**

    Raises
    ------
    ValueError
        A value is nan or infinite, and that is not allowed; the message names row and column.
    """
    of_x, of_y = [], []
    for s in range(len(share.starts) - 1):
        n_columns = source.n_outputs if source.task != "classification" else 1
        stats_x = scaling.statistics(np.empty((0, source.n_features)))
        stats_y = scaling.statistics(np.empty((0, n_columns)))
        for rows in blocks(share, s):
            x, y = source.read(rows)
            y = y.reshape(len(y), -1)
            if not allow_nonfinite:
                check_finite(source, rows, x, y)
            stats_x = scaling.merge(stats_x, scaling.statistics(x))
            stats_y = scaling.merge(stats_y, scaling.statistics(y))
            tick(len(rows))
        of_x.append(stats_x)
        of_y.append(stats_y)
    return np.stack(of_x), np.stack(of_y)


def check_share(source: Source, share: Share) -> None:
    """Raise ValueError, as `check_finite` does, for the first bad value in any row of a share. **Local.**"""
    for s in range(len(share.starts) - 1):
        for rows in blocks(share, s):
            check_finite(source, rows, *source.read(rows))


def check_finite(source: Source, rows: NDArray[np.int64], x: Array, y: Array) -> None:
    """Raise ValueError for the first value of x or y that is nan or infinite."""
    for values, is_target in ((x, False), (y, True)):
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            place = source.place(int(rows[row]), None if is_target else int(column))
            raise ValueError(
                f"{place}: expected a finite number, got {values[row, column]}. "
                "Mend the data, or set data.allow_nonfinite = true."
            )


class Part:
    """One part's rows on this rank.

    Parameters
    ----------
    source, share
        Where the rows are, and which of them this rank's shards hold.
    x_scaling, y_scaling
        Applied to features and, in a regression, to targets.
    dtype
        Of the network.
    memory
        Bytes up to which rows that could be read again are kept decoded.
    """

    def __init__(
        self,
        source: Source,
        share: Share,
        x_scaling: scaling.Scaling,
        y_scaling: scaling.Scaling,
        dtype: np.dtype[Any],
        memory: int,
    ) -> None:
        self.share, self.dtype = share, dtype
        self.source: Source | None = source
        self.x_scaling, self.y_scaling = x_scaling, y_scaling
        self.n_rows = share.n_rows
        self.n_features = source.n_features
        self.one_hot = source.task == "classification"
        n_own, written_out = len(share), source.n_outputs <= max(source.n_features, 16)  # classes as rows of 0 and 1
        by_number = self.one_hot and not written_out
        target_bytes = 8 if by_number else source.n_outputs * dtype.itemsize
        n_bytes = n_own * (source.n_features * dtype.itemsize + target_bytes)
        self.kept = isinstance(source, Kept) or n_bytes <= memory
        self.n_bytes = n_bytes if self.kept else 0  # in memory
        if self.kept:
            self._x = np.empty((n_own, source.n_features), dtype)
            self._y = np.zeros(n_own, np.int64) if by_number else np.zeros((n_own, source.n_outputs), dtype)
            start = 0
            for s in range(len(share.starts) - 1):
                for rows in blocks(share, s):
                    stop = start + len(rows)
                    self._x[start:stop], targets = self._read(rows)
                    if self.one_hot and written_out:
                        self._y[np.arange(start, stop), targets] = 1
                    else:
                        self._y[start:stop] = targets
                    start = stop
            self.source = None  # read for the last time

    def n_own(self, own_shard: int) -> int:
        """Return the rows of one of this rank's shards (numbered from 0 on this rank)."""
        return self.share.starts[own_shard + 1] - self.share.starts[own_shard]

    def fill(self, positions: NDArray[np.int64], x: Array, y: Array) -> None:
        """Write the rows at `positions` of this rank's share into x, (rows, n_0), and y, (rows, n_L). **Local.**"""
        if not self.kept:
            x[...], targets = self._read(self.share.at(positions))
        else:
            np.take(self._x, positions, axis=0, out=x, mode="clip")
            if self._y.ndim == 2:
                np.take(self._y, positions, axis=0, out=y, mode="clip")
                return
            targets = self._y[positions]
        if self.one_hot:
            y[...] = 0
            y[np.arange(len(y)), targets] = 1
        else:
            y[...] = targets

    def _read(self, rows: NDArray[np.int64]) -> tuple[Array, Array]:
        assert self.source
        x, y = self.source.read(rows)
        return self.x_scaling.apply(x, self.dtype), y if self.one_hot else self.y_scaling.apply(y, self.dtype)
