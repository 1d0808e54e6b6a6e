"""Every way the bytes can travel gives the bytes of one process."""

import numpy as np
import pytest

from distbp.parallel import messages
from distbp.parallel.messages import Gathered, InParts, transport
from distbp.parallel.tree import additions, complete_nodes, fold_shards, fold_stack
from distbp.parallel.world import shards_of

pytestmark = pytest.mark.mpi


@pytest.fixture
def comm(world):
    """Return the communicator of all ranks; each is a host of its own here."""
    if not world.comm:
        pytest.skip("one process sends nothing")
    return world.comm


def shard_sum(shard, n, dtype):
    """Return the same hard-to-add numbers for a shard, whoever asks: magnitudes from 1e-6 to 1e6."""
    random = np.random.default_rng(shard)
    return (random.standard_normal(n) * 10.0 ** random.integers(-6, 7, n)).astype(dtype)


def total(comm, n_shards, n, dtype):
    """Return the bytes of the sum over all shards, and what brought them."""
    ranges = [shards_of(r, comm.size, n_shards) for r in range(comm.size)]
    per_rank = [complete_nodes(own.start, own.stop, n_shards) for own in ranges]
    memory = np.full((len(per_rank[comm.rank]), n + 7), np.nan, dtype)  # as in a run: a part of a longer vector
    own = memory[:, 3 : 3 + n]
    for row, (start, stop) in zip(own, per_rank[comm.rank], strict=True):
        stack = np.stack([shard_sum(shard, n, dtype) for shard in range(start, stop)])
        fold_stack(stack)
        row[...] = stack[0]
    pairs = additions([node for nodes in per_rank for node in nodes])
    found = transport(comm, [len(nodes) for nodes in per_rank], pairs, n, dtype)
    sums = [found.total(own.copy()), found.total(own)]  # nothing is left of a step in the next
    for sum_ in sums:
        assert (sum_.shape, sum_.dtype) == ((n,), dtype)
    assert sums[0].tobytes() == sums[1].tobytes()
    return sums[0].tobytes(), type(found)


def by_definition(n_shards, n, dtype):
    """Return the sum by DESIGN's node (k, i): left + right, or the left alone where the right is empty."""

    def node(k, i):
        if i * 2**k >= n_shards:
            return None
        if k == 0:
            return shard_sum(i, n, dtype)
        left, right = node(k - 1, 2 * i), node(k - 1, 2 * i + 1)
        return left if right is None else left + right

    return node((n_shards - 1).bit_length(), 0).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 5, 1000, 40_001])
@pytest.mark.parametrize("n_shards", [4, 5, 7, 8, 13, 16])
def test_the_sum_has_the_bytes_of_the_definition(comm, n_shards, n, dtype):
    assert total(comm, n_shards, n, dtype)[0] == by_definition(n_shards, n, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("short", "kind"), [(-1, InParts), (1 << 30, Gathered)])
@pytest.mark.parametrize("n_shards", [4, 5, 7, 8, 13, 16])
def test_no_transport_changes_a_bit(comm, monkeypatch, n_shards, short, kind, dtype):
    monkeypatch.setattr(messages, "SHORT", short)
    for n in (0, 1, 2, 3, 17, 1001, 40_001):  # also fewer numbers than ranks
        assert total(comm, n_shards, n, dtype) == (by_definition(n_shards, n, dtype), kind)


def test_short_vectors_are_gathered_and_long_ones_come_in_parts(comm):
    n_shards = 1 << (comm.size - 1).bit_length()
    kinds = [total(comm, n_shards, n, "float32")[1] for n in (100, 100_000)]
    assert kinds == [Gathered, InParts]


@pytest.mark.parametrize("n_shards", [4, 7, 8, 13, 16])
def test_one_process_without_mpi_gives_the_same(n_shards):
    stack = np.stack([shard_sum(shard, 1000, "float32") for shard in range(n_shards)])
    assert fold_shards(stack.copy()).tobytes() == by_definition(n_shards, 1000, "float32")
    fold_stack(stack)
    assert stack[0].tobytes() == by_definition(n_shards, 1000, "float32")
