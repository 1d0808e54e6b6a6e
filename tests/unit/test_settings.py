"""Settings: defaults, TOML, command line, and the text of every error."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distbp.command import Parser
from distbp.options import make, read_toml, reference
from distbp.settings import SECTIONS, Settings, entries, known_keys

ROOT = Path(__file__).parents[2]


def test_defaults_are_valid_and_survive_toml():
    settings = make()
    assert settings == Settings()
    assert make(tomllib.loads(settings.to_toml())) == settings


def test_every_setting_has_a_meaning_and_says_what_is_allowed():
    for _, name, field, _ in entries(Settings()):
        assert field.description, name
        assert field.json_schema_extra["expected"], name


@given(st.sampled_from([0.1, 1e-7, 3.0, 1 / 3]), st.integers(1, 999), st.text("abc äß\"\\\n'#", min_size=1, max_size=9))
def test_values_survive_toml_to_the_last_bit(rate, epochs, source):
    settings = make({"descent": {"learning_rate": rate}, "training": {"epochs": epochs}, "data": {"source": source}})
    assert make(tomllib.loads(settings.to_toml())) == settings


@pytest.mark.parametrize(
    ("place", "text", "value"),
    [
        ("network.widths", "64,32", (64, 32)),
        ("network.widths", "[64, 32]", (64, 32)),
        ("network.widths", "64", (64,)),
        ("network.widths", "[]", ()),
        ("data.batch_size", "all", "all"),
        ("data.batch_size", "128", 128),
        ("data.target", "3", 3),
        ("data.target", "-1", -1),
        ("data.target", "price", "price"),
        ("data.validation", "0", 0.0),
        ("data.validation", "held out.csv", "held out.csv"),
        ("data.header", "false", False),
        ("descent.learning_rate", "1e-3", 0.001),
        ("checkpoint.every", "10", "10 epochs"),
        ("checkpoint.every", "1 epoch", "1 epochs"),
        ("checkpoint.every", "500 steps", "500 steps"),
        ("checkpoint.every", "0.5 minutes", "0.5 minutes"),
    ],
)
def test_the_command_line_is_read_as_meant(place, text, value):
    section, name = place.split(".")
    assert getattr(getattr(make(None, {place: text}), section), name) == value


COUNT = "expected a whole number > 0, got {}"
ERRORS = {
    ("data.batch_size", "-3"): 'expected a whole number > 0 or "all", got -3. Set batch_size under [data].',
    ("data.batch_size", "some"): "expected a whole number > 0 or \"all\", got 'some'. Set batch_size under [data].",
    ("data.batch_size", "true"): 'expected a whole number > 0 or "all", got True. Set batch_size under [data].',
    ("data.shards", "0"): 'expected a whole number > 0 or "auto", got 0. Set shards under [data].',
    ("data.validation", "1.5"): "expected a fraction from 0 up to, not including, 1, or a path, got 1.5. Set validation under [data].",
    ("data.scaling", "max"): "expected none, standard or minmax, got 'max'. Set scaling under [data].",
    ("data.delimiter", "::"): "expected one character, got '::'. Set delimiter under [data].",
    ("network.widths", "[64, 0]"): "expected a list of whole numbers > 0, like [128, 64], got [64, 0]. Set widths under [network].",
    ("network.widths", "wide"): "expected a list of whole numbers > 0, like [128, 64], got 'wide'. Set widths under [network].",
    ("network.dropout", "1"): "expected a number from 0 up to, not including, 1, got 1. Set dropout under [network].",
    ("network.dtype", "float16"): "expected float32 or float64, got 'float16'. Set dtype under [network].",
    ("descent.rule", "sgd"): "expected gradient_descent, momentum, nesterov, adam or adamw, got 'sgd'. Set rule under [descent].",
    ("descent.learning_rate", "-0.1"): "expected a number > 0, got -0.1. Set learning_rate under [descent].",
    ("descent.learning_rate", "inf"): "expected a number > 0, got inf. Set learning_rate under [descent].",
    ("descent.learning_rate", "nan"): "expected a number > 0, got nan. Set learning_rate under [descent].",
    ("training.epochs", "1.5"): "expected a whole number >= 0, got 1.5. Set epochs under [training].",
    ("training.seed", "-1"): "expected a whole number from 0 to 2^63 - 1, got -1. Set seed under [training].",
    ("checkpoint.every", "soon"): 'expected a count with steps, epochs or minutes, like "10 epochs", got \'soon\'. Set every under [checkpoint].',
    ("checkpoint.every", "0.5 epochs"): 'expected a count with steps, epochs or minutes, like "10 epochs", got \'0.5 epochs\'. Set every under [checkpoint].',
    ("data.batchsize", "8"): "expected a known setting, got an unknown name. Did you mean data.batch_size?",
    ("learning_rate", "1"): "expected a known setting, got an unknown name. Did you mean descent.learning_rate?",
    ("data.zzzzzz", "8"): "expected a known setting, got an unknown name. --help lists all settings.",
}  # fmt: skip


@pytest.mark.parametrize(("place", "text"), ERRORS)
def test_a_wrong_setting_is_named_with_what_is_expected(place, text):
    with pytest.raises(ValueError) as caught:
        make(None, {place: text})
    assert str(caught.value) == f"{place}: {ERRORS[place, text]}"


CONTRADICTIONS = {
    "network.output: expected softmax with network.cost = cross_entropy, got relu. Leave it auto.": {
        "network": {"cost": "cross_entropy", "output": "relu"}
    },
    "network.output: expected sigmoid with network.cost = binary_cross_entropy, got softmax. Leave it auto.": {
        "network": {"cost": "binary_cross_entropy", "output": "softmax"}
    },
    "network.cost: expected quadratic, absolute or huber for regression, got cross_entropy. "
    "Leave it auto, or set data.task.": {"data": {"task": "regression"}, "network": {"cost": "cross_entropy"}},
    "training.epochs: expected an end of the run, got no limit at all. Set training.epochs, steps or minutes.": {
        "training": {"epochs": 0}
    },
    "descent.schedule: expected training.epochs or training.steps with cosine, got neither. Set one.": {
        "descent": {"schedule": "cosine"},
        "training": {"epochs": 0, "minutes": 1},
    },
    "data.test: expected fractions that leave rows to train on, got 0.5 and 0.5. Make them smaller.": {
        "data": {"validation": 0.5, "test": 0.5}
    },
    "training.patience: expected a validation part to watch, got data.validation = 0. Set data.validation.": {
        "data": {"validation": 0},
        "training": {"patience": 3},
    },
    "data.validation: expected a fraction or a file, got synthetic: the training rows again. Use a fraction.": {
        "data": {"source": "synthetic", "validation": "synthetic"}
    },
    "data.batch_size: expected a multiple of data.shards (8), got 100. Use 96 or 104.": {
        "data": {"shards": 8, "batch_size": 100}
    },
    "data.batch_size: expected a multiple of data.shards (8), got 5. Use 8.": {"data": {"shards": 8, "batch_size": 5}},
    "data: expected a section, got 3. Write [data] with its keys below it.": {"data": 3},
    "descnt: expected a known setting, got an unknown name. Did you mean descent?": {"descnt": {}},
}


@pytest.mark.parametrize("message", CONTRADICTIONS)
def test_settings_that_contradict_each_other_are_named(message):
    with pytest.raises(ValueError) as caught:
        make(CONTRADICTIONS[message])
    assert str(caught.value) == message


def test_all_wrong_settings_are_named_at_once():
    with pytest.raises(ValueError) as caught:
        make({"data": {"shards": 0, "rows": 0}, "network": {"dtype": "int8"}}, {"nothing.here": 1})
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "nothing.here", "data.shards", "data.rows", "network.dtype"
    ]  # fmt: skip


def test_a_missing_or_broken_file_is_named_with_its_line(tmp_path):
    with pytest.raises(ValueError, match="expected a settings file, got No such file or directory. Check the path."):
        read_toml(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[data]\nsource = digits\n")
    with pytest.raises(ValueError, match=r"broken.toml: expected TOML, got: .*line 2.*\. Mend that line\."):
        read_toml(broken)


@pytest.mark.parametrize(("size", "shards"), [(1, 8), (8, 8), (9, 16), (16, 16), (100, 128)])
def test_auto_shards_are_8_or_the_next_power_of_two(size, shards):
    assert make({"data": {"batch_size": "all"}}).with_shards(size).n_shards == shards


def test_more_ranks_than_shards_are_refused():
    with pytest.raises(ValueError) as caught:
        make({"data": {"shards": 4}}).with_shards(5)
    assert str(caught.value) == (
        "data.shards: expected at least as many shards as ranks (5), got 4. "
        "Start 4 ranks or fewer, or a new run with data.shards = 8."
    )


def test_shards_are_not_known_before_the_ranks_are():
    with pytest.raises(RuntimeError) as caught:
        _ = make().n_shards
    assert str(caught.value) == "data.shards: expected a number by now, got auto. Call with_shards first."


def test_what_travels_in_a_checkpoint_names_no_file():
    assert "source" not in make().of_state()["data"]
    assert make({"data": {"target": "price"}}).of_state()["data"]["target"] == "price"
    assert "target" not in make({"data": {"target": "data/y.npy"}}).of_state()["data"]
    assert "checkpoint" not in {k for k, v in make().of_state().items() if v}


def test_help_lists_every_setting_with_its_default():
    parser = Parser("distbp", "text")
    parser.add_settings()
    text = " ".join(parser.format_help().split())
    for section, name in known_keys():
        assert f"--{section}.{name} VALUE" in text
    assert text.count("Default: ") == len(known_keys())
    assert "Default: 64, in rows." in text


def test_the_command_lines_own_errors():
    parser = Parser("distbp", "text")
    parser.add_settings()
    for arguments, message in (
        (["--data.sauce", "x"], "data.sauce: expected a known setting, got an unknown name. Did you mean data.source?"),
        (["stray"], "command line: expected options, got 'stray'. See --help."),
        (["--data.source"], "command line: argument --data.source: expected one argument. See --help."),
    ):
        with pytest.raises(ValueError) as caught:
            parser.read(arguments)
        assert str(caught.value) == message
    assert parser.read(["--data.source", "x", "--descent.rule=adam"])[1] == {"data.source": "x", "descent.rule": "adam"}


def test_the_reference_in_docs_is_that_of_the_table():
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == reference()


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda p: p.name)
def test_the_examples_are_valid(path):
    assert make(read_toml(path)) != Settings()


def test_there_is_an_example_for_each_kind_of_use():
    names = {path.stem for path in (ROOT / "examples").glob("*.toml")}
    assert names >= {"notes", "classification", "regression", "large"}
    notes = make(read_toml(ROOT / "examples" / "notes.toml"))
    assert (notes.network.activation, notes.network.cost) == ("sigmoid", "quadratic")
    assert (notes.descent.rule, notes.data.batch_size) == ("gradient_descent", "all")
    assert set(SECTIONS) == set(Settings.model_fields)
