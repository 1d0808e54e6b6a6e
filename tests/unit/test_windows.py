"""Windows: each step gets the rows that the order names, whatever is gathered at once and wherever the rows lie."""

from __future__ import annotations

import numpy as np
import pytest
from steppers import make_stepper

from distbp.data import windows
from distbp.data.order import Order


def table(rows=203, batch=64, memory=64, task="classification", **data):
    return {"data": {"source": "synthetic", "rows": rows, "features": 7, "outputs": 3, "validation": 0.2,
                     "batch_size": batch, "memory": memory, "task": task, **data},
            "network": {"widths": [5]}}  # fmt: skip


def brought(table_, steps):
    """Return copies of what each step gets: the rows of x and of y that count, by shard."""
    stepper, _ = make_stepper(table_)
    found = []
    for step in steps:
        x, y, counts = stepper.space.windows.bring(step)
        found.append([(x[i, :n].tolist(), y[i, :n].tolist()) for i, n in enumerate(counts)])
    return found


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize(("rows", "batch"), [(203, 64), (203, 8), (1000, 64), (40, 64), (203, "all"), (19, 8)])
def test_each_row_once_an_epoch_in_its_order(rows, batch, task):
    stepper, problem = make_stepper(table(rows, batch, task=task))
    part, batches = problem.training, problem.batches
    starts = part.share.starts
    for epoch in range(3):
        seen = [[] for _ in range(8)]
        for step in range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch):
            x, y, counts = stepper.space.windows.bring(step)
            assert sum(counts) == batches.total(step)
            for i, n in enumerate(counts):
                seen[i].extend(zip(x[i, :n].tolist(), y[i, :n].tolist(), strict=True))
        for i in range(8):
            n = starts[i + 1] - starts[i]
            order = np.arange(n)
            if batch != "all" and batches.steps_per_epoch > 1:
                most = -(-batches.n_rows // 8)
                order = Order(0, range(i, i + 1), [n], most).rows(epoch, 0, n)[0]
            expected_x = np.empty((n, 7), np.float32)
            expected_y = np.empty((n, 3), np.float32)
            part.fill(order + starts[i], expected_x, expected_y)
            assert [x for x, _ in seen[i]] == expected_x.tolist()
            assert [y for _, y in seen[i]] == expected_y.tolist()


@pytest.mark.parametrize("window", [1, 3000, 1 << 30])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_windows_and_memory_change_nothing(window, task, monkeypatch):
    steps = [0, 1, 2, 3, 4, 5, 6, 11, 12, 40, 39, 2]  # also backwards, as no run goes
    expected = brought(table(task=task), steps)
    monkeypatch.setattr(windows, "WINDOW", window)
    assert brought(table(task=task), steps) == expected
    assert brought(table(task=task, memory=0), steps) == expected


@pytest.mark.parametrize("memory", [0, 64])
@pytest.mark.parametrize("batch", [8, "all"])
def test_fewer_rows_than_shards(memory, batch):
    found = brought(table(5, batch, memory, validation=0.0), range(3))
    assert [sum(len(x) for x, _ in of_step) for of_step in found] == [5, 5, 5]


def test_many_classes_are_kept_by_number():
    few = {"source": "synthetic", "rows": 500, "features": 7, "outputs": 40, "validation": 0.0}
    stepper, problem = make_stepper({"data": few, "network": {"widths": [5]}})
    assert problem.training._y.ndim == 1
    _, y, _ = stepper.space.windows.bring(0)
    assert (y.sum(axis=-1) == 1).all()


def test_what_goes_wrong_while_rows_are_brought_ahead_is_raised(monkeypatch):
    stepper, problem = make_stepper(table(memory=0))
    monkeypatch.setattr(windows, "WINDOW", 1)

    def broken(rows):
        raise OSError(5, "Input/output error", "rows.npy")

    def all_steps():
        for step in range(50):
            stepper.space.windows.bring(step)
            if step == 3:
                problem.training.source.read = broken

    with pytest.raises(OSError, match="rows.npy"):
        all_steps()
    assert stepper.space.windows.coming
