"""What the bits depend on beside the settings: recorded in run.json and compared when a run goes on."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import threadpoolctl

import distbp

BITS = (
    "blas",
    "blas_version",
    "blas_kernel",
    "blas_threads",
    "numpy",
    "simd",
    "machine",
)  # keys that the bits depend on


def environment() -> dict[str, Any]:
    """Return versions, and BLAS with its kernel and threads, of this process."""
    libraries = [info for info in threadpoolctl.threadpool_info() if info.get("user_api") == "blas"]
    blas = next((info for info in libraries if "numpy" in str(info.get("filepath"))), (libraries or [{}])[0])
    return {
        "distbp": distbp.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "simd": "+".join(np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])),
        "machine": platform.machine(),
        "blas": blas.get("internal_api", "unknown"),
        "blas_version": blas.get("version") or "unknown",
        "blas_kernel": blas.get("architecture") or "unknown",
        "blas_threads": blas.get("num_threads", 0),
    }


def differences(now: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Return what differs of all that the bits depend on, like ``numpy 2.4.6 (was 2.3.0)``."""
    return [f"{key} {now[key]} (was {before[key]})" for key in BITS if key in before and now.get(key) != before[key]]


def disagreement(of_ranks: Sequence[Mapping[str, Any]]) -> str:
    """Return what is wrong where ranks differ in what the bits depend on, "" where nothing is.

    Every host takes the same step from the same numbers, so hosts of two kinds would drift apart, and stop at the next
    check of the replicas.

    Parameters
    ----------
    of_ranks
        ``environment()`` of each rank, and its ``host``.
    """
    for key in ("distbp", *BITS):
        values = [rank[key] for rank in of_ranks]
        other = next((r for r, value in enumerate(values) if value != values[0]), 0)
        if other:
            action = {
                "blas_kernel": "Set OPENBLAS_CORETYPE for all to one that all have, or use hosts of one kind.",
                "simd": "Set NPY_DISABLE_CPU_FEATURES for all to what some lack, or use hosts of one kind.",
            }.get(key, "Install the same on all hosts.")
            return (
                f"hosts: expected one {key} on all ranks, got {values[other] or 'none'} on rank {other} "
                f"({of_ranks[other]['host']}) and {values[0] or 'none'} on rank 0 ({of_ranks[0]['host']}): the bits "
                f"depend on it. {action}"
            )
    return ""
