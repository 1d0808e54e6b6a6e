"""What rank 0 says while a run goes on: a bar on a terminal, plain lines elsewhere, and nothing at all on other ranks.

Standard output may be closed at any time (``| head -1``): the run goes on without it, and says so once on standard
error.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from distbp.marks import VARIABLE, StepFile, mark

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

LINES = 20  # about as many lines are written about epochs, and one more whenever the last is QUIET seconds old
QUIET = 10.0  # seconds
NO_TERMINAL = {VARIABLE, "OMPI_COMM_WORLD_SIZE"}  # Open MPI gives rank 0 a terminal, whatever its own output is


class Progress:
    """Tells of a run's start, steps, epochs and end.

    Parameters
    ----------
    rank_0
        False: nothing is said.
    quiet
        Only warnings are said.
    """

    def __init__(self, rank_0: bool, quiet: bool = False) -> None:
        self.rank_0 = rank_0
        self.speaks = rank_0 and not quiet
        self._bar: Bar | None = None
        self._said = self._drawn = time.monotonic()
        self._marked = 0.0
        self._step_file = StepFile() if rank_0 else None
        self._metric = ""  # of the last validation, for the bar
        self._first_step, self._started = 0, 0.0
        self._last_step = self._steps_per_epoch = 0

    def say(self, text: str) -> None:
        """Write a line."""
        if self.speaks and self._bar:
            self._draw(self._bar.console.print, text, highlight=False, markup=False, soft_wrap=True)
        elif self.speaks:
            self._draw(print, text, flush=True)

    def _draw(self, show: Callable[..., object], *what: Any, **how: Any) -> None:
        """Show something; if standard output has gone, say so once and be silent from then on."""
        try:
            show(*what, **how)
        except OSError:
            self.speaks, self._bar = False, None
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to fail at exit
            self.warn("standard output is closed; the run goes on without it.")

    def warn(self, text: str) -> None:
        """Write a line on standard error that is wanted even where little else is."""
        if self.rank_0:
            with contextlib.suppress(OSError):
                print(f"distbp: {text}", file=sys.stderr, flush=True)

    def start(self, step: int, last_step: int, steps_per_epoch: int) -> None:
        """Begin at `step`; `last_step` 0 means unknown."""
        self._first_step, self._started = step, time.monotonic()
        self._last_step, self._steps_per_epoch = last_step, steps_per_epoch
        if self.speaks and sys.stdout.isatty() and not NO_TERMINAL & os.environ.keys():
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"),
                TimeRemainingColumn(), transient=True, auto_refresh=False,
                redirect_stdout=False, redirect_stderr=False,
            )  # fmt: skip
            self._bar.add_task("", total=last_step or None, completed=step)
            self._draw(self._bar.start)

    def step(self, step: int, mean_cost: float, rows_per_second: float) -> None:
        """Tell of a step, a few times a second at most."""
        if self._step_file:
            self._step_file.write(step)
        now = time.monotonic()
        if self.rank_0 and now - self._marked > 1.0:
            self._marked = now
            mark(step=step)
        if not self.speaks:
            return
        if self._bar and now - self._drawn > 0.1:
            self._drawn = now
            text = f"cost {mean_cost:.4g}  {self._metric}{rows_per_second:,.0f} rows/s"
            self._draw(self._bar.update, self._bar.task_ids[0], completed=step, description=text, refresh=True)
        elif not self._bar and now - self._said > QUIET:
            self._said = now
            self.say(f"step {step:,}  cost {mean_cost:.4g}  {rows_per_second:,.0f} rows/s{self._left(step)}")

    def epoch(self, step: int, text: str, metric: str, last: bool) -> None:
        """Tell of an epoch that ended at `step`: one in so many, the last, and any after a long silence."""
        self._metric = metric
        epochs = self._last_step // self._steps_per_epoch
        every = -(-epochs // LINES) or 1
        if last or step // self._steps_per_epoch % every == 0 or time.monotonic() - self._said > QUIET:
            self._said = time.monotonic()
            self.say(text + ("" if self._bar else self._left(step)))

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar:
            self._draw(self._bar.stop)
            self._bar = None

    def _left(self, step: int) -> str:
        if not self._last_step or step <= self._first_step:
            return ""
        each = (time.monotonic() - self._started) / (step - self._first_step)
        minutes, seconds = divmod(round(each * (self._last_step - step)), 60)
        return f"  {minutes // 60}:{minutes % 60:02d}:{seconds:02d} left"
