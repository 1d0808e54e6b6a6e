"""Three hosts over ssh, with each MPI: the bytes cross the links, hosts die and are cut off, the bits stay the same."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from commands import LONG, descendants, places, wait_for

pytestmark = pytest.mark.hosts

ALL = "node0:1,node1:1,node2:1"
RUN = (*LONG, "--checkpoint.every", "100 steps", "--name", "mine")
STEPS = ("--training.epochs", "0", "--training.steps", "3000")


@pytest.fixture(scope="session")
def one_process(tmp_path_factory):
    """Return what one process gives."""
    found = {}
    for place in places(tmp_path_factory.mktemp("one")):
        done = place.run(*RUN, *STEPS, "--quiet")
        assert done.code == 0, done.err
        found = place.hashes("mine")
    return found


@pytest.mark.parametrize("how", ["kill", "cut", "break"])
def test_a_host_that_is_lost_is_done_without(here, hosts, python, one_process, how):
    running = hosts.launch(here, python, "--hosts", ALL, "--", *RUN, *STEPS)
    wait_for(lambda: here.last_step("mine") >= 300, "some checkpoints")
    if how == "break":  # it still answers, but has lost its files
        hosts.call("enter", 2, "sh", "-c", f"mount -t tmpfs tmpfs {Path(python).parent} && pkill -9 -f distbp[.]train")
    else:
        hosts.call(how, 2)
    lost = time.monotonic()
    wait_for(lambda: "2 ranks on node0:1, node1:1" in running.text(1), "a start on two hosts", 60)
    assert time.monotonic() - lost < 40
    done = running.wait(120)
    assert done.code == 0, done.err
    assert "without node2: " in done.err
    if how == "break":
        assert f"without node2: node2: expected {python} with distbp and mpi4py in " in done.err
        hosts.call("kill", 2)  # with its mounts; it is revived afterwards
    if how == "cut":
        assert "node2 no longer answers. Restart 1 of 10 in 1 s" in done.err
    assert here.hashes("mine") == one_process
    assert here.leftovers("mine") == []


@pytest.mark.parametrize(("lose", "bring_back"), [("kill", "revive"), ("cut", "mend")])
def test_a_host_that_is_back_takes_part_again(here, hosts, python, one_process, lose, bring_back):
    """Its ranks of before are ended, where they live on."""
    running = hosts.launch(here, python, "--hosts", ALL, "--min-ranks", "3", "--", *RUN, *STEPS)
    wait_for(lambda: here.last_step("mine") >= 300, "some checkpoints")
    hosts.call(lose, 1)
    wait_for(lambda: "expected at least 3 ranks (--min-ranks)" in running.text(1), "too few hosts", 60)
    hosts.call(bring_back, 1)
    done = running.wait(120)
    assert done.code == 0, done.err
    assert hosts.call("enter", 1, "sh", "-c", "pgrep -f distbp[.]train || true") == ""
    assert running.text(1).count("3 ranks on node0:1, node1:1, node2:1") == 2
    assert here.hashes("mine") == one_process


def test_a_signal_reaches_the_ranks_of_all_hosts(here, hosts, python):
    running = hosts.launch(here, python, "--hosts", ALL, "--", *RUN)
    wait_for(lambda: here.last_step("mine") >= 100, "a checkpoint")
    launcher = wait_for(lambda: _launcher(running), "the launcher")
    os.kill(launcher, signal.SIGTERM)
    done = running.wait()
    assert done.code == 75, done.err
    assert "go on with --resume runs/mine" in done.out


def _launcher(running):
    """Return the launcher's process, below the one that entered the host."""
    for pid in [running.pid, *descendants(running.pid)]:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"distbp.launch" in words and b"python" in words[0]:
            return pid
    return 0


@pytest.mark.parametrize("how", ["kill", "cut"])
def test_a_host_that_does_not_answer_is_named_within_10_s(here, hosts, python, how):
    hosts.call(how, 2)
    started = time.monotonic()
    done = hosts.launch(here, python, "--hosts", ALL, "--", *RUN).wait(30)
    assert time.monotonic() - started < 10
    assert done.code == 2
    assert (
        "distbp: hosts: expected all 3 to answer over ssh within 8 s, got nothing from node2 (ssh: connect to"
        in done.err
    )
    assert done.err.startswith("distbp.launch: waiting for node2: ")


def test_a_host_that_answers_but_hangs_is_named_within_10_s(here, hosts, python):
    (here.path / "hangs").write_text("#!/bin/sh\nexec sleep 30\n")
    (here.path / "hangs").chmod(0o700)
    (here.path / "hosts").write_text(f"node0\nnode1\nnode2 python={here.path}/hangs\n")
    started = time.monotonic()
    done = hosts.launch(here, python, "--hostfile", "hosts", "--", *RUN).wait(30)
    assert time.monotonic() - started < 10
    assert done.code == 2
    assert done.err.startswith("distbp.launch: waiting for node2: no answer yet\n")
    assert "got nothing from node2 (no answer within 8 s)" in done.err


def test_paths_that_differ_between_hosts(here, hosts, python, one_process):
    """node1 has its environment elsewhere, and not where node0 has it; its working folder too."""
    bin_here = Path(python).parent
    there = "/opt/distbp-elsewhere"
    hosts.call("enter", 1, "sh", "-c", f"mkdir -p {there} /opt/distbp-work && mount -t tmpfs tmpfs {there} && mkdir {there}/venv "
               f"&& mount --bind {bin_here.parent} {there}/venv && mount -t tmpfs tmpfs {bin_here.parent}")  # fmt: skip
    try:
        (here.path / "hosts").write_text(
            f"node0\nnode1 python={there}/venv/bin/{Path(python).name} directory=/opt/distbp-work\nnode2\n"
        )
        done = hosts.launch(here, python, "--hostfile", "hosts", "--", *RUN, *STEPS).wait(120)
        assert done.code == 0, done.err
        assert "3 ranks on 3 hosts" in done.out
        assert here.hashes("mine") == one_process
        done = hosts.launch(here, python, "--hosts", ALL, "--", "--name", "other").wait(60)
        assert done.code == 2
        assert f"node1: expected {python} with distbp and mpi4py in " in done.err
        assert ", or name its Python in the host file: node1 python=PATH." in done.err
    finally:
        hosts.call("kill", 1)  # with its mounts; it is revived afterwards


def test_blas_kernels_that_differ_between_hosts_are_found_at_the_start(here, hosts, python):
    there = "/opt/distbp-other"  # node1's alone: its programs by link, its python with another kernel
    python_there = f'#!/bin/sh\\nexport OPENBLAS_CORETYPE=Nehalem\\nexec {python} "$@"\\n'
    hosts.call("enter", 1, "sh", "-c", f"mkdir -p {there} && mount -t tmpfs tmpfs {there} && ln -s {os.path.dirname(python)}/* {there}/ "
               f"&& rm {there}/python && printf '{python_there}' > {there}/python && chmod +x {there}/python")  # fmt: skip
    try:
        (here.path / "hosts").write_text(f"node0\nnode1 python={there}/python\n")
        done = hosts.launch(here, python, "--hostfile", "hosts", "--", *RUN, *STEPS).wait(60)
        assert done.code == 2, done.err
        assert "hosts: expected one blas_kernel on all ranks, got Nehalem on rank 1 (node1)" in done.err
    finally:
        hosts.call("kill", 1)


def test_data_on_the_host_of_rank_0_alone(here, hosts, python):
    """The other hosts work in empty folders, where the data's path leads nowhere; its bytes cross the links."""
    x = np.random.default_rng(0).normal(size=(20_000, 50))
    np.savez(here.path / "rows.npz", x=x, y=x[:, :2] - x[:, 2:4])
    run = ("--data.source", "rows.npz", "--network.widths", "4", "--training.epochs", "1")
    assert here.run(*run, "--name", "alone").code == 0
    for number in (1, 2):
        (here.path / f"at{number}").mkdir()
    lines = ["node0", *(f"node{number} directory={here.path}/at{number}" for number in (1, 2))]
    (here.path / "hosts").write_text("\n".join(lines) + "\n")
    done = hosts.launch(here, python, "--hostfile", "hosts", "--max-restarts", "0", "--", *run, "--name", "read").wait()
    assert done.code == 2
    assert "rows.npz: expected " in done.err
    assert "got no file of that name on rank 1 of 3. Check the path." in done.err
    before = hosts.bytes()
    sent = (*run, "--data.share", "send", "--name", "mine")
    done = hosts.launch(here, python, "--hostfile", "hosts", "--", *sent).wait()
    assert done.code == 0, done.err
    assert hosts.bytes()[0] - before[0] > x.nbytes * 5 / 8, "node0 sent the rows of five shards of eight"
    assert here.hashes("mine") == here.hashes("alone")
