"""Which rows a step takes, who holds them, and how they are scaled: the same whatever the ranks."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distbp import keys
from distbp.data import scaling, shards
from distbp.data.order import POSITIONS, Order, permuted
from distbp.data.scaling import BLOCK, Scaling, merge, statistics
from distbp.data.shards import Batches, bounds
from distbp.parallel.tree import fold_shards
from distbp.parallel.world import shards_of

# Order --------------------------------------------------------------------------------------------------------------


def whole(of_key, n):
    """Return one permutation of 0 ... n - 1."""
    return permuted(np.array([of_key], np.uint64), np.arange(n), np.array([n]), n)[0]


def by_many_keys(numbers, n_keys, n):
    """Return the permutations of 0 ... n - 1 by n_keys keys, (n_keys, n)."""
    of_keys = np.array([keys.key(*numbers, i) for i in range(n_keys)], np.uint64)
    return permuted(of_keys, np.arange(n), np.full(n_keys, n), n)


def order_of(seed, shard, n):
    """Return the order of one shard of n rows, the largest there is."""
    return Order(seed, range(shard, shard + 1), [n], max(n, 1))


@pytest.mark.parametrize("n", [*range(1, 70), 255, 256, 257, 1000, 65_535, 65_536, 65_537, 300_001])
def test_permutation_is_a_bijection(n):
    found = whole(keys.key(n), n)
    assert found.dtype == np.int64
    assert (np.sort(found) == np.arange(n)).all()


@settings(deadline=None)
@given(n=st.integers(1, 5000), of_key=st.integers(0, 2**64 - 1))
def test_permutation_is_a_bijection_for_any_key(n, of_key):
    assert (np.sort(whole(of_key, n)) == np.arange(n)).all()


@pytest.mark.parametrize("n", [2**31 + 1, 2**32 - 1, 2**32, 2**32 + 1, 2**40 + 12345])
def test_permutation_of_more_rows_than_memory(n):
    positions = np.concatenate([np.arange(2000), np.arange(n - 2000, n)])
    found = permuted(np.array([3], np.uint64), positions, np.array([n]), n)[0]
    assert np.unique(found).size == positions.size
    assert found.min() >= 0
    assert found.max() < n
    assert abs(found.mean() / n - 0.5) < 5 / np.sqrt(12 * positions.size)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 7, 8])
def test_every_row_is_equally_likely_at_every_position(n):
    n_keys = 3000
    counts = np.zeros((n, n))
    for found in by_many_keys([11], n_keys, n):
        counts[np.arange(n), found] += 1
    expected = n_keys / n
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected * (1 - 1 / n))


def test_all_orders_of_a_few_rows_occur():
    found = Counter(map(tuple, by_many_keys([5], 6000, 4).tolist()))
    assert len(found) == 24
    assert max(abs(count - 250) for count in found.values()) < 5 * np.sqrt(250)


@pytest.mark.parametrize("n", [1000, 4096, 50_000])
def test_neighbours_are_not_kept_together(n):
    found = whole(keys.key(1, n), n)
    tolerance = 5 / np.sqrt(n)
    assert abs(np.abs(np.diff(found)).mean() / (n / 3) - 1) < tolerance
    assert abs(np.corrcoef(np.arange(n), found)[0, 1]) < tolerance
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < tolerance
    counts = np.bincount(found[: n // 2] * 16 // n, minlength=16)
    assert np.abs(counts - n / 32).max() < 5 * np.sqrt(n / 32)


@settings(deadline=None)
@given(
    n=st.lists(st.integers(0, 300), min_size=1, max_size=9),
    spare=st.integers(0, 300),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_permutations_found_together_are_those_found_alone(n, spare, seed, data):
    most = max(1, *n) + spare
    of_keys = np.array([keys.key(seed, g) for g in range(len(n))], np.uint64)
    positions = data.draw(st.sampled_from([np.arange(most), np.arange(most)[::-1], np.arange(most // 2, most + 9)]))
    together = permuted(of_keys, positions, np.array(n), most)
    assert together.shape == (len(n), positions.size)
    assert together.dtype == np.int64
    for g in range(len(n)):
        alone = permuted(of_keys[g : g + 1], positions, np.array(n[g : g + 1]), most)
        assert together[g].tolist() == alone[0].tolist()
        there = positions < n[g]
        assert not together[g][~there].any()
        of_all = permuted(of_keys[g : g + 1], np.arange(n[g]), np.array(n[g : g + 1]), most)[0]
        assert sorted(of_all.tolist()) == list(range(n[g]))  # also where other permutations are longer
        assert together[g][there].tolist() == of_all[positions[there]].tolist()


@settings(max_examples=50, deadline=None)
@given(n=st.integers(0, 200), data=st.data())
def test_a_window_does_not_change_the_rows(n, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distbp.data.order.POSITIONS", data.draw(st.integers(1, 64)))
        order = order_of(3, 1, n)
        for _ in range(6):
            epoch = data.draw(st.integers(0, 2))
            start = data.draw(st.integers(0, n))
            stop = data.draw(st.integers(start, n))
            expected = whole(keys.key(keys.ORDER, 3, epoch, 1), n)[start:stop] if n else np.empty(0)
            assert order.rows(epoch, start, stop).tolist() == [expected.tolist()]


def test_real_windows_meet():
    n = 2 * POSITIONS + 100
    order = order_of(1, 0, n)
    expected = whole(keys.key(keys.ORDER, 1, 4, 0), n)
    for start, stop in [
        (0, n),
        (POSITIONS - 3, POSITIONS + 3),
        (5, 6),
        (POSITIONS, 2 * POSITIONS),
        (n - 1, n),
        (n, n),
        (17, n),
    ]:
        assert order.rows(4, start, stop).tolist() == [expected[start:stop].tolist()]


def test_rows_of_an_earlier_window_stay_as_they_were():
    order = order_of(1, 0, POSITIONS + 10)
    first = order.rows(0, 0, 5)
    before = first.tolist()
    order.rows(1, POSITIONS, POSITIONS + 5)
    assert first.tolist() == before


@settings(max_examples=50, deadline=None)
@given(n_rows=st.integers(1, 500), n_shards=st.integers(1, 12), data=st.data())
def test_the_order_of_a_shard_depends_neither_on_the_shards_held_nor_on_the_window(n_rows, n_shards, data):
    cut = [bounds(n_rows, n_shards, shard) for shard in range(n_shards)]
    n = [last - first for first, last in cut]
    most = max(n)

    def held(shards, window):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("distbp.data.order.POSITIONS", window)
            return Order(7, shards, n[shards.start : shards.stop], most)

    first = data.draw(st.integers(0, n_shards - 1))
    some = range(first, data.draw(st.integers(first + 1, n_shards)))
    orders = held(range(n_shards), data.draw(st.integers(200, 2000))), held(some, data.draw(st.integers(1, 200)))
    for epoch in data.draw(st.lists(st.integers(0, 50), min_size=1, max_size=5)):
        start = data.draw(st.integers(0, most))
        stop = data.draw(st.integers(start, most))
        of_all, of_some = (order.rows(epoch, start, stop) for order in orders)
        assert of_all.shape == (n_shards, stop - start)
        assert of_some.tolist() == of_all[some.start : some.stop].tolist()
        for shard, rows in zip(some, of_some, strict=True):
            assert not rows[max(0, n[shard] - start) :].any()  # positions that it has not
            of_key = np.array([keys.key(keys.ORDER, 7, epoch, shard)], np.uint64)
            expected = permuted(of_key, np.arange(n[shard]), np.array([n[shard]]), most)[0]
            assert rows[: max(0, n[shard] - start)].tolist() == expected[start:stop].tolist()


def test_a_window_of_several_epochs_holds_the_order_of_each():
    assert Order(7, range(3), [20, 20, 19], 20).epochs > 1000
    together, alone = Order(7, range(3), [20, 20, 19], 20), Order(7, range(2, 3), [19], 20)
    for epoch in (0, 1, 999, 1000, 5, 10**9):
        assert together.rows(epoch, 3, 20)[2].tolist() == alone.rows(epoch, 3, 20)[0].tolist()
        assert sorted(alone.rows(epoch, 0, 19)[0].tolist()) == list(range(19))


def test_epochs_shards_and_seeds_have_orders_of_their_own():
    orders = {
        (seed, epoch, shard): tuple(order_of(seed, shard, 50).rows(epoch, 0, 50)[0].tolist())
        for seed in (0, 1, 2**63 - 1)
        for epoch in range(3)
        for shard in range(3)
    }
    assert len(set(orders.values())) == 27


# Batches ------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    n_rows=st.integers(1, 600),
    n_shards=st.integers(1, 24),
    rows=st.one_of(st.integers(1, 80), st.just("all")),
    epoch=st.integers(0, 3),
)
def test_every_row_counts_exactly_once_an_epoch(n_rows, n_shards, rows, epoch):
    batches = Batches.of(n_rows, n_shards, rows if rows == "all" else rows * n_shards)
    first_step = epoch * batches.steps_per_epoch
    steps = range(first_step, first_step + batches.steps_per_epoch)
    assert len(steps) >= 1
    taken = {shard: [] for shard in range(n_shards)}
    for step in steps:
        assert batches.epoch(step) == epoch
        lengths = []
        for shard in range(n_shards):
            first, last = batches.taken(step, shard)
            assert first <= last
            taken[shard].extend(range(first, last))
            lengths.append(last - first)
        assert batches.shape(step) == max(lengths)
        assert batches.total(step) == sum(lengths)
        assert max(lengths) >= 1  # no empty step
        assert step == steps[-1] or max(lengths) == batches.rows
        assert max(lengths) - min(lengths) <= 1 or step == steps[-1] or min(lengths) == 0
    for shard in range(n_shards):
        first, last = bounds(n_rows, n_shards, shard)
        assert taken[shard] == list(range(last - first))
    if rows == "all":
        assert batches.steps_per_epoch == 1
    assert batches.epoch(steps[-1] + 1) == epoch + 1


@settings(deadline=None)
@given(n_rows=st.integers(1, 600), n_shards=st.integers(1, 24), rows=st.integers(1, 80))
def test_full_steps_take_the_batch_size(n_rows, n_shards, rows):
    batches = Batches.of(n_rows, n_shards, rows * n_shards)
    smallest = n_rows // n_shards
    for step in range(smallest // rows):
        assert sum(last - first for first, last in (batches.taken(step, s) for s in range(n_shards))) == rows * n_shards


@settings(deadline=None)
@given(n_rows=st.integers(0, 10_000), n_shards=st.integers(1, 100))
def test_shard_sizes_differ_by_at_most_one(n_rows, n_shards):
    cut = [bounds(n_rows, n_shards, shard) for shard in range(n_shards)]
    assert cut[0][0] == 0
    assert cut[-1][1] == n_rows
    assert all(left[1] == right[0] for left, right in itertools.pairwise(cut))
    sizes = {last - first for first, last in cut}
    assert max(sizes) - min(sizes) <= 1


@settings(deadline=None)
@given(n_rows=st.integers(1, 600), n_shards=st.integers(1, 24), rows=st.integers(1, 80), epoch=st.integers(0, 10**9))
def test_the_total_of_a_step_is_what_all_shards_take(n_rows, n_shards, rows, epoch):
    batches = Batches.of(n_rows, n_shards, rows * n_shards)
    first = epoch * batches.steps_per_epoch
    steps = range(first, first + batches.steps_per_epoch)
    for step in steps:
        taken = [batches.taken(step, shard) for shard in range(n_shards)]
        assert batches.total(step) == sum(last - first for first, last in taken) > 0
    assert sum(batches.total(step) for step in steps) == n_rows


# Keys ---------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(of_keys=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5), n=st.integers(0, 20))
def test_numbers_mixed_by_many_keys_are_those_mixed_by_each(of_keys, n):
    numbers = np.arange(n, dtype=np.uint64) * np.uint64(3)
    found = keys.mixed(np.array(of_keys, np.uint64)[:, None], numbers)
    assert found.shape == (len(of_keys), n)
    assert found.dtype == np.uint64
    for row, of_key in zip(found, of_keys, strict=True):
        assert row.tolist() == keys.mixed(of_key, numbers).tolist()
        assert row.tolist() == [keys.key((3 * i - 1) * keys.GOLDEN + of_key) for i in range(n)]
    assert numbers.tolist() == [3 * i for i in range(n)]


# Shares -------------------------------------------------------------------------------------------------------------


def rows_by_shard(n_rows, seed, fractions, size, n_shards):
    """Return, for each part, the file's row numbers of every shard, as the ranks of a world of `size` hold them."""
    parts = ([], [], [])
    for rank in range(size):
        own = shards_of(rank, size, n_shards)
        for part, share in zip(parts, shards.shares(n_rows, seed, fractions, own, n_shards), strict=True):
            assert len(share.starts) == len(own) + 1
            assert share.starts[0] == 0
            assert share.starts[-1] == len(share)
            for first, last in itertools.pairwise(share.starts):
                part.append(share.at(np.arange(first, last)).tolist())
    return parts


@settings(deadline=None)
@given(
    n_rows=st.integers(1, 400),
    n_shards=st.integers(1, 12),
    fractions=st.sampled_from([(0.0, 0.0), (0.2, 0.0), (0.0, 0.3), (0.25, 0.25), (0.01, 0.01), (0.5, 0.49)]),
    seed=st.integers(0, 2**63 - 1),
    piece=st.sampled_from([1, 7, 100, 1 << 20]),
    data=st.data(),
)
def test_parts_are_disjoint_cover_the_file_and_do_not_depend_on_ranks(n_rows, n_shards, fractions, seed, piece, data):
    alone = rows_by_shard(n_rows, seed, fractions, 1, n_shards)
    size = data.draw(st.integers(1, n_shards))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "PIECE", piece)
        assert rows_by_shard(n_rows, seed, fractions, size, n_shards) == alone
    in_order = [[row for shard in part for row in shard] for part in alone]
    assert sorted(row for part in in_order for row in part) == list(range(n_rows))
    for part, rows, fraction in zip(alone, in_order, (1, *fractions), strict=True):
        assert rows == sorted(rows)  # contiguous shards in file order
        sizes = {len(shard) for shard in part}
        assert max(sizes) - min(sizes) <= 1
        assert fraction or not rows
    for share, rows in zip(shards.shares(n_rows, seed, fractions, range(1), n_shards), in_order, strict=True):
        assert share.n_rows == len(rows)  # of all ranks


@pytest.mark.parametrize("fractions", [(0.2, 0.0), (0.1, 0.3), (0.0, 0.5)])
def test_parts_have_their_fractions(fractions):
    n = 40_000
    sizes = [len(share) for share in shards.shares(n, 3, fractions, range(8), 8)]
    for size, fraction in zip(sizes[1:], fractions, strict=True):
        assert abs(size - n * fraction) <= 5 * np.sqrt(n * fraction * (1 - fraction))


def test_a_rows_part_depends_on_the_seed_and_its_number_alone():
    def validation(n_rows, seed, n_shards=4):
        return {r for shard in rows_by_shard(n_rows, seed, (0.3, 0.2), 1, n_shards)[1] for r in shard}

    longer = validation(1000, 5)
    assert validation(600, 5) == {row for row in longer if row < 600}
    assert validation(1000, 5, n_shards=7) == longer
    assert validation(1000, 6) != longer
    alone = {r for shard in rows_by_shard(1000, 5, (0.3, 0.0), 1, 4)[1] for r in shard}
    assert alone == longer  # a test part takes nothing from it


def test_pieces_of_a_long_file_meet():
    n = shards.PIECE + 1000
    shares = shards.shares(n, 1, (0.01, 0.01), range(3, 5), 8)
    whole_file = shards.shares(n, 1, (0.01, 0.01), range(8), 8)
    for share, of_all in zip(shares, whole_file, strict=True):
        first, last = bounds(of_all.n_rows, 8, 3)[0], bounds(of_all.n_rows, 8, 4)[1]
        assert (share.at(np.arange(len(share))) == of_all.at(np.arange(first, last))).all()


def test_without_parts_no_row_numbers_are_kept():
    training, validation, test = shards.shares(10**12, 0, (0.0, 0.0), range(2, 4), 8)
    assert len(training) == 250_000_000_000
    assert training.at(np.array([0, 5])).tolist() == [250_000_000_000, 250_000_000_005]
    assert (len(validation), len(test), validation.n_rows, test.n_rows) == (0, 0, 0, 0)


# Scaling ------------------------------------------------------------------------------------------------------------


def of_shards(values, n_shards, size=1):
    """Return the merged statistics as a run has them: blocks of each shard, then the tree over all shards."""
    found = []
    for rank in range(size):
        for shard in shards_of(rank, size, n_shards):
            first, last = bounds(len(values), n_shards, shard)
            of_shard = statistics(values[:0])
            for start in range(first, last, BLOCK):
                of_shard = merge(of_shard, statistics(values[start : min(start + BLOCK, last)]))
            found.append(of_shard)
    return fold_shards(np.stack(found), merge)


@pytest.mark.parametrize("n_shards", [1, 3, 8])
@pytest.mark.parametrize("n_rows", [1, 2, 5, 1000, 3 * BLOCK + 17])
def test_statistics_equal_those_of_the_whole(n_rows, n_shards):
    random = np.random.default_rng(n_rows)
    x = random.standard_normal((n_rows, 4)) * [1, 1e-3, 1e6, 5] + [0, 7, -3, 100]
    found = of_shards(x, n_shards)
    assert (found[scaling.N] == n_rows).all()
    np.testing.assert_allclose(found[scaling.MEAN], x.mean(axis=0), rtol=1e-12, atol=1e-12 * np.abs(x).max())
    np.testing.assert_allclose(np.sqrt(found[scaling.M2] / n_rows), x.std(axis=0), rtol=1e-12, atol=0)
    assert (found[scaling.MIN] == x.min(axis=0)).all()
    assert (found[scaling.MAX] == x.max(axis=0)).all()


def test_a_large_offset_keeps_the_small_spread():
    noise = np.random.default_rng(0).standard_normal((20_000, 2)) * 1e-3
    x = 1e8 + noise
    exact = x - 1e8  # exact in float64
    found = of_shards(x, 8)
    np.testing.assert_allclose(np.sqrt(found[scaling.M2] / len(x)), exact.std(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found[scaling.MEAN] - 1e8, exact.mean(axis=0), atol=1e-6)
    scaled = Scaling.of("standard", found).apply(x, "float64")
    np.testing.assert_allclose(scaled.std(axis=0), 1, rtol=1e-6)
    assert np.abs(scaled.mean(axis=0)).max() < 1e-3


@settings(deadline=None, max_examples=60)
@given(n_rows=st.integers(1, 60), n_shards=st.integers(1, 12), seed=st.integers(0, 100), data=st.data())
def test_statistics_have_the_same_bytes_on_any_ranks(n_rows, n_shards, seed, data):
    x = np.random.default_rng(seed).standard_normal((n_rows, 3)).astype(np.float32)
    size = data.draw(st.integers(1, n_shards))
    assert of_shards(x, n_shards, size).tobytes() == of_shards(x, n_shards).tobytes()


def test_merge_with_nothing_changes_nothing():
    some, nothing = statistics(np.array([[1.0, 2.0], [3.0, 5.0]])), statistics(np.empty((0, 2)))
    assert merge(some, nothing).tobytes() == some.tobytes()
    assert merge(nothing, some).tobytes() == some.tobytes()
    assert (merge(nothing, nothing)[scaling.N] == 0).all()


@pytest.mark.parametrize("kind", ["none", "standard", "minmax"])
@pytest.mark.parametrize("value", [0.0, 3.0, 0.1, -1e9])
def test_a_constant_column_is_only_shifted(kind, value):
    x = np.full((1000, 2), value)
    x[:, 1] = np.arange(1000)
    used = Scaling.of(kind, of_shards(x, 8))
    assert used.factor[0] == 1
    scaled = used.apply(x, "float64")
    np.testing.assert_allclose(scaled[:, 0], value if kind == "none" else 0, atol=1e-12 * abs(value))
    np.testing.assert_allclose(used.undo(scaled), x, rtol=1e-12, atol=1e-12)


def test_one_row_is_a_constant():
    used = Scaling.of("standard", of_shards(np.array([[4.0, -2.0]]), 8))
    assert used.apply(np.array([[4.0, -1.0]]), "float32").tolist() == [[0, 1]]


def test_minmax_brings_the_training_rows_to_0_and_1():
    x = np.random.default_rng(1).standard_normal((500, 3)) * [1, 1e-4, 1e5] + [0, 1, -7e5]
    scaled = Scaling.of("minmax", of_shards(x, 8)).apply(x, "float64")
    assert (scaled.min(axis=0) == 0).all()
    np.testing.assert_allclose(scaled.max(axis=0), 1, rtol=1e-15)


def test_standard_brings_the_training_rows_to_mean_0_and_deviation_1():
    x = np.random.default_rng(1).standard_normal((500, 3)) * [1, 1e-4, 1e5] + [0, 1, -7e5]
    scaled = Scaling.of("standard", of_shards(x, 8)).apply(x, "float64")
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-11)
    np.testing.assert_allclose(scaled.std(axis=0), 1, rtol=1e-11)


@settings(deadline=None)
@given(
    kind=st.sampled_from(["none", "standard", "minmax"]),
    values=st.lists(st.tuples(*[st.floats(-1e6, 1e6).map(lambda v: round(v, 3))] * 2), min_size=1, max_size=30),
)
def test_undo_is_the_inverse_of_apply(kind, values):
    x = np.array(values)
    used = Scaling.of(kind, of_shards(x, 4))
    np.testing.assert_allclose(used.undo(used.apply(x, "float64")), x, rtol=1e-12, atol=1e-12 * np.abs(x).max())


@pytest.mark.parametrize("kind", ["none", "standard", "minmax"])
def test_apply_rounds_once_and_makes_a_new_array(kind):
    x = np.random.default_rng(2).integers(0, 255, (40, 3)).astype(np.uint8)
    used = Scaling.of(kind, of_shards(x, 8))
    assert used.plain == (kind == "none")
    scaled = used.apply(x, "float32")
    assert scaled.dtype == np.float32
    assert not np.shares_memory(scaled, x)
    exact = (x.astype(np.float64) - used.shift) * used.factor
    assert scaled.tobytes() == exact.astype(np.float32).tobytes()


def test_apply_of_float32_without_scaling_does_not_alias():
    x = np.ones((3, 2), np.float32)
    scaled = Scaling.of("none", of_shards(x, 1)).apply(x, "float32")
    scaled += 1
    assert (x == 1).all()


def test_infinite_values_are_allowed_through():
    x = np.array([[1.0, np.nan, np.inf], [2.0, 3.0, 4.0], [3.0, 5.0, 6.0]])
    found = of_shards(x, 2)
    assert found[:, 0].tolist() == [3, 2, 2, 1, 3]
    assert np.isnan(found[scaling.MEAN, 1])
    assert np.isinf(found[scaling.MAX, 2])
    scaled = Scaling.of("standard", found).apply(x, "float64")
    assert np.isfinite(scaled[:, 0]).all()


@pytest.mark.parametrize(
    ("kind", "values"), [("standard", [1e200, -1e200]), ("minmax", [0.0, 5e-324]), ("minmax", [1.7e308, -1.7e308])]
)
def test_a_column_that_cannot_be_scaled_is_named(kind, values):
    x = np.array([[1.0, value] for value in values])
    with np.errstate(over="ignore"), pytest.raises(ValueError) as caught:
        Scaling.of(kind, statistics(x))
    assert str(caught.value) == (
        f"column 1: expected values that {kind} scaling can bring together, got {min(values):g} ... {max(values):g}. "
        "Give that column in other units."
    )
