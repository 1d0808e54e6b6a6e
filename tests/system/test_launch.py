"""The launcher on this machine: real ranks killed, stopped and started again, to the bits of an unbroken run."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from commands import LONG, SMALL, alive, is_open_mpi, mpirun, wait_for
from conftest import ends_at

STEPS = 900  # takes some seconds: long enough to be killed on the way
RUN = (*LONG, "--checkpoint.every", "20 steps")


@pytest.fixture
def launch(here):
    """Return a function that starts the launcher on some ranks."""

    def start(*train, options=("-n", "3"), **how):
        return here.start(*options, "--", *train, command="launch", **how)

    return start


def test_a_run_from_its_start_to_its_end(here, launch, unbroken):
    done = launch(*LONG, *ends_at(40), "--name", "mine").wait()
    assert done.code == 0, done.err
    assert done.err.startswith("distbp.launch: 3 ranks, ")
    assert done.err.count("\n") == 1, "marks are not shown"
    assert "distbp 0.1.0: 3 ranks on 1 host" in done.out
    assert done.out.rstrip().splitlines()[-1].startswith("model: ")
    assert here.hashes("mine") == unbroken(LONG, 40)


def test_ranks_that_are_killed_are_started_again(here, launch, unbroken):
    running = launch(*RUN, *ends_at(STEPS), "--name", "mine")
    for kill, rank in enumerate((2, 0)):
        before = here.last_step("mine") if kill else 0
        wait_for(lambda before=before: here.last_step("mine") > before + 20, "another checkpoint")
        os.kill(wait_for(running.ranks, "ranks")[rank], signal.SIGKILL)
        wait_for(lambda kill=kill: running.text(1).count("Restart ") == kill + 1, "a restart")
        wait_for(lambda kill=kill: running.text(0).count("resumed after step") == kill + 1, "ranks that resumed")
    done = running.wait()
    assert done.code == 0, done.err
    assert "the ranks ended without a last word (mpirun's exit code was " in done.err
    assert "Restart 1 of 10 in 1 s\n" in done.err
    assert here.hashes("mine") == unbroken(RUN, STEPS)
    assert here.leftovers("mine") == []


def test_a_signal_is_passed_on_and_ranks_have_time_to_save(here, launch, goes_on):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        name = number.name
        running = launch(*RUN, "--name", name)
        wait_for(lambda name=name: here.last_step(name), "a checkpoint")
        os.kill(running.pid, number)
        done = running.wait()
        assert done.code == 75, done.err
        assert f"go on with --resume runs/{name}" in done.out
    goes_on(name, RUN, ranks=2)


def test_a_rank_that_is_told_to_stop_stops_the_run(here, launch):
    running = launch(*RUN, "--name", "mine")
    wait_for(lambda: here.last_step("mine"), "a checkpoint")
    os.kill(running.ranks()[1], signal.SIGTERM)
    done = running.wait()
    assert done.code == 75, done.err
    assert "Restart" not in done.err


def test_a_second_interrupt_ends_all_at_once(here, launch):
    running = launch(*RUN, "--name", "mine")
    wait_for(lambda: here.last_step("mine"), "a checkpoint")
    ranks = running.ranks()
    for pid in ranks.values():
        os.kill(pid, signal.SIGSTOP)  # they cannot save
    end = time.monotonic() + 30  # signals of one number that wait are one: so again and again, until it is enough
    while running.popen.poll() is None and time.monotonic() < end:
        os.kill(running.pid, signal.SIGINT)
        time.sleep(0.2)
    assert running.wait().code == 130
    assert not any(alive(pid) for pid in ranks.values())


def test_a_terminal_that_closes_is_nothing_to_nohup(here, launch):
    running = launch(
        *LONG, *ends_at(400), "--name", "mine", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    wait_for(lambda: "step" in running.text(0), "a start")
    os.kill(running.pid, signal.SIGHUP)
    assert running.wait().code == 0


def test_a_lock_that_a_lost_rank_still_holds_is_waited_for(here, launch, unbroken):
    """As a file system keeps it for a host that has gone without a word."""
    running = launch(*RUN, *ends_at(STEPS), "--name", "mine")
    wait_for(lambda: here.last_step("mine") > 20, "a checkpoint")
    with open(here.folder("mine") / ".lock", "rb") as lock:
        os.kill(running.ranks()[0], signal.SIGKILL)
        fcntl.flock(lock, fcntl.LOCK_EX)
        wait_for(lambda: "expected no other process to train into it" in running.text(1), "a refusal")
    done = running.wait()
    assert done.code == 0, done.err
    assert here.hashes("mine") == unbroken(RUN, STEPS)


@pytest.fixture
def in_rank_1(tmp_path):
    """Return a function from code to variables that make rank 1 run it as it starts; the launcher is left alone."""

    def variables(code):
        own = "import os\nif os.environ.get('PMI_RANK', os.environ.get('OMPI_COMM_WORLD_RANK')) == '1':\n"
        (tmp_path / "own").mkdir()
        (tmp_path / "own" / "sitecustomize.py").write_text(own + textwrap.indent(code, "    "))
        return {"PYTHONPATH": os.pathsep.join([str(tmp_path / "own"), os.environ.get("PYTHONPATH", "")])}

    return variables


FIRST = """\
import signal
if not os.path.exists("died"):
    from distbp.training import run
    def dies(*arguments):
        open("died", "x").close()
        os.kill(os.getpid(), signal.SIGKILL)
    run.open_host = dies
"""


def test_a_rank_that_dies_before_the_first_step(here, launch, in_rank_1, unbroken):
    """The run's folder is there then, and nothing in it to go on from."""
    done = launch(*LONG, *ends_at(40), "--name", "mine", env=in_rank_1(FIRST)).wait()
    assert done.code == 0, done.err
    assert "Restart 1 of 10 in 1 s\n" in done.err
    assert "distbp: no checkpoint is there yet: from the start\n" in done.err
    assert here.hashes("mine") == unbroken(LONG, 40)


def test_a_signal_before_all_ranks_listen(here, launch, in_rank_1):
    running = launch(
        *LONG, "--name", "mine", env=in_rank_1("import time\nopen('waits', 'x').close()\ntime.sleep(60)\n")
    )
    wait_for((here.path / "waits").exists, "rank 1")
    os.kill(running.pid, signal.SIGTERM)
    done = running.wait()
    assert done.code == 75, done.err
    assert done.err.endswith("distbp.launch: stopped by SIGTERM before any step: start it again\n")
    assert not here.folder("mine").exists()


def test_a_cost_that_is_not_finite_is_not_tried_again(here, launch):
    done = launch(*SMALL, "--data.outputs", "1", "--network.activation", "identity", "--data.task", "regression",
                  "--network.cost", "quadratic", "--descent.rule", "gradient_descent",
                  "--descent.learning_rate", "1e6", "--name", "mine").wait()  # fmt: skip
    assert done.code == 1, done.err
    assert ": expected a finite " in done.err
    assert done.err.endswith("distbp.launch: a restart would end the same way: not restarted\n")
    assert "Restart" not in done.err


def test_bad_input_is_not_tried_again(here, launch):
    (here.path / "x.csv").write_text("a,b\n1,2\n3,?\n")
    done = launch("--data.source", "x.csv", "--name", "mine").wait()
    assert done.code == 2, done.err
    assert "distbp: x.csv: line 3, " in done.err
    assert "Restart" not in done.err
    assert not here.folder("mine").exists()


FAILS = """\
import signal
from distbp.training.step import Stepper
take = Stepper.take
def changed(self, step, eta, flags):
    if step == 30:
        {what}
    return take(self, step, eta, flags)
Stepper.take = changed
"""
DIES = FAILS.format(what="os.kill(os.getpid(), signal.SIGKILL)")


def test_the_same_step_failing_three_times_ends_it(here, launch, in_rank_1):
    done = launch(*RUN, "--name", "mine", env=in_rank_1(DIES)).wait()
    assert done.code == 1, done.err
    assert done.err.count("distbp.launch: 3 ranks, ") == 3
    assert ". Got no further than step " in done.err
    assert " in 3 attempts: not restarted\n" in done.err
    assert done.err.endswith("distbp.launch: go on by hand with: -- --resume runs/mine\n")
    assert 20 <= here.last_step("mine") < 30


def test_restarts_are_counted(here, launch, in_rank_1):
    done = launch(*RUN, "--name", "mine", options=("-n", "2", "--max-restarts", "1"), env=in_rank_1(DIES)).wait()
    assert done.code == 1, done.err
    assert "Restart 1 of 1 in 1 s\n" in done.err
    assert "1 restarts are used up (--max-restarts)\n" in done.err


def test_another_ranks_words_have_its_number(here, launch, in_rank_1):
    env = in_rank_1(FAILS.format(what="raise RuntimeError('planted')"))
    done = launch(*RUN, "--name", "mine", options=("-n", "2", "--max-restarts", "0"), env=env).wait()
    assert done.code == 1
    assert "rank 1: distbp: rank 1 of 2 failed: planted\n" in done.err


@pytest.mark.parametrize("by_name", [False, True])
def test_dry_run_prints_the_command(here, launch, by_name):
    own = ("--mpi", "openmpi" if is_open_mpi() else "mpich") if by_name else ()
    done = launch("--name", "mine", options=("-n", "3", "--dry-run", *own)).wait()
    words = done.out.split()
    assert (done.code, done.err) == (0, "")
    assert words[0] == mpirun(1)[0]
    assert words[words.index("-n") :] == ["-n", "3", sys.executable, "-m", "distbp.train", "--name", "mine"]
    assert not (here.path / "runs").exists()


def test_dry_run_says_what_it_cannot_print(here, launch):
    done = launch(options=("--hosts", f"localhost:2 python={sys.executable}", "--dry-run")).wait()
    assert (done.code, done.out.count("\n")) == (0, 1)
    assert done.err == "distbp.launch: the agent that finds each host's own Python is made when it is started\n"


def test_an_environment_with_another_mpi_is_refused(tmp_path):
    (tmp_path / "distbp-mpich,plot").touch()
    setup = Path(__file__).parents[2] / "launch" / "setup.sh"
    environment = {name: value for name, value in os.environ.items() if name != "DISTBP_VENV"}
    line = ["bash", "-c", f"source {setup}; set_up openmpi {tmp_path}"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        f"launch: expected an environment for openmpi, got one with mpich in {tmp_path}. "
        "Unset DISTBP_MPI, or remove that folder.\n",
    )


@pytest.mark.parametrize(
    ("options", "train", "message"),
    [
        (["x.toml"], [], "command line: expected -- before what is for distbp.train, got x.toml. Write: python -m distbp.launch -n 4 -- SETTINGS.toml"),
        (["--nosuch"], [], "command line: expected a known option before --, got --nosuch. See --help."),
        (["--hosts", "localhost:1 python=/nosuch/python"], [], "localhost: expected /nosuch/python with distbp and mpi4py in "),
        (["-n", "0"], [], "command line: argument -n: expected a whole number >= 1, got '0'. See --help."),
        (["-n", "2", "--min-ranks", "3"], [], "--min-ranks: expected at most as many as are started (2), got 3. Lower it."),
        (["--hosts", "a:0"], [], "--hosts, entry 1: expected a number of ranks > 0, got '0'. Mend that entry."),
        (["--hosts", "a:1,b what=3"], [], "--hosts, entry 2: expected a host like node1, node1:2 or node1 slots=2 python=PATH directory=PATH, got 'b what=3'. Mend that entry."),
        (["--hostfile", "none"], [], "none: expected a host file, got No such file or directory. Check --hostfile."),
        (["--hosts", ""], [], "--hosts: expected at least one host, got none. Give it like node1:2,node2:2."),
        (["--hosts", "a:\u00b2"], [], "--hosts, entry 1: expected a number of ranks > 0, got '\u00b2'. Mend that entry."),
        (["--hosts", "a python=bin/python"], [], "--hosts, entry 1: expected a whole path, got python=bin/python. Write it from / on."),
        (["--hosts", "localhost:1", "--min-ranks", "2"], [], "--min-ranks: expected at most as many as are started (1), got 2. Lower it."),
        (["--hosts", "localhost:2", "-n", "3"], [], "-n: expected at most the hosts' 2 slots, got 3. Give the hosts more slots, or lower it."),
        (["--hosts", "localhost", "--ssh", "nosuch"], [], ""),
        (["--hosts", "elsewhere.invalid", "--ssh", "nosuch"], [], "--ssh: expected a program, got nosuch, which is not there. Install ssh, or name it."),
        (["--starter", "srun"], [], "--starter: expected a Slurm job and an srun that offers --mpi="),
        (["-n", "2"], ["--descent.rat", "3"], "descent.rat: expected a known setting, got an unknown name. Did you mean descent.rule?"),
        (["-n", "2"], ["none.toml"], "none.toml: expected a settings file, got No such file or directory. Check the path."),
    ],
)  # fmt: skip
def test_what_cannot_be_started_is_said_before_anything_is(here, launch, options, train, message):
    done = launch(
        *train, options=[*options, "--dry-run"] if not message else options, env={"SLURM_JOB_ID": None}
    ).wait()
    assert done.code == (2 if message else 0)
    assert message in done.err
    assert not (here.path / "runs").exists()


def test_an_mpi_that_is_not_there(here, launch):
    done = launch(options=("--mpi", "intel")).wait()
    assert done.code == 2
    assert "distbp: launch: expected " in done.err
    assert " with distbp and mpi4py in " in done.err


@pytest.mark.skipif(not shutil.which("ssh"), reason="needs ssh")
def test_a_host_that_does_not_answer_is_named(here, launch):
    done = launch(options=("--hosts", "localhost:1,elsewhere.invalid:1", "--wait", "1")).wait(20)
    assert done.code == 2
    assert (
        "distbp: hosts: expected all 2 to answer over ssh within 1 s, got nothing from elsewhere.invalid (" in done.err
    )
    assert done.err.endswith("). Start them, leave them out, or give them longer with --wait.\n")


def test_a_hostfile_of_this_machine(here, launch, unbroken):
    (here.path / "hosts").write_text("# this machine\nlocalhost slots=2\n")
    done = launch(*LONG, *ends_at(40), "--name", "mine", options=("--hostfile", "hosts")).wait()
    assert done.code == 0, done.err
    assert "distbp.launch: 2 ranks on localhost:2, " in done.err
    assert here.hashes("mine") == unbroken(LONG, 40)


def test_a_reader_that_leaves_does_not_end_the_run(here, launch):
    read, write = os.pipe()
    running = launch(*LONG, *ends_at(200), "--name", "mine", stdout=write)
    os.close(write)
    os.close(read)
    done = running.wait()
    assert done.code == 0, done.err
    assert json.loads((here.folder("mine") / "run.json").read_text())["sessions"][-1]["exit"] == "steps"
