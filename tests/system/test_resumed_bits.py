"""The same bytes on any number of ranks, also where a run is resumed on another number, also more than once."""

import pytest
from commands import LONG, STEP_DRIVER, places, sha256
from conftest import ends_at

ARGUMENTS = (*LONG, "--checkpoint.every", "11 steps", "--checkpoint.keep", "3", "--data.test", "0.1")
STEPS = 60


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Return what one process gives: every checkpoint and the model."""
    for place in places(tmp_path_factory.mktemp("alone")):
        assert place.run(*ARGUMENTS, *ends_at(STEPS), "--name", "mine").code == 0
        yield place.all_hashes("mine")


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_every_file_is_the_same_on_any_number_of_ranks(here, alone, ranks):
    done = here.run(*ARGUMENTS, *ends_at(STEPS), "--name", "mine", ranks=ranks)
    assert done.code == 0
    assert here.all_hashes("mine") == alone
    assert done.out.endswith(f"sha256 {alone['model.safetensors']}\n")
    assert len(alone) >= 4


@pytest.mark.parametrize(("first", "then"), [((2, 23), (3, STEPS)), ((3, 22), (None, STEPS)), ((None, 40), (4, STEPS))])
def test_resumed_on_another_number_of_ranks(here, alone, first, then):
    ranks, steps = first
    assert here.run(*ARGUMENTS, *ends_at(steps), "--name", "mine", ranks=ranks).code == 0
    assert sha256(here.folder("mine") / "model.safetensors") != alone["model.safetensors"]
    ranks, steps = then
    done = here.run("--resume", "mine", *ends_at(steps), ranks=ranks)
    assert done.code == 0
    assert f"resumed after step {first[1]}\n" in done.out
    assert here.hashes("mine").items() <= alone.items()


def test_resumed_twice_with_adam_in_the_middle_of_an_epoch(here, alone):
    assert here.run(*ARGUMENTS, *ends_at(7), "--name", "mine", ranks=3).code == 0
    assert here.run("--resume", "mine", *ends_at(31), ranks=2).code == 0
    assert here.run("--resume", "mine", *ends_at(STEPS)).code == 0
    assert here.hashes("mine").items() <= alone.items()


def test_the_journal_of_an_interrupted_run_is_that_of_an_unbroken_one(here):
    driver = STEP_DRIVER.format(code="if step == 30: os.kill(os.getpid(), signal.SIGTERM)")
    assert here.run(*ARGUMENTS, "--name", "mine", driver=driver).code == 75
    journal = here.folder("mine") / "journal.jsonl"
    journal.write_text(journal.read_text() + '{"step": 4')  # torn by a kill
    assert here.run("--resume", "mine", *ends_at(STEPS), ranks=2).code == 0
    assert here.run(*ARGUMENTS, *ends_at(STEPS), "--name", "other").code == 0
    mine, other = (
        [(entry["step"], entry["cost"], entry["validation"]) for entry in here.journal(name)]
        for name in ("mine", "other")
    )
    assert mine == other
    assert [step for step, _, _ in mine] == [12, 24, 36, 48, 60]


def test_other_data_than_the_run_was_started_on_is_refused(here):
    assert here.run(*ARGUMENTS, *ends_at(5), "--name", "mine").code == 0
    before = here.all_hashes("mine")
    done = here.run("--resume", "mine", "--data.source", "digits", *ends_at(10), ranks=2)
    assert done.code in (1, 2)
    assert "distbp: " in done.err
    assert here.all_hashes("mine") == before
