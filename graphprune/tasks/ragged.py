"""Rows of different lengths in one flat array: no padding is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ragged"]


@dataclass(frozen=True, eq=False)
class Ragged:
    """``N`` rows of integers.

    Args:
        values: ``[sum of lengths]`` int32, the rows one behind the other.
        starts: ``[N + 1]`` int64, where each row begins; the last entry is the end.

    Example:
        >>> rows = Ragged.from_rows([[5, 6, 7], [8]])
        >>> rows.padded(np.array([1, 0]), width=3, fill=0).tolist()
        [[8, 0, 0], [5, 6, 7]]
    """

    values: NDArray[np.int32]
    starts: NDArray[np.int64]

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[int]]) -> Ragged:
        """Packs a list of rows."""
        lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
        flat = np.fromiter((v for row in rows for v in row), dtype=np.int32, count=lengths.sum())
        return cls(flat, np.concatenate([[0], np.cumsum(lengths)]))

    @classmethod
    def from_padded(cls, table: NDArray[np.int64], real: NDArray[np.bool_]) -> Ragged:
        """Packs the entries of ``table [N, T]`` where ``real [N, T]`` holds."""
        return cls(table[real].astype(np.int32), np.concatenate([[0], np.cumsum(real.sum(1))]))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """``[N]``: entries in each row."""
        return np.diff(self.starts)

    def lengths_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """``[len(rows)]``: entries in these rows."""
        return self.starts[rows + 1] - self.starts[rows]

    def row(self, number: int) -> NDArray[np.int32]:
        """One row."""
        return self.values[self.starts[number] : self.starts[number + 1]]

    def padded(self, rows: NDArray[np.int64], width: int, fill: int) -> NDArray[np.int64]:
        """``[len(rows), width]`` int64: the rows, filled up on the right."""
        steps = np.arange(width)
        place = self.starts[rows][:, None] + steps
        real = steps < self.lengths_of(rows)[:, None]
        picked = self.values[np.minimum(place, len(self.values) - 1)]
        return np.where(real, picked, fill).astype(np.int64)

    def table(self) -> NDArray[np.int32]:
        """``[N, longest]``: all rows, ``-1`` behind their ends.

        Example:
            >>> Ragged.from_rows([[3], [4, 5]]).table().tolist()
            [[3, -1], [4, 5]]
        """
        width = int(self.lengths.max(initial=0))
        return self.padded(np.arange(len(self)), width, fill=-1).astype(np.int32)
