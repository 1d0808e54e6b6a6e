"""launch/slurm.sbatch, as it is, on a real Slurm with two nodes: the same bits, whatever happens to the job."""

from __future__ import annotations

import os
import subprocess

import pytest
from commands import documented
from interpreters import python_of
from slurm_cluster import Cluster, needs_plugin, wait_for
from slurm_work import LIMIT, SCRIPT, Work

pytestmark = pytest.mark.slurm
SHORT = {"my.toml": "short.toml"}


@pytest.fixture(scope="module")
def work(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Return the cluster, and a folder to submit from."""
    return Work(slurm, tmp_path_factory.mktemp("slurm"))


def test_the_script_as_it_is(work):
    job = work.run(documented("sbatch launch/slurm.sbatch my.toml", SHORT))
    work.done(job)
    assert "srun --mpi=pmi2 " in work.out(job)
    assert "--training.threads 1" in work.out(job)
    assert work.bits(f"distbp-{job}") == work.one("short")


def test_threads_come_from_cpus_per_task(work):
    job = work.run(documented("sbatch -N 2 -c 4 -t 12:00:00 launch/slurm.sbatch my.toml --training.epochs 50", SHORT))
    work.done(job)
    assert "--training.threads 4" in work.out(job)
    assert work.bits(f"distbp-{job}") == work.one("short", "--training.epochs", "50")


def test_an_array_job_trains_a_settings_file_a_task(work):
    job = work.run(
        documented("sbatch --array=1-2 launch/slurm.sbatch short.toml other.toml", {"--array=1-2": "--array=1-3"})
    )
    states = {task: work.slurm.wait(f"{job}_{task}", limit=LIMIT) for task in (1, 2, 3)}
    assert [states[task]["ExitCode"] for task in states] == ["0:0", "0:0", "2:0"]
    assert work.bits(f"distbp-{job}_1") == work.one("short")
    assert work.bits(f"distbp-{job}_2") == work.one("other")
    assert work.out(states[3]["JobId"]) == (
        "launch/slurm.sbatch: SLURM_ARRAY_TASK_ID: expected 1 to 2, as many as settings files, got 3. "
        "Submit with --array=1-2.\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a.toml", "b.toml"), "settings: expected one file, got 2. For several submit an array job: sbatch --array=1-2 ..."),
        (("a.toml", "--name", "x"), "--name: expected the job's name and folder to say it, got an option. Use sbatch --job-name=, --chdir=."),
    ],
)  # fmt: skip
def test_what_the_script_refuses(work, words, message):
    job = work.submit(*words)
    assert work.slurm.wait(job)["ExitCode"] == "2:0"
    assert work.out(job) == f"launch/slurm.sbatch: {message}\n"


def test_outside_a_job_the_script_says_how_to_start_it():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    done = subprocess.run(["bash", SCRIPT], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"launch/slurm.sbatch: SLURM_JOB_ID: expected to run in a job, got none. Start it with: sbatch {SCRIPT} my.toml\n"
    )


@pytest.mark.parametrize(("mpi", "wrong"), [("mpich", "none"), ("openmpi", "none"), ("openmpi", "pmi2")])
def test_a_wrong_mpi_of_srun_is_refused_by_name(work, mpi, wrong):
    command = [
        "srun",
        f"--mpi={wrong}",
        "--nodes=2",
        "--ntasks=2",
        python_of(mpi),
        "-m",
        "distbp.train",
        "short.toml",
        "--name",
        f"wrong-{mpi}-{wrong}",
    ]
    done = subprocess.run(
        command, cwd=work.path, env=work.slurm.environment, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 2, done.stderr
    message = next(line for line in done.stderr.splitlines() if line.startswith("distbp: "))
    assert ": expected 2 processes in one MPI world, got 2 worlds of size 1. mpi4py loads " in message
    assert message.endswith(f"with srun --mpi={'pmix' if mpi == 'openmpi' else 'pmi2'}.")
    assert not (work.path / "runs" / f"wrong-{mpi}-{wrong}").exists()


def test_the_time_limit_saves_and_queues_again(work):
    """Slurm looks every 30 s and is up to 30 s early: with these options it asks the run to stop after 5 to 36 s."""
    job = work.submit("endless.toml", options=("--time=1", "--signal=B:USR1@25", "--nodes=1"))
    try:
        wait_for(lambda: "\nresumed after step " in work.out(job), "the job to go on", lambda: work.out(job), 90)
        assert "\nstopped by SIGUSR1 after step " in work.out(job)
        assert work.slurm.job(job)["Restarts"] == "1"
    finally:
        work.slurm.command("scancel", job)
    assert work.slurm.wait(job)["JobState"] == "CANCELLED"


def test_a_signal_saves_and_queues_again_to_the_same_bits(work, mpi):
    needs_plugin(work.slurm, mpi)
    job = work.submit("long.toml", mpi=mpi)
    work.trains(job)
    work.slurm.command(*documented("scancel --signal=USR1 --batch 17", {"17": job}))
    assert work.done(job)["Restarts"] == "1"
    assert work.out(job).count("\nstopped by SIGUSR1 after step ") == 1
    assert work.out(job).count("\nlaunch/slurm.sbatch: queued again\n") == 1
    assert work.out(job).count("\nresumed after step ") == 1
    assert work.bits(f"distbp-{job}") == work.one("long")


def test_a_signal_to_one_task_of_an_array_leaves_the_others_alone(work):
    """One of the tasks has the array's own number: what is done to that number is done to all."""
    job = work.run(documented("sbatch --array=1-2 launch/slurm.sbatch short.toml other.toml", {
        "short.toml": "long.toml", "other.toml": "long.toml"}))  # fmt: skip
    tasks = [f"{job}_{task}" for task in (1, 2)]
    for task in tasks:
        work.trains(task)
    first = next(task for task in tasks if work.slurm.job(task)["JobId"] == job)
    (other,) = set(tasks) - {first}
    work.slurm.command("scancel", "--signal=USR1", "--batch", first)
    assert work.done(first)["Restarts"] == "1"
    assert work.done(other)["Restarts"] == "0"
    assert [work.bits(f"distbp-{task}") for task in tasks] == [work.one("long")] * 2


def test_variables_that_sbatch_does_not_export_reach_the_ranks_all_the_same(work):
    kernel = [name for name in os.environ if name.startswith("OPENBLAS")]  # the bits depend on it
    names = ",".join([f"DISTBP_PYTHON={python_of('mpich')}", *kernel])
    job = work.submit("short.toml", options=("--time=10", f"--export={names}"))
    work.done(job)
    assert work.bits(f"distbp-{job}") == work.one("short")


def test_a_job_of_higher_priority_takes_the_nodes_and_gives_them_back(work):
    job = work.submit("long.toml")
    work.trains(job)
    higher = work.slurm.sbatch(
        "--partition=high", "--nodes=2", "--exclusive", "--time=1", "--output=/dev/null", "--wrap=true", cwd=work.path
    )
    work.done(higher)
    assert work.done(job)["Restarts"] == "1"
    assert work.out(job).count("\nstopped by SIGTERM after step ") == 1
    assert work.out(job).count("\nresumed after step ") == 1
    assert work.bits(f"distbp-{job}") == work.one("long")


def test_a_killed_rank_is_started_again_within_the_job(work):
    job = work.submit("long.toml")
    work.trains(job)
    ranks = work.slurm.processes(SLURM_JOB_ID=job, SLURM_PROCID=1, PMI_RANK=1)
    assert len(ranks) == 1
    os.kill(ranks[0], 9)
    assert work.done(job)["Restarts"] == "0"  # Slurm's own; the launcher's are in the output
    assert "task 1: Killed" in work.out(job)
    assert "Restart 1 of 3 " in work.out(job)
    assert work.bits(f"distbp-{job}") == work.one("long")


def test_a_cancelled_job_saves_stays_away_and_can_be_gone_on_with(work):
    job = work.submit("long.toml")
    work.trains(job)
    work.slurm.command(*documented("scancel 17", {"17": job}))
    assert work.slurm.wait(job, "CANCELLED")["Restarts"] == "0"
    assert "\nstopped by SIGTERM after step " in work.out(job)
    again = work.run(
        documented("sbatch launch/slurm.sbatch --resume runs/distbp-17", {"runs/distbp-17": f"runs/distbp-{job}"})
    )
    work.done(again)
    assert work.slurm.job(job)["JobState"] == "CANCELLED"
    assert work.bits(f"distbp-{job}") == work.one("long")
