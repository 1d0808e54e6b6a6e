"""Exit codes and messages of train: 0 done, 1 failed, 2 bad input, 75 stopped; each message once on any rank count."""

import signal
import tomllib

import pytest
from commands import LONG, SMALL, wait_for

from distbp.kinds import extra
from distbp.settings import SECTIONS, known_keys

# One wrong value for every setting. What is expected is in the settings' own table, except where it is pinned below.
WRONG = {
    "data.source": "5", "data.target": "1.5", "data.task": "ranking", "data.validation": "1.0", "data.test": "-0.25",
    "data.batch_size": "0", "data.shards": "most", "data.share": "lend", "data.scaling": "log", "data.target_scaling": "log",
    "data.allow_nonfinite": "maybe", "data.header": "perhaps", "data.delimiter": ";;", "data.memory": "-1",
    "data.rows": "0", "data.features": "1.5", "data.outputs": "true", "network.widths": "64,0",
    "network.activation": "reluu", "network.output": "linear", "network.cost": "mse", "network.huber_width": "0",
    "network.dropout": "1.0", "network.dtype": "float16", "network.initial": "zeros", "descent.rule": "sgd",
    "descent.learning_rate": "-0.1", "descent.momentum": "1", "descent.beta1": "1.5", "descent.beta2": "nan",
    "descent.epsilon": "0", "descent.weight_decay": "inf", "descent.clip": "-1", "descent.schedule": "linear",
    "descent.step_epochs": "0", "descent.step_factor": "2", "descent.warmup_steps": "0.5", "training.epochs": "-1",
    "training.steps": "ten", "training.minutes": "-2", "training.validate_every": "0", "training.patience": "-3",
    "training.model": "first", "training.seed": "9223372036854775808", "training.check_every": "0",
    "training.blas_threads": "0", "training.threads": "0", "training.shared_memory": "yes please",
    "training.overlap": "2", "checkpoint.every": "5 hours", "checkpoint.keep": "0",
}  # fmt: skip
PINNED = (
    "data.batch_size: expected a whole number > 0 or \"all\", got 0. Set batch_size under [data].",
    "data.validation: expected a fraction from 0 up to, not including, 1, or a path, got 1.0. "
    "Set validation under [data].",
    "network.widths: expected a list of whole numbers > 0, like [128, 64], got '64,0'. Set widths under [network].",
    "descent.rule: expected gradient_descent, momentum, nesterov, adam or adamw, got 'sgd'. Set rule under [descent].",
    "descent.learning_rate: expected a number > 0, got -0.1. Set learning_rate under [descent].",
    "training.epochs: expected a whole number >= 0, got -1. Set epochs under [training].",
    'checkpoint.every: expected a count with steps, epochs or minutes, like "10 epochs", got \'5 hours\'. '
    "Set every under [checkpoint].",
)  # fmt: skip


def test_every_wrong_setting_is_named_at_once(here):
    assert sorted(WRONG) == sorted(f"{section}.{name}" for section, name in known_keys())
    done = here.run(*(word for place, text in WRONG.items() for word in (f"--{place}", text)))
    assert (done.code, done.out) == (2, "")
    lines = done.err.removeprefix("distbp: ").splitlines()
    assert len(lines) == len(WRONG)
    for (section, name), line in zip(known_keys(), lines, strict=True):
        expected = extra(SECTIONS[section].model_fields[name])["expected"]
        assert line.startswith(f"{section}.{name}: expected {expected}, got ")
        assert line.endswith(f". Set {name} under [{section}].")
    assert set(PINNED) <= set(lines)


MISTAKES = {
    "unknown key": (
        ("--training.epoch", "3"),
        "training.epoch: expected a known setting, got an unknown name. Did you mean training.epochs?",
    ),
    "unknown section": (
        ("--optimizer.learning_rate=3",),
        "optimizer.learning_rate: expected a known setting, got an unknown name. Did you mean descent.learning_rate?",
    ),
    "nothing like it": (
        ("--xyzzy", "3"), "xyzzy: expected a known setting, got an unknown name. --help lists all settings."
    ),
    "no value": (("--name",), "command line: argument --name: expected one argument. See --help."),
    "no settings file": (
        ("none.toml",), "none.toml: expected a settings file, got No such file or directory. Check the path."
    ),
    "unknown run": (
        ("--resume", "gone"), "gone: expected a run's name in runs, or its folder, got neither. See ls runs."
    ),
    "file beside resume": (
        ("my.toml", "--resume", "gone"),
        "--resume: expected no settings file and no --name beside it, got one. Leave it out.",
    ),
    "name with a folder": (
        ("--name", "a/b"),
        "--name: expected a plain folder name, got 'a/b'. Use --runs for the folder it is in.",
    ),
    "no such data": (
        ("--data.source", "none.csv"),
        "none.csv: expected digits, synthetic, or a .csv, .tsv, .txt, .npy, .npz or IDX file, got no file of that name. "
        "Check the path.",
    ),
    "batch": (
        (*SMALL, "--data.batch_size", "100"),
        "data.batch_size: expected a multiple of data.shards (8), got 100. Use 96 or 104.",
    ),
    "no end": (
        (*SMALL, "--training.epochs", "0"),
        "training.epochs: expected an end of the run, got no limit at all. Set training.epochs, steps or minutes.",
    ),
    "cost and task": (
        ("--network.cost", "binary_cross_entropy", "--data.task", "regression"),
        "network.cost: expected quadratic, absolute or huber for regression, got binary_cross_entropy. "
        "Leave it auto, or set data.task.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message_and_exit_2(here, mistake):
    arguments, message = MISTAKES[mistake]
    done = here.run(*arguments)
    assert (done.code, done.err) == (2, f"distbp: {message}\n")
    assert mistake == "no such data" or done.out == ""  # the greeting comes before the data
    assert not (here.path / "runs").exists()


@pytest.mark.parametrize("mistake", ["unknown key", "no settings file", "unknown run", "batch", "no such data"])
def test_under_mpirun_a_mistake_is_said_once_and_exit_2(here, mistake):
    arguments, message = MISTAKES[mistake]
    done = here.run(*arguments, ranks=3)
    assert done.code == 2
    assert done.err.count("distbp: ") == done.err.count(f"distbp: {message}\n") == 1
    assert "distbp: " not in done.out
    assert not (here.path / "runs").exists()


def test_more_ranks_than_shards(here):
    done = here.run(*SMALL, "--data.shards", 2, "--data.batch_size", 32, ranks=3)
    message = (
        "data.shards: expected at least as many shards as ranks (3), got 2. "
        "Start 2 ranks or fewer, or a new run with data.shards = 4."
    )
    assert done.code == 2
    assert done.err.count("distbp: ") == done.err.count(f"distbp: {message}\n") == 1


def test_wrong_files(here):
    (here.path / "bad.toml").write_text("[training]\nepochs = = 3\n")
    done = here.run("bad.toml")
    assert done.code == 2
    assert done.err.startswith("distbp: bad.toml: expected TOML, got: Invalid value (at line 2, column 10)")
    (here.path / "keys.toml").write_text("epochs = 3\n[trainin]\nepochs = 3\n[descent]\nlearning_rat = 1\n")
    done = here.run("keys.toml")
    assert done.code == 2
    assert done.err == (
        "distbp: epochs: expected a known setting, got an unknown name. Did you mean [training] epochs?\n"
        "trainin: expected a known setting, got an unknown name. Did you mean training?\n"
        "descent.learning_rat: expected a known setting, got an unknown name. Did you mean descent.learning_rate?\n"
    )


def test_printed_settings_are_read_back_the_same(here):
    options = (
        "--network.widths",
        "64,32",
        "--descent.rule",
        "momentum",
        "--data.test",
        "0.1",
        "--checkpoint.every",
        "7",
    )
    printed = here.run(*options, "--print-settings")
    assert (printed.code, printed.err) == (0, "")
    table = tomllib.loads(printed.out)
    assert table["network"]["widths"] == [64, 32]
    assert table["checkpoint"]["every"] == "7 epochs"
    assert {(section, name) for section in table for name in table[section]} == set(known_keys())
    (here.path / "my.toml").write_text(printed.out)
    assert here.run("my.toml", "--print-settings") == printed
    assert here.run("my.toml", "--print-settings", ranks=2).out == printed.out


def test_help_lists_every_setting(here):
    done = here.run("--help")
    assert (done.code, done.err) == (0, "")
    for section, name in known_keys():
        assert done.out.count(f"--{section}.{name} VALUE") == 1
    assert "Exit codes: 0 done, 1 the run failed, 2 bad input, 75 stopped by a signal and resumable." in done.out
    assert here.run("--help", ranks=2).out == done.out


def test_done_is_0_and_an_existing_folder_names_the_two_choices(here):
    done = here.run(*SMALL, "--name", "mine")
    assert (done.code, done.err) == (0, "")
    assert done.out.count("ended by epochs after step 15; the model is that of step ") == 1
    before = here.all_hashes("mine")
    assert done.out.endswith(f"model: runs/mine/model.safetensors sha256 {before['model.safetensors']}\n")
    message = (
        "distbp: runs/mine: expected a new run's name, got a folder that exists. "
        "Continue that run with --resume mine, or choose another --name.\n"
    )
    assert here.run(*SMALL, "--name", "mine") == (2, "", message)
    done = here.run(*SMALL, "--name", "mine", ranks=2)
    assert (done.code, done.err.count(message)) == (2, 1)
    message = (
        "distbp: network.widths: expected it to stay as the run was started with, got a new value with --resume. "
        "Leave it out, or start a new run.\n"
    )
    assert here.run("--resume", "mine", "--network.widths", "9") == (2, "", message)
    assert here.all_hashes("mine") == before


def test_a_finished_run_resumes_to_the_same_end_and_by_its_folder(here):
    assert here.run(*SMALL, "--name", "mine", "--quiet") == (0, "", "")
    before = here.all_hashes("mine")
    done = here.run("--resume", "runs/mine")
    assert (done.code, done.out.count("resumed after step 15")) == (0, 1)
    assert here.all_hashes("mine") == before


def test_a_stopped_run_is_75_and_quiet_prints_nothing(here):
    process = here.start(*LONG, "--name", "mine", "--quiet")
    wait_for(lambda: here.journal("mine"), "the first journal line")
    process.popen.send_signal(signal.SIGTERM)
    assert process.wait() == (75, "", "")


def test_debug_shows_a_traceback(here):
    done = here.run("none.toml", "--debug")
    assert done.code == 2
    assert "Traceback (most recent call last):" in done.err
    assert done.err.splitlines()[-1].startswith("distbp: none.toml: expected a settings file")
