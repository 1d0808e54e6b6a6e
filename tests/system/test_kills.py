"""SIGKILL of any rank at any moment, an exception on one rank: all end, nothing half-written is read, the run goes on."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from commands import LONG, SMALL, STEP_DRIVER, alive, wait_for

OFTEN = (*LONG, "--checkpoint.every", "5 steps")
BIG = (*LONG, "--network.widths", "1500,400", "--checkpoint.every", "1 steps", "--checkpoint.keep", "1")


def ends_all(process, limit=10):
    """Wait for the command's end and that of all its ranks; return it."""
    pids = process.ranks().values()
    started = time.monotonic()
    done = process.wait(limit)
    wait_for(lambda: not any(map(alive, pids)), "the end of all ranks", limit - (time.monotonic() - started))
    return done


@pytest.mark.parametrize(("victim", "ranks", "then"), [(0, 3, 2), (1, 3, None), (3, 4, 3), (0, 2, 4)])
def test_a_rank_is_killed_at_a_random_moment(here, goes_on, victim, ranks, then):
    chance = random.Random(1000 * victim + ranks)
    process = here.start(*OFTEN, "--name", "mine", ranks=ranks)
    epochs = chance.randrange(1, 12)
    wait_for(lambda: len(here.journal("mine")) >= epochs and here.checkpoints("mine"), f"{epochs} epochs")
    pids = process.ranks()
    assert sorted(pids) == list(range(ranks))
    os.kill(pids[victim], signal.SIGKILL)
    assert ends_all(process).code not in (0, 75)
    goes_on("mine", OFTEN, then)


def test_killed_again_and_again_on_changing_numbers_of_ranks(here, goes_on):
    chance = random.Random(7)
    start = (*OFTEN, "--name", "mine")
    for ranks in (2, None, 3):
        before = here.last_step("mine")
        process = here.start(*start, ranks=ranks)
        wait_for(lambda before=before: here.last_step("mine") > before + 20, "20 more steps")
        os.kill(process.ranks()[chance.randrange(ranks)] if ranks else process.pid, signal.SIGKILL)
        assert process.wait(10).code not in (0, 75)
        start = ("--resume", "mine")
    goes_on("mine", OFTEN, 2)


def test_killed_while_a_checkpoint_is_written(here, goes_on):
    process = here.start(*BIG, "--name", "mine")

    def stopped_while_writing():
        if here.last_step("mine") < 3 or not here.leftovers("mine"):
            return False
        os.kill(process.pid, signal.SIGSTOP)
        wait_for(
            lambda: "\nState:\tT" in Path(f"/proc/{process.pid}/status").read_text(), "a process that stands still"
        )
        if here.leftovers("mine"):
            return True
        os.kill(process.pid, signal.SIGCONT)
        return False

    wait_for(stopped_while_writing, "a checkpoint that is being written")
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(10).code == -signal.SIGKILL
    assert here.leftovers("mine")
    goes_on("mine", BIG, 2, more=4)


@pytest.mark.parametrize("ranks", [None, 2])
def test_killed_before_the_first_checkpoint(here, goes_on, ranks):
    arguments = (*LONG, "--training.model", "last")
    process = here.start(*arguments, "--name", "mine", ranks=ranks)
    wait_for(lambda: here.journal("mine"), "an epoch")
    os.kill(process.ranks()[0] if ranks else process.pid, signal.SIGKILL)
    assert process.wait(10).code not in (0, 75)
    assert here.checkpoints("mine") == []
    goes_on("mine", arguments, 2)


def test_killed_as_soon_as_the_folder_is_there(here, goes_on):
    """A folder that is there can be resumed, its settings are in it from the first moment; else the name is free."""
    driver = """\
import os, signal, sys
from distbp import command, train
from distbp.coordinator.folder import RunFolder

def locked(self):
    os.kill(os.getpid(), signal.SIGKILL)

RunFolder._locked = locked
sys.exit(command.run(train.train_command))
"""
    assert here.run(*LONG, "--name", "mine", driver=driver).code == -signal.SIGKILL
    if here.folder("mine").exists():
        goes_on("mine", LONG)
    else:
        assert here.run(*SMALL, "--name", "mine").code == 0


MEMORY = "raise MemoryError('no room')"


@pytest.mark.parametrize(("rank", "how"), [(0, MEMORY), (2, MEMORY), (1, "sys.exit(3)"), (1, "os._exit(3)")])
def test_one_rank_alone_fails(here, goes_on, rank, how):
    driver = STEP_DRIVER.format(code=f"if step == 57 and rank == {rank}: {how}")
    process = here.start(*OFTEN, "--name", "mine", ranks=3, driver=driver)
    wait_for(lambda: here.last_step("mine") >= 30 or process.popen.poll() is not None, "some steps")
    done = ends_all(process)
    assert done.code not in (0, 75)
    if "Memory" in how:
        assert done.code == 1
        assert (
            done.err.count("distbp: ")
            == done.err.count(f"distbp: rank {rank} of 3 failed: MemoryError: no room\n")
            == 1
        )
        assert "Traceback" not in done.err
    goes_on("mine", OFTEN, 2)


@pytest.mark.parametrize("how", ["os.kill(os.getpid(), signal.SIGKILL)", "raise MemoryError('no room')"])
@pytest.mark.parametrize(("rank", "ranks", "extra"), [(0, None, ()), (1, 2, ()), (0, 3, ("--descent.clip", "0.5")),
                                                      (1, 2, ("--training.shared_memory", "false"))])  # fmt: skip
def test_killed_in_the_middle_of_a_descent_step(here, goes_on, rank, ranks, extra, how):
    """A part of the theta that the ranks share is one step ahead; that state is never saved."""
    driver = f"""\
import os, signal, sys
from distbp import command, train
from distbp.training.step import Stepper

descend = Stepper._descend

def changed(self, t, tiles, *rest):
    if self.step == 57 and self.world.rank == {rank} and tiles:
        descend(self, t, tiles[:1], *rest)
        {how}
    descend(self, t, tiles, *rest)

Stepper._descend = changed
sys.exit(command.run(train.train_command))
"""
    arguments = (*LONG, "--checkpoint.every", "1 steps", *extra)
    done = ends_all(here.start(*arguments, "--name", "mine", ranks=ranks, driver=driver))
    assert done.code not in (0, 75)
    assert 0 < here.last_step("mine") <= 57  # the last ones may have been on their way to the disk
    goes_on("mine", arguments, 2)


def test_with_debug_the_failing_rank_shows_where(here):
    driver = STEP_DRIVER.format(code="if step == 7 and rank == 1: raise MemoryError('no room')")
    done = here.run(*LONG, "--name", "mine", "--debug", ranks=2, driver=driver, limit=20)
    assert done.code == 1
    assert done.err.count("Traceback (most recent call last):") == 1


def test_an_exception_alone_is_exit_1(here):
    done = here.run(
        *LONG, "--name", "mine", driver=STEP_DRIVER.format(code="if step == 7: raise MemoryError('no room')")
    )
    assert (done.code, done.err) == (1, "distbp: MemoryError: no room\n")


@pytest.mark.parametrize("ranks", [None, 2])
def test_the_thread_that_writes_checkpoints_fails_by_no_fault_of_the_disk(here, goes_on, ranks):
    driver = """\
import sys
from distbp import command, train
from distbp.coordinator import files

write = files.write

def changed(path, *arguments):
    if path.name == "step-00000040.safetensors":
        raise MemoryError("no room for a copy")
    write(path, *arguments)

files.write = changed
sys.exit(command.run(train.train_command))
"""
    process = here.start(*OFTEN, "--name", "mine", "--training.epochs", 20, ranks=ranks, driver=driver)
    done = process.wait(10)
    assert done.code == 1
    assert "MemoryError: no room for a copy" in done.err
    assert here.last_step("mine") == 39  # the best, after an epoch
    goes_on("mine", OFTEN, 2)
