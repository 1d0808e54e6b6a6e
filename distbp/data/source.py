"""Where rows come from: one interface for every format, and the door that picks the format.

Training asks a source for rows by number and never knows how they lie; a source never knows about shards, ranks or
scaling. Whether rows can be had again at low cost (`again`) is the one difference that callers see.

The formats are imported inside `open_source`, since each of them needs `Shape` from here.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from distbp.settings import Data

Task = Literal["classification", "regression", "labels"]
IDX_TYPES = {b"\x08": ">u1", b"\x09": ">i1", b"\x0b": ">i2", b"\x0c": ">i4", b"\x0d": ">f4", b"\x0e": ">f8"}
KNOWN = "digits, synthetic, or a .csv, .tsv, .txt, .npy, .npz or IDX file"


class Source(Protocol):
    """Rows of features and targets.

    Attributes
    ----------
    name
        As the user wrote it.
    n_rows, n_features
        The shape of x.
    feature_names
        Empty if the format has none.
    task, n_outputs, classes
        What the target is; how many classes, labels or target values; the class names in order of their index.
    again
        Whether rows can be read again and again, in any order, at low cost.
    """

    name: str
    n_rows: int
    n_features: int
    feature_names: tuple[str, ...]
    task: Task
    n_outputs: int
    classes: tuple[str, ...]
    again: bool

    def read(self, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return features and targets of some rows. **Local.**

        Parameters
        ----------
        rows
            int64 (m,), from 0 to n_rows - 1; strictly ascending if `again` is False, else in any order.

        Returns
        -------
        x
            (m, n_features), a real dtype, C-contiguous.
        y
            int64 (m,), the index of the class, for classification; float64 (m, n_outputs) for regression and labels;
            float64 (m, 0) where no target was asked for.

        Raises
        ------
        ValueError
            A value that cannot be used, with its place.
        """

    def pieces(self, wanted: Iterable[NDArray[np.int64]]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Yield what `read` returns, for one array of rows after the other. **Local.**

        The rows ascend from each array to the next, so that one pass over a file is enough for all of them. An array
        of no rows costs nothing.
        """
        for rows in wanted:
            yield self.read(rows)

    def place(self, row: int, column: int | None) -> str:
        """Return how to name one feature of a row, or its target (None), to the user."""


@dataclass(frozen=True)
class Shape:
    """What a source looked like, so that a later one can be read in the same way."""

    n_features: int
    feature_names: tuple[str, ...]
    task: Task
    n_outputs: int
    classes: tuple[str, ...]

    @classmethod
    def of(cls, source: Source) -> Shape:
        """Return the shape of a source."""
        return cls(source.n_features, source.feature_names, source.task, source.n_outputs, source.classes)


def open_source(
    path: str, data: Data, *, cost: str = "auto", seed: int = 0, like: Shape | None = None, target: bool = True
) -> Source:
    """Open a source of rows; the file's form is checked, its features are not read yet. **Local.**

    Parameters
    ----------
    path
        "digits", "synthetic", or a file, known by its ending or else by its first bytes.
    data
        The [data] settings.
    cost
        network.cost, which helps to decide the task.
    seed
        training.seed; synthetic rows depend on it.
    like
        What an earlier source or a model looked like; this one must agree with it.
    target
        False: read features only, and pass over a target if the file has one. Needs `like`.

    Raises
    ------
    ValueError
        No such file, an unknown or damaged one, no rows, or one that does not fit the settings or `like`.
    """
    from distbp.data import arrays, synthetic
    from distbp.data.csv_file import CsvFile

    if like is None and not target:
        raise ValueError(f"{path}: expected the shape of a model to read features alone, got none. Pass like.")
    if path == "synthetic":
        return synthetic.Synthetic(data, cost, seed, like, target)
    if path == "digits":
        return arrays.open_digits(data, cost, like, target)
    match form(path):
        case "csv":
            return CsvFile(path, data, cost, like, target)
        case "npy":
            return arrays.open_npy(path, data, cost, like, target)
        case "npz":
            return arrays.open_npz(path, data, cost, like, target)
        case _:
            return arrays.open_idx(path, data, cost, like, target)


def form(path: str) -> Literal["csv", "npy", "npz", "idx"]:
    """Return the format of a file, by its ending or else by its first bytes.

    Raises
    ------
    ValueError
        It is missing, not a file, empty, unreadable or of no known format.
    """
    head = first_bytes(path)
    ending = path.lower().removesuffix(".gz")
    if ending.endswith((".csv", ".tsv", ".txt")):
        return "csv"
    if path.lower().endswith(".npy") or head.startswith(b"\x93NUMPY"):
        return "npy"
    if path.lower().endswith(".npz") or head.startswith(b"PK\x03\x04"):
        return "npz"
    if re.search(r"(ubyte|\.idx\d?)$", ending) or (head[:2] == b"\0\0" and head[2:3] in IDX_TYPES):
        return "idx"
    raise ValueError(f"{path}: expected {KNOWN}, got an unknown format. Convert it to one of these.")


def first_bytes(path: str) -> bytes:
    """Return up to 4 bytes from the start of a file, after checking that it can be read.

    Raises
    ------
    ValueError
        It is missing, not a file, empty or unreadable.
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise ValueError(f"{path}: expected a file, got a folder. Give the path of one file in it.")
        if not stat.S_ISREG(mode):
            raise ValueError(f"{path}: expected a regular file, got a pipe or a device. Write it to a file first.")
        with open(path, "rb") as file:
            head = file.read(4)
    except FileNotFoundError:
        raise ValueError(f"{path}: expected {KNOWN}, got no file of that name. Check the path.") from None
    except OSError as error:
        raise ValueError(
            f"{path}: expected a readable file, got {error.strerror}. Check its path and rights."
        ) from None
    if not head:
        raise ValueError(f"{path}: expected rows, got an empty file. Write it again.")
    return head


def is_gzip(path: str) -> bool:
    """Return whether a file is, or claims to be, compressed with gzip."""
    return path.lower().endswith(".gz") or first_bytes(path)[:2] == b"\x1f\x8b"


def damaged(name: str, what: str) -> ValueError:
    """Return the error for a file that breaks off or fails its own checks."""
    return ValueError(f"{name}: expected a whole {what}, got a damaged or cut-off one. Copy or make it again.")


def check_features(name: str, got: int, like: Shape | None) -> None:
    """Check the number of features.

    Raises
    ------
    ValueError
        There is none, or there are not as many as in `like`.
    """
    if got == 0:
        raise ValueError(
            f"{name}: expected at least one feature beside the target, got none. "
            "Add a feature column, or set data.delimiter."
        )
    if like is not None and got != like.n_features:
        raise ValueError(
            f"{name}: expected {like.n_features} features, as in training, got {got}. "
            "Give a file with the features of training."
        )
