"""evaluate and predict: the same bytes alone and on any number of ranks, for every task, and the right answers."""

import csv
import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from commands import Place, about, places

N = 700


def table(seed=0):
    """Return features and a target that a small network learns: y = 500 + 200 x0 - 100 x1, and the kind of row."""
    x = np.random.default_rng(seed).normal(size=(N, 4))
    y = 500 + 200 * x[:, 0] - 100 * x[:, 1]
    return x, y


def write_csv(path, x, names, *columns):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([*map(repr, row.tolist()), *rest] for row, *rest in zip(x, *columns, strict=True))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a place with data and the runs: values, kinds, marks."""
    for place in places(tmp_path_factory.mktemp("trained")):
        x, y = table()
        kinds = np.where(y > 600, "high", np.where(y > 400, "middle", "low"))
        names = ["w", "x", "y", "z"]
        write_csv(place.path / "values.csv", x, [*names, "price"], map(repr, y.tolist()))
        write_csv(place.path / "kinds.csv", x, [*names, "kind"], kinds)
        np.savez(place.path / "marks.npz", x=x, y=np.column_stack([x[:, 0] > 0, x[:, 1] > 0.5]).astype(np.uint8))
        write_csv(place.path / "rows.csv", x, names)
        for run, source, *options in (
            ("values", "values.csv", "--data.target_scaling", "standard"),
            ("kinds", "kinds.csv"),
            ("marks", "marks.npz", "--data.task", "labels"),
        ):
            shared = ("--network.widths", "16", "--descent.learning_rate", "0.02", "--data.test", "0.1")
            done = place.run("--data.source", source, "--name", run, *shared, *options, "--training.epochs", 15)
            assert done.code == 0, done.err
        yield place


def agreed(place: Place, *arguments, command="predict", on=(3,)):
    """Run a command alone and on some numbers of ranks; return the one output of all."""
    alone = place.run(*arguments, command=command)
    assert (alone.code, alone.err) == (0, "")
    for ranks in on:
        done = place.run(*arguments, command=command, ranks=ranks)
        assert done.code == 0, done.err
        assert done.out == alone.out
    return alone.out


def columns(text):
    header, *lines = csv.reader(io.StringIO(text))
    return header, np.array(lines)


@pytest.mark.parametrize("run", ["values", "kinds", "marks"])
def test_evaluate_is_the_same_on_any_number_of_ranks_and_as_training_said(trained, run):
    found = json.loads(agreed(trained, run, "--json", command="evaluate", on=(2, 3)))
    assert sorted(found) == ["test", "validation"]
    assert found["validation"]["rows"] + found["test"]["rows"] < N // 2
    best = min(trained.journal(run), key=lambda entry: entry["validation"]["cost"])["validation"]
    assert best == {key: value for key, value in found["validation"].items() if key != "rows"}
    told = trained.run(run, command="evaluate").out
    assert told.startswith(f"validation: {found['validation']['rows']} rows, cost {best['cost']:.6g}")


def test_evaluate_other_data(trained):
    x, y = table(1)
    write_csv(trained.path / "later.csv", x, ["w", "x", "y", "z", "price"], map(repr, y.tolist()))
    found = json.loads(agreed(trained, "values", "--data", "later.csv", "--json", command="evaluate"))
    assert found["data"]["rows"] == N
    assert found["data"]["r2"] > 0.9


def test_values_are_in_the_targets_own_units(trained):
    header, values = columns(agreed(trained, "values", "rows.csv", on=(2, 3)))
    assert header == ["value"]
    y = table()[1]
    errors = values[:, 0].astype(float) - y
    assert abs(errors).mean() < 0.2 * y.std()  # 500 +- 224, though the network is trained on numbers near 0 +- 1
    found = json.loads(trained.run("values", "--data", "values.csv", "--json", command="evaluate").out)["data"]
    assert abs(errors).mean() == pytest.approx(found["mae"], rel=1e-6)
    assert (errors**2).mean() ** 0.5 == pytest.approx(found["rmse"], rel=1e-6)


def test_classes_and_probabilities(trained):
    header, classes = columns(agreed(trained, "kinds", "rows.csv"))
    assert header == ["class"]
    names, text = columns(agreed(trained, "kinds", "rows.csv", "--as", "probabilities"))
    assert names == ["high", "low", "middle"]
    probabilities = text.astype(float)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(N), abs=1e-5)
    assert (np.array(names)[probabilities.argmax(axis=1)] == classes[:, 0]).all()
    found = json.loads(trained.run("kinds", "--data", "kinds.csv", "--json", command="evaluate").out)["data"]
    truth = columns((trained.path / "kinds.csv").read_text())[1][:, -1]
    assert found["accuracy"] == (truth == classes[:, 0]).mean() > 0.8


def test_labels(trained):
    _, marks = columns(agreed(trained, "marks", "marks.npz"))
    _, text = columns(agreed(trained, "marks", "marks.npz", "--as", "probabilities"))
    assert set(marks.ravel()) == {"0", "1"}
    assert ((text.astype(float) > 0.5).astype(int).astype(str) == marks).all()


@pytest.mark.parametrize(("run", "ranks"), [("values", None), ("values", 3), ("kinds", 2)])
def test_to_a_file(trained, tmp_path, run, ranks):
    text = trained.run(run, "rows.csv", command="predict").out
    for ending in (".csv", ".npy"):
        out = tmp_path / f"out{ending}"
        done = trained.run(run, "rows.csv", "-o", out, command="predict", ranks=ranks)
        assert (done.code, done.out) == (0, "")
        if ending == ".csv":
            assert out.read_text() == text
        else:
            array = np.load(out, allow_pickle=False)
            assert (array.astype(str).reshape(N, -1) == columns(text)[1]).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.npy"]


def test_a_run_by_name_by_folder_and_by_file(trained):
    text = trained.run("kinds", "rows.csv", command="predict").out
    for run in ("runs/kinds", trained.folder("kinds"), "runs/kinds/model.safetensors"):
        assert trained.run(run, "rows.csv", command="predict").out == text
    step = about(trained.folder("kinds") / "model.safetensors")["step"]
    checkpoint = trained.folder("kinds") / "checkpoints" / f"step-{step:08d}.safetensors"
    assert trained.run(checkpoint, "rows.csv", command="predict").out == text
    evaluated = trained.run("kinds", "--json", command="evaluate").out
    assert trained.run(checkpoint, "--json", command="evaluate").out == evaluated
    shutil.copytree(trained.folder("kinds"), trained.path / "runs" / "unfinished")
    (trained.folder("unfinished") / "model.safetensors").unlink()
    assert trained.run("unfinished", "rows.csv", command="predict", ranks=2).code == 0


def test_a_row_does_not_depend_on_the_rest_of_its_file(trained):
    x, _ = table()
    whole = trained.run("values", "rows.csv", command="predict").out.splitlines()
    x[100:] = np.random.default_rng(5).normal(size=x[100:].shape)
    write_csv(trained.path / "part.csv", x[:301], ["w", "x", "y", "z"])
    part = trained.run("values", "part.csv", command="predict", ranks=2).out.splitlines()
    assert len(part) == 302
    assert part[:101] == whole[:101]
    write_csv(trained.path / "other.csv", x[:301, ::-1], ["z", "y", "x", "w"])  # columns go by their names
    assert trained.run("values", "other.csv", command="predict").out.splitlines() == part


MISTAKES = {
    ("gone", "rows.csv"): "gone: expected a run's name in runs, or its folder, got neither. See ls runs.",
    ("kinds", "gone.csv"): "gone.csv: expected digits, synthetic, or a .csv, .tsv, .txt, .npy, .npz or IDX file, "
    "got no file of that name. Check the path.",
    ("kinds", "rows.csv", "--as", "values"): "--as: expected classes or probabilities of a classification model, "
    "got values. Leave it out.",
    ("kinds", "rows.csv", "-o", "out.txt"): "--output: expected a name that ends in .csv or .npy, got 'out.txt'. "
    "Rename it.",
    ("none.safetensors", "rows.csv"): "none.safetensors: expected a checkpoint or model file, got nothing there. "
    "Check the path.",
    ("kinds", "nan.csv"): "nan.csv: line 602, column 'y': expected a number, got a missing value ('nan'). "
    "Fill it in, drop the line, or set data.allow_nonfinite = true.",
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_mistakes(trained, arguments):
    x, _ = table()
    x[600, 2] = np.nan
    write_csv(trained.path / "nan.csv", x, ["w", "x", "y", "z"])
    for ranks in (None, 2):
        done = trained.run(*arguments, command="predict", ranks=ranks)
        assert (done.code, done.out) == (2, "")
        line = done.err[done.err.index("distbp: ") + 8 :].splitlines()[0]
        assert line.replace(" on rank 1 of 2", "") == MISTAKES[arguments]
        assert done.err.count("distbp: ") == 1


def test_a_damaged_model_is_exit_1(trained, tmp_path):
    data = bytearray((trained.folder("kinds") / "model.safetensors").read_bytes())
    data[-5] ^= 16
    (tmp_path / "bad.safetensors").write_bytes(data)
    for command in ("predict", "evaluate"):
        done = trained.run(
            tmp_path / "bad.safetensors", *["rows.csv"][: command == "predict"], command=command, ranks=2
        )
        assert done.code == 1
        assert done.err.count("distbp: ") == 1
        assert "bad.safetensors: expected its SHA-256 to fit its contents, got a damaged file. Use another." in done.err


@pytest.mark.parametrize("ending", ["csv", "npy"])
def test_a_full_disk_leaves_no_half_of_a_file(trained, tmp_path, ending):
    driver = """\
import resource, sys
from distbp import command, predict
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
sys.exit(command.run(predict.predict_command))
"""
    done = trained.run("values", "rows.csv", "-o", tmp_path / f"out.{ending}", driver=driver)
    assert done.code == 1
    assert "File too large" in done.err
    assert f"out.{ending}" in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_leaves(trained):
    """predict | head -1: no traceback, no message that frightens."""
    command = [sys.executable, "-m", "distbp.predict", "kinds", "rows.csv"]
    process = subprocess.Popen(command, cwd=trained.path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) in (0, 1)
    assert error == b""
