"""python -m distbp.curve: a picture of a run's training curve, from its journal. Needs the extra ``distbp[plot]``."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from distbp import command

DESCRIPTION = "Draw a run's cost and validation metric over its epochs, from its journal (needs distbp[plot])."


def curve_command(arguments: Sequence[str]) -> int:
    """Read the command line, draw."""
    from distbp.training.start import run_path

    parser = command.Parser("python -m distbp.curve", DESCRIPTION)
    parser.add_argument("run", metavar="RUN", help="a run's name or folder")
    kinds = ".svg, .png or .pdf (default: curve.svg)"
    parser.add_argument("-o", "--output", default="curve.svg", metavar="FILE", help=kinds)
    parser.add_argument("--runs", default="runs", metavar="DIR", help="where runs are kept (default: runs)")
    with command.same_on_all_ranks():
        given, _ = parser.read(arguments)
        if Path(given.output).suffix not in (".svg", ".png", ".pdf"):
            raise ValueError(f"--output: expected a name in .svg, .png or .pdf, got {given.output!r}. Rename it.")
        draw(run_path(given.run, Path(given.runs)), Path(given.output))
    print(f"wrote {given.output}")
    return command.DONE


def draw(folder: Path, output: Path) -> None:
    """Draw the journal of a run.

    Raises
    ------
    ValueError
        matplotlib is not installed, or the journal has no epoch yet.
    """
    try:
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise ValueError(
            f"curve: expected matplotlib, got: {error}. Install it with pip install 'distbp[plot]'."
        ) from None
    journal = folder / "journal.jsonl"
    lines = []
    for line in journal.read_text("utf-8", errors="replace").splitlines() if journal.exists() else []:
        with contextlib.suppress(ValueError):  # a line that is being written
            lines.append(json.loads(line))
    if not lines:
        raise ValueError(f"{journal}: expected at least one epoch, got none. Train the run first.")
    figure, left = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    left.plot([e["epoch"] for e in lines], [e["cost"] for e in lines], label="training cost")
    validated = [e for e in lines if e["validation"]]
    if validated:
        epochs = [e["epoch"] for e in validated]
        left.plot(epochs, [e["validation"]["cost"] for e in validated], label="validation cost")
        metric = next(name for name in validated[0]["validation"] if name != "cost")
        right = left.twinx()
        right.plot(epochs, [e["validation"][metric] for e in validated], "k:", label=f"validation {metric}")
        right.set_ylabel(metric)
    left.set(xlabel="epoch", ylabel="mean cost", yscale="log", title=f"{folder.name}")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(output, metadata={"Date": None} if output.suffix == ".svg" else None)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(command.run(curve_command))
