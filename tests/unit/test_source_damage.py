"""Files cut off or changed in every format: an error in our form or the whole file's rows, never a traceback."""

import gzip
import re
from pathlib import Path

import numpy as np
import pytest
from test_source_errors import csv, says
from test_sources import every, idx_bytes, write  # noqa: F401

from distbp.data.source import open_source
from distbp.settings import Data

pytestmark = pytest.mark.usefixtures("write")


def whole_or_error(name, data, whole):
    """Read a file; what is not an error in our form must be what the whole file held."""
    try:
        x, y = every(open_source(name, data))
    except ValueError as error:
        assert re.match(r"[^:]+: .*expected .*, (got|which) .*\. .*\.$", str(error), re.DOTALL), error  # noqa: PT017
        return str(error)
    assert x.tobytes() == whole[0].tobytes()
    assert y.tobytes() == whole[1].tobytes()
    return None


def make(name):
    rng = np.random.default_rng(1)
    x, y = rng.random((40, 3)), rng.integers(0, 3, 40)
    if name == "x.npy":
        np.save(name, x)
    elif name == "plain.npz":
        np.savez(name, x=x, y=y)
    elif name == "packed.npz":
        np.savez_compressed(name, x=x, y=y)
    elif "idx" in name:
        content = idx_bytes(x, 14)
        csv(gzip.compress(content, mtime=0) if name.endswith("gz") else content, name)
        csv(idx_bytes(y, 8), "t-labels-idx1-ubyte")
    else:
        content = "".join(",".join(map(repr, row)) + "\n" for row in x.tolist()).encode()
        csv(gzip.compress(content, mtime=0), name)


@pytest.mark.parametrize(
    "name", ["x.npy", "plain.npz", "packed.npz", "t-images-idx2-ubyte", "t-images-idx2-ubyte.gz", "t.csv.gz"]
)
def test_cut_off_files(name):
    make(name)
    data = Data(target="t-labels-idx1-ubyte" if "idx" in name else "")
    whole, content = every(open_source(name, data)), Path(name).read_bytes()
    assert whole_or_error(name, data, whole) is None
    for size in sorted({*range(0, 140), *range(140, len(content), 37), *range(len(content) - 30, len(content))}):
        Path(name).write_bytes(content[:size])
        assert whole_or_error(name, data, whole), size


@pytest.mark.parametrize("name", ["packed.npz", "t.csv.gz", "t-images-idx2-ubyte.gz"])
def test_changed_bytes_under_a_checksum(name):
    make(name)
    data = Data(target="t-labels-idx1-ubyte" if "idx" in name else "")
    whole, content = every(open_source(name, data)), Path(name).read_bytes()
    for at in range(0, len(content), 11):
        changed = bytearray(content)
        changed[at] ^= 0x55
        Path(name).write_bytes(changed)
        whole_or_error(name, data, whole)


@pytest.mark.parametrize("at", range(0, 128))
def test_changed_npy_header(at):
    make("x.npy")
    content = bytearray(Path("x.npy").read_bytes())
    for mask in (0x01, 0x55, 0x80):
        changed = bytearray(content)
        changed[at] ^= mask
        Path("x.npy").write_bytes(changed)
        try:
            every(open_source("x.npy", Data()))
        except ValueError as error:
            assert re.match(r"x\.npy: .*expected .*, got .*\. .*\.$", str(error)), error  # noqa: PT017


def test_damage_messages():
    make("x.npy")
    content = Path("x.npy").read_bytes()
    Path("x.npy").write_bytes(content[:-1])
    with says("x.npy: expected 1,088 bytes, as its header says, got 1,087. Copy or make it again: it is cut off."):
        open_source("x.npy", Data())
    Path("x.npy").write_bytes(content[:50])
    with says("x.npy: expected a whole .npy header, got a damaged or cut-off one. Copy or make it again."):
        open_source("x.npy", Data())
    make("packed.npz")
    Path("packed.npz").write_bytes(Path("packed.npz").read_bytes()[:-30])
    with says("packed.npz: expected a whole .npz file, got a damaged or cut-off one. Copy or make it again."):
        open_source("packed.npz", Data())
    make("t.csv.gz")
    Path("t.csv.gz").write_bytes(Path("t.csv.gz").read_bytes()[:-5])
    with says("t.csv.gz: expected a whole .gz file, got a damaged or cut-off one. Copy or make it again."):
        open_source("t.csv.gz", Data())
    csv(b"\0\0\x08\x03\0\0", "t.idx")
    with says("t.idx: expected a whole IDX file, got a damaged or cut-off one. Copy or make it again."):
        open_source("t.idx", Data())
    csv(idx_bytes(np.zeros((2, 3, 3)), 8)[:-1], "t.idx")
    with says("t.idx: expected 34 bytes, as its header says, got 33. Copy or make it again: it is cut off."):
        open_source("t.idx", Data())
