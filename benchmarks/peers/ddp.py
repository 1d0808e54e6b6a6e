"""The same work on PyTorch's DistributedDataParallel over gloo, written as one who knows it would.

`python benchmarks/peers/ddp.py WORK [VARIANT ...]` starts two ranks of one thread each, where WORK is the JSON that
compare.py makes of a work item, and prints JSON: for each variant (default: all) the microseconds per step of every
window of `ddp_steps` steps, after as many to warm up. The rows are tensors cut into batches beforehand, each rank
makes its own, and nothing is read back from a step: the time is that of forward, backward, reduction and rule alone.

The variants: `default` is DDP and the rule as they come. The others keep the gradients in the buckets that are sent
(gradient_as_bucket_view), declare the graph static, send no buffers, and differ in how the rule is computed (fused,
foreach, or plain: tensor by tensor) and in the largest bucket, in MiB. All set gradients to None between steps.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

RANKS = 2
WARM_UP = 2  # steps at the least: DDP lays its buckets out anew after the first
EXPERT = {"gradient_as_bucket_view": True, "static_graph": True, "broadcast_buffers": False}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # arguments of DDP, of the rule
    "default": ({}, {}),
    "fused, 25 MiB": (EXPERT, {"fused": True}),
    "fused, 1 GiB": ({**EXPERT, "bucket_cap_mb": 1024}, {"fused": True}),
    "foreach, 25 MiB": (EXPERT, {"foreach": True}),
    "plain, 25 MiB": (EXPERT, {"foreach": False, "fused": False}),
}


def launch() -> int:
    """Start the ranks and return the first exit code that is not 0; a rank whose peer dies fails by itself."""
    with tempfile.TemporaryDirectory() as folder:
        common = {"GLOO_SOCKET_IFNAME": "lo", **os.environ, "OMP_NUM_THREADS": "1", "STORE": f"{folder}/store"}
        command = [sys.executable, *sys.argv]
        ranks = [subprocess.Popen(command, env={**common, "RANK": str(rank)}) for rank in range(RANKS)]
        return next((code for code in [rank.wait() for rank in ranks] if code), 0)


def train_step(work: dict[str, Any], variant: str) -> Callable[[Any, Any], None]:
    """Return the step of a fresh network: the mean cost of this rank's rows, whose gradient DDP averages over ranks."""
    import torch
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    activations = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU}
    widths, layers = work["widths"], []
    for l in range(1, len(widths)):
        layers.append(nn.Linear(widths[l - 1], widths[l]))
        name = work["hidden"] if l < len(widths) - 1 else work["output"]
        layers += [activations[name]()] if name in activations else []  # softmax is part of its cost
    for_ddp, for_rule = VARIANTS[variant]
    model = DistributedDataParallel(nn.Sequential(*layers), **for_ddp)
    rule = {"gradient_descent": torch.optim.SGD, "adam": torch.optim.Adam}[work["rule"]]
    optimizer = rule(model.parameters(), lr=work["learning_rate"], **for_rule)
    rows = work["batch"] // RANKS

    def step(x: Any, y: Any) -> None:
        optimizer.zero_grad(set_to_none=True)
        if work["cost"] == "cross_entropy":
            cost = nn.functional.cross_entropy(model(x), y)
        else:
            cost = nn.functional.mse_loss(model(x), y, reduction="sum") / (2 * rows)
        cost.backward()
        optimizer.step()

    return step


def measure(work: dict[str, Any], variants: list[str]) -> dict[str, list[float]]:
    """Return the microseconds per step of each variant's windows, on this rank."""
    import torch

    warnings.filterwarnings(
        "ignore", message=".*broadcast_buffers", category=FutureWarning
    )  # the old name of an option
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo", f"file://{os.environ['STORE']}", rank=rank, world_size=RANKS)
    torch.manual_seed(rank)
    widths, steps, n = work["widths"], work["ddp_steps"], work["rows"] // work["batch"]
    shape = (n, work["batch"] // RANKS, widths[0])
    x = list(torch.rand(shape).mul_(2).sub_(1))
    if work["cost"] == "cross_entropy":
        y = list(torch.randint(widths[-1], shape[:2]))
    else:
        y = list(torch.rand(*shape[:2], widths[-1]))
    times: dict[str, list[float]] = {}
    for variant in variants:
        step = train_step(work, variant)
        done, marks = 0, []
        for count in (max(steps, WARM_UP), *[steps] * work["windows"]):
            for i in range(done, done + count):
                step(x[i % n], y[i % n])
            done += count
            marks.append(time.perf_counter())
        times[variant] = [(stop - start) / steps * 1e6 for start, stop in pairwise(marks)]
        del step
        gc.collect()
    torch.distributed.destroy_process_group()
    return times


if __name__ == "__main__":
    if "RANK" not in os.environ:
        sys.exit(launch())
    found = measure(json.loads(sys.argv[1]), sys.argv[2:] or list(VARIANTS))
    if os.environ["RANK"] == "0":
        print(json.dumps(found))
