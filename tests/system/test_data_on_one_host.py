"""data.share = send, whole commands: each rank in a folder of its own, the data in rank 0's alone."""

import gzip
import json
import os
import signal
import struct

import numpy as np
import pytest
from commands import RANK, Place, sha256, wait_for
from conftest import ends_at

DRIVER = """\
import json, os, sys
os.chdir("at" + next((os.environ[name] for name in {RANK} if name in os.environ), "0"))
from distbp import command, train
{code}
sys.exit(command.run(train.train_command))
"""
N, STEPS = 420, 30
OPTIONS = ("--data.batch_size", 40, "--network.widths", "8", "--checkpoint.every", "7 steps", "--checkpoint.keep", 99,
           "--name", "mine")  # fmt: skip


def driver(code=""):
    """Return the command's text, with some code before it runs."""
    return DRIVER.format(RANK=RANK, code=code)


def at(here, rank):
    """Return the place where a rank works."""
    return Place(here.path / f"at{rank}")


@pytest.fixture
def files(here):
    """Make a folder for each of four ranks, and the data in the first."""
    for rank in range(4):
        at(here, rank).path.mkdir()
    rng, home = np.random.default_rng(0), here.path / "at0"
    x, y = rng.normal(size=(N, 5)), rng.integers(0, 3, N)
    lines = [",".join([*map(repr, row), "abc"[kind]]) for row, kind in zip(x.tolist(), y.tolist(), strict=True)]
    (home / "rows.csv").write_text("\n".join(["v,w,x,y,z,kind", *lines]) + "\n")
    np.save(home / "x.npy", x)
    np.save(home / "y.npy", y)
    np.savez_compressed(home / "rows.npz", x=x, y=x[:, :2] - 3)
    pixels = rng.integers(0, 256, (N, 3, 3), np.uint8)
    for name, array in (("images-idx3", pixels), ("labels-idx1", y.astype(np.uint8))):
        content = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
        (home / f"{name}-ubyte.gz").write_bytes(gzip.compress(content))


@pytest.mark.parametrize(
    "data",
    [
        ("--data.source", "rows.csv", "--data.validation", "rows.csv"),
        ("--data.source", "x.npy", "--data.target", "y.npy", "--data.test", 0.2, "--data.memory", 0),
        ("--data.source", "rows.npz"),
        ("--data.source", "images-idx3-ubyte.gz"),
    ],
    ids=lambda data: data[1],
)
def test_every_checkpoint_is_as_from_one_process(here, files, data):
    arguments = (*data, *OPTIONS)
    alone = here.run(*arguments, *ends_at(STEPS), driver=driver())
    assert alone.code == 0, alone.err
    wanted = at(here, 0).all_hashes("mine")
    assert len(wanted) > 4
    os.rename(at(here, 0).folder("mine"), here.path / "alone")
    sent = ("--data.share", "send", *ends_at(17))
    done = here.run(*arguments, *sent, ranks=3, driver=driver())
    assert done.code == 0, done.err
    assert sha256(at(here, 0).folder("mine") / "model.safetensors") != wanted["model.safetensors"]
    done = here.run("--resume", "mine", *ends_at(STEPS), ranks=4, driver=driver())
    assert done.code == 0, done.err
    found = at(here, 0).all_hashes("mine")
    assert wanted.items() <= found.items()  # the first run's end, step 17, beside them
    assert [list(at(here, rank).path.iterdir()) for rank in (1, 2, 3)] == [[], [], []]


def test_a_run_that_read_goes_on_where_the_data_is_sent(here, files):
    arguments = ("--data.source", "rows.csv", *OPTIONS)
    assert here.run(*arguments, *ends_at(STEPS), driver=driver()).code == 0
    wanted = at(here, 0).hashes("mine")
    os.rename(at(here, 0).folder("mine"), here.path / "alone")
    assert here.run(*arguments, *ends_at(14), driver=driver()).code == 0
    resumed = ("--resume", "mine", "--data.share", "send", *ends_at(STEPS))
    done = here.run(*resumed, ranks=2, driver=driver())
    assert done.code == 0, done.err
    assert at(here, 0).hashes("mine") == wanted


def test_without_it_a_rank_that_lacks_the_data_says_so(here, files):
    done = here.run("--data.source", "rows.csv", *OPTIONS, ranks=2, driver=driver())
    assert done.code == 2
    assert "distbp: rows.csv: expected " in done.err
    assert "got no file of that name on rank 1 of 2. Check the path." in done.err


def test_a_signal_to_one_rank_while_rows_are_sent(here, files):
    """The reading waits, after its first piece, until the signal has come."""
    waits = """\
import time
from distbp.data import sending
from distbp.training import reader
sending.PIECE, pieces = 1, reader.pieces

def slow(*arguments):
    for n, piece in enumerate(pieces(*arguments)):
        if n == 1:
            open("first", "w").close()
        time.sleep(0.1 if n else 0)  # 40 s, unless the signal ends it
        yield piece

reader.pieces = slow
"""
    process = here.start(
        *("--data.source", "rows.csv", "--data.share", "send", *OPTIONS), ranks=3, driver=driver(waits)
    )
    wait_for((here.path / "at0/first").exists, "the first piece")
    os.kill(process.ranks()[0], signal.SIGUSR1)
    done = process.wait(20)
    assert done.code == 75
    assert "stopped by SIGUSR1 while reading data, before any step. Start it again." in done.err
    assert not (here.path / "at0/runs").exists()


MEASURED = """\
from distbp.training import run
load = run.load

def kib(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))

def measured(*arguments):
    before = kib("VmRSS")
    problem = load(*arguments)
    with open("grown.json", "w") as file:
        json.dump((kib("VmHWM") - before) / 1024, file)
    return problem

run.load = measured
"""


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_rank_0_keeps_no_rows_of_others(here, task):
    """A file of 300 MiB on three ranks: rank 0 grows by its own 100 MiB, as they are mapped, and some pieces."""
    for rank in range(3):
        (here.path / f"at{rank}").mkdir()
    n_rows, width = 1 << 20, 75
    rows = np.lib.format.open_memmap(here.path / "at0/rows.npy", "w+", np.float32, (n_rows, width))
    of_piece = np.random.default_rng(0).normal(size=(1 << 14, width)).astype(np.float32)
    of_piece[:, -1] = np.arange(1 << 14) % 10
    for start in range(0, n_rows, len(of_piece)):
        rows[start : start + len(of_piece)] = of_piece
    rows.flush()
    del rows
    done = here.run(
        *("--data.source", "rows.npy", "--data.task", task, "--data.share", "send", "--data.validation", 0),
        *("--data.memory", 0, "--data.batch_size", 4096, "--network.widths", "4", *ends_at(1), "--name", "mine"),
        ranks=3, driver=driver(MEASURED), limit=120,
    )  # fmt: skip
    (here.path / "at0/rows.npy").unlink()  # pytest keeps what is left
    assert done.code == 0, done.err
    grown = [json.loads((here.path / f"at{rank}/grown.json").read_text()) for rank in range(3)]  # MiB
    assert grown[0] < 100 + 100
    assert max(grown[1:]) < 2 * 100 + 100  # as they are in the file, and decoded
