"""A system's own MPI in place of a wheel, through mpi4py's choice of ABI: Debian's Open MPI 4.1 and MPICH 4.0."""

import os
from pathlib import Path

import pytest
from commands import LONG, Process
from conftest import interpreters

pytestmark = pytest.mark.hosts

LIBRARIES = {"openmpi": "libmpi.so.40", "mpich": "libmpich.so.12"}
RUN = (*LONG, "--training.epochs", "0", "--training.steps", "300", "--name")


@pytest.mark.parametrize("family", LIBRARIES)
def test_a_system_mpi_gives_the_same_bits(here, tmp_path, family):
    found = next(Path("/usr/lib").glob(f"*/{LIBRARIES[family]}"), None)
    if not found:
        pytest.skip(f"needs {LIBRARIES[family]}: Debian's {'openmpi-bin' if family == 'openmpi' else 'mpich'}")
    others = [python for name, python in interpreters().items() if name != family]
    if not others:
        pytest.skip(f"no Python without a wheel of {family}")
    variables = {}
    if family == "mpich":  # Debian's name of the file is not the ABI's
        (tmp_path / "abi").mkdir()
        (tmp_path / "abi" / "libmpi.so.12").symlink_to(found)
        variables = {"LD_LIBRARY_PATH": str(tmp_path / "abi")}
    line = [others[0], "-m", "distbp.launch", "-n", "3", "--mpi", family, "--", *RUN, "system"]
    root = str(Path(__file__).parents[2])
    here.started.append(Process(line, here.path, {**os.environ, **variables, "PYTHONPATH": root}))
    done = here.started[-1].wait()
    assert done.code == 0, done.err
    assert f"3 ranks, {'Open MPI 4.' if family == 'openmpi' else 'MPICH 4.'}" in done.err
    alone = here.run(*RUN, "alone", "--quiet")
    assert alone.code == 0, alone.err
    assert here.hashes("system") == here.hashes("alone")
