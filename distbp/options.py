"""From a TOML file and the command line to checked settings: every wrong one at once, before any data is read.

The table in settings.py says what is allowed; here are the checks between settings, the messages, and docs/settings.md,
which is made from the same table: ``python -m distbp.options > docs/settings.md``.
"""

from __future__ import annotations

import contextlib
import difflib
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from distbp.kinds import Section, extra, to_toml_value
from distbp.settings import COSTS, SECTIONS, Settings, known_keys


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a settings file.

    Raises
    ------
    ValueError
        The file is missing or not TOML; the message names the file and the line.
    """
    if Path(path).suffix in (".csv", ".tsv", ".npy", ".npz", ".gz"):
        raise ValueError(f"{path}: expected a settings file, got data. Use --data.source {path}.")
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
            homes = [f"[{s}] {k}" for s, k in known_keys() if k == section]
            problems.append(unknown(section, homes or list(SECTIONS)))
        elif not isinstance(keys, Mapping):
            problems.append(f"{section}: expected a section, got {keys!r}. Write [{section}] with its keys below it.")
        else:
            merged[section] = dict(keys)
    for place, value in (overrides or {}).items():
        section, _, name = place.partition(".")
        if (section, name) not in known_keys():
            problems.append(unknown(place, [f"{s}.{k}" for s, k in known_keys()]))
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


def unknown(place: str, known: Sequence[str]) -> str:
    """Say that `place` is no setting, with the nearest name that is."""
    short = {re.split(r"[. ]", name)[-1]: name for name in known}
    near = difflib.get_close_matches(place, known, 1, 0.6)
    near = near or [short[n] for n in difflib.get_close_matches(place.rsplit(".", maxsplit=1)[-1], list(short), 1, 0.6)]
    action = f"Did you mean {near[0]}?" if near else "--help lists all settings."
    return f"{place}: expected a known setting, got an unknown name. {action}"


def _explain(section: str, model: type[Section], error: ValidationError, given: Mapping[str, Any]) -> Iterator[str]:
    """Turn pydantic's report into one line a key."""
    for name in dict.fromkeys(str(item["loc"][0]) for item in error.errors()):
        if name not in model.model_fields:
            yield unknown(f"{section}.{name}", [f"{section}.{k}" for k in model.model_fields])
        else:
            expected = extra(model.model_fields[name])["expected"]
            yield f"{section}.{name}: expected {expected}, got {given[name]!r}. Set {name} under [{section}]."


def _contradictions(settings: Settings) -> Iterator[str]:
    """Yield what is wrong between settings that are each right alone."""
    network, training, data = settings.network, settings.training, settings.data
    for cost, output in (("cross_entropy", "softmax"), ("binary_cross_entropy", "sigmoid")):
        if network.cost == cost and network.output not in ("auto", output):
            yield f"network.output: expected {output} with network.cost = {cost}, got {network.output}. Leave it auto."
    if data.task != "auto":
        yield from misfit(network.cost, data.task)
    if not (training.epochs or training.steps or training.minutes):
        yield "training.epochs: expected an end of the run, got no limit at all. Set training.epochs, steps or minutes."
    if settings.descent.schedule == "cosine" and not (training.epochs or training.steps):
        yield "descent.schedule: expected training.epochs or training.steps with cosine, got neither. Set one."
    if sum(data.fractions) >= 1:
        got = " and ".join(map(str, data.fractions))
        yield f"data.test: expected fractions that leave rows to train on, got {got}. Make them smaller."
    for name, part in (("validation", data.validation), ("test", data.test)):
        if part in ("digits", "synthetic"):
            yield f"data.{name}: expected a fraction or a file, got {part}: the training rows again. Use a fraction."
    if training.patience and data.validation == 0:
        yield "training.patience: expected a validation part to watch, got data.validation = 0. Set data.validation."
    if data.shards != "auto" and data.batch_size != "all" and data.batch_size % data.shards:
        try:
            settings.with_shards(1)
        except ValueError as error:
            yield str(error)


def misfit(cost: str, task: str) -> Iterator[str]:
    """Yield what is wrong with a cost for a task, if anything is."""
    fits = COSTS[task]
    if cost not in ("auto", *fits):
        expected = f"{', '.join(fits[:-1])} or {fits[-1]}"
        yield f"network.cost: expected {expected} for {task}, got {cost}. Leave it auto, or set data.task."


def from_text(text: str) -> Any:
    """Return the number, truth value or list that `text` writes in TOML, else the text itself."""
    with contextlib.suppress(tomllib.TOMLDecodeError):
        table = tomllib.loads(f"value = {text}")
        if set(table) == {"value"} and isinstance(table["value"], (bool, int, float, list)):
            return table["value"]
    return text


def reference() -> str:
    """Return docs/settings.md: every setting with its default, what is allowed, and its meaning."""
    lines: list[str] = [
        "# Settings",
        "",
        "Made by `python -m distbp.options > docs/settings.md`; a test compares the two.",
        "",
        "Set them in a TOML file, `[section]` and `key = value`, or on the command line, `--section.key VALUE`;",
        "the command line wins. `--help` and `--print-settings` show the same table.",
        "",
    ]
    for section, model in SECTIONS.items():
        lines += [f"## [{section}]", "", "| key | default | allowed | meaning |", "| --- | --- | --- | --- |"]
        for name, field in model.model_fields.items():
            unit = f" ({extra(field)['unit']})" if extra(field)["unit"] else ""
            default = f"`{to_toml_value(field.default)}`{unit}"
            lines.append(f"| `{name}` | {default} | {extra(field)['expected']} | {field.description} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(reference())
