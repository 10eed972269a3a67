"""Arrays in files: written piece by piece, then memory-mapped.

Mapped pages that were read stay in a process's resident memory until the system wants them back. A
spool hands them back itself after some reading, so that the resident size does not grow with the
data; the system's cache keeps the pages, and the next reader finds them there.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from graphprune.errors import InputError
from graphprune.tasks.tables import Ragged

__all__ = ["ArrayFile", "RaggedFile", "Spool"]

PAGES = 64 * 1024  # bytes that the system maps around one read
KEPT = 2 * 2**20  # bytes of mapped pages before they are handed back
PIECE = 4096  # rows that are converted at a time


class Spool:
    """A temporary folder of mapped files, removed with the last reference to it.

    Args:
        parent: the folder to make it in; ``None``: the system's. Raises
            :class:`~graphprune.errors.InputError` where that is impossible.

    Copies (also through pickle) hold plain arrays and no spool.
    """

    def __init__(self, parent: str | Path | None = None) -> None:
        where = tempfile.gettempdir() if parent is None else parent
        try:
            Path(where).mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix="graphprune-", dir=where))
        except OSError as error:
            raise InputError(
                f"cannot keep examples in {where}: {error.strerror}; spool= names another folder"
            ) from None
        self._maps: list[mmap.mmap] = []
        self._mapped = 0
        self._remove = weakref.finalize(self, _remove, self.folder, os.getpid())

    def map(self, path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
        """A read-only array over a file."""
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._maps.append(mapped)
        return np.frombuffer(mapped, dtype=dtype).reshape(shape)

    def touched(self, rows: int) -> None:
        """Counts ``rows`` that were read, and hands pages back after some of them."""
        self._mapped += rows * PAGES
        if self._mapped >= KEPT:
            self.release()

    def release(self) -> None:
        """Hands mapped pages back to the system, where it lets a program ask for that."""
        self._mapped = 0
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Removes the files now."""
        self._remove()

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return _nothing, ()


def _nothing() -> None:
    """What a copied spool is: the copy's arrays are in memory."""


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child must not take its parent's files
        shutil.rmtree(folder, ignore_errors=True)


class ArrayFile:
    """Rows of equal length and one type, written one after the other."""

    def __init__(self, spool: Spool, name: str, dtype: DTypeLike) -> None:
        self.path = spool.folder / name
        self._dtype = np.dtype(dtype)
        self._spool = spool

    def append(self, values: NDArray[Any]) -> None:
        """Writes more values; raises :class:`~graphprune.errors.InputError` on a full disk."""
        try:
            with self.path.open("ab") as file:
                file.write(np.ascontiguousarray(values, dtype=self._dtype).tobytes())
        except OSError as error:
            raise InputError(
                f"cannot write examples to {self.path}: {error.strerror}; spool= names another "
                "folder"
            ) from None

    def pieces(self) -> Iterator[NDArray[Any]]:
        """What was written so far, some of it at a time."""
        with self.path.open("rb") as file:
            while (piece := np.fromfile(file, self._dtype, PIECE)).size:
                yield piece

    def map(self, *shape: int) -> NDArray[Any]:
        """The whole file as an array."""
        return self._spool.map(self.path, self._dtype, shape)


class RaggedFile:
    """A :class:`Ragged` that grows in two files."""

    def __init__(self, spool: Spool, name: str) -> None:
        self._spool = spool
        self._name = name
        self._values = ArrayFile(spool, f"{name}.values", np.int32)
        self._starts = ArrayFile(spool, f"{name}.starts", np.int64)
        self._starts.append(np.zeros(1))
        self._rows = 0
        self._total = 0
        self._shortest: int | None = None
        self._longest = 0

    def append(self, rows: Ragged) -> None:
        """Writes more rows, at least one."""
        lengths = rows.lengths
        self._values.append(rows.values)
        self._starts.append(rows.starts[1:] + self._total)
        self._rows += len(lengths)
        self._total += int(rows.starts[-1])
        shortest = int(lengths.min())
        self._shortest = shortest if self._shortest is None else min(shortest, self._shortest)
        self._longest = max(int(lengths.max()), self._longest)

    def lengths(self) -> Iterator[NDArray[np.int64]]:
        """The lengths of the rows so far, some of them at a time."""
        before = np.zeros(0, dtype=np.int64)
        for piece in self._starts.pieces():
            yield np.diff(np.concatenate([before, piece]))
            before = piece[-1:]

    def map(self) -> Ragged:
        """The rows."""
        return Ragged(self._values.map(self._total), self._starts.map(self._rows + 1))

    def table(self) -> NDArray[np.int32]:
        """``[N, longest]``: the rows with ``-1`` behind their ends."""
        if self._shortest == self._longest:
            return self._values.map(self._rows, self._longest)
        rows = self.map()
        table = ArrayFile(self._spool, f"{self._name}.table", np.int32)
        for start in range(0, self._rows, PIECE):
            some = np.arange(start, min(start + PIECE, self._rows))
            table.append(rows.padded(some, self._longest, fill=-1))
            self._spool.release()
        return table.map(self._rows, self._longest)
