"""Starts the programs that are measured: each in a group of its own, with a time limit, its memory sampled if asked."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent  # the checkout
LIMIT_S, SAMPLE_S = 600, 0.05


class ChildError(RuntimeError):
    """A program that was measured failed; the message names it and ends with its last lines."""


def child(command: Sequence[str], threads: int = 0, sample: bool = False) -> tuple[str, float]:
    """Run a program; return what it printed, and the peak memory of its ranks in MiB if asked to `sample` it."""
    env, peak, end = dict(os.environ), 0.0, time.monotonic() + LIMIT_S
    env["PYTHONPATH"] = os.pathsep.join([*filter(None, [env.get("PYTHONPATH")]), str(ROOT)])
    if threads:
        env |= {"OPENBLAS_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with (
        tempfile.TemporaryDirectory() as folder,
        open(f"{folder}/out", "w+") as out,
        open(f"{folder}/err", "w+") as err,
    ):
        process = subprocess.Popen(command, stdout=out, stderr=err, env=env, cwd=folder, start_new_session=True)
        try:
            while sample and process.poll() is None and time.monotonic() < end:
                peak = max(peak, sum(map(memory, leaves(process.pid))))
                time.sleep(SAMPLE_S)
            code: int | str = process.wait(max(end - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            code = f"no end within {LIMIT_S} s"
        finally:
            if process.poll() is None:
                process.terminate()  # mpirun tells its ranks
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        texts = [Path(f"{folder}/{name}").read_text("utf-8", errors="replace") for name in ("out", "err")]
    if code:
        last = "\n".join("".join(texts).splitlines()[-15:])
        name = shlex.join(command)
        raise ChildError(f"{name}: expected exit code 0, got {code}. Run it alone; its last lines here:\n{last}")
    return texts[0], peak


def leaves(pid: int) -> list[int]:
    """Return the processes under `pid` that started none themselves: the ranks, without their launchers."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended
        return []
    return [leaf for one in children for leaf in leaves(int(one))] or [pid]


def memory(pid: int) -> float:
    """Return the proportional set size of a process in MiB."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) / 1024
    return 0.0


def mpirun(ranks: int) -> list[str]:
    """Return the command that starts `ranks` ranks: with the mpirun beside this Python, else that in PATH, else ""."""
    beside = Path(sys.executable).with_name("mpirun")
    program = str(beside) if beside.exists() else shutil.which("mpirun") or ""
    if program:
        said = subprocess.run([program, "--version"], check=False, capture_output=True, text=True).stdout
        if "Open MPI" in said or "OpenRTE" in said:
            return [program, "-n", str(ranks), "--bind-to", "none", "--map-by", ":OVERSUBSCRIBE", "--allow-run-as-root"]
    return [program, "-n", str(ranks)]
