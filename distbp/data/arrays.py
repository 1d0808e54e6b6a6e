"""Rows from arrays: .npy, .npz and IDX files, and the bundled digits.

Each format only says which array is x and which is y; from there all go the same way. A row of more than one axis (an
image) is flattened. In a .npy of two axes the target may be one of the columns.
"""

from __future__ import annotations

import gzip
import itertools
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distbp.data import stored, targets
from distbp.data.source import Shape, Source, Task, check_features
from distbp.settings import Data

DIGITS = Path(__file__).with_name("digits.csv.gz")


class ArraySource:
    """Rows of an array x, with targets from an array y or from one column of x.

    Parameters
    ----------
    name
        As the user wrote it.
    x, y
        The arrays; y is None where no target is read.
    data, cost, like
        As `open_source` takes them.
    column
        The column of x that is the target and so no feature, or None.
    by_type
        The task, if neither settings nor cost decide it. None: classification for whole numbers and text of one axis.

    Raises
    ------
    ValueError
        The arrays do not fit together, the settings or `like`, or hold what is no number.
    """

    def __init__(
        self,
        name: str,
        x: stored.Stored,
        y: stored.Stored | None,
        data: Data,
        cost: str,
        like: Shape | None,
        column: int | None = None,
        by_type: Task | None = None,
    ) -> None:
        self.name, self.feature_names = name, like.feature_names if like else ()
        self._x, self._y, self._column = x, y, column
        if x.dtype.kind not in "biuf":
            raise ValueError(f"{x.label}: expected real numbers, got dtype {x.dtype}. Save x as real numbers.")
        if len(x.shape) < 2:
            raise ValueError(
                f"{x.label}: expected at least two axes, rows and features, got shape {x.shape}. Reshape x to them."
            )
        self.n_rows = x.shape[0]
        if self.n_rows == 0:
            raise ValueError(f"{x.label}: expected at least one row, got shape {x.shape}. Add rows.")
        self.n_features = math.prod(x.shape[1:]) - (column is not None)
        check_features(x.label, self.n_features, like)
        self.again = x.again and (y is None or y.again)
        if y is not None:
            self._open_target(y, data, cost, like, by_type)
        elif like is not None:
            self.task, self.n_outputs, self.classes = like.task, like.n_outputs, like.classes
        self._classes = targets.Classes(self.classes)

    def _open_target(self, y: stored.Stored, data: Data, cost: str, like: Shape | None, by_type: Task | None) -> None:
        if y.dtype.kind not in "biufU":
            raise ValueError(
                f"{y.label}: expected numbers or text as targets, got dtype {y.dtype}. Save them as numbers or text."
            )
        if len(y.shape) not in (1, 2):
            raise ValueError(
                f"{y.label}: expected targets of one or two axes, got shape {y.shape}. Reshape them to (rows, outputs)."
            )
        if y.shape[0] != self.n_rows:
            raise ValueError(
                f"{y.label}: expected as many targets as {self._x.label} has rows ({self.n_rows}), got {y.shape[0]}. "
                "Give the targets of these rows."
            )
        columns = math.prod(y.shape[1:])
        if columns == 0:
            raise ValueError(f"{y.label}: expected at least one target a row, got shape {y.shape}. Add a column.")
        text = y.dtype.kind == "U"
        one_class = (text and columns == 1) or (y.dtype.kind in "biu" and len(y.shape) == 1)
        by_type = by_type or ("classification" if one_class else "regression")
        self.task = targets.decide(data.task, cost, like, by_type)
        targets.check_columns(y.label, self.task, columns, like)
        self.n_outputs, self.classes = columns, ()
        if self.task == "classification":
            distinct = targets.Distinct(lambda row: self.place(row, None))
            for start, block in y.blocks():
                values, first = np.unique(block, return_index=True)
                for value, at in zip(values.tolist(), first.tolist(), strict=True):
                    distinct.add(value, start + at)
            self.classes = distinct.classes(y.label, like, data.task == "classification" or by_type == "classification")
            self.n_outputs = len(self.classes)
        elif text:
            first_value = y.take(np.zeros(1, np.int64)).reshape(-1)[0]
            raise targets.not_a_number(self.place(0, None), str(first_value))

    def read(self, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return features and targets of some rows; see `Source.read`. **Local.**"""
        return self._decoded(rows, self._x.take(rows), self._y.take(rows) if self._y else None)

    def pieces(self, wanted: Iterable[NDArray[np.int64]]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Yield what `read` returns, for one array of rows after the other; see `Source.pieces`. **Local.**"""
        numbers, of_x, of_y = itertools.tee(wanted, 3)
        ys = self._y.takes(of_y) if self._y else (None for _ in of_y)
        for rows, x, y in zip(numbers, self._x.takes(of_x), ys, strict=True):  # strict: each is passed to its end
            yield self._decoded(rows, x, y)

    def _decoded(
        self, rows: NDArray[np.int64], x: NDArray[Any], y: NDArray[Any] | None
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return features and targets from what is stored of some rows."""
        x = x.reshape(len(rows), math.prod(self._x.shape[1:]))
        if self._column is not None:
            x = np.delete(x, self._column, axis=1)
        kind = np.dtype(np.uint8) if x.dtype.kind == "b" else x.dtype.newbyteorder("=")
        x = np.ascontiguousarray(x, np.float64 if kind.itemsize > 8 else kind)
        if y is None:
            return x, np.empty((len(rows), 0))
        if self.task == "classification":
            values, first, inverse = np.unique(y.reshape(-1), return_index=True, return_inverse=True)
            indices = [
                self._classes.index(value, lambda at=at: self.place(int(rows[at]), None))  # type: ignore[misc]
                for value, at in zip(values.tolist(), first.tolist(), strict=True)
            ]
            return x, np.array(indices, np.int64)[inverse]
        y = np.ascontiguousarray(y.reshape(len(rows), self.n_outputs), np.float64)
        if self.task == "labels":
            targets.check_labels(y, lambda at: self.place(int(rows[at]), None))
        return x, y

    def place(self, row: int, column: int | None) -> str:
        """Return how to name one feature of a row, or its target (None), to the user."""
        if column is None and self._column is None:
            return f"{self._y.label if self._y else self.name}: row {row}"
        if column is None:
            column = self._column
        elif self._column is not None and column >= self._column:
            column += 1
        return f"{self._x.label}: row {row}, column {column}"


def in_memory(x: NDArray[Any], y: NDArray[Any], data: Data, cost: str) -> Source:
    """Return arrays of the user's program as a source: x (rows, features), y (rows,) or (rows, outputs)."""
    return ArraySource("memory", stored.Mapped("x", np.asarray(x)), stored.Mapped("y", np.asarray(y)), data, cost, None)


def open_digits(data: Data, cost: str, like: Shape | None, target: bool) -> Source:
    """Open the bundled digits: 1,797 rows of 64 counts and the digit they show; data.target has no effect."""
    with gzip.open(DIGITS, "rt") as file:
        table = np.loadtxt(file, np.uint8, delimiter=",")
    y = stored.Mapped("digits", table[:, -1]) if target else None
    return ArraySource("digits", stored.Mapped("digits", table), y, data, cost, like, 64, "classification")


def open_npy(path: str, data: Data, cost: str, like: Shape | None, target: bool) -> Source:
    """Open a .npy of rows and features; the targets are a column of it or lie in a second .npy.

    Raises
    ------
    ValueError
        See `ArraySource`; or data.target is neither.
    """
    x = stored.npy(path)
    if target and isinstance(data.target, str) and data.target.lower().endswith(".npy"):
        if path != data.source and path in (data.validation, data.test):
            raise ValueError(
                f"{path}: expected a file that holds its own targets, for {data.target} holds those of {data.source}, "
                "got a .npy of features. Put x and y of each file into one .npz."
            )
        return ArraySource(path, x, stored.npy(data.target), data, cost, like)
    if not target and like is not None and math.prod(x.shape[1:]) == like.n_features:
        return ArraySource(path, x, None, data, cost, like)
    if len(x.shape) != 2:
        if not target:
            return ArraySource(path, x, None, data, cost, like)  # says what is wrong with the shape
        raise ValueError(
            f"{path}: expected two axes, one column of which is the target, got shape {x.shape}. "
            "Give the targets in a second .npy with data.target = PATH."
        )
    column = _column(path, data.target, x.shape[1])
    start = x.start + column * x.array.strides[1]
    y = stored.Mapped(path, x.array[:, column], x.memory, start) if target else None
    return ArraySource(path, x, y, data, cost, like, column)


def _column(path: str, target: int | str, width: int) -> int:
    """Return the number of the target's column, from 0."""
    try:
        column = int(target) if target != "" else -1
    except ValueError:
        raise ValueError(
            f"data.target: expected a column number or the path of a .npy, for {path} has no names, got {target!r}. "
            "Give one of these."
        ) from None
    if not -width <= column < width:
        raise ValueError(
            f"data.target: expected a column number from {-width} to {width - 1} for {path}, got {column}. "
            "Give a column that it has."
        )
    return column % width


def open_npz(path: str, data: Data, cost: str, like: Shape | None, target: bool) -> Source:
    """Open a .npz: the features are its array x, the targets y or the one that data.target names.

    Raises
    ------
    ValueError
        See `ArraySource`; or there is no such array.
    """
    members = stored.npz_members(path)

    def member(wanted: str, action: str) -> stored.Stored:
        alike = [name for name in members if name.lower() == wanted.lower()]
        name = wanted if wanted in members else alike[0] if len(alike) == 1 else None
        if name is None:
            got = ", ".join(members) or "none"
            raise ValueError(f"{path}: expected an array named {wanted}, got {got}. {action}")
        return stored.npz(path, name, members[name])

    x = member("x", "Save it with numpy.savez(path, x=..., y=...).")
    y = member(str(data.target) or "y", "Name the targets' array in data.target.") if target else None
    return ArraySource(path, x, y, data, cost, like)


def open_idx(path: str, data: Data, cost: str, like: Shape | None, target: bool) -> Source:
    """Open an IDX file (MNIST's format) and its label file.

    Raises
    ------
    ValueError
        See `ArraySource`; or the label file is not found.
    """
    x = stored.idx(path)
    if not target:
        return ArraySource(path, x, None, data, cost, like)
    others = path != data.source and path in (data.validation, data.test)  # data.target belongs to data.source
    labels = str(data.target) if data.target != "" and not others else _beside(path)
    return ArraySource(path, x, stored.idx(labels), data, cost, like, by_type="classification")


def _beside(path: str) -> str:
    """Return the label file beside an image file: MNIST's own names, compressed or not."""
    folder, name = os.path.split(path)
    other = name.replace("images-idx3", "labels-idx1")
    if other == name:
        other = name.replace("images", "labels").replace("idx3", "idx1")
    bare = other.removesuffix(".gz")
    for candidate in (other, bare, f"{bare}.gz"):
        if candidate != name and os.path.isfile(os.path.join(folder, candidate)):
            return os.path.join(folder, candidate)
    wanted = "a label file beside it" if other == name else f"the label file {os.path.join(folder, other)}"
    raise ValueError(f"{path}: expected {wanted}, got none. Give its path in data.target.")
