"""The promise: every checkpoint has the same bytes on 1, 2, 3, 4, 5, 7 and 8 ranks.

Three networks, every rule, both dtypes, with dropout, clipping, weight decay, shards of unequal size and a short last
batch.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("same_bits_driver.py")


def hashes(folder: Path, ranks: int) -> dict[str, dict[str, str]]:
    command = [sys.executable, str(DRIVER), str(folder)]
    if ranks:
        command = ["mpirun", "-n", str(ranks), *command]
    subprocess.run(command, check=True, timeout=240, capture_output=True)
    return json.loads((folder / "hashes.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What one process without MPI gives."""
    return hashes(tmp_path_factory.mktemp("alone"), 0)


def test_the_runs_differ_from_each_other(alone):
    assert len(alone) == 30
    assert len({tuple(files.values()) for files in alone.values()}) == 30
    assert all(len(files) >= 4 for files in alone.values())  # three checkpoints or more, and the model


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5, 7, 8])
def test_every_checkpoint_has_the_same_bytes(alone, tmp_path, ranks):
    assert hashes(tmp_path, ranks) == alone
