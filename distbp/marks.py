"""Marks: lines by which rank 0 tells the launcher how the run stands, on standard error, which every mpirun carries.

    <record separator>distbp KEY {"step": 120}          at most one a second
    <record separator>distbp KEY {"run": "runs/mine"}   the run's folder is there, and can be resumed
    <record separator>distbp KEY {"code": 0, ...}       the last word: the run's own exit code

mpirun's exit code proves nothing (Open MPI's was seen to be 0 after a host had died); the last word does. KEY is the
launcher's, in DISTBP_LAUNCH; without it nothing is said.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

VARIABLE = "DISTBP_LAUNCH"


def mark(**values: Any) -> None:
    """Tell the launcher, if there is one."""
    key = os.environ.get(VARIABLE)
    if key:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"\x1edistbp {key} {json.dumps(values)}\n")  # one write, whatever Python buffers
            sys.stderr.flush()


def read(line: str, key: str) -> dict[str, Any] | None:
    """Return what a line marks, None if it is an ordinary one."""
    before, sign, text = line.partition(f"\x1edistbp {key} ")
    if sign and not before:
        with contextlib.suppress(ValueError):
            values: dict[str, Any] = json.loads(text)
            return values
    return None
