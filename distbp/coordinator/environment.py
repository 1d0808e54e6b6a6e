"""What the bits depend on beside the settings: recorded in run.json and compared when a run goes on."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import threadpoolctl

import distbp

BITS = ("blas", "blas_version", "blas_kernel", "blas_threads", "numpy", "machine")  # keys that the bits depend on


def environment() -> dict[str, Any]:
    """Return versions, and BLAS with its kernel and threads, of this process."""
    libraries = [info for info in threadpoolctl.threadpool_info() if info.get("user_api") == "blas"]
    blas = next((info for info in libraries if "numpy" in str(info.get("filepath"))), (libraries or [{}])[0])
    return {
        "distbp": distbp.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "blas": blas.get("internal_api", "unknown"),
        "blas_version": blas.get("version") or "unknown",
        "blas_kernel": blas.get("architecture") or "unknown",
        "blas_threads": blas.get("num_threads", 0),
    }


def differences(now: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Return what differs of all that the bits depend on, like ``numpy 2.4.6 (was 2.3.0)``."""
    return [f"{key} {now[key]} (was {before[key]})" for key in BITS if key in before and now.get(key) != before[key]]
