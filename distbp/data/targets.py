"""What a target is: one class a row, numbers or 0/1 labels, decided and checked in the same way for every format.

A class is known by its name, so that a class means the same in the files of training, validation and prediction,
whatever their formats: numbers are written as whole numbers where they are whole ("3" for 3, 3.0 and True).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from distbp.data.source import Shape, Task

Value = str | int | float
MAX_CLASSES = 10_000
MISSING = frozenset({"", "na", "n/a", "nan", "?", "null", "none"})


def number(text: str) -> int | float | None:
    """Return the number that a text is, or None."""
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return None


def is_missing(value: Value) -> bool:
    """Return whether a value stands for a missing one."""
    return value.strip().lower() in MISSING if isinstance(value, str) else math.isnan(value)


def name_of(value: Value) -> str:
    """Return the name of a class."""
    if isinstance(value, str):
        return value
    return str(int(value)) if isinstance(value, int) or value.is_integer() else repr(value)


class Classes:
    """The way from a value to the index of its class."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._indices = {name: index for index, name in enumerate(names)}

    def index(self, value: Value, place: Callable[[], str]) -> int:
        """Return the index of the class of a value; text is taken as it is first, then as a number.

        Raises
        ------
        ValueError
            No class has that name; the message begins with `place()`.
        """
        found = self._indices.get(name_of(value))
        if found is None and isinstance(value, str) and (as_number := number(value)) is not None:
            found = self._indices.get(name_of(as_number))
        if found is None:
            raise ValueError(
                f"{place()}: expected one of the {len(self._indices)} classes of training, got {name_of(value)!r}. "
                "Correct it, or train with rows of that class."
            )
        return found


class Distinct:
    """The distinct values of one target over one pass, in bounded memory.

    Parameters
    ----------
    place
        From a number of the format's own (a row, a line) to how the user is told of it.
    """

    def __init__(self, place: Callable[[int], str]) -> None:
        self._place = place
        self._first: dict[Value, int] = {}
        self._too_many = False
        self.text = False

    def add(self, value: Value, at: int) -> None:
        """Take one value.

        Raises
        ------
        ValueError
            It is missing.
        """
        if value in self._first:
            return
        if is_missing(value):
            raise missing(self._place(at), value)
        self.text = self.text or (isinstance(value, str) and number(value) is None)
        if len(self._first) < MAX_CLASSES:
            self._first[value] = at
        else:
            self._too_many = True

    def classes(self, name: str, like: Shape | None, chosen: bool) -> tuple[str, ...]:
        """Return the class names, in order: numbers by size, else all by their text.

        Parameters
        ----------
        name
            Of the source.
        like
            Where it is given, its classes are the only ones.
        chosen
            Whether the user set data.task; if not, numbers that are not whole are refused.

        Raises
        ------
        ValueError
            A class that `like` lacks, too many classes, or a number that looks like no class.
        """
        if like is not None:
            known = Classes(like.classes)
            for value, at in self._first.items():
                known.index(value, lambda at=at: self._place(at))  # type: ignore[misc]
            return like.classes
        if self._too_many:
            raise ValueError(
                f'{name}: expected at most {MAX_CLASSES:,} classes, got more. Set data.task = "regression" if the '
                "target is a number."
            )
        if self.text:
            return tuple(sorted(str(value) for value in self._first))
        numbers: dict[int | float, int] = {}
        for value, at in self._first.items():
            as_number = number(value) if isinstance(value, str) else value
            assert as_number is not None
            numbers.setdefault(as_number, at)
        for value, at in numbers.items():
            if not chosen and isinstance(value, float) and not value.is_integer():
                raise ValueError(
                    f"{self._place(at)}: expected a whole number as class, since network.cost is cross_entropy, "
                    f'got {value!r}. Set data.task = "classification" if it is one, else leave network.cost auto.'
                )
        return tuple(name_of(value) for value in sorted(numbers))


def decide(setting: Task | Literal["auto"], cost: str, like: Shape | None, by_type: Task) -> Task:
    """Return the task: of `like`, else as set, else as the cost says, else as the target's type does."""
    if like is not None:
        return like.task
    if setting != "auto":
        return setting
    if cost == "binary_cross_entropy":
        return "labels"
    return "classification" if cost == "cross_entropy" else by_type


def check_columns(name: str, task: Task, columns: int, like: Shape | None) -> None:
    """Check the number of target columns.

    Raises
    ------
    ValueError
        There are several for one class a row, or not as many as in `like`.
    """
    if task == "classification" and columns != 1:
        raise ValueError(
            f"{name}: expected one target column for classification, got {columns}. "
            'Name one in data.target, or set data.task = "labels" or "regression".'
        )
    if task != "classification" and like is not None and columns != like.n_outputs:
        raise ValueError(
            f"{name}: expected {like.n_outputs} target columns, as in training, got {columns}. Set data.target."
        )


def check_labels(y: NDArray[np.float64], place: Callable[[int], str]) -> None:
    """Check that labels (m, n_outputs) are 0 or 1; `place` names the i-th of these rows.

    Raises
    ------
    ValueError
        One is not.
    """
    wrong = np.argwhere((y != 0) & (y != 1))
    if len(wrong):
        i, j = wrong[0].tolist()
        raise ValueError(
            f"{place(i)}: expected labels of 0 or 1, got {name_of(float(y[i, j]))}. "
            'Correct it, or set data.task = "regression".'
        )


def missing(place: str, value: Value) -> ValueError:
    """Return the error for a missing target."""
    return ValueError(f"{place}: expected a target, got a missing value ({value!r}). Fill it in or drop the row.")


def not_a_number(place: str, value: str) -> ValueError:
    """Return the error for text where the target is to be a number."""
    return ValueError(
        f"{place}: expected a number as target, got {value!r}. "
        'Set data.task = "classification" if the target is a class, else correct it.'
    )
