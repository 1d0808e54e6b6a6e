"""What is trained on what: from checked settings to this rank's rows, the scaling and the network.

Everything that depends on data is settled here, once, and agreed on by all ranks: a file that one rank alone cannot
read, or a bad value in one rank's rows, is the same error on all of them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distbp.data import scaling
from distbp.data.arrays import in_memory
from distbp.data.part import Part, check_share, shard_statistics
from distbp.data.shards import TEST, TRAINING, VALIDATION, Batches, Share, shares
from distbp.data.source import Shape, Source
from distbp.network.network import Network
from distbp.options import misfit
from distbp.parallel.tree import fold_shards
from distbp.parallel.world import AgreedStopError, World, shards_of
from distbp.settings import COSTS, Settings
from distbp.training.reader import Reader
from distbp.training.signals import StopFlag

Arrays = tuple[NDArray[Any], NDArray[Any]]
HE = ("relu", "leaky_relu", "gelu")


@dataclass(frozen=True)
class Problem:
    """The data of a run on one rank, and the network that fits it.

    Attributes
    ----------
    shape
        Features, outputs, task and classes, as the source has them.
    training, validation, test
        This rank's rows of each part; None for a part that is not there.
    fingerprint
        SHA-256 of the parts' sizes and of the statistics of all training rows: the same data, if it is the same.
    """

    shape: Shape
    network: Network
    batches: Batches
    x_scaling: scaling.Scaling
    y_scaling: scaling.Scaling
    training: Part
    validation: Part | None
    test: Part | None
    fingerprint: str


def make_network(settings: Settings, shape: Shape) -> Network:
    """Return the network that the settings and the data call for, with every "auto" settled.

    Raises
    ------
    ValueError
        The cost does not fit the task.
    """
    wanted = settings.network
    for wrong in misfit(wanted.cost, shape.task):
        raise ValueError(wrong)
    cost = COSTS[shape.task][0] if wanted.cost == "auto" else wanted.cost
    output: str = wanted.output
    if output == "auto":
        output = {"cross_entropy": "softmax", "binary_cross_entropy": "sigmoid"}.get(
            cost, "identity" if shape.task == "regression" else "sigmoid"
        )
    return Network(
        (shape.n_features, *wanted.widths, shape.n_outputs),
        [wanted.activation] * len(wanted.widths) + [output],
        cost,
        wanted.huber_width,
        wanted.dropout,
        wanted.dtype,
    )


def initial_kind(settings: Settings) -> str:
    """Return how initial weights are drawn, with "auto" settled."""
    if settings.network.initial != "auto":
        return settings.network.initial
    return "he" if settings.network.activation in HE else "glorot"


def target_scaling(settings: Settings, network: Network, task: str) -> str:
    """Return how targets are scaled, with "auto" settled: only where the network can give any number."""
    wanted = settings.data.target_scaling
    if task != "regression":
        return "none"
    return wanted if wanted != "auto" else "standard" if network.sigma[-1].name == "identity" else "none"


def load(
    settings: Settings, world: World, say: Callable[[str], None], stop: StopFlag, arrays: Arrays | None = None
) -> Problem:
    """Read this rank's rows and settle scaling and network. **Collective.**

    Parameters
    ----------
    settings
        With `data.shards` a number.
    say
        Told of progress, on work of more than two seconds.
    stop
        Looked at while rows are read: then there is nothing to save yet, and all ranks leave.
    arrays
        x and y in memory, the same on every rank, in place of `data.source`.

    Raises
    ------
    AgreedStopError
        A rank was asked to stop.
    AgreedValueError
        Data that cannot be used, the same error on every rank.
    """
    data, seed = settings.data, settings.training.seed
    own = shards_of(world.rank, world.size, settings.n_shards)
    reader = Reader(world, data, settings.network.cost, seed, settings.n_shards, stop)
    with world.together():
        if data.source == "memory" and not arrays:
            raise ValueError(
                "data.source: expected the arrays the run was started on, got none. Use train(arrays=...)."
            )
        from_memory = in_memory(*arrays, data, settings.network.cost) if arrays else None
    source = from_memory or reader.open(data.source)
    with world.together():
        network = make_network(settings, Shape.of(source))
        cut = shares(source.n_rows, seed, data.fractions, own, settings.n_shards)
        for share, name, wanted in zip(cut, ("source", "validation", "test"), (1.0, *data.fractions), strict=True):
            if wanted and not share.n_rows:
                raise ValueError(
                    f"data.{name}: expected at least one row in each part, got none of {source.n_rows}. "
                    "Use more rows, or other fractions."
                )
    tick = _Ticker(f"the {source.n_rows:,} rows of {source.name}", say, stop)
    source = reader.bring(source, data.fractions, dict(zip((TRAINING, VALIDATION, TEST), cut, strict=True)), tick)
    with world.together():
        tick = _Ticker(f"this rank's {len(cut[0]):,} training rows", say, stop)
        x_own, y_own = shard_statistics(source, cut[0], data.allow_nonfinite, tick)
        for share in () if data.allow_nonfinite else cut[1:]:
            check_share(source, share)
    stats_x = fold_shards(world.gather_shards(x_own, settings.n_shards), scaling.merge)
    stats_y = fold_shards(world.gather_shards(y_own, settings.n_shards), scaling.merge)
    with world.together():
        x_scaling = scaling.Scaling.of(data.scaling, stats_x)
        y_scaling = scaling.Scaling.of(target_scaling(settings, network, source.task), stats_y)
    counts = np.array([share.n_rows for share in cut])
    digest = hashlib.sha256(counts.tobytes() + stats_x.tobytes() + stats_y.tobytes())

    memory = data.memory << 20  # bytes left to keep rows decoded

    def part(of: Source, share: Share) -> Part:
        nonlocal memory
        made = Part(of, share, x_scaling, y_scaling, network.dtype, memory)
        memory -= made.n_bytes
        return made

    def other(given: float | str, share: Share) -> Part | None:
        """Return the validation or test part: cut from the source, or a file of its own. **Collective.**"""
        of = source
        if isinstance(given, str):
            file = reader.open(given, Shape.of(source))
            share, _, _ = shares(file.n_rows, seed, (0.0, 0.0), own, settings.n_shards)
            tick = _Ticker(f"the {file.n_rows:,} rows of {given}", say, stop)
            of = reader.bring(file, (0.0, 0.0), {TRAINING: share}, tick)
        with world.together():
            if isinstance(given, str) and not data.allow_nonfinite:
                check_share(of, share)
            return part(of, share) if given else None

    with world.together():
        training = part(source, cut[0])
    validation, test = other(data.validation, cut[1]), other(data.test, cut[2])
    batches = Batches.of(cut[0].n_rows, settings.n_shards, data.batch_size)
    return Problem(
        Shape.of(source), network, batches, x_scaling, y_scaling, training, validation, test, digest.hexdigest()
    )


class _Ticker:
    """Says how far reading has come, every two seconds, and ends it where this process is asked to stop."""

    def __init__(self, what: str, say: Callable[[str], None], stop: StopFlag) -> None:
        self.what, self.say, self.stop = what, say, stop
        self.done, self.said = 0, time.monotonic()

    def __call__(self, n: int) -> None:
        self.done += n
        if self.stop:
            raise AgreedStopError(f"stopped by {self.stop.name} while reading data, before any step. Start it again.")
        if time.monotonic() - self.said > 2:
            self.said = time.monotonic()
            self.say(f"reading: {self.done:,} of {self.what}")
