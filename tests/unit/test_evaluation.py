"""Evaluation, predicting and what rank 0 says, in one process: against plain numpy."""

import io
import json
import sys

import numpy as np
import pytest

from distbp.api import Model, evaluate, predict, settings, train
from distbp.coordinator.environment import differences, environment
from distbp.coordinator.progress import Progress
from distbp.data.part import Kept, Part
from distbp.data.scaling import Scaling
from distbp.data.shards import shares
from distbp.data.source import open_source
from distbp.settings import Data
from distbp.training.evaluation import Evaluation
from distbp.training.report import report


@pytest.fixture(scope="module")
def regression(tmp_path_factory):
    """Return (folder, x, y, result) of a small regression with two outputs, far from zero."""
    folder = tmp_path_factory.mktemp("regression")
    random = np.random.default_rng(1)
    x = random.uniform(-1, 1, (400, 3))
    y = np.stack([1000 + 5 * x[:, 0] - x[:, 1], x[:, 2] ** 2], axis=1)
    np.savez(folder / "all.npz", x=x, y=y)
    table = {"data": {"source": str(folder / "all.npz"), "target_scaling": "standard", "test": 0.1},
             "network": {"dtype": "float64", "widths": [16]}, "descent": {"learning_rate": 0.02}, "training": {"epochs": 40}}  # fmt: skip
    return folder, x, y, train(settings(table), name="run", runs=folder, quiet=True)


def test_regression_metrics_are_those_of_numpy(regression):
    folder, x, y, result = regression
    found = evaluate("run", str(folder / "all.npz"), runs=folder)["data"]
    e = result.model.outputs(x) - y
    assert found.rows == 400
    assert found.metrics["rmse"] == pytest.approx(np.sqrt((e**2).mean()), rel=1e-12)
    assert found.metrics["mae"] == pytest.approx(np.abs(e).mean(), rel=1e-12)
    r2 = 1 - (e**2).sum(axis=0) / ((y - y.mean(axis=0)) ** 2).sum(axis=0)
    assert found.metrics["r2"] == pytest.approx(r2.mean(), rel=1e-9)
    assert 0.9 < found.metrics["r2"] < 1
    assert found.confusion is None
    scaled = result.model.y_scaling.apply(y, "float64") - result.model.y_scaling.apply(
        result.model.outputs(x), "float64"
    )
    assert found.mean_cost == pytest.approx((scaled**2).sum(axis=1).mean() / 2, rel=1e-9)


def test_values_are_predicted_in_their_own_units(regression):
    folder, x, _, _ = regression
    found = predict("run", x, runs=folder)
    assert found.dtype == np.float64
    assert abs(found[:, 0].mean() - 1000) < 5
    assert found.tobytes() == predict(folder / "run", str(folder / "all.npz")).tobytes()
    assert found.tobytes() == Model.load(folder / "run" / "model.safetensors").predict(x).tobytes()


def test_a_rows_prediction_does_not_depend_on_the_rows_after_it(regression):
    _, x, _, result = regression
    whole = result.model.outputs(x)
    for n in (1, 2, 7, 256, 300, 399):
        assert result.model.outputs(x[:n]).tobytes() == whole[:n].tobytes()


def test_x_of_another_width_is_an_error(regression):
    with pytest.raises(ValueError) as caught:
        regression[3].model.outputs(np.ones((5, 4)))
    assert str(caught.value) == (
        "x: expected rows of 3 features, got an array of shape (5, 4). Give one row a sample, as in training."
    )


def test_nothing_predicts_to_nothing(regression):
    assert regression[3].model.predict(np.empty((0, 3))).shape == (0, 2)


def test_classes_confusion_and_accuracy_agree(tmp_path):
    result = train(settings({"training": {"epochs": 4}}), name="run", runs=tmp_path, quiet=True)
    found = result.validation
    assert found.confusion.sum() == found.rows
    assert found.metrics["accuracy"] == pytest.approx(np.trace(found.confusion) / found.rows)
    whole = evaluate("run", "digits", runs=tmp_path)["data"]
    source = open_source("digits", Data())
    x, y = source.read(np.arange(source.n_rows))
    answers = result.model.predict(x)
    assert whole.metrics["accuracy"] == pytest.approx((answers == np.array(source.classes)[y]).mean())
    assert whole.confusion[3, 3] == np.count_nonzero((answers == "3") & (y == 3))


def test_labels_are_counted_one_by_one(tmp_path):
    table = {
        "data": {"source": "synthetic", "rows": 300, "features": 4, "outputs": 3, "task": "labels"},
        "training": {"epochs": 10},
    }
    result = train(settings(table), name="run", runs=tmp_path, quiet=True)
    assert 0.7 < result.validation.metrics["accuracy"] <= 1
    source = open_source("synthetic", settings(table).data)
    x, y = source.read(np.arange(300))
    answers = result.model.predict(x)
    assert answers.dtype == np.int64
    assert evaluate("run", "synthetic", runs=tmp_path)["data"].metrics["accuracy"] == pytest.approx(
        (answers == y).mean()
    )


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_a_part_gives_the_same_rows_from_memory_and_from_where_they_lie(memory):
    data = Data(source="synthetic", rows=50, features=3, outputs=2)
    source = open_source("synthetic", data)
    share = shares(50, 0, (0.3, 0.0), range(2, 6), 8)[0]
    scaling = Scaling(np.array([0.5, 0.0, -1.0]), np.array([2.0, 1.0, 0.5]))
    part = Part(source, share, scaling, Scaling(np.zeros(1), np.ones(1)), np.dtype("float32"), memory)
    assert part.kept is bool(memory)
    positions = np.array([3, 0, len(share) - 1, 3])
    x, y = np.empty((4, 3), np.float32), np.empty((4, 2), np.float32)
    part.fill(positions, x, y)
    raw, classes = source.read(share.at(positions))
    assert x.tobytes() == scaling.apply(raw, "float32").tobytes()
    assert y.tolist() == np.eye(2, dtype=np.float32)[classes].tolist()


def test_rows_read_once_are_kept_as_they_are():
    source = open_source("synthetic", Data(source="synthetic", rows=50, features=3, outputs=2))
    kept = Kept(source, np.array([4, 7, 30, 49]))
    x, y = kept.read(np.array([49, 4]))
    assert x.tobytes() == source.read(np.array([49, 4]))[0].tobytes()
    assert y.tolist() == source.read(np.array([49, 4]))[1].tolist()


def test_a_value_that_is_not_finite_is_null_in_json():
    found = Evaluation(3, float("inf"), {"r2": float("nan"), "mae": 1.5}, None, ())
    assert json.dumps(found.to_json()) == '{"cost": null, "r2": null, "mae": 1.5}'


def test_wide_confusion_tables_are_left_out(capsys):
    classes = tuple(map(str, range(21)))
    report({"validation": Evaluation(9, 0.5, {"accuracy": 1.0}, np.eye(21, dtype=np.int64), classes), "test": None})
    assert capsys.readouterr().out == (
        "validation: 9 rows, cost 0.5, accuracy 1\nconfusion table: 21 classes, more than 20; left out\n"
    )


def test_progress_says_about_twenty_lines_and_the_last(capsys):
    progress = Progress(True)
    progress.start(0, 1000, 10)
    for epoch in range(1, 101):
        progress.epoch(epoch * 10, f"epoch {epoch}", "", last=epoch == 100)
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split()[1]) for line in lines] == list(range(5, 101, 5))
    assert lines[0].endswith(" left")


def test_a_quiet_rank_says_nothing(capsys):
    progress = Progress(False)
    progress.start(0, 10, 1)
    progress.step(1, 0.5, 100.0)
    progress.epoch(1, "epoch", "", last=True)
    progress.say("text")
    assert capsys.readouterr().out == ""


def test_a_closed_standard_output_is_said_once_and_then_left_alone(monkeypatch, capsys):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

        def fileno(self):
            raise OSError

    progress = Progress(True)
    monkeypatch.setattr(sys, "stdout", Closed())
    progress.say("one")
    progress.say("two")
    assert not progress.speaks


def test_what_the_bits_depend_on_is_compared():
    now = environment()
    assert differences(now, now) == []
    assert differences(now, {}) == []
    before = {**now, "numpy": "1.0", "blas_kernel": "Other", "python": "2"}
    assert differences(now, before) == [
        f"blas_kernel {now['blas_kernel']} (was Other)",
        f"numpy {now['numpy']} (was 1.0)",
    ]
