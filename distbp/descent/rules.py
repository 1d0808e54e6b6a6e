"""The descent step, equation (7): theta moves along the mean gradient, in place, piece by piece.

g is the mean gradient (after clipping and weight decay), eta the learning rate, t = 1, 2, ...

    gradient_descent   theta -= eta g
    momentum           v = mu v + g;  theta -= eta v
    nesterov           v = mu v + g;  theta -= eta (g + mu v)
    adam, adamw        m = b1 m + (1 - b1) g;  s = b2 s + (1 - b2) g^2
                       theta -= eta m / (1 - b1^t) / (sqrt(s / (1 - b2^t)) + epsilon)

Weight decay lambda, on weights only: g += lambda W for all rules but adamw, where W -= eta lambda W before the step.
The one division by the global number of rows, and clipping, come as a `scale` of the gradient's sum.

Shapes: theta, v, m, s (n_parameters,). Each piece stays in the L2 cache through all passes over it; element-wise
arithmetic gives the same bits for any piece, so ranks and threads may share out theta as they like.

References
----------
B. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964 (momentum). I. Sutskever et al.,
"On the importance of initialization and momentum in deep learning", ICML 2013 (nesterov, in the form that adds to g).
D. Kingma, J. Ba, "Adam", ICLR 2015, algorithm 1. I. Loshchilov, F. Hutter, "Decoupled weight decay
regularization", ICLR 2019, algorithm 2 (adamw). R. Pascanu et al., "On the difficulty of training recurrent neural
networks", ICML 2013, algorithm 1 (clipping).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distbp.settings import Descent

Array = NDArray[Any]
STATE = {
    "gradient_descent": (),
    "momentum": ("velocity",),
    "nesterov": ("velocity",),
    "adam": ("mean", "mean_square"),
    "adamw": ("mean", "mean_square"),
}
PIECE = 16384  # numbers


class Piece(NamedTuple):
    """Numbers `first` ... `last` - 1 of a gradient, and theta and the rule's state there."""

    first: int
    last: int
    decays: bool
    theta: Array
    state: tuple[Array, ...]


Move = Callable[..., Array]  # (g, scratch, *state): changes the state; returns what theta loses, in g or in scratch


class Rule:
    """A descent rule with its state.

    Parameters
    ----------
    descent
        The settings of [descent].
    n_weights
        The first `n_weights` of theta's numbers are weights, and decay.
    state
        What STATE names for the rule, each (n_parameters,): 0 at the start, changed in place.
    """

    def __init__(self, descent: Descent, n_weights: int, state: Mapping[str, Array]) -> None:
        self.descent, self.n_weights, self.state = descent, n_weights, state
        self._move = {
            "gradient_descent": self._gradient_descent,
            "momentum": self._momentum,
            "nesterov": self._momentum,
        }.get(descent.rule, self._adam)

    def pieces(self, theta: Array, where: slice, at: int = 0) -> list[Piece]:
        """Return the pieces of a part of theta, only weights or only biases, whose gradient starts at number `at`."""
        found = []
        for start in range(where.start, where.stop, PIECE):
            piece, first = slice(start, min(start + PIECE, where.stop)), at + start - where.start
            state = tuple(array[piece] for array in self.state.values())
            decays = self.descent.weight_decay > 0 and start < self.n_weights
            found.append(Piece(first, first + piece.stop - start, decays, theta[piece], state))
        return found

    def shrink(self, norm: float) -> float:
        """Return what a mean gradient of this norm is multiplied by, to be no longer than `clip`."""
        limit = self.descent.clip
        return limit / norm if limit and norm > limit else 1.0

    def descend(self, pieces: Iterable[Piece], grad: Array, scale: float, eta: float, t: int, scratch: Array) -> None:
        """Take step t in some pieces: change theta and the state there. **Local.**

        Parameters
        ----------
        grad
            Gradient sum, overwritten. `scale` times it is the mean gradient, clipped.
        scratch
            (PIECE,), or as long as the longest piece.
        """
        decay, adamw = self.descent.weight_decay, self.descent.rule == "adamw"
        move = self._move(scale, eta, t)
        move_mean = self._move(1.0, eta, t) if decay and not adamw else move
        for first, last, decays, w, state in pieces:
            g, free = grad[first:last], scratch[: last - first]
            if decays and adamw:
                w *= 1 - eta * decay
            elif decays:
                g *= scale
                g += np.multiply(w, decay, out=free)
                w -= move_mean(g, free, *state)
                continue
            w -= move(g, free, *state)

    def _gradient_descent(self, scale: float, eta: float, t: int) -> Move:
        by = eta * scale
        return lambda g, free: np.multiply(g, by, out=g)

    def _momentum(self, scale: float, eta: float, t: int) -> Move:
        mu, nesterov = self.descent.momentum, self.descent.rule == "nesterov"

        def move(g: Array, free: Array, v: Array) -> Array:
            v *= mu
            g *= scale
            v += g
            if not nesterov:
                return np.multiply(v, eta, out=free)
            g += np.multiply(v, mu, out=free)
            return np.multiply(g, eta, out=g)

        return move

    def _adam(self, scale: float, eta: float, t: int) -> Move:
        beta1, beta2 = self.descent.beta1, self.descent.beta2
        new, new_root = (1 - beta1) * scale, (1 - beta2) ** 0.5 * scale
        length = max(eta / (1 - beta1**t), 1e-30)  # theta -= m / (sqrt(s) / sqrt(1 - b2^t) / length + epsilon / length)
        by, plus = 1 / (length * (1 - beta2**t) ** 0.5), self.descent.epsilon / length

        def move(g: Array, free: Array, m: Array, s: Array) -> Array:
            m *= beta1
            m += np.multiply(g, new, out=free)
            s *= beta2
            g *= new_root  # before it is squared: a scale that clips may be as small as g is large
            g *= g
            s += g
            np.sqrt(s, out=free)
            free *= by
            free += plus
            return np.divide(m, free, out=free)

        return move
