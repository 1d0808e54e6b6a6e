"""What a step is expected to take: arithmetic from shapes and a machine's constants; nothing is measured here.

Say the work (`Work`) and who does it (`Ranks`): `advice` gives the lines for a run's start, `best_ranks` and
`step_seconds` the figures. `benchmarks/scaling.py` fits `Machine`. Seconds of the busiest rank, with

    R ranks a host, T threads each, D = R T workers, H hosts; V shards, B rows a batch; M_l = n_l n_{l-1};
    k = ceil(V / (H D)) shards of a worker, m = k B / V its rows; q_l numbers of layer l that a worker descends in;
    c, r_0, e, u, g: constants of `Machine`; all that is computed is slowed down by the host's other workers
    forward, backward  M_l (m + r_0) c, for l > 1 twice;  m n_l e for each pass over z, a, delta;  calls of numpy
    gradient           by product: q_l (B + r_0) c;  by sum: k M_l (B / V + r_0) c, and additions of the tree's nodes
    descent            q_l (passes u + bytes g), g only for what a core's cache does not hold
    messages           rounds latency + bytes that reach a host * byte;  log2 H rounds, for long vectors H - 1 in a
                       ring
    waiting            log2 R barrier for each meeting of a host; the costs' message; handing over to a thread

An early message travels while what follows is computed, one after another as in step.py: `hidden` is what that saves.
Not in it: validation, checkpoints, replica checks, reading data, dropout, other programs on the machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from distbp.descent.rules import PIECE, STATE
from distbp.network.layout import Layout
from distbp.parallel.messages import SHORT
from distbp.parallel.tree import complete_nodes
from distbp.parallel.world import shards_of
from distbp.training.tiles import Tiles, by_product
from distbp.training.workspace import CARRIED

PASSES = {"gradient_descent": 2, "momentum": 5, "nesterov": 7, "adam": 11, "adamw": 12}  # over the gradient's numbers
CACHE = 2e6  # bytes of theta and state that a core finds in its cache in every step
RING = 1 << 19  # bytes from which vectors are gathered in a ring
PRODUCT = (256, 512, 512)  # rows, n_in, n_out of the float32 product that `calibrated` is told the seconds of
COMPUTED = "multiply_add", "element", "number", "memory", "call", "step", "thread", "barrier", "oversubscribed"
MORE = 1.1  # times as slow as fewer ranks: then it is said


@dataclass(frozen=True)
class Machine:
    """Constants, in seconds unless said otherwise, for numbers of 4 bytes; fitted on 2 cores of an AMD EPYC (Zen 4)."""

    multiply_add: float = 1.87e-11  # of a product of many rows
    few_rows: float = 31.8  # rows with which a product has half the rate
    element: float = 1.24e-09  # one number in a pass over x, z, a or delta
    number: float = 5.9e-11  # one number in a pass of the descent
    memory: float = 3.57e-11  # a byte from or to memory
    call: float = 1.27e-06  # of a numpy function
    step: float = 4.41e-05  # of Python, once
    thread: float = 8.23e-05  # to hand work to a thread and have it back
    barrier: float = 1.75e-06  # of two ranks of a host
    crowding: float = 0.0562  # how much slower a core is while the host's others compute, a share
    oversubscribed: float = 6.37e-05  # a meeting with one worker too many on a core
    latency: float = 1.81e-05  # a message between hosts
    byte: float = 8.68e-10  # a byte that reaches a host
    hiding: float = 0.329  # what is hidden of that which can be, where no core is left for the messages, a share


class Work(NamedTuple):
    """What a step computes: n_0 ... n_L, rows over all shards, V, the rule, bytes of a number."""

    widths: tuple[int, ...]
    batch: int
    n_shards: int
    rule: str = "adam"
    itemsize: int = 4


class Ranks(NamedTuple):
    """Who computes it: all ranks, those that share memory on a host, the host's cores, threads a rank, overlap."""

    n: int
    per_host: int
    cores: float
    threads: int = 1
    overlap: bool = True


class Forecast(NamedTuple):
    """Seconds of a step or of one of its `layers`, l = 1 ... L; `messages` are those hidden too."""

    forward_backward: float
    gradient: float
    descent: float
    messages: float
    waiting: float = 0.0
    hidden: float = 0.0
    layers: tuple[Forecast, ...] = ()

    @property
    def total(self) -> float:
        """Return the seconds from the step's start to its end."""
        return math.fsum(self[:5]) - self.hidden


def linked(machine: Machine, mbit: float, delay_us: float) -> Machine:
    """Return the machine with a link in between: Mbit/s (0: no limit), and microseconds one way."""
    byte = machine.byte + (8e-6 / mbit if mbit else 0.0)
    return replace(machine, latency=machine.latency + delay_us * 1e-6, byte=byte)


def calibrated(machine: Machine, product_seconds: float, latency: float = 0.0, byte: float = 0.0) -> Machine:
    """Return a machine on which the product of shape PRODUCT takes so long; `latency` and `byte` where measured.

    One ratio scales all that is computed. Where products gain more than Python does, by wider vectors for example,
    small networks are expected to be faster than they are.
    """
    m, n_in, n_out = PRODUCT
    by = product_seconds / (n_in * n_out * (m + machine.few_rows) * machine.multiply_add)
    scaled = {name: by * getattr(machine, name) for name in COMPUTED}
    return replace(machine, **scaled, latency=latency or machine.latency, byte=byte or machine.byte)


@lru_cache(256)
def _owned(widths: tuple[int, ...], n_shards: int, rows: int, n_owners: int) -> dict[int, tuple[int, int]]:
    """Return {l: (tiles, their numbers)} of the owner with the most to do."""
    tiles = Tiles(Layout(widths), n_shards, rows)
    each = [tiles.owned(n_owners, owner) for owner in range(n_owners)]
    most = max(each, key=lambda own: sum(t.size * (n_shards * rows if t.l in tiles.product else 64) for t in own))
    return {l: (sum(t.l == l for t in most), sum(t.size for t in most if t.l == l)) for l in tiles.layers}


def step_seconds(machine: Machine, work: Work, ranks: Ranks) -> Forecast:
    """Return what a step is expected to take. The formulas are at the top of the module."""
    B, V, size, passes, vectors = work.batch, work.n_shards, work.itemsize, PASSES[work.rule], 1 + len(STATE[work.rule])
    R, T = min(ranks.per_host, ranks.n), min(ranks.threads, -(-V // ranks.n))
    H, D, k = -(-ranks.n // R), R * T, -(-V // (ranks.n * T))
    m, extra = k * B / V, max(0.0, D / ranks.cores - 1)
    slow = (1 + extra) * (1 + machine.crowding * max(0.0, 1 - 1 / min(D, ranks.cores)))
    c, e, u = (slow * size / 4 * each for each in (machine.multiply_add, machine.element, machine.number))
    call, r_0, hand_over = slow * machine.call, machine.few_rows, machine.thread * (T > 1)
    uncached = max(0.0, 1 - CACHE * D / (Layout(work.widths).n_parameters * vectors * size))  # share of theta and state
    fetch = slow * 2 * vectors * size * machine.memory * uncached  # for a number
    nodes = max(len(complete_nodes(of.start, of.stop, V)) for of in (shards_of(h, H, V) for h in range(H)))
    meeting = machine.barrier * math.log2(R) + machine.oversubscribed * extra * (D > 1)

    def gather(n_bytes: float) -> float:  # all hosts' together
        rounds = H - 1 if n_bytes / R >= RING else math.ceil(math.log2(H))
        return rounds * machine.latency + n_bytes * (H - 1) / H * machine.byte

    layers, early, owned = [], [], _owned(work.widths, V, B // V, R)
    for l, (n_in, n_out) in enumerate(pairwise(work.widths), start=1):
        M, product, (n_tiles, q) = n_in * n_out, by_product(n_in, n_out, B), owned[l]
        share = -(-n_tiles // T) / max(n_tiles, 1)  # of the busiest thread
        both = (1 + (l > 1)) * M * (m + r_0) * c + m * (4 * n_out + n_in * (l == 1)) * e + 8 * call
        if product:
            gradient, sent = share * q * (B + r_0) * c + n_tiles * call, [B * n_in, B * n_out]
        else:
            gradient = k * M * ((B / V + r_0) * c + 2 * u) + (D - 1) * M / R * u + 4 * call
            sent = [H * nodes * M] if H * nodes * M * size <= SHORT * R else [nodes * M, M]
        descent = share * (q * (passes * u + fetch) + passes * (2 * n_tiles + q / PIECE) * call) + hand_over
        messages = sum(gather(n * size) for n in sent) if H > 1 else 0.0
        layers.append(Forecast(both, gradient, descent, messages))
        early.append((T == 1 and (product or R == 1), product))
    forward_backward, gradient, descent, messages = (math.fsum(parts) for parts in list(zip(*layers, strict=True))[:4])
    waiting, hidden = 2 * meeting, 0.0
    if H > 1:
        waiting += gather(16 * V) + len(layers) * meeting
    factors = sum(B * (n_in + n_out) * size for n_in, n_out in pairwise(work.widths) if by_product(n_in, n_out, B))
    if H > 1 and ranks.overlap and factors >= CARRIED:
        waiting += machine.thread * sum(is_early for is_early, _ in early)
        hidden = _hidden(layers, early) * (1 if ranks.cores > D else machine.hiding)
    forward_backward += slow * machine.step + hand_over
    return Forecast(forward_backward, gradient, descent, messages, waiting, hidden, tuple(layers))


def _hidden(layers: list[Forecast], early: list[tuple[bool, bool]]) -> float:
    """Return the seconds in which messages travel and something is computed: half of both passes is backward.

    `early`: of each layer, whether its messages need not wait for the host's other ranks, and whether it is by product.
    """
    now, free, waits, arrived = 0.0, 0.0, 0.0, {}
    downward = [(l, layers[l], *early[l]) for l in reversed(range(len(layers)))]
    for l, layer, is_early, product in downward:
        now += layer.forward_backward / 2 * (l + 1 < len(layers)) + layer.gradient * (not product)
        if is_early:
            arrived[l] = free = max(now, free) + layer.messages
    for l, layer, _, product in downward:
        wait = max(0.0, arrived[l] - now) if l in arrived else layer.messages
        waits += wait
        now += wait + layer.descent + layer.gradient * product
    return max(0.0, sum(layer.messages for layer in layers) - waits)


def best_ranks(machine: Machine, work: Work, ranks: Ranks, one: Ranks) -> tuple[Ranks, Forecast]:
    """Return which of 1, 2, 4 ... and all `ranks` are expected to be fastest; `one` says how one rank would run."""
    some = [n for n in (1 << i for i in range(1, ranks.n.bit_length())) if n < ranks.n] + [ranks.n] * (ranks.n > 1)
    all_of = [one, *(ranks._replace(n=n, per_host=min(n, ranks.per_host)) for n in some)]
    return min(((who, step_seconds(machine, work, who)) for who in all_of), key=lambda found: found[1].total)


def advice(machine: Machine, work: Work, ranks: Ranks, one: Ranks) -> list[str]:
    """Return the lines at a run's start: what its ranks are expected to bring over one, or that fewer were faster.

    `one`: how one rank would run, with its threads.
    """
    if ranks.n == 1:
        return []
    now = step_seconds(machine, work, ranks)
    best, then = best_ranks(machine, work, ranks, one)
    if now.total <= MORE * then.total:
        gain = step_seconds(machine, work, one).total / now.total
        than = "one" if one.threads == 1 else f"one with {one.threads} threads"
        return [f"expected: {ranks.n} ranks {gain:.1f} times as fast as {than} (about {told(now.total)} a step)"]
    why = "this network is too small for them"
    if ranks.per_host * ranks.threads > ranks.cores:
        why = f"those of a host share {ranks.cores:g} core{'s' * (ranks.cores != 1)}"
    elif 2 * (now.messages - now.hidden) > now.total:
        why = "the link between their hosts is too slow for them"
    fewer = f"{'one rank' if best.n == 1 else f'{best.n} ranks'} {told(then.total)}"
    return [f"expected: {ranks.n} ranks slower than {best.n} ({told(now.total)} a step, {fewer}): {why}. Start fewer."]


def told(seconds: float) -> str:
    """Return a time in ms, with two digits or more."""
    return f"{seconds * 1e3:,.{0 if seconds >= 0.00995 else 1 if seconds >= 0.000995 else 2}f} ms"
