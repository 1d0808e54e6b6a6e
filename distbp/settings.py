"""What a run is: every setting with its default, unit and meaning.

The table below is the only list of settings: the checks and their messages (options.py), ``--help``,
``--print-settings`` and docs/settings.md are all made from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic.fields import FieldInfo

from distbp.kinds import (
    Activation,
    Count,
    Every,
    Number,
    Part,
    Section,
    Widths,
    extra,
    key,
    not_bool,
    to_toml_value,
)

COSTS = {  # that fit a task; "auto" is the first
    "classification": ("cross_entropy", "quadratic", "absolute", "huber"),
    "labels": ("binary_cross_entropy", "quadratic"),
    "regression": ("quadratic", "absolute", "huber"),
}
RESUMABLE = ("data.source", "data.validation", "data.test", "data.target", "data.memory", "data.share",
             "training.epochs", "training.steps", "training.minutes", "training.patience", "training.model",
             "training.check_every", "training.threads", "training.shared_memory", "training.overlap",
             "checkpoint.every", "checkpoint.keep")  # fmt: skip


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
    batch_size: Annotated[Annotated[int, Field(gt=0)] | Literal["all"], BeforeValidator(not_bool)] = key(
        64,
        'a whole number > 0 or "all"',
        "Rows of one step over all ranks; a multiple of data.shards. all: every training row (full batch).",
        "rows",
    )
    shards: Annotated[Annotated[int, Field(gt=0)] | Literal["auto"], BeforeValidator(not_bool)] = key(
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
    target_scaling: Literal["auto", "none", "standard", "minmax"] = key(
        "auto",
        "auto, none, standard or minmax",
        "The same for the targets of a regression; predictions and metrics are in the targets' own units. auto: "
        "standard where the last activation is identity, else none.",
    )
    allow_nonfinite: bool = key(
        False,
        "true or false",
        "Take nan, infinity and missing values as they are, instead of naming the first one and stopping; a cost that "
        "is not finite still ends the run.",
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
    share: Literal["read", "send"] = key(
        "read",
        "read or send",
        "How the rows of files reach the ranks. read: each rank reads those of its own shards. send: rank 0 reads all, "
        "for files that its host alone has, and sends the others theirs, a few MiB at a time; these keep them decoded "
        "in memory, whatever data.memory, and at the start also as they are in the file. The bits do not depend on it.",
    )
    rows: Count = key(10_000, "a whole number > 0", "synthetic: rows.", "rows", gt=0)
    features: Count = key(64, "a whole number > 0", "synthetic: features.", gt=0)
    outputs: Count = key(10, "a whole number > 0", "synthetic: classes or target values.", gt=0)

    @property
    def fractions(self) -> tuple[float, float]:
        """What is cut from the source for validation and for test; 0 for a part that is a file of its own."""
        validation, test = (part if isinstance(part, float) else 0.0 for part in (self.validation, self.test))
        return validation, test


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
    momentum: Number = key(
        0.9, "a number from 0 up to, not including, 1", "momentum, nesterov: decay of the velocity.", ge=0, lt=1
    )
    beta1: Number = key(
        0.9, "a number from 0 up to, not including, 1", "adam, adamw: decay of the mean gradient.", ge=0, lt=1
    )
    beta2: Number = key(
        0.999, "a number from 0 up to, not including, 1", "adam, adamw: decay of the mean square.", ge=0, lt=1
    )
    epsilon: Number = key(
        1e-8, "a number > 0", "adam, adamw: added to the root of the mean square.", gt=0, allow_inf_nan=False
    )
    weight_decay: Number = key(
        0.0,
        "a number >= 0",
        "lambda: lambda/2 ||W||^2 is added to the cost (adamw: lambda eta W is taken from W). Biases are left alone.",
        ge=0,
        allow_inf_nan=False,
    )
    clip: Number = key(
        0.0,
        "a number >= 0",
        "Longest mean gradient (norm of the whole vector). 0: no limit.",
        ge=0,
        allow_inf_nan=False,
    )
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
    minutes: Number = key(
        0.0,
        "a number >= 0",
        "Time at the most, from the start of this process. 0: no limit.",
        "minutes",
        ge=0,
        allow_inf_nan=False,
    )
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
    seed: Count = key(
        0,
        "a whole number from 0 to 2^63 - 1",
        "Of the initial weights, the order, the parts and dropout.",
        ge=0,
        le=2**63 - 1,
    )
    check_every: Count = key(
        100,
        "a whole number > 0",
        "Between two comparisons of all hosts' theta and rule state; also done before each checkpoint.",
        "steps",
        gt=0,
    )
    blas_threads: Count = key(
        1, "a whole number > 0", "BLAS threads of each rank; the bits depend on it.", "threads", gt=0
    )
    threads: Annotated[Annotated[int, Field(gt=0)] | Literal["auto"], BeforeValidator(not_bool)] = key(
        "auto",
        'a whole number > 0 or "auto"',
        "Threads of each rank, over its shards. auto: the cores that the rank may use divided by the ranks of its "
        "host, or one where the products are too small to be worth it. The bits do not depend on it.",
        "threads",
    )
    shared_memory: bool = key(
        True,
        "true or false",
        "Whether the ranks of a host keep one theta in memory they share, and share out the descent step; false: each "
        "has its own and takes the whole step. The bits do not depend on it.",
    )
    overlap: bool = key(
        True,
        "true or false",
        "Whether messages between hosts travel, in a thread, while the next layer is computed. The bits do not depend "
        "on it.",
    )


class Checkpoint(Section):
    """[checkpoint]: what is kept to go on from."""

    every: Every = key(
        "5 minutes",
        'a count with steps, epochs or minutes, like "10 epochs"',
        "Between two checkpoints. One is also written at the end and when a signal asks the run to stop.",
    )
    keep: Count = key(
        3,
        "a whole number > 0",
        "Newest checkpoints kept. With training.model = best, that of the lowest validation cost is kept beside them.",
        "checkpoints",
        gt=0,
    )


class Settings(Section):
    """All settings of a run."""

    data: Data = Data()
    network: Network = Network()
    descent: Descent = Descent()
    training: Training = Training()
    checkpoint: Checkpoint = Checkpoint()

    def to_toml(self) -> str:
        """Return the settings as TOML, every key written out, with its meaning beside it."""
        lines: list[str] = []
        for section, name, field, value in entries(self):
            if name == next(iter(type(getattr(self, section)).model_fields)):
                lines.append(f"{chr(10) if lines else ''}[{section}]")
            unit = f" [{extra(field)['unit']}]" if extra(field)["unit"] else ""
            lines.append(f"{name} = {to_toml_value(value)}  # {field.description}{unit}")
        return "\n".join(lines) + "\n"

    def of_state(self) -> dict[str, dict[str, Any]]:
        """Return the settings that travel inside checkpoints and models: those that a resumed run cannot change.

        The target is one of them unless it is a file, which differs between machines.
        """
        table = self.model_dump(mode="json")
        state = {
            section: {name: value for name, value in keys.items() if f"{section}.{name}" not in RESUMABLE}
            for section, keys in table.items()
        }
        target = self.data.target
        if not (isinstance(target, str) and (target.endswith((".npy", ".gz", "ubyte", ".idx", ".idx1")))):
            state["data"]["target"] = target
        return state

    def with_shards(self, size: int) -> Settings:
        """Return the settings with `data.shards` a number, for a run that starts on `size` ranks.

        Raises
        ------
        ValueError
            There are more ranks than shards, or the batch cannot take as many rows from every shard.
        """
        least = 1 << (size - 1).bit_length()
        shards = max(8, least) if self.data.shards == "auto" else self.data.shards
        if size > shards:
            raise ValueError(
                f"data.shards: expected at least as many shards as ranks ({size}), got {shards}. "
                f"Start {shards} ranks or fewer, or a new run with data.shards = {least}."
            )
        batch = self.data.batch_size
        if batch != "all" and batch % shards:
            below, above = batch // shards * shards, -(-batch // shards) * shards
            use = f"{below} or {above}" if below else str(above)
            raise ValueError(f"data.batch_size: expected a multiple of data.shards ({shards}), got {batch}. Use {use}.")
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


def entries(settings: Settings) -> Iterator[tuple[str, str, FieldInfo, Any]]:
    """Yield (section, key, field, value) of every setting, in the order of the table."""
    for section, model in SECTIONS.items():
        for name, field in model.model_fields.items():
            yield section, name, field, getattr(getattr(settings, section), name)


def known_keys() -> list[tuple[str, str]]:
    """Return every (section, key)."""
    return [(section, name) for section, model in SECTIONS.items() for name in model.model_fields]
