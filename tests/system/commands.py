"""Whole commands in processes of their own: started, watched, killed, with a time limit that ends all they started.

Nothing here knows how distbp works inside; a run is known by its exit code, its two outputs and its folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

LIMIT = 60.0  # seconds for one command
RUNNING = Path(__file__).parents[2] / "docs" / "running.md"
RANK = ("PMI_RANK", "OMPI_COMM_WORLD_RANK")

# A network that trains at once, and one run that never ends by itself.
SMALL = (
    *[
        "--data.source",
        "synthetic",
        "--data.rows",
        "400",
        "--data.features",
        "8",
        "--data.outputs",
        "3",
        "--network.widths",
        "8",
    ],
    *["--training.epochs", "3"],
)
LONG = (
    *[
        "--data.source",
        "synthetic",
        "--data.rows",
        "1000",
        "--data.features",
        "16",
        "--data.outputs",
        "4",
        "--network.widths",
        "32,16",
    ],
    *["--network.dropout", "0.1", "--descent.learning_rate", "0.01", "--training.epochs", "1000000"],
)

# A driver: the real command, with one function changed. {code} runs before each step with self, step, rank.
STEP_DRIVER = """\
import os, signal, sys
import numpy as np
from distbp import command, train
from distbp.training.step import Stepper

take = Stepper.take

def changed(self, step, eta, flags):
    rank = self.world.rank
    {code}
    return take(self, step, eta, flags)

Stepper.take = changed
sys.exit(command.run(train.train_command))
"""


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str


def mpirun(ranks: int, python: str = sys.executable) -> list[str]:
    """Return the start of a command line for the MPI of a Python's environment, or of this machine."""
    beside = Path(python).with_name("mpirun")
    program = str(beside) if beside.exists() else shutil.which("mpirun")
    assert program, "the system tests need an mpirun beside this Python, or in PATH"
    command = [program, "-n", str(ranks)]
    if is_open_mpi(program):
        command += ["--bind-to", "none", "--map-by", ":OVERSUBSCRIBE"]
    return command


def is_open_mpi(program: str = "") -> bool:
    """Return whether mpirun is Open MPI's."""
    command = [program or mpirun(1)[0], "--version"]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=LIMIT).stdout.lower()
    return "open mpi" in text or "openrte" in text


def commands_of(text: str) -> list[str]:
    """Return the commands in a text like docs/running.md: indented lines, and those of the table of shortest paths."""
    lines = re.findall(r"^ {4}((?:python|mpirun|docker|sbatch|scancel|kubectl) .*)$", text, re.MULTILINE)
    lines += re.findall(r"^\| [^|]* \| `([^`]*)` \| [^|]* \|$", text, re.MULTILINE)
    return sorted({re.sub(r"\s+#.*", "", line).strip() for line in lines})


def documented(command: str, changes: Mapping[str, str] | None = None) -> list[str]:
    """Return the words of a command that docs/running.md tells users to run, some of them exchanged."""
    assert command in commands_of(RUNNING.read_text()), f"docs/running.md: {command}"
    return [(changes or {}).get(word, word) for word in shlex.split(command)]


def wait_for(event: Callable[[], Any], what: str, limit: float = LIMIT) -> Any:
    """Look again and again until `event` gives something true; return it."""
    end = time.monotonic() + limit
    while not (found := event()):
        assert time.monotonic() < end, f"waited {limit:g} s for {what}"
        time.sleep(0.002)
    return found


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and theirs."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, ahead = [], [pid]
    while ahead:
        more = children.get(ahead.pop(), [])
        found += more
        ahead += more
    return found


def alive(pid: int) -> bool:
    """Return whether a process is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Process:
    """A command that goes on; its outputs are files, so that it never waits for a reader."""

    def __init__(self, command: list[str], cwd: Path, env: Mapping[str, str | None] | None = None, **options: Any):
        merged = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", **(env or {})}
        self._files = [tempfile.TemporaryFile(), tempfile.TemporaryFile()]  # noqa: SIM115  closed by `end`
        options = {"stdin": subprocess.DEVNULL, "stdout": self._files[0], "stderr": self._files[1], **options}
        self.popen = subprocess.Popen(
            command, cwd=cwd, env={k: v for k, v in merged.items() if v is not None}, start_new_session=True, **options
        )
        self.pid = self.popen.pid

    def text(self, stream: int = 0) -> str:
        """Return what was written so far, to standard output (0) or standard error (1)."""
        file = self._files[stream]
        return os.pread(file.fileno(), 1 << 24, 0).decode()

    def ranks(self) -> dict[int, int]:
        """Return the process of each rank."""
        found = {}
        for pid in descendants(self.pid):
            try:
                environ = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
                program = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[0]
            except OSError:
                continue
            for entry in environ:
                name, _, value = entry.partition("=")
                if name in RANK and "python" in program:
                    found[int(value)] = pid
        return found

    def wait(self, limit: float = LIMIT) -> Done:
        """Wait for the end; past the limit kill everything and fail."""
        try:
            code = self.popen.wait(limit)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running after {limit:g} s\n{self.text(0)}\n{self.text(1)}") from None
        return Done(code, self.text(0), self.text(1))

    def kill(self) -> None:
        """Kill the command and all it started."""
        for pid in [*descendants(self.pid), self.pid] if self.popen.poll() is None else []:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.popen.wait()

    def end(self) -> None:
        """Kill the command if it still runs, and forget its outputs."""
        self.kill()
        for file in self._files:
            file.close()


class Place:
    """A working folder in which commands are run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started: list[Process] = []

    def start(
        self,
        *arguments: object,
        ranks: int | None = None,
        command: str = "train",
        driver: str = "",
        env: Mapping[str, str | None] | None = None,
        **options: Any,
    ) -> Process:
        """Start ``python -m distbp.COMMAND``, or a driver's text, alone or on some ranks."""
        program = ["-m", f"distbp.{command}"]
        if driver:
            script = self.path / f"driver{len(self.started)}.py"
            script.write_text(driver)
            program = [str(script)]
        line = [*(mpirun(ranks) if ranks else []), sys.executable, *program, *map(str, arguments)]
        self.started.append(Process(line, self.path, env, **options))
        return self.started[-1]

    def run(self, *arguments: object, limit: float = LIMIT, **options: Any) -> Done:
        """Start a command, as `start` does, and wait for its end."""
        return self.start(*arguments, **options).wait(limit)

    def folder(self, name: str) -> Path:
        """Return a run's folder."""
        return self.path / "runs" / name

    def journal(self, name: str) -> list[dict[str, Any]]:
        """Return the whole lines of a run's journal; none before it is there."""
        path = self.folder(name) / "journal.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def checkpoints(self, name: str) -> list[Path]:
        """Return a run's checkpoints, oldest first."""
        return sorted((self.folder(name) / "checkpoints").glob("step-*.safetensors"))

    def last_step(self, name: str) -> int:
        """Return the step of a run's newest checkpoint, 0 if it has none."""
        return int(self.checkpoints(name)[-1].stem[5:]) if self.checkpoints(name) else 0

    def hashes(self, name: str) -> dict[str, str]:
        """Return the SHA-256 of a run's model and last checkpoint, by file name."""
        return {
            path.name: sha256(path) for path in (*self.checkpoints(name)[-1:], self.folder(name) / "model.safetensors")
        }

    def all_hashes(self, name: str) -> dict[str, str]:
        """Return the SHA-256 of a run's model and every checkpoint, by file name."""
        return {path.name: sha256(path) for path in (*self.checkpoints(name), self.folder(name) / "model.safetensors")}

    def leftovers(self, name: str) -> list[str]:
        """Return the names of half-written files in a run's folder."""
        places = (self.folder(name), self.folder(name) / "checkpoints")
        return [path.name for place in places for path in [*place.glob(".unfinished*"), *place.glob(".tmp*")]]


def sha256(path: Path) -> str:
    """Return a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def about(path: Path) -> dict[str, Any]:
    """Return the plain values of a checkpoint or model, read without distbp."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    found: dict[str, Any] = json.loads(header["__metadata__"]["distbp"])
    return found


def places(parent: Path) -> Iterator[Place]:
    """Yield a place; at the end kill what still runs there."""
    place = Place(parent)
    yield place
    for process in place.started:
        process.end()
