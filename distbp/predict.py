"""python -m distbp.predict: a trained network's answers for the rows of a file, alone or under mpirun."""

from __future__ import annotations

import csv
import io
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from distbp import command

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from distbp.training.model import Model

DESCRIPTION = "Predict the rows of a file with a run's model. Any number of ranks gives the same digits."


def predict_command(arguments: Sequence[str]) -> int:
    """Read the command line, predict, write."""
    from distbp.options import from_text

    parser = command.Parser("python -m distbp.predict", DESCRIPTION)
    parser.add_argument("run", metavar="RUN", help="a run's name or folder, or a model or checkpoint file")
    parser.add_argument("input", metavar="INPUT", help="rows: .csv, .npy, .npz or IDX; a target in it is ignored")
    parser.add_argument("-o", "--output", metavar="OUT", help=".csv or .npy file (default: CSV to standard output)")
    kinds = ("auto", "classes", "probabilities", "values")
    help_kinds = "classes (labels: 0/1), probabilities, or values; auto: as the run was trained"
    parser.add_argument("--as", dest="kind", choices=kinds, default="auto", help=help_kinds)
    parser.add_argument("--target", help="as data.target, where the file's target is elsewhere")
    parser.add_argument("--runs", default="runs", metavar="DIR", help="where runs are kept (default: runs)")
    with command.same_on_all_ranks():
        given, _ = parser.read(arguments)
        if given.output and Path(given.output).suffix not in (".csv", ".npy"):
            raise ValueError(f"--output: expected a name that ends in .csv or .npy, got {given.output!r}. Rename it.")
    from distbp.parallel.world import open_world
    from distbp.training.apply import open_model, outputs

    world = open_world()
    with world.guarded():
        model, settings, _ = open_model(given.run, Path(given.runs), world)
        with world.together():
            kind = model.kind(given.kind)
            if given.output and world.rank == 0 and not os.access(Path(given.output).resolve().parent, os.W_OK):
                raise ValueError(f"--output: expected a folder to write to, got {given.output}. Check its path.")
        target = from_text(given.target) if given.target is not None else None
        found = outputs(model, settings, given.input, world, target)
        if world.rank:
            for _ in found:
                raise RuntimeError("predict: expected pieces on rank 0 only, got one here.")
        else:
            _write(given.output, kind, model, found)
    return command.DONE


def _write(output: str | None, kind: str, model: Model, found: Iterator[NDArray[Any]]) -> None:
    """Write answers as they come, none before the input is known to be good; a file is complete or absent."""
    from distbp.coordinator.files import unfinished

    answers = (model.answers(a) if kind == "classes" else a for a in found)
    first = next(answers, model.answers(np.empty((0, model.shape.n_outputs), model.dtype)))
    if not output:
        _write_csv(sys.stdout, kind, model, itertools.chain([first], answers))
        return
    with unfinished(Path(output)) as beside:
        if output.endswith(".npy"):
            buffer = io.BytesIO()  # written by Python, whose errors say what is wrong with the disk
            np.save(buffer, np.concatenate([first, *answers]), allow_pickle=False)
            beside.write_bytes(buffer.getbuffer())
        else:
            with open(beside, "w", newline="", encoding="utf-8") as text:
                _write_csv(text, kind, model, itertools.chain([first], answers))


def _write_csv(file: TextIO, kind: str, model: Model, answers: Iterable[NDArray[Any]]) -> None:
    """Write a header and one line a row."""
    task, n = model.shape.task, model.shape.n_outputs
    header = ["class"] if task == "classification" and kind == "classes" else list(model.shape.classes)
    header = header or (["value"] if n == 1 else [f"value_{j}" for j in range(n)])
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    for piece in answers:
        writer.writerows(piece.reshape(len(piece), -1).astype(str))


if __name__ == "__main__":
    sys.exit(command.run(predict_command))
