"""Data and numbers that are wrong: named where they are, on whichever rank, and nothing is saved after them."""

import numpy as np
import pytest
from commands import LONG, STEP_DRIVER, about

from distbp.data.shards import shares

N = 120


def rows(seed=0):
    made = np.random.default_rng(seed)
    x = made.normal(size=(N, 3))
    return np.column_stack([x, (x[:, 0] > 0).astype(float)])


def say(done):
    """Return the one message of a command that failed."""
    assert done.err.count("distbp: ") == 1
    return done.err[done.err.index("distbp: ") + 8 :].splitlines()[0]


OPTIONS = ("--data.task", "classification", "--network.widths", "4", "--training.epochs", "2", "--name", "mine")


@pytest.mark.parametrize("ranks", [None, 3])
@pytest.mark.parametrize("row", [0, 119])
def test_nan_in_npy(here, row, ranks):
    table = rows()
    table[row, 1] = np.nan
    np.save(here.path / "rows.npy", table)
    done = here.run("--data.source", "rows.npy", "--data.validation", "0", *OPTIONS, ranks=ranks)
    assert done.code == 2
    where = " on rank 2 of 3" if row and ranks else ""
    assert say(done).startswith(
        f"rows.npy: row {row}, column 1: expected a finite number, got nan{where}. "
        "Mend the data, or set data.allow_nonfinite = true."
    )
    assert not (here.path / "runs").exists()


@pytest.mark.parametrize("ranks", [None, 2])
def test_infinity_and_nan_in_csv(here, ranks):
    table = rows().astype(str)
    for row, column, text, message in (
        (57, 1, "inf", "expected a finite number, got inf. Mend the data, or set data.allow_nonfinite = true."),
        (56, 2, "nan", "expected a number, got a missing value ('nan'). "
                       "Fill it in, drop the line, or set data.allow_nonfinite = true."),
    ):  # fmt: skip
        table[row, column] = text
        lines = ["a,b,c,class", *(",".join(fields) for fields in table)]
        (here.path / "rows.csv").write_text("\n".join(lines) + "\n")
        done = here.run("--data.source", "rows.csv", "--data.validation", "0", *OPTIONS, ranks=ranks)
        assert done.code == 2
        assert say(done).startswith(f"rows.csv: line {row + 2}, column '{'abc'[column]}': {message}")


@pytest.mark.parametrize("part", ["validation", "test"])
def test_nan_in_a_part_that_is_cut_from_the_source(here, part):
    fractions = (0.2, 0.0) if part == "validation" else (0.0, 0.2)
    own = shares(N, 0, fractions, range(8), 8)[1 if part == "validation" else 2]
    row = int(own.at(np.arange(len(own)))[2])
    table = rows()
    table[row, 1] = np.nan
    np.save(here.path / "rows.npy", table)
    arguments = ("--data.validation", fractions[0], "--data.test", fractions[1])
    done = here.run("--data.source", "rows.npy", *arguments, *OPTIONS, ranks=2)
    assert done.code == 2
    assert say(done).startswith(f"rows.npy: row {row}, column 1: expected a finite number, got nan")


def test_nan_in_a_validation_file_and_in_the_targets(here):
    np.save(here.path / "rows.npy", rows())
    bad = rows(1)
    bad[33, 2] = -np.inf
    np.save(here.path / "other.npy", bad)
    done = here.run("--data.source", "rows.npy", "--data.validation", "other.npy", *OPTIONS, ranks=2)
    assert done.code == 2
    assert say(done).startswith("other.npy: row 33, column 2: expected a finite number, got -inf")
    bad = rows()
    bad[33, 3] = np.nan
    np.save(here.path / "rows.npy", bad)
    done = here.run("--data.source", "rows.npy", "--data.task", "regression", "--data.validation", "0")
    assert done.code == 2
    assert say(done).startswith("rows.npy: row 33, column 3: expected a finite number, got nan")


@pytest.mark.parametrize("ranks", [None, 3])
def test_allowed_and_then_the_cost_is_not_finite(here, ranks):
    table = rows()
    table[57, 1] = np.nan
    np.save(here.path / "rows.npy", table)
    allowed = ("--data.allow_nonfinite", "true", "--data.scaling", "none", "--data.validation", "0")
    done = here.run("--data.source", "rows.npy", *allowed, *OPTIONS, "--checkpoint.every", "1 steps", ranks=ranks)
    assert done.code == 1
    steps = here.last_step("mine")
    assert say(done) == (
        f"step {steps}: expected a finite cost, got nan in shard {57 * 8 // N}. "
        "Stopped before the step; lower descent.learning_rate or set descent.clip."
    )
    assert "Warning" not in done.err
    assert not (here.folder("mine") / "model.safetensors").exists()


def binary(path):
    path.write_bytes(bytes(range(256)))


WRONG = {
    "empty.csv": (lambda p: p.write_text(""), "empty.csv: expected rows, got an empty file. Write it again."),
    "header.csv": (
        lambda p: p.write_text("a,b,c\n"), "header.csv: expected at least one row, got none below the header. Add rows."
    ),
    "ragged.csv": (
        lambda p: p.write_text("a,b,c\n1,2,3\n1,2\n"),
        "ragged.csv: line 3: expected 3 fields, got 2. Correct the line, or set data.delimiter.",
    ),
    "words.csv": (
        lambda p: p.write_text("a,b,c\n1,2,3\n1,two,3\n"),
        "words.csv: line 3, column 'b': expected a number, got 'two'. "
        "Write it as numbers, drop the column, or make it data.target.",
    ),
    "pickled.npy": (
        lambda p: np.save(p, np.array([[1, "a"], [2, None]], dtype=object), allow_pickle=True),
        "pickled.npy: expected plain numbers, got pickled Python objects (dtype object). "
        "Pickled data is never loaded; save plain numbers, as with numpy.asarray(x, float).",
    ),
    "complex.npy": (
        lambda p: np.save(p, np.zeros((4, 3), complex)),
        "complex.npy: expected real numbers, got dtype complex128. Save x as real numbers.",
    ),
    "none.npy": (
        lambda p: np.save(p, np.zeros((0, 3))), "none.npy: expected at least one row, got shape (0, 3). Add rows."
    ),
    "cut.npy": (
        lambda p: (np.save(p, rows()), p.write_bytes(p.read_bytes()[:-8])),
        "cut.npy: expected 3,968 bytes, as its header says, got 3,960. Copy or make it again: it is cut off.",
    ),
    "other.xyz": (
        binary,
        "other.xyz: expected digits, synthetic, or a .csv, .tsv, .txt, .npy, .npz or IDX file, got an unknown format. "
        "Convert it to one of these.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("file", WRONG)
def test_wrong_files_are_one_message_on_any_number_of_ranks(here, file):
    make, message = WRONG[file]
    make(here.path / file)
    done = here.run("--data.source", file, "--data.validation", "0", ranks=2)
    assert done.code == 2
    assert say(done).replace(" on rank 1 of 2", "") == message
    assert not (here.path / "runs").exists()


@pytest.mark.parametrize("ranks", [None, 3])
def test_a_cost_that_explodes(here, goes_on, ranks):
    """A learning rate that is too large: the run stops before the step, and what was saved before is good."""
    arguments = (*LONG, "--descent.rule", "gradient_descent", "--descent.learning_rate", "1e25")
    arguments = (
        *arguments,
        "--checkpoint.every",
        "1 steps",
        "--network.cost",
        "quadratic",
        "--network.output",
        "identity",
    )
    done = here.run(*arguments, "--name", "mine", ranks=ranks)
    assert done.code == 1
    steps = here.last_step("mine")
    assert say(done).startswith(f"step {steps}: expected a finite ")
    assert say(done).endswith(". Stopped before the step; lower descent.learning_rate or set descent.clip.")
    assert "Warning" not in done.err
    assert about(here.checkpoints("mine")[-1])["state"]["step"] == steps
    again = here.run("--resume", "mine")
    assert (again.code, say(again)) == (1, say(done))
    assert here.last_step("mine") == steps


@pytest.mark.parametrize(("ranks", "rank", "where"), [
    (3, 1, "rank 1 of 3. "),
    (2, 1, "rank 1 of 2 (there is no majority: rank 0 may be the wrong one). "),
    (3, 0, "rank 0 of 3. "),
])  # fmt: skip
@pytest.mark.parametrize(
    "what",
    ["self.theta[:99] = np.nextafter(self.theta[:99], np.float32(9))", "next(iter(self.rule.state.values()))[3] += 1"],
)
def test_a_replica_that_differs(here, goes_on, ranks, rank, where, what):
    driver = STEP_DRIVER.format(code=f"if step == 42 and rank == {rank}: {what}")
    arguments = (
        *LONG,
        "--checkpoint.every",
        "13 steps",
        "--training.model",
        "last",
        "--training.shared_memory",
        "false",
    )
    done = here.run(*arguments, "--training.check_every", 10, "--name", "mine", ranks=ranks, driver=driver, limit=20)
    assert done.code == 1
    assert say(done) == (
        f"step 50: expected the same theta and rule state on all ranks, got others on {where}"
        "Nothing was saved since; check that machine's memory and resume."
    )
    assert here.last_step("mine") == 39
    goes_on("mine", (*arguments, "--training.check_every", "10"), 2)


def test_a_replica_that_differs_is_not_saved(here):
    """Between two checks a checkpoint is due: it is checked first."""
    driver = STEP_DRIVER.format(code="if step == 42 and rank == 1: self.theta[0] += 1")
    done = here.run(
        *LONG,
        "--checkpoint.every",
        "11 steps",
        "--training.shared_memory",
        "false",
        "--training.model",
        "last",
        "--name",
        "mine",
        ranks=3,
        driver=driver,
        limit=20,
    )
    assert done.code == 1
    assert say(done).startswith(
        "step 44: expected the same theta and rule state on all ranks, got others on rank 1 of 3"
    )
    assert here.last_step("mine") == 33
