"""How distbp scales: more ranks on this machine, more hosts on limited links, and a cost model fitted to both.

    pip install '.[mpich,bench]'
    python benchmarks/scaling.py                  all of it, 2 rounds: about 7 minutes, on a quiet machine
    python benchmarks/scaling.py --quick --no-hosts

Every figure is of the public path, `mpirun -n P python -m distbp.train` on made-up data: seconds of an epoch by
journal.jsonl over its steps; the median of the epochs after the first, the best of the rounds. Ranks have one thread
unless said otherwise. Replica checks, validation and checkpoints are put off.

strong     the same batch on more ranks            weak      a batch that grows with the ranks
hosts      hosts.sh: one rank each on 2 hosts of this machine, over links of several rates and delays, with and
           without overlap. The hosts share the machine's cores. Needs root and MPICH; left out, and said so, where it
           cannot be.
model      distbp/training/forecast.py: its constants by least squares on log time, from two thirds of the
           measurements; the last third, drawn by a fixed seed, is held out and tells the error. Then what it expects
           of up to 1,024 ranks.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from peers import processes
from peers.processes import ChildError, child, mpirun
from peers.report import machine

from distbp.training.forecast import Machine, Ranks, Work, linked, step_seconds

HERE = Path(__file__).resolve().parent
PYTHON, HOSTS = sys.executable, str(HERE / "hosts.sh")
CORES = len(os.sched_getaffinity(0))
processes.LIMIT_S = 120  # for each child
SGD, MIB = "gradient_descent", 1 << 20
SMALL, MIDDLE = Work((64, 32, 10), 64, 8, SGD), Work((784, 512, 256, 10), 256, 8)
LARGE, WIDE = Work((1024, 1024, 1024, 1024), 512, 8, SGD), Work((2048, 2048, 2048), 64, 8)
LONG, SUM = Work((256, 128, 10), 2048, 8, SGD), Work((256, 256, 10), 4096, 8, SGD)  # by sum
PRODUCT = Work((1024, 1024, 1024), 256, 8, SGD)
PREDICTED = [Work((784, 512, 256, 10), 4096, 8), Work((4096, 4096, 4096, 4096), 8192, 8)]
LINKS = [(0, 0), (1000, 0), (200, 0), (1000, 200), (200, 1000)]  # Mbit/s (0: no limit), microseconds one way


class Case(NamedTuple):
    """A measurement: the work, `ranks` on `hosts`, threads of each, the link between hosts, overlap or not."""

    what: str
    work: Work
    ranks: int
    hosts: int = 1
    threads: int = 1
    mbit: int = 0
    delay_us: int = 0
    overlap: bool = True

    def __str__(self) -> str:
        text = f"{name(self.work)}: {self.ranks} rank{'s' * (self.ranks > 1)}"
        text += f" x {self.threads}" * (self.threads > 1)
        if self.hosts > 1:
            text += f", {self.hosts} hosts, {f'{self.mbit} Mbit/s' if self.mbit else 'no limit'}, {self.delay_us} us"
            text += "" if self.overlap else ", no overlap"
        return text + f", over {CORES} cores" * (self.ranks * self.threads > CORES)

    def predict(self, of: Machine) -> float:
        """Return the seconds of a step."""
        who = Ranks(self.ranks, self.ranks // self.hosts, CORES / self.hosts, self.threads, self.overlap)
        return step_seconds(linked(of, self.mbit, self.delay_us), self.work, who).total


def name(work: Work) -> str:
    """Return how a work is called in tables."""
    return f"{'-'.join(map(str, work.widths))}, {work.batch}, {work.rule}"


def cases(quick: bool, links: Sequence[tuple[int, int]]) -> list[Case]:
    """Return all measurements of a round, by link."""
    found = []
    for work in (SMALL, MIDDLE, LARGE, WIDE, LONG)[: 2 if quick else 5]:
        for ranks in (1, 2, 4):
            found.append(Case("strong", work, ranks))
            if ranks > 1:
                found.append(Case("weak", work._replace(batch=work.batch * ranks), ranks))
        found.append(Case("threads", work, 1, threads=CORES))
    if not quick:
        more = [(SMALL, 512, "momentum"), (MIDDLE, 64, "momentum"), (LARGE, 64, "adam"), (WIDE, 512, SGD)]
        found += [Case("more", work._replace(batch=batch, rule=rule), 1) for work, batch, rule in more]
    for mbit, delay_us in links:
        for work in (SMALL, PRODUCT, MIDDLE, SUM)[: 2 if quick else 4]:
            for overlap in (True, False):
                found.append(Case("hosts", work, 2, 2, 1, mbit, delay_us, overlap))
    return found


def measure(case: Case, epoch_s: float) -> tuple[float, dict[str, Any]]:
    """Return the seconds of a step, and what run.json says of the run."""
    work = case.work
    steps = max(4, min(4000, int(epoch_s / case.predict(Machine())), 64 * MIB // (4 * work.widths[0] * work.batch)))
    settings = {
        "data.source": "synthetic", "data.rows": steps * work.batch, "data.features": work.widths[0],
        "data.outputs": work.widths[-1], "data.task": "classification" if work.widths[-1] == 10 else "regression",
        "data.validation": 0, "data.batch_size": work.batch, "data.shards": work.n_shards,
        "network.widths": list(work.widths[1:-1]), "descent.rule": work.rule, "descent.learning_rate": 1e-6,
        "training.epochs": 5, "training.model": "last", "training.threads": case.threads,
        "training.overlap": str(case.overlap).lower(), "training.check_every": 1000000,
        "checkpoint.every": "1000000 steps",
    }  # fmt: skip
    options = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    start = [HOSTS, "mpirun", str(case.ranks)] if case.hosts > 1 else mpirun(case.ranks) if case.ranks > 1 else []
    with tempfile.TemporaryDirectory() as runs:
        child([*start, PYTHON, "-m", "distbp.train", "--runs", runs, "--name", "run", "--quiet", *options])
        lines = [json.loads(line) for line in Path(runs, "run", "journal.jsonl").read_text().splitlines()]
        session = json.loads(Path(runs, "run", "run.json").read_text())["sessions"][-1]
    return statistics.median(b["seconds"] / (b["step"] - a["step"]) for a, b in pairwise(lines)), session


def no_hosts() -> str:
    """Return why there can be no hosts, "" if there can."""
    if os.geteuid():
        return "they need root"
    if tools := [tool for tool in ("ip", "tc", "nsenter", "unshare", "pgrep") if not shutil.which(tool)]:
        return f"{', '.join(tools)} not found"
    said = subprocess.run([*mpirun(1)[:1], "--version"], check=False, capture_output=True, text=True).stdout
    return "" if "HYDRA" in said else "they need MPICH's mpirun"


@contextlib.contextmanager
def network(mbit: int, delay_us: int) -> Iterator[None]:
    """Two hosts on such a link."""
    try:
        child([HOSTS, "up", "2", *([str(delay_us), str(mbit)] if delay_us else [])])
        if not delay_us:
            child([HOSTS, "shape", str(mbit)])
        yield
    finally:
        child([HOSTS, "down"])


def usable(links: Sequence[tuple[int, int]], notes: list[str]) -> Iterator[tuple[int, int]]:
    """Yield the links that this machine can make, and note which it cannot."""
    for link in links:
        try:
            with network(*link):
                pass
            yield link
        except ChildError as error:
            notes.append(f"a link of {link[0]} Mbit/s, {link[1]} us is left out: {error}".replace("\n", " "))


def run(todo: Sequence[Case], rounds: int, epoch_s: float) -> tuple[list[float], dict[str, Any]]:
    """Take the measurements in turns; return the best of each, and what run.json says of the last."""
    best, start = [math.inf] * len(todo), time.monotonic()
    for turn in range(rounds):
        up: tuple[int, int] | None = None
        with contextlib.ExitStack() as stack:
            for i, case in enumerate(todo):
                if case.hosts > 1 and up != (case.mbit, case.delay_us):
                    stack.close()
                    up = case.mbit, case.delay_us
                    stack.enter_context(network(*up))
                seconds, session = measure(case, epoch_s)
                best[i] = min(best[i], seconds)
                where = f"{turn * len(todo) + i + 1}/{rounds * len(todo)}, {time.monotonic() - start:.0f} s"
                print(f"[{where}] {case}: {seconds * 1e6:,.0f} us", flush=True)
    return best, session


def fit(todo: Sequence[Case], seconds: Sequence[float], start: Machine) -> Machine:
    """Return the constants of the least sum of squares of log(predicted / measured), by Levenberg and Marquardt.

    The constants are fitted as logarithms. A weak pull to `start` (0.1 for a factor of e) holds those that the
    measurements say nothing about; large errors count as if they were nearer to linear (Huber).
    """
    names = list(asdict(start))
    first = np.log([getattr(start, key) for key in names])
    measured = np.log(seconds)

    def errors(at: Any) -> Any:
        of = replace(start, **dict(zip(names, np.exp(at).tolist(), strict=True)))
        found = np.log([case.predict(of) for case in todo]) - measured
        return np.append(found / np.sqrt(np.maximum(1, np.abs(found) / 0.15)), 0.1 * (at - first))

    at, damping = first, 1.0
    now = errors(at)
    for _ in range(80):
        slopes = np.array([(errors(at + 1e-4 * unit) - now) / 1e-4 for unit in np.eye(len(at))]).T
        stacked = np.vstack([slopes, math.sqrt(damping) * np.eye(len(at))])
        move = np.linalg.lstsq(stacked, np.append(-now, np.zeros(len(at))), rcond=None)[0]
        there = errors(at + np.clip(move, -1, 1))
        better = there @ there < now @ now
        if better:
            at, now = at + np.clip(move, -1, 1), there
        damping *= 0.3 if better else 4
        if damping > 1e6 or np.abs(move).max() < 1e-4:
            break
    return replace(start, **dict(zip(names, [float(f"{value:.3g}") for value in np.exp(at)], strict=True)))


def errors_told(errors: Sequence[float]) -> str:
    """Return the median and the worst of relative errors."""
    sizes = sorted(map(abs, errors))
    return f"median {statistics.median(sizes):.1%}, worst {sizes[-1]:.1%}, {len(sizes)} measurements"


def predictions(of: Machine) -> list[dict[str, Any]]:
    """Return what is expected of up to 1,024 ranks, 16 on a host of 16 cores, strong scaling."""
    found = []
    for work in PREDICTED:
        for gbit in (1, 25):
            there = linked(of, gbit * 1000, 0)
            for n in (1 << i for i in range(11)):
                step = step_seconds(there, work._replace(n_shards=max(8, n)), Ranks(n, min(n, 16), 16))
                one = found[-n.bit_length() + 1]["us"] if n > 1 else step.total * 1e6
                found.append({
                    "work": name(work), "gbit": gbit, "ranks": n, "us": step.total * 1e6,
                    "speed_up": one / step.total / 1e6, **{key: value * 1e6 for key, value in step._asdict().items()
                    if key != "layers"},
                })  # fmt: skip
    return found


def markdown(results: dict[str, Any]) -> str:
    """Return the results as text."""
    rows = results["measurements"]
    time_of = {json.dumps(row["case"]): row["us"] for row in rows}

    def table(head: str, lines: Sequence[str]) -> list[str]:
        return [head, "|".join(["", *(" --- " for _ in head.split("|")[1:-1]), ""]), *lines, ""]

    def of(case: dict[str, Any], **changes: Any) -> float:
        return float(time_of.get(json.dumps({**case, **changes}), math.nan))

    text = ["# Scaling", "", *(f"- {key}: {value}" for key, value in results["machine"].items()), ""]
    text += [f"- {note}" for note in results["notes"]] + ["", "## One host", ""]
    lines = []
    for row in rows:
        case = row["case"]
        if case["what"] in ("strong", "weak", "threads"):
            work = Work(*case["work"])
            batch = work.batch // (case["ranks"] if case["what"] == "weak" else 1)
            one = of(case, what="strong", work=list(work._replace(batch=batch)), ranks=1, threads=1)
            gain = one / row["us"] * (case["ranks"] if case["what"] == "weak" else 1)
            lines.append(f"| {case['what']} | {row['name']} | {row['us']:,.0f} | {gain:.2f} |")
    text += table("| scaling | work | us a step | rows a second, over one rank's |", lines)
    both = [(r, of(r["case"], overlap=False)) for r in rows if r["case"]["what"] == "hosts" and r["case"]["overlap"]]
    lines = [f"| {r['name']} | {r['us']:,.0f} | {apart:,.0f} | {1 - r['us'] / apart:.0%} |" for r, apart in both]
    if lines:
        text += ["## Two hosts", ""]
        text += table("| work and link | us a step | without overlap | saved by overlap |", lines)
    text += ["## The model", "", f"Held out: {results['held_out']}.", f"Fitted: {results['fitted']}.", ""]
    text += ["    Machine(" + ", ".join(f"{key}={value:g}" for key, value in results["constants"].items()) + ")", ""]
    text += table("| measurement | measured us | predicted us | error | |", [
        f"| {row['name']} | {row['us']:,.0f} | {row['predicted_us']:,.0f} | {row['error']:+.0%} "
        f"| {'held out' if row['held_out'] else ''} |" for row in rows
    ])  # fmt: skip
    text += ["## Expected of more ranks", "", "Not measured: 16 ranks a host, a core each.", ""]
    text += table("| work | link Gbit/s | ranks | us a step | speed-up | messages us | of them hidden us |", [
        f"| {p['work']} | {p['gbit']} | {p['ranks']:,} | {p['us']:,.0f} | {p['speed_up']:.1f} | {p['messages']:,.0f} "
        f"| {p['hidden']:,.0f} |" for p in results["predictions"]
    ])  # fmt: skip
    return "\n".join(text)


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw measured against predicted times, and the speed-up expected of more ranks."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for held_out, mark in ((False, "o"), (True, "x")):
        rows = [row for row in results["measurements"] if row["held_out"] == held_out]
        left.loglog([r["us"] for r in rows], [r["predicted_us"] for r in rows], mark, ms=5, mfc="none",
                    label="held out" if held_out else "fitted")  # fmt: skip
    ends = [f(row["us"] for row in results["measurements"]) for f in (min, max)]
    left.loglog(ends, ends, "k-", lw=0.5)
    left.set(xlabel="measured, microseconds a step", ylabel="predicted", title=f"held out: {results['held_out']}")
    for key in dict.fromkeys((p["work"], p["gbit"]) for p in results["predictions"]):
        of = [p for p in results["predictions"] if (p["work"], p["gbit"]) == key]
        label = f"{key[0]}, {key[1]} Gbit/s"
        right.loglog([p["ranks"] for p in of], [p["speed_up"] for p in of], ".-", label=label)
    right.loglog([1, 1024], [1, 1024], "k-", lw=0.5)
    right.set(xlabel="ranks, 16 a host", ylabel="speed-up expected")
    for axes in (left, right):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> int:
    """Read the command line, measure, fit, print and write the results."""
    parser = argparse.ArgumentParser(description="Measure how distbp scales, and fit the cost model to it.")
    parser.add_argument("--rounds", type=int, default=2, help="turns of every measurement (default: 2)")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder (default: benchmarks/results)")
    parser.add_argument("--quick", action="store_true", help="1 round of few and short runs, to see that all works")
    parser.add_argument("--no-hosts", action="store_true", help="only this machine, as one host")
    given = parser.parse_args()
    if given.rounds < 1:
        parser.error(f"--rounds: expected a whole number > 0, got {given.rounds}")
    if not mpirun(1)[0] or not importlib.util.find_spec("matplotlib"):
        print("scaling: expected mpirun and matplotlib, got none. Run pip install '.[mpich,bench]'.", file=sys.stderr)
        return 2
    rounds, epoch_s = (1, 0.05) if given.quick else (given.rounds, 0.2)
    os.environ["PATH"] = os.pathsep.join([str(Path(PYTHON).parent), os.environ["PATH"]])
    why = "asked to" if given.no_hosts else no_hosts()
    notes = [f"hosts are left out: {why}"] if why else []
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HOSTS_STATE"] = f"{folder}/hosts"
        try:
            links = [] if why else list(usable(LINKS[1::2] if given.quick else LINKS, notes))
            todo = cases(given.quick, links)
            print(*(f"note: {note}\n" for note in notes), sep="", end="", flush=True)
            seconds, session = run(todo, rounds, epoch_s)
        except ChildError as error:
            print(f"scaling: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
    held_out = set(random.Random(1).sample(range(len(todo)), len(todo) // 3))
    kept = [i for i in range(len(todo)) if i not in held_out]
    of = fit([todo[i] for i in kept], [seconds[i] for i in kept], Machine())
    rows = [{
        "name": str(case), "case": case._asdict(), "us": seconds[i] * 1e6, "predicted_us": case.predict(of) * 1e6,
        "error": case.predict(of) / seconds[i] - 1, "held_out": i in held_out,
    } for i, case in enumerate(todo)]  # fmt: skip
    results = {
        "machine": {**machine(str(HERE.parent), session), "load before": round(load, 2)}, "rounds": rounds,
        "notes": notes, "constants": asdict(of),
        "held_out": errors_told([row["error"] for row in rows if row["held_out"]]),
        "fitted": errors_told([row["error"] for row in rows if not row["held_out"]]),
        "measurements": rows, "predictions": predictions(of),
    }  # fmt: skip
    given.out.mkdir(parents=True, exist_ok=True)
    data = json.dumps(results, indent=1)
    text = markdown(json.loads(data))
    (given.out / "scaling.json").write_text(data + "\n")
    (given.out / "scaling.md").write_text(text)
    draw(results, given.out / "scaling.png")
    print(f"{text}\nwrote scaling.json, scaling.md and scaling.png in {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
