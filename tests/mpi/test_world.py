"""How ranks talk beside the tree sum. Runs on any number of ranks, also on one without MPI."""

import numpy as np
import pytest

from distbp.parallel.world import AgreedRuntimeError, AgreedValueError, World, shards_of

pytestmark = pytest.mark.mpi


def test_exchange_gives_every_ranks_value_in_rank_order(world):
    given = {"rank": world.rank, "text": "ä" * (world.rank * 1000), "list": [1.5, None, True]}
    found = world.exchange(given)
    assert [f["rank"] for f in found] == list(range(world.size))
    assert found[world.rank] == given


def test_exchange_keeps_every_bit_of_a_float(world):
    assert world.from_rank_0(0.1 + 0.2 if world.rank == 0 else 0.0) == 0.1 + 0.2


def test_broadcast_overwrites_by_rank_0s_bytes(world):
    array = np.arange(10_007, dtype=np.float32) + world.rank
    world.broadcast(array)
    assert array.tobytes() == np.arange(10_007, dtype=np.float32).tobytes()


@pytest.mark.parametrize("n_shards", [8, 13])
def test_gather_shards_puts_each_shard_in_its_place(world, n_shards):
    own = shards_of(world.rank, world.size, n_shards)
    values = np.array([[[s, s * 0.5], [s + 0.25, -s]] for s in own])
    found = world.gather_shards(values, n_shards)
    assert found.tolist() == [[[s, s * 0.5], [s + 0.25, -s]] for s in range(n_shards)]


def test_in_rank_order_brings_all_pieces_to_rank_0(world):
    pieces = (np.full((n + 1, 2), world.rank * 10 + n, dtype=np.float32) for n in range(world.rank + 1))
    found = [piece.tolist() for piece in world.in_rank_order(pieces, 2)]
    expected = [[[r * 10 + n] * 2] * (n + 1) for r in range(world.size) for n in range(r + 1)]
    assert found == (expected if world.rank == 0 else [])


def test_together_is_silent_where_nothing_fails(world):
    with world.together():
        pass


@pytest.mark.parametrize("failing", ["first", "last", "all"])
@pytest.mark.parametrize(("raised", "expected"), [(ValueError, AgreedValueError), (RuntimeError, AgreedRuntimeError)])
def test_together_raises_on_all_ranks_what_one_raised(world, failing, raised, expected):
    def work():
        with world.together():
            if failing == "all" or world.rank == (0 if failing == "first" else world.size - 1):
                raise raised("here: expected this, got that. Do something.")

    with pytest.raises(expected) as caught:
        work()
    named = f" on rank {world.size - 1} of {world.size}" if failing == "last" and world.size > 1 else ""
    assert str(caught.value) == f"here: expected this, got that{named}. Do something."


def test_together_names_the_type_of_an_error_that_is_not_ours(world):
    def work():
        with world.together():
            if world.rank == world.size - 1:
                raise ZeroDivisionError("division by zero")

    with pytest.raises(AgreedRuntimeError, match="ZeroDivisionError: division by zero"):
        work()


def test_together_tells_a_disk_error_in_our_words(world, tmp_path):
    def work():
        with world.together():
            (tmp_path / "nowhere" / "file").read_text()

    with pytest.raises(AgreedRuntimeError, match="expected to be able to use it, got: No such file or directory"):
        work()


def test_describe_names_ranks_hosts_and_library(world):
    facts = world.describe()
    assert facts["ranks"] == world.size
    assert len(facts["hosts"]) == 1
    assert bool(facts["mpi"]) is (world.comm is not None)


def test_a_world_of_one_needs_no_communicator():
    one = World(None)
    assert (one.rank, one.size, one.exchange([1]), one.from_rank_0("x")) == (0, 1, [[1]], "x")


def dealt(world, n, stop=False):
    """Return the first numbers of the pieces that this rank is dealt; rank 0 has `n` for each, of growing length."""
    pieces = ((r, [np.full((i, 2), 10.0 * r + i), np.full(i, i, ">i2")]) for i in range(n) for r in range(world.size))
    like = [np.empty((0, 2)), np.empty(0, ">i2")]
    return [(x.tolist(), y.tolist()) for x, y in world.deal(pieces if world.rank == 0 else None, like, stop)]


def test_deal_brings_each_piece_to_its_rank(world):
    assert dealt(world, 4) == [([[10.0 * world.rank + i] * 2] * i, [i] * i) for i in range(4)]
    assert dealt(world, 0) == []


def test_deal_ends_everywhere_once_a_rank_wants_to(world):
    found = world.exchange(len(dealt(world, 50, stop=world.rank == world.size - 1)))
    assert found[1:] == [1] * (world.size - 1)
    assert found[0] == (1 if world.size > 1 else 50)
