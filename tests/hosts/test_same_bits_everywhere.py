"""One settings file, every way to run it, one SHA-256: that of one process.

A way that cannot be run on this machine is skipped, and pytest says why.
"""

import re
import subprocess
from pathlib import Path

import numpy
import pytest
from commands import Process, documented, mpirun, places
from docker_engine import SHA, Stack
from interpreters import MPIS, ROOT, python_of
from slurm_cluster import needs_plugin

SETTINGS = Path(__file__).with_name("everywhere.toml")
RUN = (str(SETTINGS), "--name", "mine")
MINE = {"my.toml": str(SETTINGS)}
LIBRARIES = {"openmpi": "libmpi.so.40", "mpich": "libmpich.so.12"}


@pytest.fixture(scope="session")
def one_process(tmp_path_factory):
    """Return the model's SHA-256 that one process gives, without MPI."""
    found = ""
    for place in places(tmp_path_factory.mktemp("one")):
        done = place.run(*RUN, "--quiet")
        assert done.code == 0, done.err
        found = model(place)
    return found


def model(place):
    """Return the SHA-256 of the model of a place's run."""
    return place.hashes("mine")["model.safetensors"]


@pytest.mark.hosts
def test_four_ranks_on_one_host(here, python, one_process):
    line = [*mpirun(4, python), python, "-m", "distbp.train", *RUN]
    here.started.append(Process(line, here.path, {"PYTHONPATH": str(ROOT)}))
    done = here.started[-1].wait()
    assert done.code == 0, done.err
    assert ": 4 ranks on 1 host" in done.out
    assert model(here) == one_process


@pytest.mark.hosts
@pytest.mark.parametrize("mpi", MPIS)
def test_a_system_mpi_in_place_of_a_wheel(here, tmp_path, mpi, one_process):
    """Debian's Open MPI 4.1 and MPICH 4.0, through mpi4py's choice of ABI, in the other wheel's environment."""
    found = next(Path("/usr/lib").glob(f"*/{LIBRARIES[mpi]}"), None)
    if not found:
        pytest.skip(f"needs {LIBRARIES[mpi]}: Debian's {'openmpi-bin' if mpi == 'openmpi' else 'mpich'}")
    variables = {"PYTHONPATH": str(ROOT)}
    if mpi == "mpich":  # Debian's name of the file is not the ABI's
        (tmp_path / "abi").mkdir()
        (tmp_path / "abi" / "libmpi.so.12").symlink_to(found)
        variables["LD_LIBRARY_PATH"] = str(tmp_path / "abi")
    python = python_of(next(other for other in MPIS if other != mpi))
    line = [python, "-m", "distbp.launch", "-n", "3", "--mpi", mpi, "--", *RUN]
    here.started.append(Process(line, here.path, variables))
    done = here.started[-1].wait()
    assert done.code == 0, done.err
    assert f"3 ranks, {'Open MPI 4.' if mpi == 'openmpi' else 'MPICH 4.'}" in done.err
    assert model(here) == one_process


@pytest.mark.hosts
def test_three_hosts_over_tcp(here, hosts, python, one_process):
    before = hosts.bytes()
    line = documented("python -m distbp.launch --hosts node0:1,node1:1,node2:1 -- my.toml --name mine", MINE)
    done = hosts.launch(here, python, *line[3:]).wait(120)
    assert done.code == 0, done.err
    assert ": 3 ranks on 3 hosts (node0, node1, node2)" in done.out
    sent = [after - one for after, one in zip(hosts.bytes(), before, strict=True)]
    assert min(sent) > 1_000_000, "the links were used"
    assert model(here) == one_process


@pytest.mark.hosts
def test_two_ranks_a_host_by_a_host_file(here, hosts, python, one_process):
    (here.path / "hosts").write_text("node0 slots=2\nnode1:2\nnode2 slots=2  # the third\n")
    line = documented("python -m distbp.launch --hostfile hosts -n 6 -- my.toml --name mine", MINE)
    done = hosts.launch(here, python, *line[3:]).wait(120)
    assert done.code == 0, done.err
    assert ": 6 ranks on 3 hosts" in done.out
    assert model(here) == one_process


@pytest.mark.hosts
def test_intel_mpi_here_and_on_three_hosts(here, hosts, one_process):
    python = python_of("intel")
    hosts_line = ("--hosts", "node0:1,node1:2,node2:1")
    for name, where, says in (
        ("here", ("-n", "4"), "1 host, "),
        ("there", hosts_line, "3 hosts (node0, node1, node2), "),
    ):
        done = hosts.launch(here, python, *where, "--", SETTINGS, "--name", name).wait(120)
        assert done.code == 0, done.err
        assert f": 4 ranks on {says}Intel" in done.out
        assert here.hashes(name)["model.safetensors"] == one_process


@pytest.mark.docker
def test_a_head_and_three_workers_in_containers(image, one_process):
    stack = Stack({**image, "DISTBP_SETTINGS": str(SETTINGS)})
    ask = ("python", "-c", "import numpy; print(numpy.__version__)")
    if (there := stack.docker("run", "--rm", "--network", "none", "distbp:mpich", *ask)) != numpy.__version__:
        pytest.skip(f"the image has numpy {there}, this environment {numpy.__version__}: their bits may differ")
    try:
        up = documented("docker compose up --scale worker=3 --exit-code-from head")
        done = subprocess.run(
            stack.line(*up[2:]), env=stack.env, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        log = stack.compose(*documented("docker compose logs -f head")[2:])
        assert re.search(r"4 ranks on 4 hosts \(head, ", log), log
        assert SHA.findall(log) == [one_process]
    finally:
        stack.down()


@pytest.mark.slurm
@pytest.mark.parametrize("starter", ["srun", "mpirun"])
def test_two_nodes_of_slurm(here, slurm, python, mpi, starter, one_process):
    if starter == "srun":
        needs_plugin(slurm, mpi)
    command = f"{python} -m distbp.launch --starter {starter} -- {' '.join(RUN)}"
    job = slurm.sbatch("--nodes=2", "--ntasks=2", "--time=10", "--output=out", f"--wrap={command}", cwd=here.path)
    ended = slurm.wait(job, limit=240)
    said = (here.path / "out").read_text()
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), said
    assert f"{starter} " in said
    assert ": 2 ranks on 1 host, " in said  # Slurm's two nodes are one machine with one name
    assert model(here) == one_process
