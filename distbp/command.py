"""What the commands share: who speaks, how errors are told, exit codes.

    0  done        1  the run failed        2  bad input        75  stopped by a signal; --resume goes on

75 is EX_TEMPFAIL of sysexits.h: try again later.

The command line is argparse's rather than pydantic-settings' (the design names both libraries): argparse starts in
4 ms, and lets an unknown key be answered with the nearest known one in the same form as every other error.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from distbp.kinds import extra, to_toml_value
from distbp.marks import mark
from distbp.options import unknown
from distbp.settings import SECTIONS

DONE, FAILED, BAD_INPUT, RESUMABLE, INTERRUPTED = 0, 1, 2, 75, 130


def run(command: Callable[[Sequence[str]], int], arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; every error is one message, on standard error, from one rank."""
    from distbp.parallel.world import (
        AgreedDivergedError,
        AgreedRuntimeError,
        AgreedStopError,
        AgreedValueError,
        NoWorldError,
        error_text,
        launched,
    )

    arguments = sys.argv[1:] if arguments is None else arguments
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed before we were started
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    size, rank, _ = launched()
    first = rank == 0
    if not first:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  only rank 0 speaks
    if "--debug" in arguments:
        os.environ["DISTBP_DEBUG"] = "1"  # read by World.guarded
    try:
        code = command(arguments)
        sys.stdout.flush()
        if first:
            mark(code=code)
        return code
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE  # the reader wanted no more
    except Exception as error:
        agreed = isinstance(error, (AgreedValueError, AgreedRuntimeError, AgreedStopError))
        if first or not agreed:  # what one rank alone knows, it alone can tell
            if "--debug" in arguments:
                traceback.print_exc()
            where = "" if agreed or size <= 1 else f"rank {rank} of {size}: "
            with contextlib.suppress(OSError):
                print(f"distbp: {where}{error_text(error)}", file=sys.stderr, flush=True)
        bad_input = isinstance(error, (AgreedValueError, NoWorldError))
        code = RESUMABLE if isinstance(error, AgreedStopError) else BAD_INPUT if bad_input else FAILED
        if first:
            mark(code=code, again=not isinstance(error, AgreedDivergedError))
        return code
    except KeyboardInterrupt:
        if first:
            print("distbp: interrupted", file=sys.stderr)
        return INTERRUPTED


@contextlib.contextmanager
def same_on_all_ranks() -> Iterator[None]:
    """Make a wrong command line an error that all ranks know of: all have the same one."""
    from distbp.parallel.world import AgreedValueError

    try:
        yield
    except ValueError as error:
        raise AgreedValueError(str(error)) from None


class Parser(argparse.ArgumentParser):
    """argparse with its errors in our form, and without abbreviations."""

    def __init__(self, prog: str, description: str, **options: Any) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False, **options)
        self.add_argument("--debug", action="store_true", help="show a traceback with an error")

    def error(self, message: str) -> NoReturn:
        """Raise the error instead of leaving: the caller decides which rank says it."""
        raise ValueError(f"command line: {message}. See --help.")

    def add_settings(self) -> None:
        """Add one ``--section.key VALUE`` for every setting."""
        for section, model in SECTIONS.items():
            group = self.add_argument_group(f"[{section}]", (model.__doc__ or "").partition(": ")[2])
            for name, field in model.model_fields.items():
                unit = f", in {extra(field)['unit']}" if extra(field)["unit"] else ""
                text = f"{field.description} Default: {to_toml_value(field.default)}{unit}.".replace("%", "%%")
                group.add_argument(f"--{section}.{name}", metavar="VALUE", help=text, default=argparse.SUPPRESS)

    def read(self, arguments: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, str]]:
        """Return the plain options, and the settings given as ``{"section.key": text}``.

        Raises
        ------
        ValueError
            An unknown option, with the nearest known name.
        """
        given, rest = self.parse_known_args(arguments)
        options = [option for action in self._actions for option in action.option_strings]
        for word in rest:
            if word.startswith("--"):
                name = word[2:].partition("=")[0]
                raise ValueError(unknown(name, [option[2:] for option in options if option.startswith("--")]))
            raise ValueError(f"command line: expected options, got {word!r}. See --help.")
        values = vars(given)
        return given, {name: values[name] for name in list(values) if "." in name}
