"""What a setting can be: the kinds of values, how one is described in the table of settings.py, how TOML writes it."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo


def key(default: Any, expected: str, meaning: str, unit: str = "", **limits: Any) -> Any:
    """A setting: its default, what is allowed (used in the error message), its meaning and its unit."""
    extra: dict[str, Any] = {"expected": expected, "unit": unit}
    return Field(default, description=meaning, json_schema_extra=extra, **limits)


def extra(field: FieldInfo) -> dict[str, Any]:
    """Return what `key` was told beside the default: ``expected`` and ``unit``."""
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def _whole_numbers(value: Any) -> Any:
    """Let ``64,32`` on the command line mean ``[64, 32]``, and one number a list of one."""
    if isinstance(value, str):
        return [part for part in re.split(r"[,\s]+", value.strip("[] ")) if part]
    return [value] if isinstance(value, int) else value


def not_bool(value: Any) -> Any:
    """Refuse true and false, which Python takes for 1 and 0."""
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


Number = Annotated[float, BeforeValidator(not_bool)]
Count = Annotated[int, BeforeValidator(not_bool)]
Widths = Annotated[tuple[Annotated[int, Field(gt=0)], ...], BeforeValidator(_whole_numbers)]
Every = Annotated[str, BeforeValidator(_every)]
Part = Annotated[Annotated[float, Field(ge=0, lt=1)] | str, BeforeValidator(not_bool)]
Activation = Literal["sigmoid", "tanh", "relu", "leaky_relu", "gelu", "softplus", "identity", "softmax"]


class Section(BaseModel):
    """One section of the settings: immutable, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def to_toml_value(value: Any) -> str:
    """Return a setting's value as TOML writes it."""
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
