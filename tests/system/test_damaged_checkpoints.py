"""Damaged, foreign and newer checkpoints: each is named, the one before is used, and the end is the same bytes."""

import json
import shutil

import pytest
from commands import LONG, Place, about, places, sha256
from conftest import ends_at

ARGUMENTS = (*LONG, "--checkpoint.every", "5 steps", "--checkpoint.keep", "3", "--training.model", "last")
NEWEST = "step-00000030.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return the folder of a run with checkpoints after steps 20, 25 and 30, and what it gives when it goes on to 35."""
    for place in places(tmp_path_factory.mktemp("made")):
        assert place.run(*ARGUMENTS, *ends_at(30), "--name", "mine").code == 0
        shutil.copytree(place.folder("mine"), place.path / "kept")
        assert place.run("--resume", "mine", *ends_at(35)).code == 0
        yield place.path / "kept", place.hashes("mine")


@pytest.fixture
def run(here: Place, made):
    """Return the checkpoints' folder of a copy of that run."""
    shutil.copytree(made[0], here.folder("mine"))
    found = here.folder("mine") / "checkpoints"
    assert [path.name for path in here.checkpoints("mine")][-3:] == [
        "step-00000020.safetensors", "step-00000025.safetensors", NEWEST
    ]  # fmt: skip
    return found


def cut(size):
    return lambda data: data[: size if size >= 0 else len(data) + size]


def flipped(find, bit=0, shift=0):
    """Return a function that flips one bit of the byte `shift` after the first `find`."""

    def change(data):
        at = (data.index(find) if isinstance(find, bytes) else find % len(data)) + shift
        return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]

    return change


def padding(data):
    """Turn the last byte of the padded header into a line end's neighbour, or its last brace into another."""
    at = 7 + int.from_bytes(data[:8], "little")
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGES = {
    "empty": cut(0),
    "cut in the length": cut(5),
    "cut in the header": cut(100),
    "cut in the tensors": cut(-2000),
    "cut by one byte": cut(-1),
    "one byte more": lambda data: data + b"\0",
    "zeros": lambda data: bytes(len(data)),
    "text": lambda data: b"not a checkpoint at all\n",
    "length": flipped(1, 2),
    "length's highest bit": flipped(7, 7),
    "opening brace": flipped(8),
    "padding": padding,
    "a setting": flipped(b"learning_rate", 1, 20),
    "state": flipped(b'\\"state\\"', 1, 3),
    "sha256": flipped(b"sha256", 0, 20),
    "name of a tensor": flipped(b'"rule_', 0, 2),
    "dtype": flipped(b'"F32"', 0, 2),
    "theta": flipped(-9, 0),
    "theta's sign": flipped(-1, 7),
    "first tensor": flipped(-9000, 4),
    "key of the metadata": flipped(b"__metadata__", 0, 4),
    "key of ours": flipped(b'"distbp"', 0, 3),
    "key of the format": flipped(b'\\"format\\"', 0, 4),
    "number of the format": flipped(b'\\"format\\":1', 1, 11),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_is_named_and_the_one_before_used(here, run, made, damage):
    newest = run / NEWEST
    whole = newest.read_bytes()
    damaged = DAMAGES[damage](whole)
    assert damaged != whole
    newest.write_bytes(damaged)
    done = here.run("--resume", "mine", *ends_at(35))
    assert done.code == 0, done.err
    assert done.err.count("skipped: ") == done.err.count(f"skipped: runs/mine/checkpoints/{NEWEST}: expected ") == 1
    assert "\nresumed after step 25\n" in done.out
    assert here.hashes("mine") == made[1]
    assert newest.read_bytes() != damaged  # written again
    assert about(newest)["state"]["step"] == 30


def test_two_damaged_under_mpirun(here, run, made):
    for name, damage in ((NEWEST, "cut in the tensors"), ("step-00000025.safetensors", "theta")):
        (run / name).write_bytes(DAMAGES[damage]((run / name).read_bytes()))
    done = here.run("--resume", "mine", *ends_at(35), ranks=3)
    assert done.code == 0, done.err
    assert done.err.count("skipped: ") == 2
    assert done.err.count(f"skipped: runs/mine/checkpoints/{NEWEST}: expected a whole file, got a damaged one (") == 1
    assert done.err.count(
        "skipped: runs/mine/checkpoints/step-00000025.safetensors: expected its SHA-256 to fit its contents, "
        "got a damaged file. Use another.\n"
    ) == 1  # fmt: skip
    assert "\nresumed after step 20\n" in done.out
    assert here.hashes("mine") == made[1]


@pytest.mark.parametrize("ranks", [None, 2])
def test_all_damaged_is_exit_1(here, run, ranks):
    for path in here.checkpoints("mine"):
        path.write_bytes(path.read_bytes()[:-3])
    before = {path.name: sha256(path) for path in here.checkpoints("mine")}
    done = here.run("--resume", "mine", *ends_at(35), ranks=ranks)
    assert done.code == 1
    message = (
        f"distbp: runs/mine/checkpoints: expected one good checkpoint, got {len(before)} that cannot be used. "
        "Restore one from a copy, or start a new run.\n"
    )
    assert done.err.count(message) == 1
    assert all(f"skipped: runs/mine/checkpoints/{name}: " in done.err for name in before)
    assert {path.name: sha256(path) for path in here.checkpoints("mine")} == before


def test_after_damage_the_newest_are_kept_again(here, run):
    """Damaged files of later steps take no place among the kept ones."""
    (run / NEWEST).write_bytes(b"")
    (run / "step-00000025.safetensors").write_bytes(b"")
    assert here.run("--resume", "mine", "--checkpoint.every", "1 steps", *ends_at(24)).code == 0
    kept = [path.name for path in here.checkpoints("mine") if path.stat().st_size]
    assert set(kept) >= {f"step-000000{step}.safetensors" for step in (22, 23, 24)}


def test_a_checkpoint_of_another_network_is_named(here, run, made):
    arguments = (*ARGUMENTS, "--network.widths", "32,17")
    assert here.run(*arguments, *ends_at(30), "--name", "other").code == 0
    shutil.copy(here.checkpoints("other")[-1], run / "step-00000033.safetensors")
    done = here.run("--resume", "mine", *ends_at(35))
    assert done.code == 0, done.err
    assert done.err.count("skipped: ") == 1
    assert (
        "skipped: runs/mine/checkpoints/step-00000033.safetensors: expected a checkpoint of this run, got one of another "
        "(network.widths is [32, 17], not [32, 16]). Take it away.\n"
    ) in done.err
    assert "\nresumed after step 30\n" in done.out
    assert here.hashes("mine") == made[1]


@pytest.mark.parametrize("setting", [("--descent.learning_rate", "0.02"), ("--training.seed", "1")])
def test_a_checkpoint_of_other_settings_is_named(here, run, setting):
    assert here.run(*ARGUMENTS, *ends_at(30), "--name", "other", *setting).code == 0
    shutil.copy(here.checkpoints("other")[-1], run / "step-00000033.safetensors")
    done = here.run("--resume", "mine", *ends_at(35))
    assert done.code == 0, done.err
    key = setting[0].removeprefix("--")
    assert f"got one of another ({key} is {setting[1]}, not " in done.err


def test_a_checkpoint_of_another_step_than_its_name_says(here, run, made):
    shutil.copy(run / "step-00000020.safetensors", run / "step-00000033.safetensors")
    done = here.run("--resume", "mine", *ends_at(35))
    assert done.code == 0, done.err
    assert here.hashes("mine") == made[1]


def rewritten(path, change):
    """Change the plain values of a checkpoint, and its SHA-256 with them, as a newer distbp would write it."""
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    from distbp.coordinator.files import digest

    with safe_open(path, framework="numpy") as file:
        values = json.loads(file.metadata()["distbp"])
    tensors = load_file(path)
    values = change(values)
    values["sha256"] = digest(tensors, values)
    save_file(tensors, path, metadata={"distbp": json.dumps(values, sort_keys=True, separators=(",", ":"))})


@pytest.mark.parametrize("ranks", [None, 2])
def test_a_newer_format_says_what_to_install(here, run, ranks):
    rewritten(run / NEWEST, lambda values: {**values, "format": 2})
    before = here.all_hashes("mine")
    done = here.run("--resume", "mine", *ends_at(35), ranks=ranks)
    assert done.code == 2
    message = (
        f"distbp: runs/mine/checkpoints/{NEWEST}: expected format 1 or older, got 2. "
        "Install the distbp that wrote it.\n"
    )
    assert done.err.count(message) == 1
    assert here.all_hashes("mine") == before


def test_a_file_that_is_not_ours_is_named_and_passed_over(here, run, made):
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"weights": np.zeros(9)}, run / "step-00000033.safetensors")
    (run / "step-old.safetensors").write_text("a name that is none of ours")
    done = here.run("--resume", "mine", *ends_at(35))
    assert done.code == 0, done.err
    assert "runs/mine/checkpoints/step-00000033.safetensors: expected a file written by distbp, got another" in done.err
    assert here.all_hashes("mine").items() >= made[1].items()
    assert (run / "step-old.safetensors").read_text() == "a name that is none of ours"


def test_no_times_and_no_rank_counts_are_inside(here, run):
    values = about(run / NEWEST)
    assert sorted(values) == ["data", "fingerprint", "format", "kind", "network", "settings", "sha256", "state"]


@pytest.mark.parametrize("file", ["settings.toml", "run.json", "journal.jsonl"])
def test_damaged_texts(here, run, made, file):
    path = here.folder("mine") / file
    path.write_bytes(path.read_bytes()[:50] + b"\xff\x00")
    done = here.run("--resume", "mine", *ends_at(35))
    if file == "settings.toml":
        assert done.code == 2
        assert done.err.startswith("distbp: runs/mine/settings.toml: expected TOML, got: ")
    else:
        assert done.code == 0, done.err
        assert here.hashes("mine") == made[1]


def test_the_best_of_a_run_that_kept_only_the_last(here):
    """training.model may be changed with --resume, also to best, though the best step was not kept."""
    arguments = (*LONG, "--descent.learning_rate", "0.5", "--training.model", "last", "--checkpoint.keep", "1")
    assert here.run(*arguments, "--training.epochs", "6", "--name", "mine").code == 0
    state = about(here.checkpoints("mine")[-1])["state"]
    assert state["best_step"] < state["step"]
    done = here.run("--resume", "mine", "--training.model", "best")
    assert done.code == 0, done.err
    assert (here.folder("mine") / "model.safetensors").exists()
