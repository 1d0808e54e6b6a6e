"""Several real hosts on this machine: network namespaces, containers, Slurm's nodes; each test with each MPI."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Place, Process, places
from docker_engine import Stack, engine
from interpreters import MPIS, ROOT, python_of
from slurm_cluster import Cluster, missing

SCRIPT = Path(__file__).with_name("hosts.sh")


@pytest.fixture(params=MPIS)
def mpi(request: pytest.FixtureRequest) -> str:
    """Return the name of an MPI: mpich, openmpi."""
    return str(request.param)


@pytest.fixture
def python(mpi: str) -> str:
    """Return a Python that loads the MPI."""
    return python_of(mpi)


@pytest.fixture(scope="session")
def image() -> Iterator[dict[str, str]]:
    """Return the variables by which docker finds an engine, on which the image has been built."""
    with engine() as variables:
        Stack(variables).compose("build", "head", limit=400)
        yield variables


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """Return a Slurm of two nodes."""
    if missing():
        pytest.skip(missing())
    with Cluster() as made:
        yield made


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    """Return an empty working folder to run commands in."""
    yield from places(tmp_path)


class Hosts:
    """node0, node1, node2: real hosts of this machine."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.ssh = str(state / "ssh")

    def call(self, *arguments: object) -> str:
        """Run hosts.sh."""
        line = ["bash", str(SCRIPT), *map(str, arguments)]
        done = subprocess.run(line, env=self.environment(), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def environment(self) -> dict[str, str]:
        """Return the variables of hosts.sh."""
        return {**os.environ, "HOSTS_STATE": str(self.state)}

    def bytes(self) -> list[int]:
        """Return what each host has sent so far."""
        return [int(line) for line in self.call("bytes").split()]

    def entering(self, number: int) -> list[str]:
        """Return the start of a command line of what runs on a host."""
        return ["bash", str(SCRIPT), "enter", str(number)]

    def launch(self, place: Place, python: str, *arguments: object) -> Process:
        """Start the launcher on node0, in the place's folder."""
        line = [*self.entering(0), "env", "-C", place.path, f"PYTHONPATH={ROOT}",
                python, "-m", "distbp.launch", "--ssh", self.ssh, *arguments]  # fmt: skip
        place.started.append(Process([str(word) for word in line], place.path, self.environment()))
        return place.started[-1]


@pytest.fixture(scope="session")
def running_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Start three hosts for all tests; skip, with the reason, where that cannot be done."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make network namespaces")
    missing = [
        name
        for name in ("ip", "sshd", "nsenter", "unshare")
        if not shutil.which(name, path="/usr/sbin:/sbin:" + os.environ["PATH"])
    ]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: Debian's iproute2, openssh-server and util-linux")
    if subprocess.run(["ip", "netns", "add", "distbptry"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let us make network namespaces")
    subprocess.run(["ip", "netns", "del", "distbptry"], check=True)
    hosts = Hosts(Path("/run/distbp-hosts"))
    if hosts.state.exists():
        hosts.call("down")  # of a session that was killed
    try:
        hosts.call("up", 3, tmp_path_factory.getbasetemp(), ROOT)
        yield hosts
    finally:
        hosts.call("down")


@pytest.fixture
def hosts(running_hosts: Hosts) -> Iterator[Hosts]:
    """Return the three hosts, all of them alive; afterwards they are again."""
    yield running_hosts
    for number in range(3):
        running_hosts.call("mend", number)
        pid = int((running_hosts.state / f"pid{number}").read_text())
        if not Path(f"/proc/{pid}").exists():
            running_hosts.call("revive", number)
