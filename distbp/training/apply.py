"""Using a trained network: evaluating a run on data, predicting rows; the same bits on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl
from numpy.typing import ArrayLike, NDArray

from distbp.coordinator import files
from distbp.coordinator.checkpoints import listed
from distbp.coordinator.progress import Progress
from distbp.data.part import Kept, Part, check_finite, check_share
from distbp.data.shards import TEST, TRAINING, VALIDATION, bounds, shares
from distbp.data.source import Source, open_source
from distbp.options import make, read_toml
from distbp.parallel.world import World, open_world, shards_of
from distbp.settings import Data, Settings
from distbp.training.evaluation import Evaluation, Evaluator, block_rows
from distbp.training.model import Model
from distbp.training.reader import Reader
from distbp.training.signals import StopFlag
from distbp.training.start import run_path

Array = NDArray[Any]
PIECE = 1 << 22  # numbers of input read at once


def model_file(run: str | Path, runs: Path) -> Path:
    """Return the file to use of a run: its model, else its newest checkpoint; or a file given by its path.

    Raises
    ------
    ValueError
        There is no such run or file, or the run has neither yet.
    """
    if Path(run).suffix == ".safetensors":
        return Path(run)
    folder = run_path(run, runs)
    if (folder / "model.safetensors").is_file():
        return folder / "model.safetensors"
    checkpoints = listed(folder / "checkpoints")
    if not checkpoints:
        raise ValueError(f"{run}: expected a run with a model or a checkpoint, got one with neither. Train it first.")
    return checkpoints[-1]


def open_model(run: str | Path, runs: Path, world: World) -> tuple[Model, Settings, Path]:
    """Return a run's model, the settings it was trained with, and its file, on every rank. **Collective.**"""
    path, about = Path(run), None
    tensors: dict[str, Array] = {}
    with world.together():
        if world.rank == 0:
            path = model_file(run, runs)
            tensors, about = files.read(path)
            if about["kind"] == "checkpoint" and Path(run).suffix != ".safetensors":
                step = about["state"]["step"]
                Progress(rank_0=True).warn(f"{run}: not finished; using its checkpoint of step {step:,}")
    kinds = {name: [array.dtype.str, array.shape] for name, array in tensors.items()}
    path, about, kinds = world.from_rank_0([str(path), about, kinds])
    for name, (dtype, shape) in kinds.items():
        tensors[name] = np.ascontiguousarray(tensors.get(name, np.empty(shape, dtype)))
        world.broadcast(tensors[name])
    return Model.of(tensors, about), make(about["settings"]), Path(path)


def evaluate(
    run: str | Path, data: str | None = None, *, runs: str | Path = "runs", target: str | int | None = None
) -> dict[str, Evaluation]:
    """Return cost and metrics of a run's model. **Collective over all ranks.**

    Parameters
    ----------
    run
        A run's name in `runs`, its folder, or a model or checkpoint file.
    data
        A file of the training data's kind, evaluated whole; by default the run's own validation and test part (its
        training part where it has neither).
    target
        As data.target, where the file's target is elsewhere.

    Returns
    -------
    Evaluation by part: validation, test, training, or data.

    Raises
    ------
    ValueError
        No such run or data, or data that does not fit; on every rank.
    """
    world = open_world()
    with world.guarded():
        model, settings, path = open_model(run, Path(runs), world)
        with world.together():
            settings = settings.with_shards(world.size)
        parts = _parts(model, settings, path, data, target, world)
        evaluator = Evaluator(world, model.network, model.shape, model.y_scaling, settings.n_shards)
        found = {}
        with threadpoolctl.threadpool_limits(settings.training.blas_threads, "blas"):
            for name, part in parts.items():
                evaluation = evaluator.evaluate(model.theta, part, StopFlag(), confusion=True)
                assert evaluation
                found[name] = evaluation
        return found


def _parts(
    model: Model, settings: Settings, path: Path, data: str | None, target: str | int | None, world: World
) -> dict[str, Part]:
    """Return this rank's rows of what is to be evaluated, with the model's scaling. **Collective.**"""
    keys = settings.data
    if data is None:
        with world.together():
            keys = _stored(path).data if world.rank == 0 else keys
        keys = Data.model_validate(world.from_rank_0(keys.model_dump(mode="json")))
    if target is not None:
        keys = keys.model_copy(update={"target": target})
    seed, n_shards = settings.training.seed, settings.n_shards
    reader = Reader(world, keys, settings.network.cost, seed, n_shards)

    def part(of: str, fractions: tuple[float, float], which: int) -> Part:
        source = reader.open(of, model.shape)
        share = shares(source.n_rows, seed, fractions, shards_of(world.rank, world.size, n_shards), n_shards)[which]
        source = reader.bring(source, fractions, {which: share})
        with world.together():
            if not keys.allow_nonfinite:
                check_share(source, share)
            return Part(source, share, model.x_scaling, model.y_scaling, model.network.dtype, keys.memory << 20)

    if data is not None:
        return {"data": part(data, (0.0, 0.0), TRAINING)}
    parts = {}
    for which, name, given in ((VALIDATION, "validation", keys.validation), (TEST, "test", keys.test)):
        if isinstance(given, str):
            parts[name] = part(given, (0.0, 0.0), TRAINING)
        elif given:
            parts[name] = part(keys.source, keys.fractions, which)
    return parts or {"training": part(keys.source, (0.0, 0.0), TRAINING)}


def _stored(model: Path) -> Settings:
    """Return the settings in the folder of the run that a model or checkpoint is of. **Local.**"""
    stored = (model.parent if model.name == "model.safetensors" else model.parent.parent) / "settings.toml"
    if not stored.is_file():
        raise ValueError(
            f"{model}: expected it in its run's folder, got no {stored}. Say what to evaluate with --data."
        )
    return make(read_toml(stored))


def outputs(model: Model, settings: Settings, path: str, world: World, target: str | int | None) -> Iterator[Array]:
    """Yield the outputs for a file's rows, in order, on rank 0; nothing on the others. **Collective.**"""
    with world.together():
        data: Data = settings.data
        if target is not None:
            data = data.model_copy(update={"target": target})
        source: Source = open_source(path, data, like=model.shape, target=False)
        rows = block_rows(model.network)
        first, last = (min(n * rows, source.n_rows) for n in bounds(-(-source.n_rows // rows), world.size, world.rank))
        if not source.again:
            source = Kept(source, np.arange(first, last))
        step = max(1, PIECE // source.n_features // rows) * rows

        def pieces(check: bool) -> Iterator[Array]:
            for start in range(first, last, step):
                numbers = np.arange(start, min(start + step, last))
                x, y = source.read(numbers)
                if check and not data.allow_nonfinite:
                    check_finite(source, numbers, x, y)
                yield x

        for _ in pieces(check=True):  # every bad value is found, on whichever rank, before the first answer
            pass
    with threadpoolctl.threadpool_limits(settings.training.blas_threads, "blas"):
        own = (model.outputs(x) for x in pieces(check=False))
        for piece in world.in_rank_order(own, model.network.widths[-1]):
            yield piece.astype(model.dtype, copy=False)


def predict(
    run: str | Path, rows: str | Path | ArrayLike, *, runs: str | Path = "runs", kind: str = "auto"
) -> Array | None:
    """Return answers for the rows of a file, or of an array. **Collective over all ranks.**

    Parameters
    ----------
    run
        A run's name in `runs`, its folder, or a model or checkpoint file.
    rows
        A file of the training data's kind (its target, if there, is ignored), or an array (rows, n_0).
    kind
        classes (names; for labels 0/1), probabilities, or values; auto: classes or values, as the run was trained.

    Returns
    -------
    One answer a row on rank 0, None on the others.

    Raises
    ------
    ValueError
        No such run or file, or rows that do not fit; on every rank.
    """
    world = open_world()
    with world.guarded():
        model, settings, _ = open_model(run, Path(runs), world)
        with world.together():
            kind = model.kind(kind)
        if isinstance(rows, (str, Path)):
            found = list(outputs(model, settings, str(rows), world, None))
        else:
            with world.together(), threadpoolctl.threadpool_limits(settings.training.blas_threads, "blas"):
                found = [model.outputs(np.asarray(rows))]
        if world.rank:
            return None
        a = np.concatenate(found) if found else np.empty((0, model.network.widths[-1]), model.dtype)
        return model.answers(a) if kind == "classes" else a
