"""SIGTERM, SIGINT and SIGUSR1 in every phase: exit 75, a checkpoint, and the same bytes when the run goes on."""

import os
import signal

import pytest
from commands import LONG, STEP_DRIVER, about, is_open_mpi, wait_for
from conftest import ends_at

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
BIG = (*LONG, "--network.widths", "1500,400", "--checkpoint.every", "1 steps", "--checkpoint.keep", "1")

# Sends a signal to this very process in the `at`-th block of a validation that some rank does.
VALIDATION_DRIVER = """\
import os, signal, sys
from distbp import command, train
from distbp.training.evaluation import Evaluator

add, calls = Evaluator._add, 0

def changed(self, *arguments):
    global calls
    calls += 1
    if calls == {at} and self.world.rank == {rank}:
        os.kill(os.getpid(), signal.SIGTERM)
    return add(self, *arguments)

Evaluator._add = changed
sys.exit(command.run(train.train_command))
"""


def skip_what_open_mpi_does_not_forward(ranks, number):
    if ranks and number != signal.SIGUSR1 and is_open_mpi():
        pytest.skip("Open MPI's mpirun kills its ranks soon after SIGTERM and SIGINT")


@pytest.mark.parametrize("ranks", [None, 3])
@pytest.mark.parametrize("number", SIGNALS)
def test_in_training(here, goes_on, number, ranks):
    skip_what_open_mpi_does_not_forward(ranks, number)
    process = here.start(*LONG, "--name", "mine", ranks=ranks)
    wait_for(lambda: len(here.journal("mine")) > 2, "three epochs")
    process.popen.send_signal(number)  # to mpirun, which forwards it
    done = process.wait(20)
    assert done.code == 75
    last = f"{here.last_step('mine'):,}; go on with --resume runs/mine\n"
    assert f"\nstopped by {signal.Signals(number).name} after step {last}" in done.out
    assert "distbp: " not in done.err
    assert not (here.folder("mine") / "model.safetensors").exists()
    goes_on("mine", LONG, None if ranks else 3)


@pytest.mark.parametrize("rank", [0, 2])
def test_one_rank_is_told_and_all_leave(here, goes_on, rank):
    process = here.start(*LONG, "--name", "mine", ranks=3)
    wait_for(lambda: here.journal("mine"), "an epoch")
    os.kill(process.ranks()[rank], signal.SIGUSR1)
    done = process.wait(20)
    assert done.code == 75
    assert f"\nstopped by {'a signal to another rank' if rank else 'SIGUSR1'} after step " in done.out
    goes_on("mine", LONG, 2)


def test_many_signals_are_one(here, goes_on):
    process = here.start(*LONG, "--name", "mine")
    wait_for(lambda: here.journal("mine"), "an epoch")
    while process.popen.poll() is None:
        process.popen.send_signal(signal.SIGTERM)
    done = process.wait()
    assert (done.code, done.err) == (75, "")
    goes_on("mine", LONG)


@pytest.mark.parametrize(("ranks", "rank"), [(None, 0), (3, 0), (3, 2)])
def test_in_validation(here, unbroken, ranks, rank):
    arguments = (*LONG, "--data.rows", "9000", "--data.validation", "0.9", "--checkpoint.every", "1 epochs")
    at = 3 + -(-8100 // 8 // 256) * (8 if ranks is None else 2 if rank == 0 else 3)  # in the second validation
    done = here.run(*arguments, "--name", "mine", ranks=ranks, driver=VALIDATION_DRIVER.format(at=at, rank=rank))
    assert done.code == 75
    state = about(here.checkpoints("mine")[-1])["state"]
    per_epoch = here.journal("mine")[0]["step"]
    assert state["step"] == 2 * per_epoch
    assert state["validated"] == per_epoch
    steps = 3 * per_epoch
    assert here.run("--resume", "mine", *ends_at(steps), ranks=2).code == 0
    assert here.hashes("mine") == unbroken(arguments, steps)
    assert [entry["step"] for entry in here.journal("mine")] == [per_epoch, 2 * per_epoch, 3 * per_epoch]


def test_in_the_last_validation_of_the_run(here, unbroken):
    """The last validation is due because the run ends, not because validate_every says so."""
    arguments = (*LONG, "--data.validation", "0.9", "--training.validate_every", "2", "--training.model", "last")
    done = here.run(*arguments, *ends_at(6), "--name", "mine", driver=VALIDATION_DRIVER.format(at=9 + 2, rank=0))
    assert done.code == 75
    assert about(here.checkpoints("mine")[-1])["state"]["validated"] == 4
    assert here.run("--resume", "mine").code == 0
    assert here.hashes("mine") == unbroken(arguments, 6)


@pytest.mark.parametrize("validation", ["0", "0.2"])
def test_in_the_last_step_of_an_epoch(here, validation):
    arguments = (*LONG, "--data.validation", validation, "--checkpoint.every", "1 epochs", "--checkpoint.keep", "9")
    assert here.run(*arguments, "--training.epochs", "3", "--name", "other").code == 0
    per_epoch = here.last_step("other") // 3
    for epochs in (2, 3):
        name, before = f"after{epochs}", epochs * per_epoch - 2  # the flag rides in the next step, the epoch's last
        driver = STEP_DRIVER.format(code=f"if step == {before}: os.kill(os.getpid(), signal.SIGTERM)")
        done = here.run(*arguments, "--training.epochs", "3", "--name", name, driver=driver)
        assert done.code == 75
        assert here.last_step(name) == epochs * per_epoch
        assert here.run("--resume", name).code == 0
        assert here.all_hashes(name) == here.all_hashes("other")


@pytest.mark.parametrize("ranks", [None, 2])
def test_before_the_first_step(here, goes_on, ranks):
    """As soon as the process is there, and while it reads: 75, resumable if a step was taken, or a death without traces."""
    skip_what_open_mpi_does_not_forward(ranks, signal.SIGTERM)
    for name, ready in (
        ("early", lambda process: process.ranks() if ranks else process.pid),
        ("later", lambda process: process.text(0)),
    ):
        process = here.start(*LONG, "--data.rows", "200000", "--name", name, ranks=ranks)
        wait_for(lambda ready=ready, process=process: ready(process), "the process")
        process.popen.send_signal(signal.SIGTERM)
        done = process.wait(30)
        if done.code == 75 and "while reading data, before any step. Start it again.\n" in done.err:
            assert done.err.count("distbp: ") == 1
            assert not here.folder(name).exists()
        elif done.code == 75:
            assert here.last_step(name) >= 1
            goes_on(name, (*LONG, "--data.rows", "200000"), more=5)
        else:
            assert name == "early"
            assert done.code in (-signal.SIGTERM, 128 + signal.SIGTERM, signal.SIGTERM)
            assert not here.folder(name).exists()


@pytest.mark.parametrize("ranks", [None, 2])
def test_while_a_checkpoint_is_written(here, goes_on, ranks):
    process = here.start(*BIG, "--name", "mine", ranks=ranks)
    wait_for(lambda: here.last_step("mine") > 2 and here.leftovers("mine"), "a checkpoint that is being written")
    process.popen.send_signal(signal.SIGUSR1)
    done = process.wait(30)
    assert done.code == 75
    assert here.leftovers("mine") == []
    assert len(here.checkpoints("mine")) <= 2  # the newest and the best
    goes_on("mine", BIG, 2, more=4)
