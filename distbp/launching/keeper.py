"""Keeping a run going: attempt after attempt, each on what is alive, until the run has said its last word.

An attempt that ends without one is followed by another, from the newest good checkpoint, after a pause that doubles.
Not followed: bad input at the start, a cost that is not finite, three attempts in a row that get no further than one
step, more restarts than allowed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distbp import marks
from distbp.command import BAD_INPUT, DONE, FAILED, INTERRUPTED, RESUMABLE
from distbp.launching import mpi
from distbp.launching.attempt import Asked, Attempt, Outcome
from distbp.launching.hosts import Host, Shell, spread

PAUSE, LONGEST = 1.0, 60.0  # seconds before the first restart, doubled for each that follows, up to the longest
STUCK = 3  # attempts in a row that end without getting further


@dataclass(frozen=True)
class Plan:
    """What to start, and how long to keep at it.

    Attributes
    ----------
    ranks
        Wanted at the start, and at the most.
    hosts
        Where, with their slots; none: on this machine, or on Slurm's.
    library
        The MPI that mpi4py loads.
    srun_mpi
        --mpi of srun where ranks are started by srun, else "".
    ssh
        The remote shell.
    variables
        That the ranks are started with.
    train
        Arguments of distbp.train for the first start.
    again
        Its arguments for a restart, before the run's name.
    max_restarts, min_ranks
        At most so many restarts, none with fewer ranks.
    """

    ranks: int
    hosts: tuple[Host, ...]
    library: mpi.Library
    srun_mpi: str
    ssh: str
    variables: dict[str, str]
    train: tuple[str, ...]
    again: tuple[str, ...]
    max_restarts: int
    min_ranks: int

    @property
    def tag(self) -> str:
        """Who writes the rank before a line."""
        return "srun" if self.srun_mpi else self.library.family

    def command(self, counts: dict[Host, int], run: str, ssh: str) -> list[str]:
        """Return the command line of the first start, or of a restart of `run`."""
        program = ["-m", "distbp.train", *((*self.again, "--resume", run) if run else self.train)]
        if self.srun_mpi:
            return mpi.by_srun(self.srun_mpi, sum(counts.values()), program)
        return mpi.on_hosts(self.library, counts, ssh, program, self.variables | dict.fromkeys(marks.FOR_RANKS, ""))


HERE = Host("")


def counts_of(plan: Plan, hosts: Sequence[Host]) -> dict[Host, int]:
    """Return how many ranks to start where."""
    return spread(plan.ranks, hosts) if plan.hosts else {HERE: plan.ranks}


def say(text: str) -> None:
    """Tell something, on standard error."""
    with contextlib.suppress(OSError):
        print(f"distbp.launch: {text}", file=sys.stderr, flush=True)


class Keeper:
    """Keeps a run going; `keep` returns the exit code."""

    def __init__(self, plan: Plan, asked: Asked, quiet: bool) -> None:
        self.plan, self.asked, self.quiet = plan, asked, quiet
        self.shell = Shell(plan.ssh, mpi.passed(plan.variables))
        self.key = secrets.token_hex(8)
        self.run = ""  # the run's folder, once it is there
        self.restarts = 0
        self.furthest, self.stuck = -1, 0

    def keep(self) -> int:
        """Start, and start again, until there is an end."""
        hosts = list(self.plan.hosts)
        with tempfile.TemporaryDirectory(prefix="distbp-launch-") as folder:
            ssh = self._ssh(Path(folder))
            while True:
                counts = counts_of(self.plan, hosts)
                command = self.plan.command(counts, self.run, ssh)
                self._tell(counts, command)
                where = [host for host in counts if host.name]
                tag = mpi.RANK[self.plan.tag]
                outcome = Attempt(command, self.plan.variables, tag, where, self.shell, self.key).run(self.asked)
                self.run = outcome.run or self.run
                code = self._judge(outcome)
                if code is None:
                    found = self._recover(outcome)
                    code, hosts = (found, []) if isinstance(found, int) else (None, found)
                if code is not None:
                    return code

    def _ssh(self, folder: Path) -> str:
        """Return the remote shell for mpirun, "" for its own choice."""
        if not any(host.python for host in self.plan.hosts):
            return "" if self.plan.ssh == "ssh" else self.plan.ssh
        path = folder / "ssh"
        path.write_text(mpi.agent(self.plan.ssh, self.plan.hosts), encoding="utf-8")
        path.chmod(0o700)
        return str(path)

    def _tell(self, counts: dict[Host, int], command: Sequence[str]) -> None:
        """Say in one line what is run."""
        if self.quiet:
            return
        where = ", ".join(f"{host.name}:{count}" for host, count in counts.items() if host.name)
        where = f" on {where}" if where else " by srun" if self.plan.srun_mpi else ""
        ranks = sum(counts.values())
        say(f"{ranks} rank{'s' if ranks > 1 else ''}{where}, {self.plan.library.text}: {shlex.join(command)}")

    def _judge(self, outcome: Outcome) -> int | None:
        """Return the exit code if an attempt was the last, else None."""
        word = outcome.last_word
        if word and (word["code"] == DONE or (word["code"] == BAD_INPUT and not self.restarts)):
            return int(word["code"])  # later bad input is a lock that a lost host still holds, or files not yet mounted
        if word and word["code"] == FAILED and not word.get("again"):
            say("a restart would end the same way: not restarted")
            return FAILED
        if self.asked.at_once:
            return INTERRUPTED
        if self.asked.name:
            if not word and not self.run:
                say(f"stopped by {self.asked.name} before any step: start it again")
            elif not word:
                say(f"stopped by {self.asked.name}, without a checkpoint of this moment: {outcome.why}")
            return RESUMABLE
        return None

    def _recover(self, outcome: Outcome) -> list[Host] | int:
        """Return the hosts to go on with, or the exit code if the run cannot go on."""
        word = outcome.last_word
        if word and word["code"] == RESUMABLE and (os.environ.get("SLURM_JOB_ID") or not self._gone(outcome)):
            return RESUMABLE  # the ranks were asked to stop, not we; and no host has gone with its ranks
        why = outcome.why if not word else "a host left" if word["code"] == RESUMABLE else "the run failed, see above"
        if not outcome.lost and not (word and word["code"] == BAD_INPUT):
            further = outcome.step > self.furthest + 1
            self.furthest, self.stuck = max(outcome.step, self.furthest), 1 if further else self.stuck + 1
        if self.stuck >= STUCK:
            place = f"step {self.furthest:,}" if self.furthest >= 0 else "the start"
            say(f"{why}. Got no further than {place} in {STUCK} attempts: not restarted")
            return self._given_up()
        pause = min(PAUSE * 2 ** min(self.restarts, 10), LONGEST)
        while self.restarts < self.plan.max_restarts:
            self.restarts += 1
            say(f"{why}. Restart {self.restarts} of {self.plan.max_restarts} in {pause:g} s")
            end = time.monotonic() + pause
            while time.monotonic() < end:
                if self.asked.name:
                    return RESUMABLE
                time.sleep(0.1)
            if not self.plan.hosts:
                return []
            answers, silent = self.shell.alive(self.plan.hosts)
            for host, text in silent.items():
                say(f"without {host.name}: {text}")
            self.shell.sweep(answers, f"{marks.VARIABLE}={self.key}")  # a lost host that is back may still have ranks
            ranks = sum(spread(self.plan.ranks, list(answers)).values())
            if ranks >= self.plan.min_ranks:
                return list(answers)
            why = f"expected at least {self.plan.min_ranks} ranks (--min-ranks) on hosts that answer, got {ranks}"
            pause = min(2 * pause, LONGEST)
        say(f"{why}. {self.plan.max_restarts} restarts are used up (--max-restarts)")
        return self._given_up()

    def _gone(self, outcome: Outcome) -> bool:
        """Return whether a host has left."""
        return bool(outcome.lost) or bool(self.plan.hosts and self.shell.alive(self.plan.hosts)[1])

    def _given_up(self) -> int:
        if self.run:
            say(f"go on by hand with: -- --resume {self.run}")
        return FAILED
