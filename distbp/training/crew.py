"""Who computes on this machine: its cores, the ranks that share them, the threads of each; what they should bring."""

from __future__ import annotations

import os
import time

import numpy as np

from distbp.parallel.host import Host
from distbp.parallel.world import World
from distbp.settings import Settings
from distbp.training.forecast import PRODUCT, Machine, Ranks, Work, advice, calibrated
from distbp.training.problem import Problem

WORTH_A_THREAD = 1 << 22  # rows times weights of a step


def cores_and_ranks(world: World) -> tuple[int, int]:
    """Return the cores that the ranks of this machine may use together, and how many they are. **Collective.**"""
    mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    told = world.exchange([os.uname().nodename, mine])
    here = [cores for name, cores in told if name == os.uname().nodename]
    return len({core for cores in here for core in cores}), len(here)


def threads_of_a_rank(settings: Settings, problem: Problem, world: World) -> int:
    """Return how many threads each rank uses, the same on all. **Collective.** It changes no bit."""
    cores, ranks = cores_and_ranks(world)
    return int(min(world.exchange(_threads(settings, problem, world.size, cores // ranks))))


def _threads(settings: Settings, problem: Problem, n_ranks: int, cores: int) -> int:
    """Return how many threads one of `n_ranks` ranks would use on so many cores of its own."""
    threads = settings.training.threads
    if threads == "auto":
        work = problem.batches.rows * problem.batches.n_shards * problem.network.layout.n_weights
        useful = work // n_ranks // WORTH_A_THREAD  # a small product is done before a thread has begun
        threads = max(1, min(cores // settings.training.blas_threads, useful))
    return int(min(threads, -(-settings.n_shards // n_ranks)))


def expected(settings: Settings, problem: Problem, host: Host) -> list[str]:
    """Return the start lines about what the ranks should bring over one; none for one rank. **Collective.**"""
    world, network, batches = host.world, problem.network, problem.batches
    if world.size == 1:
        return []
    cores, ranks = cores_and_ranks(world)
    machine = calibrated(Machine(), max(world.exchange(_product_seconds())), *host.link())
    rows = batches.rows * batches.n_shards
    work = Work(network.widths, rows, batches.n_shards, settings.descent.rule, network.dtype.itemsize)
    here = max(1.0, cores * host.size / ranks)  # of the machine's cores, for ranks that share memory
    now = Ranks(world.size, host.size, here, host.threads, settings.training.overlap)
    one = Ranks(1, 1, cores, _threads(settings, problem, 1, cores))  # as a run of one rank here would be
    return advice(machine, work, now, one)


def _product_seconds() -> float:
    """Return the seconds of the product that `calibrated` asks for: the fastest of a few."""
    m, n_in, n_out = PRODUCT
    a, w = np.ones((m, n_in), np.float32), np.ones((n_in, n_out), np.float32)
    out, fastest = np.empty((m, n_out), np.float32), float("inf")
    for _ in range(4):
        started = time.perf_counter()
        np.matmul(a, w, out=out)
        fastest = min(fastest, time.perf_counter() - started)
    return fastest
