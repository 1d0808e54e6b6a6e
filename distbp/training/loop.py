"""The loop: steps, validations, checkpoints and the end of a run, decided once for all ranks.

A run's position is one number, the step. At the top of the loop stands the state after `step` steps: first the epoch
that ends here is closed (journal, validation), then a checkpoint is taken if one is due, then the run ends or takes
the next step. What only rank 0 can know (the clock, the disk) and what each rank may be told (signals) rides as flags
in each step's message, so all ranks decide alike.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distbp.coordinator.coordinator import Coordinator
from distbp.descent.schedule import learning_rate
from distbp.parallel.replicas import check_replicas
from distbp.parallel.world import AgreedRuntimeError, World, error_text
from distbp.settings import Settings
from distbp.training.evaluation import Evaluation, Evaluator
from distbp.training.problem import Problem
from distbp.training.signals import StopFlag
from distbp.training.step import END, FAILED, SAVE, STOP, Stepper

Array = NDArray[Any]


@dataclass
class State:
    """Where a run stands, beside theta and the rule's state; the same on every rank.

    Attributes
    ----------
    step
        Steps taken.
    validated
        Step of the last validation; -1 before the first.
    best_step, best_cost, stale
        Of the lowest validation cost yet, and how many validations came since.
    epoch_cost, epoch_rows
        Sums over the steps since the epoch's start, or since the journal's last line.
    """

    step: int = 0
    validated: int = -1
    best_step: int = -1
    best_cost: float = float("inf")
    stale: int = 0
    epoch_cost: float = 0.0
    epoch_rows: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain values (infinity as null)."""
        return {**asdict(self), "best_cost": self.best_cost if self.best_step >= 0 else None}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> State:
        """Return the state that `to_json` gave."""
        best = values["best_cost"]
        return cls(**{**values, "best_cost": float("inf") if best is None else best})


class Loop:
    """Runs a problem from its state to its end.

    Parameters
    ----------
    about
        The plain values that every checkpoint carries beside the state.
    tensors
        The arrays that every checkpoint carries: theta, the rule's state, the scaling.
    saved
        Step of the checkpoint the run goes on from, -1 for none.
    """

    def __init__(
        self,
        world: World,
        settings: Settings,
        problem: Problem,
        stepper: Stepper,
        evaluator: Evaluator,
        coordinator: Coordinator,
        state: State,
        tensors: Mapping[str, Array],
        about: Mapping[str, Any],
        stop: StopFlag,
        saved: int = -1,
    ) -> None:
        self.world, self.settings, self.problem, self.stepper = world, settings, problem, stepper
        self.evaluator, self.coordinator, self.state, self.stop = evaluator, coordinator, state, stop
        self.tensors, self.about, self.saved = tensors, about, saved
        self.per_epoch = problem.batches.steps_per_epoch
        ends = [n for n in (settings.training.epochs * self.per_epoch, settings.training.steps) if n]
        self.last_step = min(ends, default=0)  # 0: unknown
        self._started = self._epoch_started = time.monotonic()
        self._rows = self._rows_before_epoch = 0.0  # since the start of this process
        self.best_at_end = False  # the last step is better than the best validated on the way

    @np.errstate(over="ignore", invalid="ignore")  # a cost or gradient that is not finite is found and told
    def run(self) -> str:
        """Train to the end; return why: epochs, steps, time limit, early stopping or signal. **Collective.**"""
        state, training = self.state, self.settings.training
        stop = end = False
        save = self.saved == state.step and self.validation_due()  # it was left while validating
        self.coordinator.progress.start(state.step, self.last_step, self.per_epoch)
        while True:
            improved = False
            evaluation = None
            if self.validation_due() and not stop:
                evaluation = self.validate()
                stop = evaluation is None
                improved = not stop and state.best_step == state.step and training.model == "best"
            if state.epoch_rows and state.step % self.per_epoch == 0 and not self.validation_due():
                self.close_epoch(evaluation)
                state.epoch_cost = state.epoch_rows = 0.0
            reason = self.limit_reached(end)
            if training.patience and state.stale >= training.patience:
                reason = reason or "early stopping"
            if save or stop or improved or (reason and self.saved != state.step):
                self.save(last=bool(stop or reason))
            if reason and not stop:
                stop = self.last_look()
            if stop:
                return "signal"
            if reason:
                return reason
            due, over, failed = self.coordinator.flags(state.step + 1, self.per_epoch)
            flags = STOP * bool(self.stop) | SAVE * due | END * over | FAILED * failed
            eta = learning_rate(self.settings.descent, state.step, self.per_epoch, self.last_step)
            totals = self.stepper.take(state.step, eta, flags)
            state.step += 1
            state.epoch_cost += totals.cost
            state.epoch_rows += totals.rows
            self._rows += totals.rows
            stop, save, end = (bool(totals.flags & flag) for flag in (STOP, SAVE, END))
            if totals.flags & FAILED:
                self.fail()
            if state.step % training.check_every == 0:
                self.check()
            self.tell(totals.cost / totals.rows)

    def last_look(self) -> bool:
        """Where a run ends between two validations, validate once more; return whether asked to stop. **Collective.**

        The state and the checkpoint are as if the run went on, so that one which does go on, does so unchanged.
        """
        state = self.state
        if not self.problem.validation or state.validated == state.step:
            return False
        evaluation = self.evaluator.evaluate(self.stepper.theta, self.problem.validation, self.stop)
        if not evaluation:
            return True
        self.best_at_end = evaluation.mean_cost < state.best_cost
        if state.epoch_rows:
            self.close_epoch(evaluation)
        return False

    def limit_reached(self, end: bool) -> str:
        """Return which limit the run has reached, "" for none."""
        training, step = self.settings.training, self.state.step
        if training.epochs and step >= training.epochs * self.per_epoch:
            return "epochs"
        if training.steps and step >= training.steps:
            return "steps"
        return "time limit" if end else ""

    def validation_due(self) -> bool:
        """Return whether the state after this step is still to be validated."""
        step, every = self.state.step, self.settings.training.validate_every * self.per_epoch
        return self.problem.validation is not None and step > 0 and step % every == 0 and self.state.validated < step

    def validate(self) -> Evaluation | None:
        """Evaluate the validation part and note whether it is the best yet; None if asked to stop. **Collective.**"""
        assert self.problem.validation
        evaluation = self.evaluator.evaluate(self.stepper.theta, self.problem.validation, self.stop)
        if evaluation:
            state = self.state
            state.validated, state.stale = state.step, state.stale + 1
            if evaluation.mean_cost < state.best_cost:
                state.best_step, state.best_cost, state.stale = state.step, evaluation.mean_cost, 0
        return evaluation

    def save(self, last: bool) -> None:
        """Check the replicas and take a checkpoint; after the last nothing changes any more. **Collective.**"""
        self.check()
        about = {**self.about, "kind": "checkpoint", "state": self.state.to_json()}
        self.coordinator.save(self.state.step, self.tensors, about, last)
        self.saved = self.state.step

    def check(self) -> None:
        """Compare the replicas. **Collective.**"""
        check_replicas(self.stepper.host, [self.stepper.theta, *self.stepper.rule.state.values()], self.state.step)

    def fail(self) -> None:
        """Raise what went wrong on rank 0's disk, on all ranks. **Collective.**"""
        text = self.world.from_rank_0(error_text(self.coordinator.failure))
        raise AgreedRuntimeError(f"step {self.state.step}: {text} Then go on with --resume.")

    def tell(self, mean_cost: float) -> None:
        """Show a step's cost."""
        passed = max(time.monotonic() - self._started, 1e-9)
        self.coordinator.progress.step(self.state.step, mean_cost, self._rows / passed)

    def close_epoch(self, evaluation: Evaluation | None) -> None:
        """Write the journal's line of the epoch that ends here, and show it. **Collective.**"""
        state, now = self.state, time.monotonic()
        seconds = self.world.exchange(self.stepper.compute_seconds)
        slowest = int(np.argmax(seconds))
        passed = max(now - self._epoch_started, 1e-9)
        entry: dict[str, Any] = {
            "step": state.step,
            "epoch": state.step / self.per_epoch,
            "cost": state.epoch_cost / state.epoch_rows,
            "learning_rate": learning_rate(self.settings.descent, state.step - 1, self.per_epoch, self.last_step),
            "validation": evaluation.to_json() if evaluation else None,
            "rows_per_s": round((self._rows - self._rows_before_epoch) / passed, 1),
            "seconds": round(passed, 4),
            "compute_s": {"median": round(float(np.median(seconds)), 4), "slowest": round(seconds[slowest], 4),
            "rank": slowest}, "time": round(time.time(), 3),
        }  # fmt: skip
        text = f"epoch {state.step // self.per_epoch:>3}  step {state.step:,}  cost {entry['cost']:.4g}"
        metrics = "".join(f"{name} {value:.4f} " for name, value in evaluation.metrics.items()) if evaluation else ""
        if evaluation:
            text += f"  validation cost {evaluation.mean_cost:.4g} {metrics[:-1]}"
        self.coordinator.journal(entry)
        self.coordinator.progress.epoch(
            state.step, f"{text}  {entry['rows_per_s']:,.0f} rows/s", metrics, bool(self.limit_reached(False))
        )
        self.stepper.compute_seconds = 0.0
        self._epoch_started, self._rows_before_epoch = time.monotonic(), self._rows
