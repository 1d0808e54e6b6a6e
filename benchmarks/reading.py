"""How fast distbp trains on a file that does not fit in memory, beside the same rows in memory. Linux, as root.

    pip install '.[mpich]'
    python benchmarks/reading.py            a file of 2 GiB, 512 MiB of memory to keep it in: about 3 minutes

The same command trains twice on one .npy file: once with all rows in memory (`data.memory`), once reading them where
they lie, in a memory control group (version 1) that holds a quarter of the file: then three of four rows that a step
shuffles together come from the disk. Prints rows/s of each epoch, from the journal, and their ratio; a ratio of more
than 1/2 is the goal.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
from peers.processes import ChildError, child, mpirun

FEATURES, BATCH, WIDTHS = 784, 256, "512,256"
GROUP = Path("/sys/fs/cgroup/memory/distbp-reading")


def write_rows(path: Path, n_bytes: int) -> int:
    """Write an array of random rows and a target column; return the number of rows."""
    n_rows = n_bytes // 4 // (FEATURES + 1)
    rows = np.lib.format.open_memmap(path, "w+", np.float32, (n_rows, FEATURES + 1))
    random = np.random.default_rng(0)
    for start in range(0, n_rows, 20_000):
        rows[start : start + 20_000] = random.random((min(20_000, n_rows - start), FEATURES + 1), np.float32)
    rows.flush()
    return n_rows


def rows_per_second(source: Path, memory_mib: int, ranks: int, epochs: int, limit: int = 0) -> list[float]:
    """Train and return the rows/s of each epoch but the first; `limit`: bytes of memory for file and processes."""
    with tempfile.TemporaryDirectory() as runs:
        start = mpirun(ranks) if ranks > 1 else []
        command = [*start, sys.executable, "-m", "distbp.train", "--quiet", "--runs", runs, "--name", "run"]
        settings = {
            "data.source": source, "data.task": "regression", "data.validation": 0, "data.scaling": "none",
            "data.target_scaling": "none", "data.allow_nonfinite": "true", "data.batch_size": BATCH,
            "data.memory": memory_mib, "network.widths": WIDTHS, "training.epochs": epochs + 1,
            "training.model": "last", "checkpoint.every": "1000000 steps",
        }  # fmt: skip
        command += [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
        if limit:
            GROUP.mkdir(exist_ok=True)
            (GROUP / "memory.limit_in_bytes").write_text(str(limit))
            command = ["sh", "-c", f'echo $$ >{GROUP}/cgroup.procs && exec "$@"', "sh", *command]  # enters it first
        try:
            child(command)
        finally:
            if limit:
                GROUP.rmdir()
        lines = [json.loads(line) for line in Path(runs, "run", "journal.jsonl").read_text().splitlines()]
    n_rows = np.load(source, mmap_mode="r").shape[0]
    return [n_rows / (later["time"] - line["time"]) for line, later in pairwise(lines)]


def main() -> int:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(description="Train on a file larger than memory.")
    parser.add_argument("--mib", type=int, default=2048, help="size of the file (default: 2048)")
    parser.add_argument("--ranks", type=int, default=2, help="ranks (default: 2)")
    parser.add_argument("--epochs", type=int, default=2, help="epochs that count (default: 2)")
    parser.add_argument("--folder", default=None, help="where the file is made (default: the temporary folder)")
    given = parser.parse_args()
    if os.geteuid() or not GROUP.parent.is_dir():
        print("reading: expected root and a memory control group of version 1, got none. Skipped.", file=sys.stderr)
        return 0
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        source, n_bytes = Path(folder, "rows.npy").resolve(), given.mib << 20
        print(f"writing {given.mib:,} MiB", flush=True)
        n_rows = write_rows(source, n_bytes)
        inside = rows_per_second(source, 2 * given.mib, given.ranks, given.epochs)
        print(f"in memory: {', '.join(f'{rate:,.0f}' for rate in inside)} rows/s", flush=True)
        outside = rows_per_second(source, 0, given.ranks, given.epochs, n_bytes // 4 + (300 << 20))
    print(f"where they lie: {', '.join(f'{rate:,.0f}' for rate in outside)} rows/s")
    ratio = statistics.median(outside) / statistics.median(inside)
    print(f"{n_rows:,} rows, a quarter of them in memory: {ratio:.2f} of the speed in memory (goal: 0.5)")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ChildError as error:
        sys.exit(f"reading: {error}")
