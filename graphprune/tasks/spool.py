"""Arrays in files: written piece by piece, then memory-mapped.

Mapped pages that were read stay in a process's resident memory until the system wants them back.
:meth:`Spool.release` hands them back after some reading, so that the resident size does not grow
with the data; the system's cache keeps the pages, and the next reader finds them there.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from graphprune.errors import InputError
from graphprune.tasks.tables import Ragged, row_chunks
from graphprune.util.files import new_scratch


class Spool:
    """A temporary folder of mapped files, removed with the last reference to it.

    Args:
        parent: the folder to make it in; ``None`` takes the system's. Raises
            :class:`~graphprune.errors.InputError` where that is impossible.

    Copies (also through pickle) hold plain arrays and no spool.
    """

    def __init__(self, parent: str | Path | None = None) -> None:
        where = Path(tempfile.gettempdir() if parent is None else parent)
        try:
            where.mkdir(parents=True, exist_ok=True)
            self.folder = new_scratch(where)
        except OSError as error:
            raise InputError(
                f"cannot keep examples in {where}: {error.strerror}; spool= names another folder"
            ) from None
        self._maps: list[mmap.mmap] = []
        self._remove = weakref.finalize(self, _remove, self.folder, os.getpid())

    def append(self, name: str, values: NDArray[Any]) -> None:
        """Writes values behind those in a file; raises ``InputError`` on a full disk."""
        path = self.folder / name
        try:
            with path.open("ab") as file:
                file.write(np.ascontiguousarray(values).tobytes())
        except OSError as error:
            raise InputError(
                f"cannot write examples to {path}: {error.strerror}; spool= names another folder"
            ) from None

    def map(self, name: str, dtype: DTypeLike, *shape: int) -> NDArray[Any]:
        """A read-only array over a whole file."""
        with (self.folder / name).open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._maps.append(mapped)
        return np.frombuffer(mapped, dtype=dtype).reshape(shape)

    def release(self) -> None:
        """Hands mapped pages back to the system, where it lets a program ask for that."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Removes the files now."""
        self._remove()

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return _nothing, ()


def _nothing() -> None:
    """Stands for a copied spool: nothing, since the copy's arrays are in memory."""


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child must not take its parent's files
        shutil.rmtree(folder, ignore_errors=True)


class RaggedFile:
    """A :class:`Ragged` that grows in two files, behind ``blank`` rows without entries."""

    def __init__(self, spool: Spool, name: str, blank: int) -> None:
        self._spool = spool
        self._name = name
        self._rows = blank
        self._total = self._longest = 0
        spool.append(f"{name}.starts", np.zeros(blank + 1, dtype=np.int64))

    def append(self, rows: Ragged) -> None:
        """Writes more rows."""
        self._spool.append(f"{self._name}.values", rows.values)
        self._spool.append(f"{self._name}.starts", rows.starts[1:] + self._total)
        self._rows += len(rows)
        self._total += len(rows.values)
        self._longest = max(int(rows.lengths.max(initial=0)), self._longest)

    def map(self) -> Ragged:
        """The rows."""
        values = self._spool.map(f"{self._name}.values", np.int32, self._total)
        return Ragged(values, self._spool.map(f"{self._name}.starts", np.int64, self._rows + 1))

    def table(self) -> NDArray[np.int32]:
        """``[N, longest]``: all rows, ``-1`` behind their ends; see :meth:`Ragged.table`."""
        rows = self.map()
        for chunk in row_chunks(self._rows, self._spool.release):
            padded = rows.padded(chunk, self._longest, fill=-1)
            self._spool.append(f"{self._name}.table", padded.astype(np.int32))
        return self._spool.map(f"{self._name}.table", np.int32, self._rows, self._longest)
