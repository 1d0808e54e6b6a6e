"""Ranks that share memory, ranks that do not, and threads: the same bytes, and a host that cannot share says so."""

import resource
import sys
from pathlib import Path

import numpy as np
import pytest

from distbp.parallel import messages
from distbp.parallel.host import Host, open_host
from distbp.parallel.world import World, shards_of

sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))
from steppers import make_stepper, state_bytes
from test_step import TABLES, changed

pytestmark = pytest.mark.mpi

SHAPES = {"a": ((3, 5), "float32"), "nothing": ((0,), "float32"), "b": ((1001,), "float64")}


def nothing(text):
    """Take what would be printed."""


def opened(world, share, said=nothing):
    return open_host(world, share, 1, True, lambda host: SHAPES, said)


def test_what_one_rank_writes_all_read(world):
    host, memory = opened(world, True)
    assert (host.size, host.n_hosts) == (world.size, 1)
    assert {name: (array.shape, array.dtype.name) for name, array in memory.items()} == {
        name: (shape, dtype) for name, (shape, dtype) in SHAPES.items()
    }
    assert not memory["a"].any()
    assert not memory["b"].any()
    host.meet()
    for rank in range(world.size):
        if world.rank == rank:
            memory["b"][rank :: world.size] = rank + 1
        host.meet()
    assert sorted(set(memory["b"].tolist())) == [r + 1 for r in range(world.size)]
    host.meet()
    memory["a"][...] = 0
    host.meet()
    if host.rank == 0:
        memory["a"][...] = 7
    host.broadcast(memory["a"])
    assert (memory["a"] == 7).all()


def test_a_rank_of_its_own_has_its_own_memory(world):
    host, memory = opened(world, False)
    assert (host.size, host.n_hosts, host.number) == (1, world.size, world.rank)
    memory["a"][...] = world.rank
    host.meet()
    assert (memory["a"] == world.rank).all()
    host.broadcast(memory["a"])
    assert (memory["a"] == 0).all()


@pytest.mark.parametrize("n_shards", [4, 7, 8, 13])
def test_rows_of_every_shard_reach_every_host(world, n_shards):
    host, _ = opened(world, False)
    for aside in (False, True):
        rows = np.full((n_shards, 3, 2), -1.0, np.float32)
        own = shards_of(world.rank, world.size, n_shards)
        for shard in own:
            rows[shard] = shard
        host.spread(rows, aside)
        assert (rows == np.arange(n_shards)[:, None, None]).all()


def test_a_host_that_cannot_share_says_so(world):
    said = []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        host, memory = opened(world, True, said.append)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert host.size == 1
    assert memory["b"].shape == (1001,)
    expected = ["each rank keeps its own theta: the ranks of a host cannot map the same memory"]
    assert said == (expected if world.size > 1 else [])


def test_jobs_are_done_in_order_and_errors_come_back(world):
    host, _ = opened(world, False)
    done = []
    futures = [host.send(lambda i=i: done.append(i)) for i in range(50)]
    for future in futures:
        if future:
            future.result()
    assert done == list(range(50))
    if world.size > 1:
        failed = host.send(lambda: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            failed.result()


def test_a_host_gives_back_its_communicators(world):
    for _ in range(800):  # an MPI library has about 2,000, and each turn takes three
        for share in (True, False):
            host, memory = opened(world, share)
            host.close()
    memory["a"][...] = 1  # memory outlives its host
    assert memory["a"].sum() == 15


def after(world, table, steps=5, **how):
    stepper, _ = make_stepper(table, world=world, **how)
    for step in range(steps):
        stepper.take(step, 0.01, 0)
    stepper.host.meet()
    return state_bytes(stepper)


@pytest.mark.parametrize("extra", [{}, {"network": {"dropout": 0.2}, "descent": {"clip": 0.5, "rule": "momentum"}}])
@pytest.mark.parametrize("name", TABLES)
def test_sharing_threads_and_overlap_change_no_bit(world, name, extra):
    table = changed(TABLES[name], **extra)
    expected = after(World(None), table)
    assert after(world, table, share=True) == expected
    assert after(world, table, share=False) == expected
    assert after(world, table, share=False, overlap=False) == expected
    assert after(world, table, share=True, threads=2) == expected
    assert after(world, table, share=False, threads=3) == expected


@pytest.mark.parametrize("short", [0, 1 << 30])
def test_both_kinds_of_message_give_the_same(world, short, monkeypatch):
    monkeypatch.setattr(messages, "SHORT", short)
    assert after(world, TABLES["sum"], share=False) == after(World(None), TABLES["sum"])


class HostsOfTwo:
    """A communicator whose ranks are told to be on hosts of two: 0 and 1, 2 and 3."""

    def __init__(self, comm):
        self.comm = comm

    def __getattr__(self, name):
        return getattr(self.comm, name)

    def Split_type(self, kind):
        return self.comm.Split_type(kind).Split(self.comm.rank // 2, self.comm.rank)


def test_hosts_of_several_ranks_give_the_same(world):
    """Two hosts of two ranks each, as the communicators would be: here all four are on one machine."""
    if world.size != 4 or not world.comm:
        pytest.skip("needs 4 ranks")
    two = World(world.comm)
    two.comm = HostsOfTwo(world.comm)
    for name, table in TABLES.items():
        for overlap in (True, False):
            assert after(two, table, overlap=overlap) == after(World(None), table), name
        assert after(two, changed(table, descent={"clip": 0.5})) == after(
            World(None), changed(table, descent={"clip": 0.5})
        )
        assert after(two, table, threads=2) == after(World(None), table)
    host, _ = open_host(two, True, 1, True, lambda host: SHAPES, nothing)
    assert isinstance(host, Host)
    assert (host.size, host.n_hosts, host.number, host.rank) == (2, 2, world.rank // 2, world.rank % 2)


def test_hosts_of_unequal_size_do_not_share(world):
    if world.size != 3 or not world.comm:
        pytest.skip("needs 3 ranks")
    said = []
    two = World(world.comm)
    two.comm = HostsOfTwo(world.comm)  # rank 2 is on a host of its own
    host, _ = open_host(two, True, 1, True, lambda host: SHAPES, said.append)
    assert host.size == 1
    assert said == [
        "each rank keeps its own theta: hosts hold unequal numbers of ranks, or ranks that are not neighbours"
    ]
