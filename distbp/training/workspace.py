"""What a rank's steps work in: passes and layers for each number of rows a shard, tiles, scratch memory. Made once.

What other ranks of the host read or write lies in the memory that they share (`shapes` in tiles.py says what).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distbp.data.part import Part
from distbp.data.shards import Batches
from distbp.data.windows import Windows, steps_at_once
from distbp.descent.rules import PIECE, Rule
from distbp.network.network import Network
from distbp.network.passes import Pass, join
from distbp.parallel.host import Host
from distbp.parallel.tree import additions
from distbp.parallel.world import shards_of
from distbp.training.tiles import Product, Sum, Tile, Tiles

Array = NDArray[Any]
CARRIED = 1 << 16  # bytes of a step's factors: a shorter message is there before a thread has begun


Tiled = list[tuple[Product | Sum, Tile]]


class Work(NamedTuple):
    """The buffers for steps of one number of rows a shard."""

    passes: list[Pass]  # of each thread
    layers: dict[int, Product | Sum]  # last layer first
    groups: list[tuple[list[Product | Sum], Tiled]]  # layers whose own tiles are computed together, and these


class Workspace:
    """The buffers of all steps, on one rank. **Collective over the host.**

    Parameters
    ----------
    host, memory
        The ranks that share memory, and that memory: what `shapes` asks for.
    network, rule
        What is trained, and how.
    part, batches, seed
        The training rows, and which of them each step takes.

    Attributes
    ----------
    theta, W, b
        theta in the memory, and its views.
    own, shards
        The rank's shards, and each thread's.
    costs, squares
        (V, 2) the cost of each shard and what its rank has to say; (tiles,) squares of the gradient. Of all ranks.
    pairs
        The additions that fold the shards' costs.
    windows
        The rows of each step.
    work
        By the number of rows that a shard has in a step.
    own_tiles
        Of each layer, last layer first.
    carried
        Whether messages are long enough for a thread to carry them to other hosts.
    pieces
        Theta and the rule's state, of each own tile.
    scratch, free
        Of each thread: for the gradient of a tile over its shards, and for the rule.
    """

    def __init__(
        self,
        host: Host,
        memory: Mapping[str, Array],
        network: Network,
        rule: Rule,
        part: Part,
        batches: Batches,
        seed: int,
    ) -> None:
        self.host, self.network, self.batches, self.theta = host, network, batches, memory["theta"]
        self.W, self.b = network.layout.views(self.theta)
        self.costs, self.squares = memory["costs"], memory["squares"]
        rank, V, L, n = host.world.rank, batches.n_shards, network.n_layers, network.widths
        self.own = shards_of(rank, host.world.size, V)
        self.shards = [host.shards(rank * host.threads + t, V) for t in range(host.threads)]
        self.pairs = additions([(s, s + 1) for s in range(V)])
        self.tiles = Tiles(network.layout, V, batches.rows)
        own = self.tiles.owned(host.size, host.rank)
        self.own_tiles = {l: [tile for tile in own if tile.l == l] for l in range(L, 0, -1)}
        of_one = steps_at_once(batches, n[0], network.dtype) * batches.rows * n[0]
        x = memory["h0"] if 1 in self.tiles.product else np.empty(of_one * len(self.own), network.dtype)
        self.windows = Windows(part, batches, seed, self.own, x, n[L])
        numbers = sorted({batches.rows, batches.shape(batches.steps_per_epoch - 1)})
        self.work = {rows: self._work(memory, rows) for rows in numbers}
        stacked = max((tile.size for tile in self.tiles.all if tile.l not in self.tiles.product), default=0)
        largest = max(tile.size for tile in self.tiles.all)
        n_scratch = max(largest, stacked * max(map(len, self.shards)))
        self.scratch = [np.empty(n_scratch, network.dtype) for _ in self.shards]
        self.free = [np.empty(min(PIECE, largest), network.dtype) for _ in self.shards]
        sent = sum(sum(n[l - 1 : l + 1]) for l in self.tiles.product) * V * batches.rows * network.dtype.itemsize
        self.carried = sent >= CARRIED
        self.pieces = {
            tile.number: rule.pieces(self.theta, tile.W) + rule.pieces(self.theta, tile.b, tile.W.stop - tile.W.start)
            for tile in own
        }

    def _work(self, memory: Mapping[str, Array], rows: int) -> Work:
        """Return the buffers for steps of so many rows a shard. **Collective over the host.**"""
        V, widths, product = self.batches.n_shards, self.network.widths, self.tiles.product

        def of_shards(name: str, n: int) -> Array:
            return memory[name][: V * rows * n].reshape(V, rows, n)

        h = {l - 1: of_shards(f"h{l - 1}", widths[l - 1]) for l in product}
        delta = {l: of_shards(f"delta{l}", widths[l]) for l in product}
        passes = []
        for shards in self.shards:
            mine = slice(shards.start, shards.stop)
            own_h, own_delta = ({l: array[mine] for l, array in arrays.items()} for arrays in (h, delta))
            passes.append(Pass(self.network, len(shards), rows, h=own_h, delta=own_delta))
            join(passes[-1], self.W)
        self.host.meet()  # all have tried it: the memory is for steps of any number of rows, and for other shards there
        layers: dict[int, Product | Sum] = {}
        for l, own in self.own_tiles.items():
            if l in product:
                layers[l] = Product(self.host, h[l - 1], delta[l])
            else:
                layers[l] = Sum(l, self.tiles.layers[l], own, self.host, memory[f"nodes{l}"], V)
        groups = [[l] for l in layers] if self.host.across else [list(layers)]  # as messages arrive, or all at once
        tiled = [
            ([layers[l] for l in group], [(layers[l], tile) for l in group for tile in self.own_tiles[l]])
            for group in groups
        ]
        return Work(passes, layers, tiled)
