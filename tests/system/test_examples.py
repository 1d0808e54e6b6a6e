"""The shipped examples and the default run, as a user starts them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments, ranks=0):
    command = [sys.executable, "-m", *arguments]
    command = ["mpirun", "-n", str(ranks), *command] if ranks else command
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True).stdout


def last(runs, name):
    lines = (runs / name / "journal.jsonl").read_text().splitlines()
    return json.loads(lines[-1])["validation"]


def test_the_default_run_reaches_97_percent(tmp_path):
    out = run("distbp.train", "--runs", str(tmp_path), "--name", "default", ranks=4)
    assert last(tmp_path, "default")["accuracy"] >= 0.97
    assert out.startswith("distbp 0.1.0: 4 ranks on 1 host, ")
    assert "\nconfusion (rows: true class, columns: predicted)" in out
    assert f"\nrun: {tmp_path}/default\nmodel: {tmp_path}/default/model.safetensors sha256 " in out


@pytest.mark.parametrize(
    ("name", "options", "metric", "least"),
    [
        ("notes", [], "accuracy", 0.95),
        ("classification", [], "accuracy", 0.97),
        ("regression", [], "r2", 0.99),
        ("large", ["--training.steps", "2", "--data.rows", "2048", "--network.widths", "512,256"], "accuracy", 0.0),
    ],
)
def test_an_example_trains(tmp_path, name, options, metric, least):
    run("distbp.train", f"examples/{name}.toml", "--runs", str(tmp_path), "--name", name, *options, ranks=2)
    assert last(tmp_path, name)[metric] >= least


def test_a_curve_is_drawn_from_the_journal(tmp_path):
    pytest.importorskip("matplotlib")
    run("distbp.train", "--runs", str(tmp_path), "--name", "curve", "--training.epochs", "3")
    out = run("distbp.curve", "curve", "--runs", str(tmp_path), "-o", str(tmp_path / "curve.svg"))
    assert out == f"wrote {tmp_path / 'curve.svg'}\n"
    assert (
        "validation accuracy" in (tmp_path / "curve.svg").read_text() or (tmp_path / "curve.svg").stat().st_size > 5000
    )
    for arguments, message in (
        (["none", "-o", "x.svg"], "none: expected a run's name in runs, or its folder, got neither. See ls runs."),
        (["curve", "-o", "x.gif"], "--output: expected a name in .svg, .png or .pdf, got 'x.gif'. Rename it."),
    ):
        found = subprocess.run(
            [sys.executable, "-m", "distbp.curve", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (found.returncode, found.stderr) == (2, f"distbp: {message}\n")
