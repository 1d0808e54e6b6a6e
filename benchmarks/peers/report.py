"""How compare.py shows what it found: the machine, Markdown and a plot."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Goal:
    """A ratio that is the better the larger it is, and what it should be at least."""

    what: str
    at_least: float
    by_medians: float
    by_bests: float
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the medians reach the goal."""
        return self.by_medians >= self.at_least


def machine(folder: str, session: dict[str, Any]) -> dict[str, Any]:
    """Return what the figures depend on; `session` is of run.json, `folder` that of the distbp that was measured."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    git = ["git", "-C", folder, "describe", "--always", "--dirty"]
    found: dict[str, Any] = {"date": date.today().isoformat(), "cpu": models[0].partition(": ")[2] if models else ""}
    found["cores"] = len(os.sched_getaffinity(0))
    found["commit"] = subprocess.run(git, check=False, capture_output=True, text=True).stdout.strip()
    for name in ("distbp", "python", "mpi", "blas", "blas_version", "blas_kernel"):
        found[name] = session.get(name)
    for name in ("numpy", "mpi4py", "torch", "scikit-learn"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def markdown(results: dict[str, Any]) -> str:
    """Return the goals and the table as Markdown."""
    said = ", ".join(f"{name} {value}" for name, value in results["machine"].items() if value)
    text = f"""# distbp and its peers

{said}. Rounds: {results["rounds"]}. Two threads at once: sgemm {results["sgemm_peak_gflops"]:.0f} GFLOP/s,
copying memory {results["copy_gb_per_s"]:.0f} GB/s (read and written).

Two ranks of one thread where nothing else is said. Ratios are of times, by the medians (by the bests); the goals are
judged by the medians. Rates are those of the median.

| goal | ratio | at least | met |
| --- | --- | --- | --- |
"""
    for goal in results["goals"]:
        what, met = goal["what"] + (f" ({goal['note']})" if goal["note"] else ""), "yes" if goal["met"] else "no"
        text += f"| {what} | {goal['by_medians']:.2f} ({goal['by_bests']:.2f}) | {goal['at_least']} | {met} |\n"
    head = ["who", "best µs/step", "median µs/step", "rows/s", "GFLOP/s", "of the peak", "memory, MiB"]
    head += [f"time / {name}" for name in (results["table"][0]["time_over"] if results["table"] else ())]
    work = ""
    for line in results["table"]:
        if line["work"] != work:
            work = line["work"]
            text += f"\nRow {line['row']}: {work}\n\n| {' | '.join(head)} |\n|{' --- |' * len(head)}\n"
        cells = [line["who"] + (f" ({line['variant']})" if line["variant"] else "")]
        cells += [f"{line[key]:,.0f}" for key in ("best_us", "median_us", "rows_per_s")]
        cells += [f"{line['gflops']:.1f}", f"{line['share_of_sgemm_peak']:.0%}"]
        cells += [f"{line['memory_mib']:,.0f}" if line["memory_mib"] else ""]
        cells += [f"{medians:.2f} ({bests:.2f})" for medians, bests in line["time_over"].values()]
        text += f"| {' | '.join(cells)} |\n"
    return text


def draw(goals: Sequence[Goal], output: Path) -> None:
    """Draw each goal's ratio as a bar from 1 (both sides alike), and the goal as a mark."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.35 * len(goals)), layout="constrained")
    places = range(len(goals), 0, -1)
    colors = ["tab:green" if g.met else "tab:red" for g in goals]
    axes.barh(places, [g.by_medians - 1 for g in goals], left=1, height=0.6, color=colors)
    axes.plot([g.at_least for g in goals], places, "k|", markersize=16, markeredgewidth=2, label="goal")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="ratio of the medians; green: the goal is met", yticks=places)
    axes.set_yticklabels([f"{g.what}:  {g.by_medians:.2f}" for g in goals])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.05)
    figure.legend(loc="outside upper right", frameon=False)
    figure.savefig(output, dpi=120)
    pyplot.close(figure)
