"""The limits of the machine: float32 products by numpy's BLAS, and copying memory that no cache holds.

`python benchmarks/peers/limits.py SECONDS` prints the GFLOP/s of the fastest product and the GB/s of the fastest copy
(bytes read and bytes written), with as many BLAS threads as it was given; compare.py starts two at once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np

N = 1024
COPIED = 1 << 28  # bytes


def fastest(do: Callable[[], object], seconds: float) -> float:
    """Return the seconds of the fastest of many calls within some seconds."""
    best, end = float("inf"), time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        do()
        best = min(best, time.perf_counter() - start)
    return best


def main(seconds: float) -> None:
    """Measure and print both."""
    a = np.random.default_rng(0).random((N, N), np.float32)
    out = np.empty_like(a)
    print(2 * N**3 / fastest(lambda: np.matmul(a, a, out=out), seconds / 2) / 1e9)
    source, into = np.ones(COPIED // 8), np.ones(COPIED // 8)
    print(2 * COPIED / fastest(lambda: np.copyto(into, source), seconds / 2) / 1e9)


if __name__ == "__main__":
    main(float(sys.argv[1]))
