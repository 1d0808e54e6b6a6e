"""The gradient tile by tile: how shards' parts of (6) come together, and who takes the descent step (7) where.

A tile is some neurons of one layer: rows of W[l] and their b[l]. Each rank of a host owns some of the tiles; it finds
their gradient over the whole batch and takes the descent step there, while they are in its cache. A layer's shards
come together in one of two ways, chosen from shapes alone, so that the bits never depend on the ranks:

    Product   every rank's delta[l] and a[l-1] are brought together; the sum over the batch is one product over its
              rows, in shard order:  grad_W[l] = delta[l]^T a[l-1].  B (n_l + n_{l-1}) numbers travel. For batches that
              are small beside the widths.
    Sum       each rank makes its own shards' products and adds them up in the tree's order; the nodes of the tree
              travel, n_l n_{l-1} numbers each.

The products of a tile have one shape, whoever computes them.

References
----------
H. Zhang et al., "Poseidon: an efficient communication architecture for distributed deep learning on GPU clusters",
USENIX ATC 2017, section 3.2 (sending the factors).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distbp.data.shards import Batches
from distbp.data.windows import steps_at_once
from distbp.network.layout import Layout
from distbp.network.network import Network, gradient
from distbp.network.passes import Pass
from distbp.parallel.host import Host, Shapes
from distbp.parallel.messages import transport
from distbp.parallel.tree import additions, complete_nodes, fold_stack

Array = NDArray[Any]

LARGEST = 1 << 20  # numbers of a tile: larger ones gain nothing, and each thread needs memory for one
STACK = 1 << 23  # numbers of one tile over all shards
CHEAP = 1 << 15  # numbers that cost no more than a message's latency


class Tile(NamedTuple):
    """Neurons `first` ... `last` - 1 of layer l; `W`, `b`: their place in theta; `at`: in the layer's gradient."""

    number: int
    l: int
    first: int
    last: int
    W: slice
    b: slice
    at: int

    @property
    def size(self) -> int:
        """Return how many numbers its gradient has: W, then b."""
        return int(self.W.stop - self.W.start) + self.last - self.first

    def views(self, gradients: Array) -> tuple[Array, Array]:
        """Return (grad_W, grad_b), views into gradients of this tile, (..., size) or longer."""
        high, n_weights = self.last - self.first, self.W.stop - self.W.start
        grad_W = gradients[..., :n_weights].reshape(*gradients.shape[:-1], high, n_weights // high)
        return grad_W, gradients[..., n_weights : n_weights + high]


def by_product(n_in: int, n_out: int, batch: int) -> bool:
    """Return whether a layer's shards come together by a product over the whole batch, not by a sum in the tree."""
    return batch * (n_in + n_out) <= max(2 * n_in * n_out, CHEAP)  # numbers that travel: by product, by sum


class Tiles:
    """All tiles of a run: arithmetic from shapes alone, the same on every rank.

    Attributes
    ----------
    product
        The layers that come together by product.
    layers
        Each layer's tiles.
    all
        The tiles of all layers.
    """

    def __init__(self, layout: Layout, n_shards: int, rows: int) -> None:
        self.widths, batch = layout.widths, n_shards * rows
        self.layers: dict[int, list[Tile]] = {}
        self.product: set[int] = set()
        number, W, b = 0, 0, layout.n_weights
        for l, (n_in, n_out) in enumerate(pairwise(self.widths), start=1):
            depth, most = rows, min(LARGEST, STACK // n_shards)
            if by_product(n_in, n_out, batch):
                self.product.add(l)
                depth, most = batch, LARGEST
            high = max(16, min(max(128, depth // 2), most // n_in))
            n_tiles = -(-n_out // high)
            cuts = pairwise(n_out * i // n_tiles for i in range(n_tiles + 1))
            self.layers[l] = [
                Tile(number + i, l, first, last, slice(W + first * n_in, W + last * n_in), slice(b + first, b + last),
                     first * (n_in + 1))
                for i, (first, last) in enumerate(cuts)
            ]  # fmt: skip
            number, W, b = number + n_tiles, W + n_in * n_out, b + n_out
        self.all = [tile for of_layer in self.layers.values() for tile in of_layer]

    def owned(self, n_owners: int, owner: int) -> list[Tile]:
        """Return the tiles of one of several owners: neighbours, about as many numbers for each."""
        total = sum(tile.size for tile in self.all)
        found, before = [], 0
        for tile in self.all:
            if (2 * before + tile.size) * n_owners // (2 * total) == owner:  # by its middle
                found.append(tile)
            before += tile.size
        return found


class Product:
    """One layer whose shards come together by a product over the whole batch.

    Parameters
    ----------
    h, delta
        a[l-1] and delta[l] of every shard, (V, rows, n), in the host's memory. Each rank writes those of its shards.
    """

    early = True  # it may be sent before the host's ranks have met

    def __init__(self, host: Host, h: Array, delta: Array) -> None:
        self.host, self.delta = host, delta
        self.flat_delta = delta.reshape(-1, delta.shape[-1])
        self.ones = np.ones((1, len(self.flat_delta)), delta.dtype)
        self.views: dict[int, tuple[Array, Array, Array, Array]] = {}  # of each tile: delta, grad_W, grad_b, both
        self.use(h)

    def use(self, h: Array) -> None:
        """Take a[l-1] of every shard from where it lies."""
        self.h, self.flat_h = h, h.reshape(-1, h.shape[-1])

    def partial(self, pass_: Pass, worker: int, scratch: Array) -> None:
        """Do nothing: the factors are where they should be."""

    def send(self) -> None:
        """Bring the factors to all hosts. **Collective across hosts**, once this rank has written its own."""
        self.host.spread(self.h)
        self.host.spread(self.delta)

    def gradient(self, tile: Tile, scratch: Array) -> Array:
        """Return the gradient sum of a tile, (size,): W, then b. **Local**, after all ranks have sent and met.

        It is in `scratch`, the same in every call for a tile.
        """
        found = self.views.get(tile.number)
        if not found:
            views = self.flat_delta[:, tile.first : tile.last], *tile.views(scratch), scratch[: tile.size]
            found = self.views[tile.number] = views
        delta, grad_W, grad_b, both = found
        gradient(delta, self.flat_h, self.ones, grad_W, grad_b)
        return both


class Sum:
    """One layer whose shards come together by a sum in the tree's order.

    Parameters
    ----------
    l, tiles
        The layer, and its tiles.
    own
        Those of them that this rank owns.
    nodes
        (nodes of the tree that the host's workers hold, numbers of the layer), in the host's memory.
    n_shards
        V.
    """

    def __init__(
        self, l: int, tiles: Sequence[Tile], own: Sequence[Tile], host: Host, nodes: Array, n_shards: int
    ) -> None:
        self.l, self.tiles, self.nodes = l, tiles, nodes
        self.early = host.size == 1
        self.held = host.nodes(n_shards)  # of each worker of the host
        leaves = [node for of_worker in self.held for node in of_worker]
        per_host = [complete_nodes(of.start, of.stop, n_shards) for of in host.shards_of_hosts(n_shards)]
        roots = per_host[host.number]
        self.pairs = [pair for root in roots for pair in additions(leaves, root)]  # that the host adds up
        ends = [[start for start, _ in leaves].index(start) for start, _ in roots]
        self.part = slice(own[0].at, own[-1].at + own[-1].size) if own else slice(0, 0)
        self.sent = [nodes[end, self.part] for end in ends]
        self.transport = None
        if host.across:
            pairs = additions([node for of_host in per_host for node in of_host])
            n = self.part.stop - self.part.start
            self.transport = transport(host.across, [len(of_host) for of_host in per_host], pairs, n, nodes.dtype)

    def partial(self, pass_: Pass, worker: int, scratch: Array) -> None:
        """Write the nodes of one worker's shards, once their delta is known. **Local.** `worker`: of the host."""
        k, row = pass_.shape[0], sum(len(of_worker) for of_worker in self.held[:worker])
        first = self.held[worker][0][0]
        for tile in self.tiles:
            stack = scratch[: k * tile.size].reshape(k, tile.size)
            delta = pass_.delta[self.l][:, :, tile.first : tile.last]
            gradient(delta, pass_.h[self.l - 1], pass_.ones, *tile.views(stack))
            for i, (start, stop) in enumerate(self.held[worker], row):
                fold_stack(stack[start - first : stop - first])
                self.nodes[i, tile.at : tile.at + tile.size] = stack[start - first]

    def send(self) -> None:
        """Add up this rank's part of the layer over the host and over all hosts. **Collective across hosts.**

        Once the host's ranks have met.
        """
        for i, j in self.pairs:
            into = self.nodes[i, self.part]
            into += self.nodes[j, self.part]
        if self.transport:
            self.nodes[0, self.part] = self.transport.total(self.sent)

    def gradient(self, tile: Tile, scratch: Array) -> Array:
        """Return the gradient sum of an own tile, (size,): W, then b. **Local**, after `send`."""
        return self.nodes[0, tile.at : tile.at + tile.size]


def shapes(network: Network, batches: Batches, state: Sequence[str], host: Host) -> Shapes:
    """Return what the ranks of a host share: theta, the rule's state, and each layer's factors or nodes."""
    dtype, n_shards, tiles = network.dtype, batches.n_shards, Tiles(network.layout, batches.n_shards, batches.rows)
    wanted: dict[str, tuple[tuple[int, ...], Any]] = {
        name: ((network.layout.n_parameters,), dtype) for name in ("theta", *state)
    }
    n_nodes = sum(len(nodes) for nodes in host.nodes(n_shards))
    n_rows = n_shards * batches.rows
    for l, of_layer in tiles.layers.items():
        if l in tiles.product:
            n_steps = 1 if l > 1 else steps_at_once(batches, network.widths[0], dtype)
            wanted[f"h{l - 1}"] = ((n_steps * n_rows * network.widths[l - 1],), dtype)
            wanted[f"delta{l}"] = ((n_rows * network.widths[l],), dtype)
        else:
            wanted[f"nodes{l}"] = ((n_nodes, sum(tile.size for tile in of_layer)), dtype)
    wanted["costs"] = ((n_shards, 2), np.float64)  # the cost of each shard, and what its rank has to say
    wanted["squares"] = ((len(tiles.all),), np.float64)  # of each tile's gradient
    return wanted
