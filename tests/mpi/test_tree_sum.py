"""Every way the bytes can travel gives the bytes of one process."""

import numpy as np
import pytest

from distbp.parallel import tree
from distbp.parallel.tree import TreeSum
from distbp.parallel.world import World

pytestmark = pytest.mark.mpi

N_TALLIES = 3


def shard_sums(shard, n, dtype):
    """Return the same hard-to-add numbers for a shard, whoever asks: magnitudes from 1e-6 to 1e6."""
    random = np.random.default_rng(shard)
    tallies = random.standard_normal(N_TALLIES) * 10.0 ** random.integers(-6, 7, N_TALLIES)
    return tallies, (random.standard_normal(n) * 10.0 ** random.integers(-6, 7, n)).astype(dtype)


def total(world, n_shards, n, dtype):
    def partial(start, stop, tallies, vectors):
        for i, shard in enumerate(range(start, stop)):
            tallies[i], vectors[i] = shard_sums(shard, n, dtype)

    found = TreeSum(world, n_shards, N_TALLIES, n, dtype)
    flags = np.array([0.0, 0.0, 0.0])
    first = [array.tobytes() for array in found.sum(partial, flags)]
    assert first == [array.tobytes() for array in found.sum(partial, flags)]  # nothing is left of a step in the next
    return first


def by_definition(n_shards, n, dtype):
    """Return the sum by DESIGN's node (k, i): left + right, or the left alone where the right is empty."""

    def node(k, i):
        if i * 2**k >= n_shards:
            return None
        if k == 0:
            return shard_sums(i, n, dtype)
        left, right = node(k - 1, 2 * i), node(k - 1, 2 * i + 1)
        return left if right is None else (left[0] + right[0], left[1] + right[1])

    return [array.tobytes() for array in node((n_shards - 1).bit_length(), 0)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 5, 1000, 40_001])
@pytest.mark.parametrize("n_shards", [4, 5, 7, 8, 13, 16])
def test_the_sum_has_the_bytes_of_the_definition(world, n_shards, n, dtype):
    assert total(world, n_shards, n, dtype) == by_definition(n_shards, n, dtype)


@pytest.mark.parametrize("short", [0, 1 << 30])
@pytest.mark.parametrize("stack", [1, 1 << 14, 1 << 30])
@pytest.mark.parametrize("n_shards", [4, 7, 8])
def test_no_transport_and_no_stack_changes_a_bit(world, monkeypatch, n_shards, stack, short):
    monkeypatch.setattr(tree, "SHORT", short)
    monkeypatch.setattr(tree, "STACK", stack)
    for n in (0, 1, 3, 17, 1001):
        assert total(world, n_shards, n, "float32") == by_definition(n_shards, n, "float32")


def test_one_process_without_mpi_gives_the_same(world):
    assert total(World(None), 8, 1000, "float32") == total(world, 8, 1000, "float32")


def test_flags_of_every_rank_are_added(world):
    def partial(start, stop, tallies, vectors):
        tallies[...] = 0
        vectors[...] = 0

    flags = np.array([0.0, 1.0, float(world.rank == world.size - 1)])
    for n in (2, 100_000):
        tallies, _ = TreeSum(world, 8, N_TALLIES, n, "float32").sum(partial, flags)
        assert tallies.tolist() == [0.0, world.size, 1.0]
