"""The descent step, equation (7): theta moves along the mean gradient, in place, piece by piece.

g is the mean gradient (after `mean_gradient`, clipping and weight decay), eta the learning rate, t = 1, 2, ...

    gradient_descent   theta -= eta g
    momentum           v = mu v + g;  theta -= eta v
    nesterov           v = mu v + g;  theta -= eta (g + mu v)
    adam, adamw        m = b1 m + (1 - b1) g;  s = b2 s + (1 - b2) g^2
                       theta -= eta m / (1 - b1^t) / (sqrt(s / (1 - b2^t)) + epsilon)

Weight decay lambda, on weights only: g += lambda W for all rules but adamw, where W -= eta lambda W before the step.

Shapes: theta, g, v, m, s (n_parameters,). Each piece stays in the L2 cache through all passes over it; element-wise
arithmetic gives the same bits for any piece.

References
----------
B. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964 (momentum). I. Sutskever et al.,
"On the importance of initialization and momentum in deep learning", ICML 2013 (nesterov, in the form that adds to g).
D. Kingma, J. Ba, "Adam", ICLR 2015, algorithm 1. I. Loshchilov, F. Hutter, "Decoupled weight decay
regularization", ICLR 2019, algorithm 2 (adamw). R. Pascanu et al., "On the difficulty of training recurrent neural
networks", ICML 2013, algorithm 1 (clipping).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distbp.descent.gradient import PIECE, pieces
from distbp.settings import Descent

Array = NDArray[Any]
STATE = {
    "gradient_descent": (),
    "momentum": ("velocity",),
    "nesterov": ("velocity",),
    "adam": ("mean", "mean_square"),
    "adamw": ("mean", "mean_square"),
}


class Rule:
    """A descent rule with its state.

    Parameters
    ----------
    descent
        The settings of [descent].
    n_weights, n_parameters
        The first `n_weights` of theta's numbers are weights, and decay.
    dtype
        Of theta and of the state.
    """

    def __init__(self, descent: Descent, n_weights: int, n_parameters: int, dtype: Any) -> None:
        self.descent = descent
        self.n_weights = n_weights
        self.state = {name: np.zeros(n_parameters, dtype) for name in STATE[descent.rule]}
        self._scratch = np.empty(min(PIECE, n_parameters), dtype), np.empty(min(PIECE, n_parameters), dtype)

    def descend(self, theta: Array, grad: Array, norm: float, eta: float, t: int) -> None:
        """Take step t: change theta and the state in place. **Local.** grad, the mean gradient, is overwritten."""
        limit, decay = self.descent.clip, self.descent.weight_decay
        shrink = limit / norm if limit and norm > limit else 1.0
        for piece in pieces(theta.size):
            g, w = grad[piece], theta[piece]
            if shrink != 1.0:
                g *= shrink
            n_decayed = min(max(self.n_weights - piece.start, 0), g.size)
            if decay and n_decayed:
                if self.descent.rule == "adamw":
                    w[:n_decayed] *= 1 - eta * decay
                else:
                    g[:n_decayed] += np.multiply(w[:n_decayed], decay, out=self._scratch[0][:n_decayed])
            w -= self._move(g, piece, eta, t)

    def _move(self, g: Array, piece: slice, eta: float, t: int) -> Array:
        """Update the state of a piece; return what is taken from theta there (in scratch memory or in g)."""
        out, scratch = (array[: g.size] for array in self._scratch)
        rule = self.descent
        if rule.rule == "gradient_descent":
            return np.multiply(g, eta, out=g)
        if rule.rule in ("momentum", "nesterov"):
            v = self.state["velocity"][piece]
            v *= rule.momentum
            v += g
            if rule.rule == "momentum":
                return np.multiply(v, eta, out=out)
            np.multiply(v, rule.momentum, out=out)
            out += g
            return np.multiply(out, eta, out=out)
        m, s = self.state["mean"][piece], self.state["mean_square"][piece]
        m *= rule.beta1
        m += np.multiply(g, 1 - rule.beta1, out=scratch)
        s *= rule.beta2
        np.multiply(g, g, out=g)
        s += np.multiply(g, 1 - rule.beta2, out=g)
        np.sqrt(s, out=scratch)
        scratch *= 1 / (1 - rule.beta2**t) ** 0.5
        scratch += rule.epsilon
        np.divide(m, scratch, out=out)
        return np.multiply(out, eta / (1 - rule.beta1**t), out=out)
