"""What rank 0 decides and does beside its share of the work: when to save, saving, the journal, what is told."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from distbp.coordinator.checkpoints import Checkpoints
from distbp.coordinator.folder import RunFolder
from distbp.coordinator.progress import Progress
from distbp.settings import Settings

Array = NDArray[Any]


class Coordinator:
    """Rank 0's decisions and files.

    It never communicates. `folder` and `checkpoints` are None on all other ranks.
    """

    def __init__(
        self, settings: Settings, progress: Progress, folder: RunFolder | None, checkpoints: Checkpoints | None
    ) -> None:
        self.progress, self.folder, self.checkpoints = progress, folder, checkpoints
        count, self._unit = settings.checkpoint.every.split()
        self._every = float(count)
        self._minutes = settings.training.minutes
        self._started = self._saved = time.monotonic()
        self._failure: Exception | None = None

    @property
    def failure(self) -> Exception | None:
        """What went wrong while saving or writing the journal."""
        return self._failure or (self.checkpoints.failure if self.checkpoints else None)

    def flags(self, next_step: int, steps_per_epoch: int) -> tuple[bool, bool, bool]:
        """Return whether to save after the step to `next_step`, whether time is up, whether saving has failed."""
        if not self.folder:
            return False, False, False
        now = time.monotonic()
        if self._unit == "minutes":
            save = now - self._saved >= 60 * self._every
        else:
            save = next_step % int(self._every * (steps_per_epoch if self._unit == "epochs" else 1)) == 0
        end = bool(self._minutes) and now - self._started >= 60 * self._minutes
        return save, end, self.failure is not None

    def save(self, step: int, tensors: Mapping[str, Array], about: Mapping[str, Any], last: bool) -> None:
        """Take a checkpoint; the last one without a copy of the state."""
        if self.checkpoints:
            self._saved = time.monotonic()
            self.checkpoints.save(step, tensors, about, copy=not last)

    def journal(self, entry: dict[str, Any]) -> None:
        """Write a line of the journal."""
        if self.folder:
            try:
                self.folder.journal(entry)
            except OSError as error:
                self._failure = self._failure or error
