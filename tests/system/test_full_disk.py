"""A disk that is full, a file too large, a folder that cannot be written: said, nothing lost, and resumable after."""

import os
import shutil
import subprocess

import pytest
from commands import LONG, SMALL, STEP_DRIVER, about, wait_for

from distbp.coordinator import files

WIDE = (*LONG, "--network.widths", "800,100", "--checkpoint.every", "5 steps", "--checkpoint.keep", "9")
ROOT = os.geteuid() == 0


@pytest.fixture
def disk(here):
    """Return a function that mounts a tmpfs of some size as ``runs``, or changes it."""
    runs = here.path / "runs"
    runs.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(runs)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip() or 'not root'}")

    yield mount
    subprocess.run(["umount", "-l", str(runs)], check=False, capture_output=True)


def whole(here, name):
    """Check that every checkpoint is whole and is what its name says; return how many there are."""
    for path in here.checkpoints(name):
        tensors, values = files.read(path)
        assert f"step-{values['state']['step']:08d}" == path.stem
        assert set(tensors) >= {"theta", "rule_mean", "rule_mean_square"}
    return len(here.checkpoints(name))


@pytest.mark.parametrize("ranks", [None, 3])
def test_the_disk_is_full(here, disk, goes_on, ranks):
    disk("size=5m")
    done = here.run(*WIDE, "--name", "mine", ranks=ranks, limit=30)
    assert done.code == 1
    assert done.err.count("distbp: ") == 1
    message = done.err[done.err.index("distbp: ") :].partition("\n")[0]
    assert "No space left on device" in message
    assert "runs/mine/checkpoints/step-000000" in message
    assert message.startswith("distbp: step ")
    assert message.endswith(" Then go on with --resume.")
    assert 0 < whole(here, "mine") < 9
    assert here.leftovers("mine") == []
    disk("remount,size=50m")
    goes_on("mine", WIDE, 2)
    whole(here, "mine")


def test_the_disk_is_full_when_a_run_is_resumed(here, disk, goes_on):
    disk("size=50m")
    assert here.run(*WIDE, "--training.epochs", 0, "--training.steps", 5, "--name", "mine").code == 0
    filler = here.path / "runs" / "filler"
    room = os.statvfs(here.path / "runs")
    filler.write_bytes(bytes(room.f_bavail * room.f_frsize))
    before = here.all_hashes("mine")
    settings = (here.folder("mine") / "settings.toml").read_bytes()
    done = here.run("--resume", "mine", "--training.steps", 20)
    assert done.code in (1, 2)
    assert "No space left on device" in done.err
    assert "runs/mine/" in done.err
    assert here.all_hashes("mine") == before
    assert (here.folder("mine") / "settings.toml").read_bytes() == settings
    filler.unlink()
    goes_on("mine", WIDE)


@pytest.mark.parametrize("ranks", [None, 2])
def test_no_file_may_be_as_large_as_a_checkpoint(here, goes_on, ranks):
    """RLIMIT_FSIZE: the system's other way to refuse a write, also for one who is not root."""
    assert here.run(*WIDE, "--training.epochs", 0, "--training.steps", 5, "--name", "mine").code == 0
    size = here.checkpoints("mine")[-1].stat().st_size
    before = here.all_hashes("mine")

    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size // 2}, {size // 2}))"
    driver = STEP_DRIVER.format(code=f"if step == 6: {limit}")  # MPI itself makes larger files when it starts
    done = here.run("--resume", "mine", "--training.steps", 10000, ranks=ranks, driver=driver, limit=30)
    assert done.code == 1
    assert done.err.count("distbp: ") == 1
    assert "runs/mine/checkpoints/step-000000" in done.err
    assert "File too large" in done.err
    assert here.all_hashes("mine") == before
    assert here.leftovers("mine") == []
    goes_on("mine", WIDE, 3)


def test_the_model_cannot_be_written(here, disk):
    """The disk fills up between the last checkpoint and the model."""
    disk("size=1300k")
    arguments = (*WIDE, "--training.epochs", "0", "--training.steps", "4", "--training.model", "last")
    done = here.run(*arguments, "--name", "mine")
    assert whole(here, "mine") == 1
    assert done.code == 1
    assert "runs/mine/model.safetensors" in done.err
    assert "No space left on device" in done.err
    assert not (here.folder("mine") / "model.safetensors").exists()
    disk("remount,size=50m")
    done = here.run("--resume", "mine")
    assert done.code == 0
    assert about(here.folder("mine") / "model.safetensors")["step"] == 4


@pytest.mark.parametrize("ranks", [None, 2])
def test_the_checkpoints_folder_goes_away(here, ranks):
    process = here.start(*WIDE, "--name", "mine", ranks=ranks)
    wait_for(lambda: here.checkpoints("mine"), "a checkpoint")
    shutil.move(here.folder("mine") / "checkpoints", here.path / "aside")
    done = process.wait(30)
    assert done.code == 1
    assert done.err.count("distbp: ") == 1
    assert "runs/mine/checkpoints/" in done.err
    assert "No such file or directory" in done.err


def test_a_folder_that_cannot_be_written(here, disk):
    disk("size=50m")
    assert here.run(*SMALL, "--name", "mine", "--quiet").code == 0
    disk("remount,ro")
    done = here.run(*SMALL, "--name", "other")
    assert done.code == 2
    assert done.err == (
        "distbp: runs/other: expected to make a folder for the run, got: Read-only file system. Choose --runs elsewhere.\n"
    )
    for ranks in (None, 2):
        done = here.run("--resume", "mine", "--training.epochs", 5, ranks=ranks)
        message = (
            "distbp: runs/mine: expected a folder to write to, got: Read-only file system. "
            "Check its permissions and the disk.\n"
        )
        assert done.code == 2
        assert done.err.count("distbp: ") == done.err.count(message) == 1


@pytest.mark.skipif(ROOT, reason="root may write anywhere; the read-only disk above is the same for root")
def test_a_folder_without_the_right_to_write(here):
    runs = here.path / "runs"
    runs.mkdir()
    runs.chmod(0o555)
    done = here.run(*SMALL, "--name", "mine")
    assert done.code == 2
    assert done.err == (
        "distbp: runs/mine: expected to make a folder for the run, got: Permission denied. Choose --runs elsewhere.\n"
    )


def test_runs_is_a_file(here):
    (here.path / "runs").write_text("")
    done = here.run(*SMALL, "--name", "mine")
    assert done.code == 2
    assert done.err == (
        "distbp: runs/mine: expected to make a folder for the run, got: Not a directory. Choose --runs elsewhere.\n"
    )
