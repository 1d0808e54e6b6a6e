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
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

CONNECT = 5  # seconds that ssh may take to reach a host, at the most
AGAIN = 1.0  # seconds after which a host that does not answer is asked again
SOON = 2.0  # seconds after which people are told who is waited for
ANSWER = 20.0  # seconds that a host may take to start Python and load distbp, where nothing else is said

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


def read_hosts(entries: Iterable[str], place: str) -> list[Host]:
    """Return the hosts of entries like ``a:2``, those between commas or the lines of a host file.

    Raises
    ------
    ValueError
        An entry is no host; it is named by `place` and its number.
    """
    hosts: dict[str, Host] = {}
    for number, line in enumerate(entries, 1):
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
        if not re.fullmatch("[0-9]+", count) or ("slots" in keys and not int(count)):
            raise ValueError(
                f"{place}, entry {number}: expected a number of ranks > 0, got {count!r}. Mend that entry."
            )
        for key in ("python", "directory"):
            if not keys.get(key, "/").startswith("/"):
                raise ValueError(
                    f"{place}, entry {number}: expected a whole path, got {key}={keys[key]}. Write it from / on."
                )
        before = hosts.get(name)  # named twice means one rank more, as in a list of nodes
        total = int(count) if not before else (before.slots or 1) + (int(count) or 1)
        paths = {key: keys.get(key) or getattr(before, key, "") for key in ("python", "directory")}
        hosts[name] = Host(name, total, **paths)
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

    def probe(self, host: Host, connect: int = CONNECT, limit: float = ANSWER) -> dict[str, str] | str:
        """Return what a host has, or why it did not answer; it may take `connect` seconds to reach, `limit` in all.

        Raises
        ------
        ValueError
            It answers, but cannot run distbp.
        """
        python = host.python or sys.executable
        try:
            code, out, error = self.run(host, [python, "-c", PROBE], limit, connect)
        except OSError as wrong:  # of a Python or directory of this machine
            code, out, error = 127, "", f"{wrong.filename}: {wrong.strerror}"
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

    def alive(self, hosts: Sequence[Host]) -> tuple[dict[Host, dict[str, str]], dict[Host, str]]:
        """Return what each host has, and why the others cannot take part now: no answer, or distbp cannot run there."""

        def ask(host: Host) -> dict[str, str] | str:
            try:
                return self.probe(host)
            except ValueError as error:
                return str(error)

        with ThreadPoolExecutor(max(len(hosts), 1)) as threads:
            return _apart(dict(zip(hosts, threads.map(ask, hosts), strict=True)))

    def await_all(
        self, hosts: Sequence[Host], seconds: float, tell: Callable[[Host, str], None]
    ) -> tuple[dict[Host, dict[str, str]], dict[Host, str]]:
        """Return what each host has, and why the others did not answer in time; each is asked again and again.

        `tell` is called with those that did not answer at once, and why.

        Raises
        ------
        ValueError
            As of `probe`; then no host is asked again.
        """
        end = time.monotonic() + seconds
        over = threading.Event()
        why = dict.fromkeys(hosts, "no answer yet")

        def ask(host: Host) -> dict[str, str] | str:
            left = max(seconds, 1.0)
            while True:
                found = self.probe(host, min(CONNECT, int(left)), left)
                left = end - time.monotonic() - AGAIN
                if not isinstance(found, str) or left < 1.0 or over.wait(AGAIN):
                    return found
                why[host] = found

        with ThreadPoolExecutor(max(len(hosts), 1)) as threads:
            asked = {host: threads.submit(ask, host) for host in hosts}
            done, waiting = wait(asked.values(), SOON, FIRST_EXCEPTION)
            if any(one.exception() for one in done):
                over.set()
            else:
                for host, one in asked.items():
                    if one in waiting:
                        tell(host, why[host])
        return _apart({host: one.result() for host, one in asked.items()})

    def sweep(self, hosts: Iterable[Host], sign: str) -> None:
        """Kill every process that has `sign`, like ``NAME=value``, among its variables: here and on the hosts."""
        sweep_here(sign)
        away = [host for host in hosts if not host.is_here]
        if away:
            command = ["sh", "-c", SWEEP.format(shlex.quote(sign))]
            with ThreadPoolExecutor(len(away)) as threads:
                for host in away:
                    threads.submit(self.run, host, command, 2.0 * CONNECT)


def _apart(
    found: Mapping[Host, dict[str, str] | str],
) -> tuple[dict[Host, dict[str, str]], dict[Host, str]]:
    """Return the hosts that answered, and those that did not."""
    silent = {host: why for host, why in found.items() if isinstance(why, str)}
    return {host: what for host, what in found.items() if not isinstance(what, str)}, silent


def sweep_here(sign: str) -> None:
    """Kill every process of this machine that has `sign` among its variables, but not this one."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        pid = int(path.parent.name)
        try:
            if pid != os.getpid() and sign.encode() in path.read_bytes().split(b"\0"):
                os.kill(pid, 9)
        except OSError:
            continue  # it has gone, or is another user's
