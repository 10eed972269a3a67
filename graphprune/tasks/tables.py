"""Integer tables: rows of different lengths unpadded, and answers and positions, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphprune.errors import InputError

CHUNK = 4096  # rows read or compared at a time


def row_chunks(count: int, release: Callable[[], None] | None) -> Iterator[NDArray[np.int64]]:
    """The numbers of ``count`` rows, some at a time; ``release`` hands back what was read."""
    for start in range(0, count, CHUNK):
        yield np.arange(start, min(start + CHUNK, count))
        if release is not None:
            release()


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


def integer_tensor(value: Any, what: str) -> Tensor:
    """``value`` as an int64 tensor on the CPU; raises for other kinds of number."""
    try:
        tensor = torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what} must be a tensor of integers: {error}") from None
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise InputError(f"{what} must hold integers, got {tensor.dtype}")
    return tensor.to(torch.int64)


def id_table(value: Any, positions: NDArray[np.int32], name: str) -> NDArray[np.int32] | None:
    """Answer ids as ``[N, A]``, or ``[N, P, A]`` for ``positions [N, P]``; ``-1`` pads.

    ``value`` is ``None``, a tensor of one to three axes, or a list with one id or one list of ids
    for each of the ``N`` examples. ``[N, A]`` holds alternatives, the same at every position; with
    ``A == P > 1`` it is refused, for it may be meant as one id a position.
    """
    if value is None:
        return None
    if isinstance(value, list | tuple) and any(isinstance(v, list | tuple) for v in value):
        rows = [list(v) if isinstance(v, list | tuple) else [v] for v in value]
        flat = [v for row in rows for v in row]
        if len({len(row) for row in rows}) > 1 and all(type(v) is int for v in flat):
            value = Ragged.from_rows(rows).table()
    table = integer_tensor(value, name).numpy()
    if table.ndim == 1:
        table = table[:, None]
    n = len(positions)
    if table.ndim == 2 and positions.ndim == 2 and 1 < positions.shape[1] == table.shape[1]:
        count = table.shape[1]
        raise InputError(
            f"{name} [{n}, {count}] beside positions [{n}, {count}] could be one id for each "
            f"position or {count} alternatives at every position: give [{n}, {count}, 1] for one "
            f"id a position, [{n}, {count}, {count}] for the alternatives at every position"
        )
    per_position = table.ndim == 3 and positions.ndim == 2 and table.shape[1] == positions.shape[1]
    if (
        len(table) != n
        or table.ndim not in (2, 3)
        or table.shape[-1] == 0
        or (table.ndim == 3 and not per_position)
    ):
        raise InputError(
            f"{name} must hold one id or a list of ids for each of the {n} examples, as [{n}] or "
            f"[{n}, A] (or [{n}, P, A] beside positions [{n}, P]), got the shape "
            f"{list(table.shape)}"
        )
    if table.min() < -1 or table.max() > np.iinfo(np.int32).max:
        raise InputError(
            f"{name} must hold token ids from 0 on, and -1 as padding; got {table.min()} to "
            f"{table.max()}"
        )
    empty = ~(table >= 0).reshape(n, -1).any(1)
    if empty.any():
        raise InputError(f"{name} of example {int(np.argmax(empty))} is empty")
    return table.astype(np.int32)


def position_table(
    value: Any, real: NDArray[np.bool_], left: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Positions ``[N]`` or ``[N, P]`` counted from each prompt's first token.

    ``real [N, T]`` marks tokens, ``left [N]`` counts the padding in front of them.
    """
    n, width = real.shape
    if value is None:
        return np.asarray(real.sum(1) - 1, dtype=np.int32)
    table = integer_tensor(value, "positions").numpy()
    if table.ndim == 0:
        table = np.full(n, table)
    if table.ndim not in (1, 2) or len(table) != n or 0 in table.shape:
        raise InputError(
            f"positions must be one column number, [{n}] or [{n}, P], got the shape "
            f"{list(table.shape)}"
        )
    wide = table.reshape(n, -1)
    padding = (wide == -1) if table.ndim == 2 else np.zeros_like(wide, dtype=bool)
    inside = (wide >= 0) & (wide < width)
    good = inside & real[np.arange(n)[:, None], np.where(inside, wide, 0)]
    if not (good | padding).all():
        row, column = np.argwhere(~(good | padding))[0]
        raise InputError(
            f"positions must name tokens of the prompts (columns 0..{width - 1}, no padding; "
            f"None takes the last token), got {wide[row, column]} for example {row}"
        )
    if padding.all(1).any():
        raise InputError(f"positions of example {int(np.argmax(padding.all(1)))} are all -1")
    moved = np.where(padding, -1, wide - left[:, None]).astype(np.int32)
    return np.asarray(moved.reshape(table.shape))


def overlap(
    answer: NDArray[np.int32] | None, distractor: NDArray[np.int32] | None
) -> tuple[int, int] | None:
    """The first example and id that is answer and distractor at once, or ``None``."""
    if answer is None or distractor is None:
        return None
    if answer.ndim != distractor.ndim:
        raise InputError(
            "answer and distractor must both be given for each example or both for each position, "
            f"got the shapes {list(answer.shape)} and {list(distractor.shape)}"
        )
    for row in range(0, len(answer), CHUNK):
        mine, theirs = answer[row : row + CHUNK], distractor[row : row + CHUNK]
        same = (mine[..., :, None] == theirs[..., None, :]) & (mine[..., :, None] >= 0)
        if same.any():
            place = np.argwhere(same)[0]
            return row + int(place[0]), int(mine[tuple(place[:-1])])
    return None


def last_tokens(lengths: NDArray[np.int64], appended: int) -> NDArray[np.int32]:
    """The last token of each prompt that the tokenizer did not append; it appends so many."""
    return (lengths - 1 - appended).astype(np.int32)


def mask_array(mask: Any, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """``[N, T]`` bool: real tokens; one unbroken stretch in each row."""
    if mask is None:
        return np.ones(shape, dtype=bool)
    values = torch.as_tensor(mask).detach().cpu().numpy()
    if values.shape != shape:
        raise InputError(
            f"attention_mask must have clean's shape {list(shape)}, got {list(values.shape)}"
        )
    if not np.isin(values, (0, 1)).all():
        raise InputError(
            f"attention_mask must hold 0 and 1 only, got {values.min()} to {values.max()}"
        )
    real: NDArray[np.bool_] = values.astype(bool)
    if not real.any(1).all():
        raise InputError(f"attention_mask leaves example {int(np.argmin(real.any(1)))} no token")
    stretches = (np.diff(real.astype(np.int8), axis=1, prepend=0) == 1).sum(1)
    if (stretches > 1).any():
        raise InputError(
            f"attention_mask of example {int(np.argmax(stretches > 1))} has padding between "
            "tokens; only padding on the left or on the right can be moved"
        )
    return real
