"""Every source: what it reads, and that rows come back as they were written."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from distbp.data.source import IDX_TYPES, Shape, open_source
from distbp.settings import Data

X = np.arange(20, dtype=np.float32).reshape(5, 4)
LIKE = Shape(4, (), "classification", 3, ("0", "1", "2"))
FLOATS = st.floats(allow_nan=False, width=64)


def every(source):
    return source.read(np.arange(source.n_rows))


def idx_bytes(array, code):
    head = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(IDX_TYPES[bytes([code])]).tobytes()


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file of the current folder."""
    monkeypatch.chdir(tmp_path)

    def written(name, content):
        content = content.encode() if isinstance(content, str) else content
        Path(name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return name

    return written


# digits and synthetic


def test_digits():
    source = open_source("digits", Data())
    x, y = every(source)
    assert (source.n_rows, source.n_features, source.n_outputs, source.task) == (1797, 64, 10, "classification")
    assert source.classes == tuple("0123456789")
    assert source.again
    assert x.min() == 0
    assert x.max() == 16
    assert x.flags.c_contiguous
    assert np.bincount(y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert x[0].tolist()[:8] == [0, 0, 5, 13, 9, 1, 0, 0]
    assert source.place(3, None) == "digits: row 3, column 64"
    unlabelled = open_source("digits", Data(), like=Shape.of(source), target=False)
    assert unlabelled.read(np.array([7, 2]))[0].tobytes() == x[[7, 2]].tobytes()
    assert unlabelled.read(np.array([7, 2]))[1].shape == (2, 0)


@pytest.mark.parametrize("cost", ["auto", "quadratic", "binary_cross_entropy"])
@pytest.mark.parametrize("features", [1, 7, 64, 300])
def test_synthetic_rows_do_not_depend_on_which_are_asked_for(cost, features):
    source = open_source("synthetic", Data(rows=9001, features=features, outputs=5), cost=cost, seed=3)
    x, y = every(source)
    rng = np.random.default_rng(0)
    asked = [np.array([row]) for row in [*range(40), 4095, 4096, 9000]]
    asked += [rng.permutation(9001)[:n] for n in (2, 3, 8, 33, 5000)]
    asked += [np.arange(start, start + n) for start, n in ((1, 7), (4090, 20), (17, 4097))]
    for rows in asked:
        part_x, part_y = source.read(rows)
        assert part_x.tobytes() == x[rows].tobytes()
        assert part_y.tobytes() == y[rows].tobytes()
        assert part_x.dtype == np.float32


@given(st.lists(st.integers(0, 499), max_size=60))
def test_synthetic_rows_one_by_one(rows):
    source = open_source("synthetic", Data(rows=500, features=9, outputs=3), cost="quadratic", seed=1)
    x, y = source.read(np.array(rows, np.int64))
    for index, row in enumerate(rows):
        one_x, one_y = source.read(np.array([row]))
        assert one_x.tobytes() == x[index].tobytes()
        assert one_y.tobytes() == y[index].tobytes()


def test_synthetic_is_balanced_and_seeded():
    source = open_source("synthetic", Data(rows=20_000, features=64, outputs=10))
    x, y = every(source)
    assert np.bincount(y, minlength=10).min() > 400
    assert -1 <= x.min() < -0.999
    assert 0.999 < x.max() < 1
    other = open_source("synthetic", Data(), seed=1)
    assert other.read(np.array([0]))[0].tobytes() != x[:1].tobytes()
    labels = open_source("synthetic", Data(rows=20_000, outputs=3), cost="binary_cross_entropy")
    assert (labels.task, labels.n_outputs, labels.classes) == ("labels", 3, ())
    assert abs(every(labels)[1].mean(axis=0) - 0.5).max() < 0.05
    assert open_source("synthetic", Data(task="regression")).task == "regression"


def test_synthetic_like():
    data = Data(features=4, outputs=3)
    source = open_source("synthetic", data, like=LIKE, target=False)
    assert source.read(np.array([1]))[1].shape == (1, 0)
    assert source.classes == ("0", "1", "2")
    assert open_source("synthetic", data, like=LIKE).task == "classification"


# .npy


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_columns(write, order):
    np.save("x.npy", np.asarray(X, order=order))
    source = open_source("x.npy", Data(target=1), cost="quadratic")
    x, y = source.read(np.array([4, 0]))
    assert x.tolist() == [[16, 18, 19], [0, 2, 3]]
    assert x.flags.c_contiguous
    assert y.tolist() == [[17], [1]]
    assert (source.task, source.again) == ("regression", True)
    assert source.place(3, 0) == "x.npy: row 3, column 0"
    assert source.place(3, 1) == "x.npy: row 3, column 2"
    assert source.place(3, None) == "x.npy: row 3, column 1"
    assert open_source("x.npy", Data(target="-1")).read(np.array([0]))[1].tolist() == [[3]]


def test_npy_second_file(write):
    np.save("x.npy", X.reshape(5, 2, 2))
    np.save("y.npy", np.array([7, -1, 7, 30, 7]))
    source = open_source("x.npy", Data(target="y.npy"))
    x, y = every(source)
    assert x.tobytes() == X.tobytes()
    assert (source.task, source.classes) == ("classification", ("-1", "7", "30"))
    assert y.tolist() == [1, 0, 1, 2, 1]
    assert y.dtype == np.int64
    assert source.place(2, 3) == "x.npy: row 2, column 3"
    assert source.place(2, None) == "y.npy: row 2"


@pytest.mark.parametrize(
    ("y", "settings", "cost", "task", "classes"),
    [
        (np.array([0, 1, 0, 1, 1]), {}, "auto", "classification", ("0", "1")),
        (np.array([True, False, True, True, True]), {}, "auto", "classification", ("0", "1")),
        (np.array(["b", "a", "b", "b", "c"]), {}, "auto", "classification", ("a", "b", "c")),
        (np.array([["b"], ["a"], ["b"], ["b"], ["c"]]), {}, "auto", "classification", ("a", "b", "c")),
        (np.array([1.0, 2, 1, 1, 2]), {}, "auto", "regression", ()),
        (np.array([1.0, 2, 1, 1, 2]), {}, "cross_entropy", "classification", ("1", "2")),
        (np.array([1.5, 2, 1, 1, 2]), {"task": "classification"}, "auto", "classification", ("1", "1.5", "2")),
        (np.array([0, 1, 0, 1, 1]), {}, "binary_cross_entropy", "labels", ()),
        (np.array([0, 1, 0, 1, 1]), {"task": "regression"}, "auto", "regression", ()),
        (np.eye(5, dtype=np.int64), {}, "auto", "regression", ()),
        (np.eye(5), {"task": "labels"}, "auto", "labels", ()),
        (np.eye(5), {}, "binary_cross_entropy", "labels", ()),
    ],
)
def test_npy_task(write, y, settings, cost, task, classes):
    np.save("x.npy", X)
    np.save("y.npy", y)
    source = open_source("x.npy", Data(target="y.npy", **settings), cost=cost)
    assert (source.task, source.classes) == (task, classes)
    got = every(source)[1]
    if task == "classification":
        assert source.n_outputs == len(classes)
        assert [source.classes[i] for i in got] == [
            str(v) if isinstance(v, str) else f"{float(v):g}" for v in y.reshape(-1).tolist()
        ]
    else:
        assert got.dtype == np.float64
        assert got.tolist() == y.reshape(5, -1).tolist()
        assert source.n_outputs == got.shape[1]


@given(
    hnp.arrays(
        st.sampled_from(["<f8", ">f4", "<f2", ">i4", "u1", "<u8", "?"]),
        hnp.array_shapes(min_dims=2, max_dims=4, max_side=5),
        elements=None,
    ),
    st.booleans(),
    st.data(),
)
def test_npy_and_npz_round_trip(tmp_path_factory, x, fortran, data):
    folder = tmp_path_factory.mktemp("arrays")
    x = np.asarray(x, order="F" if fortran else "C")
    y = np.arange(len(x)) / 3
    wanted = x.reshape(len(x), -1)
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, len(x) - 1)))), np.int64)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    np.savez(folder / "plain.npz", x=x, y=y)
    np.savez_compressed(folder / "packed.npz", x=x, y=y)
    for name, again in (("x.npy", True), ("plain.npz", True), ("packed.npz", False)):
        target = str(folder / "y.npy") if name == "x.npy" else ""
        source = open_source(str(folder / name), Data(target=target))
        assert source.again is again
        got_x, got_y = source.read(rows)
        native = wanted[rows].astype("u1" if x.dtype == bool else x.dtype.newbyteorder("="))
        assert got_x.dtype == native.dtype
        assert got_x.tobytes() == native.tobytes()
        assert got_x.flags.c_contiguous
        assert got_y.tobytes() == y[rows].tobytes()


def test_npy_without_target(write):
    np.save("x.npy", X)
    np.save("more.npy", np.column_stack([X[:, :1], np.full(5, 9), X[:, 1:]]))
    for name, target in (("x.npy", ""), ("x.npy", "y.npy"), ("more.npy", 1)):
        source = open_source(name, Data(target=target), like=LIKE, target=False)
        x, y = every(source)
        assert x.tolist() == X.tolist()
        assert y.shape == (5, 0)
        assert (source.task, source.classes) == ("classification", ("0", "1", "2"))
    assert open_source("x.npy", Data(), like=LIKE, target=False).place(1, None) == "x.npy: row 1"


def test_like_maps_classes(write):
    np.savez("v.npz", x=X, y=np.array([2.0, 0, 2, 2, 0]))
    source = open_source("v.npz", Data(), like=LIKE)
    assert every(source)[1].tolist() == [2, 0, 2, 2, 0]
    assert (source.n_outputs, source.classes) == (3, ("0", "1", "2"))
    assert open_source("v.npz", Data(), like=LIKE, target=False).read(np.array([1]))[1].shape == (1, 0)


# .npz


def test_npz_names(write):
    np.savez("a.npz", X=X, Y=np.arange(5), other=np.arange(5) / 2)
    assert open_source("a.npz", Data()).n_outputs == 5
    source = open_source("a.npz", Data(target="other"))
    assert source.task == "regression"
    assert source.place(3, 2) == "a.npz, array X: row 3, column 2"
    assert source.place(3, None) == "a.npz, array other: row 3"


def test_compressed_npz_in_many_pieces(write, monkeypatch):
    monkeypatch.setattr("distbp.data.stored.PIECE", 64)
    x = np.random.default_rng(0).random((300, 3, 4))
    rows = np.array([0, 1, 7, 150, 299])
    for order in "CF":
        np.savez_compressed("a.npz", x=np.asarray(x, order=order), y=np.arange(300) % 7)
        source = open_source("a.npz", Data())
        got, y = source.read(rows)
        assert got.tobytes() == x[rows].reshape(5, -1).tobytes()
        assert y.tolist() == (rows % 7).tolist()


# IDX


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize(("code", "form"), [(int(code[0]), form) for code, form in IDX_TYPES.items()])
def test_idx(write, ending, code, form):
    images = np.arange(24).reshape(4, 2, 3).astype(form)
    write(f"t-images-idx3-ubyte{ending}", idx_bytes(images, code))
    write(f"t-labels-idx1-ubyte{ending}", idx_bytes(np.array([3, 1, 3, 0]), 8))
    source = open_source(f"t-images-idx3-ubyte{ending}", Data())
    x, y = source.read(np.array([1, 3]))
    assert x.tolist() == images.reshape(4, 6)[[1, 3]].tolist()
    assert x.dtype.isnative
    assert y.tolist() == [1, 0]
    assert (source.classes, source.again) == (("0", "1", "3"), not ending)
    assert source.place(1, 5) == f"t-images-idx3-ubyte{ending}: row 1, column 5"
    assert source.place(1, None) == f"t-labels-idx1-ubyte{ending}: row 1"


def test_idx_labels_are_found(write):
    image, label = idx_bytes(np.zeros((2, 3, 3)), 8), idx_bytes(np.array([0, 1]), 8)
    write("images.idx3", image)
    write("labels.idx1.gz", label)
    assert open_source("images.idx3", Data()).n_outputs == 2
    write("unknown", image)
    assert open_source("unknown", Data(target="labels.idx1.gz")).n_outputs == 2
    assert open_source("unknown", Data(), like=Shape(9, (), "regression", 1, ()), target=False).n_rows == 2
    data = Data(source="unknown", target="labels.idx1.gz", validation="images.idx3")
    assert open_source("images.idx3", data, like=Shape(9, (), "classification", 2, ("0", "1"))).n_rows == 2


# CSV


def test_csv_with_header(write):
    write("cars.csv", '\ufeffage,"the\nname",price\r\n\r\n1,2,3\n\n4,5e-1,-inf\n   \n"7\n",8,9')
    source = open_source("cars.csv", Data())
    assert source.feature_names == ("age", "the\nname")
    assert (source.n_rows, source.task, source.again) == (3, "regression", False)
    x, y = every(source)
    assert x.tolist() == [[1, 2], [4, 0.5], [7, 8]]
    assert y.tolist() == [[3], [-np.inf], [9]]
    assert source.place(1, 0) == "cars.csv: line 6, column 'age'"
    assert source.place(2, None) == "cars.csv: line 8, column 'price'"
    assert source.place(9, 0) == "cars.csv: row 9"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.txt", "t.tsv", "t.tsv.gz"])
def test_csv_without_header(write, name, end):
    lines = ["1,2,a", "3,4,b", "5,6,a", ""]
    write(name, end.join(lines).replace(",", "\t" if "tsv" in name else ","))
    source = open_source(name, Data())
    x, y = source.read(np.array([0, 2]))
    assert x.tolist() == [[1, 2], [5, 6]]
    assert (y.tolist(), source.classes, source.feature_names) == ([0, 0], ("a", "b"), ())
    assert source.place(1, 1) == f"{name}: line 2, column 1"


@pytest.mark.parametrize(
    ("target", "columns", "outputs"),
    [("b", [0, 2], [1]), (1, [0, 2], [1]), ("-2", [0, 2], [1]), ("c, a", [1], [2, 0]), ("0,1", [2], [0, 1])],
)
def test_csv_target(write, target, columns, outputs):
    write("t.csv", "a,b,c\n1,2,3\n4,5,6\n")
    rows = np.array([[1, 2, 3], [4, 5, 6]])
    source = open_source("t.csv", Data(target=target))
    x, y = every(source)
    assert x.tolist() == rows[:, columns].tolist()
    assert y.tolist() == rows[:, outputs].tolist()
    assert source.n_outputs == len(outputs)


def test_csv_place_of_several_targets(write):
    write("t.csv", "a,b,c\n1,2,3\n")
    assert open_source("t.csv", Data(target="b,c")).place(0, None) == "t.csv: line 2, columns 'b', 'c'"


@pytest.mark.parametrize(
    ("cells", "settings", "cost", "task", "classes"),
    [
        (["1", "2", "1.0"], {}, "auto", "regression", ()),
        (["10", "9", "9.0"], {}, "cross_entropy", "classification", ("9", "10")),
        (["10", "9", "x"], {}, "auto", "classification", ("10", "9", "x")),
        (["0.5", "9", "9"], {"task": "classification"}, "auto", "classification", ("0.5", "9")),
        (["1", "0", "0"], {}, "binary_cross_entropy", "labels", ()),
        (["1", "0", "0"], {"task": "labels"}, "auto", "labels", ()),
    ],
)
def test_csv_task(write, cells, settings, cost, task, classes):
    write("t.csv", "".join(f"1,{cell}\n" for cell in cells))
    source = open_source("t.csv", Data(header=False, **settings), cost=cost)
    assert (source.task, source.classes) == (task, classes)
    y = every(source)[1]
    assert y.dtype == (np.int64 if classes else np.float64)


def test_csv_missing_values(write):
    write("t.csv", "a,b,c\n,NA,1\nN/A,nan,2\n?, null ,3\nNone,inf,4\n")
    x, _ = every(open_source("t.csv", Data(allow_nonfinite=True)))
    assert np.isnan(x[:3]).all()
    assert np.isnan(x[3, 0])
    assert x[3, 1] == np.inf


def test_csv_infinities_that_cancel_are_no_missing_value(write):
    write("t.csv", "inf,-inf,1\n")
    assert every(open_source("t.csv", Data(header=False)))[0].tolist() == [[np.inf, -np.inf]]


def test_csv_like_takes_columns_by_name(write):
    like = Shape(2, ("a", "b"), "classification", 2, ("no", "yes"))
    write("t.csv", "y,extra,b,a\nyes,q,2,1\nno,q,4,3\n")
    source = open_source("t.csv", Data(target="y"), like=like)
    x, y = every(source)
    assert x.tolist() == [[1, 2], [3, 4]]
    assert y.tolist() == [1, 0]
    assert (source.feature_names, source.classes) == (("a", "b"), ("no", "yes"))
    assert source.place(0, 0) == "t.csv: line 2, column 'a'"
    write("u.csv", "y,b,a\nyes,2,1\n")
    assert every(open_source("u.csv", Data(), like=like))[1].tolist() == [1]
    source = open_source("t.csv", Data(), like=like, target=False)
    assert every(source)[0].tolist() == [[1, 2], [3, 4]]
    assert every(source)[1].shape == (2, 0)
    assert source.place(0, None) == "t.csv: line 2"


def test_csv_like_by_number(write):
    write("t.csv", "1,2,3,4\n5,6,7,8\n")
    write("more.csv", "1,9,2,3,4\n5,9,6,7,8\n")
    for name, target in (("t.csv", ""), ("more.csv", 1)):
        source = open_source(name, Data(target=target), like=LIKE, target=False)
        assert every(source)[0].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
        assert every(source)[1].shape == (2, 0)


@given(st.lists(st.tuples(FLOATS, FLOATS, FLOATS), min_size=1, max_size=20), st.booleans(), st.booleans())
def test_csv_round_trip(tmp_path_factory, table, header, zipped):
    path = tmp_path_factory.mktemp("csv") / ("t.csv.gz" if zipped else "t.csv")
    text = "a,b,c\n" * header + "".join(",".join(map(repr, row)) + "\n" for row in table)
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    x, y = every(open_source(str(path), Data()))
    assert x.tobytes() == np.array(table)[:, :2].tobytes()
    assert y.tobytes() == np.array(table)[:, 2].tobytes()
