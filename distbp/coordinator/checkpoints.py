"""Checkpoints of a run: written by a thread while training goes on, the last few and the best kept.

Training stops for the copy of the state, and no longer unless the disk cannot keep up: copies that wait to be written
are held up to a bound, then `save` waits. A failed write is kept in `failure` until the loop asks for it and stops
all ranks together.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from distbp.coordinator import files

Array = NDArray[Any]
Loaded = tuple[Path, dict[str, Array], dict[str, Any]]  # file, tensors, plain values
WAITING = 1 << 26  # bytes of copies that may wait before `save` does


def name_of(step: int) -> str:
    """Return the file name of the checkpoint after `step` steps."""
    return f"step-{step:08d}.safetensors"


def step_of(path: Path) -> int:
    """Return the step in a checkpoint's file name."""
    return int(path.stem.removeprefix("step-"))


def listed(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, oldest first."""
    return sorted((p for p in folder.glob("step-*.safetensors") if p.stem[5:].isdigit()), key=step_of)


def newest_good(folder: Path, fits: Callable[[dict[str, Any]], str], say: Callable[[str], None]) -> Loaded | None:
    """Return the newest whole checkpoint that fits the run, naming each that is not; None if there is none at all.

    Parameters
    ----------
    fits
        Returns "" for the plain values of a checkpoint of this run, else what is wrong with it.

    Raises
    ------
    ValueError
        One is of a newer format.
    RuntimeError
        There are checkpoints, and none of them can be used.
    """
    found = listed(folder)
    for path in reversed(found):
        try:
            tensors, about = files.read(path)
            wrong = fits(about)
        except files.NewerFormatError:
            raise  # an older one would silently lose work
        except (files.DamagedFileError, ValueError) as error:
            wrong = str(error)
        if not wrong:
            return path, tensors, about
        wrong = wrong if wrong.startswith(str(path)) else f"{path}: {wrong}"
        say(f"skipped: {wrong}")
    if found:
        raise RuntimeError(
            f"{folder}: expected one good checkpoint, got {len(found)} that cannot be used. "
            "Restore one from a copy, or start a new run."
        )
    return None


class Checkpoints:
    """Writes a run's checkpoints. A context manager: leaving it waits for the last write.

    Parameters
    ----------
    folder
        The run's ``checkpoints``.
    keep
        Newest ones kept, beside the best that each of them knows of.
    step
        Where the run goes on from: files of later steps are not its own, and left alone.
    """

    def __init__(self, folder: Path, keep: int, step: int = 0) -> None:
        self.folder, self.keep = folder, keep
        self.failure: Exception | None = None
        self._best = {  # of each own file: step -> the best step it knows of
            step_of(path): files.best_step(path) for path in listed(folder) if step_of(path) <= step
        }
        self._queue: deque[tuple[int, dict[str, Array], Mapping[str, Any]]] = deque()
        self._changed = threading.Condition()
        self._busy = self._closing = False
        self._thread = threading.Thread(target=self._write_all, name="checkpoints", daemon=True)
        self._thread.start()

    def save(self, step: int, tensors: Mapping[str, Array], about: Mapping[str, Any], copy: bool = True) -> None:
        """Take a copy of the state after `step` steps, to be written soon. **Local.**

        Without `copy`, the arrays stay as they are until `flush`.
        """
        size = sum(array.nbytes for array in tensors.values())
        with self._changed:
            self._changed.wait_for(lambda: size * len(self._queue) <= WAITING or not self._queue or self.failure)
            taken = {name: array.copy() if copy else array for name, array in tensors.items()}
            self._queue.append((step, taken, about))
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all that was saved is on disk.

        Raises
        ------
        Exception
            A write failed; the checkpoints before it are whole.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.failure or not (self._queue or self._busy))
        if self.failure:
            raise self.failure

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                if not self._queue or self.failure:
                    return
                step, tensors, about = self._queue.popleft()
                self._busy = True
                self._changed.notify_all()
            try:
                files.write(self.folder / name_of(step), tensors, about)
                self._tidy(step, about)
            except Exception as error:  # whatever it is, the loop must learn of it
                self.failure = error
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _tidy(self, step: int, about: Mapping[str, Any]) -> None:
        """Remove what is neither among the newest nor the best that one of them knows of."""
        self._best[step] = about["state"]["best_step"]
        newest = sorted(self._best)[-self.keep :]
        kept = {*newest, *(self._best[s] for s in newest)}
        for old in self._best.keys() - kept:
            with contextlib.suppress(OSError):
                (self.folder / name_of(old)).unlink(missing_ok=True)
        self._best = {s: best for s, best in self._best.items() if s in kept}
