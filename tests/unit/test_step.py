"""A step: equal to its equations, the same bytes for any threads and any way round, refused where it is not finite."""

from __future__ import annotations

import copy
import math
import tracemalloc

import numpy as np
import pytest
from steppers import make_stepper, state_bytes

from distbp.network.passes import Pass
from distbp.parallel.world import AgreedRuntimeError
from distbp.training import step as step_module
from distbp.training import tiles
from distbp.training.step import LARGE, Stepper
from distbp.training.tiles import Tiles

# By product: the batch is small beside the widths. By sum: 512 rows a shard, and (6 + 9) 4,096 > CHEAP.
PRODUCT = {"data": {"source": "synthetic", "rows": 203, "features": 7, "outputs": 3, "validation": 0},
           "network": {"widths": [13, 5], "activation": "tanh"}}  # fmt: skip
SUM = {"data": {"source": "synthetic", "rows": 9001, "features": 6, "outputs": 4, "validation": 0, "batch_size": 4096},
       "network": {"widths": [9, 7], "activation": "sigmoid"}}  # fmt: skip
BOTH = {"data": {"source": "synthetic", "rows": 2500, "features": 40, "outputs": 2, "validation": 0,
                 "batch_size": 1024, "task": "regression"},
        "network": {"widths": [70, 3], "activation": "relu"}}  # fmt: skip
TABLES = {"product": PRODUCT, "sum": SUM, "both": BOTH}


def changed(table, **sections):
    table = copy.deepcopy(table)
    for section, keys in sections.items():
        table.setdefault(section, {}).update(keys)
    return table


def after(table, steps=5, **of_stepper):
    stepper, _ = make_stepper(table, **of_stepper)
    for step in range(steps):
        stepper.take(step, 0.01, 0)
    return state_bytes(stepper)


def test_the_tables_take_the_ways_they_are_named_for():
    layers = {name: make_stepper(table)[0].space.tiles for name, table in TABLES.items()}
    assert {name: len(tiles.product) / len(tiles.layers) for name, tiles in layers.items()} == {
        "product": 1.0,
        "sum": 0.0,
        "both": 1 / 3,
    }


@pytest.mark.parametrize("rule", ["gradient_descent", "momentum", "adamw"])
@pytest.mark.parametrize("name", TABLES)
def test_a_step_is_that_of_the_equations(name, rule):
    """Against one pass over the whole batch and the rule's equation, in float64."""
    table = changed(TABLES[name], network={"dtype": "float64"}, descent={"rule": rule, "clip": 0.1})
    stepper, problem = make_stepper(table)
    network, theta = problem.network, stepper.theta.copy()
    reference, _ = make_stepper(table)  # for its rule, on a theta of its own
    for step in range(4):
        x, y, counts = stepper.space.windows.bring(step)
        pass_ = Pass(network, *x.shape[:2])
        pass_.x[...], pass_.y[...] = x, y
        pass_.count(counts)
        W, b = network.layout.views(theta)
        network.forward(W, b, pass_)
        costs, grad = np.empty(len(x)), np.empty((len(x), theta.size))
        network.cost_sums(pass_, costs)
        network.backward(W, pass_, *network.layout.views(grad))
        mean = grad.sum(axis=0) / sum(counts)
        mean *= min(1, 0.1 / np.linalg.norm(mean))
        n = network.layout.n_weights
        rule_ = reference.rule
        pieces = rule_.pieces(theta, slice(0, n)) + rule_.pieces(theta, slice(n, theta.size), n)
        rule_.descend(pieces, mean, 1.0, 0.01, step + 1, np.empty(theta.size))
        totals = stepper.take(step, 0.01, 0)
        assert totals.rows == sum(counts)
        assert totals.cost == pytest.approx(costs.sum(), rel=1e-12)
        np.testing.assert_allclose(stepper.theta, theta, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("threads", [2, 3, 5, 8, 20])
@pytest.mark.parametrize("name", TABLES)
def test_threads_change_no_bit(name, threads):
    table = changed(TABLES[name], network={"dropout": 0.2}, descent={"clip": 0.5})
    assert after(table, threads=threads) == after(table)
    assert after(TABLES[name], threads=threads) == after(TABLES[name])


@pytest.mark.parametrize("name", TABLES)
def test_gradients_that_are_looked_at_first_give_the_same_bytes(name, monkeypatch):
    """Where a square is large, or with clipping, the norm is found before the step; else tile by tile with it."""
    fused = after(TABLES[name])
    assert after(changed(TABLES[name], descent={"clip": 1e30})) == fused
    monkeypatch.setattr(step_module, "SAFE", -1.0)
    assert after(TABLES[name]) == fused


def test_a_large_gradient_after_small_ones_is_looked_at(monkeypatch):
    stepper, _ = make_stepper(PRODUCT)
    expected, _ = make_stepper(PRODUCT)
    for step in range(6):
        monkeypatch.setattr(step_module, "SAFE", 1e30 if step % 2 else -1.0)
        stepper.take(step, 0.01, 0)
        monkeypatch.setattr(step_module, "SAFE", 1e30)
        expected.take(step, 0.01, 0)
    assert state_bytes(stepper) == state_bytes(expected)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(("largest", "stack"), [(64, 1 << 23), (1 << 20, 300), (1 << 20, 1)])
def test_tiles_of_another_size_give_nearly_the_same(name, largest, stack, monkeypatch):
    table = changed(TABLES[name], network={"dtype": "float64"}, descent={"rule": "momentum"})
    expected = make_stepper(table)[0]
    monkeypatch.setattr(tiles, "LARGEST", largest)
    monkeypatch.setattr(tiles, "STACK", stack)
    found = make_stepper(table)[0]
    for step in range(4):
        found.take(step, 0.01, 0)
        expected.take(step, 0.01, 0)
    np.testing.assert_allclose(found.theta, expected.theta, rtol=1e-10, atol=1e-12)


def test_the_norm_is_that_of_the_mean_gradient(monkeypatch):
    seen = []
    monkeypatch.setattr("distbp.descent.rules.Rule.shrink", lambda self, norm: seen.append(norm) or 1.0)
    table = changed(BOTH, network={"dtype": "float64"}, descent={"rule": "gradient_descent", "clip": 1.0})
    stepper, _ = make_stepper(table)
    before = stepper.theta.copy()
    stepper.take(0, 1.0, 0)
    assert seen == [pytest.approx(np.linalg.norm(stepper.theta - before), rel=1e-10)]


@pytest.mark.parametrize("name", TABLES)
def test_a_step_that_is_not_finite_is_refused_and_nothing_changes(name):
    stepper, problem = make_stepper(TABLES[name])
    stepper.take(0, 0.01, 0)
    stepper.b[problem.network.n_layers][...] = 3e38
    before = state_bytes(stepper)
    with np.errstate(all="ignore"):
        if name != "both":  # softmax and cross-entropy stand that: nothing to refuse
            stepper.b[1][0] = np.nan
            before = state_bytes(stepper)
        with pytest.raises(AgreedRuntimeError) as caught:
            stepper.take(1, 0.01, 0)
    got = "inf" if name == "both" else "nan"
    assert str(caught.value) == (
        f"step 1: expected a finite cost, got {got} in shards 0, 1, 2, 3, 4, 5, 6, 7. "
        "Stopped before the step; lower descent.learning_rate or set descent.clip."
    )
    assert state_bytes(stepper) == before


@pytest.mark.parametrize("threads", [1, 2])
def test_a_gradient_that_overflows_is_refused_though_the_cost_is_finite(threads):
    table = changed(BOTH, network={"activation": "identity", "widths": [70]})
    stepper, _ = make_stepper(table, threads=threads)
    stepper.W[1][...] = 0
    stepper.b[1][...] = 1e25  # a[1]; so dC/dW[2] = delta a[1] is about 1e44
    stepper.W[2][...] = 0
    stepper.b[2][...] = 1e16
    before = state_bytes(stepper)
    with np.errstate(all="ignore"), pytest.raises(AgreedRuntimeError) as caught:
        stepper.take(0, 0.01, 0)
    assert str(caught.value) == (
        "step 0: expected a finite gradient, got nan or infinity. "
        "Stopped before the step; lower descent.learning_rate or set descent.clip."
    )
    assert state_bytes(stepper) == before


def test_what_a_rank_has_to_say_comes_back():
    stepper, _ = make_stepper(PRODUCT)
    for step, flags in enumerate((0, 1, 2, 5, 15)):
        assert stepper.take(step, 0.01, flags).flags == flags
    assert not stepper.take(5, 0.01, 0).flags & LARGE


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu", "leaky_relu", "gelu", "softplus", "identity"])
@pytest.mark.parametrize("name", TABLES)
def test_a_warm_step_allocates_next_to_nothing(name, activation):
    """No array of a layer's size is made: what is, is a number a row, or of a window that begins."""
    table = changed(TABLES[name], network={"widths": [600, 500], "activation": activation})
    table = changed(table, data={"rows": 20_000})
    stepper, problem = make_stepper(table)
    for step in range(3):
        stepper.take(step, 0.001, 0)
    step, most = 3, 0
    while step < 3 + min(3, stepper.space.windows.steps.stop - 3):  # inside a window
        tracemalloc.start()
        stepper.take(step, 0.001, 0)
        most = max(most, tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        step += 1
    a_layer = problem.batches.rows * problem.batches.n_shards * 500 * 4
    assert a_layer > 120_000
    assert most < a_layer / 10 + 40_000


def test_tiles_are_arithmetic_of_shapes_alone():
    stepper, problem = make_stepper(BOTH)
    again = Tiles(problem.network.layout, 8, problem.batches.rows)
    assert again.all == stepper.space.tiles.all
    assert isinstance(stepper, Stepper)
    assert math.isfinite(stepper.theta.sum())
