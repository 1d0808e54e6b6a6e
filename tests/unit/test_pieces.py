"""Rows that one process reads for others: which, in how many passes, and what arrives."""

import gzip
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distbp.data import sending, stored
from distbp.data.sending import Received, description
from distbp.data.shards import TEST, TRAINING, VALIDATION, holders, shares
from distbp.data.source import Shape, open_source
from distbp.settings import RESUMABLE, Data

N = 57
PARTS = (TRAINING, VALIDATION, TEST)


@settings(deadline=None)
@given(
    n_rows=st.integers(1, 300), seed=st.integers(0, 99), n_shards=st.integers(1, 20), parts=st.sets(st.sampled_from(PARTS)),
    fractions=st.sampled_from([(0.0, 0.0), (0.3, 0.0), (0.0, 0.5), (0.2, 0.1)]),
)  # fmt: skip
def test_holders_says_of_each_row_what_shares_says(n_rows, seed, n_shards, parts, fractions):
    wanted = np.full(n_rows, -1)
    for shard in range(n_shards):
        cut = shares(n_rows, seed, fractions, range(shard, shard + 1), n_shards)
        for p in parts:
            wanted[cut[p].at(np.arange(len(cut[p])))] = shard
    found = np.full(n_rows, -2)
    for first, of in holders(n_rows, seed, fractions, n_shards, parts):
        found[first : first + len(of)] = of
    assert found.tolist() == wanted.tolist()


def write_idx(path, array):
    content = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def at(tmp_path, monkeypatch):
    """Work in a folder with a file of each format; streams come in pieces of some bytes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stored, "PIECE", 64)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(N, 4)), np.arange(N) % 3
    text = "\n".join([*(",".join(map(repr, [*row, int(k)])) for row, k in zip(x.tolist(), y, strict=True))]) + "\n"
    (tmp_path / "rows.csv").write_text(text)
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(text.encode()))
    np.save("rows.npy", np.column_stack([x, y]))
    np.save("fortran.npy", np.asfortranarray(np.column_stack([x, y])))
    np.savez("plain.npz", x=x, y=y)
    np.savez_compressed("zipped.npz", x=x.reshape(N, 2, 2), y=y)
    np.savez_compressed("fortran.npz", x=np.asfortranarray(x.reshape(N, 2, 2)), y=np.asfortranarray(x[:, :2]))
    for end in ("", ".gz"):
        write_idx(tmp_path / f"a-images-idx3-ubyte{end}", rng.integers(0, 256, (N, 2, 2)))
        write_idx(tmp_path / f"a-labels-idx1-ubyte{end}", y)


FILES = ("rows.csv", "rows.csv.gz", "rows.npy", "fortran.npy", "plain.npz", "zipped.npz", "fortran.npz",
         "a-images-idx3-ubyte", "a-images-idx3-ubyte.gz", "digits", "synthetic")  # fmt: skip
CUTS = ([N], [0, 0, N], [1] * N, [0, 5, 20, 0, 1, 8], [3, 0])


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("path", FILES)
def test_pieces_gives_what_read_gives(at, path, cuts):
    source = open_source(path, Data(rows=N))
    rng = np.random.default_rng(1)
    rows = np.sort(rng.choice(N, sum(cuts), replace=False))
    ends = np.cumsum(cuts)
    wanted = [rows[end - n : end] for n, end in zip(cuts, ends, strict=True)]
    found = list(source.pieces(wanted))
    assert [len(x) for x, _ in found] == cuts
    x, y = source.read(rows)
    for i, (one, whole) in enumerate(zip(zip(*found, strict=True), (x, y), strict=True)):
        joined = np.concatenate(one)
        assert (joined.dtype, joined.tobytes()) == (whole.dtype, whole.tobytes()), i


@pytest.mark.parametrize("path", FILES)
def test_a_description_tells_all_that_another_process_must_know(at, path):
    source = open_source(path, Data(rows=N))
    received = Received(json.loads(json.dumps(description(source))))
    assert Shape.of(received) == Shape.of(source)
    assert (received.name, received.n_rows, received.again) == (path, source.n_rows, True)
    rows = np.array([2, 3, 11, 40])
    received.expect(rows)
    for x, y in source.pieces([rows[:1], rows[1:1], rows[1:]]):
        received.take(x, y)
    for one, other in zip(received.read(rows[::-1]), source.read(rows), strict=True):
        assert (one.dtype, one[::-1].tobytes()) == (other.dtype, other.tobytes())
    assert received.place(3, 1) == f"{path}: row 3"


@pytest.mark.parametrize("path", [file for file in FILES if file not in ("digits", "synthetic")])
def test_each_row_goes_to_one_rank_in_the_files_order(at, path, monkeypatch):
    monkeypatch.setattr(sending, "PIECE", 200)
    source, ticks = open_source(path, Data()), []
    ranks = np.arange(N) * 3 // N
    ranks[::7] = -1
    ranks[5] = 2
    found = {rank: [] for rank in range(3)}
    sent = sending.pieces(source, iter([(0, ranks[:30]), (30, ranks[30:])]), False, ticks.append)
    for rank, (x, _) in sent:
        found[rank].append(x)
        assert x.nbytes <= 200
    for rank, xs in found.items():
        assert np.concatenate(xs).tobytes() == source.read(np.flatnonzero(ranks == rank))[0].tobytes()
    assert sum(ticks) == (ranks >= 0).sum()


@pytest.mark.parametrize("path", ["zipped.npz", "a-images-idx3-ubyte.gz", "a-labels-idx1-ubyte.gz"])
def test_a_stream_is_read_to_the_checksum_at_its_end(at, tmp_path, path):
    if path == "zipped.npz":
        np.savez_compressed(path, x=np.random.default_rng(0).normal(size=(2000, 4)), y=np.arange(2000) % 3)
        content = (tmp_path / path).read_bytes()
        crc = content.index(b"PK\x01\x02") + 16  # x's checksum, in the directory
    else:
        source = open_source(path.replace("labels-idx1", "images-idx3"), Data())
        content = (tmp_path / path).read_bytes()
        crc = len(content) - 8
    (tmp_path / path).write_bytes(content[:crc] + bytes(4) + content[crc + 4 :])
    if path == "zipped.npz":
        source = open_source(path, Data())
    with pytest.raises(ValueError, match="got a damaged or cut-off one"):
        list(source.pieces([np.arange(3)]))


def test_who_reads_may_be_another_in_a_resumed_run():
    assert "data.share" in RESUMABLE
