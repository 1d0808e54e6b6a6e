"""Standard output may be closed, full or never there: the run completes, and its model is whole."""

import os
import shlex
import signal
import subprocess
import sys

import pytest
from commands import SMALL, is_open_mpi, places, sha256

ARGUMENTS = (*SMALL, "--training.epochs", "40")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return the SHA-256 of the model of these runs."""
    for place in places(tmp_path_factory.mktemp("open")):
        assert place.run(*ARGUMENTS, "--name", "mine").code == 0
        yield sha256(place.folder("mine") / "model.safetensors")


def closed_pipe():
    """Return the writing end of a pipe without a reader."""
    read, write = os.pipe()
    os.close(read)
    return write


def test_no_reader_from_the_start(here, model):
    write = closed_pipe()
    done = here.run(*ARGUMENTS, "--name", "mine", stdout=write)
    os.close(write)
    assert (done.code, done.err) == (0, "distbp: standard output is closed; the run goes on without it.\n")
    assert sha256(here.folder("mine") / "model.safetensors") == model


def test_a_reader_that_leaves_after_the_first_line(here, model):
    read, write = os.pipe()
    process = here.start(*ARGUMENTS, "--name", "mine", stdout=write)
    os.close(write)
    with os.fdopen(read) as reader:
        assert reader.readline().startswith("distbp ")
    done = process.wait()
    assert done.code == 0
    assert done.err in ("", "distbp: standard output is closed; the run goes on without it.\n")
    assert sha256(here.folder("mine") / "model.safetensors") == model


def test_a_full_device(here, model):
    with open("/dev/full", "wb") as full:
        done = here.run(*ARGUMENTS, "--name", "mine", stdout=full)
    assert (done.code, done.err) == (0, "distbp: standard output is closed; the run goes on without it.\n")
    assert sha256(here.folder("mine") / "model.safetensors") == model


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_a_process_without_the_stream(here, model, closed):
    """Started with the descriptor closed, as some daemons do: then sys.stdout is None."""
    line = shlex.join([sys.executable, "-m", "distbp.train", *ARGUMENTS, "--name", "mine"])
    shell = ["sh", "-c", f"{line} {closed}"]
    done = subprocess.run(shell, check=False, cwd=here.path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert sha256(here.folder("mine") / "model.safetensors") == model


def test_under_mpirun_the_reader_leaves(here):
    """MPICH's mpirun itself dies of SIGPIPE and takes its ranks along: what is saved is whole, and the run goes on."""
    read, write = os.pipe()
    process = here.start(
        *ARGUMENTS, "--training.epochs", "400", "--checkpoint.every", "5 steps", "--name", "mine", ranks=2, stdout=write
    )
    os.close(write)
    with os.fdopen(read) as reader:
        assert reader.readline().startswith("distbp ")
    done = process.wait()
    if done.code == 0:
        assert (here.folder("mine") / "model.safetensors").exists()
        return
    assert is_open_mpi() or done.code in (-signal.SIGPIPE, 128 + signal.SIGPIPE)
    if here.folder("mine").exists():
        assert here.run("--resume", "mine", "--training.epochs", 40).code == 0


def test_a_terminal_that_goes_away(here):
    """The bar is drawn on a terminal; when that is closed the run goes on and the model is there."""
    import os
    import pty
    import subprocess
    import sys

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "distbp.train", *map(str, SMALL), "--training.epochs", "600", "--name", "mine"]
    with subprocess.Popen(command, cwd=here.path, stdout=theirs, stderr=subprocess.PIPE, text=True) as process:
        os.close(theirs)
        while b"rows/s" not in os.read(ours, 65536):
            pass
        os.close(ours)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "distbp: standard output is closed; the run goes on without it.\n")
    assert (here.folder("mine") / "model.safetensors").exists()
