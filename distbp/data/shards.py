"""Who holds which rows: parts (training, validation, test), shards of a part, and the batch as arithmetic.

Whether a row is kept for validation or test depends on the seed and the row's number alone. The rows of a part, in file
order, are cut into V contiguous shards whose sizes differ by at most one, and rank r of P holds the shards
V*r//P ... V*(r+1)//P - 1. A step takes the next `rows` rows of every shard, so a step's rows, an epoch's length and a
run's position are all arithmetic; only the last step of an epoch may find fewer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from distbp import keys

PIECE = 1 << 20  # rows judged at once

TRAINING, VALIDATION, TEST = range(3)


def bounds(n: int, n_shares: int, share: int) -> tuple[int, int]:
    """Return (first, last + 1) of share `share` of `n` things cut into `n_shares` contiguous shares."""
    return n * share // n_shares, n * (share + 1) // n_shares


class Share:
    """The rows of a part that one rank's shards hold: numbers in the file, ascending, and where each shard begins."""

    def __init__(self, rows: NDArray[np.int64] | range, starts: Sequence[int], n_rows: int) -> None:
        self._rows = rows
        self.starts = list(starts)  # of each own shard in `rows`, then the end
        self.n_rows = n_rows  # of the part, over all ranks

    def __len__(self) -> int:
        return len(self._rows)

    def at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the file's row numbers at positions 0 ... len - 1 of this share."""
        return positions + self._rows.start if isinstance(self._rows, range) else self._rows[positions]


def shares(
    n_rows: int, seed: int, fractions: tuple[float, float], own: range, n_shards: int
) -> tuple[Share, Share, Share]:
    """Return the shares of the training, validation and test part that the shards `own` hold. **Local.**

    Parameters
    ----------
    n_rows
        Rows of the file.
    fractions
        Of the validation and of the test part.

    Notes
    -----
    8 bytes a row are kept where a part is cut from the file; none where every row is for training.
    """
    if fractions == (0.0, 0.0):
        first, last = bounds(n_rows, n_shards, own.start)[0], bounds(n_rows, n_shards, own.stop - 1)[1]
        starts = [bounds(n_rows, n_shards, s)[0] - first for s in own] + [last - first]
        nothing = Share(range(0), [0] * (len(own) + 1), 0)
        return Share(range(first, last), starts, n_rows), nothing, nothing
    counts = np.array([np.bincount(part, minlength=3) for _, part in _parts(n_rows, seed, fractions)])
    totals = counts.sum(axis=0)
    ends = counts.cumsum(axis=0)
    wanted = [(bounds(int(n), n_shards, own.start)[0], bounds(int(n), n_shards, own.stop - 1)[1]) for n in totals]
    found: list[list[NDArray[np.int64]]] = [[], [], []]
    for i, (first_row, part) in enumerate(_parts(n_rows, seed, fractions)):
        for p, (first, last) in enumerate(wanted):
            before = int(ends[i, p] - counts[i, p])
            if before < last and ends[i, p] > first:
                rows = np.flatnonzero(part == p) + first_row
                found[p].append(rows[max(first - before, 0) : last - before])
    result = []
    for p, (first, last) in enumerate(wanted):
        starts = [bounds(int(totals[p]), n_shards, s)[0] - first for s in own] + [last - first]
        result.append(Share(np.concatenate(found[p] or [np.empty(0, np.int64)]), starts, int(totals[p])))
    return result[0], result[1], result[2]


def holders(
    n_rows: int, seed: int, fractions: tuple[float, float], n_shards: int, parts: Collection[int]
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield (first row, the shard that holds each row) for pieces of the file; -1 for a row of none of `parts`.

    It says of every row what `shares` says of the rows of some shards, in the memory of one piece. **Local.**
    """
    totals = np.sum([np.bincount(part, minlength=3) for _, part in _parts(n_rows, seed, fractions)], axis=0)
    starts = {p: [bounds(int(totals[p]), n_shards, s)[0] for s in range(n_shards)] for p in parts}
    passed = dict.fromkeys(parts, 0)
    for first, part in _parts(n_rows, seed, fractions):
        shard = np.full(part.size, -1)
        for p in parts:
            rows = np.flatnonzero(part == p)
            shard[rows] = np.searchsorted(starts[p], np.arange(passed[p], passed[p] + rows.size), side="right") - 1
            passed[p] += rows.size
        yield first, shard


def _parts(n_rows: int, seed: int, fractions: tuple[float, float]) -> Iterator[tuple[int, NDArray[np.int8]]]:
    """Yield (first row, part of each row) for pieces of the file."""
    of_key = keys.key(keys.PARTS, seed)
    for first in range(0, n_rows, PIECE):
        u = keys.uniform(of_key, np.arange(first, min(first + PIECE, n_rows), dtype=np.uint64))
        part = np.full(u.size, TRAINING, np.int8)
        part[u < fractions[0] + fractions[1]] = TEST
        part[u < fractions[0]] = VALIDATION
        yield first, part


@dataclass(frozen=True)
class Batches:
    """A run's batches as arithmetic.

    Attributes
    ----------
    n_rows
        Training rows over all shards.
    n_shards
        V.
    rows
        Rows of every shard in a full step.
    """

    n_rows: int
    n_shards: int
    rows: int

    @classmethod
    def of(cls, n_rows: int, n_shards: int, batch_size: int | str) -> Batches:
        """Return the batches of `batch_size` rows over all shards, a multiple of `n_shards`, or "all"."""
        most = -(-n_rows // n_shards)  # rows of the largest shard
        return cls(n_rows, n_shards, most if batch_size == "all" else min(int(batch_size) // n_shards, most))

    @cached_property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch; every training row counts in exactly one of them."""
        return -(-self.n_rows // self.n_shards // self.rows) if self.n_rows else 0

    def epoch(self, step: int) -> int:
        """Return the epoch (from 0) of the step that starts at `step`."""
        return step // self.steps_per_epoch

    def taken(self, step: int, shard: int) -> tuple[int, int]:
        """Return (first, last + 1) position within the shard's order of the rows of one step."""
        first, last = bounds(self.n_rows, self.n_shards, shard)
        start = step % self.steps_per_epoch * self.rows
        return min(start, last - first), min(start + self.rows, last - first)

    def total(self, step: int) -> int:
        """Return the rows of one step over all shards."""
        full = self.n_shards * self.rows
        return min(full, self.n_rows - step % self.steps_per_epoch * full)

    def shape(self, step: int) -> int:
        """Return the rows of a shard's products in one step: the most that any shard takes."""
        most = -(-self.n_rows // self.n_shards)
        return min(self.rows, most - step % self.steps_per_epoch * self.rows)
