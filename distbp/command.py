"""What the commands share: who speaks, how errors are told, exit codes.

    0  done        1  the run failed        2  bad input        75  stopped by a signal; --resume goes on

75 is EX_TEMPFAIL of sysexits.h: try again later.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence

DONE, FAILED, BAD_INPUT, RESUMABLE = 0, 1, 2, 75


def run(command: Callable[[Sequence[str]], int], arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; every error is one message, on standard error, from one rank."""
    from distbp.parallel.world import AgreedRuntimeError, AgreedValueError, error_text, launched

    arguments = sys.argv[1:] if arguments is None else arguments
    first = launched()[1] == 0
    if not first:
        sys.stdout = open(os.devnull, "w")  # only rank 0 speaks
    if "--debug" in arguments:
        os.environ["DISTBP_DEBUG"] = "1"  # read by World.guarded
    try:
        code = command(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if first:
            if "--debug" in arguments:
                traceback.print_exc()
            with contextlib.suppress(OSError):
                print(f"distbp: {error_text(error)}", file=sys.stderr, flush=True)
        return BAD_INPUT if isinstance(error, AgreedValueError) else FAILED
