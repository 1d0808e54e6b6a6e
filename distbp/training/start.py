"""From what the user gave to a run's folder and its settings. Done by rank 0, which tells the others."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distbp.coordinator.folder import refuse_existing
from distbp.options import make, read_toml
from distbp.settings import RESUMABLE, Settings


def settle(
    settings: Settings | str | Path | None,
    name: str | None,
    runs: Path,
    resume: str | Path | None,
    overrides: Mapping[str, Any] | None,
    size: int,
) -> tuple[Path, Settings]:
    """Return the run's folder and its settings, with the shards a number. **Local.**

    Parameters
    ----------
    settings, name, runs, resume, overrides
        As `distbp.training.run.train` takes them.
    size
        Number of ranks.

    Raises
    ------
    ValueError
        Something among them is wrong, or they contradict each other or what is there.
    """
    if resume is None:
        table = settings.model_dump() if isinstance(settings, Settings) else read_toml(settings) if settings else None
        settings = make(table, overrides).with_shards(size)
        path = runs / (name or _free_name(settings.data.source, runs))
        if name is not None and (not name or Path(name).name != name or name.startswith(".")):
            raise ValueError(f"--name: expected a plain folder name, got {name!r}. Use --runs for the folder it is in.")
        refuse_existing(path)
        return path, settings
    if settings:
        raise ValueError("resume: expected no settings beside it, got both. A run's settings are in its folder.")
    for place in overrides or {}:
        if place not in RESUMABLE:
            raise ValueError(
                f"{place}: expected it to stay as the run was started with, got a new value with --resume. "
                "Leave it out, or start a new run."
            )
    path = run_path(resume, runs)
    lengths = [place for place in ("training.epochs", "training.steps") if place in (overrides or {})]
    if lengths and make(read_toml(path / "settings.toml")).descent.schedule == "cosine":
        raise ValueError(
            f"{lengths[0]}: expected it to stay with descent.schedule = cosine, which ends with the run, "
            "got a new value. Leave it out, or start a new run."
        )
    return path, make(read_toml(path / "settings.toml"), overrides).with_shards(size)


def _free_name(source: str, runs: Path) -> str:
    """Return a name for a run that was given none: the source, the time, and a number where that is taken."""
    name = f"{Path(source).name.partition('.')[0]}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (f"{name}-{n}" if n else name for n in itertools.count())
    return next(name for name in names if not os.path.lexists(runs / name))


def run_path(run: str | Path, runs: Path) -> Path:
    """Return the folder of a run given by its name in `runs` or by its folder.

    Raises
    ------
    ValueError
        There is no such run.
    """
    for path in (Path(run), runs / run):
        if (path / "settings.toml").is_file():
            return path
    raise ValueError(f"{run}: expected a run's name in {runs}, or its folder, got neither. See ls {runs}.")
