"""A run from its settings to its model: set-up, the loop, the result. The command and the API both come here."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl
from numpy.typing import NDArray

from distbp.coordinator import files
from distbp.coordinator.checkpoints import Checkpoints, Loaded, name_of, newest_good
from distbp.coordinator.coordinator import Coordinator
from distbp.coordinator.environment import differences, disagreement, environment
from distbp.coordinator.folder import RunFolder
from distbp.coordinator.progress import Progress
from distbp.descent.rules import STATE, Rule
from distbp.marks import mark
from distbp.network.initial import initial_theta
from distbp.parallel.host import open_host
from distbp.parallel.world import AgreedValueError, World, error_text, open_world
from distbp.settings import Settings
from distbp.training.crew import expected, threads_of_a_rank
from distbp.training.evaluation import Evaluation, Evaluator
from distbp.training.loop import Loop, State
from distbp.training.model import Model
from distbp.training.problem import Arrays, Problem, initial_kind, load
from distbp.training.signals import StopFlag
from distbp.training.start import settle
from distbp.training.step import Stepper
from distbp.training.tiles import shapes
from distbp.training.workspace import Workspace

Array = NDArray[Any]


@dataclass(frozen=True)
class Result:
    """How a run ended; the same on every rank.

    Attributes
    ----------
    folder
        The run's folder.
    reason
        epochs, steps, time limit, early stopping; or signal: then the run can go on, and there is no model yet.
    step, model_step
        Steps taken, and the step whose parameters are the model's.
    validation, test
        Of the model; None for a part that is not there.
    model
        The model, None after a signal.
    sha256
        Of model.safetensors, "" after a signal.
    """

    folder: Path
    reason: str
    step: int
    model_step: int
    validation: Evaluation | None
    test: Evaluation | None
    model: Model | None
    sha256: str


def train(
    settings: Settings | str | Path | None = None,
    *,
    arrays: Arrays | None = None,
    name: str | None = None,
    runs: str | Path = "runs",
    resume: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    quiet: bool = False,
    stop: StopFlag | None = None,
) -> Result:
    """Train a network, alone or on all ranks of an MPI job. **Collective over all ranks.**

    Parameters
    ----------
    settings
        What the run is, or the path of a TOML file that says it; the defaults train on the bundled digits. Not together
        with `resume`.
    arrays
        x, (rows, features), and y, (rows,) or (rows, outputs), in place of `data.source`; the same on every rank, and
        given again with `resume`.
    name, runs
        The run's folder is ``runs/name``; by default the source and the time.
    resume
        A run (name in `runs`, or folder) to go on with, from its newest good checkpoint.
    overrides
        ``{"section.key": value}`` on top of the settings; for a resumed run only what says how long and how often.
    quiet
        Print nothing.
    stop
        A flag that listens to SIGTERM, SIGINT and SIGUSR1 from now on, for good; by default one that does so until the
        end of this call.

    Raises
    ------
    ValueError
        Wrong settings or data, on every rank.
    RuntimeError
        The run failed, on every rank; its checkpoints can be resumed. Where one rank alone fails, all ranks are ended.
    """
    started = time.time()
    world = open_world()
    if arrays is not None:
        overrides = {**(overrides or {}), "data.source": "memory"}
    with contextlib.ExitStack() as stack, world.guarded():
        stop = stack.enter_context(StopFlag()) if stop is None else stop.listen()
        progress = Progress(world.rank == 0, quiet)
        stack.callback(progress.stop)
        with world.together():
            settled = settle(settings, name, Path(runs), resume, overrides, world.size) if world.rank == 0 else None
        told = world.from_rank_0([str(settled[0]), settled[1].model_dump(mode="json")] if settled else None)
        path, settings = Path(told[0]), Settings.model_validate(told[1])  # rank 0's clock and files count
        stack.enter_context(threadpoolctl.threadpool_limits(settings.training.blas_threads, "blas"))
        folder = None
        if resume:
            with world.together():
                folder = RunFolder.open(path) if world.rank == 0 else None
            stack.enter_context(folder or contextlib.nullcontext())
        session: dict[str, Any] = {
            "start": round(started, 3),
            **world.describe(),
            **environment(),
            "end": None,
            "exit": None,
        }
        of_ranks = world.exchange({**environment(), "host": os.uname().nodename})
        if wrong := disagreement(of_ranks):
            raise AgreedValueError(wrong)
        pythons = {rank["python"]: rank["host"] for rank in of_ranks}
        if len(pythons) > 1:
            told = ", ".join(f"{python} on {host}" for python, host in pythons.items())
            progress.warn(f"not one Python on all hosts ({told}): no bit depends on it")
        _greet(world, session, settings, progress)
        problem = load(settings, world, progress.say, stop, arrays)
        if not resume:
            with world.together():
                folder = RunFolder.create(path, settings.to_toml()) if world.rank == 0 else None
            stack.enter_context(folder or contextlib.nullcontext())
            if folder:
                mark(run=str(path))
        run = _Run(world, settings, problem, folder, progress, stop, stack)
        try:
            run.restore(bool(resume), session)
            result = run.to_the_end()
            run.host.close()
        except BaseException as error:
            if folder:
                with contextlib.suppress(OSError):
                    session |= {"end": round(time.time(), 3), "exit": f"{type(error).__name__}: {error}"}
                    folder.write_run(session)
            raise
        with world.together():
            if folder:
                folder.write_run({**session, "end": round(time.time(), 3), "exit": result.reason})
        return result


class _Run:
    """The parts of one run, put together."""

    def __init__(
        self,
        world: World,
        settings: Settings,
        problem: Problem,
        folder: RunFolder | None,
        progress: Progress,
        stop: StopFlag,
        stack: contextlib.ExitStack,
    ) -> None:
        self.world, self.settings, self.problem, self.folder = world, settings, problem, folder
        self.progress, self.stop = progress, stop
        network = problem.network
        progress.say(_describe(settings, problem))
        names = STATE[settings.descent.rule]
        training = settings.training
        self.host, self.memory = open_host(
            world, training.shared_memory, threads_of_a_rank(settings, problem, world), training.overlap,
            partial(shapes, network, problem.batches, names), progress.warn,
        )  # fmt: skip
        for line in expected(settings, problem, self.host):
            progress.say(line)
        self.theta = self.memory["theta"]
        if self.host.rank == 0:
            self.theta[...] = initial_theta(network.layout, initial_kind(settings), training.seed, network.dtype.name)
        self.host.meet()
        self.rule = Rule(settings.descent, network.layout.n_weights, {name: self.memory[name] for name in names})
        self.model = Model(network, self.theta, problem.shape, problem.x_scaling, problem.y_scaling)
        self.about = {
            **self.model.about(),
            "settings": settings.of_state(),
            "fingerprint": problem.fingerprint,
        }
        self.state, self.saved = State(), -1
        self.stack = stack
        self.evaluator = Evaluator(world, network, problem.shape, problem.y_scaling, settings.n_shards)

    def tensors(self) -> dict[str, Array]:
        """Return the arrays of a checkpoint."""
        return {**self.model.tensors(), **{f"rule_{name}": array for name, array in self.rule.state.items()}}

    def restore(self, resume: bool, session: dict[str, Any]) -> None:
        """Bring all ranks to the newest good checkpoint, and the folder's texts up to date. **Collective.**"""
        loaded: Loaded | None = None
        with self.world.together():
            if self.folder and resume:
                loaded = newest_good(self.folder.checkpoints, self.fits, self.progress.warn)
                before = (self.folder.sessions() or [{}])[-1]
                if not loaded:
                    self.progress.warn("no checkpoint is there yet: from the start")
                changed = differences(session, before)
                if changed:
                    self.progress.warn(f"not as before: {', '.join(changed)}; bits may differ from an unbroken run's")
        about = self.world.from_rank_0(loaded[2] if loaded else None)
        if about:
            if about["fingerprint"] != self.problem.fingerprint:
                raise AgreedValueError(
                    f"data.source: expected the rows that the run was started on, got others from "
                    f"{self.settings.data.source}. Give it the same data with --data.source."
                )
            shared = (self.theta, *self.rule.state.values())
            for name, array in self.tensors().items():
                if loaded:
                    array[...] = loaded[1][name]
                if not any(array is one for one in shared):
                    self.world.broadcast(array)
            for array in shared:
                self.host.broadcast(array)
            self.state = State.from_json(about["state"])
            self.saved = self.state.step
            self.forget_a_lost_best()
            self.progress.say(f"resumed after step {self.state.step:,}")
        with self.world.together():
            if self.folder:
                if resume:  # how long and how often may be new
                    files.write_text(self.folder.path / "settings.toml", self.settings.to_toml())
                self.folder.start_journal(self.state.step)
                self.folder.write_run(session)
                mark(run=str(self.folder.path), step=self.state.step)

    def forget_a_lost_best(self) -> None:
        """Look for the best anew where its checkpoint is not whole, or was never kept. **Collective.**"""
        best = self.state.best_step
        if self.settings.training.model == "last" or best in (-1, self.state.step):
            return
        wrong = ""
        if self.folder:
            try:
                files.read(self.folder.checkpoints / name_of(best))
            except (ValueError, RuntimeError) as error:
                wrong = str(error)
        wrong = self.world.from_rank_0(wrong)
        if wrong:
            self.progress.warn(f"the best model is looked for anew from here: {wrong}")
            self.state.best_step, self.state.best_cost, self.state.stale = -1, float("inf"), 0

    def fits(self, about: Mapping[str, Any]) -> str:
        """Return what is wrong with a checkpoint's plain values, "" if they are of this run."""
        if about.get("kind") != "checkpoint":
            return f"expected a checkpoint, got a {about.get('kind')} file. Take it away."
        mine, theirs = _flat(self.about), _flat(about)
        for place, value in mine.items():
            if theirs.get(place) != value:
                return (
                    f"expected a checkpoint of this run, got one of another ({place} is {theirs.get(place)!r}, "
                    f"not {value!r}). Take it away."
                )
        return ""

    def to_the_end(self) -> Result:
        """Run the loop, then evaluate and write the model. **Collective.**"""
        settings, problem = self.settings, self.problem
        seed = settings.training.seed
        space = Workspace(self.host, self.memory, problem.network, self.rule, problem.training, problem.batches, seed)
        stepper = Stepper(space, problem.network, self.rule, seed)
        checkpoints = None
        if self.folder:
            keep = settings.checkpoint.keep
            checkpoints = self.stack.enter_context(Checkpoints(self.folder.checkpoints, keep, self.state.step))
        coordinator = Coordinator(settings, self.progress, self.folder, checkpoints)
        loop = Loop(
            self.world, settings, problem, stepper, self.evaluator, coordinator, self.state, self.tensors(), self.about,
            self.stop, self.saved,
        )  # fmt: skip
        reason = loop.run()
        self.progress.stop()
        with self.world.together():
            if coordinator.failure:
                raise RuntimeError(error_text(coordinator.failure)) from coordinator.failure
            if checkpoints:
                checkpoints.flush()
        path = self.world.from_rank_0(str(self.folder.path) if self.folder else None)
        stopped = Result(Path(path), "signal", self.state.step, -1, None, None, None, "")
        if reason == "signal":
            return stopped
        model, model_step = self.best_model(loop.best_at_end)
        with self.world.together():
            if self.folder:
                about = {**model.about(), "kind": "model", "settings": settings.of_state(), "step": model_step}
                files.write(self.folder.model, model.tensors(), about)
        evaluations: list[Evaluation | None] = []
        for part in (problem.validation, problem.test):
            evaluation = self.evaluator.evaluate(model.theta, part, self.stop, confusion=True) if part else None
            if part and evaluation is None:
                return stopped
            evaluations.append(evaluation)
        sha256 = self.world.from_rank_0(_sha256(self.folder.model) if self.folder else None)
        return Result(Path(path), reason, self.state.step, model_step, evaluations[0], evaluations[1], model, sha256)

    def best_model(self, last_is_best: bool) -> tuple[Model, int]:
        """Return the model that the settings ask for, and the step it is of, on every rank. **Collective.**"""
        step = self.state.best_step
        if last_is_best or self.settings.training.model == "last" or step in (-1, self.state.step):
            theta = self.theta.view()
            theta.flags.writeable = False  # the ranks of a host share it
            return replace(self.model, theta=theta), self.state.step
        theta = np.empty_like(self.theta)
        with self.world.together():
            if self.folder:
                theta[...] = files.read(self.folder.checkpoints / name_of(step))[0]["theta"]
        self.world.broadcast(theta)
        return replace(self.model, theta=theta), step


def _flat(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what identifies a run in a checkpoint's plain values, as ``{place: value}``."""
    groups = {"network": about["network"], "columns": about["data"], **about["settings"]}
    return {f"{group}.{key}": value for group, keys in groups.items() for key, value in keys.items()}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _greet(world: World, session: Mapping[str, Any], settings: Settings, progress: Progress) -> None:
    """Say who takes part."""
    hosts = session["hosts"]
    names = f"{len(hosts)} hosts ({', '.join(hosts[:4])}{', ...' if len(hosts) > 4 else ''})" if hosts[1:] else "1 host"
    where = f"{world.size} ranks on {names}, {session['mpi']}"
    if not world.comm:
        where = "one process, no MPI"
    threads = session["blas_threads"]
    progress.say(
        f"distbp {session['distbp']}: {where}; {session['blas']} {session['blas_version']} ({session['blas_kernel']}), "
        f"{threads} thread{'s' if threads != 1 else ''} a rank; {settings.n_shards} shards"
    )


def _describe(settings: Settings, problem: Problem) -> str:
    """Return the start lines about data and network."""
    shape, network, batches = problem.shape, problem.network, problem.batches
    outputs = {
        "classification": "classes",
        "labels": "labels",
        "regression": "target value" + "s" * (shape.n_outputs > 1),
    }[shape.task]
    parts = f"{problem.training.n_rows:,} training"
    for name, part in (("validation", problem.validation), ("test", problem.test)):
        parts += f", {part.n_rows:,} {name}" if part else ""
    batch = min(batches.rows * batches.n_shards, batches.n_rows)
    return (
        f"data: {settings.data.source}, {shape.n_features} features, {shape.n_outputs} {outputs}; rows: {parts}\n"
        f"network: {'-'.join(map(str, network.widths))}, {settings.network.activation}, {network.cost.name}, "
        f"{network.dtype.name}, {network.layout.n_parameters:,} parameters; {settings.descent.rule}, "
        f"batch {batch:,}, {batches.steps_per_epoch:,} steps an epoch"
    )
