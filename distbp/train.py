"""python -m distbp.train: train a network, alone or under mpirun.

The run itself is in distbp/training: read step.py first, then loop.py.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

from distbp import command
from distbp.training.signals import StopFlag

DESCRIPTION = """\
Train a fully connected network by back propagation, alone or on all ranks of an MPI job:

  python -m distbp.train                             the bundled digits, one process
  mpirun -n 4 python -m distbp.train my.toml         four ranks, the same bits
  python -m distbp.train --resume NAME               go on with a run that was stopped or killed

SIGTERM, SIGINT and SIGUSR1 ask a run to write a checkpoint and leave (through Open MPI's mpirun: SIGUSR1).
Exit codes: 0 done, 1 the run failed, 2 bad input, 75 stopped by a signal and resumable.
"""


def parser() -> command.Parser:
    """Return the reader of this command's line."""
    import argparse

    parser = command.Parser("python -m distbp.train", DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.usage = "python -m distbp.train [SETTINGS.toml] [--section.key VALUE ...] [--name NAME] [--resume RUN] ..."
    parser.add_argument("settings", nargs="?", metavar="SETTINGS.toml", help="settings file; the options below win")
    parser.add_argument("--name", help="name of the run's folder (default: the source and the time)")
    parser.add_argument("--runs", default="runs", metavar="DIR", help="where runs are kept (default: runs)")
    parser.add_argument("--resume", metavar="RUN", help="go on with a run from its newest good checkpoint")
    parser.add_argument("--print-settings", action="store_true", help="print all settings as TOML and leave")
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    parser.add_settings()
    return parser


def train_command(arguments: Sequence[str]) -> int:
    """Read the command line, train, and tell what came of it."""
    from distbp.options import make, read_toml

    stop = StopFlag()  # listens from when MPI is there until the process ends: a second signal changes nothing
    with command.same_on_all_ranks():
        given, overrides = parser().read(arguments)
        if given.resume and (given.settings or given.name):
            raise ValueError("--resume: expected no settings file and no --name beside it, got one. Leave it out.")
        if given.print_settings:
            sys.stdout.write(make(read_toml(given.settings) if given.settings else None, overrides).to_toml())
            return command.DONE
    from distbp.training.run import train

    result = train(
        given.settings, name=given.name, runs=given.runs, resume=given.resume, overrides=overrides,
        quiet=given.quiet, stop=stop,
    )  # fmt: skip
    if not given.quiet:
        with contextlib.suppress(BrokenPipeError):
            _tell(result, stop.name)
    if result.reason != "signal":
        return command.DONE
    stop.ignore()
    return command.RESUMABLE


def _tell(result: object, signal_name: str) -> None:
    """Print how the run ended."""
    from distbp.training.report import report
    from distbp.training.run import Result

    assert isinstance(result, Result)
    if result.reason == "signal":
        print(f"stopped by {signal_name or 'a signal to another rank'} after step {result.step:,}; "
              f"go on with --resume {result.folder}")  # fmt: skip
        return
    report({"validation": result.validation, "test": result.test})
    print(f"ended by {result.reason} after step {result.step:,}; the model is that of step {result.model_step:,}")
    print(f"run: {result.folder}")
    print(f"model: {result.folder / 'model.safetensors'} sha256 {result.sha256}", flush=True)


if __name__ == "__main__":
    sys.exit(command.run(train_command))
