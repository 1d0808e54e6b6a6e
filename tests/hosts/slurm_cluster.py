"""A real Slurm cluster on this machine: munged, slurmctld and a slurmd for each of two nodes, in a temporary folder.

Its ports are free ones and its files its own, so that it disturbs no other Slurm here. Partition `main` is the default
one; jobs in `high` preempt those in `main`, which are requeued. Needs root and Debian's packages (`missing`).

By default both nodes are this machine. They can be hosts of their own instead (`Places`): the controller on node0, where
the commands run too, and the nodes on node1 and node2.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

NODES = ("node1", "node2")
CPUS = 4  # of a node; more than this machine may have, so that jobs can run side by side
PROGRAMS = ("setpriv", "munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol")
PACKAGES = "slurm-wlm slurm-wlm-basic-plugins munge libpmix2 libpmix-dev"  # srun --mpi=pmix opens what only -dev has
LIMIT = 60.0  # seconds for one command, or for one change of a job's state

CONFIGURATION = """\
ClusterName=lab
SlurmctldHost={places.controller}
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# Credentials are kept for cred_expire after a job: by default a requeued job waits two minutes for that.
AuthInfo=socket={top}/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={top}/state
SlurmdSpoolDir={top}/spool-%n
TmpFS={top}/tmp-%n
SlurmctldPidFile={top}/slurmctld.pid
SlurmdPidFile={top}/slurmd-%n.pid
SlurmctldLogFile={top}/slurmctld.log
SlurmdLogFile={top}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,requeue_delay=0
ReturnToService=2
SlurmdTimeout=10
InactiveLimit=0
KillWait=5
MinJobAge=600
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=node1 {places.nodes[0]} Port={ports[1]} CPUs={cpus} RealMemory=4000
NodeName=node2 {places.nodes[1]} Port={ports[2]} CPUs={cpus} RealMemory=4000
PartitionName=main Nodes=node1,node2 Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=node1,node2 PriorityTier=10
"""


def missing() -> str:
    """Return what this machine lacks for a cluster, "" if it lacks nothing."""
    if os.geteuid() != 0:
        return "slurmd needs root"
    absent = [program for program in PROGRAMS if not shutil.which(program)]
    return f"needs {', '.join(absent)}: apt-get install --no-install-recommends {PACKAGES}" if absent else ""


@dataclass(frozen=True)
class Places:
    """Where a cluster is.

    Attributes
    ----------
    controller
        SlurmctldHost.
    nodes
        NodeHostname and NodeAddr of both nodes.
    enter
        From a host's number, 0 the controller's, to what runs a command there.
    folder
        That all hosts see; None for this machine's folder of temporary files.
    """

    controller: str = "localhost(127.0.0.1)"
    nodes: tuple[str, str] = ("NodeHostname=localhost NodeAddr=127.0.0.1",) * 2
    enter: Callable[[int], Sequence[str]] = lambda number: ()
    folder: Path | None = None


class Cluster:
    """Two nodes and their controller, from `with` to its end."""

    def __init__(self, places: Places | None = None) -> None:
        self.places = places or Places()
        # a short path: sockets' names have 107 characters at most
        self.top = Path(tempfile.mkdtemp(prefix="slurm-", dir=self.places.folder))
        self.configuration = self.top / "slurm.conf"
        self.environment = {**os.environ, "SLURM_CONF": str(self.configuration)}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _start(self) -> None:
        ports = free_ports(1 + len(NODES))
        self.configuration.write_text(CONFIGURATION.format(top=self.top, places=self.places, ports=ports, cpus=CPUS))
        for name in ("state", *(f"{kind}-{node}" for kind in ("spool", "tmp") for node in NODES)):
            (self.top / name).mkdir()
        key = self.top / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(1024))
        files = {name: self.top / f"munge.{name}" for name in ("socket", "pid-file", "log-file", "seed-file")}
        files["socket"] = self.top / "munge.sock"
        self._daemon(0, "munged", "--foreground", "--force", f"--key-file={key}", "--num-threads=2",
                     *(f"--{name}={path}" for name, path in files.items()))  # fmt: skip
        wait_for(files["socket"].exists, "munged's socket")
        self._daemon(0, "slurmctld", "-D")
        for number in (1, 2):
            self.start_node(number)
        wait_for(lambda: self.command("sinfo", "-h", "-t", "idle", "-o", "%D", check=False).strip() == str(len(NODES)),
                 "idle nodes", self.logs)  # fmt: skip

    def start_node(self, number: int) -> None:
        """Start the daemon of node 1 or 2."""
        self._daemon(number, "slurmd", "-D", "-N", NODES[number - 1])

    def _daemon(self, host: int, program: str, *arguments: str) -> None:
        """Start a daemon that ends with this process, even if that is killed, or with its host."""
        with open(self.top / f"{program}-{len(self._daemons)}.out", "wb") as out:
            self._daemons.append(
                subprocess.Popen(
                    [
                        *self.places.enter(host),
                        "setpriv",
                        "--pdeathsig=TERM",
                        shutil.which(program) or program,
                        *arguments,
                    ],
                    env=self.environment,
                    cwd=self.top,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            )

    def _end(self) -> None:
        """End what was started: every process that has our SLURM_CONF among its variables, jobs' processes too."""
        try:
            if len(self._daemons) > len(NODES):
                with contextlib.suppress(subprocess.SubprocessError, OSError):
                    self.command("scancel", "--user=root", "--signal=KILL", "--full", check=False, limit=10)
            for daemon in reversed(self._daemons):
                daemon.terminate()
            for daemon in reversed(self._daemons):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    daemon.wait(5)
        finally:
            while left := self.processes():
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.05)
            for daemon in self._daemons:
                daemon.wait()
            shutil.rmtree(self.top, ignore_errors=True)

    def processes(self, **variables: object) -> list[int]:
        """Return the living processes of this cluster, daemons' and jobs', that have these variables too."""
        signs = {f"{name}={value}" for name, value in {"SLURM_CONF": self.configuration, **variables}.items()}
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if signs <= set(path.read_text(errors="replace").split("\0")):
                    found.append(int(path.parent.name))
        return found

    def command(
        self,
        *words: object,
        check: bool = True,
        limit: float = LIMIT,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> str:
        """Run one of Slurm's commands and return what it printed."""
        done = subprocess.run(
            [*self.places.enter(0), "env", "-C", str(cwd or self.top), *map(str, words)], capture_output=True, text=True,
            env={**self.environment, **(env or {})}, timeout=limit, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{words}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def sbatch(self, *words: object, cwd: Path, env: Mapping[str, str] | None = None) -> str:
        """Submit a job in a folder and return its number."""
        return self.command("sbatch", "--parsable", *words, cwd=cwd, env=env).strip()

    def job(self, number: str) -> dict[str, str]:
        """Return what scontrol shows of a job, like ``{"JobState": "RUNNING", "Restarts": "0", ...}``."""
        words = self.command("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.partition("=")[::2] for word in words)

    def wait(self, number: str, *states: str, limit: float = LIMIT) -> dict[str, str]:
        """Wait until a job is in one of these states, by default at its end; return what scontrol shows of it."""
        over = states or ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        return wait_for(lambda: (job := self.job(number))["JobState"] in over and job, f"job {number}: {over}",
                        lambda: f"{self.job(number)}\n{self.logs()}", limit)  # fmt: skip

    def logs(self) -> str:
        """Return the ends of the daemons' logs."""
        paths = sorted([*self.top.glob("*.log"), *self.top.glob("*.out")])
        return "\n".join(f"== {path.name}\n" + path.read_text(errors="replace")[-3000:] for path in paths)


def free_ports(count: int) -> list[int]:
    """Return so many TCP ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_for(event: Callable[[], Any], what: str, more: Callable[[], str] = str, limit: float = LIMIT) -> Any:
    """Look again and again until `event` gives something true, and return it; past the limit fail, telling `more`."""
    end = time.monotonic() + limit
    while not (found := event()):
        assert time.monotonic() < end, f"waited {limit:g} s for {what}\n{more()}"
        time.sleep(0.1)
    return found


def needs_plugin(slurm: Cluster, mpi: str) -> None:
    """Skip where srun cannot start ranks of this MPI."""
    plugin = {"mpich": "pmi2", "openmpi": "pmix"}[mpi]
    if plugin not in slurm.command("srun", "--mpi=list").split():
        pytest.skip(f"srun does not offer --mpi={plugin}: apt-get install {PACKAGES}")
