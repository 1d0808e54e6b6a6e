"""A folder that Slurm's jobs are submitted from, with settings files of runs of several lengths, and their bits."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from interpreters import ROOT, python_of
from slurm_cluster import Cluster, wait_for

SCRIPT = ROOT / "launch" / "slurm.sbatch"
LIMIT = 300  # seconds for one run: many ranks that share two busy cores wait for each other, step by step

# The model is that of the last step, so that every step counts for the bits.
SETTINGS = """\
[data]
source = "synthetic"
rows = 1000
features = 16
outputs = 4
[network]
widths = [32, 16]
dropout = 0.1
[descent]
rule = "adam"
learning_rate = {rate}
[training]
epochs = {epochs}
model = "last"
[checkpoint]
every = "200 epochs"
"""


class Work:
    """A folder that jobs are submitted from, and the cluster they run on."""

    def __init__(self, slurm: Cluster, path: Path) -> None:
        self.slurm, self.path = slurm, path
        self.known: dict[str, str] = {}
        for name, rate, epochs in (
            ("short", 0.002, 150),
            ("other", 0.003, 150),
            ("long", 0.002, 700),
            ("endless", 0.002, 1_000_000),
        ):
            (path / f"{name}.toml").write_text(SETTINGS.format(rate=rate, epochs=epochs))
        (path / "launch").symlink_to(SCRIPT.parent)

    def submit(self, *words: object, mpi: str = "mpich", options: tuple[str, ...] = ("--time=10",)) -> str:
        """Submit the script with these arguments, for this MPI; return the job's number."""
        return self.run(["sbatch", *options, SCRIPT, *words], mpi)

    def run(self, line: Sequence[object], mpi: str = "mpich") -> str:
        """Run a command of sbatch, as a user would in this folder; return the job's number."""
        return self.slurm.sbatch(*line[1:], cwd=self.path, env={"DISTBP_PYTHON": python_of(mpi)})

    def bits(self, run: str) -> str:
        """Return the SHA-256 of a run's model."""
        return hashlib.sha256((self.path / "runs" / run / "model.safetensors").read_bytes()).hexdigest()

    def one(self, settings: str, *options: str) -> str:
        """Return the SHA-256 that one process without Slurm gives."""
        name = "-".join(("one", settings, *options[1::2]))
        if name not in self.known:
            command = [sys.executable, "-m", "distbp.train", f"{settings}.toml", "--name", name, "--quiet", *options]
            subprocess.run(command, cwd=self.path, check=True, timeout=LIMIT)
            self.known[name] = self.bits(name)
        return self.known[name]

    def out(self, job: str) -> str:
        """Return what a job has printed: where Slurm users look, in the folder it was submitted from."""
        path = self.path / f"distbp-{job}.out"
        return path.read_text() if path.exists() else ""

    def trains(self, job: str) -> None:
        """Wait until a job's run has taken some epochs."""
        journal = self.path / "runs" / f"distbp-{job}" / "journal.jsonl"
        wait_for(lambda: journal.exists() and journal.read_text().count("\n") > 3, "epochs", lambda: self.out(job))

    def done(self, job: str) -> dict[str, str]:
        """Wait for a job's end; it must be a good one."""
        try:
            ended = self.slurm.wait(job, limit=LIMIT)
        except AssertionError:
            self.slurm.command("scancel", "--signal=KILL", "--full", job)  # or it disturbs the tests after this one
            raise
        assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), self.out(job)
        return ended
