"""One array as it lies in a file: mapped where the bytes are plain, streamed where they are compressed.

Mapped rows cost memory only while they are used, and the ranks of a host share them. A compressed array is read from
its start to its end, keeping only the wanted rows; it is always read to the end, since the checksum that shows a
damaged file comes last. Every size is checked against the file's before mapping: touching a mapped byte beyond the
end of a file ends the process with a bus error. Nothing is ever unpickled.
"""

from __future__ import annotations

import gzip
import lzma
import math
import mmap
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from distbp.data.source import IDX_TYPES, damaged, first_bytes, is_gzip

PIECE = 1 << 22  # bytes decompressed at a time
DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, struct.error, ValueError, RuntimeError,
          IndexError, OverflowError)  # fmt: skip
Shape = tuple[int, ...]


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int = ..., /) -> bytes:
        """Return up to `size` bytes."""

    def tell(self) -> int:
        """Return how many bytes have been read."""


class Stored(Protocol):
    """Rows of an array in a file; `label` is how the user is told of it, `again` whether it is mapped."""

    label: str
    shape: Shape
    dtype: np.dtype[Any]
    again: bool

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return some rows, (m, ...); ascending ones only where `again` is False."""

    def takes(self, wanted: Iterable[NDArray[np.int64]]) -> Iterator[NDArray[Any]]:
        """Yield what `take` returns, for one array of rows after the other: they ascend over one pass."""

    def blocks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield the number of a first row and the rows from there, of an array of one column."""


class Mapped:
    """An array in memory, or mapped into it: then `memory` is the mapping, and its rows begin at byte `start`."""

    again = True

    def __init__(self, label: str, array: NDArray[Any], memory: mmap.mmap | None = None, start: int = 0) -> None:
        self.label = label
        self.array, self.memory, self.start = array, memory, start
        self.shape: Shape = array.shape
        self.dtype: np.dtype[Any] = array.dtype

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return some rows, in any order."""
        if self.memory and self.array.flags.c_contiguous and len(rows):
            self._ask_for(rows)
        taken: NDArray[Any] = self.array[rows]
        return taken

    def _ask_for(self, rows: NDArray[np.int64]) -> None:
        """Let the system read the pages of some rows together, not one after another as they are touched."""
        assert self.memory
        n_bytes = self.array[:1].nbytes
        starts = self.start + np.sort(rows) * n_bytes
        firsts, lasts = starts // mmap.PAGESIZE, (starts + n_bytes - 1) // mmap.PAGESIZE
        begins = np.flatnonzero(np.append(True, firsts[1:] > lasts[:-1] + 1))  # of runs of neighbouring pages
        ends = [*(begins[1:] - 1), len(rows) - 1]
        for first, last in zip(firsts[begins].tolist(), lasts[ends].tolist(), strict=True):
            start = first * mmap.PAGESIZE
            self.memory.madvise(mmap.MADV_WILLNEED, start, min((last + 1) * mmap.PAGESIZE, len(self.memory)) - start)

    def takes(self, wanted: Iterable[NDArray[np.int64]]) -> Iterator[NDArray[Any]]:
        """Yield what `take` returns, for one array of rows after the other; what was passed leaves memory."""
        for rows in wanted:
            yield self.take(rows)
            self._let_go()

    def _let_go(self) -> None:
        """Take the mapped pages out of this process's memory; they come back when they are touched."""
        if self.memory:
            self.memory.madvise(mmap.MADV_DONTNEED)

    def blocks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield the number of a first row and the rows from there."""
        step = max(1, PIECE // max(1, abs(self.array.strides[0])))
        for start in range(0, len(self.array), step):
            yield start, self.array[start : start + step].reshape(-1)
            self._let_go()


class Streamed:
    """An array that can only be read from its start to its end.

    In C order it is `runs` = 1 run of n_rows rows; in Fortran order it is a run of n_rows single values for each place
    in a row. Each run is read in pieces.

    Parameters
    ----------
    begin
        Opens the compressed stream.
    skip
        Bytes before the array.
    what
        The kind of file, for messages.
    """

    again = False

    def __init__(
        self,
        label: str,
        header: tuple[Shape, bool, np.dtype[Any]],
        begin: Callable[[], AbstractContextManager[Readable]],
        skip: int,
        what: str,
    ) -> None:
        self.label = label
        self.shape, fortran, self.dtype = header
        self._begin, self._skip, self._what = begin, skip, what
        per_row = math.prod(self.shape[1:])
        self._runs, self._items = (per_row, 1) if fortran else (1, per_row)

    def _pieces(self) -> Iterator[tuple[int, int, NDArray[Any]]]:
        """Yield the number of a run, of a row, and what lies from there, (rows, items)."""
        n_rows, n_bytes = self.shape[0], self._items * self.dtype.itemsize
        step = max(1, PIECE // max(1, n_bytes))
        try:
            with self._begin() as stream:
                stream.read(self._skip)
                for run in range(self._runs):
                    for start in range(0, n_rows, step):
                        count = min(step, n_rows - start)
                        piece = np.frombuffer(_exactly(stream, count * n_bytes), self.dtype)
                        yield run, start, piece.reshape(count, self._items)
                while stream.read(PIECE):  # the checksum is compared at the very end
                    pass
        except DAMAGE:
            raise damaged(self.label, self._what) from None

    def takes(self, wanted: Iterable[NDArray[np.int64]]) -> Iterator[NDArray[Any]]:
        """Yield some rows after the other, which ascend over one pass; an array in Fortran order is held whole."""
        if self._runs > 1:
            whole = None
            for rows in wanted:
                if whole is None and len(rows):
                    whole = self.take(np.arange(self.shape[0]))
                yield np.empty((0, *self.shape[1:]), self.dtype) if whole is None else whole[rows]
            return
        pieces, first, piece = self._pieces(), 0, np.empty((0, self._items), self.dtype)
        for rows in wanted:
            out, done = np.empty((len(rows), self._items), self.dtype), 0
            while done < len(rows):
                stop = int(np.searchsorted(rows, first + len(piece)))
                out[done:stop] = piece[rows[done:stop] - first]
                done = stop
                if done < len(rows):
                    _, first, piece = next(pieces)
            yield out.reshape(len(rows), *self.shape[1:])
        for _ in pieces:  # to the end, where the checksum is
            pass

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return some rows, which must ascend."""
        out = np.empty((self._runs, len(rows), self._items), self.dtype)
        for run, start, piece in self._pieces():
            low, high = np.searchsorted(rows, [start, start + len(piece)])
            out[run, low:high] = piece[rows[low:high] - start]
        if self._runs == 1:
            return out.reshape(len(rows), *self.shape[1:])
        flat = out.reshape(*self.shape[:0:-1], len(rows))  # Fortran order: the axes lie in reverse
        return flat.transpose()

    def blocks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield the number of a first row and the rows from there, of an array of one column."""
        for _, start, piece in self._pieces():
            yield start, piece.reshape(-1)


def _exactly(stream: Readable, n: int) -> bytes:
    parts = []
    while n > 0:
        part = stream.read(n)
        if not part:
            raise EOFError
        parts.append(part)
        n -= len(part)
    return b"".join(parts)


def npy(path: str) -> Mapped:
    """Map a .npy file.

    Raises
    ------
    ValueError
        It is missing, damaged, cut off, or holds Python objects.
    """
    first_bytes(path)
    with open(path, "rb") as file:
        header = _npy_header(file, path)
        return _mapped(path, path, header, file.tell(), os.path.getsize(path))


def npz_members(path: str) -> dict[str, zipfile.ZipInfo]:
    """Return the arrays of a .npz file by name.

    Raises
    ------
    ValueError
        It is no whole zip file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except DAMAGE:
        raise damaged(path, ".npz file") from None
    return {entry.filename.removesuffix(".npy"): entry for entry in entries if entry.filename.endswith(".npy")}


def npz(path: str, name: str, entry: zipfile.ZipInfo) -> Stored:
    """Open an array of a .npz file: mapped if it is stored uncompressed, else streamed.

    Raises
    ------
    ValueError
        It is damaged, cut off, or holds Python objects.
    """
    label = f"{path}, array {name}"

    @contextmanager
    def begin() -> Iterator[Readable]:
        with ExitStack() as stack:
            try:
                archive = stack.enter_context(zipfile.ZipFile(path))
                stream = stack.enter_context(archive.open(entry))
            except DAMAGE:
                raise damaged(label, ".npz file") from None
            yield stream

    with begin() as stream:
        header = _npy_header(stream, label)
        skip = stream.tell()
    if _bytes_of(header) > entry.file_size - skip:
        raise _cut_off(label, skip + _bytes_of(header), entry.file_size)
    if entry.compress_type != zipfile.ZIP_STORED:
        return Streamed(label, header, begin, skip, ".npz file")
    with open(path, "rb") as file:  # the lengths in the local header may differ from those in the directory
        file.seek(entry.header_offset + 26)
        name_length, extra_length = struct.unpack("<2H", file.read(4))
    start = entry.header_offset + 30 + name_length + extra_length
    return _mapped(path, label, header, start + skip, os.path.getsize(path))


def idx(path: str) -> Stored:
    """Open an IDX file (MNIST's format): mapped if plain, streamed if compressed with gzip.

    The header is 0, 0, a type, the number of axes, and the length of each axis as four bytes, most significant first.

    Raises
    ------
    ValueError
        It is missing, damaged, cut off, or no IDX file.
    """
    first_bytes(path)
    zipped = is_gzip(path)

    def begin() -> AbstractContextManager[Readable]:
        return gzip.open(path, "rb") if zipped else open(path, "rb")

    try:
        with begin() as file:
            magic = file.read(4)
            axes = file.read(4 * magic[3]) if len(magic) == 4 else b""
    except DAMAGE:
        raise damaged(path, ".gz file") from None
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2:3] not in IDX_TYPES or magic[3] == 0:
        raise ValueError(
            f"{path}: expected an IDX file, which begins with 00 00, a type and the number of axes, "
            f"got {magic.hex(' ') or 'nothing'}. Check the path."
        )
    if len(axes) < 4 * magic[3]:
        raise damaged(path, "IDX file")
    shape = struct.unpack(f">{magic[3]}I", axes)
    header = (shape, False, np.dtype(IDX_TYPES[magic[2:3]]))
    skip = 4 + len(axes)
    if zipped:
        return Streamed(path, header, begin, skip, ".gz file")
    return _mapped(path, path, header, skip, os.path.getsize(path))


def _npy_header(stream: Readable, label: str) -> tuple[Shape, bool, np.dtype[Any]]:
    """Read a .npy header: the shape, whether in Fortran order, and the dtype."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a file is from Python 2 is of no concern to the user
            version = npy_format.read_magic(stream)
            read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
            shape, fortran, dtype = read(stream)
            if min(shape, default=0) < 0:
                raise ValueError
    except Exception:  # numpy's parser of damaged headers raises many kinds
        raise damaged(label, ".npy header") from None
    if dtype.hasobject:
        raise ValueError(
            f"{label}: expected plain numbers, got pickled Python objects (dtype {dtype}). "
            "Pickled data is never loaded; save plain numbers, as with numpy.asarray(x, float)."
        )
    return shape, fortran, dtype


def _bytes_of(header: tuple[Shape, bool, np.dtype[Any]]) -> int:
    return math.prod(header[0]) * header[2].itemsize


def _mapped(path: str, label: str, header: tuple[Shape, bool, np.dtype[Any]], offset: int, size: int) -> Mapped:
    """Map an array that starts at `offset` of a file of `size` bytes."""
    shape, fortran, dtype = header
    end = offset + _bytes_of(header)
    if end > size:
        raise _cut_off(label, end, size)
    if end == offset:
        return Mapped(label, np.empty(shape, dtype))
    memory = np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")
    mapping = memory.base if isinstance(memory.base, mmap.mmap) and hasattr(mmap, "MADV_WILLNEED") else None
    return Mapped(label, np.asarray(memory), mapping, offset % mmap.ALLOCATIONGRANULARITY)


def _cut_off(label: str, expected: int, got: int) -> ValueError:
    return ValueError(
        f"{label}: expected {expected:,} bytes, as its header says, got {got:,}. Copy or make it again: it is cut off."
    )
