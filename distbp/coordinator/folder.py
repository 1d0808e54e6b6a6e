"""A run's folder: made once, locked while a process trains into it, and the texts in it.

    settings.toml    as resolved            journal.jsonl     one line an epoch
    run.json         all that may differ    checkpoints/      states to go on from
    .lock            held by the process    model.safetensors the result

The lock is the kernel's (flock), so it goes with its process, however that ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, TextIO

from distbp.coordinator import files


class RunFolder:
    """The folder of a run that this process trains into; a context manager that holds its lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = -1
        self._journal: TextIO | None = None

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The result."""
        return self.path / "model.safetensors"

    @classmethod
    def create(cls, path: Path, settings: str) -> RunFolder:
        """Make the folder of a new run, with its settings.toml, and lock it: it is there with both, or not at all.

        Raises
        ------
        ValueError
            There is such a folder already, or none can be made there.
        """
        refuse_existing(path)
        beside = None
        try:
            if path.parent.is_file():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = Path(tempfile.mkdtemp(prefix=f"{files.UNFINISHED}{path.name}-", dir=path.parent))
            (beside / "checkpoints").mkdir()
            beside.chmod((beside / "checkpoints").stat().st_mode)  # as the user's umask has it
            files.write_text(beside / "settings.toml", settings)
            folder = cls(beside)._locked()
            beside.rename(path)
        except OSError as error:
            if beside:
                shutil.rmtree(beside, ignore_errors=True)
            refuse_existing(path)
            raise ValueError(
                f"{path}: expected to make a folder for the run, got: {error.strerror}. Choose --runs elsewhere."
            ) from None
        folder.path = path
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Lock the folder of a run that is to go on, and clear away half-written files.

        Raises
        ------
        ValueError
            It is no run's folder, or another process trains into it.
        """
        if not (path / "settings.toml").is_file():
            raise ValueError(
                f"{path}: expected the folder of a run, got none with a settings.toml. Check --resume and --runs."
            )
        folder = cls(path)._locked()
        with contextlib.suppress(OSError):
            folder.checkpoints.mkdir(exist_ok=True)
            for pattern in (f"{files.UNFINISHED}*", ".tmp*"):
                for place in (path, folder.checkpoints):
                    for left in place.glob(pattern):
                        left.unlink()
        return folder

    def _locked(self) -> RunFolder:
        try:
            self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 200, 0).decode(errors="replace")
            os.close(self._lock)
            raise ValueError(
                f"{self.path}: expected no other process to train into it, got one: {holder}. "
                "Wait for it or stop it, or choose another --name."
            ) from None
        except OSError as error:
            raise ValueError(
                f"{self.path}: expected a folder to write to, got: {error.strerror}. "
                "Check its permissions and the disk."
            ) from None
        with contextlib.suppress(OSError):
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)
        return self

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._journal:
            with contextlib.suppress(OSError):
                self._journal.close()
        os.close(self._lock)

    def start_journal(self, step: int) -> None:
        """Open the journal, dropping lines of later steps and a torn last line: those steps will be taken again."""
        path = self.path / "journal.jsonl"
        lines = []
        for line in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                if json.loads(line)["step"] <= step:
                    lines.append(line + "\n")
        files.write_text(path, "".join(lines))
        self._journal = open(path, "a", encoding="utf-8")  # noqa: SIM115  closed with the folder

    def journal(self, entry: dict[str, Any]) -> None:
        """Append one line."""
        assert self._journal
        try:
            self._journal.write(json.dumps(entry) + "\n")
            self._journal.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._journal.name) from error

    def write_run(self, entry: dict[str, Any]) -> None:
        """Write run.json: `entry` becomes the last of its ``sessions``, one for each start of the run."""
        before = [s for s in self.sessions() if s.get("start") != entry["start"]]
        files.write_text(self.path / "run.json", json.dumps({"sessions": [*before, entry]}, indent=2) + "\n")

    def sessions(self) -> list[dict[str, Any]]:
        """Return the sessions in run.json; none if it is not there or damaged."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            sessions = json.loads((self.path / "run.json").read_text(encoding="utf-8"))["sessions"]
            return [s for s in sessions if isinstance(s, dict)]
        return []


def refuse_existing(path: Path) -> None:
    """Raise ValueError, naming the two choices, if the folder of a new run is there already."""
    if os.path.lexists(path):
        if not any(path.glob("checkpoints/step-*")):
            raise ValueError(
                f"{path}: expected a new run's name, got a folder that exists, with no checkpoint in it. "
                "Remove it, or choose another --name."
            )
        raise ValueError(
            f"{path}: expected a new run's name, got a folder that exists. "
            f"Continue that run with --resume {path.name}, or choose another --name."
        )
