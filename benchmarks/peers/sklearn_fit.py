"""The same work on scikit-learn's MLPClassifier: one process, its BLAS on all cores.

`python benchmarks/peers/sklearn_fit.py WORK`, where WORK is the JSON that compare.py makes of a work item, prints JSON:
the microseconds per step, from the difference of two fits of different length, so that setting up does not count.
The data are float32, shuffled each epoch as in distbp; early stopping and the test for convergence are off. Its output
layer is always a softmax with the cross-entropy, also where distbp has a sigmoid with the quadratic cost.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from typing import Any

SHORT, LONG = 1, 3  # epochs


def seconds_of_fit(work: dict[str, Any], epochs: int) -> float:
    """Return the seconds that a fit of so many epochs takes."""
    import numpy as np
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    widths = work["widths"]
    random = np.random.default_rng(0)
    x = 2 * random.random((work["rows"], widths[0]), np.float32) - 1
    y = random.integers(widths[-1], size=work["rows"])
    model = MLPClassifier(
        hidden_layer_sizes=widths[1:-1],
        activation={"sigmoid": "logistic", "relu": "relu"}[work["hidden"]],
        solver={"gradient_descent": "sgd", "adam": "adam"}[work["rule"]],
        momentum=0.0,
        nesterovs_momentum=False,
        alpha=0.0,
        batch_size=work["batch"],
        learning_rate_init=work["learning_rate"],
        max_iter=epochs,
        n_iter_no_change=epochs + 1,
        tol=0.0,
        early_stopping=False,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the fit is as long as asked for
        start = time.perf_counter()
        model.fit(x, y)
        return time.perf_counter() - start


def measure(work: dict[str, Any]) -> float:
    """Return the microseconds per step."""
    seconds = seconds_of_fit(work, LONG) - seconds_of_fit(work, SHORT)
    return seconds / (LONG - SHORT) / (work["rows"] // work["batch"]) * 1e6


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
