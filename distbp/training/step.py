"""One step of training, the heart of distbp. Read this first.

    1. each rank, for its own shards:   (1) (2) forward, (4) (5) backward   -> cost, a[l-1] and delta[l]
    2. the ranks meet; a cost that is not finite ends the run here, before the step
    3. each rank, for its own tiles of theta:   (6) the gradient summed over all shards, divided once by the global
       number of rows; (7) the descent step there
    4. the ranks meet again: theta is that of the next step

Ranks of a host share theta (host.py); a rank that shares with nobody owns all tiles. How the shards' gradients come
together, tile by tile and always in the same order, is tiles.py.
"""

from __future__ import annotations

import functools
import math
import operator
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distbp.descent.rules import PIECE, Rule
from distbp.network.network import Network
from distbp.network.passes import drop
from distbp.parallel.world import AgreedDivergedError
from distbp.training.tiles import Product, Sum
from distbp.training.workspace import Tiled, Work, Workspace

Array = NDArray[Any]

STOP, SAVE, END, FAILED, LARGE = (1 << bit for bit in range(5))  # what a rank may have to say, as bits
SAFE = 1e30  # squares of delta and of a: up to here no gradient overflows, and none is looked at before its step


def quiet() -> None:
    """Let numpy say nothing of overflow in this thread: a cost or gradient that is not finite is found and told."""
    np.seterr(over="ignore", invalid="ignore")


def square_of(values: Array) -> float:
    """Return the sum of the squares of a flat array; only its magnitude matters."""
    return float(np.dot(values, values))


class Totals(NamedTuple):
    """What one step found: `cost` is a sum over the `rows` of the batch; `flags` are those that any rank raised."""

    cost: float
    rows: int
    flags: int


class Stepper:
    """Takes the steps of a run on one rank.

    Parameters
    ----------
    space
        The buffers, with theta and the rule's state, which each step changes in place.
    network, rule, seed
        What is trained, how, and what dropout is keyed by.
    """

    def __init__(self, space: Workspace, network: Network, rule: Rule, seed: int) -> None:
        self.space, self.network, self.rule, self.seed = space, network, rule, seed
        self.host, self.world, self.theta, self.W, self.b = space.host, space.host.world, space.theta, space.W, space.b
        self.pool = ThreadPoolExecutor(self.host.threads, "worker", quiet) if self.host.threads > 1 else None
        self.kept: dict[int, Array] = {}  # gradients of own tiles, where their norm is needed before the step
        self.sent: dict[Product | Sum, Future[object] | None] = {}  # layers whose messages are on their way
        self.step = 0
        self.compute_seconds = 0.0  # spent outside communication since it was last set to 0

    def take(self, step: int, eta: float, flags: int) -> Totals:
        """Take the step from `step` to `step` + 1. **Collective.**

        Parameters
        ----------
        eta
            Learning rate.
        flags
            What this rank has to say: STOP, SAVE, END and FAILED, as bits.

        Raises
        ------
        AgreedDivergedError
            The cost or the gradient is not finite; theta and the rule's state are those before the step.
        """
        started = time.perf_counter()
        self.step, self.sent = step, {}
        work = self.space.work[self.space.batches.shape(step)]
        x, y, counts = self.space.windows.bring(step)
        if isinstance(work.layers[1], Product):
            work.layers[1].use(x)
            x = x[self.space.own.start : self.space.own.stop]
        self._each(self._forward_and_backward, work, x, y, counts, flags)  # 1
        self.compute_seconds += time.perf_counter() - started
        self.host.spread(self.space.costs, aside=True)
        self.host.meet()  # 2
        started = time.perf_counter()
        found = self.space.costs.tolist()
        costs, flags = [cost for cost, _ in found], functools.reduce(operator.or_, (int(said) for _, said in found))
        for i, j in self.space.pairs:
            costs[i] += costs[j]
        rows = self.space.batches.total(step)
        if not math.isfinite(costs[0]):
            self.refuse("cost", f"{costs[0]:g}")
        scale, kept = 1 / rows, bool(self.rule.descent.clip or flags & LARGE)
        if kept:
            scale *= self.rule.shrink(self._norm(work) / rows)
        for layers, tiles in work.groups:  # 3
            self._arrive(layers)
            self._each(self._descend, tiles, scale, eta, kept)
        self.compute_seconds += time.perf_counter() - started
        self.host.meet()  # 4
        return Totals(costs[0], rows, flags)

    def _each(self, do: Callable[..., None], *arguments: Any) -> None:
        """Call ``do(t, *arguments)`` in each thread t."""
        if self.pool is None:
            do(0, *arguments)
        else:
            for future in [self.pool.submit(do, t, *arguments) for t in range(self.host.threads)]:
                future.result()

    def _forward_and_backward(self, t: int, work: Work, x: Array, y: Array, counts: Sequence[int], flags: int) -> None:
        """Run (1), (2), (4), (5) for a thread's shards, and what of (6) is to be done before all meet. **Local.**"""
        pass_, shards = work.passes[t], self.space.shards[t]
        if not shards:
            return
        mine = slice(shards.start - self.space.own.start, shards.stop - self.space.own.start)
        pass_.use(x[mine], y[mine])
        pass_.count(counts[mine])
        drop(self.network, pass_, self.seed, self.step, shards.start)
        self.network.forward(self.W, self.b, pass_)
        self.network.cost_sums(pass_, self.space.costs[shards.start : shards.stop, 0])
        for l in self.network.deltas(self.W, pass_):
            layer = work.layers[l]
            square = square_of(pass_.flat_h[l - 1]) if l > 1 else self.space.windows.square
            if not square * square_of(pass_.flat_delta[l]) <= SAFE:
                flags |= LARGE
            layer.partial(pass_, self.host.rank * self.host.threads + t, self.space.scratch[t])
            if self.host.across and layer.early and self.pool is None:
                self.sent[layer] = self.host.send(layer.send, self.space.carried)
        self.space.costs[shards.start, 1] = flags

    def _arrive(self, layers: Sequence[Product | Sum]) -> None:
        """Have what this rank's tiles of some layers need. **Collective.**"""
        for layer in layers:
            if layer not in self.sent:
                layer.send()
                self.sent[layer] = None
            elif future := self.sent[layer]:
                future.result()
        if self.host.across:
            self.host.meet()

    def _norm(self, work: Work) -> float:
        """Find the gradient sum of all tiles, to be kept, and return its norm. **Collective.**"""
        for layers, tiles in work.groups:
            self._arrive(layers)
            self._each(self._measure, tiles)
        self.host.meet()
        norm = math.sqrt(sum(self.space.squares.tolist()))
        if not math.isfinite(norm):
            self.refuse("gradient", "nan or infinity")
        return norm

    def _measure(self, t: int, tiles: Tiled) -> None:
        """Keep the gradient of a thread's tiles, and write the squares of their norms. **Local.**"""
        for layer, tile in tiles[t :: self.host.threads]:
            g = layer.gradient(tile, self.space.scratch[t])
            if tile.number not in self.kept:
                self.kept[tile.number] = np.empty_like(g)
            self.kept[tile.number][...] = g
            pieces = (g[first : first + PIECE] for first in range(0, g.size, PIECE))
            self.space.squares[tile.number] = sum(float(np.dot(piece, piece)) for piece in pieces)

    def _descend(self, t: int, tiles: Tiled, scale: float, eta: float, kept: bool) -> None:
        """Take the descent step (7) in a thread's tiles. **Local.**"""
        for layer, tile in tiles[t :: self.host.threads]:
            g = self.kept[tile.number] if kept else layer.gradient(tile, self.space.scratch[t])
            self.rule.descend(self.space.pieces[tile.number], g, scale, eta, self.step + 1, self.space.free[t])

    def refuse(self, what: str, got: str) -> None:
        """Raise the error of a step that is not finite, naming the shards it came from; on all ranks."""
        bad = [str(shard) for shard, cost in enumerate(self.space.costs[:, 0].tolist()) if not math.isfinite(cost)]
        where = f" in shard{'s' if len(bad) > 1 else ''} {', '.join(bad)}" if bad else ""
        raise AgreedDivergedError(
            f"step {self.step}: expected a finite {what}, got {got}{where}. "
            "Stopped before the step; lower descent.learning_rate or set descent.clip."
        )
