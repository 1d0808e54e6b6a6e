"""One attempt: mpirun started, its lines passed on, the hosts watched, and an end within a bounded time.

What came of it is known by the run's own last word (`distbp.marks`), never by mpirun's exit code.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from distbp import marks
from distbp.launching.hosts import Host, Shell
from distbp.launching.watch import Watch

REMIND = 2.0  # seconds after which ranks that were asked to stop are asked again: they may not have listened yet
ASKS_TO_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
GRACE = 2.0  # seconds between SIGTERM to mpirun and SIGKILL
LEAVE = 20.0  # seconds that mpirun may take to end after the run's last word


@dataclass
class Outcome:
    """What came of an attempt.

    Attributes
    ----------
    last_word
        What rank 0 said last (code, again), None if it said nothing.
    run
        The run's folder, "" if it was not made.
    step
        The furthest step that was told of, -1 for none.
    why
        What ended it, for people, where there was no last word.
    lost
        Names of hosts that no longer answered.
    """

    last_word: dict[str, Any] | None = None
    run: str = ""
    step: int = -1
    why: str = ""
    lost: list[str] = field(default_factory=list)


class Asked:
    """Whether the launcher was asked to stop (SIGTERM, SIGINT, SIGUSR1, SIGHUP), and how urgently."""

    def __init__(self) -> None:
        self.name = ""  # of the first signal
        self.at_once = False  # a second Ctrl-C
        for number in ASKS_TO_STOP:
            if (number, signal.getsignal(number)) != (signal.SIGHUP, signal.SIG_IGN):  # as under nohup
                signal.signal(number, self._note)

    def ignore(self) -> None:
        """Ignore the signals for good: the process is about to leave with its code, and Python makes them deadly."""
        for number in ASKS_TO_STOP:
            signal.signal(number, signal.SIG_IGN)

    def _note(self, number: int, frame: object) -> None:
        self.at_once = self.at_once or (number == signal.SIGINT and self.name == "SIGINT")
        self.name = self.name or signal.Signals(number).name


class Attempt:
    """Starts ranks and stays with them until all have ended."""

    def __init__(
        self,
        command: Sequence[str],
        variables: dict[str, str],
        tag: re.Pattern[str],
        hosts: Iterable[Host],
        shell: Shell,
        key: str,
    ) -> None:
        self.command, self.tag, self.hosts, self.shell = list(command), tag, list(hosts), shell
        self.key = key  # of the launcher's marks
        self.variables = variables
        self.outcome = Outcome()
        self._events: queue.SimpleQueue[None] = queue.SimpleQueue()  # wakes the main thread
        self._ended = 0.0  # when the last word came

    def run(self, asked: Asked) -> Outcome:
        """Start the ranks, and return when nothing of them is left on any host that answers."""
        with tempfile.NamedTemporaryFile(prefix="distbp-step-") as step:
            step.write(marks.to_bytes(-1))
            step.flush()
            self._run(asked, self.variables | {marks.VARIABLE: self.key, marks.STEP_FILE: step.name})
            step.seek(0)
            self.outcome.step = max(self.outcome.step, marks.from_bytes(step.read(8)))
        return self.outcome

    def _run(self, asked: Asked, variables: dict[str, str]) -> None:
        process = subprocess.Popen(
            self.command, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        readers = []
        for source, sink in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            assert source
            readers.append(threading.Thread(target=self._pass_on, args=(source, sink), daemon=True))
            readers[-1].start()
        try:
            with Watch(self.shell.ssh, self.hosts, lambda: self._events.put(None)) as watch:
                self._wait(process, asked, watch)
        finally:
            self._end(process)
            for reader in readers:
                reader.join(1.0)  # a rank that cannot be reached may hold the pipe

    def _wait(self, process: subprocess.Popen[str], asked: Asked, watch: Watch) -> None:
        """Return when mpirun has ended, or has to be ended."""
        reminded = 0.0
        while process.poll() is None:
            with contextlib.suppress(queue.Empty):
                self._events.get(timeout=0.1)
            now = time.monotonic()
            if asked.name and now - reminded > REMIND and not self._ended:
                reminded = now
                process.send_signal(signal.SIGUSR1)  # Open MPI's mpirun kills its ranks soon after SIGTERM
            if asked.at_once:
                self.outcome.why = "interrupted twice"
                return
            if watch.lost:
                self.outcome.lost = list(watch.lost)
                self.outcome.why = f"{', '.join(watch.lost)} no longer answers"
                return
            if self._ended and now - self._ended > LEAVE:
                return
        ending = _ending(Path(self.command[0]).name, process.returncode)
        self.outcome.why = f"the ranks ended without a last word ({ending})"

    def _pass_on(self, source: IO[str], sink: IO[str]) -> None:
        """Pass lines on, with the rank before those of ranks other than 0; take the marks out."""
        for line in source:
            tag = self.tag.match(line)
            text = line[tag.end() :] if tag else line
            text, told = marks.read(text, self.key)
            if told is not None:
                self._note(told)
            if not text:
                continue
            before = f"rank {tag[1]}: " if tag and tag[1] != "0" else ""
            try:
                sink.write(before + text)
                sink.flush()
            except (OSError, ValueError):  # nobody listens any more: the run goes on
                with contextlib.suppress(OSError, ValueError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sink.fileno())

    def _note(self, told: dict[str, Any]) -> None:
        self.outcome.run = told.get("run", self.outcome.run)
        self.outcome.step = max(told.get("step", -1), self.outcome.step)
        if "code" in told:
            self.outcome.last_word, self._ended = told, time.monotonic()
            self._events.put(None)

    def _end(self, process: subprocess.Popen[str]) -> None:
        """End mpirun and every rank that is left."""
        if process.poll() is None:
            process.terminate()  # srun ends its tasks on all nodes then
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        answering = [host for host in self.hosts if host.name not in self.outcome.lost]
        self.shell.sweep(answering, f"{marks.VARIABLE}={self.key}")


def _ending(program: str, code: int) -> str:
    """Return how a program ended."""
    return f"{program}'s exit code was {code}" if code >= 0 else f"{program} was ended by {signal.Signals(-code).name}"
