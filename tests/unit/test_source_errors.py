"""What every source says about input it cannot use: each message in full."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from test_sources import LIKE, X, every, idx_bytes, write  # noqa: F401

from distbp.data.source import Shape, open_source
from distbp.settings import Data

pytestmark = pytest.mark.usefixtures("write")
NAMED = Shape(2, ("a", "b"), "classification", 2, ("no", "yes"))
KNOWN = "digits, synthetic, or a .csv, .tsv, .txt, .npy, .npz or IDX file"


def says(message):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def csv(content, name="t.csv"):
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return name


def arrays(x, y, name="a.npz"):
    np.savez(name, x=x, y=y)
    return name


# files


def test_files():
    with says(f"none.csv: expected {KNOWN}, got no file of that name. Check the path."):
        open_source("none.csv", Data())
    os.mkdir("folder.csv")
    with says("folder.csv: expected a file, got a folder. Give the path of one file in it."):
        open_source("folder.csv", Data())
    os.mkfifo("pipe.csv")
    with says("pipe.csv: expected a regular file, got a pipe or a device. Write it to a file first."):
        open_source("pipe.csv", Data())
    long = "a" * 300 + ".csv"
    with says(f"{long}: expected a readable file, got File name too long. Check its path and rights."):
        open_source(long, Data())
    for name in ("t.csv", "t.npy", "t.npz", "t.idx", "t.csv.gz", "t"):
        with says(f"{name}: expected rows, got an empty file. Write it again."):
            open_source(csv("", name), Data())
    with says(f"t.xlsx: expected {KNOWN}, got an unknown format. Convert it to one of these."):
        open_source(csv("what", "t.xlsx"), Data())
    with says("t.csv: expected the shape of a model to read features alone, got none. Pass like."):
        open_source("t.csv", Data(), target=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission():
    os.chmod(csv("1,2\n"), 0)
    with says("t.csv: expected a readable file, got Permission denied. Check its path and rights."):
        open_source("t.csv", Data())


# synthetic


def test_synthetic():
    with says("synthetic: expected 4 features, as in training, got 64. Give a file with the features of training."):
        open_source("synthetic", Data(), like=LIKE)
    with says(
        'data.outputs: expected at least 2 for classification, got 1. Set it higher, or data.task = "regression".'
    ):
        open_source("synthetic", Data(outputs=1))
    with says("synthetic: expected the 3 outputs of training, got 10 of its own. Use the data settings of training."):
        open_source("synthetic", Data(features=4), like=LIKE)


# arrays


@pytest.mark.parametrize("x", [X.astype(complex), X.astype("U3"), X.astype("M8[s]"), np.zeros((5, 2), "i4,f8")])
def test_features_of_another_type(x):
    np.save("x.npy", x)
    with says(f"x.npy: expected real numbers, got dtype {x.dtype}. Save x as real numbers."):
        open_source("x.npy", Data())


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_pickles_are_refused(save):
    np.save("x.npy", X.astype(object), allow_pickle=True)
    save("a.npz", x=X, y=np.array([1, "a", None, 2, 3], object), allow_pickle=True)
    rest = (
        "expected plain numbers, got pickled Python objects (dtype object). "
        "Pickled data is never loaded; save plain numbers, as with numpy.asarray(x, float)."
    )
    with says(f"x.npy: {rest}"):
        open_source("x.npy", Data())
    with says(f"a.npz, array y: {rest}"):
        open_source("a.npz", Data())


def test_array_shapes():
    cases = [
        (np.zeros(5), np.zeros(5), "a.npz, array x: expected at least two axes, rows and features, got shape (5,). "
         "Reshape x to them."),
        (np.zeros((0, 3)), np.zeros(0), "a.npz, array x: expected at least one row, got shape (0, 3). Add rows."),
        (np.zeros((3, 0)), np.zeros(3), "a.npz, array x: expected at least one feature beside the target, got none. "
         "Add a feature column, or set data.delimiter."),
        (X, np.zeros(4), "a.npz, array y: expected as many targets as a.npz, array x has rows (5), got 4. "
         "Give the targets of these rows."),
        (X, np.zeros((5, 2, 2)), "a.npz, array y: expected targets of one or two axes, got shape (5, 2, 2). "
         "Reshape them to (rows, outputs)."),
        (X, np.zeros((5, 0)), "a.npz, array y: expected at least one target a row, got shape (5, 0). Add a column."),
        (X, np.zeros(5, complex), "a.npz, array y: expected numbers or text as targets, got dtype complex128. "
         "Save them as numbers or text."),
    ]  # fmt: skip
    for x, y, message in cases:
        with says(message):
            open_source(arrays(x, y), Data())


def test_array_tasks():
    with says(
        "a.npz, array y: expected one target column for classification, got 5. "
        'Name one in data.target, or set data.task = "labels" or "regression".'
    ):
        open_source(arrays(X, np.eye(5)), Data(), cost="cross_entropy")
    with says(
        "a.npz, array y: row 0: expected a number as target, got 'red'. "
        'Set data.task = "classification" if the target is a class, else correct it.'
    ):
        open_source(arrays(X, np.array(["red"] * 5)), Data(task="regression"))
    with says(
        "a.npz, array y: row 3: expected a whole number as class, since network.cost is cross_entropy, got 0.5. "
        'Set data.task = "classification" if it is one, else leave network.cost auto.'
    ):
        open_source(arrays(X, np.array([1, 0, 1, 0.5, 1])), Data(), cost="cross_entropy")
    with says("a.npz, array y: row 2: expected a target, got a missing value (nan). Fill it in or drop the row."):
        open_source(arrays(X, np.array([1, 0, np.nan, 1, 1])), Data(), cost="cross_entropy")
    with says("a.npz, array y: row 1: expected a target, got a missing value (''). Fill it in or drop the row."):
        open_source(arrays(X, np.array(["a", "", "b", "a", "a"])), Data())
    with says('a.npz, array y: row 4: expected labels of 0 or 1, got 2. Correct it, or set data.task = "regression".'):
        open_source(arrays(X, np.array([1, 0, 0, 1, 2])), Data(task="labels")).read(np.array([0, 4]))
    with says(
        'a.npz, array y: expected at most 10,000 classes, got more. Set data.task = "regression" if the target is a '
        "number."
    ):
        open_source(arrays(np.zeros((10_001, 1)), np.arange(10_001)), Data())
    assert open_source(arrays(np.zeros((10_000, 1)), np.arange(10_000)), Data()).n_outputs == 10_000


def test_arrays_like():
    with says(
        "a.npz, array y: row 1: expected one of the 3 classes of training, got '7'. "
        "Correct it, or train with rows of that class."
    ):
        open_source(arrays(X, np.array([1, 7, 0, 1, 2])), Data(), like=LIKE)
    with says("a.npz, array x: expected 4 features, as in training, got 3. Give a file with the features of training."):
        open_source(arrays(X[:, :3], np.zeros(5)), Data(), like=LIKE)
    with says("a.npz, array y: expected 1 target columns, as in training, got 2. Set data.target."):
        open_source(arrays(X, np.zeros((5, 2))), Data(), like=Shape(4, (), "regression", 1, ()))


def test_npy_targets():
    np.save("x.npy", X)
    np.save("cube.npy", X.reshape(5, 2, 2))
    with says(
        "data.target: expected a column number or the path of a .npy, for x.npy has no names, got 'price'. "
        "Give one of these."
    ):
        open_source("x.npy", Data(target="price"))
    with says("data.target: expected a column number from -4 to 3 for x.npy, got 4. Give a column that it has."):
        open_source("x.npy", Data(target=4))
    with says(
        "cube.npy: expected two axes, one column of which is the target, got shape (5, 2, 2). "
        "Give the targets in a second .npy with data.target = PATH."
    ):
        open_source("cube.npy", Data())
    with says("cube.npy: expected 9 features, as in training, got 4. Give a file with the features of training."):
        open_source("cube.npy", Data(), like=Shape(9, (), "regression", 1, ()), target=False)
    with says(
        "x.npy: expected a file that holds its own targets, for y.npy holds those of train.npy, "
        "got a .npy of features. Put x and y of each file into one .npz."
    ):
        open_source("x.npy", Data(source="train.npy", target="y.npy", validation="x.npy"), like=LIKE)


def test_npz_names():
    np.savez("a.npz", x=X, z=X)
    with says("a.npz: expected an array named y, got x, z. Name the targets' array in data.target."):
        open_source("a.npz", Data())
    np.savez("a.npz", z=X)
    with says("a.npz: expected an array named x, got z. Save it with numpy.savez(path, x=..., y=...)."):
        open_source("a.npz", Data())


def test_idx():
    with says(
        "t.idx: expected an IDX file, which begins with 00 00, a type and the number of axes, got 77 68 61 74. "
        "Check the path."
    ):
        open_source(csv("what", "t.idx"), Data())
    csv(idx_bytes(np.zeros((2, 3, 3)), 8), "images.idx3")
    with says("images.idx3: expected the label file labels.idx1, got none. Give its path in data.target."):
        open_source("images.idx3", Data())
    os.rename("images.idx3", "t.idx")
    with says("t.idx: expected a label file beside it, got none. Give its path in data.target."):
        open_source("t.idx", Data())
    with says(f"none: expected {KNOWN}, got no file of that name. Check the path."):
        open_source("t.idx", Data(target="none"))


# CSV


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ("a,b\n1,2\n3\n", {}, "t.csv: line 3: expected 2 fields, got 1. Correct the line, or set data.delimiter."),
        ("a,b\n", {}, "t.csv: expected at least one row, got none below the header. Add rows."),
        ("\n \n", {}, "t.csv: expected rows, got only blank lines. Write it again."),
        ("a\n1\n", {}, "t.csv: expected at least one feature beside the target, got none. Add a feature column, or set data.delimiter."),
        ("a,b,a\n1,2,3\n", {}, "t.csv: line 1: expected a different name for every column, got 'a' twice. "
         "Rename one, or set data.header = false."),
        (b"a,b\n1,2\n\xff,3\n", {}, "t.csv: line 3: expected UTF-8 text, got other bytes. Save the file as UTF-8."),
        ('a,b\n1,2\n"3,4\n5,6\n', {}, "t.csv: line 3: expected a line of CSV, got one that cannot be read "
         "(unexpected end of data). Correct its quotes."),
        ("a,b\n1,2\n", {"delimiter": '"'}, "data.delimiter: expected a character that ends no line and quotes nothing, "
         "got '\"'. Use \",\" or \";\"."),
        ("a,b\n1,2\n", {"target": "bb"}, "data.target: expected a column of t.csv, got 'bb'. Did you mean 'b'?"),
        ("a,b\n1,2\n", {"target": "price"}, "data.target: expected a column of t.csv, got 'price'. "
         "Its columns are: a, b."),
        ("1,2\n", {"target": "price"}, "data.target: expected a column number, for t.csv has no header, got 'price'. "
         "Give a number from 0, or set data.header = true."),
        ("1,2\n", {"target": 2}, "data.target: expected a column number from -2 to 1 for t.csv, got 2. "
         "Give a column that it has."),
        ("1,2\n", {"target": "1,-1"}, "data.target: expected different columns, got '1,-1'. Name each once."),
        ("1,2,x\n", {"target": "1,2", "task": "classification"}, "t.csv: expected one target column for "
         'classification, got 2. Name one in data.target, or set data.task = "labels" or "regression".'),
        ("a,b\n1,x\n2,NA\n", {}, "t.csv: line 3, column 'b': expected a target, got a missing value ('NA'). "
         "Fill it in or drop the row."),
    ],
)  # fmt: skip
def test_csv_open(content, settings, message):
    with says(message):
        open_source(csv(content), Data(**settings))


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ("age,y\n1,2\nNA,3\n", {}, "t.csv: line 3, column 'age': expected a number, got a missing value ('NA'). "
         "Fill it in, drop the line, or set data.allow_nonfinite = true."),
        ("age,y\n1,2\nNaN,3\n", {}, "t.csv: line 3, column 'age': expected a number, got a missing value ('NaN'). "
         "Fill it in, drop the line, or set data.allow_nonfinite = true."),
        ("1,2\nold,3\n", {}, "t.csv: line 2, column 0: expected a number, got 'old'. "
         "Write it as numbers, drop the column, or make it data.target."),
        ("1,2\n3,red\n", {"task": "regression"}, "t.csv: line 2, column 1: expected a number as target, got 'red'. "
         'Set data.task = "classification" if the target is a class, else correct it.'),
        ("1,2\n3,\n", {"task": "regression"}, "t.csv: line 2, column 1: expected a target, got a missing value (''). "
         "Fill it in or drop the row."),
        ("1,1\n3,0.5\n", {"task": "labels"}, "t.csv: line 2, column 1: expected labels of 0 or 1, got 0.5. "
         'Correct it, or set data.task = "regression".'),
    ],
)  # fmt: skip
def test_csv_read(content, settings, message):
    source = open_source(csv(content), Data(**settings))
    with says(message):
        every(source)


def test_csv_classes():
    many = "".join(f"1,{i}\n" for i in range(10_001))
    assert open_source(csv(many), Data()).task == "regression"
    for content, cost in ((many, "cross_entropy"), (many + "1,text\n", "auto")):
        with says(
            't.csv: expected at most 10,000 classes, got more. Set data.task = "regression" if the target is a number.'
        ):
            open_source(csv(content), Data(), cost=cost)
    with says(
        "t.csv: line 2, column 1: expected a whole number as class, since network.cost is cross_entropy, got 0.5. "
        'Set data.task = "classification" if it is one, else leave network.cost auto.'
    ):
        open_source(csv("1,2\n1,0.5\n"), Data(), cost="cross_entropy")


@pytest.mark.parametrize(
    ("content", "target", "message"),
    [
        ("a,y\n1,no\n", "", "t.csv: expected a column 'b', as in training, got a, y. "
         "Add the column, or correct its name."),
        ("a,b\n1,2\n", "", "t.csv: expected a target beside the features of training, got none. "
         "Add its column, or name it in data.target."),
        ("a,b,y\n1,2,no\n", "b", "data.target: expected a column that is no feature of training, got 'b'. "
         "Name the target of training."),
        ("a,b,y\n1,2,no\n1,2,maybe\n", "", "t.csv: line 3, column 'y': expected one of the 2 classes of training, "
         "got 'maybe'. Correct it, or train with rows of that class."),
        ("1,2,3,no\n", "", "t.csv: expected 2 features, as in training, got 3. "
         "Give a file with the features of training."),
    ],
)  # fmt: skip
def test_csv_like(content, target, message):
    with says(message):
        open_source(csv(content), Data(target=target), like=NAMED)


def test_csv_changed_while_it_is_read():
    source = open_source(csv("1,2\n3,4\n"), Data())
    csv("1,2\n")
    with says("t.csv: expected 2 rows, as when it was opened, got fewer. Leave the file alone while it is read."):
        every(source)
