"""Rows from CSV text, plain or compressed: read twice as a stream, never held whole.

The first pass, at opening, counts rows, checks that all have the same number of fields and collects the classes; the
second, `read`, converts only the wanted rows. Lines are numbered as an editor numbers them: a quoted field may hold
line ends and blank lines are passed over, so a record is known by the line where it starts. A line cut off inside its
last field cannot be told from a whole one; every other damage is reported.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import re
import zlib
from collections.abc import Generator, Iterable, Iterator
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from distbp.data import targets
from distbp.data.source import Shape, check_features, damaged, first_bytes, is_gzip
from distbp.settings import Data

UNDECODABLE = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of bytes that are not UTF-8


class CsvFile:
    """Rows of a CSV file; see `Source`.

    Raises
    ------
    ValueError
        The file is no table, damaged, or does not fit the settings or `like`.
    """

    again = False

    def __init__(self, path: str, data: Data, cost: str, like: Shape | None, target: bool) -> None:
        self.name = path
        self._zipped = is_gzip(path)
        tabs = path.lower().removesuffix(".gz").endswith(".tsv") and data.delimiter == ","
        self._delimiter = "\t" if tabs else data.delimiter
        if self._delimiter in '"\r\n':
            raise ValueError(
                f"data.delimiter: expected a character that ends no line and quotes nothing, got {data.delimiter!r}. "
                'Use "," or ";".'
            )
        self._nonfinite = data.allow_nonfinite
        self._header, self._width = False, 0
        self._names: tuple[str, ...] = ()
        self._read_header(data)
        self._targets = self._target_columns(data, like, target)
        self._columns = self._feature_columns(like)
        names = tuple(self._names[column] for column in self._columns) if self._header else ()
        self.feature_names = like.feature_names if like else names
        self.n_features = len(self._columns)
        check_features(path, self.n_features, like)
        if not target:
            self._targets = []
        self._survey(data, cost, like)
        self._classes = targets.Classes(self.classes)

    def _text(self) -> TextIO:
        if self._zipped:
            return gzip.open(self.name, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="")
        return open(self.name, encoding="utf-8-sig", errors="surrogateescape", newline="")

    def _lines(self) -> Iterator[str]:
        """Yield decoded lines."""
        first_bytes(self.name)
        try:
            with self._text() as file:
                for count, line in enumerate(file, 1):
                    if not line.isascii() and UNDECODABLE.search(line):
                        raise ValueError(
                            f"{self.name}: line {count}: expected UTF-8 text, got other bytes. Save the file as UTF-8."
                        )
                    yield line
        except (EOFError, zlib.error, gzip.BadGzipFile):
            raise damaged(self.name, ".gz file") from None

    def _records(self, header: bool = True) -> Generator[tuple[int, list[str]], None, None]:
        """Yield the line where a record starts, and its fields; the header only if asked for."""
        reader = csv.reader(self._lines(), delimiter=self._delimiter, strict=True)
        width, line, past_header = self._width, 1, header or not self._header
        try:
            for fields in reader:
                if len(fields) > 1 or (fields and fields[0].strip()):
                    width = width or len(fields)
                    if len(fields) != width:
                        raise ValueError(
                            f"{self.name}: line {line}: expected {width} fields, got {len(fields)}. "
                            "Correct the line, or set data.delimiter."
                        )
                    if past_header:
                        yield line, fields
                    past_header = True
                line = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(
                f"{self.name}: line {line}: expected a line of CSV, got one that cannot be read ({error}). "
                "Correct its quotes."
            ) from None

    def _read_header(self, data: Data) -> None:
        """Set whether there is a header, the number of fields, and the names."""
        records = self._records()
        line, fields = next(records, (0, []))
        records.close()
        if not fields:
            raise ValueError(f"{self.name}: expected rows, got only blank lines. Write it again.")
        self._width = len(fields)
        self._header = data.header if data.header != "auto" else all(targets.number(f) is None for f in fields)
        if not self._header:
            return
        self._names = tuple(field.strip() for field in fields)
        twice = next((name for name in self._names if self._names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(
                f"{self.name}: line {line}: expected a different name for every column, got {twice!r} twice. "
                "Rename one, or set data.header = false."
            )

    def _target_columns(self, data: Data, like: Shape | None, target: bool) -> list[int]:
        """Return the columns that are the target, as far as they are there."""
        by_name = like is not None and bool(like.feature_names) and self._header
        if not target and like is not None and (by_name or self._width == like.n_features):
            return []
        if data.target == "":
            if not by_name or like is None:
                return [self._width - 1]
            others = [column for column, name in enumerate(self._names) if name not in like.feature_names]
            if not others:
                raise ValueError(
                    f"{self.name}: expected a target beside the features of training, got none. "
                    "Add its column, or name it in data.target."
                )
            return others[-1:]
        wanted = [str(data.target)]
        if wanted[0] not in self._names:
            wanted = [part.strip() for part in wanted[0].split(",")]
        columns = [self._column(part) for part in wanted]
        if len(set(columns)) < len(columns):
            raise ValueError(f"data.target: expected different columns, got {data.target!r}. Name each once.")
        return columns

    def _column(self, wanted: str) -> int:
        """Return the number of the column that a name, or a number as text, means."""
        if wanted in self._names:
            return self._names.index(wanted)
        try:
            column = int(wanted)
        except ValueError:
            raise self._no_column(wanted) from None
        if not -self._width <= column < self._width:
            raise ValueError(
                f"data.target: expected a column number from {-self._width} to {self._width - 1} for {self.name}, "
                f"got {column}. Give a column that it has."
            )
        return column % self._width

    def _no_column(self, wanted: str) -> ValueError:
        if not self._header:
            return ValueError(
                f"data.target: expected a column number, for {self.name} has no header, got {wanted!r}. "
                "Give a number from 0, or set data.header = true."
            )
        near = difflib.get_close_matches(wanted, self._names, 1)
        action = f"Did you mean {near[0]!r}?" if near else f"Its columns are: {', '.join(self._names)}."
        return ValueError(f"data.target: expected a column of {self.name}, got {wanted!r}. {action}")

    def _feature_columns(self, like: Shape | None) -> list[int]:
        """Return the columns of the features, in their order."""
        if like is None or not like.feature_names or not self._header:
            return [column for column in range(self._width) if column not in self._targets]
        for name in like.feature_names:
            if name not in self._names:
                raise ValueError(
                    f"{self.name}: expected a column {name!r}, as in training, got {', '.join(self._names)}. "
                    "Add the column, or correct its name."
                )
            if self._names.index(name) in self._targets:
                raise ValueError(
                    f"data.target: expected a column that is no feature of training, got {name!r}. "
                    "Name the target of training."
                )
        return [self._names.index(name) for name in like.feature_names]

    def _survey(self, data: Data, cost: str, like: Shape | None) -> None:
        """Make the first pass; set the number of rows, the task and the classes."""
        one = self._targets[0] if len(self._targets) == 1 else None
        distinct = targets.Distinct(lambda line: self._at(line, None))
        maybe_classes = one is not None and targets.decide(data.task, cost, like, "classification") == "classification"
        self.n_rows = 0
        for line, fields in self._records(header=False):
            self.n_rows += 1
            if maybe_classes and one is not None:
                distinct.add(fields[one].strip(), line)
        if self.n_rows == 0:
            raise ValueError(f"{self.name}: expected at least one row, got none below the header. Add rows.")
        if like is not None and not self._targets:
            self.task, self.n_outputs, self.classes = like.task, like.n_outputs, like.classes
            return
        self.task = targets.decide(data.task, cost, like, "classification" if distinct.text else "regression")
        targets.check_columns(self.name, self.task, len(self._targets), like)
        self.n_outputs, self.classes = len(self._targets), ()
        if self.task == "classification":
            chosen = data.task == "classification" or cost != "cross_entropy"
            self.classes = distinct.classes(self.name, like, chosen)
            self.n_outputs = len(self.classes)

    def read(self, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return features (float64) and targets of some rows, which must ascend; see `Source.read`. **Local.**"""
        return next(self.pieces([rows]))

    def pieces(self, wanted: Iterable[NDArray[np.int64]]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Yield what `read` returns, for one array of rows after the other; see `Source.pieces`. **Local.**"""
        records = enumerate(self._records(header=False))
        for rows in wanted:
            yield self._take(records, rows)

    def _take(
        self, records: Iterator[tuple[int, tuple[int, list[str]]]], rows: NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return features and targets of some rows, none of which has been passed yet."""
        x = np.empty((len(rows), self.n_features))
        y: NDArray[Any] = np.empty(len(rows), np.int64)
        if self.task != "classification" or not self._targets:
            y = np.empty((len(rows), len(self._targets)))
        columns, at, wanted = self._columns, 0, rows.tolist()
        for row, (line, fields) in records if wanted else ():
            if row != wanted[at]:
                continue
            try:
                values = [float(fields[column]) for column in columns]
                total = sum(values)
                if total != total:  # a nan, written as such or made of two infinities
                    values = self._slowly(fields, line)
            except ValueError:
                values = self._slowly(fields, line)
            x[at] = values
            if self._targets:
                y[at] = self._target(fields, line)
            at += 1
            if at == len(wanted):
                break
        if at < len(wanted):
            raise ValueError(
                f"{self.name}: expected {self.n_rows} rows, as when it was opened, got fewer. "
                "Leave the file alone while it is read."
            )
        if self.task == "labels" and self._targets:
            targets.check_labels(y, lambda index: self.place(wanted[index], None))
        return x, y

    def _slowly(self, fields: list[str], line: int) -> list[float]:
        """Return the features of a row that has a missing value, or raise for the first that is no number."""
        values = []
        for index, column in enumerate(self._columns):
            text = fields[column].strip()
            if text.lower() in targets.MISSING:
                if not self._nonfinite:
                    raise ValueError(
                        f"{self._at(line, index)}: expected a number, got a missing value ({text!r}). "
                        "Fill it in, drop the line, or set data.allow_nonfinite = true."
                    )
                values.append(float("nan"))
                continue
            try:
                values.append(float(text))
            except ValueError:
                raise ValueError(
                    f"{self._at(line, index)}: expected a number, got {text!r}. "
                    "Write it as numbers, drop the column, or make it data.target."
                ) from None
        return values

    def _target(self, fields: list[str], line: int) -> int | list[float]:
        """Return the target of a row: the index of its class, or numbers."""
        texts = [fields[column].strip() for column in self._targets]
        for text in texts:
            if text.lower() in targets.MISSING:
                raise targets.missing(self._at(line, None), text)
        if self.task == "classification":
            return self._classes.index(texts[0], lambda: self._at(line, None))
        values = []
        for text in texts:
            try:
                values.append(float(text))
            except ValueError:
                raise targets.not_a_number(self._at(line, None), text) from None
        return values

    def _at(self, line: int, column: int | None) -> str:
        columns = self._targets if column is None else [self._columns[column]]
        names = ", ".join(repr(self._names[c]) if self._header else str(c) for c in columns)
        return f"{self.name}: line {line}" + (f", column{'s' * (len(columns) > 1)} {names}" if columns else "")

    def place(self, row: int, column: int | None) -> str:
        """Return how to name one feature of a row, or its target (None), to the user; reads the file up to there."""
        for index, (line, _) in enumerate(self._records(header=False)):
            if index == row:
                return self._at(line, column)
        return f"{self.name}: row {row}"
