"""What rank 0 tells the launcher: marks, which are lines on standard error, carried by every mpirun; and its step.

    <record separator>distbp KEY {"step": 120}          at most one a second
    <record separator>distbp KEY {"run": "runs/mine"}   the run's folder is there, and can be resumed
    <record separator>distbp KEY {"code": 0, ...}       the last word: the run's own exit code

mpirun's exit code proves nothing (Open MPI's was seen to be 0 after a host had died); the last word does. KEY is the
launcher's, in DISTBP_LAUNCH; without it nothing is said.

A step may take microseconds, too short for a line each. Where rank 0 is on the launcher's host it also writes each step
into 8 bytes that both have mapped, the file named by DISTBP_LAUNCH_STEP: so the step a run died at is known exactly.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import sys
from typing import Any

VARIABLE = "DISTBP_LAUNCH"
STEP_FILE = "DISTBP_LAUNCH_STEP"
FOR_RANKS = (VARIABLE, STEP_FILE)


def mark(**values: Any) -> None:
    """Tell the launcher, if there is one."""
    key = os.environ.get(VARIABLE)
    if key:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"\x1edistbp {key} {json.dumps(values)}\n")  # one write, whatever Python buffers
            sys.stderr.flush()


def read(line: str, key: str) -> tuple[str, dict[str, Any] | None]:
    """Return a line without its mark, "" if it was nothing else, and what it marks, None for an ordinary line.

    Another rank's words stand before a mark where their line was not ended.
    """
    before, sign, text = line.partition(f"\x1edistbp {key} ")
    if sign:
        with contextlib.suppress(ValueError):
            values: dict[str, Any] = json.loads(text)
            return (f"{before}\n" if before else ""), values
    return line, None


class StepFile:
    """The launcher's 8 bytes for the step, where it is on this host; elsewhere nothing is written."""

    def __init__(self) -> None:
        self._bytes: mmap.mmap | None = None
        with contextlib.suppress(OSError, ValueError), open(os.environ.get(STEP_FILE, ""), "r+b") as file:
            self._bytes = mmap.mmap(file.fileno(), 8)

    def write(self, step: int) -> None:
        """Put down the step."""
        if self._bytes:
            self._bytes[:] = to_bytes(step)


def to_bytes(step: int) -> bytes:
    """Return a step as it is in the launcher's file; -1 is none."""
    return step.to_bytes(8, "little", signed=True)


def from_bytes(data: bytes) -> int:
    """Return the step that is in the launcher's file."""
    return int.from_bytes(data, "little", signed=True)
