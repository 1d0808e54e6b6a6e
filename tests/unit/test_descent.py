"""The descent step (7): every rule against scalar loops written from its equations, and the schedules."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distbp.descent import gradient, rules
from distbp.descent.gradient import PIECE, mean_gradient, pieces
from distbp.descent.rules import STATE, Rule
from distbp.descent.schedule import learning_rate
from distbp.settings import Descent

RULES = tuple(STATE)


def scalar_steps(descent, n_weights, theta, grads, etas):
    """Return theta after the steps, one Python number at a time, from the equations in rules' docstring."""
    theta, n = list(theta), len(theta)
    v, m, s = [0.0] * n, [0.0] * n, [0.0] * n
    mu, b1, b2, decay = descent.momentum, descent.beta1, descent.beta2, descent.weight_decay
    for t, (grad, eta) in enumerate(zip(grads, etas, strict=True), 1):
        norm = math.sqrt(sum(g * g for g in grad))
        for i in range(n):
            g = grad[i]
            if descent.clip and norm > descent.clip:
                g = g * descent.clip / norm
            if i < n_weights:
                if descent.rule == "adamw":
                    theta[i] -= eta * decay * theta[i]
                else:
                    g += decay * theta[i]
            if descent.rule == "gradient_descent":
                theta[i] -= eta * g
            elif descent.rule == "momentum":
                v[i] = mu * v[i] + g
                theta[i] -= eta * v[i]
            elif descent.rule == "nesterov":
                v[i] = mu * v[i] + g
                theta[i] -= eta * (g + mu * v[i])
            else:
                m[i] = b1 * m[i] + (1 - b1) * g
                s[i] = b2 * s[i] + (1 - b2) * g**2
                theta[i] -= eta * m[i] / (1 - b1**t) / (math.sqrt(s[i] / (1 - b2**t)) + descent.epsilon)
    return theta


def run(descent, n_weights, theta, grads, etas):
    """Return (theta, rule) after the steps."""
    theta = theta.copy()
    rule = Rule(descent, n_weights, theta.size, theta.dtype)
    for t, (grad, eta) in enumerate(zip(grads, etas, strict=True), 1):
        mean = grad.copy()
        rule.descend(theta, mean, mean_gradient(mean, 1), eta, t)
    return theta, rule


def problem(n, steps=6, dtype="float64", seed=0):
    random = np.random.default_rng(seed)
    grads = random.standard_normal((steps, n)).astype(dtype)
    return random.standard_normal(n).astype(dtype), grads, [0.1 / (t + 1) for t in range(steps)]


@pytest.mark.parametrize("clip", [0.0, 2.0, 1e6])
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("rule", RULES)
def test_rule_equals_its_equations(rule, decay, clip):
    descent = Descent(rule=rule, weight_decay=decay, clip=clip, momentum=0.8, beta1=0.85, beta2=0.95, epsilon=1e-3)
    theta, grads, etas = problem(11)
    found, _ = run(descent, 7, theta, grads, etas)
    np.testing.assert_allclose(
        found, scalar_steps(descent, 7, theta.tolist(), grads.tolist(), etas), rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize("rule", RULES)
def test_rule_in_float32_stays_in_float32(rule):
    theta, grads, etas = problem(11, dtype="float32")
    descent = Descent(rule=rule, weight_decay=0.1, clip=2)
    found, used = run(descent, 7, theta, grads, etas)
    assert found.dtype == np.float32
    assert {name: array.dtype.name for name, array in used.state.items()} == dict.fromkeys(STATE[rule], "float32")
    expected = scalar_steps(descent, 7, theta.tolist(), grads.tolist(), etas)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_defaults_of_the_settings(rule):
    theta, grads, etas = problem(5)
    expected = scalar_steps(Descent(rule=rule), 5, theta.tolist(), grads.tolist(), etas)
    np.testing.assert_allclose(run(Descent(rule=rule), 5, theta, grads, etas)[0], expected, rtol=1e-10)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_weights", [0, 5, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 9, 2 * PIECE + 17])
def test_pieces_give_the_bytes_of_one_piece(rule, dtype, n_weights, monkeypatch):
    n = 2 * PIECE + 17
    descent = Descent(rule=rule, weight_decay=0.1, clip=1.0)
    theta, grads, etas = problem(n, steps=3, dtype=dtype)

    def after():
        found, rule_ = theta.copy(), Rule(descent, n_weights, n, dtype)
        for t, eta in enumerate(etas, 1):
            rule_.descend(found, grads[t - 1].copy(), 180.0, eta, t)
        return found.tobytes(), {name: array.tobytes() for name, array in rule_.state.items()}

    in_pieces = after()
    for module in (gradient, rules):
        monkeypatch.setattr(module, "PIECE", n)
    assert after() == in_pieces
    for module in (gradient, rules):
        monkeypatch.setattr(module, "PIECE", 1000)
    assert after() == in_pieces


@pytest.mark.parametrize("rule", RULES)
def test_weight_decay_leaves_biases_alone(rule):
    theta, grads, etas = problem(PIECE + 40)
    n_weights = PIECE + 13
    plain, _ = run(Descent(rule=rule), n_weights, theta, grads, etas)
    decayed, _ = run(Descent(rule=rule, weight_decay=0.5), n_weights, theta, grads, etas)
    assert decayed[n_weights:].tobytes() == plain[n_weights:].tobytes()
    assert (decayed[:n_weights] != plain[:n_weights]).all()


def test_weight_decay_alone_shrinks_weights():
    theta, nothing = np.array([2.0, -4.0, 8.0]), np.zeros((1, 3))
    for rule, expected in (("gradient_descent", [1.9, -3.8, 8.0]), ("adamw", [1.9, -3.8, 8.0])):
        found, _ = run(Descent(rule=rule, weight_decay=0.5), 2, theta, nothing, [0.1])
        np.testing.assert_allclose(found, expected, rtol=1e-15)


def test_clipping_keeps_the_direction_and_limits_the_length():
    grad = np.array([[3.0, 4.0]])
    zero = np.zeros(2)
    for clip, length in ((0.0, 5.0), (1.0, 1.0), (4.9, 4.9), (5.0, 5.0), (100.0, 5.0)):
        found, _ = run(Descent(rule="gradient_descent", clip=clip), 2, zero, grad, [1.0])
        np.testing.assert_allclose(found, [-0.6 * length, -0.8 * length], rtol=1e-15)


def test_the_state_is_laid_out_like_theta():
    for rule, names in STATE.items():
        used = Rule(Descent(rule=rule), 3, 10, "float64")
        assert tuple(used.state) == names
        assert all(array.shape == (10,) and not array.any() for array in used.state.values())


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_goes_on_from_its_state(rule):
    """Nothing but theta, the state and t decides the next step: what a checkpoint must hold."""
    theta, grads, etas = problem(30)
    descent = Descent(rule=rule, weight_decay=0.1)
    whole, _ = run(descent, 20, theta, grads, etas)
    found, before = run(descent, 20, theta, grads[:3], etas[:3])
    after = Rule(descent, 20, 30, "float64")
    for name, array in before.state.items():
        after.state[name][...] = array
    for t in range(4, 7):
        mean = grads[t - 1].copy()
        after.descend(found, mean, mean_gradient(mean, 1), etas[t - 1], t)
    assert found.tobytes() == whole.tobytes()


@settings(deadline=None)
@given(st.integers(0, 5 * PIECE))
def test_pieces_cover_exactly(n):
    end = 0
    for piece in pieces(n):
        assert piece.start == end
        assert 0 < piece.stop - piece.start <= PIECE
        end = piece.stop
    assert end == n


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 2, 100, PIECE, PIECE + 1, 3 * PIECE + 5])
def test_mean_gradient_divides_once_and_returns_the_norm(n, dtype):
    total = np.random.default_rng(n).standard_normal(n).astype(dtype) * 50
    grad = total.copy()
    norm = mean_gradient(grad, 48.0)
    assert grad.tobytes() == (total / np.array(48, dtype)).tobytes()
    assert norm == pytest.approx(
        np.linalg.norm(total.astype(np.float64)) / 48, rel=1e-4 if dtype == "float32" else 1e-12
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("where", [0, PIECE - 1, PIECE, PIECE + 6])
def test_the_norm_says_when_a_gradient_is_unusable(where, dtype):
    big = 1e30 if dtype == "float32" else 1e300
    for value, judge in ((np.nan, math.isnan), (np.inf, math.isinf), (-np.inf, math.isinf), (big, math.isinf)):
        grad = np.ones(PIECE + 7, dtype)
        grad[where] = value
        assert judge(mean_gradient(grad, 2.0))
    grad = np.ones(PIECE + 7, dtype)
    grad[0], grad[where] = (np.nan, np.inf) if where else (np.nan, np.nan)
    assert not math.isfinite(mean_gradient(grad, 2.0))
    grad[:] = 1e15 if dtype == "float32" else 1e100
    assert math.isfinite(mean_gradient(grad, 2.0))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_norm_does_not_depend_on_where_the_gradient_lies(dtype):
    """The buffer of a sum starts elsewhere on other numbers of ranks."""
    values = np.random.default_rng(0).standard_normal(PIECE + 333).astype(dtype)
    memory = np.zeros(values.size + 64, dtype)
    found = set()
    for offset in range(33):
        grad = memory[offset : offset + values.size]
        grad[:] = values
        found.add(mean_gradient(grad, 7.0))
    assert len(found) == 1


# Schedules ----------------------------------------------------------------------------------------------------------


def etas(steps, steps_per_epoch=10, last_step=0, **of_schedule):
    descent = Descent(learning_rate=0.5, **of_schedule)
    return [learning_rate(descent, step, steps_per_epoch, last_step) for step in steps]


def test_constant():
    assert etas([0, 1, 10**9]) == [0.5, 0.5, 0.5]
    assert etas([0, 99], last_step=100) == [0.5, 0.5]


def test_step_drops_at_the_start_of_an_epoch():
    found = etas([0, 19, 20, 39, 40, 60], schedule="step", step_epochs=2, step_factor=0.1)
    assert found == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.005, 0.0005], rel=1e-14)
    assert etas([0, 500], schedule="step", step_epochs=1, step_factor=1.0) == [0.5, 0.5]


def test_cosine_goes_from_eta_to_nearly_0_at_the_last_step():
    found = etas(range(101), last_step=100, schedule="cosine")
    assert found[0] == 0.5
    assert found[50] == pytest.approx(0.25)
    assert found[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 99 / 100)) / 2)
    assert 0 < found[99] < 2e-4
    assert found[100] == 0  # a run that went on beyond its end would stand still
    assert found == sorted(found, reverse=True)
    assert etas([100, 101, 10**6], last_step=100, schedule="cosine") == [0, 0, 0]


def test_warm_up_then_the_schedule():
    found = etas(range(6), warmup_steps=4)
    assert found == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]
    found = etas(range(104), last_step=104, schedule="cosine", warmup_steps=4)
    assert found[:5] == [0.125, 0.25, 0.375, 0.5, 0.5]
    assert found[4:] == etas(range(100), last_step=100, schedule="cosine")
    assert etas([3, 4, 10, 19, 20], warmup_steps=4, schedule="step", step_epochs=1, step_factor=0.5) == [
        0.5, 0.5, 0.25, 0.25, 0.125,
    ]  # fmt: skip


@pytest.mark.parametrize("last_step", [1, 3, 4, 5])
def test_a_run_as_short_as_its_warm_up(last_step):
    found = etas(range(last_step), last_step=last_step, schedule="cosine", warmup_steps=4)
    assert found == [0.125, 0.25, 0.375, 0.5, 0.5][:last_step]


@settings(deadline=None)
@given(st.integers(0, 10**12), st.integers(1, 10**6), st.sampled_from(["constant", "step", "cosine"]))
def test_eta_is_finite_and_at_most_the_learning_rate(step, steps_per_epoch, schedule):
    (eta,) = etas([step], steps_per_epoch, 10**9, schedule=schedule, warmup_steps=50)
    assert 0 <= eta <= 0.5
