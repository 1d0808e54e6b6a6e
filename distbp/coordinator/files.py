"""Checkpoint and model files: safetensors with one line of JSON, complete or absent, verified at load.

A file is written beside its place, flushed to disk, renamed, and its folder flushed. All that is not an array is one
JSON text under the metadata key ``distbp`` (one key, since safetensors keeps several in no fixed order); it holds the
format's number and a SHA-256 over itself and every array, so any damage is found. docs/files.md has the format.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

Array = NDArray[Any]
FORMAT = 1
UNFINISHED = ".unfinished-"  # how the name of a file that is being written begins


class DamagedFileError(RuntimeError):
    """A file that was ours and is not whole any more."""


class NewerFormatError(ValueError):
    """A whole file that a later distbp wrote."""


def digest(tensors: Mapping[str, Array], about: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hexadecimal, of plain values and arrays (names, dtypes, shapes and bytes)."""
    sha = hashlib.sha256(_text({k: v for k, v in about.items() if k != "sha256"}).encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        sha.update(f"{name} {array.dtype.str} {array.shape}".encode())
        sha.update(array.data)
    return sha.hexdigest()


def write(path: Path, tensors: Mapping[str, Array], about: Mapping[str, Any]) -> None:
    """Write a file that is complete or absent, whatever happens meanwhile.

    Raises
    ------
    OSError
        The disk is full, the folder cannot be written, ...; whatever was at `path` is still there.
    """
    about = {"format": FORMAT, **about}
    about["sha256"] = digest(tensors, about)
    with unfinished(path) as beside:
        beside.touch()
        mode = beside.stat().st_mode  # as the user's umask has it; the library would leave 0600
        save_file(dict(tensors), beside, metadata={"distbp": _text(about)})
        beside.chmod(mode)


def write_text(path: Path, text: str) -> None:
    """Write a small text file that is complete or absent; OSError as for `write`."""
    with unfinished(path) as beside:
        beside.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Give the name of a file to write; then flush it and rename it to `path`, or remove it if anything went wrong.

    Raises
    ------
    OSError
        Whatever was raised, with the file named.
    """
    beside = path.with_name(UNFINISHED + path.name)
    try:
        yield beside
        finish(beside, path)
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else None
        text = error.strerror if isinstance(error, OSError) else None
        raise OSError(number, text or str(error), str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def finish(beside: Path, path: Path) -> None:
    """Flush a written file to disk, give it its name, and flush the folder."""
    for place, before_rename in ((beside, True), (path.parent, False)):
        handle = os.open(place, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        if before_rename:
            os.replace(beside, path)


def read(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return (tensors, plain values) of a file, verified.

    Raises
    ------
    ValueError
        The file is missing or is not ours; a `NewerFormatError` if a later distbp wrote it.
    DamagedFileError
        It is not whole: cut off, or its SHA-256 does not fit.
    """
    if not path.is_file():
        raise ValueError(f"{path}: expected a checkpoint or model file, got nothing there. Check the path.")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
        about = json.loads(metadata["distbp"]) if "distbp" in metadata else None
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise DamagedFileError(f"{path}: expected a whole file, got a damaged one ({error}). Use another.") from None
    if not isinstance(about, dict) or "format" not in about:
        raise ValueError(f"{path}: expected a file written by distbp, got another safetensors file. Check the path.")
    fits = about.get("sha256") == digest(tensors, about)
    if fits and about["format"] != FORMAT:
        raise NewerFormatError(
            f"{path}: expected format {FORMAT} or older, got {about['format']}. Install the distbp that wrote it."
        )
    if not fits or _text(about) != metadata["distbp"]:
        raise DamagedFileError(f"{path}: expected its SHA-256 to fit its contents, got a damaged file. Use another.")
    return tensors, about


def best_step(path: Path) -> int:
    """Return the best step that a checkpoint knows of, unverified; -1 where it cannot be read."""
    try:
        with safe_open(path, framework="numpy") as file:
            return int(json.loads((file.metadata() or {})["distbp"])["state"]["best_step"])
    except (SafetensorError, OSError, ValueError, TypeError, KeyError):
        return -1


def _text(about: Mapping[str, Any]) -> str:
    return json.dumps(about, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
