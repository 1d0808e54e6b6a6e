"""The rows of the next steps, gathered together: one pass over the data fills the batches of many small steps.

A window holds as many steps of an epoch as fit in WINDOW bytes, at least one. Rows that are read where they lie
(not kept in memory) are brought by a thread while the window before is trained on.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distbp.data.order import Order
from distbp.data.part import Part
from distbp.data.shards import Batches

Array = NDArray[Any]
WINDOW = 1 << 20  # bytes of x over all shards
SMALL = 1 << 15  # bytes of a rank's x of one step, that are gathered for several steps with one call


class Window(NamedTuple):
    """Steps `first` ... of an epoch, all with the same number of rows a shard."""

    epoch: int
    first: int
    n_steps: int


def steps_at_once(batches: Batches, n_features: int, dtype: np.dtype[Any]) -> int:
    """Return the steps of a full window."""
    n_bytes = batches.n_shards * batches.rows * n_features * dtype.itemsize
    return max(1, min(WINDOW // n_bytes, batches.steps_per_epoch - 1))


class Windows:
    """Brings the rows of the shards that a rank holds.

    Parameters
    ----------
    part, batches, seed, own
        The rows, which of them each step takes, and the own shards.
    x
        (steps at once * shards * rows * n_0,): where x goes; of all V shards (the other ranks write theirs), or of the
        own.
    n_outputs
        n_L.

    Attributes
    ----------
    square
        Sum of the squares of all x of the window.
    """

    def __init__(self, part: Part, batches: Batches, seed: int, own: range, x: Array, n_outputs: int) -> None:
        self.part, self.batches, self.own, self.x = part, batches, own, x
        counts = [part.n_own(i) for i in range(len(own))]
        self.order = Order(seed, own, counts, -(-batches.n_rows // batches.n_shards))
        self.starts = np.array(part.share.starts[:-1])[:, None]
        self.n_steps = steps_at_once(batches, part.n_features, x.dtype)
        self.widths, per_step = (part.n_features, n_outputs), batches.rows * part.n_features
        self.n_stack = x.size // (self.n_steps * per_step)  # shards in x
        self.y = np.empty(self.n_steps * len(own) * batches.rows * n_outputs, x.dtype)
        self.here: Window | None = None
        self.steps = range(0)  # of the window
        self.views = x, self.y
        self.counts: list[int] = []
        self.square = 0.0
        self.coming: tuple[Window, Future[None]] | None = None
        self.thread = None if part.kept else ThreadPoolExecutor(1, "rows")
        self.spare: tuple[Array, Array] | None = None  # where the own rows are gathered, to be copied to x and y
        apart = self.n_steps > 1 and self.n_stack > len(own)  # x of one step does not follow on that of the step before
        if self.thread or (apart and len(own) * per_step * x.itemsize < SMALL):
            self.spare = np.empty(self.y.size // n_outputs * part.n_features, x.dtype), np.empty_like(self.y)

    def bring(self, step: int) -> tuple[Array, Array, list[int]]:
        """Return x of the shards that `x` is for, y of the own shards, and how many rows of each own one count.

        **Local.** x (shards, rows, n_0), y (own shards, rows, n_L): views that stay until the next step is brought.
        """
        if not self.steps.start <= step < self.steps.stop:
            self._enter(step)
        x, y = self.views
        i = step - self.steps.start
        return x[i], y[i], self.counts

    def _enter(self, step: int) -> None:
        """Bring the window that a step is in."""
        window, per_epoch = self._of(step), self.batches.steps_per_epoch
        start = step - step % per_epoch + window.first
        self.steps = range(start, start + window.n_steps)
        if window == self.here:  # the full batch again
            return
        x, y = self.views = self._views(window, self.x, self.y)
        first = self.own.start if self.n_stack > len(self.own) else 0
        own_x = x[:, first : first + len(self.own)]
        if not self.spare:
            self._fill(window, own_x, y)
        else:
            spare = self._views(window, *self.spare)
            if self.coming:
                self.coming[1].result()
            if not self.coming or self.coming[0] != window:
                self._fill(window, *spare)
            own_x[...], y[...] = spare
            own_x = spare[0]  # the same, in one run of memory
        self.here = window
        taken = [self.batches.taken(start, shard) for shard in self.own]
        self.counts = [last - first for first, last in taken]  # only the last of an epoch, alone, is short
        parts = [own_x.reshape(-1)] if own_x.flags.c_contiguous else [of_step.reshape(-1) for of_step in own_x]
        self.square = sum(float(np.dot(part, part)) for part in parts)
        if self.thread and self.spare:
            coming = self._of(self.steps.stop)
            self.coming = coming, self.thread.submit(self._fill, coming, *self._views(coming, *self.spare))

    def _of(self, step: int) -> Window:
        """Return the window that a step is in."""
        epoch, index = divmod(step, self.batches.steps_per_epoch)
        if self.batches.steps_per_epoch == 1:
            return Window(0, 0, 1)  # the full batch has no order: it is brought once
        if index == self.batches.steps_per_epoch - 1:
            return Window(epoch, index, 1)  # the last may be short
        first = index - index % self.n_steps
        return Window(epoch, first, min(self.n_steps, self.batches.steps_per_epoch - 1 - first))

    def _views(self, window: Window, x: Array, y: Array) -> tuple[Array, Array]:
        """Return a window's (steps, shards, rows, n) in the memory for x and for y."""
        steps, rows, k = window.n_steps, self.batches.shape(window.first), len(self.own)
        n_stack = self.n_stack if x is self.x else k
        of_x = x[: steps * n_stack * rows * self.widths[0]].reshape(steps, n_stack, rows, -1)
        return of_x, y[: steps * k * rows * self.widths[1]].reshape(steps, k, rows, -1)

    def _fill(self, window: Window, x: Array, y: Array) -> None:
        """Gather a window's rows of the own shards."""
        rows, k = x.shape[2], len(self.own)
        first = window.first * self.batches.rows
        if self.batches.steps_per_epoch == 1:
            found = np.minimum(np.arange(rows), np.maximum(self.order.n[:, None] - 1, 0))
        else:
            found = self.order.rows(window.epoch, first, first + window.n_steps * rows)
        positions = (found + self.starts).reshape(k, window.n_steps, rows).swapaxes(0, 1)
        if len(self.part.share):
            positions = np.minimum(positions, len(self.part.share) - 1)  # a shard without rows, at the end
            together = [slice(None)] if x.flags.c_contiguous else [slice(s, s + 1) for s in range(window.n_steps)]
            for steps in together:
                n = positions[steps].size
                self.part.fill(
                    positions[steps].reshape(n),
                    x[steps].reshape(n, self.widths[0]),
                    y[steps].reshape(n, self.widths[1]),
                )
