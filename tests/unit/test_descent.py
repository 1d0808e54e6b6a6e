"""The descent step (7): every rule against scalar loops written from its equations, and the schedules."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distbp.descent import rules
from distbp.descent.rules import PIECE, STATE, Rule
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


def rule_at_the_start(descent, n_weights, n, dtype="float64"):
    return Rule(descent, n_weights, {name: np.zeros(n, dtype) for name in STATE[descent.rule]})


def whole(rule, theta):
    """Return the pieces of all of theta."""
    return rule.pieces(theta, slice(0, rule.n_weights)) + rule.pieces(
        theta, slice(rule.n_weights, theta.size), rule.n_weights
    )


def descend(rule, theta, grad_sum, norm, rows, eta, t):
    """Take step t in all of theta; `norm` is that of the mean gradient."""
    scratch = np.empty(min(rules.PIECE, theta.size), theta.dtype)
    rule.descend(whole(rule, theta), grad_sum, rule.shrink(norm) / rows, eta, t, scratch)


def run(descent, n_weights, theta, grads, etas, rows=1):
    """Return (theta, rule) after the steps; `grads` are mean gradients, of which the rule is given the sums."""
    theta = theta.copy()
    rule = rule_at_the_start(descent, n_weights, theta.size, theta.dtype)
    for t, (grad, eta) in enumerate(zip(grads, etas, strict=True), 1):
        descend(rule, theta, grad * rows, float(np.linalg.norm(grad)), rows, eta, t)
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
    expected = scalar_steps(descent, 7, theta.tolist(), grads.tolist(), etas)
    for rows in (1, 48):
        found, _ = run(descent, 7, theta, grads, etas, rows)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


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
        found, rule_ = theta.copy(), rule_at_the_start(descent, n_weights, n, dtype)
        for t, eta in enumerate(etas, 1):
            descend(rule_, found, grads[t - 1].copy(), 180.0, 3, eta, t)
        return found.tobytes(), {name: array.tobytes() for name, array in rule_.state.items()}

    in_pieces = after()
    for length in (n, 1000):
        monkeypatch.setattr(rules, "PIECE", length)
        assert after() == in_pieces


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parts_of_theta_taken_one_by_one_give_the_bytes_of_the_whole(rule, dtype):
    """Tiles: some weights and their biases, whose gradients lie side by side, in any order and by any rank."""
    n_weights, n = 2 * PIECE + 300, 2 * PIECE + 317
    descent = Descent(rule=rule, weight_decay=0.1, clip=1.0)
    theta, grads, etas = problem(n, steps=3, dtype=dtype)
    found, in_parts = theta.copy(), theta.copy()
    rules_ = [rule_at_the_start(descent, n_weights, n, dtype) for _ in range(2)]
    cuts = [
        (0, 7, n_weights, n_weights + 1),
        (7, 90, n_weights + 1, n_weights + 13),
        (90, n_weights, n_weights + 13, n),
    ]
    for t, eta in enumerate(etas, 1):
        descend(rules_[0], found, grads[t - 1].copy(), 2.0, 3, eta, t)
        for first, last, first_b, last_b in reversed(cuts):
            grad = np.concatenate([grads[t - 1][first:last], grads[t - 1][first_b:last_b]])
            pieces = rules_[1].pieces(in_parts, slice(first, last))
            pieces += rules_[1].pieces(in_parts, slice(first_b, last_b), last - first)
            scratch = np.empty(min(PIECE, grad.size), dtype)
            rules_[1].descend(pieces, grad, rules_[1].shrink(2.0) / 3, eta, t, scratch)
    assert in_parts.tobytes() == found.tobytes()
    assert [a.tobytes() for a in rules_[1].state.values()] == [a.tobytes() for a in rules_[0].state.values()]


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


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("clip", [1e3, 1.0, 1e-3])
@pytest.mark.parametrize("size", [1e10, 1e18])
@pytest.mark.parametrize("rule", RULES)
def test_a_huge_gradient_is_clipped_without_loss(rule, size, clip, dtype):
    theta, grads, etas = problem(11, dtype=dtype)
    descent = Descent(rule=rule, clip=clip)
    found, _ = run(descent, 7, theta, grads * np.array(size, dtype), etas)
    expected = scalar_steps(descent, 7, theta.tolist(), (grads.astype(float) * size).tolist(), etas)
    tolerance = 1e-4 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(found - theta, np.array(expected) - theta, rtol=tolerance, atol=tolerance)


def test_the_state_is_laid_out_like_theta():
    for rule, names in STATE.items():
        used = rule_at_the_start(Descent(rule=rule), 3, 10)
        theta = np.arange(10.0)
        assert tuple(used.state) == names
        for piece in whole(used, theta):
            assert len(piece.state) == len(names)
            for view, array in zip((piece.theta, *piece.state), (theta, *used.state.values()), strict=True):
                view += 1
                assert (array[piece.first : piece.last] == view).all()
        assert (theta == np.arange(1.0, 11.0)).all()
        assert all((array == 1).all() for array in used.state.values())


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_goes_on_from_its_state(rule):
    """Nothing but theta, the state and t decides the next step: what a checkpoint must hold."""
    theta, grads, etas = problem(30)
    descent = Descent(rule=rule, weight_decay=0.1)
    of_all, _ = run(descent, 20, theta, grads, etas)
    found, before = run(descent, 20, theta, grads[:3], etas[:3])
    after = rule_at_the_start(descent, 20, 30)
    for name, array in before.state.items():
        after.state[name][...] = array
    for t in range(4, 7):
        descend(after, found, grads[t - 1].copy(), float(np.linalg.norm(grads[t - 1])), 1, etas[t - 1], t)
    assert found.tobytes() == of_all.tobytes()


@settings(deadline=None)
@given(
    n=st.integers(0, 5 * PIECE), n_weights=st.integers(0, 5 * PIECE), at=st.sampled_from([0, 1, 500]), data=st.data()
)
def test_pieces_cover_exactly(n, n_weights, at, data):
    n_weights = min(n, n_weights)
    rule = rule_at_the_start(Descent(rule="adam", weight_decay=0.1), n_weights, n)
    theta = np.arange(float(n))
    for first, last in ((0, n_weights), (n_weights, n)):
        start = data.draw(st.integers(first, last))
        stop = data.draw(st.integers(start, last))
        end = at
        for piece in rule.pieces(theta, slice(start, stop), at):
            assert piece.first == end
            assert 0 < piece.last - piece.first <= PIECE
            assert piece.theta.tolist() == list(range(start + end - at, start + piece.last - at))
            assert [array.size for array in piece.state] == [piece.theta.size] * 2
            assert piece.decays is (first < n_weights)
            end = piece.last
        assert end == at + stop - start


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", RULES)
def test_the_step_of_a_piece_does_not_depend_on_where_it_lies(rule, dtype):
    """A gradient and theta start elsewhere in memory on other numbers of ranks."""
    descent = Descent(rule=rule, weight_decay=0.1)
    theta, grads, etas = problem(1333, steps=2, dtype=dtype)
    memory, of_grad = np.zeros(theta.size + 64, dtype), np.zeros(theta.size + 64, dtype)
    found = set()
    for offset in range(33):
        used = rule_at_the_start(descent, 1300, theta.size, dtype)
        moved, grad = memory[offset : offset + theta.size], of_grad[32 - offset : 32 - offset + theta.size]
        moved[:] = theta
        for t, eta in enumerate(etas, 1):
            grad[:] = grads[t - 1]
            descend(used, moved, grad, 1.0, 7, eta, t)
        found.add(moved.tobytes())
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
