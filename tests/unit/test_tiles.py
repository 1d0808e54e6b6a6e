"""Tiles: all of theta once, owned by one rank each, the same whoever asks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distbp.network.layout import Layout
from distbp.training.tiles import LARGEST, STACK, Tiles, by_product


@pytest.mark.parametrize(
    ("widths", "batch", "product"),
    [
        ((64, 32, 10), 64, {1, 2}),
        ((784, 128, 127, 126, 125, 124, 123, 10), 128, {1, 2, 3, 4, 5, 6, 7}),
        ((784, 512, 256, 10), 256, {1, 2}),
        ((1024, 4096, 4096, 1024), 1024, {1, 2, 3}),
        ((4096, 4096, 4096, 4096), 64, {1, 2, 3}),
        ((64, 30, 10), 1437, set()),
    ],
)
def test_the_way_of_each_layer(widths, batch, product):
    assert Tiles(Layout(widths), 8, batch // 8).product == product
    pairs = itertools.pairwise(widths)
    if batch % 8 == 0:
        assert {l for l, (n_in, n_out) in enumerate(pairs, 1) if by_product(n_in, n_out, batch)} == product


@settings(deadline=None, max_examples=80)
@given(
    widths=st.lists(st.integers(1, 700), min_size=2, max_size=5),
    n_shards=st.integers(1, 40),
    rows=st.integers(1, 300),
    n_owners=st.integers(1, 9),
)
def test_tiles_cover_theta_once_and_have_one_owner(widths, n_shards, rows, n_owners):
    layout = Layout(tuple(widths))
    tiles = Tiles(layout, n_shards, rows)
    covered = np.zeros(layout.n_parameters, int)
    for number, tile in enumerate(tiles.all):
        assert tile.number == number
        covered[tile.W] += 1
        covered[tile.b] += 1
        n_in = widths[tile.l - 1]
        assert tile.size == (tile.last - tile.first) * (n_in + 1)
        assert tile.last - tile.first <= 16 or tile.size <= LARGEST + tile.last
        assert tile.l in tiles.product or tile.last - tile.first <= 16 or tile.size * n_shards <= 2 * STACK
        grad_W, grad_b = tile.views(np.arange(float(tile.size)))
        assert grad_W.shape == (tile.last - tile.first, n_in)
        assert [*grad_W.ravel(), *grad_b] == list(range(tile.size))
    assert (covered == 1).all()
    for of_layer in tiles.layers.values():
        ends = [0, *(tile.at + tile.size for tile in of_layer)]
        assert [tile.at for tile in of_layer] == ends[:-1]
        assert of_layer[0].first == 0
        assert of_layer[-1].last == widths[of_layer[0].l]
    owned = [tiles.owned(n_owners, owner) for owner in range(n_owners)]
    assert [tile for of_owner in owned for tile in of_owner] == tiles.all


def test_owners_have_about_the_same_work():
    tiles = Tiles(Layout((4096, 4096, 4096)), 8, 8)
    for n_owners in (2, 3, 8, 16):
        sizes = [sum(tile.size for tile in tiles.owned(n_owners, owner)) for owner in range(n_owners)]
        assert max(sizes) / min(sizes) < 1.5
