"""Write tests/golden/steps.json: what distbp computes today, so that a later change of any number is seen.

Run from the repository's root, by hand, only where a change of results is meant:

    PYTHONPATH=tests python -m golden.make_steps
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from golden.cases import CASES, Case, steps

PATH = Path(__file__).with_name("steps.json")
N_SAMPLED = 8


def summary(case: Case) -> dict[str, object]:
    """Return what is kept of a case: costs and norms of the steps, checksums and samples of the last theta."""
    costs, _, norms, thetas = zip(*steps(case), strict=True)
    theta = thetas[-1]
    turns = np.cos(np.arange(theta.size))  # weights of a checksum that sees entries change places
    return {
        "costs": costs,
        "norms": norms,
        "sums": [float(theta.sum()), float(np.abs(theta).sum()), float(theta @ theta), float(theta @ turns)],
        "sampled": theta[np.linspace(0, theta.size - 1, N_SAMPLED).astype(int)].tolist(),
    }


if __name__ == "__main__":
    lines = [f"{json.dumps(case.name)}: {json.dumps(summary(case))}" for case in CASES]
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n")
