"""Ten steps of small networks, shared by the golden file, its test and the comparison with PyTorch.

Every rule meets every cost; hidden and last activations, depth, weight decay, clipping and padded rows vary along the
way. Everything is float64 and comes from numpy's RandomState, whose numbers are frozen for good.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from distbp.descent.rules import PIECE, STATE, Rule
from distbp.network.network import Network
from distbp.network.passes import Pass
from distbp.parallel.tree import fold_shards
from distbp.settings import Descent

N_STEPS = 10
N_SHARDS = 3
ROWS = 6  # of each shard

RULES = {"gradient_descent": 0.3, "momentum": 0.1, "nesterov": 0.1, "adam": 0.05, "adamw": 0.05}  # name: eta
COSTS = ("quadratic", "cross_entropy", "binary_cross_entropy", "absolute", "huber")
FUSED = {"cross_entropy": "softmax", "binary_cross_entropy": "sigmoid"}
ACTIVATIONS = ("sigmoid", "tanh", "relu", "leaky_relu", "gelu", "softplus", "identity", "softmax")


@dataclass(frozen=True)
class Case:
    """What one network is, and how it descends."""

    seed: int
    rule: str
    cost: str
    widths: tuple[int, ...]
    activations: tuple[str, ...]
    weight_decay: float
    clip: float
    counts: tuple[int, ...]  # rows of each shard; the others are padding
    huber_width: float

    @property
    def name(self) -> str:
        extras = "-decay" * bool(self.weight_decay) + "-clip" * bool(self.clip) + "-short" * (min(self.counts) < ROWS)
        return f"{self.rule}-{self.cost}-{'-'.join(self.activations)}{extras}"

    @property
    def descent(self) -> Descent:
        return Descent(
            rule=self.rule,
            learning_rate=RULES[self.rule],
            weight_decay=self.weight_decay,
            clip=self.clip,
            momentum=0.8,
            beta1=0.85,
            beta2=0.98,
            epsilon=1e-6,
        )

    def network(self) -> Network:
        return Network(self.widths, self.activations, self.cost, self.huber_width, dtype="float64")

    def theta(self) -> np.ndarray:
        """Return theta at step 0, laid out as in `distbp.network.layout`."""
        n = sum((n_in + 1) * n_out for n_in, n_out in itertools.pairwise(self.widths))
        return 0.7 * np.random.RandomState(self.seed).standard_normal(n)

    def batches(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return (x, y) of every step, (shards, rows, n_0) and (shards, rows, n_L)."""
        random = np.random.RandomState(1000 + self.seed)
        found = []
        for _ in range(N_STEPS):
            x = random.standard_normal((N_SHARDS, ROWS, self.widths[0]))
            shape = (N_SHARDS, ROWS, self.widths[-1])
            if self.cost == "cross_entropy":
                y = random.random_sample(shape) ** 4
                y /= y.sum(axis=-1, keepdims=True)
            elif self.cost == "binary_cross_entropy":
                y = np.floor(2.5 * random.random_sample(shape)) / 2  # 0, 1/2 and 1
            else:
                y = random.standard_normal(shape)
            found.append((x, y))
        return found


def _cases() -> list[Case]:
    found = []
    last = itertools.cycle(ACTIVATIONS)
    hidden = itertools.cycle(ACTIVATIONS)
    for seed, (rule, cost) in enumerate(itertools.product([*RULES, "adam", "momentum"], COSTS)):
        inner = [next(hidden) for _ in range(1 + seed % 2)]
        activations = (*inner, FUSED.get(cost) or next(last))
        found.append(
            Case(
                seed=seed,
                rule=rule,
                cost=cost,
                widths=(4, *(6, 5)[: len(inner)], 3),
                activations=activations,
                weight_decay=(0.0, 0.1, 0.03)[seed % 3],
                clip=(0.0, 0.05)[seed // 2 % 2],
                counts=(ROWS, ROWS, ROWS) if seed % 4 else (ROWS, ROWS - 1, 2),
                huber_width=0.4 + seed % 3,
            )
        )
    found.append(Case(90, "gradient_descent", "quadratic", (4, 3), ("sigmoid",), 0.0, 0.0, (6, 6, 6), 1.0))
    found.append(Case(91, "adamw", "huber", (2, 4, 3, 4, 1), ("tanh", "gelu", "softplus", "identity"), 0.2, 0.01, (5, 0, 6), 1.0))  # fmt: skip
    return found


CASES = _cases()


def steps(case: Case):
    """Yield (cost sum, mean gradient, its norm, theta) of each step, as distbp takes it; the arrays are copies."""
    network, theta = case.network(), case.theta()
    layout = network.layout
    W, b = layout.views(theta)
    n, rows = layout.n_parameters, sum(case.counts)
    rule = Rule(case.descent, layout.n_weights, {name: np.zeros(n) for name in STATE[case.rule]})
    pieces = rule.pieces(theta, slice(0, layout.n_weights))
    pieces += rule.pieces(theta, slice(layout.n_weights, n), layout.n_weights)
    pass_ = Pass(network, N_SHARDS, ROWS)
    partial, costs, scratch = np.empty((N_SHARDS, n)), np.empty(N_SHARDS), np.empty(min(PIECE, n))
    for t, (x, y) in enumerate(case.batches(), 1):
        pass_.x[...], pass_.y[...] = x, y
        pass_.count(case.counts)
        network.forward(W, b, pass_)
        network.cost_sums(pass_, costs)
        network.backward(W, pass_, *layout.views(partial))
        grad = fold_shards(partial)
        mean = grad / rows
        norm = float(np.linalg.norm(mean))
        rule.descend(pieces, grad, rule.shrink(norm) / rows, RULES[case.rule], t, scratch)
        yield float(fold_shards(costs.copy())), mean, norm, theta.copy()
