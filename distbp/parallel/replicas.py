"""The replica check: every host's theta and rule state must be the same bytes.

Each host takes the same descent step on the same sum, so a difference means that memory, a message or a program went
wrong on one of them. (A rank that shares memory with nobody is a host of its own.) It is found by comparing SHA-256
digests every `training.check_every` steps and before each checkpoint, so nothing that a bad replica has touched is
saved after it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

from numpy.typing import NDArray

from distbp.parallel.host import Host
from distbp.parallel.world import AgreedRuntimeError


def check_replicas(host: Host, vectors: Iterable[NDArray[Any]], step: int) -> None:
    """Compare the replicas' bytes. **Collective.**

    Raises
    ------
    AgreedRuntimeError
        On all ranks; names those that differ from the majority (from rank 0 where there is none).
    """
    if host.n_hosts == 1:
        return
    digest = hashlib.sha256()
    for vector in vectors if host.rank == 0 else ():
        digest.update(vector.data)
    world = host.world
    told = world.exchange(digest.hexdigest())
    digests = [told[r - r % host.size] for r in range(world.size)]  # the host's ranks share what its first one read
    counts = Counter(digests)
    if len(counts) == 1:
        return
    most = max(counts.values())
    right = digests[0] if counts[digests[0]] == most else next(d for d in digests if counts[d] == most)
    wrong = [str(r) for r, d in enumerate(digests) if d != right]
    note = "" if most > world.size / 2 else " (there is no majority: rank 0 may be the wrong one)"
    raise AgreedRuntimeError(
        f"step {step}: expected the same theta and rule state on all ranks, got others on rank "
        f"{', '.join(wrong)} of {world.size}{note}. Nothing was saved since; check that machine's memory and resume."
    )
