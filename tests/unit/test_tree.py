"""The fixed tree: whoever holds the shards, the nodes cover them and the sum has the same bytes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distbp.parallel.host import Host
from distbp.parallel.tree import additions, complete_nodes, fold_shards, fold_stack, middle
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
    assert additions([(s, s + 1) for s in range(5)]) == [(0, 1), (2, 3), (0, 2), (0, 4)]
    assert additions([(1, 2), (2, 3), (3, 4), (4, 6)], (2, 4)) == [(1, 2)]
    assert additions([(1, 2), (2, 3), (3, 4), (4, 6)], (4, 6)) == []
    assert [middle(0, n) for n in range(2, 10)] == [1, 2, 2, 4, 4, 4, 4, 8]


def test_fold_shards_with_another_addition():
    values = np.array([[1.0], [2.0], [4.0], [8.0], [16.0]])
    found = []

    def add(left, right):
        found.append((left[0], right[0]))
        return left + right

    assert fold_shards(values, add)[0] == 31
    assert found == [(1, 2), (4, 8), (3, 12), (15, 16)]


@pytest.mark.parametrize("shape", [(), (7,), (3, 5)])
@pytest.mark.parametrize("n_shards", range(1, MOST + 1))
def test_a_stack_folds_to_the_bytes_of_its_shards_one_by_one(n_shards, shape):
    leaves = leaves_of(n_shards, math.prod(shape)).reshape(n_shards, *shape)
    expected = fold_shards(leaves.copy()).tobytes()
    assert expected == root(leaves).tobytes()
    stack = leaves.copy()
    fold_stack(stack)
    assert stack[0].tobytes() == expected
    wide = np.full((n_shards + 2, 2, *shape), 9, np.float32)  # as in a run: some rows of a longer stack, with gaps
    wide[1:-1, 1] = leaves
    fold_stack(wide[1:-1, 1])
    assert wide[1, 1].tobytes() == expected
    assert (wide[:, 0] == 9).all()
    assert (wide[[0, -1]] == 9).all()


@pytest.mark.parametrize("n_shards", [1, 2, 3, 5, 8, 13, 16, 31, 40])
def test_workers_then_hosts_add_in_the_trees_order(n_shards):
    """Each worker folds its shards, its host the workers' nodes, and all hosts the hosts' nodes."""
    leaves = leaves_of(n_shards)
    expected = root(leaves).tobytes()
    for n_hosts in {1, 2, 3, n_shards // 2 or 1, n_shards} & set(range(1, n_shards + 1)):
        for n_workers in (1, 2, 3, 4):  # of each host; some may have nothing to do
            nodes, values = [], []
            for host in range(n_hosts):
                workers = [
                    shards_of(w, n_hosts * n_workers, n_shards) for w in range(host * n_workers, (host + 1) * n_workers)
                ]
                held = [node for own in workers for node in complete_nodes(own.start, own.stop, n_shards)]
                found = [leaves[start:stop].copy() for start, stop in held]
                for stack in found:
                    fold_stack(stack)
                own = shards_of(host, n_hosts, n_shards)
                roots = complete_nodes(own.start, own.stop, n_shards)
                for node in roots:
                    for i, j in additions(held, node):
                        found[i][0] += found[j][0]
                    values.append(found[[start for start, _ in held].index(node[0])][0])
                nodes.extend(roots)
            for i, j in additions(nodes):
                values[i] += values[j]
            assert values[0].tobytes() == expected


@settings(deadline=None)
@given(size=st.integers(1, 9), n_threads=st.integers(1, 9), data=st.data())
def test_threads_cut_the_shards_of_their_rank_again(size, n_threads, data):
    n_shards = data.draw(st.integers(size, 60))
    for rank in range(size):
        world = World(None)
        world.rank, world.size = rank, size
        host = Host(world, None, None, n_threads, False)
        workers = [host.shards(rank * n_threads + t, n_shards) for t in range(n_threads)]
        assert [s for own in workers for s in own] == list(shards_of(rank, size, n_shards))
        assert max(map(len, workers)) - min(map(len, workers)) <= 1


@settings(deadline=None)
@given(n_threads=st.integers(1, 9), n_shards=st.integers(1, 60))
def test_a_host_of_one_process_holds_the_nodes_of_all_shards(n_threads, n_shards):
    host = Host(World(None), None, None, n_threads, False)
    assert host.shards_of_hosts(n_shards) == [range(n_shards)]
    nodes = host.nodes(n_shards)
    assert len(nodes) == n_threads
    assert [s for of_worker in nodes for node in of_worker for s in range(*node)] == list(range(n_shards))
