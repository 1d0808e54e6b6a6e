"""The tables that commands end with."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from distbp.training.evaluation import Evaluation

WIDEST = 20  # classes of a confusion table that is printed


def report(parts: Mapping[str, Evaluation | None]) -> None:
    """Print cost and metrics of each part, and the last part's confusion table."""
    table: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    for name, found in parts.items():
        if found:
            metrics = "".join(f", {metric} {value:.6g}" for metric, value in found.metrics.items())
            print(f"{name}: {found.rows:,} rows, cost {found.mean_cost:.6g}{metrics}")
            table, classes = found.confusion, found.classes
    if table is None:
        return
    if len(classes) > WIDEST:
        print(f"confusion table: {len(classes)} classes, more than {WIDEST}; left out")
        return
    from rich.console import Console
    from rich.table import Table

    drawn = Table(title="confusion (rows: true class, columns: predicted)", title_justify="left")
    drawn.add_column("")
    for name in classes:
        drawn.add_column(name, justify="right")
    for name, row in zip(classes, table.tolist(), strict=True):
        drawn.add_row(name, *(str(n) if n else "." for n in row))
    width = None if sys.stdout.isatty() else 12 + sum(max(len(name), 6) + 3 for name in ("", *classes))
    Console(file=sys.stdout, highlight=False, width=width).print(drawn)
