"""The parts of a run under MPI: loading, steps, evaluation, checks; the same on every rank and as in one process."""

import hashlib
import json
import os

import numpy as np
import pytest
from unit.steppers import make_stepper

from distbp.api import evaluate, predict, settings, train
from distbp.parallel.host import Host, open_host
from distbp.parallel.replicas import check_replicas
from distbp.parallel.world import AgreedRuntimeError, AgreedStopError, AgreedValueError, World, open_world
from distbp.training.evaluation import Evaluator
from distbp.training.problem import load
from distbp.training.signals import StopFlag
from distbp.training.step import END, FAILED, SAVE, STOP

pytestmark = pytest.mark.mpi

SMALL = {"data": {"source": "synthetic", "rows": 301, "features": 6, "outputs": 3, "test": 0.1},
         "network": {"widths": [9]}, "training": {"epochs": 3}}  # fmt: skip


def nothing(text):
    """Take what would be printed."""


def test_a_run_gives_the_same_result_on_every_rank(world, mpi_tmp_path):
    result = train(settings(SMALL), name="run", runs=mpi_tmp_path, quiet=True)
    told = world.exchange([result.sha256, result.step, result.validation.mean_cost, result.test.metrics])
    assert all(t == told[0] for t in told)
    assert result.reason == "epochs"
    lines = [json.loads(line) for line in (mpi_tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1.0, 2.0, 3.0]
    session = json.loads((mpi_tmp_path / "run" / "run.json").read_text())["sessions"][-1]
    assert session["ranks"] == world.size
    assert session["exit"] == "epochs"


def test_scaling_parts_and_fingerprint_are_those_of_one_process(world):
    for table in ({"data": {"scaling": "standard", "test": 0.2}}, {"data": {"scaling": "minmax", "validation": 0.0}}):
        wanted = settings(table).with_shards(world.size)
        here, alone = load(wanted, world, nothing, StopFlag()), load(wanted, World(None), nothing, StopFlag())
        assert here.fingerprint == alone.fingerprint
        assert here.x_scaling.shift.tobytes() == alone.x_scaling.shift.tobytes()
        assert here.x_scaling.factor.tobytes() == alone.x_scaling.factor.tobytes()
        held = world.exchange(len(here.training.share))
        assert sum(held) == here.training.n_rows == alone.training.n_rows


def test_data_read_where_it_lies_gives_the_bytes_of_data_in_memory(world, mpi_tmp_path):
    found = {}
    for memory in (0, 100):
        table = {**SMALL, "data": {**SMALL["data"], "memory": memory}}
        found[memory] = train(
            settings(table), name=f"memory{memory}", runs=mpi_tmp_path, quiet=True
        ).model.theta.tobytes()
    assert found[0] == found[100]


def test_evaluation_is_that_of_one_process_to_the_last_bit(world):
    wanted = settings({**SMALL, "data": {**SMALL["data"], "task": "regression"}}).with_shards(world.size)
    found = []
    for where in (world, World(None)):
        problem = load(wanted, where, nothing, StopFlag())
        theta = np.linspace(-1, 1, problem.network.layout.n_parameters, dtype=np.float32)
        evaluator = Evaluator(where, problem.network, problem.shape, problem.y_scaling, wanted.n_shards)
        e = evaluator.evaluate(theta, problem.validation, StopFlag())
        found.append([e.rows, e.mean_cost, e.metrics])
    assert found[0] == found[1]


def test_an_evaluation_ends_on_all_ranks_when_one_is_asked_to_stop(world):
    wanted = settings(SMALL).with_shards(world.size)
    problem = load(wanted, world, nothing, StopFlag())
    evaluator = Evaluator(world, problem.network, problem.shape, problem.y_scaling, wanted.n_shards)
    theta = np.zeros(problem.network.layout.n_parameters, np.float32)
    stop = StopFlag()
    if world.rank == world.size - 1:
        stop.name = "SIGTERM"
    assert evaluator.evaluate(theta, problem.validation, stop) is None


def test_resuming_a_finished_run_changes_nothing(world, mpi_tmp_path):
    first = train(settings(SMALL), name="run", runs=mpi_tmp_path, quiet=True)
    again = train(resume="run", runs=mpi_tmp_path, quiet=True)
    assert (again.sha256, again.step) == (first.sha256, first.step)


def test_more_epochs_after_the_end_give_the_bits_of_a_longer_run(world, mpi_tmp_path):
    train(settings(SMALL), name="short", runs=mpi_tmp_path, quiet=True)
    longer = train(resume="short", runs=mpi_tmp_path, overrides={"training.epochs": 5}, quiet=True)
    whole = train(settings(SMALL, {"training.epochs": 5}), name="whole", runs=mpi_tmp_path, quiet=True)
    assert longer.model.theta.tobytes() == whole.model.theta.tobytes()
    assert longer.sha256 == whole.sha256


def test_predict_and_evaluate_through_the_api(world, mpi_tmp_path):
    result = train(settings(SMALL), name="run", runs=mpi_tmp_path, quiet=True)
    found = evaluate("run", runs=mpi_tmp_path)
    assert found["validation"].mean_cost == result.validation.mean_cost
    assert found["test"].metrics == result.test.metrics
    x = np.linspace(-1, 1, 60).reshape(10, 6)
    answers, outputs = predict("run", x, runs=mpi_tmp_path), predict("run", x, runs=mpi_tmp_path, kind="probabilities")
    if world.rank == 0:
        assert answers.tolist() == [result.model.shape.classes[k] for k in outputs.argmax(axis=1)]
        np.testing.assert_allclose(outputs.sum(axis=1), 1, rtol=1e-5)
    else:
        assert answers is None


def test_bad_data_on_one_ranks_rows_is_the_same_error_everywhere(world, mpi_tmp_path):
    if world.rank == 0:
        x = np.ones((64, 3))
        x[60, 1] = np.inf  # in the last shard
        np.savez(mpi_tmp_path / "bad.npz", x=x, y=np.arange(64) % 2)
    world.exchange(None)
    source = str(mpi_tmp_path / "bad.npz")
    with pytest.raises(AgreedValueError, match=r"row 60, column 1: expected a finite number, got inf"):
        train(settings({"data": {"source": source, "validation": 0}}), name="bad", runs=mpi_tmp_path, quiet=True)
    assert not (mpi_tmp_path / "bad").exists()


def test_settings_that_do_not_fit_the_ranks_are_the_same_error_everywhere(world, mpi_tmp_path):
    if world.size == 1:
        pytest.skip("one rank fits any number of shards")
    with pytest.raises(AgreedValueError, match=f"expected at least as many shards as ranks \\({world.size}\\), got 1"):
        train(settings({"data": {"shards": 1}}), name="few", runs=mpi_tmp_path, quiet=True)


@pytest.mark.parametrize("rows", [1, 3, 9, 17])
def test_fewer_rows_than_shards_or_hardly_more_train_without_a_hang(world, mpi_tmp_path, rows):
    data = {"source": "synthetic", "rows": rows, "features": 2, "outputs": 2, "validation": 0}
    table = {"data": data, "network": {"widths": [3]}, "training": {"epochs": 2}}
    result = train(settings(table), name="few", runs=mpi_tmp_path, quiet=True)
    assert result.reason == "epochs"
    line = json.loads((mpi_tmp_path / "few" / "journal.jsonl").read_text().splitlines()[0])
    assert np.isfinite(line["cost"])


def test_a_replica_that_differs_is_named(world):
    theta = np.ones(1000, np.float32)
    host = open_host(world, False, 1, False, lambda host: {}, print)[0]  # each rank keeps its own
    check_replicas(host, [theta], 5)
    if world.size == 1:
        return
    if world.rank == 1:
        theta[7] = np.nextafter(np.float32(1), np.float32(2))  # one bit
    with pytest.raises(AgreedRuntimeError) as caught:
        check_replicas(host, [theta], 6)
    note = " (there is no majority: rank 0 may be the wrong one)" if world.size == 2 else ""
    assert str(caught.value) == (
        f"step 6: expected the same theta and rule state on all ranks, got others on rank 1 of {world.size}{note}. "
        "Nothing was saved since; check that machine's memory and resume."
    )


def test_hosts_are_compared_by_their_first_ranks(world):
    if world.size != 4:
        pytest.skip("two hosts of two ranks")
    host = Host(world, world.comm.Split(world.rank // 2), world.comm.Split(world.rank % 2), 1, False)
    theta = np.zeros(1000, np.float32)  # the second rank's is never read: it is the same memory in a run
    theta[7] = world.rank % 2 * (world.rank + 1)
    state = np.ones(10)
    check_replicas(host, [theta, state], 5)
    if world.rank == 2:
        state[9] = np.nextafter(1, 2)
    with pytest.raises(AgreedRuntimeError) as caught:
        check_replicas(host, [theta, state], 6)
    assert str(caught.value) == (
        "step 6: expected the same theta and rule state on all ranks, got others on rank 2, 3 of 4 (there is no "
        "majority: rank 0 may be the wrong one). Nothing was saved since; check that machine's memory and resume."
    )


@pytest.mark.parametrize("share", [False, True])
def test_what_one_rank_has_to_say_reaches_all(world, share):
    stepper, problem = make_stepper(SMALL, world=world, share=share)
    last = world.rank == world.size - 1
    said = [0, STOP * last, SAVE * (world.rank == 0) | STOP * last, END, FAILED * last | SAVE, 0]
    expected = [0, STOP, SAVE | STOP, END, FAILED | SAVE, 0]
    for step, (flags, of_all) in enumerate(zip(said, expected, strict=True)):
        totals = stepper.take(step, 0.01, flags)
        assert totals.flags & (STOP | SAVE | END | FAILED) == of_all
        assert totals.rows == problem.batches.total(step)


@pytest.mark.parametrize("features", [2, 3, 4])
def test_tiny_products_give_the_bytes_of_one_process(world, features):
    """Where a few numbers are equal by chance, products of several shards may look as if they could be joined."""
    of_ranks, of_one = [], []
    for seed in range(8):
        table = {"data": {"source": "synthetic", "task": "regression", "rows": 300, "features": features, "outputs": 1,
                          "batch_size": 8, "shards": 8},
                 "network": {"widths": []}, "training": {"seed": seed}}  # fmt: skip
        for where, found in ((world, of_ranks), (World(None), of_one)):
            stepper, problem = make_stepper(table, world=where, share=False)
            for step in range(problem.batches.steps_per_epoch):
                stepper.take(step, 0.05, 0)
            found.append(hashlib.sha256(stepper.theta.tobytes()).hexdigest())
    assert of_ranks == of_one


def test_only_the_processes_that_the_launcher_started_are_the_world(world):
    if world.comm:
        assert world.size == int(os.environ.get("PMI_SIZE") or os.environ.get("OMPI_COMM_WORLD_SIZE") or 1)


def test_arrays_in_memory_train_like_the_same_rows_in_a_file(world, mpi_tmp_path):
    x = np.arange(90.0).reshape(30, 3) % 7
    y = np.arange(30) % 2
    found = train(settings({"training": {"epochs": 2}}), arrays=(x, y), name="memory", runs=mpi_tmp_path, quiet=True)
    if world.rank == 0:
        np.savez(mpi_tmp_path / "rows.npz", x=x, y=y)
    world.exchange(None)
    source = {"data": {"source": str(mpi_tmp_path / "rows.npz")}, "training": {"epochs": 2}}
    assert found.sha256 == train(settings(source), name="file", runs=mpi_tmp_path, quiet=True).sha256
    again = train(arrays=(x, y), resume="memory", runs=mpi_tmp_path, overrides={"training.epochs": 3}, quiet=True)
    assert again.step > found.step
    with pytest.raises(AgreedValueError, match="expected the rows that the run was started on, got others from memory"):
        train(arrays=(x + 1, y), resume="memory", runs=mpi_tmp_path, quiet=True)


@pytest.mark.parametrize("cut", [3, 5, 7, 11])
def test_a_run_cut_by_a_limit_goes_on_as_if_it_had_not_been(world, mpi_tmp_path, cut):
    """A limit between two validations validates once more, for its own end only: early stopping and bits stay."""
    table = {"data": {"source": "synthetic", "rows": 300, "features": 5, "outputs": 3}, "network": {"widths": [8]},
             "descent": {"learning_rate": 0.05}, "checkpoint": {"every": "1 steps", "keep": 99},
             "training": {"epochs": 40, "patience": 3, "validate_every": 2}}  # fmt: skip
    whole = train(settings(table), name="whole", runs=mpi_tmp_path, quiet=True)
    assert whole.reason == "early stopping"
    assert whole.model_step < whole.step
    part = train(settings(table, {"training.steps": cut}), name="part", runs=mpi_tmp_path, quiet=True)
    assert (part.reason, part.step, part.validation.rows) == ("steps", cut, whole.validation.rows)
    rest = train(resume="part", runs=mpi_tmp_path, overrides={"training.steps": 0}, quiet=True)
    assert (rest.sha256, rest.step, rest.model_step) == (whole.sha256, whole.step, whole.model_step)
    if world.rank == 0:
        files = [
            {p.name: p.read_bytes() for p in (mpi_tmp_path / name / "checkpoints").iterdir()}
            for name in ("whole", "part")
        ]
        assert files[0] == files[1]
    world.exchange(None)


def test_the_last_step_is_the_model_where_it_is_the_best(world, mpi_tmp_path):
    result = train(settings(SMALL, {"training.steps": 2}), name="short", runs=mpi_tmp_path, quiet=True)
    assert (result.step, result.model_step) == (2, 2)


def test_the_world_can_be_opened_as_often_as_a_notebook_likes(world):
    first = open_world()
    for _ in range(3000):
        assert open_world().size == first.size


def test_a_kind_of_answer_that_the_model_has_not_is_refused(world, mpi_tmp_path):
    train(settings(SMALL), name="run", runs=mpi_tmp_path, quiet=True)
    with pytest.raises(AgreedValueError) as caught:
        predict("run", [[0.0] * 6], runs=mpi_tmp_path, kind="values")
    assert str(caught.value) == (
        "--as: expected classes or probabilities of a classification model, got values. Leave it out."
    )


def test_being_asked_to_stop_while_reading_ends_all_ranks(world):
    stop = StopFlag()
    if world.rank == world.size - 1:
        stop.name = "SIGTERM"
    with pytest.raises(AgreedStopError) as caught:
        load(settings(SMALL).with_shards(world.size), world, nothing, stop)
    assert str(caught.value).startswith("stopped by SIGTERM while reading data, before any step")


def test_the_length_of_a_cosine_run_is_fixed(world, mpi_tmp_path):
    train(settings(SMALL, {"descent.schedule": "cosine"}), name="run", runs=mpi_tmp_path, quiet=True)
    with pytest.raises(AgreedValueError, match="training.epochs: expected it to stay with descent.schedule = cosine"):
        train(resume="run", runs=mpi_tmp_path, overrides={"training.epochs": 9}, quiet=True)
