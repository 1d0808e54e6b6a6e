"""Slurm's nodes as hosts of their own: ranks that talk over the links, and a node that dies with all that runs on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conftest import Hosts
from slurm_cluster import Cluster, Places, missing, needs_plugin, wait_for
from slurm_work import Work

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def work(running_hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    """Return a cluster whose controller is node0, and a folder to submit from."""
    if missing():
        pytest.skip(missing())
    folder = tmp_path_factory.mktemp("slurm")
    nodes = ("NodeAddr=10.77.0.11", "NodeAddr=10.77.0.12")
    with Cluster(Places("node0(10.77.0.10)", nodes, running_hosts.entering, folder)) as cluster:
        yield Work(cluster, folder)


def test_two_hosts(work, hosts, mpi):
    needs_plugin(work.slurm, mpi)
    before = hosts.bytes()
    job = work.submit("short.toml", mpi=mpi)
    work.done(job)
    assert ": 2 ranks on 2 hosts (node1, node2), " in work.out(job)
    sent = [after - one for after, one in zip(hosts.bytes(), before, strict=True)]
    assert min(sent[1:]) > 1_000_000, "the links were used"
    assert work.bits(f"distbp-{job}") == work.one("short")


@pytest.mark.parametrize("number", [1, 2], ids=["with the batch script", "without it"])
def test_a_node_that_dies(work, hosts, number):
    """Slurm misses it after SlurmdTimeout, ends the job and queues it again; it goes on when the node is back."""
    job = work.submit("long.toml")
    checkpoints = work.path / "runs" / f"distbp-{job}" / "checkpoints"
    wait_for(lambda: any(checkpoints.glob("step-*")), "a checkpoint", lambda: work.out(job))
    hosts.call("kill", number)
    wait_for(lambda: work.slurm.job(job)["Restarts"] == "1", "Slurm to queue it again", lambda: work.out(job))
    hosts.call("revive", number)
    work.slurm.start_node(number)
    assert work.done(job)["Restarts"] == "1"
    assert work.out(job).count("\nresumed after step ") == 1
    assert work.bits(f"distbp-{job}") == work.one("long")
