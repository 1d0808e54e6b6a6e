"""data.share = send: rank 0 alone has the files. The other ranks work in an empty folder, where no path leads to them."""

import gzip
import hashlib
import os
import struct

import numpy as np
import pytest

from distbp.api import evaluate, settings, train
from distbp.data import sending
from distbp.data.sending import Received
from distbp.parallel.world import AgreedRuntimeError, AgreedStopError, AgreedValueError, World
from distbp.training.problem import load
from distbp.training.signals import StopFlag

pytestmark = pytest.mark.mpi

N = 211
SOURCES = ("rows.csv", "rows.tsv.gz", "column.npy", "fortran.npy", "x.npy", "numbers.npy", "zipped.npz", "fortran.npz",
           "plain.npz", "a-images-idx3-ubyte", "b-images-idx3-ubyte.gz")  # fmt: skip


def nothing(text):
    """Take what would be printed."""


def idx_bytes(array):
    """Return an IDX file of unsigned bytes."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write(n, seed, prefix=""):
    """Write every kind of file, with `n` rows."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 6)), np.arange(n) * 7 % 3
    names = np.array(["ant", "bee", "cat"])[y]
    for name, mark in (("rows.csv", ","), ("rows.tsv.gz", "\t")):
        lines = [mark.join("abcdef") + mark + "kind"]
        lines += [mark.join([*map(repr, row), kind]) for row, kind in zip(x.tolist(), names, strict=True)]
        text = ("\n".join(lines) + "\n").encode()
        with open(prefix + name, "wb") as file:
            file.write(gzip.compress(text) if name.endswith(".gz") else text)
    table = np.column_stack([x[:, :2], y, x[:, 2:]])
    np.save(f"{prefix}column.npy", table)
    np.save(f"{prefix}fortran.npy", np.asfortranarray(table))
    np.save(f"{prefix}x.npy", x.astype(np.float32))
    np.save(f"{prefix}y.npy", y)
    np.save(f"{prefix}numbers.npy", x.astype(">f4"))
    np.savez_compressed(f"{prefix}zipped.npz", x=x.astype(np.float32).reshape(n, 2, 3), y=names)
    np.savez_compressed(f"{prefix}fortran.npz", x=np.asfortranarray(x), y=y > 0)
    np.savez(f"{prefix}plain.npz", x=rng.integers(0, 2, (n, 6)) > 0, y=np.column_stack([y > 0, y > 1]))
    images = rng.integers(0, 256, (n, 3, 2))
    for name, pack in (("a-{}-ubyte", bytes), ("b-{}-ubyte.gz", gzip.compress)):
        for what, array in (("images-idx3", images), ("labels-idx1", y)):
            with open(prefix + name.format(what), "wb") as file:
                file.write(pack(idx_bytes(array)))


@pytest.fixture
def away(world, mpi_tmp_path, monkeypatch):
    """Work in a folder of rank 0's own, with data on rank 0 alone; give pieces of a few rows."""
    if world.rank == 0:
        for rank in range(world.size):
            (mpi_tmp_path / f"at{rank}").mkdir()
    world.exchange(None)
    monkeypatch.chdir(mpi_tmp_path / f"at{world.rank}")
    monkeypatch.setattr(sending, "PIECE", 300)
    if world.rank == 0:
        write(N, 0)
        write(37, 1, "other-")
    world.exchange(None)
    yield
    world.exchange(None)


def table_of(source, **data):
    """Return settings that send a source."""
    targets = {"column.npy": 2, "fortran.npy": 2, "x.npy": "y.npy"}
    given = {"source": source, "share": "send", "batch_size": 16, "target": targets.get(source, ""), **data}
    task = "classification" if source in ("column.npy", "fortran.npy") else "auto"
    return {"data": {"task": task, **given}, "network": {"widths": [5]}, "training": {"epochs": 2}}


def contents(part, own):
    """Return the SHA-256 of the rows of each own shard, by shard."""
    if part is None:
        return {}
    n_outputs = part.source.n_outputs if part.source else part._y.shape[1]
    found = {}
    for i, shard in enumerate(own):
        positions = np.arange(part.share.starts[i], part.share.starts[i + 1])
        x, y = (np.empty((len(positions), n), part.dtype) for n in (part.n_features, n_outputs))
        part.fill(positions, x, y)
        found[str(shard)] = hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()
    return found


def bytes_of(problem, own):
    """Return everything that a run takes from its data."""
    scalings = [array.tobytes().hex() for s in (problem.x_scaling, problem.y_scaling) for array in (s.shift, s.factor)]
    parts = [contents(part, own) for part in (problem.training, problem.validation, problem.test)]
    return [problem.fingerprint, list(problem.shape.classes), problem.shape.task, scalings], parts


def own_shards(world, n=8):
    return range(n * world.rank // world.size, n * (world.rank + 1) // world.size)


@pytest.mark.parametrize("memory", [0, 1024])
@pytest.mark.parametrize("source", SOURCES)
def test_every_rank_has_the_rows_of_its_shards(world, away, source, memory):
    other = 0.3 if source == "x.npy" else f"other-{source}"  # a second .npy holds the targets of one file alone
    for parts in ({"validation": 0.25, "test": other}, {"validation": 0.0, "test": 0.0}):
        table = table_of(source, memory=memory, **parts)
        problem = load(settings(table).with_shards(world.size), world, nothing, StopFlag())
        assert world.rank == 0 or problem.training.kept
        told = world.exchange(bytes_of(problem, own_shards(world)))
        if world.rank == 0:
            table["data"]["share"] = "read"
            alone = load(settings(table).with_shards(1), World(None), nothing, StopFlag())
            about, rows = bytes_of(alone, range(8))
            assert all(t[0] == about for t in told)
            for p, of_part in enumerate(rows):
                assert of_part == {shard: text for t in told for shard, text in t[1][p].items()}


@pytest.mark.parametrize("source", ["digits", "synthetic"])
def test_what_every_rank_can_make_is_not_sent(world, away, source, monkeypatch):
    monkeypatch.setattr(World, "deal", None)
    load(settings({"data": {"source": source, "share": "send"}}).with_shards(world.size), world, nothing, StopFlag())


def test_arrays_in_memory_are_not_sent(world, away, monkeypatch):
    monkeypatch.setattr(World, "deal", None)
    wanted = settings({"data": {"source": "memory", "share": "send"}}).with_shards(world.size)
    load(wanted, world, nothing, StopFlag(), (np.ones((99, 2)), np.arange(99) % 2))


def bad_value(row):
    table = np.load("column.npy")
    table[row, 4] = np.inf
    np.save("column.npy", table)


def bad_field(line, text):
    with open("rows.csv") as file:
        lines = file.read().splitlines()
    lines[line - 1] = text + lines[line - 1][lines[line - 1].index(",") :]
    with open("rows.csv", "w") as file:
        file.write("\n".join(lines) + "\n")


def damaged(name):
    with open(name, "rb") as file:
        content = file.read()
    with open(name, "wb") as file:
        file.write(content[:-4] + bytes(4))  # the checksum


def other_class():
    np.save("y.npy", np.arange(N) % 2)
    np.savez("other-zipped.npz", x=np.ones((37, 6)), y=np.full(37, "dog"))


WRONG = {
    "nowhere.csv": (lambda: None, {}),
    "column.npy": (lambda: bad_value(N - 1), {}),
    "rows.csv": (lambda: bad_field(N, "na"), {}),
    "rows.csv ": (lambda: bad_field(3, "nan"), {}),
    "rows.csv  ": (lambda: bad_field(N - 2, "inf"), {}),
    "b-images-idx3-ubyte.gz": (lambda: damaged("b-images-idx3-ubyte.gz"), {}),
    "zipped.npz": (other_class, {"test": "other-zipped.npz"}),
    "plain.npz": (lambda: None, {"test": "nowhere.npz"}),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_an_error_is_the_same_on_every_rank_and_as_in_one_process(world, away, case):
    make, data = WRONG[case]
    if world.rank == 0:
        make()
    table = table_of(case.strip(), **data)
    with pytest.raises(AgreedValueError) as caught:
        load(settings(table).with_shards(world.size), world, nothing, StopFlag())
    told = world.exchange(str(caught.value))
    assert told == told[:1] * world.size
    if world.rank == 0:
        table["data"]["share"] = "read"
        with pytest.raises(AgreedValueError) as alone:
            load(settings(table).with_shards(1), World(None), nothing, StopFlag())
        assert told[0] == str(alone.value)


@pytest.mark.parametrize("asked", range(4))
@pytest.mark.parametrize("source", ["rows.csv", "x.npy"])
def test_one_rank_asked_to_stop_ends_the_sending(world, away, source, asked, monkeypatch):
    if world.size == 1:
        pytest.skip("needs two ranks: one process sends nothing")
    asked %= world.size
    monkeypatch.setattr(sending, "PIECE", 1)  # a row
    stop, pieces, dealt = StopFlag(), sending.pieces, 0

    def told(*arguments):
        nonlocal dealt
        for piece in pieces(*arguments):
            dealt += 1
            if asked == 0 and dealt == 3:
                stop.name = "SIGUSR1"
            yield piece

    def take(self, x, y):
        if world.rank == asked:
            stop.name = "SIGUSR1"

    monkeypatch.setattr("distbp.training.reader.pieces", told)
    monkeypatch.setattr(Received, "take", take)
    with pytest.raises(AgreedStopError) as caught:
        load(settings(table_of(source)).with_shards(world.size), world, nothing, stop)
    assert str(caught.value).startswith("stopped by SIGUSR1 while reading data, before any step")
    assert world.from_rank_0(dealt) < (5 if asked == 0 else N * (asked + 0.5) / world.size)


@pytest.mark.parametrize("failing", ["first", "last"])
@pytest.mark.parametrize("where", ["expect", "take"])
def test_one_rank_that_fails_ends_all(world, away, failing, where, monkeypatch):
    rank = 0 if failing == "first" else world.size - 1
    if world.size == 1:
        pytest.skip("needs two ranks: one process sends nothing")
    was = getattr(Received, where)

    def changed(self, *arguments):
        if world.rank == rank and len(arguments[0]):
            raise MemoryError("no room")
        was(self, *arguments)

    monkeypatch.setattr(Received, where, changed)
    with pytest.raises(AgreedRuntimeError) as caught:
        load(settings(table_of("rows.csv")).with_shards(world.size), world, nothing, StopFlag())
    assert str(caught.value).startswith("MemoryError: no room")
    assert world.exchange(world.rank) == list(range(world.size))  # nothing is left on the way


@pytest.mark.parametrize("source", ["zipped.npz", "rows.csv", "column.npy"])
def test_a_run_and_its_evaluation_give_the_bytes_of_a_run_that_reads(world, away, source):
    data = {"validation": 0.2, "test": f"other-{source}"}
    found = {}
    for share in ("send", "read"):
        if share == "read":
            assert world.exchange(world.rank == 0 or os.listdir() == []) == [True] * world.size
            if world.rank:
                write(N, 0)
                write(37, 1, "other-")
        result = train(settings(table_of(source, share=share, **data)), name=share, runs="runs", quiet=True)
        evaluations = {part: e.to_json() for part, e in evaluate(share, runs="runs").items()}
        assert list(evaluations) == ["validation", "test"]
        found[share] = [result.sha256, evaluations]
    told = world.exchange(found)
    assert all(t == {"send": told[0]["send"], "read": told[0]["send"]} for t in told)


def test_a_run_without_other_parts_is_evaluated_on_its_training_rows(world, away):
    train(settings(table_of("b-images-idx3-ubyte.gz", validation=0.0)), name="run", runs="runs", quiet=True)
    found = evaluate("run", runs="runs")
    assert (list(found), found["training"].rows) == (["training"], N)
