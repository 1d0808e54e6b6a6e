"""The same steps, built independently in PyTorch: cost, gradient and theta agree to 1e-10."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from golden.cases import CASES, RULES, steps

from distbp.network.network import Network
from distbp.network.passes import Pass

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.oracle

nn = torch.nn.functional
SIGMA = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": nn.relu,
    "leaky_relu": lambda z: nn.leaky_relu(z, 0.01),
    "gelu": lambda z: nn.gelu(z, approximate="tanh"),
    "softplus": nn.softplus,
    "identity": lambda z: z,
    "softmax": lambda z: nn.softmax(z, dim=-1),
}


def tensor(array):
    return torch.tensor(np.asarray(array), dtype=torch.float64)


def cost_sum(name, huber_width, z, a, y):
    """Return the sum of C over all rows."""
    if name == "quadratic":
        return nn.mse_loss(a, y, reduction="sum") / 2
    if name == "cross_entropy":
        return nn.cross_entropy(z, y, reduction="sum")
    if name == "binary_cross_entropy":
        return nn.binary_cross_entropy_with_logits(z, y, reduction="sum")
    if name == "absolute":
        return nn.l1_loss(a, y, reduction="sum")
    return nn.huber_loss(a, y, delta=huber_width, reduction="sum")


def optimizer(case, weights, biases):
    descent = case.descent
    groups = [{"params": weights, "weight_decay": case.weight_decay}, {"params": biases, "weight_decay": 0.0}]
    eta = RULES[case.rule]
    if case.rule in ("adam", "adamw"):
        made = torch.optim.Adam if case.rule == "adam" else torch.optim.AdamW
        return made(groups, lr=eta, betas=(descent.beta1, descent.beta2), eps=descent.epsilon)
    momentum = 0.0 if case.rule == "gradient_descent" else descent.momentum
    return torch.optim.SGD(groups, lr=eta, momentum=momentum, nesterov=case.rule == "nesterov")


def torch_steps(case):
    """Yield (cost sum, mean gradient, its norm, theta) of each step as PyTorch takes it."""
    theta = case.theta()
    weights, biases, start = [], [], 0
    for n_in, n_out in itertools.pairwise(case.widths):
        weights.append(tensor(theta[start : start + n_in * n_out].reshape(n_out, n_in)).requires_grad_())
        start += n_in * n_out
    for n_out in case.widths[1:]:
        biases.append(tensor(theta[start : start + n_out]).requires_grad_())
        start += n_out
    parameters = [*weights, *biases]
    optimizer_ = optimizer(case, weights, biases)

    def flat(tensors):
        return np.concatenate([t.detach().numpy().ravel() for t in tensors])

    for x, y in case.batches():
        a = tensor(np.concatenate([x[s, :n] for s, n in enumerate(case.counts)]))  # rows that count, in one heap
        y = tensor(np.concatenate([y[s, :n] for s, n in enumerate(case.counts)]))
        for name, w, b in zip(case.activations, weights, biases, strict=True):
            z = nn.linear(a, w, b)
            a = SIGMA[name](z)
        cost = cost_sum(case.cost, case.huber_width, z, a, y)
        optimizer_.zero_grad()
        (cost / len(y)).backward()
        grad = flat([p.grad for p in parameters])
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        if case.clip:  # PyTorch divides by norm + 1e-6
            torch.nn.utils.clip_grads_with_norm_(parameters, case.clip, norm - 1e-6)
        optimizer_.step()
        yield cost.item(), grad, norm.item(), flat(parameters)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_steps_agree(case):
    for t, (ours, theirs) in enumerate(zip(steps(case), torch_steps(case), strict=True), 1):
        for what, mine, other in zip(("cost", "gradient", "norm", "theta"), ours, theirs, strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-10, atol=1e-10, err_msg=f"{what} of step {t}")


def test_clipping_agrees_with_clip_grad_norm():
    """Their own entry point, to the 1e-6 that it adds to the norm."""
    grad = tensor(np.linspace(-3, 5, 7))
    parameter = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    parameter.grad = grad.clone()
    norm = torch.nn.utils.clip_grad_norm_([parameter], 0.5).item()
    np.testing.assert_allclose(parameter.grad.numpy(), grad.numpy() * (0.5 / norm), rtol=1e-6)
    assert any(case.clip and next(steps(case))[2] > case.clip for case in CASES)  # so the cases do clip


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("hidden", SIGMA)
@pytest.mark.parametrize(("cost_name", "output"), [
    ("quadratic", "softmax"), ("quadratic", "sigmoid"), ("quadratic", "gelu"), ("absolute", "softplus"),
    ("huber", "leaky_relu"), ("cross_entropy", "softmax"), ("binary_cross_entropy", "sigmoid"),
])  # fmt: skip
def test_gradients_agree(cost_name, output, hidden, rows):
    network = Network((3, 5, 4, 2), (hidden, hidden, output), cost_name, 0.6, dtype="float64")
    random = np.random.default_rng(4)
    theta = random.standard_normal(network.layout.n_parameters)
    W, b = network.layout.views(theta)
    pass_ = Pass(network, 1, rows)
    pass_.x[...], pass_.y[...] = random.standard_normal((1, rows, 3)), random.random((1, rows, 2))
    pass_.y /= pass_.y.sum(axis=-1, keepdims=True)
    grad, sums = np.empty((1, theta.size)), np.empty(1)
    network.forward(W, b, pass_)
    network.cost_sums(pass_, sums)
    network.backward(W, pass_, *network.layout.views(grad))

    parameters = [tensor(p).requires_grad_() for p in (*W[1:], *b[1:])]
    a = tensor(pass_.x[0])
    for l, name in enumerate((hidden, hidden, output)):
        z = nn.linear(a, parameters[l], parameters[3 + l])
        a = SIGMA[name](z)
    cost = cost_sum(cost_name, 0.6, z, a, tensor(pass_.y[0]))
    cost.backward()
    assert sums[0] == pytest.approx(cost.item(), rel=1e-12)
    expected = np.concatenate([p.grad.numpy().ravel() for p in parameters])
    np.testing.assert_allclose(grad[0], expected, rtol=1e-10, atol=1e-13)
