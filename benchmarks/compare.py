"""How fast distbp is, beside the programs that one would use instead. Run it from a checkout, on a quiet machine:

    pip install '.[mpich,bench]'
    python benchmarks/compare.py                  all rows of the table, 5 rounds: about a quarter of an hour
    python benchmarks/compare.py --quick --rows 1,3 --only distbp

Every contestant does the work of a row (network, batch, rule, made-up data of one size) in processes of its own. The
contestants take turns, round after round, so that what else the machine does falls on all of them. Of each run the
median over its windows counts, of a contestant the best and the median over the rounds.

distbp        by its public path: `mpirun -n 2 python -m distbp.train`, data.source synthetic, no validation. A window
              is an epoch, from one line of journal.jsonl to the next: shuffled rows gathered from the data, cost,
              gradient, reduction, descent step, stop flag, progress, and the line itself. The first epoch warms up.
DDP           peers/ddp.py: 2 ranks of one thread; `DDP expert` is the fastest of all its variants, by the median.
scikit-learn  peers/sklearn_fit.py: one process, all cores, against distbp in one process, all cores.
limits        peers/limits.py: the fastest product (the sgemm peak) and the fastest copy of two processes of one thread
              that run at once, added.
memory        in a run that is not timed: the highest sum, every 50 ms, of the ranks' proportional set sizes (a page
              that two ranks share counts once). The run is short, and ends as runs do, with a checkpoint and a model.
start         from before the process is started to the first line of the journal of `python -m distbp.train` without
              settings: that is its first step and 22 more, and a validation, so a little more than to the first step.

GFLOP/s are those of the products, 2 B (3 sum(n[l] n[l-1]) - n[1] n[0]) a step for B rows, whatever was computed.
PYTHONPATH chooses another distbp than that of the checkout.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from peers.processes import ChildError, child, mpirun
from peers.report import Goal, draw, machine, markdown

HERE = Path(__file__).resolve().parent
PYTHON, RANKS = sys.executable, 2
CORES = len(os.sched_getaffinity(0))
LIMITS_S = 3.0  # seconds
DISTBP, TWO_SHARDS, ALONE, ONE_RANK = "distbp", "distbp, 2 shards", "distbp alone, all cores", "distbp, 1 rank"
DEFAULT, EXPERT, SKLEARN = "DDP default", "DDP expert", "scikit-learn"
CONTESTANTS = (DISTBP, TWO_SHARDS, ONE_RANK, ALONE, DEFAULT, EXPERT, SKLEARN)
SHALLOWSPEED = (2, 3517.0, 3.0)  # row, microseconds per step, goal


@dataclass(frozen=True)
class Work:
    """A row of the table; `rows` of data are an epoch, `ddp_steps` a window of DDP, both between 0.1 and 2 s.

    `goals`: DDP's time over distbp's, with 8 shards (the default) and with 2. The learning rate is so small that no
    network diverges; the time of a step does not depend on it.
    """

    row: int
    widths: tuple[int, ...]
    batch: int
    rule: str
    hidden: str
    output: str
    cost: str
    task: str
    rows: int
    ddp_steps: int
    goals: tuple[float, float]
    sklearn_goal: float = 0.0
    scaling_goal: float = 0.0  # of 2 ranks over 1
    memory_goal: float = 0.0  # DDP's over distbp's
    learning_rate: float = 1e-4

    def __str__(self) -> str:
        return f"{'-'.join(map(str, self.widths))}, {self.batch}, {self.rule}"

    @property
    def flops(self) -> float:
        """Floating-point operations of the products of a step."""
        products = [a * b for a, b in pairwise(self.widths)]
        return 2 * self.batch * (3 * sum(products) - products[0])


SGD, DEEP = "gradient_descent", (784, 128, 127, 126, 125, 124, 123, 10)
CLASSES, NUMBERS = ("softmax", "cross_entropy", "classification"), ("identity", "quadratic", "regression")
WORKS = [
    Work(1, (64, 32, 10), 64, SGD, "sigmoid", "sigmoid", "quadratic", "classification", 1 << 16, 100, (15, 28), 2.0),
    Work(2, DEEP, 128, SGD, "relu", *CLASSES, 1 << 15, 40, (2.8, 3.8)),
    Work(3, (784, 512, 256, 10), 256, "adam", "relu", *CLASSES, 1 << 14, 16, (1.3, 1.6), 1.3),
    Work(4, (1024, 4096, 4096, 1024), 1024, SGD, "relu", *NUMBERS, 1 << 11, 1, (1.1, 1.2), scaling_goal=1.8),
    Work(5, (4096, 4096, 4096, 4096), 64, "adam", "sigmoid", *NUMBERS, 1 << 7, 1, (1.4, 1.9), memory_goal=2.0),
]
START_GOALS_S = {1: 1.0, 4: 1.5}  # by ranks


@dataclass(frozen=True)
class Job:
    """One measurement of a round: `measure` returns values (microseconds per step, GFLOP/s or s) by contestant."""

    row: int
    what: str
    measure: Callable[[], dict[str, float]]


class Distbp:
    """Runs of distbp by its command; `session` is what the last one wrote into run.json.

    One BLAS thread a rank is asked for by training.threads; versions without that setting never took more.
    """

    def __init__(self) -> None:
        settings, _ = child([PYTHON, "-m", "distbp.train", "--print-settings"])
        self.one_thread = ["--training.threads", "1"] if "\nthreads = " in settings else []
        self.folder = child([PYTHON, "-c", "import distbp; print(distbp.__path__[0])"])[0].strip()
        self.session: dict[str, Any] = {}

    def run(self, ranks: int, options: Sequence[str], sample: bool = False) -> tuple[list[dict[str, Any]], float]:
        """Train; return the lines of the journal, and the peak memory if asked to `sample` it."""
        with tempfile.TemporaryDirectory() as runs:
            start = mpirun(ranks) if ranks > 1 else []
            command = [*start, PYTHON, "-m", "distbp.train", "--runs", runs, "--name", "run", *options]
            _, peak = child(command, sample=sample)
            journal = Path(runs, "run", "journal.jsonl").read_text().splitlines()
            self.session = json.loads(Path(runs, "run", "run.json").read_text())["sessions"][-1]
        return [json.loads(line) for line in journal], peak

    def work(self, work: Work, who: str, windows: int, sample: bool = False) -> tuple[float, float]:
        """Return the microseconds per step of a row (median of the windows), and the peak memory."""
        shards = 2 if who == TWO_SHARDS else "auto"
        settings = {
            "data.source": "synthetic", "data.rows": work.rows, "data.features": work.widths[0],
            "data.outputs": work.widths[-1], "data.task": work.task, "data.validation": 0,
            "data.batch_size": work.batch, "data.shards": shards, "network.widths": list(work.widths[1:-1]),
            "network.activation": work.hidden, "network.output": work.output, "network.cost": work.cost,
            "descent.rule": work.rule, "descent.learning_rate": work.learning_rate, "training.epochs": windows + 1,
            "training.model": "last", "checkpoint.every": "1000000 steps",
        }  # fmt: skip
        options = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        options += [] if who == ALONE else self.one_thread
        lines, peak = self.run(1 if who in (ALONE, ONE_RANK) else RANKS, [*options, "--quiet"], sample)
        epochs = [(b["time"] - a["time"]) / (b["step"] - a["step"]) for a, b in pairwise(lines)]
        return statistics.median(epochs) * 1e6, peak

    def start(self, ranks: int) -> float:
        """Return the seconds from before the start of the default run to the first line of its journal."""
        started = time.time()
        return float(self.run(ranks, [])[0][0]["time"]) - started


def peer(name: str, work: Work, windows: int, *variants: str, sample: bool = False) -> tuple[Any, float]:
    """Run a program of peers/; return the value it printed, and the peak memory."""
    text = json.dumps({**asdict(work), "windows": windows})
    out, peak = child([PYTHON, str(HERE / "peers" / name), text, *variants], sample=sample)
    return json.loads(out.splitlines()[-1]), peak


def ddp(work: Work, windows: int) -> dict[str, float]:
    """Return the microseconds per step of every variant of DDP."""
    times, _ = peer("ddp.py", work, windows)
    return {f"DDP {variant}": statistics.median(values) for variant, values in times.items()}


def limits() -> dict[str, float]:
    """Return the GFLOP/s and the GB/s of two processes of one thread, added."""
    program = [PYTHON, str(HERE / "peers" / "limits.py"), str(LIMITS_S)]
    with ThreadPoolExecutor() as pool:
        found = [out.split() for out, _ in pool.map(lambda _: child(program, threads=1), range(RANKS))]
    return {"sgemm": sum(float(flops) for flops, _ in found), "copy": sum(float(rate) for _, rate in found)}


def plan(distbp: Distbp, works: Sequence[Work], only: Sequence[str], windows: int) -> list[Job]:
    """Return the measurements of one round."""
    jobs = [Job(0, "limits, GFLOP/s and GB/s", limits)]
    for work in works:
        if "distbp" in only:
            alone = [ALONE] * bool(work.sklearn_goal) + [ONE_RANK] * bool(work.scaling_goal)
            for who in (DISTBP, TWO_SHARDS, *alone):
                jobs.append(Job(work.row, who, lambda w=work, n=who: {n: distbp.work(w, n, windows)[0]}))
        if "ddp" in only:
            jobs.append(Job(work.row, "DDP, all variants", lambda w=work: ddp(w, windows)))
        if "sklearn" in only and work.sklearn_goal:
            jobs.append(Job(work.row, SKLEARN, lambda w=work: {SKLEARN: peer("sklearn_fit.py", w, windows)[0]}))
    if "distbp" in only:
        jobs += [Job(0, f"start, ranks: {n}", lambda n=n: {f"start {n}": distbp.start(n)}) for n in START_GOALS_S]
    return jobs


Values = dict[tuple[int, str], list[float]]  # by row and contestant: one value a round


def measure(jobs: Sequence[Job], rounds: int) -> Values:
    """Take the measurements in turns, and tell each."""
    values: Values = {}
    start = time.monotonic()
    for i in range(rounds * len(jobs)):
        job = jobs[i % len(jobs)]
        found = job.measure()
        for who, value in found.items():
            values.setdefault((job.row, who), []).append(value)
        told = ", ".join(f"{value:,.2f}" if value < 1000 else f"{value:,.0f}" for value in found.values())
        row = f"row {job.row}: " if job.row else ""
        where = f"{i + 1}/{rounds * len(jobs)}, {time.monotonic() - start:.0f} s, round {i // len(jobs) + 1}"
        print(f"[{where}] {row}{job.what}: {told}", flush=True)
    return values


def experts(values: Values) -> dict[int, str]:
    """Enter each row's fastest variant of DDP as its expert; return the variants."""
    found: dict[int, str] = {}
    for row, who in sorted(values, key=lambda key: statistics.median(values[key])):
        if who.startswith("DDP ") and row not in found:
            found[row] = who.removeprefix("DDP ")
    values.update({(row, EXPERT): values[row, f"DDP {variant}"] for row, variant in found.items()})
    return found


def memories(
    distbp: Distbp, works: Sequence[Work], values: Values, expert: dict[int, str]
) -> dict[tuple[int, str], float]:
    """Return the peak memory of all ranks in MiB, by row and contestant."""
    found = {}
    for work in works:
        print(f"row {work.row}: memory", flush=True)
        for who in (DISTBP, TWO_SHARDS):
            if (work.row, who) in values:
                found[work.row, who] = distbp.work(work, who, 1, sample=True)[1]
        for who, variant in ((DEFAULT, "default"), (EXPERT, expert.get(work.row, ""))):
            if (work.row, who) in values:
                found[work.row, who] = peer("ddp.py", work, 1, variant, sample=True)[1]
    return found


def goals(works: Sequence[Work], values: Values, memory_mib: dict[tuple[int, str], float]) -> list[Goal]:
    """Return every goal whose two sides were measured."""
    found = []

    def add(what: str, goal: float, row: int, slow: str | float, fast: str, note: str = "") -> None:
        above = [slow] if isinstance(slow, float) else values.get((row, slow), [])
        below = values.get((row, fast), [])
        if goal and above and below:
            medians = statistics.median(above) / statistics.median(below)
            found.append(Goal(what, goal, medians, min(above) / min(below), note))

    for work in works:
        add(f"row {work.row}: DDP expert / distbp", work.goals[0], work.row, EXPERT, DISTBP)
        add(f"row {work.row}: DDP expert / distbp, 2 shards", work.goals[1], work.row, EXPERT, TWO_SHARDS)
        add(f"row {work.row}: scikit-learn / distbp alone", work.sklearn_goal, work.row, SKLEARN, ALONE)
        add(f"row {work.row}: 1 rank / 2 ranks", work.scaling_goal, work.row, ONE_RANK, DISTBP)
        if work.row == SHALLOWSPEED[0]:
            note = "quoted, not run: ShallowSpeed cannot be installed; measured by us on 2 ranks of a 2-core AMD Zen 4"
            add(f"row {work.row}: ShallowSpeed / distbp", SHALLOWSPEED[2], work.row, SHALLOWSPEED[1], DISTBP, note)
        if work.memory_goal and {(work.row, EXPERT), (work.row, DISTBP)} <= memory_mib.keys():
            ratio = memory_mib[work.row, EXPERT] / memory_mib[work.row, DISTBP]
            found.append(Goal(f"row {work.row}: memory, DDP expert / distbp", work.memory_goal, ratio, ratio))
    for ranks, allowed in START_GOALS_S.items():
        seconds = statistics.median(values.get((0, f"start {ranks}"), [0.0]))
        add(f"start, ranks: {ranks}, {allowed} s / distbp", 1.0, 0, allowed, f"start {ranks}", f"{seconds:.2f} s")
    return found


def table(
    works: Sequence[Work], values: Values, expert: dict[int, str], memory_mib: dict[tuple[int, str], float]
) -> list[dict[str, Any]]:
    """Return a line for each row and contestant; rates and the first of two ratios are those of the medians."""
    one_thread = max(values[0, "sgemm"]) / RANKS  # GFLOP/s
    lines = []
    for work, who in ((work, who) for work in works for who in CONTESTANTS if (work.row, who) in values):
        row, times = work.row, values[work.row, who]
        median, threads = statistics.median(times), {ONE_RANK: 1, ALONE: CORES, SKLEARN: CORES}.get(who, RANKS)
        gflops = work.flops / median / 1e3
        ours = {name: values[row, name] for name in (DISTBP, TWO_SHARDS) if (row, name) in values}
        over = {name: [median / statistics.median(of), min(times) / min(of)] for name, of in ours.items()}
        lines.append({
            "row": row, "work": str(work), "who": who, "variant": expert[row] if who == EXPERT else "",
            "us_per_step": times, "best_us": min(times), "median_us": median, "rows_per_s": work.batch / median * 1e6,
            "gflops": gflops, "share_of_sgemm_peak": gflops / one_thread / threads,
            "memory_mib": memory_mib.get((row, who)), "time_over": over,
        })  # fmt: skip
    return lines


def missing(only: Sequence[str]) -> str:
    """Return what is not installed, "" if all is."""
    needed = {"distbp": ["numpy", "mpi4py"], "ddp": ["torch"], "sklearn": ["sklearn"]}
    names = [n for n in ["matplotlib", *(n for part in only for n in needed[part])] if not importlib.util.find_spec(n)]
    return ", ".join(names + ["mpirun"] * ("distbp" in only and not mpirun(1)[0]))


def main() -> int:
    """Read the command line, measure, print and write the results."""
    parser = argparse.ArgumentParser(description="Compare the speed of distbp with that of its peers.")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every contestant (default: 5)")
    parser.add_argument("--rows", default="1,2,3,4,5", help="rows of the table (default: 1,2,3,4,5)")
    parser.add_argument("--only", default="distbp,ddp,sklearn", help="contestants (default: distbp,ddp,sklearn)")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder (default: benchmarks/results)")
    parser.add_argument("--quick", action="store_true", help="2 rounds of short runs, to see that all works")
    given = parser.parse_args()
    only, rows = given.only.split(","), given.rows.split(",")
    if not set(only) <= {"distbp", "ddp", "sklearn"} or not set(rows) <= {str(work.row) for work in WORKS}:
        parser.error(f"expected --rows among 1 to 5 and --only among distbp, ddp, sklearn, got {rows} and {only}")
    if given.rounds < 1:
        parser.error(f"--rounds: expected a whole number > 0, got {given.rounds}")
    if names := missing(only):
        text = f"compare: expected {names}, got none. Run pip install '.[mpich,bench]', or use --only distbp."
        print(text, file=sys.stderr)
        return 2
    works, rounds, windows = [w for w in WORKS if str(w.row) in rows], *((2, 1) if given.quick else (given.rounds, 3))
    load = os.getloadavg()[0]
    try:
        distbp = Distbp()
        values = measure(plan(distbp, works, only, windows), rounds)
        expert = experts(values)
        memory_mib = memories(distbp, works, values, expert)
    except ChildError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    found = goals(works, values, memory_mib)
    results = {
        "machine": {**machine(distbp.folder, distbp.session), "load before": round(load, 2)}, "rounds": rounds,
        "sgemm_peak_gflops": max(values[0, "sgemm"]), "copy_gb_per_s": max(values[0, "copy"]),
        "start_s": {n: values[0, f"start {n}"] for n in START_GOALS_S if (0, f"start {n}") in values},
        "goals": [{**asdict(goal), "met": goal.met} for goal in found],
        "table": table(works, values, expert, memory_mib),
        "ddp_variants_us": {f"{row}: {who}": v for (row, who), v in values.items() if who.startswith("DDP ")},
    }  # fmt: skip
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "compare.json").write_text(json.dumps(results, indent=1) + "\n")
    (given.out / "compare.md").write_text(markdown(results))
    draw(found, given.out / "compare.png")
    print(markdown(results) + f"\nwrote compare.json, compare.md and compare.png in {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
