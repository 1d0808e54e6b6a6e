"""Signals that ask a run to stop: a flag that the loop looks at, never an exception in the middle of a step.

SIGTERM, SIGINT and SIGUSR1 mean "write a checkpoint after this step and leave" (Open MPI's mpirun kills its ranks soon
after SIGTERM, so SIGUSR1 is the one to send through it). The flag of every rank rides in each step's message, so it is
enough that one rank is told.
"""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType

ASKS_TO_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopFlag:
    """Whether this process has been asked to stop; a context manager that listens, and puts back what was there."""

    def __init__(self) -> None:
        self.name = ""  # of the first signal that came
        self._before: list[object] = []

    def __bool__(self) -> bool:
        return bool(self.name)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = self.name or signal.Signals(number).name

    def listen(self) -> StopFlag:
        """Take the three signals from now on, where this is the main thread."""
        if threading.current_thread() is threading.main_thread() and not self._before:
            self._before = [signal.signal(number, self._note) for number in ASKS_TO_STOP]
        return self

    def ignore(self) -> None:
        """Ignore the three signals for good: the process is about to leave, and Python would make them deadly again."""
        signal.pthread_sigmask(signal.SIG_BLOCK, ASKS_TO_STOP)  # this thread takes none while its handler is changed
        # Another thread may: Python then finds a signal whose handler is gone, and would print a traceback.
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        for number in ASKS_TO_STOP:
            signal.signal(number, signal.SIG_IGN)
        sys.unraisablehook = hook

    def __enter__(self) -> StopFlag:
        return self.listen()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in zip(ASKS_TO_STOP, self._before, strict=False):
            signal.signal(number, before)  # type: ignore[arg-type]
        self._before = []
