"""Who reads the files: every rank the rows of its own shards, or rank 0 those of all (data.share).

What comes of it is the same in both: each rank has a source that can give it the rows of its shards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distbp.data.part import Kept
from distbp.data.sending import Received, description, pieces
from distbp.data.shards import Share, holders
from distbp.data.source import Shape, Source, open_source
from distbp.parallel.world import World, shards_of
from distbp.settings import Data

EVERYWHERE = ("digits", "synthetic", "memory")  # sources that every rank has by itself


@dataclass(frozen=True)
class Reader:
    """Opens sources and brings this rank's rows of them.

    Attributes
    ----------
    data, cost, seed, n_shards
        As `open_source` and `shares` take them.
    stop
        True once this rank is to leave; looked at between two pieces that come from rank 0.
    """

    world: World
    data: Data
    cost: str
    seed: int
    n_shards: int
    stop: object = False

    def sends(self, name: str) -> bool:
        """Return whether rank 0 alone reads a source."""
        return self.data.share == "send" and self.world.size > 1 and name not in EVERYWHERE

    def open(self, path: str, like: Shape | None = None) -> Source:
        """Open a source, as `open_source` does. **Collective.**"""
        with self.world.together():
            source = None
            if self.world.rank == 0 or not self.sends(path):
                source = open_source(path, self.data, cost=self.cost, seed=self.seed, like=like)
        if self.sends(path):
            told = self.world.from_rank_0(description(source) if source else None)
        return source or Received(told)

    def bring(
        self,
        source: Source,
        fractions: tuple[float, float],
        cut: Mapping[int, Share],
        tick: Callable[[int], None] = lambda n: None,
    ) -> Source:
        """Return a source that gives the rows of this rank's shares at low cost, again and again. **Collective.**

        Parameters
        ----------
        fractions, cut
            How the source is cut into parts, and this rank's share of each part that is wanted.
        tick
            Told of each piece of rows that rank 0 has read for all.

        Raises
        ------
        AgreedValueError
            A value cannot be used. Where rank 0 reads for all, also one that is nan or infinite but may not be.
        """
        with self.world.together():
            if not self.sends(source.name):
                return source if source.again else Kept(source, _rows(cut))
            kept = source if isinstance(source, Received) else None if source.again else Received(description(source))
            if kept:
                kept.expect(_rows(cut))
        with self.world.together():
            dealt = self.world.deal(
                pieces(source, self._ranks(source.n_rows, fractions, cut), self.data.allow_nonfinite, tick),
                kept.like if kept else (),
                self.stop,
            )
            with contextlib.closing(dealt):
                for x, y in dealt:
                    if kept:  # else these are read again where they lie
                        kept.take(x, y)
            tick(0)  # this rank may be the one that was asked to stop
        return kept or source

    def _ranks(
        self, n_rows: int, fractions: tuple[float, float], parts: Mapping[int, Share]
    ) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield (first row, the rank that each row is for, or -1) for pieces of a file."""
        size, n_shards = self.world.size, self.n_shards
        of_shard = [rank for rank in range(size) for _ in shards_of(rank, size, n_shards)]
        of_holder = np.array([*of_shard, -1])  # -1, no shard: the last
        for first, shard in holders(n_rows, self.seed, fractions, n_shards, parts):
            yield first, of_holder[shard]


def _rows(cut: Mapping[int, Share]) -> NDArray[np.int64]:
    """Return the numbers of the rows of all shares, ascending."""
    return np.sort(np.concatenate([share.at(np.arange(len(share))) for share in cut.values()]))
