"""python -m distbp.evaluate: cost and metrics of a trained network, alone or under mpirun."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from distbp import command

DESCRIPTION = """\
Evaluate a run's model on its own validation and test part, or on other data. Any number of ranks gives the same digits.
"""


def evaluate_command(arguments: Sequence[str]) -> int:
    """Read the command line, evaluate, print."""
    from distbp.options import from_text

    parser = command.Parser("python -m distbp.evaluate", DESCRIPTION)
    parser.add_argument("run", metavar="RUN", help="a run's name or folder, or a model or checkpoint file")
    parser.add_argument("--data", metavar="FILE", help="evaluate all rows of this file (default: the run's own parts)")
    parser.add_argument("--target", help="as data.target, where the file's target is elsewhere")
    parser.add_argument("--runs", default="runs", metavar="DIR", help="where runs are kept (default: runs)")
    parser.add_argument("--json", action="store_true", help="print all digits as JSON")
    with command.same_on_all_ranks():
        given, _ = parser.read(arguments)
    from distbp.training.apply import evaluate
    from distbp.training.report import report

    target = from_text(given.target) if given.target is not None else None
    found = evaluate(given.run, given.data, runs=given.runs, target=target)
    if given.json:
        parts = {name: {"rows": e.rows, **e.to_json()} for name, e in found.items()}
        print(json.dumps(parts))
    else:
        report(found)
    return command.DONE


if __name__ == "__main__":
    sys.exit(command.run(evaluate_command))
