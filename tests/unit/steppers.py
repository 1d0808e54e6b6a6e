"""A stepper of one process, without a run around it."""

from __future__ import annotations

from functools import partial

import threadpoolctl

from distbp.api import settings
from distbp.descent.rules import STATE, Rule
from distbp.network.initial import initial_theta
from distbp.parallel.host import open_host
from distbp.parallel.world import World
from distbp.training.problem import initial_kind, load
from distbp.training.signals import StopFlag
from distbp.training.step import Stepper
from distbp.training.tiles import shapes
from distbp.training.workspace import Workspace

threadpoolctl.threadpool_limits(1, "blas")


def make_stepper(table, threads=1, world=None, share=True, overlap=True):
    """Return (stepper, problem) at step 0 of what a table of settings says."""
    world = world or World(None)
    wanted = settings(table).with_shards(world.size)
    problem = load(wanted, world, print, StopFlag())
    network, names = problem.network, STATE[wanted.descent.rule]
    wants = partial(shapes, network, problem.batches, names)
    host, memory = open_host(world, share, threads, overlap, wants, print)
    if host.rank == 0:
        initial = initial_theta(network.layout, initial_kind(wanted), wanted.training.seed, network.dtype.name)
        memory["theta"][...] = initial
    host.meet()
    rule = Rule(wanted.descent, network.layout.n_weights, {name: memory[name] for name in names})
    seed = wanted.training.seed
    space = Workspace(host, memory, network, rule, problem.training, problem.batches, seed)
    return Stepper(space, network, rule, seed), problem


def state_bytes(stepper):
    """Return the bytes of theta and of the rule's state."""
    return [array.tobytes() for array in (stepper.theta, *stepper.rule.state.values())]
