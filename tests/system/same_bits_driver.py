"""Trains many small runs in one process or MPI job and writes down the SHA-256 of every checkpoint."""

import hashlib
import itertools
import json
import sys
from pathlib import Path

from distbp.api import settings, train

RULES = ("gradient_descent", "momentum", "nesterov", "adam", "adamw")
NETWORKS = {
    # layers whose shards come together by product; 1,797 rows less a fifth: shards and last batch uneven
    "digits": {
        "data": {"source": "digits", "batch_size": 96},
        "network": {"widths": [128], "activation": "relu", "dropout": 0.2},
        "training": {"epochs": 2},
    },
    # 203 rows: the last batch has 3 rows or 4 of a shard's 8
    "synthetic": {
        "data": {"source": "synthetic", "rows": 203, "features": 7, "outputs": 3, "task": "regression",
                 "batch_size": 64, "target_scaling": "standard"},
        "network": {"widths": [13, 5], "activation": "tanh", "dropout": 0.1},
        "training": {"epochs": 6},
    },
    # layers whose shards come together by sum in the tree, and one by product: a batch that is large beside the widths
    "sums": {
        "data": {"source": "synthetic", "rows": 5003, "features": 40, "outputs": 2, "batch_size": 1024},
        "network": {"widths": [70, 3], "activation": "sigmoid", "dropout": 0.1},
        "training": {"epochs": 4},
    },
}  # fmt: skip


def main(runs: str) -> None:
    """Train every combination; print ``{name: {file: sha256}}`` on rank 0."""
    hashes = {}
    for (name, table), rule, dtype in itertools.product(NETWORKS.items(), RULES, ("float32", "float64")):
        table = {
            **table,
            "network": {**table["network"], "dtype": dtype},
            "checkpoint": {"every": "7 steps", "keep": 3},
        }
        table["descent"] = {"rule": rule, "learning_rate": 0.01, "weight_decay": 0.001, "clip": 1.0, "warmup_steps": 5}
        result = train(settings(table), name=f"{name}-{rule}-{dtype}", runs=runs, quiet=True)
        files = [*sorted(result.folder.glob("checkpoints/*.safetensors")), result.folder / "model.safetensors"]
        assert result.sha256 == hashlib.sha256(files[-1].read_bytes()).hexdigest()
        hashes[result.folder.name] = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    from distbp.parallel.world import launched

    if launched()[1] == 0:
        Path(runs, "hashes.json").write_text(json.dumps(hashes))


if __name__ == "__main__":
    main(sys.argv[1])
