"""Hosts: which there are, which of them answer, how many ranks each takes, and ending what is left on one.

A host file has one host a line, in the forms that Open MPI, MPICH and the Kubernetes operator write:

    node1
    node2:2
    node3 slots=4 python=/opt/venv/bin/python directory=/data/mine    # where they differ from this host's
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

CONNECT = 5  # seconds that ssh may take to reach a host, at the most
AGAIN = 1.0  # seconds after which a host that does not answer is asked again
ANSWER = 60.0  # seconds that a host may take to start Python and load distbp, once it is reached

PROBE = """
import json, sys
try:
    import mpi4py
    mpi4py.rc.initialize = False
    from mpi4py import MPI
    import distbp
except (ImportError, RuntimeError) as error:
    sys.exit("probe: " + str(error).replace(chr(10), " "))
library = MPI.Get_library_version().replace(chr(0), "").strip()
files = [line.split()[-1] for line in open("/proc/self/maps") if "/libmpi" in line]
print("probe:" + json.dumps({"distbp": distbp.__version__, "library": library, "file": files[0] if files else ""}))
"""

SWEEP = "for p in /proc/[0-9]*; do if grep -qs {0} $p/environ; then kill -9 ${{p#/proc/}}; fi; done"


@dataclass(frozen=True)
class Host:
    """A machine to run ranks on.

    Attributes
    ----------
    name
        As ssh knows it; "" for this one, where there is no list of hosts.
    slots
        Ranks it takes at most; 0: its even part of them.
    python, directory
        Where they are on that host; "" as on this one.
    """

    name: str
    slots: int = 0
    python: str = ""
    directory: str = ""

    @property
    def is_here(self) -> bool:
        """Whether it is this machine."""
        return _is_here(self.name)


@lru_cache
def _is_here(name: str) -> bool:
    """Return whether a name is this machine's: its address can be bound to."""
    if name in ("", "localhost", socket.gethostname()):
        return True
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as one, contextlib.suppress(OSError):
            one.bind(address)
            return True
    return False


def read_hosts(text: str, place: str) -> list[Host]:
    """Return the hosts of a list like ``a:2,b:2``, or of a host file's text.

    Raises
    ------
    ValueError
        A line is no host; it is named by `place` and its number.
    """
    hosts: dict[str, Host] = {}
    for number, line in enumerate(re.split(r"[,\n]", text), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        name, colon, slots = words[0].partition(":")
        keys = dict(word.partition("=")[::2] for word in words[1:])
        if colon:
            keys["slots"] = slots
        if set(keys) - {"slots", "max_slots", "max-slots", "python", "directory"} or not name or name.startswith("-"):
            raise ValueError(
                f"{place}, entry {number}: expected a host like node1, node1:2 or node1 slots=2 python=PATH "
                f"directory=PATH, got {line.strip()!r}. Mend that entry."
            )
        count = keys.get("slots", "0")
        if not count.isdigit() or ("slots" in keys and not int(count)):
            raise ValueError(
                f"{place}, entry {number}: expected a number of ranks > 0, got {count!r}. Mend that entry."
            )
        before = hosts.get(name)  # named twice means one rank more, as in a list of nodes
        total = int(count) if not before else (before.slots or 1) + (int(count) or 1)
        hosts[name] = Host(name, total, keys.get("python", ""), keys.get("directory", ""))
    if not hosts:
        raise ValueError(f"{place}: expected at least one host, got none. Give it like node1:2,node2:2.")
    return list(hosts.values())


def with_slots(hosts: Sequence[Host], ranks: int) -> list[Host]:
    """Return the hosts, those without slots with their even part of the ranks, rounded up."""
    return [replace(host, slots=host.slots or -(-ranks // len(hosts))) for host in hosts]


def spread(ranks: int, hosts: Sequence[Host]) -> dict[Host, int]:
    """Return how many ranks each host takes, as even as the slots allow: at most `ranks` in all, fewer where full.

    Even, because hosts with the same number of ranks share one theta each.
    """
    counts = dict.fromkeys(hosts, 0)
    for _ in range(ranks):
        free = [host for host in hosts if counts[host] < host.slots]
        if free:
            counts[min(free, key=lambda host: counts[host])] += 1
    return {host: count for host, count in counts.items() if count}


class Shell:
    """Runs commands on hosts: here, or over ssh. `variables` go with them, as mpirun carries them to the ranks."""

    def __init__(self, ssh: str, variables: Mapping[str, str]) -> None:
        self.ssh, self.variables = ssh, dict(variables)

    def start(self, host: Host, command: Sequence[str], connect: int = CONNECT) -> subprocess.Popen[str]:
        """Start a command on a host, in its directory; ssh may take `connect` seconds to reach it."""
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        if host.is_here:
            return subprocess.Popen(command, text=True, cwd=host.directory or None, start_new_session=True, **pipes)
        variables = [f"{name}={value}" for name, value in self.variables.items()]
        there = f"cd {shlex.quote(host.directory or os.getcwd())} && exec {shlex.join(['env', *variables, *command])}"
        line = [self.ssh, "-o", "BatchMode=yes", "-o", f"ConnectTimeout={connect}", host.name, there]
        return subprocess.Popen(line, text=True, start_new_session=True, **pipes)

    def run(self, host: Host, command: Sequence[str], limit: float, connect: int = CONNECT) -> tuple[int, str, str]:
        """Return exit code, standard output and standard error; 255, as of ssh, if there was no end in time."""
        with self.start(host, command, connect) as process:
            try:
                out, error = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                process.kill()
                return 255, "", f"no answer within {limit:g} s"
        return process.returncode, out, error

    def probe(self, host: Host, limit: int = CONNECT) -> dict[str, str] | str:
        """Return what a host has, or why it cannot be reached within `limit` seconds.

        Raises
        ------
        ValueError
            It answers, but cannot run distbp.
        """
        python = host.python or sys.executable
        code, out, error = self.run(host, [python, "-c", PROBE], limit + ANSWER, limit)
        for line in out.splitlines():
            if line.startswith("probe:"):
                found: dict[str, str] = json.loads(line[6:])
                return found
        lines = error.strip().splitlines()
        why = next((line for line in lines if line.startswith("probe: ")), lines[-1] if lines else f"exit code {code}")
        if code == 255 and not why.startswith("probe: "):
            return why
        raise ValueError(
            f"{host.name or 'launch'}: expected {python} with distbp and mpi4py in {host.directory or Path.cwd()}, "
            f"got: {why.removeprefix('probe: ')}. Install them there"
            + (f", or name its Python in the host file: {host.name} python=PATH." if host.name else ": distbp[mpich].")
        )

    def probe_all(
        self, hosts: Sequence[Host], wait: float = 0, tell: Callable[[Host, str], None] | None = None
    ) -> tuple[dict[Host, dict[str, str]], dict[Host, str]]:
        """Return what each host has, and why those have nothing that do not answer.

        Parameters
        ----------
        hosts
            Asked at once, each again and again.
        wait
            Seconds after which a host that did not answer is not asked again.
        tell
            Called with a host that does not answer at first, and why.

        Raises
        ------
        ValueError
            As of `probe`; then no host is waited for any longer.
        """
        end = time.monotonic() + wait
        over = threading.Event()

        def ask(host: Host) -> dict[str, str] | str:
            limit, told = CONNECT, False
            while True:
                try:
                    found = self.probe(host, limit)
                except ValueError:
                    over.set()
                    raise
                left = end - time.monotonic()
                if not isinstance(found, str) or left < AGAIN + 1 or over.wait(AGAIN):
                    return found
                if tell and not told:
                    tell(host, found)
                    told = True
                limit = min(CONNECT, int(left - AGAIN))

        with ThreadPoolExecutor(max(len(hosts), 1)) as threads:
            found = dict(zip(hosts, threads.map(ask, hosts), strict=True))
        silent = {host: why for host, why in found.items() if isinstance(why, str)}
        return {host: what for host, what in found.items() if not isinstance(what, str)}, silent

    def sweep(self, hosts: Iterable[Host], sign: str) -> None:
        """Kill every process that has `sign`, like ``NAME=value``, among its variables: here and on the hosts."""
        sweep_here(sign)
        away = [host for host in hosts if not host.is_here]
        if away:
            command = ["sh", "-c", SWEEP.format(shlex.quote(sign))]
            with ThreadPoolExecutor(len(away)) as threads:
                for host in away:
                    threads.submit(self.run, host, command, 2.0 * CONNECT)


def sweep_here(sign: str) -> None:
    """Kill every process of this machine that has `sign` among its variables, but not this one."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        pid = int(path.parent.name)
        try:
            if pid != os.getpid() and sign.encode() in path.read_bytes().split(b"\0"):
                os.kill(pid, 9)
        except OSError:
            continue  # it has gone, or is another user's
