"""A Python whose mpi4py loads the other MPI than this one's: Open MPI beside MPICH, or MPICH beside Open MPI."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ASK = "from mpi4py import MPI; print(MPI.Get_library_version())"


@lru_cache
def family(python: str) -> str:
    """Return which MPI a Python's mpi4py loads: openmpi or mpich."""
    done = subprocess.run([python, "-c", ASK], capture_output=True, text=True, timeout=60, check=True)
    return "openmpi" if done.stdout.startswith("Open MPI") else "mpich"


@lru_cache
def python_of(wanted: str) -> str:
    """Return a Python with the MPI that is asked for: this one, $DISTBP_OTHER_VENV's, or of a venv made once here."""
    if family(sys.executable) == wanted:
        return sys.executable
    venv = Path(os.environ.get("DISTBP_OTHER_VENV") or ROOT / f".venv-{wanted}")
    python = str(venv / "bin" / "python")
    if not Path(python).exists():
        for command in (
            [sys.executable, "-m", "venv", str(venv)],
            [python, "-m", "pip", "install", "--quiet", "--editable", f"{ROOT}[{wanted}]"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
            if done.returncode:
                pytest.skip(f"{wanted}: no venv with it could be made: {done.stderr.strip().splitlines()[-1:]}")
    if family(python) != wanted:
        pytest.skip(f"{venv}: its mpi4py does not load {wanted}; set DISTBP_OTHER_VENV to a venv where it does")
    return python
