"""The mathematics of one process: equations (1) to (6) by hand, by differences, at the edges, and in stacks."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distbp.network.activations import ACTIVATIONS
from distbp.network.costs import cost
from distbp.network.initial import initial_theta
from distbp.network.layout import Layout
from distbp.network.network import Network, gradient
from distbp.network.passes import Pass, drop, join

DOCS = Path(__file__).parents[2] / "docs" / "backpropagation.md"
COSTS = ("quadratic", "cross_entropy", "binary_cross_entropy", "absolute", "huber")
FUSED = {"cross_entropy": "softmax", "binary_cross_entropy": "sigmoid"}
ENDINGS = [(c, output) for c in COSTS for output in ([FUSED[c]] if c in FUSED else ACTIVATIONS)]  # legal combinations
DTYPES = ("float32", "float64")


def targets(random, cost_name, shape):
    """Return y of a shape (..., n_L) that suits a cost."""
    if cost_name == "cross_entropy":
        y = random.random(shape) + 0.1
        return y / y.sum(axis=-1, keepdims=True)
    return random.random(shape) if cost_name == "binary_cross_entropy" else random.standard_normal(shape)


def filled_pass(network, x, y, counts=None, training=True):
    pass_ = Pass(network, *x.shape[:2], training)
    pass_.x[...], pass_.y[...] = x, y
    if counts is not None:
        pass_.count(counts)
    return pass_


def computed(network, theta, pass_):
    """Return (cost sums, gradient sums), (k,) and (k, n_parameters), of one forward and backward pass."""
    W, b = network.layout.views(theta)
    grad = np.full((pass_.shape[0], theta.size), np.nan, theta.dtype)
    sums = np.full(pass_.shape[0], np.nan)
    network.forward(W, b, pass_)
    network.cost_sums(pass_, sums)
    network.backward(W, pass_, *network.layout.views(grad))
    return sums, grad


def scratch_like(z):
    """Return scratch for an activation or a cost, of which nothing may be read."""
    return np.full((2, *z.shape), np.nan, z.dtype)


# By hand ------------------------------------------------------------------------------------------------------------


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def by_indices(widths, w, b, x, y):
    """Return (C, a, delta, dC/dw, dC/db) of one sample, every sum of the notes an explicit loop over j or k.

    w[l][j][k] is w_jk^l; sigma is the sigmoid in every layer and C the notes' quadratic cost.
    """
    L = len(widths) - 1
    a, delta = {0: list(x)}, {}
    for l in range(1, L + 1):
        a[l] = []
        for j in range(widths[l]):
            z = b[l][j]
            for k in range(widths[l - 1]):
                z += w[l][j][k] * a[l - 1][k]
            a[l].append(sigmoid(z))
    C = 0.0
    for j in range(widths[L]):
        C += 0.5 * (y[j] - a[L][j]) ** 2
    delta[L] = [(a[L][j] - y[j]) * a[L][j] * (1 - a[L][j]) for j in range(widths[L])]
    for l in range(L - 1, 0, -1):
        delta[l] = []
        for k in range(widths[l]):
            D = 0.0
            for j in range(widths[l + 1]):
                D += delta[l + 1][j] * w[l + 1][j][k]
            delta[l].append(D * a[l][k] * (1 - a[l][k]))
    dw = {
        l: [[delta[l][j] * a[l - 1][k] for k in range(widths[l - 1])] for j in range(widths[l])]
        for l in range(1, L + 1)
    }
    return C, a, delta, dw, delta


@pytest.mark.parametrize("widths", [(2, 3), (2, 3, 2), (3, 2, 4, 2)])
def test_step_by_hand(widths):
    network = Network(widths, ["sigmoid"] * (len(widths) - 1), "quadratic", dtype="float64")
    random = np.random.default_rng(1)
    theta = random.standard_normal(network.layout.n_parameters)
    W, b = network.layout.views(theta)
    x, y = random.standard_normal((1, 4, widths[0])), random.random((1, 4, widths[-1]))
    pass_ = filled_pass(network, x, y)
    sums, grad = computed(network, theta, pass_)
    grad_W, grad_b = network.layout.views(grad)

    by_hand = [by_indices(widths, W, b, x[0, row], y[0, row]) for row in range(4)]

    assert sums[0] == pytest.approx(sum(C for C, *_ in by_hand), rel=1e-13)
    for l in range(1, len(widths)):
        for row, (_, a, delta, _, _) in enumerate(by_hand):
            np.testing.assert_allclose(pass_.a[l][0, row], a[l], rtol=1e-13)
            np.testing.assert_allclose(pass_.delta[l][0, row], delta[l], rtol=1e-12, atol=1e-16)
        np.testing.assert_allclose(grad_W[l][0], sum(np.array(dw[l]) for *_, dw, _ in by_hand), rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(grad_b[l][0], sum(np.array(db[l]) for *_, db in by_hand), rtol=1e-12, atol=1e-15)


def test_worked_example_of_the_docs():
    network = Network((2, 2, 1), ("sigmoid", "sigmoid"), "quadratic", dtype="float64")
    theta = np.empty(network.layout.n_parameters)
    W, b = network.layout.views(theta)
    W[1][...], b[1][...] = [[0.5, -0.4], [0.3, 0.8]], [0.1, -0.2]
    W[2][...], b[2][...] = [[0.7, -0.6]], [0.2]
    pass_ = filled_pass(network, np.array([[[1.0, 2.0]]]), np.array([[[1.0]]]))
    network.forward(W, b, pass_)
    z = [array.copy() for array in pass_.z]  # the backward pass writes over it
    sums, grad = computed(network, theta, pass_)
    grad_W, grad_b = network.layout.views(grad)
    theta_after = theta - 0.5 * grad[0]
    cost_after, _ = computed(network, theta_after, filled_pass(network, pass_.x, pass_.y))
    W, b = network.layout.views(theta_after)
    found = {"C": sums[0], "C after": cost_after[0]}
    for l, n_in, n_out in ((1, 2, 2), (2, 2, 1)):
        for j in range(n_out):
            found |= {f"{name}_{j + 1}^{l}": value for name, value in (
                ("z", z[l][0, 0, j]), ("a", pass_.a[l][0, 0, j]), (r"\delta", pass_.delta[l][0, 0, j]),
                (r"\partial C/\partial b", grad_b[l][0, j]), ("b after", b[l][j]),
            )}  # fmt: skip
            for k in range(n_in):
                found[rf"\partial C/\partial w_{{{j + 1}{k + 1}}}^{l}"] = grad_W[l][0, j, k]
                found[f"w after_{{{j + 1}{k + 1}}}^{l}"] = W[l][j, k]

    section = DOCS.read_text().split("## 6.")[1].split("## 7.")[0]
    table = re.findall(r"^\| \$(.+?)\$( after)? \| .* \| (-?\d+\.\d{6}) \|$", section, re.MULTILINE)
    said = {}
    for name, after, value in table:
        said[re.sub(r"^(\w)", r"\1 after", name) if after else name] = float(value)

    assert said == {name: pytest.approx(value, abs=5.0001e-7) for name, value in found.items()}


def test_the_docs_name_files_and_functions_that_exist():
    section = DOCS.read_text().split("## 9.")[1]
    rows = re.findall(r"^\| .+ \| `(distbp/.+\.py)` \| (.+) \|$", section, re.MULTILINE)
    assert len(rows) == 11
    for path, names in rows:
        text = (DOCS.parents[1] / path).read_text()
        for name in re.findall(r"`([\w.]+)`", names)[:1]:
            assert re.search(rf"\b(def|class) {name.split('.')[-1]}\b|^    {name}: ", text, re.MULTILINE), (path, name)


# By differences -----------------------------------------------------------------------------------------------------


def kinks(network, pass_):
    """Return the distance of every number that a kink depends on from its kink, after the forward pass."""
    distances = [np.ones(1)]
    for l in range(1, network.n_layers + 1):
        if network.sigma[l].name in ("relu", "leaky_relu"):
            distances.append(np.abs(pass_.z[l]).ravel())
    e = np.abs(pass_.a[network.n_layers] - pass_.y)[pass_.counts > 0]
    if network.cost.name == "absolute":
        distances.append(e.ravel())
    elif network.cost.name == "huber":
        distances.append(np.abs(e - network.huber_width).ravel())
    return np.concatenate(distances)


def check_by_differences(network, k, rows, counts, seed, directions=2):
    """Compare the gradient with central differences of fourth order along random directions."""
    random = np.random.default_rng(seed)
    h = 1e-4
    counted = np.array(counts if counts is not None else [rows] * k) > 0
    for _ in range(500):  # until no kink lies within reach of the differences, and there is a slope to compare
        theta = random.standard_normal(network.layout.n_parameters)
        x = random.standard_normal((k, rows, network.widths[0]))
        pass_ = filled_pass(network, x, targets(random, network.cost.name, (k, rows, network.widths[-1])), counts)
        drop(network, pass_, seed=seed, step=3, first_shard=5)
        network.forward(*network.layout.views(theta), pass_)
        nearest = kinks(network, pass_).min()
        sums, grad = computed(network, theta, pass_)
        steep = np.linalg.norm(grad[counted], axis=1) > 1e-3
        if nearest > 20 * h and steep.all():
            break
    else:
        pytest.fail("expected a point away from all kinks and flats, found none")
    assert np.all(sums[~counted] == 0)
    assert np.all(grad[~counted] == 0)

    def C(at):
        network.forward(*network.layout.views(at), pass_)
        found = np.empty(k)
        network.cost_sums(pass_, found)
        return found

    for _ in range(directions):
        d = random.standard_normal(theta.size)
        d /= np.linalg.norm(d)
        numeric = (8 * (C(theta + h * d) - C(theta - h * d)) - (C(theta + 2 * h * d) - C(theta - 2 * h * d))) / (12 * h)
        exact = grad @ d
        scale = np.maximum(np.abs(exact), np.linalg.norm(grad, axis=1) / theta.size)
        relative = np.abs(numeric - exact)[counted] / scale[counted]
        assert np.all(relative < 1e-6)


@pytest.mark.parametrize("depth", range(4))
@pytest.mark.parametrize(("cost_name", "output"), ENDINGS)
def test_gradient_by_differences(cost_name, output, depth):
    for i, hidden in enumerate(ACTIVATIONS if depth else ["identity"]):
        widths = (3, *(5, 4, 3)[:depth], 3)
        plain = Network(widths, [hidden] * depth + [output], cost_name, 0.7, dtype="float64")
        check_by_differences(plain, 1, 3, None, seed=100 + i)
        dropping = Network(widths, [hidden] * depth + [output], cost_name, 0.7, dropout=0.3, dtype="float64")
        check_by_differences(dropping, 3, 2, [2, 1, 0], seed=200 + i, directions=1)


@settings(deadline=None, max_examples=60)
@given(
    widths=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    k=st.integers(1, 4),
    rows=st.integers(1, 6),
    hidden=st.sampled_from(["sigmoid", "tanh", "gelu", "softplus", "identity", "softmax"]),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_gradient_for_any_widths_and_rows(widths, k, rows, hidden, seed, data):
    counts = data.draw(st.lists(st.integers(0, rows), min_size=k, max_size=k))
    network = Network(widths, [hidden] * (len(widths) - 2) + ["tanh"], "quadratic", dtype="float64")
    check_by_differences(network, k, rows, counts, seed, directions=1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_adds_nothing_and_is_forgotten(dtype):
    network = Network((3, 4, 2), ("tanh", "softmax"), "cross_entropy", dtype=dtype)
    random = np.random.default_rng(3)
    theta = random.standard_normal(network.layout.n_parameters).astype(dtype)
    x, y = random.standard_normal((2, 5, 3)), targets(random, "cross_entropy", (2, 5, 2))
    pass_ = filled_pass(network, x, y)
    full = [array.tobytes() for array in computed(network, theta, pass_)]
    pass_.x[1, 3:] = pass_.y[1, 3:] = 77
    pass_.count([5, 3])
    assert not pass_.x[1, 3:].any()
    assert not pass_.y[1, 3:].any()
    sums, grad = computed(network, theta, pass_)
    by_row = [computed(network, theta, filled_pass(network, x[1:, r : r + 1], y[1:, r : r + 1])) for r in range(3)]
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(sums[1], sum(s[0] for s, _ in by_row), rtol=tolerance)
    np.testing.assert_allclose(grad[1], sum(g[0] for _, g in by_row), rtol=tolerance, atol=tolerance)
    pass_.x[...], pass_.y[...] = x, y
    pass_.count([5, 5])
    assert not pass_.padded
    assert [array.tobytes() for array in computed(network, theta, pass_)] == full


# At the edges -------------------------------------------------------------------------------------------------------

GELU = math.sqrt(2 / math.pi)


def exp(t):
    return math.exp(t) if t > -745 else 0.0


def gelu_t(z):
    return math.tanh(GELU * (z + 0.044715 * z**3)) if abs(z) < 1e3 else math.copysign(1, z)


def stable_sigmoid(z):
    return 1 / (1 + exp(-z)) if z > 0 else exp(z) / (1 + exp(z))


SIGMA = {  # name: (sigma, sigma') of one Python number
    "sigmoid": (stable_sigmoid, lambda z: stable_sigmoid(z) * stable_sigmoid(-z)),
    "tanh": (math.tanh, lambda z: 1 - math.tanh(z) ** 2),
    "relu": (lambda z: max(z, 0.0), lambda z: float(z > 0)),
    "leaky_relu": (lambda z: z if z > 0 else 0.01 * z, lambda z: 1.0 if z > 0 else 0.01),
    "gelu": (
        lambda z: 0.5 * z * (1 + gelu_t(z)),
        lambda z: (
            0.5 * (1 + gelu_t(z))
            + (0.5 * z * (1 - gelu_t(z) ** 2) * GELU * (1 + 3 * 0.044715 * z * z) if abs(z) < 1e3 else 0.0)
        ),
    ),
    "softplus": (lambda z: max(z, 0.0) + math.log1p(exp(-abs(z))), stable_sigmoid),
    "identity": (lambda z: z, lambda z: 1.0),
}
EXTREME = [s * z for z in (1e30, 1e4, 750.0, 100.0, 88.5, 30.0, 3.0, 0.5, 0.0) for s in (1, -1)]


def test_every_elementwise_activation_has_its_scalar_form():
    assert {*SIGMA, "softmax"} == set(ACTIVATIONS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SIGMA)
def test_activation_equals_its_formula_at_any_z(name, dtype):
    z = np.array([[EXTREME]], dtype)
    a, delta = np.empty_like(z), np.full_like(z, 2)
    ACTIVATIONS[name].apply(z, a, scratch_like(z))
    assert z.tolist() == [[np.array(EXTREME, dtype).tolist()]]  # the backward pass and the cost read it
    ACTIVATIONS[name].times_prime(z.copy(), a, delta, scratch_like(z))
    rel, tiny = (2e-6, 1e-6) if dtype == "float32" else (1e-14, 1e-15)
    sigma, sigma_prime = SIGMA[name]
    np.testing.assert_allclose(a[0, 0], [sigma(float(v)) for v in z.ravel()], rtol=rel, atol=tiny)
    np.testing.assert_allclose(delta[0, 0], [2 * sigma_prime(float(v)) for v in z.ravel()], rtol=rel, atol=3 * tiny)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("z", "a"),
    [
        ([1e30, -1e30, 0.0], [1, 0, 0]),
        ([-1e30, -1e30, -1e30], [1 / 3, 1 / 3, 1 / 3]),
        ([1e4, 1e4, -1e4], [0.5, 0.5, 0]),
        ([0.0, math.log(2), math.log(5)], [1 / 8, 2 / 8, 5 / 8]),
        ([1000.0, 1000 + math.log(3), -1e30], [1 / 4, 3 / 4, 0]),
    ],
)
def test_softmax_at_any_z(z, a, dtype):
    z = np.array([[z, [0.0, 0.0, 0.0]]], dtype)
    found = np.empty_like(z)
    ACTIVATIONS["softmax"].apply(z, found, scratch_like(z))
    tolerance = 1e-4 if dtype == "float32" else 1e-12  # z near 1000 is itself rounded
    np.testing.assert_allclose(found[0, 0], a, rtol=tolerance, atol=0)
    np.testing.assert_allclose(found[0, 1], 1 / 3, rtol=1e-6)  # each row's own maximum
    delta = np.array([[[1.0, -2.0, 3.0], [1.0, 1.0, 1.0]]], dtype)
    ACTIVATIONS["softmax"].times_prime(z, found, delta, scratch_like(z))
    s = np.array(a)
    jacobian = np.diag(s) - np.outer(s, s)
    np.testing.assert_allclose(delta[0, 0], jacobian @ [1.0, -2.0, 3.0], rtol=10 * tolerance, atol=tolerance)
    np.testing.assert_allclose(delta[0, 1], 0, atol=1e-6)


def log_sum_exp(z):
    return max(z) + math.log(sum(exp(v - max(z)) for v in z))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("z", [[1e30, -1e30, 0.0], [1e4, -1e4, 1e4], [-1e4, -1e4, -1e4], [0.3, -0.2, 0.1]])
def test_fused_costs_are_exact_at_any_z(z, dtype):
    one_hots = np.eye(3)
    z_rows = np.array([[z] * 3], dtype)
    y = np.array([one_hots], dtype)
    rel = 1e-6 if dtype == "float32" else 1e-14
    z = [float(v) for v in z_rows[0, 0]]
    for name, per_output in (
        ("cross_entropy", None),
        ("binary_cross_entropy", lambda v, t: max(v, 0.0) - v * t + math.log1p(exp(-abs(v)))),
    ):
        a, delta = np.empty_like(z_rows), np.empty_like(z_rows)
        ACTIVATIONS[FUSED[name]].apply(z_rows, a, scratch_like(a))
        found = cost(name).per_sample(z_rows, a, y, scratch_like(a))
        cost(name).start_delta(z_rows, a, y, delta)
        for row in range(3):
            t = one_hots[row]
            if per_output:
                expected = sum(per_output(v, t[j]) for j, v in enumerate(z))
            else:
                expected = log_sum_exp(z) - z[row] if max(z) != z[row] else math.log(sum(exp(v - z[row]) for v in z))
            assert found[0, row] == pytest.approx(expected, rel=rel, abs=rel)
        np.testing.assert_array_equal(delta, a - y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("cost_name", "output"), ENDINGS)
def test_no_nan_at_extreme_z(cost_name, output, dtype):
    """z = b exactly, as x is 0; every cost, delta and gradient whose true value is finite must be finite."""
    for value in (1e4, -1e4, 1e30, -1e30):
        for hidden in ("identity", "tanh", "gelu"):
            network = Network((2, 2, 3), (hidden, output), cost_name, dtype=dtype)
            theta = np.zeros(network.layout.n_parameters, dtype)
            W, b = network.layout.views(theta)
            W[2][...] = [[1e-3, 0], [0, -1e-3], [0, 0]]
            b[1][...] = value
            b[2][...] = [value, -value, value / 2]
            y = np.zeros((2, 3, 3))
            y[..., 0] = 1
            pass_ = filled_pass(network, np.zeros((2, 3, 2)), y)
            unbounded = output in ("relu", "leaky_relu", "gelu", "softplus", "identity")
            if cost_name == "quadratic" and unbounded and abs(value) == 1e30 and dtype == "float32":
                continue  # the square itself is beyond float32
            sums, grad = computed(network, theta, pass_)
            if hidden == "identity" and abs(value) == 1e30:  # dC/dW[2] may be 1e30 * 1e30
                grad = np.concatenate([g.reshape(2, -1) for g in network.layout.views(grad)[1][1:]], axis=1)
            assert np.isfinite(sums).all()
            assert np.isfinite(grad).all()
            assert all(np.isfinite(array).all() for array in (*pass_.a[1:], *pass_.delta[1:]))


# Stacks -------------------------------------------------------------------------------------------------------------


def bytes_of_shards(network, theta, x, y, counts, start, stop, dropping):
    """Return the bytes of gradient, cost and every activation of each shard in start ... stop - 1, computed together."""
    pass_ = filled_pass(network, x[start:stop], y[start:stop], counts[start:stop])
    if dropping:
        drop(network, pass_, seed=9, step=4, first_shard=start)
    return bytes_of_pass(network, theta, pass_)


def bytes_of_pass(network, theta, pass_):
    """Return the bytes of gradient, cost and every activation and delta of each shard."""
    k = pass_.shape[0]
    grad = np.zeros((k, theta.size + 13), theta.dtype)[:, 5 : 5 + theta.size]  # offset, with gaps between shards
    sums = np.zeros((k, 2))[:, 0]
    W, b = network.layout.views(theta)
    network.forward(W, b, pass_)
    network.cost_sums(pass_, sums)
    network.backward(W, pass_, *network.layout.views(grad))
    arrays = (sums, grad, *pass_.a[1:], *pass_.h[1:-1], *pass_.delta[1:])
    return [tuple(array[i].tobytes() for array in arrays) for i in range(k)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", ACTIVATIONS)
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 13])
def test_a_shard_has_the_same_bytes_in_any_stack(rows, hidden, dtype):
    random = np.random.default_rng(rows)
    all_widths = [(1, 1), (3, 1, 2), (1, 5, 1), (7, 16, 33, 3)]
    for i, (widths, (cost_name, output)) in enumerate(zip(all_widths, itertools.cycle(ENDINGS[rows:]), strict=False)):
        dropping = i % 2 == 1
        activations = [hidden] * (len(widths) - 2) + [output]
        if len(widths) == 2 and cost_name not in FUSED:
            activations = [hidden]
        network = Network(widths, activations, cost_name, dropout=0.25 * dropping, dtype=dtype)
        theta = random.standard_normal(network.layout.n_parameters).astype(dtype)
        x = random.standard_normal((8, rows, widths[0])).astype(dtype)
        y = targets(random, cost_name, (8, rows, widths[-1])).astype(dtype)
        for counts in ([rows] * 8, [rows - s % 2 for s in range(8)]):
            together = bytes_of_shards(network, theta, x, y, counts, 0, 8, dropping)
            if counts[1] < rows:  # where a padded shard is stacked with full ones, all go the padded way
                pairs = [(s, s + n) for n in (2, 3, 5, 8) for s in range(0, 9 - n)]
            else:
                pairs = list(itertools.combinations(range(9), 2))
            for start, stop in pairs:
                assert bytes_of_shards(network, theta, x, y, counts, start, stop, dropping) == together[start:stop]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_a_padded_shard_has_the_same_bytes_alone_and_beside_full_ones(rows, dtype):
    """A rank may hold only full shards of a step while another rank holds a short one."""
    network = Network((6, 20, 4), ("tanh", "softmax"), "cross_entropy", dtype=dtype)
    random = np.random.default_rng(5)
    theta = random.standard_normal(network.layout.n_parameters).astype(dtype)
    x = random.standard_normal((4, rows, 6)).astype(dtype)
    y = targets(random, "cross_entropy", (4, rows, 4)).astype(dtype)
    counts = [rows, rows - 1, rows, rows - 1]
    together = bytes_of_shards(network, theta, x, y, counts, 0, 4, False)
    for s in range(4):
        alone = bytes_of_shards(network, theta, x, y, counts, s, s + 1, False)
        assert alone == together[s : s + 1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_shards_have_the_same_bytes_in_any_stack(dtype):
    """Shapes at which BLAS uses its blocked kernels."""
    network = Network((64, 130, 65, 10), ("relu", "gelu", "softmax"), "cross_entropy", dtype=dtype)
    random = np.random.default_rng(6)
    theta = initial_theta(network.layout, "he", 1, dtype)
    for rows in (17, 64):
        x = random.standard_normal((8, rows, 64)).astype(dtype)
        y = np.eye(10, dtype=dtype)[random.integers(0, 10, (8, rows))]
        counts = [rows] * 8
        together = bytes_of_shards(network, theta, x, y, counts, 0, 8, False)
        for start, stop in itertools.combinations(range(9), 2):
            assert bytes_of_shards(network, theta, x, y, counts, start, stop, False) == together[start:stop]


# One product for all shards -----------------------------------------------------------------------------------------

STACKED_WIDTHS = [(1, 1), (1, 5, 1), (3, 1, 2), (7, 16, 33, 3), (64, 130, 65, 10), (20, 300, 20), (130, 33, 2, 1)]
STACKED_ROWS = [1, 2, 3, 8, 17, 33, 64]


def stack_of(widths, k, rows, dtype, dropout=0.0):
    """Return (network, theta, x, y) of k shards."""
    random = np.random.default_rng([k, rows, *widths])
    activations = ["gelu"] * (len(widths) - 2) + ["identity"]
    network = Network(widths, activations, "quadratic", dropout=dropout, dtype=dtype)
    theta = random.standard_normal(network.layout.n_parameters).astype(dtype)
    x = random.standard_normal((k, rows, widths[0])).astype(dtype)
    return network, theta, x, random.standard_normal((k, rows, widths[-1])).astype(dtype)


def joined_layers(pass_):
    """Return the layers whose product (2), and those whose product (5), is one for all shards."""
    L = len(pass_.z) - 1
    assert all(a.ndim == b.ndim for a, b in (*pass_.forward[1:], *pass_.backward[2:]))
    return [l for l in range(1, L + 1) if pass_.forward[l][0].ndim == 2], [
        l for l in range(2, L + 1) if pass_.backward[l][0].ndim == 2
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", STACKED_ROWS)
@pytest.mark.parametrize("widths", STACKED_WIDTHS)
def test_joined_products_have_the_bytes_of_one_a_shard(widths, rows, dtype):
    for k, dropout in ((2, 0.0), (3, 0.25), (8, 0.0)):
        network, theta, x, y = stack_of(widths, k, rows, dtype, dropout)
        before = theta.tobytes()
        pass_ = Pass(network, k, rows)
        join(pass_, network.layout.views(theta)[0])
        assert theta.tobytes() == before
        drop(network, pass_, 1, 2, 3)
        expected = {}
        for counts in ((rows,) * k, tuple(rows - s % 2 for s in range(k))):
            apart = filled_pass(network, x, y, counts)
            assert joined_layers(apart) == ([], [])
            drop(network, apart, 1, 2, 3)
            expected[counts] = bytes_of_pass(network, theta, apart)
            pass_.x[...], pass_.y[...] = x, y
            pass_.count(counts)
            assert bytes_of_pass(network, theta, pass_) == expected[counts]
        layers = joined_layers(pass_)
        for counts, offset in itertools.product(expected, (0, 1, 5)):  # x lies anywhere in the memory of several steps
            memory = np.empty(x.size + offset, dtype)
            lying = memory[offset:].reshape(x.shape)
            lying[...] = x
            pass_.use(lying, y.copy())
            pass_.count(counts)
            assert bytes_of_pass(network, theta, pass_) == expected[counts]
            assert np.shares_memory(pass_.h[0], memory)
        assert joined_layers(pass_) == layers


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_that_would_differ_stays_one_a_shard(dtype):
    random = np.random.default_rng(12)
    n_joined = n_different = 0
    for widths, rows, k in itertools.product(STACKED_WIDTHS, STACKED_ROWS, (2, 8)):
        network, theta, _, _ = stack_of(widths, k, rows, dtype)
        W, _ = network.layout.views(theta)
        pass_ = Pass(network, k, rows)
        join(pass_, W)
        forward, backward = joined_layers(pass_)
        n_joined += len(forward) + len(backward)
        for l in range(1, network.n_layers + 1):
            for w, joined in ((W[l].T, l in forward), (W[l], l in backward)):
                for _ in range(5):  # a few numbers may be equal by chance
                    stack = random.standard_normal((k, rows, len(w))).astype(dtype)
                    differs = np.matmul(stack, w).tobytes() != np.matmul(stack.reshape(-1, len(w)), w).tobytes()
                    n_different += differs
                    assert not (differs and joined), (widths, rows, k, l)
    if not (n_joined and n_different):
        pytest.skip(f"this machine's BLAS: {n_joined} products can be joined, {n_different} would differ")


def test_one_shard_has_nothing_to_join():
    network, theta, x, y = stack_of((7, 16, 3), 1, 64, "float32")
    pass_ = filled_pass(network, x, y)
    join(pass_, network.layout.views(theta)[0])
    assert joined_layers(pass_) == ([], [])
    assert pass_.x.tobytes() == x.tobytes()


# Parts of a pass ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_buffers_that_lie_elsewhere_give_the_same_bytes(dropout):
    """In memory that ranks share, h and delta of all shards lie in one stack, of which a rank holds a slice."""
    network, theta, x, y = stack_of((7, 16, 33, 3), 3, 5, "float32", dropout)
    apart = filled_pass(network, x, y)
    drop(network, apart, 1, 2, 3)
    expected = bytes_of_pass(network, theta, apart)
    h = {l: np.zeros((8, 5, network.widths[l]), np.float32) for l in (0, 2)}
    delta = {l: np.zeros((8, 5, network.widths[l]), np.float32) for l in (1, 3)}
    given_h, given_delta = ({l: array[3:6] for l, array in arrays.items()} for arrays in (h, delta))
    pass_ = Pass(network, 3, 5, h=given_h, delta=given_delta)
    join(pass_, network.layout.views(theta)[0])
    pass_.x[...], pass_.y[...] = x, y
    drop(network, pass_, 1, 2, 3)
    assert bytes_of_pass(network, theta, pass_) == expected
    for arrays, of_pass in ((h, apart.h), (delta, apart.delta)):
        for l, array in arrays.items():
            assert array[3:6].tobytes() == of_pass[l].tobytes()
            assert not array[:3].any()
            assert not array[6:].any()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_delta_of_a_layer_is_ready_when_it_is_yielded(dropout):
    network, theta, x, y = stack_of((3, 5, 4, 2), 2, 6, "float64", dropout)
    whole, pass_ = filled_pass(network, x, y, [6, 4]), filled_pass(network, x, y, [6, 4])
    for each in (whole, pass_):
        drop(network, each, 1, 2, 3)
    computed(network, theta, whole)
    W, b = network.layout.views(theta)
    network.forward(W, b, pass_)
    yielded = []
    for l in network.deltas(W, pass_):
        assert pass_.delta[l].tobytes() == whole.delta[l].tobytes()
        yielded.append(l)
    assert yielded == [3, 2, 1]
    assert all(
        mine.tobytes() == other.tobytes() for mine, other in zip(pass_.delta, whole.delta, strict=True) if mine.size
    )
    assert not whole.delta[1][1, 4:].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_of_some_neurons_by_loops(dtype):
    random = np.random.default_rng(3)
    delta, h = random.standard_normal((2, 9, 6)).astype(dtype), random.standard_normal((2, 9, 4)).astype(dtype)
    for of_delta, of_h in ((delta, h), (delta[0], h[0])):
        for first, last in ((0, 6), (0, 1), (2, 5)):
            some = of_delta[..., first:last]
            grad_W = np.full((*some.shape[:-2], last - first, 4), np.nan, dtype)
            grad_b = np.full((*some.shape[:-2], last - first), np.nan, dtype)
            gradient(some, of_h, np.ones((1, 9), dtype), grad_W, grad_b)
            expected_W, expected_b = np.zeros(grad_W.shape), np.zeros(grad_b.shape)
            for row in range(9):
                for j in range(last - first):
                    expected_b[..., j] += some[..., row, j]
                    for k in range(4):
                        expected_W[..., j, k] += some[..., row, j].astype(float) * of_h[..., row, k]
            tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == "float32" else {"rtol": 1e-12, "atol": 1e-14}
            np.testing.assert_allclose(grad_W, expected_W, **tolerance)
            np.testing.assert_allclose(grad_b, expected_b, **tolerance)


# Dropout ------------------------------------------------------------------------------------------------------------


def masks(network, k, rows, first_shard, seed=1, step=2):
    pass_ = Pass(network, k, rows)
    drop(network, pass_, seed, step, first_shard)
    return [np.array(kept) for kept in pass_.kept[1 : network.n_layers]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout_belongs_to_the_shard(dtype):
    network = Network((2, 5, 7, 3), ("relu",) * 3, "quadratic", dropout=0.5, dtype=dtype)
    whole = masks(network, 8, 6, 0)
    for first, last in itertools.combinations(range(9), 2):
        for all_shards, some in zip(whole, masks(network, last - first, 6, first), strict=True):
            assert all_shards[first:last].tobytes() == some.tobytes()
    for other in (masks(network, 8, 6, 1), masks(network, 8, 6, 0, seed=2), masks(network, 8, 6, 0, step=3)):
        assert all((mine != theirs).any() for mine, theirs in zip(whole, other, strict=True))
    assert len({shard.tobytes() for shard in whole[0]}) == 8


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_dropout_keeps_its_share_and_the_mean(share):
    network = Network((2, 100, 100, 3), ("relu",) * 3, "quadratic", dropout=share, dtype="float64")
    for kept in masks(network, 4, 100, 0):
        n = kept.size
        assert abs((kept > 0).mean() - (1 - share)) < 5 * math.sqrt(share * (1 - share) / n)
        assert np.unique(kept).tolist() == [0, pytest.approx(1 / (1 - share), rel=1e-3)]
        assert abs(kept.mean() - 1) < 5 * math.sqrt(share / (1 - share) / n) + 1e-3
        for axis in (0, 1, 2):  # neighbours are not alike
            a, b = (np.take(kept > 0, range(s, kept.shape[axis] - 1 + s), axis).ravel() for s in (0, 1))
            assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(a.size)


def test_dropout_is_applied_between_layers_only():
    network = Network((2, 6, 2), ("tanh", "identity"), "quadratic", dropout=0.5, dtype="float64")
    random = np.random.default_rng(2)
    theta = random.standard_normal(network.layout.n_parameters)
    W, b = network.layout.views(theta)
    x, y = random.standard_normal((1, 3, 2)), random.standard_normal((1, 3, 2))
    evaluating, pass_ = filled_pass(network, x, y, training=False), filled_pass(network, x, y)
    assert (evaluating.dropping, pass_.dropping) == (False, True)
    drop(network, evaluating, 1, 1, 0)
    plain = network.forward(W, b, evaluating)
    np.testing.assert_allclose(plain, evaluating.a[1] @ W[2].T + b[2], rtol=1e-13)
    drop(network, pass_, 1, 1, 0)
    dropped = network.forward(W, b, pass_)
    expected = (pass_.a[1] * pass_.kept[1]) @ W[2].T + b[2]
    np.testing.assert_allclose(dropped, expected, rtol=1e-13)
    assert not np.allclose(dropped, plain)


def test_no_dropout_leaves_the_pass_as_it_is():
    network = Network((2, 6, 2), ("tanh", "identity"), "quadratic")
    pass_ = Pass(network, 1, 3)
    drop(network, pass_, 1, 1, 0)
    assert not pass_.dropping


# Initial weights and layout -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["glorot", "he", "normal"])
def test_initial_weights_have_their_distribution(kind, dtype):
    layout = Layout((200, 150, 80))
    theta = initial_theta(layout, kind, 7, dtype)
    assert theta.dtype == dtype
    assert np.isfinite(theta).all()
    W, b = layout.views(theta.astype(np.float64))
    for l in (1, 2):
        n_out, n_in = W[l].shape
        variance = {"glorot": 2 / (n_in + n_out), "he": 2 / n_in, "normal": 1.0}[kind]
        n, w = W[l].size, W[l] / math.sqrt(variance)
        kurtosis = 1.8 if kind == "glorot" else 3.0
        assert abs(w.mean()) < 5 / math.sqrt(n)
        assert abs(w.var() - 1) < 5 * math.sqrt((kurtosis - 1) / n)
        assert abs((w**4).mean() - kurtosis) < 5 * math.sqrt(105 / n)
        if kind == "glorot":
            assert np.abs(W[l]).max() <= math.sqrt(6 / (n_in + n_out)) * (1 + 1e-6)
        assert (b[l].any() and abs(b[l].mean()) < 5 / math.sqrt(n_out)) if kind == "normal" else not b[l].any()


@pytest.mark.parametrize("kind", ["glorot", "he", "normal"])
def test_initial_weights_depend_on_seed_and_layer_alone(kind):
    layout = Layout((4, 4, 4))
    theta = initial_theta(layout, kind, 3, "float64")
    assert theta.tobytes() == initial_theta(layout, kind, 3, "float64").tobytes()
    assert theta.astype("float32").tobytes() == initial_theta(layout, kind, 3, "float32").tobytes()
    assert (theta != initial_theta(layout, kind, 4, "float64")).any()
    W, _ = layout.views(theta)
    assert (W[1] != W[2]).all()
    longer, _ = Layout((4, 4, 4, 9)).views(initial_theta(Layout((4, 4, 4, 9)), kind, 3, "float64"))
    assert longer[1].tobytes() == W[1].tobytes()
    assert longer[2].tobytes() == W[2].tobytes()


@settings(deadline=None)
@given(widths=st.lists(st.integers(1, 12), min_size=2, max_size=6), k=st.sampled_from([0, 1, 3]))
def test_layout_covers_theta_exactly_once(widths, k):
    layout = Layout(tuple(widths))
    vector = np.zeros((k, layout.n_parameters) if k else layout.n_parameters)
    W, b = layout.views(vector)
    assert layout.n_parameters == sum((n_in + 1) * n_out for n_in, n_out in itertools.pairwise(widths))
    for l in range(1, len(widths)):
        assert W[l].shape == (*vector.shape[:-1], widths[l], widths[l - 1])
        assert b[l].shape == (*vector.shape[:-1], widths[l])
        for view in (W[l], b[l]):
            assert np.shares_memory(view, vector)
            view += 1
    assert (vector == 1).all()
    for l in range(1, len(widths)):
        W[l] += 1
    assert (vector[..., : layout.n_weights] == 2).all()  # what weight decay is a slice of
    assert (vector[..., layout.n_weights :] == 1).all()


def test_weights_are_indexed_as_in_the_notes():
    layout = Layout((2, 3, 1))
    W, b = layout.views(np.arange(13.0))
    assert W[1][2, 1] == 5  # w_jk: to neuron j from neuron k
    assert W[2].tolist() == [[6, 7, 8]]
    assert b[1].tolist() == [9, 10, 11]
    assert b[2].tolist() == [12]


# Construction -------------------------------------------------------------------------------------------------------


def test_description_makes_the_same_network():
    network = Network((3, 4, 2), ("gelu", "identity"), "huber", 0.5, 0.1, "float64")
    again = Network(**network.description())
    assert again.description() == network.description()
    assert network.description() == {
        "widths": [3, 4, 2], "activations": ["gelu", "identity"], "cost_name": "huber", "huber_width": 0.5,
        "dropout": 0.1, "dtype": "float64",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("activations", "cost_name", "message"),
    [
        (
            ("relu",),
            "quadratic",
            "activations: expected one for each of 2 layers, got 1. Name one for every width but the first.",
        ),
        (
            ("relu", "sigmoid"),
            "cross_entropy",
            "activations: expected softmax last with cross_entropy, got sigmoid. Use the two together.",
        ),
        (
            ("relu", "softmax"),
            "binary_cross_entropy",
            "activations: expected sigmoid last with binary_cross_entropy, got softmax. Use the two together.",
        ),
    ],
)
def test_errors(activations, cost_name, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Network((2, 3, 2), activations, cost_name)


@pytest.mark.parametrize("width", [0.3, 1.0, 2.5])
def test_huber_by_its_definition(width):
    e = np.linspace(-4, 4, 33)
    z = e[None, :, None]
    y = np.zeros_like(z)
    huber = cost("huber", width)
    expected = [t * t / 2 if abs(t) <= width else width * (abs(t) - width / 2) for t in e]
    np.testing.assert_allclose(huber.per_sample(z, z, y, scratch_like(z))[0], expected, rtol=1e-14)
    delta = np.empty_like(z)
    huber.start_delta(z, z, y, delta)
    np.testing.assert_allclose(delta[0, :, 0], [t if abs(t) <= width else math.copysign(width, t) for t in e])


def test_dropping_nearly_everything_is_no_error():
    network = Network((2, 500, 1), ("relu", "identity"), "quadratic", dropout=0.999999)
    pass_ = Pass(network, 1, 200)
    drop(network, pass_, 0, 0, 0)
    assert set(np.unique(pass_.kept[1])) <= {0.0, 65536.0}


def test_a_huber_width_beyond_float32_is_no_error():
    network = Network((1, 1), ("identity",), "huber", huber_width=1e300)
    z = np.full((1, 1, 1), 3.0, np.float32)
    assert network.cost.per_sample(z, z, z - 2, scratch_like(z)).item() == 2.0
