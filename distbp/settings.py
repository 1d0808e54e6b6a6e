"""What a run is: every setting with its default, unit and meaning, from a TOML file and then the command line.

All settings are checked together before any data is read, and every wrong one is reported in the form
``place: expected what, got value. One thing to do.`` The table below is the only list of settings: the checks,
``--help``, ``--print-settings`` and docs/settings.md are all made from it.

The command line is argparse's rather than pydantic-settings' (the design names both libraries): argparse starts in
4 ms, and lets an unknown key be answered with the nearest known one in the same form as every other error.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

DTYPES = ("float32", "float64")
PATH_KEYS = ("source", "target", "validation", "test")  # of [data]; may be paths, which differ between machines
RESUMABLE = ("data.source", "data.validation", "data.test", "data.target", "data.memory", "training.epochs",
             "training.steps", "training.minutes", "training.patience", "training.model", "training.check_every",
             "checkpoint.every", "checkpoint.keep")  # fmt: skip


def key(default: Any, expected: str, meaning: str, unit: str = "", **limits: Any) -> Any:
    """A setting: its default, what is allowed (used in the error message), its meaning and its unit."""
    extra = {"expected": expected, "unit": unit}
    return Field(default, description=meaning, json_schema_extra=extra, **limits)


def _whole_numbers(value: Any) -> Any:
    """Let ``64,32`` on the command line mean ``[64, 32]``, and one number a list of one."""
    if isinstance(value, str):
        return [part for part in re.split(r"[,\s]+", value.strip("[] ")) if part]
    return [value] if isinstance(value, int) else value


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number, not true or false")
    return value


def _every(value: Any) -> Any:
    """Bring ``10`` and ``10 epoch`` to ``10 epochs``."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(value))
    if not match:
        raise ValueError("not a count and a unit")
    count, unit = match[1], match[2].rstrip("s") or "epoch"
    if unit not in ("step", "epoch", "minute") or float(count) <= 0 or (unit != "minute" and "." in count):
        raise ValueError("not a count and a unit")
    return f"{count} {unit}s"


Number = Annotated[float, BeforeValidator(_not_bool)]
Count = Annotated[int, BeforeValidator(_not_bool)]
Widths = Annotated[tuple[Annotated[int, Field(gt=0)], ...], BeforeValidator(_whole_numbers)]
Every = Annotated[str, BeforeValidator(_every)]
Part = Annotated[Annotated[float, Field(ge=0, lt=1)] | str, BeforeValidator(_not_bool)]
Activation = Literal["sigmoid", "tanh", "relu", "leaky_relu", "gelu", "softplus", "identity", "softmax"]


class Section(BaseModel):
    """One section of the settings: immutable, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Section):
    """[data]: what is learned from, and how its rows are shared out."""

    source: str = key(
        "digits",
        "digits, synthetic, or a path to a .csv, .npz, .npy or IDX file",
        "The data: `digits` (bundled), `synthetic` (a seeded teacher network), or a path: .csv, .npz (arrays x and y), "
        ".npy, or IDX (MNIST's format, plain or .gz).",
        min_length=1,
    )
    target: Count | str = key(
        "",
        "a column name, a column number from 0, an array's name or a path",
        "What is predicted: a column of a CSV by name or number (from 0, negative from the end), a column number of a "
        ".npy or the path of a second .npy, an array's name in a .npz, the path of an IDX label file. "
        'Empty: the last column; in a .npz "y"; for IDX the label file beside the images.',
    )
    task: Literal["auto", "classification", "regression", "labels"] = key(
        "auto",
        "auto, classification, regression or labels",
        "What the target is: one class a row, numbers, or several 0/1 labels a row. auto: classes if the target is "
        "text or whole numbers (in a CSV: text, or the cost is cross_entropy), else numbers.",
    )
    validation: Part = key(
        0.2,
        "a fraction from 0 up to, not including, 1, or a path",
        "Validation part: a fraction of the rows, chosen by a keyed function of the row number, or a file of the same "
        "kind as the source. 0: none.",
    )
    test: Part = key(
        0.0,
        "a fraction from 0 up to, not including, 1, or a path",
        "Test part, used once at the end: as data.validation.",
    )
    batch_size: Annotated[Annotated[int, Field(gt=0)] | Literal["all"], BeforeValidator(_not_bool)] = key(
        64,
        'a whole number > 0 or "all"',
        "Rows of one step over all ranks; a multiple of data.shards. all: every training row (full batch).",
        "rows",
    )
    shards: Annotated[Annotated[int, Field(gt=0)] | Literal["auto"], BeforeValidator(_not_bool)] = key(
        "auto",
        'a whole number > 0 or "auto"',
        "Fixed slices of the data that the ranks share out; the result depends on them, never on the ranks. auto: 8, "
        "or the next power of two from the number of ranks where that is more.",
    )
    scaling: Literal["none", "standard", "minmax"] = key(
        "standard",
        "none, standard or minmax",
        "Scaling of the features, from sums over the training rows: to mean 0 and deviation 1, or to 0...1. "
        "Kept in the model and applied by predict.",
    )
    target_scaling: Literal["none", "standard", "minmax"] = key(
        "none",
        "none, standard or minmax",
        "The same for the targets of a regression; predictions and metrics are in the targets' own units.",
    )
    allow_nonfinite: bool = key(
        False,
        "true or false",
        "Take nan, infinity and missing values as they are, instead of naming the first one and stopping.",
    )
    header: Literal["auto"] | bool = key(
        "auto",
        "auto, true or false",
        "CSV: whether the first line holds column names. auto: it does if none of its fields is a number.",
    )
    delimiter: str = key(",", "one character", "CSV: what stands between two fields.", min_length=1, max_length=1)
    memory: Count = key(
        1024,
        "a whole number >= 0",
        "Rows that can be read again (.npy, .npz, IDX, synthetic) are kept decoded in memory up to this much a rank; "
        "beyond it they are read where they lie, batch by batch.",
        "MiB",
        ge=0,
    )
    rows: Count = key(10_000, "a whole number > 0", "synthetic: rows.", "rows", gt=0)
    features: Count = key(64, "a whole number > 0", "synthetic: features.", gt=0)
    outputs: Count = key(10, "a whole number > 0", "synthetic: classes or target values.", gt=0)


class Network(Section):
    """[network]: the function that is fitted."""

    widths: Widths = key(
        (128,),
        "a list of whole numbers > 0, like [128, 64]",
        "Widths of the hidden layers, first to last; [] for none.",
        "neurons",
    )
    activation: Activation = key(
        "relu",
        "sigmoid, tanh, relu, leaky_relu, gelu, softplus, identity or softmax",
        "sigma of the hidden layers.",
    )
    output: Literal["auto"] | Activation = key(
        "auto",
        "auto, sigmoid, tanh, relu, leaky_relu, gelu, softplus, identity or softmax",
        "sigma of the last layer. auto: softmax for cross_entropy, sigmoid for binary_cross_entropy and for "
        "classification by another cost, else identity.",
    )
    cost: Literal["auto", "quadratic", "cross_entropy", "binary_cross_entropy", "absolute", "huber"] = key(
        "auto",
        "auto, quadratic, cross_entropy, binary_cross_entropy, absolute or huber",
        "C of one sample. auto: cross_entropy for classification, binary_cross_entropy for labels, else quadratic.",
    )
    huber_width: Number = key(
        1.0, "a number > 0", "huber: the error up to which the cost is quadratic.", gt=0, allow_inf_nan=False
    )
    dropout: Number = key(
        0.0, "a number from 0 up to, not including, 1", "Share of hidden activations set to 0 in a step.", ge=0, lt=1
    )
    dtype: Literal["float32", "float64"] = key("float32", "float32 or float64", "Type of weights and arithmetic.")
    initial: Literal["auto", "glorot", "he", "normal"] = key(
        "auto",
        "auto, glorot, he or normal",
        "Initial weights: Glorot's uniform, He's normal, or the notes' standard normal. auto: he for relu, leaky_relu "
        "and gelu, else glorot.",
    )


class Descent(Section):
    """[descent]: from a gradient to a step of theta."""

    rule: Literal["gradient_descent", "momentum", "nesterov", "adam", "adamw"] = key(
        "adam", "gradient_descent, momentum, nesterov, adam or adamw", "How theta moves along the mean gradient."
    )
    learning_rate: Number = key(0.001, "a number > 0", "eta.", gt=0, allow_inf_nan=False)
    momentum: Number = key(0.9, "a number from 0 up to, not including, 1", "momentum, nesterov: decay of the velocity.", ge=0, lt=1)  # fmt: skip
    beta1: Number = key(0.9, "a number from 0 up to, not including, 1", "adam, adamw: decay of the mean gradient.", ge=0, lt=1)  # fmt: skip
    beta2: Number = key(0.999, "a number from 0 up to, not including, 1", "adam, adamw: decay of the mean square.", ge=0, lt=1)  # fmt: skip
    epsilon: Number = key(1e-8, "a number > 0", "adam, adamw: added to the root of the mean square.", gt=0, allow_inf_nan=False)  # fmt: skip
    weight_decay: Number = key(
        0.0,
        "a number >= 0",
        "lambda: lambda/2 ||W||^2 is added to the cost (adamw: lambda eta W is taken from W). Biases are left alone.",
        ge=0,
        allow_inf_nan=False,
    )
    clip: Number = key(0.0, "a number >= 0", "Longest mean gradient (norm of the whole vector). 0: no limit.", ge=0, allow_inf_nan=False)  # fmt: skip
    schedule: Literal["constant", "step", "cosine"] = key(
        "constant",
        "constant, step or cosine",
        "eta over the run: constant, times step_factor every step_epochs, or along a cosine to 0 at the last step.",
    )
    step_epochs: Count = key(10, "a whole number > 0", "step schedule: between two drops.", "epochs", gt=0)
    step_factor: Number = key(0.1, "a number > 0, at most 1", "step schedule: what eta is multiplied by.", gt=0, le=1)
    warmup_steps: Count = key(0, "a whole number >= 0", "eta grows linearly over the first steps.", "steps", ge=0)


class Training(Section):
    """[training]: how long, and what is watched meanwhile."""

    epochs: Count = key(30, "a whole number >= 0", "Passes over the training rows. 0: no limit.", "epochs", ge=0)
    steps: Count = key(0, "a whole number >= 0", "Steps at the most. 0: no limit.", "steps", ge=0)
    minutes: Number = key(0.0, "a number >= 0", "Time at the most, from the start of this process. 0: no limit.", "minutes", ge=0, allow_inf_nan=False)  # fmt: skip
    validate_every: Count = key(1, "a whole number > 0", "Between two validations.", "epochs", gt=0)
    patience: Count = key(
        0,
        "a whole number >= 0",
        "Stop after so many validations in a row without a lower cost. 0: never.",
        "validations",
        ge=0,
    )
    model: Literal["best", "last"] = key(
        "best", "best or last", "Which parameters become the model: lowest validation cost, or the last step's."
    )
    seed: Count = key(0, "a whole number from 0 to 2^63 - 1", "Of the initial weights, the order, the parts and dropout.", ge=0, le=2**63 - 1)  # fmt: skip
    check_every: Count = key(
        100,
        "a whole number > 0",
        "Between two comparisons of all ranks' theta and rule state; also done before each checkpoint.",
        "steps",
        gt=0,
    )
    blas_threads: Count = key(1, "a whole number > 0", "BLAS threads of each rank; the bits depend on it.", "threads", gt=0)  # fmt: skip


class Checkpoint(Section):
    """[checkpoint]: what is kept to go on from."""

    every: Every = key(
        "5 minutes",
        'a count with steps, epochs or minutes, like "10 epochs"',
        "Between two checkpoints. One is also written at the end and when a signal asks the run to stop.",
    )
    keep: Count = key(3, "a whole number > 0", "Newest checkpoints kept. With training.model = best, the one of the lowest validation cost is written and kept beside them.", "checkpoints", gt=0)


class Settings(Section):
    """All settings of a run."""

    data: Data = Data()
    network: Network = Network()
    descent: Descent = Descent()
    training: Training = Training()
    checkpoint: Checkpoint = Checkpoint()

    def to_toml(self) -> str:
        """Return the settings as TOML, every key written out, with its meaning beside it."""
        lines = []
        for section, name, field, value in entries(self):
            if name == next(iter(type(getattr(self, section)).model_fields)):
                lines.append(f"{chr(10) if lines else ''}[{section}]")
            unit = f" [{extra(field)['unit']}]" if extra(field)["unit"] else ""
            lines.append(f"{name} = {_toml(value)}  # {field.description}{unit}")
        return "\n".join(lines) + "\n"

    def of_state(self) -> dict[str, dict[str, Any]]:
        """Return the settings that travel inside checkpoints: all but paths, which differ between machines."""
        table = self.model_dump(mode="json")
        for name in PATH_KEYS:
            if name in ("source", "target") or isinstance(table["data"][name], str):
                del table["data"][name]
        return table

    def with_shards(self, size: int) -> Settings:
        """Return the settings with `data.shards` a number, for a run that starts on `size` ranks.

        Raises
        ------
        ValueError
            There are more ranks than shards, or the batch cannot take as many rows from every shard.
        """
        shards = self.data.shards
        if shards == "auto":
            shards = max(8, 1 << (size - 1).bit_length())
        if size > shards:
            raise ValueError(
                f"data.shards: expected at least as many shards as ranks ({size}), got {shards}. "
                f"Start {shards} ranks or fewer, or a new run with data.shards = {1 << (size - 1).bit_length()}."
            )
        batch = self.data.batch_size
        if batch != "all" and batch % shards:
            below, above = batch // shards * shards, -(-batch // shards) * shards
            use = f"{below} or {above}" if below else str(above)
            raise ValueError(
                f"data.batch_size: expected a multiple of data.shards ({shards}), got {batch}. Use {use}."
            )
        return self.model_copy(update={"data": self.data.model_copy(update={"shards": shards})})

    @property
    def n_shards(self) -> int:
        """Number of shards, V; settled by `with_shards`."""
        if self.data.shards == "auto":
            raise RuntimeError("data.shards: expected a number by now, got auto. Call with_shards first.")
        return self.data.shards


SECTIONS: dict[str, type[Section]] = {
    "data": Data, "network": Network, "descent": Descent, "training": Training, "checkpoint": Checkpoint
}  # fmt: skip


def extra(field: FieldInfo) -> dict[str, Any]:
    """Return what `key` was told beside the default: ``expected`` and ``unit``."""
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def entries(settings: Settings) -> Iterator[tuple[str, str, FieldInfo, Any]]:
    """Yield (section, key, field, value) of every setting, in the order of the table."""
    for section, model in SECTIONS.items():
        for name, field in model.model_fields.items():
            yield section, name, field, getattr(getattr(settings, section), name)


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a settings file.

    Raises
    ------
    ValueError
        The file is missing or not TOML; the message names the file and the line.
    """
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ValueError(f"{path}: expected a settings file, got {error.strerror}. Check the path.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected TOML, got: {error}. Mend that line.") from None


def make(table: Mapping[str, Any] | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Make checked settings from a table of sections and from overrides named ``section.key``.

    Parameters
    ----------
    table
        ``{section: {key: value}}``, as read from TOML.
    overrides
        ``{"section.key": value}``; these win. Text is taken as TOML where it is TOML, else as it is.

    Raises
    ------
    ValueError
        One line for each wrong setting.

    Examples
    --------
    >>> make({"descent": {"rule": "momentum"}}, {"network.widths": "64,32"}).network.widths
    (64, 32)
    """
    problems = []
    merged: dict[str, dict[str, Any]] = {}
    for section, keys in (table or {}).items():
        if section not in SECTIONS:
            problems.append(_unknown(section, [*SECTIONS, *(f"[{s}] {k}" for s, k in known_keys() if k == section)]))
        elif not isinstance(keys, Mapping):
            problems.append(f"{section}: expected a section, got {keys!r}. Write [{section}] with its keys below it.")
        else:
            merged[section] = dict(keys)
    for place, value in (overrides or {}).items():
        section, _, name = place.partition(".")
        if (section, name) not in known_keys():
            problems.append(_unknown(place, [f"{s}.{k}" for s, k in known_keys()]))
        else:
            merged.setdefault(section, {})[name] = from_text(value) if isinstance(value, str) else value
    parts = {}
    for section, model in SECTIONS.items():
        try:
            parts[section] = model.model_validate(merged.get(section, {}))
        except ValidationError as error:
            problems.extend(_explain(section, model, error, merged[section]))
    if not problems:
        settings = Settings.model_validate(parts)
        problems = list(_contradictions(settings))
    if problems:
        raise ValueError("\n".join(problems))
    return settings


def known_keys() -> list[tuple[str, str]]:
    """Return every (section, key)."""
    return [(section, name) for section, model in SECTIONS.items() for name in model.model_fields]


def _unknown(place: str, known: Sequence[str]) -> str:
    """Say that `place` is no setting, with the nearest name that is."""
    short = {name.split(".")[-1]: name for name in known}
    near = difflib.get_close_matches(place, known, 1, 0.6)
    near = near or [short[n] for n in difflib.get_close_matches(place.split(".")[-1], list(short), 1, 0.6)]
    action = f"Did you mean {near[0]}?" if near else "--help lists all settings."
    return f"{place}: expected a known setting, got an unknown name. {action}"


def _explain(section: str, model: type[Section], error: ValidationError, given: Mapping[str, Any]) -> Iterator[str]:
    """Turn pydantic's report into one line a key."""
    for name in dict.fromkeys(str(item["loc"][0]) for item in error.errors()):
        if name not in model.model_fields:
            yield _unknown(f"{section}.{name}", [f"{section}.{k}" for k in model.model_fields])
        else:
            expected = extra(model.model_fields[name])["expected"]
            yield f"{section}.{name}: expected {expected}, got {given[name]!r}. Set {name} under [{section}]."


def _contradictions(settings: Settings) -> Iterator[str]:
    """Yield what is wrong between settings that are each right alone."""
    network, training, data = settings.network, settings.training, settings.data
    for cost, output in (("cross_entropy", "softmax"), ("binary_cross_entropy", "sigmoid")):
        if network.cost == cost and network.output not in ("auto", output):
            yield f"network.output: expected {output} with network.cost = {cost}, got {network.output}. Leave it auto."
    for task, fits in (("labels", ("auto", "binary_cross_entropy", "quadratic")), ("classification", None),
                       ("regression", ("auto", "quadratic", "absolute", "huber"))):  # fmt: skip
        if fits and data.task == task and network.cost not in fits:
            yield (
                f"network.cost: expected {', '.join(fits[:-1])} or {fits[-1]} with data.task = {task}, "
                f"got {network.cost}. Leave it auto."
            )
    if not (training.epochs or training.steps or training.minutes):
        yield "training.epochs: expected an end of the run, got no limit at all. Set training.epochs, steps or minutes."
    if settings.descent.schedule == "cosine" and not (training.epochs or training.steps):
        yield "descent.schedule: expected training.epochs or training.steps with cosine, got neither. Set one."
    fractions = [part for part in (data.validation, data.test) if isinstance(part, float)]
    if sum(fractions) >= 1:
        yield f"data.test: expected fractions that leave rows to train on, got {fractions}. Make them smaller."
    if training.patience and data.validation == 0:
        yield "training.patience: expected a validation part to watch, got data.validation = 0. Set data.validation."
    if data.shards != "auto" and data.batch_size != "all" and data.batch_size % data.shards:
        try:
            settings.with_shards(1)
        except ValueError as error:
            yield str(error)


def from_text(text: str) -> Any:
    """Return what `text` means as a TOML value, else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


class Parser(argparse.ArgumentParser):
    """argparse with its errors in our form, and without abbreviations."""

    def __init__(self, prog: str, description: str, **options: Any) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False, **options)
        self.add_argument("--debug", action="store_true", help="show a traceback with an error")

    def error(self, message: str) -> NoReturn:
        """Raise the error instead of leaving: the caller decides which rank says it."""
        raise ValueError(f"command line: {message}. See --help.")

    def add_settings(self) -> None:
        """Add one ``--section.key VALUE`` for every setting."""
        for section, model in SECTIONS.items():
            group = self.add_argument_group(f"[{section}]", (model.__doc__ or "").partition(": ")[2])
            for name, field in model.model_fields.items():
                unit = f", in {extra(field)['unit']}" if extra(field)["unit"] else ""
                text = f"{field.description} Default: {_toml(field.default)}{unit}.".replace("%", "%%")
                group.add_argument(f"--{section}.{name}", metavar="VALUE", help=text, default=argparse.SUPPRESS)

    def read(self, arguments: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, str]]:
        """Return the plain options, and the settings given as ``{"section.key": text}``.

        Raises
        ------
        ValueError
            An unknown option, with the nearest known name.
        """
        given, rest = self.parse_known_args(arguments)
        options = [option for action in self._actions for option in action.option_strings]
        for word in rest:
            if word.startswith("--"):
                name = word[2:].partition("=")[0]
                raise ValueError(_unknown(name, [option[2:] for option in options if option.startswith("--")]))
            raise ValueError(f"command line: expected options, got {word!r}. See --help.")
        values = vars(given)
        return given, {name: values[name] for name in list(values) if "." in name}


def reference() -> str:
    """Return docs/settings.md."""
    lines = ["# Settings", "", "Made by `python -m distbp.settings > docs/settings.md`; a test compares the two.", "",
             "Set them in a TOML file, `[section]` and `key = value`, or on the command line, `--section.key VALUE`;",
             "the command line wins.", ""]  # fmt: skip
    for section, model in SECTIONS.items():
        lines += [f"## [{section}]", "", "| key | default | allowed | meaning |", "| --- | --- | --- | --- |"]
        for name, field in model.model_fields.items():
            unit = f" ({extra(field)['unit']})" if extra(field)["unit"] else ""
            lines.append(
                f"| `{name}` | `{_toml(field.default)}`{unit} | {extra(field)['expected']} | {field.description} |"
            )
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(reference())
