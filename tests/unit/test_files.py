"""Checkpoint files, the writer, the run's folder and the journal: complete or absent, verified, never pickled."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from distbp.coordinator import files
from distbp.coordinator.checkpoints import Checkpoints, listed, name_of, newest_good
from distbp.coordinator.folder import RunFolder

TENSORS = {"theta": np.linspace(0, 1, 100, dtype=np.float32), "rule_mean": np.arange(100.0), "empty": np.empty(0)}
ABOUT = {"kind": "checkpoint", "state": {"step": 3, "best_step": -1}, "text": "äß"}
STATE = {"state": {"best_step": -1}}


def test_what_is_written_is_read_back_to_the_last_bit(tmp_path):
    files.write(tmp_path / "a.safetensors", TENSORS, ABOUT)
    tensors, about = files.read(tmp_path / "a.safetensors")
    assert {n: (a.dtype, a.tobytes()) for n, a in tensors.items()} == {
        n: (a.dtype, a.tobytes()) for n, a in TENSORS.items()
    }
    assert {**ABOUT, "format": files.FORMAT, "sha256": about["sha256"]} == about
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_the_bytes_are_the_same_in_every_process(tmp_path):
    files.write(tmp_path / "here.safetensors", TENSORS, ABOUT)
    code = (
        "import numpy as np; from distbp.coordinator import files; from pathlib import Path\n"
        "t = {'empty': np.empty(0), 'rule_mean': np.arange(100.0), 'theta': np.linspace(0, 1, 100, dtype=np.float32)}\n"
        f"files.write(Path({str(tmp_path / 'there.safetensors')!r}), t, {ABOUT!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert (tmp_path / "here.safetensors").read_bytes() == (tmp_path / "there.safetensors").read_bytes()


def test_a_file_has_the_permissions_of_any_other_file(tmp_path):
    files.write(tmp_path / "a.safetensors", TENSORS, ABOUT)
    (tmp_path / "other").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


@hypothesis_settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_cut_and_any_flipped_bit_is_found(tmp_path, data):
    path = tmp_path / "a.safetensors"
    if not path.exists():
        files.write(path, TENSORS, ABOUT)
    whole = path.read_bytes()
    hurt = tmp_path / "hurt.safetensors"
    if data.draw(st.booleans()):
        hurt.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    else:
        at, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
        hurt.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
    with pytest.raises((files.DamagedFileError, ValueError)) as caught:
        files.read(hurt)
    assert str(caught.value).startswith(str(hurt))


def test_what_is_not_ours_or_newer_or_missing_is_said(tmp_path):
    from safetensors.numpy import save_file

    save_file(TENSORS, tmp_path / "other.safetensors")
    with pytest.raises(
        ValueError, match="expected a file written by distbp, got another safetensors file. Check the path."
    ):
        files.read(tmp_path / "other.safetensors")
    about = {**ABOUT, "format": 2}
    about["sha256"] = files.digest(TENSORS, about)
    save_file(TENSORS, tmp_path / "newer.safetensors", metadata={"distbp": json.dumps(about)})
    with pytest.raises(ValueError, match="expected format 1 or older, got 2. Install the distbp that wrote it."):
        files.read(tmp_path / "newer.safetensors")
    with pytest.raises(ValueError, match="expected a checkpoint or model file, got nothing there. Check the path."):
        files.read(tmp_path / "none.safetensors")


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.safetensors"
    files.write(path, TENSORS, ABOUT)
    before = path.read_bytes()
    (tmp_path / f"{files.UNFINISHED}a.safetensors").mkdir()  # where the new file would be written
    with pytest.raises(OSError):
        files.write(path, {"theta": np.ones(5)}, ABOUT)
    assert path.read_bytes() == before


def steps(folder: Path) -> list[int]:
    return [int(path.stem[5:]) for path in listed(folder)]


def test_the_last_few_and_the_best_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in range(1, 7):
            best = 2 if step >= 2 else -1
            checkpoints.save(step, {"theta": np.full(4, step)}, {"state": {"best_step": best}})
        checkpoints.flush()
    assert steps(tmp_path) == [2, 5, 6]
    assert files.read(tmp_path / name_of(5))[0]["theta"].tolist() == [5] * 4


def test_the_best_of_every_kept_one_is_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, best in ((1, 1), (2, 1), (3, 3), (4, 3)):
            checkpoints.save(step, TENSORS, {"state": {"best_step": best}})
    assert steps(tmp_path) == [3, 4]
    with Checkpoints(tmp_path, keep=2, step=4) as checkpoints:  # resumed: the files are known again
        checkpoints.save(5, TENSORS, {"state": {"best_step": 5}})
        checkpoints.flush()
        assert steps(tmp_path) == [3, 4, 5]
        checkpoints.save(6, TENSORS, {"state": {"best_step": 5}})
    assert steps(tmp_path) == [5, 6]


def test_files_of_later_steps_are_left_alone(tmp_path):
    files.write(tmp_path / name_of(9), TENSORS, STATE)
    with Checkpoints(tmp_path, keep=1, step=5) as checkpoints:
        for step in (6, 7):
            checkpoints.save(step, TENSORS, STATE)
    assert steps(tmp_path) == [7, 9]


def test_what_is_saved_is_a_copy(tmp_path):
    theta = np.zeros(100_000)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, {"theta": theta}, STATE)
        theta[:] = 7
    assert not files.read(tmp_path / name_of(1))[0]["theta"].any()


def test_a_slow_disk_makes_save_wait_and_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("distbp.coordinator.checkpoints.WAITING", 0)
    with Checkpoints(tmp_path, keep=20) as checkpoints:
        for step in range(20):
            checkpoints.save(step, TENSORS, STATE)
    assert steps(tmp_path) == list(range(20))


def test_a_failure_is_kept_until_it_is_asked_for(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    with Checkpoints(folder, keep=3) as checkpoints:
        folder.rmdir()
        checkpoints.save(1, TENSORS, STATE)
        with pytest.raises(OSError):
            checkpoints.flush()
        assert checkpoints.failure
        for step in range(5):  # nobody waits for ever for a thread that has given up
            checkpoints.save(step, TENSORS, STATE)


def test_the_newest_whole_one_is_found_and_the_others_named(tmp_path):
    said = []
    assert newest_good(tmp_path, lambda about: "", said.append) is None
    for step in (1, 2, 3):
        files.write(tmp_path / name_of(step), TENSORS, {"mine": step != 2})
    (tmp_path / name_of(3)).write_bytes((tmp_path / name_of(3)).read_bytes()[:-1])
    fits = lambda about: "" if about["mine"] else "expected mine, got another. Take it away."  # noqa: E731
    path, _, about = newest_good(tmp_path, fits, said.append)
    assert (path.name, about["mine"]) == (name_of(1), True)
    assert [line.split(": ")[1] for line in said] == [str(tmp_path / name_of(3)), str(tmp_path / name_of(2))]
    with pytest.raises(RuntimeError, match="expected one good checkpoint, got 3 that cannot be used"):
        newest_good(tmp_path, lambda about: "expected nothing. Go.", said.append)


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    with RunFolder.create(tmp_path / "runs" / "a", "[data]\n") as folder:
        assert sorted(os.listdir(folder.path)) == [".lock", "checkpoints", "settings.toml"]
    with pytest.raises(ValueError) as caught:
        RunFolder.create(tmp_path / "runs" / "a", "")
    assert str(caught.value) == (
        f"{tmp_path}/runs/a: expected a new run's name, got a folder that exists, with no checkpoint in it. "
        "Remove it, or choose another --name."
    )
    (tmp_path / "file").touch()
    with pytest.raises(
        ValueError, match="expected to make a folder for the run, got: Not a directory. Choose --runs elsewhere."
    ):
        RunFolder.create(tmp_path / "file" / "b", "")
    with pytest.raises(ValueError, match=r"expected the folder of a run, got none with a settings.toml."):
        RunFolder.open(tmp_path)


def test_a_second_process_is_refused_while_the_first_is_there(tmp_path):
    code = "import sys; from pathlib import Path; from distbp.coordinator.folder import RunFolder; RunFolder.open(Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path / "a")]
    with RunFolder.create(tmp_path / "a", ""):
        found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        text = (
            f"a: expected no other process to train into it, got one: process {os.getpid()} on {os.uname().nodename}."
        )
        assert text in found.stderr
    assert subprocess.run(command, timeout=60, check=False).returncode == 0


def test_opening_clears_away_what_was_half_written(tmp_path):
    RunFolder.create(tmp_path / "a", "").__exit__()
    for name in (
        f"{files.UNFINISHED}settings.toml",
        f"checkpoints/{files.UNFINISHED}x.safetensors",
        "checkpoints/.tmpAbC",
    ):
        (tmp_path / "a" / name).touch()
    with RunFolder.open(tmp_path / "a"):
        assert os.listdir(tmp_path / "a" / "checkpoints") == []


def test_the_journal_forgets_steps_that_will_be_taken_again(tmp_path):
    with RunFolder.create(tmp_path / "a", "") as folder:
        folder.start_journal(0)
        for step in (1, 2, 3):
            folder.journal({"step": step})
        with open(folder.path / "journal.jsonl", "a") as file:
            file.write('{"step": 2, "torn')
    with RunFolder.open(tmp_path / "a") as folder:
        folder.start_journal(2)
        folder.journal({"step": 5})
    lines = (tmp_path / "a" / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 5]


def test_run_json_has_one_entry_for_each_start(tmp_path):
    with RunFolder.create(tmp_path / "a", "") as folder:
        assert folder.sessions() == []
        folder.write_run({"start": 1, "exit": None})
        folder.write_run({"start": 1, "exit": "epochs"})
        folder.write_run({"start": 2, "exit": None})
        assert [s["exit"] for s in folder.sessions()] == ["epochs", None]
        (folder.path / "run.json").write_text("{")
        assert folder.sessions() == []
