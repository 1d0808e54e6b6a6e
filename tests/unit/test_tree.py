"""The fixed tree: whoever holds the shards, the nodes cover them and the sum has the same bytes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distbp.parallel import tree
from distbp.parallel.tree import Rows, TreeSum, additions, complete_nodes, fold_shards, middle, shard_additions
from distbp.parallel.world import World, shards_of

MOST = 40


def nodes_of_all(size, n_shards):
    return [
        complete_nodes(own.start, own.stop, n_shards) for own in (shards_of(r, size, n_shards) for r in range(size))
    ]


def covered(k, i, n_shards):
    """Return the shards of node (k, i): from i 2^k up to (i + 1) 2^k or V."""
    return i << k, min((i + 1) << k, n_shards)


def value(k, i, leaves):
    """Return node (k, i) by its recursive definition: left child + right child, or the left where the right is empty."""
    if k == 0:
        return leaves[i].copy()
    left = value(k - 1, 2 * i, leaves)
    if (2 * i + 1) << (k - 1) >= len(leaves):
        return left
    return left + value(k - 1, 2 * i + 1, leaves)


def root(leaves):
    return value((len(leaves) - 1).bit_length(), 0, leaves)


def leaves_of(n_shards, n=7, seed=0):
    random = np.random.default_rng([seed, n_shards])
    return (random.standard_normal((n_shards, n)) * 10.0 ** random.integers(-6, 6, (n_shards, n))).astype(np.float32)


@pytest.mark.parametrize("n_shards", range(1, MOST + 1))
def test_nodes_cover_the_shards_and_each_is_a_node_of_the_tree(n_shards):
    nodes_of_tree = {covered(k, i, n_shards) for k in range(7) for i in range(-(-n_shards >> k) or 1)}
    for size in range(1, n_shards + 1):
        per_rank = nodes_of_all(size, n_shards)
        for rank, nodes in enumerate(per_rank):
            own = shards_of(rank, size, n_shards)
            assert [s for node in nodes for s in range(*node)] == list(own)
            assert set(nodes) <= nodes_of_tree
            for start, stop in nodes:  # the largest: no node of the tree inside `own` holds it and more
                holding = [n for n in nodes_of_tree if n[0] <= start and stop <= n[1] and n != (start, stop)]
                assert not any(n[0] >= own.start and n[1] <= own.stop for n in holding)


@pytest.mark.parametrize("n_shards", range(1, MOST + 1))
def test_few_nodes_travel(n_shards):
    for size in range(1, n_shards + 1):
        lengths = [len(nodes) for nodes in nodes_of_all(size, n_shards)]
        assert max(lengths) <= max(1.0, 2 * math.log2(n_shards))
        if not (n_shards & (n_shards - 1) or size & (size - 1)):
            assert max(lengths) == 1


@pytest.mark.parametrize("n_shards", range(1, MOST + 1))
def test_the_sum_has_the_bytes_of_its_definition_for_every_number_of_ranks(n_shards):
    leaves = leaves_of(n_shards)
    expected = root(leaves).tobytes()
    assert fold_shards(leaves.copy()).tobytes() == expected
    for size in range(1, n_shards + 1):
        nodes = [node for of_rank in nodes_of_all(size, n_shards) for node in of_rank]
        values = np.stack([fold_shards(leaves[start:stop].copy()) for start, stop in nodes])
        for i, j in additions(nodes):
            values[i] += values[j]
        assert values[0].tobytes() == expected


def test_the_order_matters_so_the_test_above_can_fail():
    assert any(leaves_of(v).sum(axis=0).tobytes() != root(leaves_of(v)).tobytes() for v in range(3, MOST))


@settings(deadline=None, max_examples=60)
@given(n_shards=st.integers(1, 300), data=st.data())
def test_additions_use_every_value_once(n_shards, data):
    size = data.draw(st.integers(1, n_shards))
    nodes = [node for of_rank in nodes_of_all(size, n_shards) for node in of_rank]
    pairs = additions(nodes)
    assert sorted(j for _, j in pairs) == list(range(1, len(nodes)))  # each but the first is added exactly once
    gone = set()
    for i, j in pairs:
        assert i < j
        assert not {i, j} & gone  # never after it went into another
        gone.add(j)


def test_examples():
    assert complete_nodes(0, 8, 8) == [(0, 8)]
    assert complete_nodes(2, 5, 8) == [(2, 4), (4, 5)]
    assert complete_nodes(1, 7, 8) == [(1, 2), (2, 4), (4, 6), (6, 7)]
    assert complete_nodes(4, 6, 6) == [(4, 6)]
    assert shard_additions(5) == [(0, 1), (2, 3), (0, 2), (0, 4)]
    assert [middle(0, n) for n in range(2, 10)] == [1, 2, 2, 4, 4, 4, 4, 8]


def test_fold_shards_with_another_addition():
    values = np.array([[1.0], [2.0], [4.0], [8.0], [16.0]])
    found = []

    def add(left, right):
        found.append((left[0], right[0]))
        return left + right

    assert fold_shards(values, add)[0] == 31
    assert found == [(1, 2), (4, 8), (3, 12), (15, 16)]


@pytest.mark.parametrize(("n_tallies", "n", "dtype"), [(6, 1, "float32"), (6, 13, "float64"), (3, 1000, "float32")])
def test_rows_add_tallies_and_vectors(n_tallies, n, dtype):
    rows = Rows(3, n_tallies, n, dtype)
    assert rows.n_bytes % 64 == 0
    assert rows.tallies.shape == (3, n_tallies)
    assert rows.vectors.shape == (3, n)
    assert rows.vectors.dtype == dtype
    rows.tallies[...] = np.arange(3)[:, None] + 0.5
    rows.vectors[...] = np.arange(3)[:, None] * 10
    rows.add(0, 2)
    assert (rows.tallies[:, 0] == [3, 1.5, 2.5]).all()
    assert (rows.tallies == rows.tallies[:, :1]).all()
    assert (rows.vectors == np.array([[20], [10], [20]])).all()
    used = n_tallies * 8 + n * np.dtype(dtype).itemsize
    assert not rows.bytes[:, used:].any()


@pytest.mark.parametrize("stack_rows", [0, 1, 2, 3, 5, 64])
@pytest.mark.parametrize("n_shards", [1, 2, 3, 5, 8, 13, 16, 31, 40])
def test_a_rank_adds_its_nodes_in_the_trees_order_whatever_it_computes_at_once(n_shards, stack_rows, monkeypatch):
    monkeypatch.setattr(tree, "STACK", stack_rows * Rows(0, 2, 7, "float32").n_bytes)
    leaves = leaves_of(n_shards)
    for size in {1, 2, 3, n_shards // 2 or 1, n_shards} & set(range(1, n_shards + 1)):
        found, nodes, widest = [], [], 0
        for rank in range(size):
            world = World(None)
            world.rank, world.size = rank, size
            of_rank = TreeSum(world, n_shards, 2, 7, "float32")

            def partial(start, stop, tallies, vectors):
                nonlocal widest
                assert len(tallies) == len(vectors) == stop - start
                widest = max(widest, stop - start)
                tallies[...] = np.arange(start, stop)[:, None]
                vectors[...] = leaves[start:stop]

            for i, (start, stop) in enumerate(of_rank.nodes):
                of_rank._node(start, stop, i, partial)
                nodes.append((start, stop))
            k = len(of_rank.nodes)
            assert of_rank.rows.tallies[:k, 0].sum() == sum(shards_of(rank, size, n_shards))
            found.extend(of_rank.rows.vectors[:k].copy())
        for i, j in additions(nodes):
            found[i] += found[j]
        assert found[0].tobytes() == root(leaves).tobytes()
        assert widest <= max(1, stack_rows)


def test_one_process_sums_all_shards_and_its_flags():
    leaves = leaves_of(11)

    def partial(start, stop, tallies, vectors):
        tallies[...] = [[s, 1, 0] for s in range(start, stop)]
        vectors[...] = leaves[start:stop]

    summed = TreeSum(World(None), 11, 3, 7, "float32")
    for _ in range(2):  # nothing of the first sum is left over in the second
        tallies, vector = summed.sum(partial, np.array([0.0, 0.0, 1.0]))
        assert tallies.tolist() == [55, 11, 1]
        assert vector.tobytes() == root(leaves).tobytes()
