"""Which MPI there is, and the command line that starts ranks with it: the one place that knows mpiruns apart.

| starter | on hosts | rank before a line | what it needs |
| --- | --- | --- | --- |
| MPICH (hydra) | -hosts a:2,b:2 | -prepend-rank | carries all variables by itself |
| Intel MPI (hydra too) | -host a -n 2 ... : -host b -n 2 ... | -prepend-rank | the same; its -hosts takes no counts |
| Open MPI 4, 5 | --host a:2 | --tag-output, --output tag | -x NAME for each variable; leave for root |
| srun | Slurm's | --label | --mpi=pmi2 for MPICH and Intel MPI, --mpi=pmix for Open MPI |

References
----------
mpiexec.hydra -help (MPICH 5.0); mpirun(1) of Open MPI 4.1 and 5.0; srun(1) of Slurm 22.05; Intel MPI Library Developer
Reference for Linux, "mpiexec.hydra" and "Other Environment Variables" (run with 2021.18).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distbp.launching.hosts import Host

FAMILIES = {"mpich": "MPICH", "openmpi": "Open MPI", "intel": "Intel"}  # name: what its library's version begins with
SRUN_MPI = {"mpich": "pmi2", "intel": "pmi2", "openmpi": "pmix"}
ABIS = {"mpich": "mpich", "openmpi": "openmpi", "intel": "impi"}  # MPI4PY_MPIABI, which mpi4py's wheels choose by
PASSED = re.compile(  # variables that mean something to a rank, carried to other hosts
    r"(PATH|LD_LIBRARY_PATH|PYTHONPATH|VIRTUAL_ENV|OMP_NUM_THREADS|(DISTBP|OPENBLAS|MKL|BLIS|NPY|MPI4PY|PYTHON)_?\w*)$"
)
RANK = {  # what a starter writes before a line: group 1 is the rank
    "mpich": re.compile(r"\[(\d+)\] ?"),
    "intel": re.compile(r"\[(\d+)\] ?"),
    "openmpi": re.compile(r"\[[^\],]*,(\d+)\]<std(?:out|err)>: ?"),
    "srun": re.compile(r" *(\d+): ?"),
}


@dataclass(frozen=True)
class Library:
    """The MPI that mpi4py loads.

    Attributes
    ----------
    family
        mpich, openmpi or intel.
    text
        Name and version, for people.
    major
        First number of the version.
    mpirun
        The program that belongs to it.
    has_ofi
        Whether it is an MPICH that can speak OFI.
    """

    family: str
    text: str
    major: int
    mpirun: str
    has_ofi: bool = False


def library_of(found: Mapping[str, str]) -> Library:
    """Return the library of a host's answer (`hosts.PROBE`), with its mpirun on this host.

    Raises
    ------
    ValueError
        It is none of those known here, or its mpirun cannot be found.
    """
    first, family = found["library"].split("\n")[0], family_of(found)
    if not family:
        raise ValueError(
            f"mpi4py: expected MPICH, Open MPI or Intel MPI, got {first[:40]!r}. Start the ranks with that library's "
            "own mpirun: mpirun -n N python -m distbp.train."
        )
    number = re.search(r"\d+(?:\.\d+)*", first)
    version = number[0] if number else "0"
    text = f"{FAMILIES[family]} {version}"
    file = Path(found["file"])
    beside = [parent / "bin" for parent in file.resolve().parents[:4]] if file.is_absolute() else []
    names = ("mpiexec.hydra",) if family == "intel" else ("mpirun", f"mpirun.{family}")  # Intel's mpirun is a script
    places = [str(place / name) for place in (*beside, Path(sys.executable).parent) for name in names]
    places += [f"mpirun.{family}", "mpiexec.hydra" if family != "openmpi" else "mpirun", "mpirun"]
    for place in dict.fromkeys(places):
        program = shutil.which(place)
        if program and _family_of_mpirun(program) == family:
            return Library(
                family,
                text,
                int(version.split(".")[0]),
                program,
                bool(re.search(r"MPICH Device:.*\bofi\b", found["library"])),
            )
    raise ValueError(
        f"mpirun: expected that of {text}, which mpi4py loads, beside the library, beside Python or in PATH, got none. "
        "Install it, or put it in PATH."
    )


def family_of(found: Mapping[str, str]) -> str:
    """Return the family of a host's answer (`hosts.PROBE`), "" for one that is not known here."""
    return next((name for name, start in FAMILIES.items() if found["library"].startswith(start)), "")


def _family_of_mpirun(mpirun: str) -> str:
    """Return whose mpirun a program is, "" if that cannot be said."""
    try:
        done = subprocess.run([mpirun, "--version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    text = (done.stdout + done.stderr).lower()
    if "open mpi" in text or "open-mpi" in text or "openrte" in text:
        return "openmpi"
    return "intel" if "intel" in text else "mpich" if "hydra" in text or "mpich" in text else ""


def srun_mpi(library: Library) -> str:
    """Return the --mpi of srun that fits a library, "" where srun does not offer it."""
    if not shutil.which("srun"):
        return ""
    done = subprocess.run(["srun", "--mpi=list"], capture_output=True, text=True, timeout=20, check=False)
    offered = (done.stdout + done.stderr).split()
    return SRUN_MPI[library.family] if SRUN_MPI[library.family] in offered else ""


def passed(variables: Mapping[str, str]) -> dict[str, str]:
    """Return those variables that are carried to other hosts."""
    return {name: value for name, value in variables.items() if PASSED.match(name)}


def on_hosts(
    library: Library, counts: Mapping[Host, int], ssh: str, program: Sequence[str], variables: Mapping[str, str]
) -> list[str]:
    """Return mpirun's command line for so many ranks on each host.

    Parameters
    ----------
    counts
        Ranks of each host; a host of name "" is this one, alone.
    ssh
        The remote shell, "" for mpirun's own choice.
    program
        What each rank runs, after its Python.
    variables
        Of the environment mpirun is started in.
    """
    hosts = [host for host in counts if host.name]
    names = ",".join(f"{host.name}:{counts[host]}" for host in hosts)
    if library.family == "openmpi":
        line = [library.mpirun, "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"]
        line += ["--output", "tag", "--map-by", "slot:OVERSUBSCRIBE"] if library.major >= 5 else ["--tag-output"]
        line += [] if library.major >= 5 else ["--map-by", "slot", "--oversubscribe"]
        mca, plm = ("--prtemca", "plm_ssh") if library.major >= 5 else ("--mca", "plm_rsh")
        if hosts:  # started from here: a host need not reach the others
            line += [mca, f"{plm}_no_tree_spawn", "1", *([mca, f"{plm}_agent", ssh] if ssh else [])]
    else:
        line = [library.mpirun, "-prepend-rank"]
        if hosts:
            line += ["-launcher", "ssh", *(["-launcher-exec", ssh] if ssh else [])]
            line += ["-hosts", names] if library.family == "mpich" else []
    rank = [sys.executable, *program]
    if any(host.python or host.directory for host in hosts):
        wdir = "--wdir" if library.family == "openmpi" else "-wdir"
        rank = [wdir, "/", "sh", "-c", _own_paths(counts), "rank", *program]
    if library.family == "intel" and hosts:
        each = [["-host", host.name, "-n", str(count), *rank] for host, count in counts.items()]
        return [*line, *each[0], *(word for one in each[1:] for word in (":", *one))]
    line += ["-n", str(sum(counts.values()))]
    if library.family == "openmpi" and hosts:
        line += ["--host", names, *(word for name in passed(variables) for word in ("-x", name))]
    return [*line, *rank]


def _own_paths(counts: Mapping[Host, int]) -> str:
    """Return a shell script that starts a rank with the Python and in the directory of its host.

    Hosts hold runs of ranks. Like this it is one command line for both MPIs.
    """
    cases, first = [], 0
    for host, count in counts.items():
        ranks = "|".join(str(rank) for rank in range(first, first + count))
        first += count
        place, python = shlex.quote(host.directory or os.getcwd()), shlex.quote(host.python or sys.executable)
        cases.append(f'{ranks}) cd {place} && exec {python} "$@" ;;')
    return f"case ${{PMI_RANK:-$OMPI_COMM_WORLD_RANK}} in {' '.join(cases)} esac"


def by_srun(mpi: str, ranks: int, program: Sequence[str]) -> list[str]:
    """Return srun's command line for a step of the present Slurm job.

    --export=ALL, because an sbatch --export=NONE would hold for srun too. With --kill-on-bad-exit=1 srun ends the other
    ranks as soon as one leaves with a code that is not 0, so that rank 0 may be gone before its last word; after --wait
    seconds nothing is left to say.
    """
    keep = ["--export=ALL", "--label", "--kill-on-bad-exit=0", "--wait=10"]
    return ["srun", f"--mpi={mpi}", *keep, f"--ntasks={ranks}", sys.executable, *program]


def environment(library: Library, blas_threads: int, srun: bool) -> dict[str, str]:
    """Return the variables that ranks are started with: this process's, BLAS threads unless set, what root needs.

    Slurm's pmi2 cuts lines of more than about 1,024 characters, which the addresses of MPICH's UCX may be: OFI's are
    short.
    """
    variables = dict(os.environ)
    variables.pop("PYTHONUNBUFFERED", None)  # hydra writes the rank before every piece it is given: give it whole lines
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        variables.setdefault(name, str(blas_threads))
    if srun and library.has_ofi:
        variables.setdefault("MPIR_CVAR_CH4_NETMOD", "ofi")
    if library.family == "intel":
        variables = {"I_MPI_PIN": "0", "I_MPI_THREAD_YIELD": "2"} | variables  # no binding; a rank that waits gives way
    if library.family == "openmpi" and os.geteuid() == 0:
        variables |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return variables


def agent(ssh: str, hosts: Sequence[Host]) -> str:
    """Return a script in place of ssh for hosts whose Python is elsewhere: mpirun's own programs lie beside it there.

    mpirun asks each host for its helper (hydra_pmi_proxy, prted) by the path on this host.
    """
    bin_here = str(Path(sys.executable).parent)
    swap = f"s|{bin_here}/|$there/|g; s|{Path(bin_here).parent}|${{there%/*}}|g"
    lines = ["#!/bin/sh", "there=", 'for word; do case "$word" in']
    for host in hosts:
        if host.python:
            lines.append(f"  {shlex.quote(host.name)}) there={shlex.quote(str(Path(host.python).parent))} ;;")
    lines += ["esac; done", '[ -n "$there" ] && for word; do', "  shift"]
    lines += [
        f"""  set -- "$@" "$(printf %s "$word" | sed "{swap}")" """.rstrip(),
        "done",
        f'exec {shlex.quote(ssh)} "$@"',
        "",
    ]
    return "\n".join(lines)
