"""Alignment of two prompts of different token length by named spans.

A record names the spans that correspond, ``{name: [[start, end], [start, end]]}``: half-open token
ranges in the clean and in the corrupted prompt, special tokens counted. Between the spans both
prompts must have equally many tokens, which correspond one to one. Inside a span every clean
position reads the mean over the corrupted span, as position-aware circuits pool a span into one
position.

An alignment is kept as two numbers for each clean token: it reads the mean of the corrupted tokens
``start .. stop - 1``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from graphprune.errors import InputError


def _range(value: Any, length: int, what: str) -> tuple[int, int]:
    pair = value if isinstance(value, list | tuple) else []
    if len(pair) != 2 or not all(type(v) is int for v in pair):
        raise InputError(f"{what} must be two token numbers [start, end], got {value!r}")
    start, end = pair
    if not 0 <= start < end <= length:
        raise InputError(
            f"{what} must satisfy 0 <= start < end <= {length}, the prompt's length in tokens; "
            f"got {value!r}"
        )
    return start, end


def span_ranges(
    spans: Mapping[str, Any], clean_length: int, corrupt_length: int, where: str = "record"
) -> tuple[list[int], list[int]]:
    """For each clean token, the half-open range of corrupted tokens that it reads.

    Returns two lists of ``clean_length`` entries, ``starts`` and ``stops``. Raises
    :class:`~graphprune.errors.InputError` naming ``where`` if spans overlap, stand in another
    order, leave the prompt, or if the tokens between them differ in number.

    Example:
        >>> span_ranges({"city": [[1, 2], [1, 3]]}, clean_length=3, corrupt_length=4)
        ([0, 1, 3], [1, 3, 4])
    """
    if not isinstance(spans, Mapping) or not spans:
        raise InputError(
            f"{where}: spans must be {{name: [[start, end], [start, end]]}}, got {spans!r}"
        )
    ranges = []
    for name, pair in spans.items():
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise InputError(
                f"{where}: span {name!r} must hold a range for the clean and one for the "
                f"corrupted prompt, got {pair!r}"
            )
        clean = _range(pair[0], clean_length, f"{where}: span {name!r} in the clean prompt")
        corrupt = _range(pair[1], corrupt_length, f"{where}: span {name!r} in the corrupted prompt")
        ranges.append((clean, corrupt, f"span {name!r}"))
    ranges.sort()

    starts: list[int] = []
    stops: list[int] = []
    here = there = 0
    before = "the prompts' start"
    end = ((clean_length, clean_length), (corrupt_length, corrupt_length), "the prompts' end")
    for (start, stop), (other, other_stop), label in [*ranges, end]:
        if start < here or other < there:
            raise InputError(
                f"{where}: {before} and {label} overlap, or stand in another order "
                "in the two prompts"
            )
        if start - here != other - there:
            raise InputError(
                f"{where}: between {before} and {label} the clean prompt has {start - here} "
                f"tokens and the corrupted one {other - there}; they must be equally many"
            )
        starts += [*range(there, other), *[other] * (stop - start)]
        stops += [*range(there + 1, other + 1), *[other_stop] * (stop - start)]
        here, there, before = stop, other_stop, label
    return starts, stops


def span_slots(spans: Mapping[str, Any], names: Sequence[str], clean_length: int) -> list[int]:
    """For each clean token the number of its span among ``names``, ``len(names)`` outside all.

    Example:
        >>> span_slots({"city": [[1, 3], [1, 2]]}, ["city"], 4)
        [1, 0, 0, 1]
    """
    slots = [len(names)] * clean_length
    for name, (clean, _) in spans.items():
        slots[clean[0] : clean[1]] = [list(names).index(name)] * (clean[1] - clean[0])
    return slots


def alignment_matrix(
    start: NDArray[np.int64], stop: NDArray[np.int64], corrupt_width: int
) -> Float32[Tensor, "batch pos corrupt_pos"]:
    """``[B, T, T']`` weights from ranges ``[B, T]``; every row sums to 1.

    Padding (``start == stop``) reads the corrupted position of its own number, or the last one.
    """
    own = np.minimum(np.arange(start.shape[1]), corrupt_width - 1)
    padding = start == stop
    start = np.where(padding, own, start)[..., None]
    stop = np.where(padding, own + 1, stop)[..., None]
    steps = np.arange(corrupt_width)
    weights = ((steps >= start) & (steps < stop)) / (stop - start)
    return torch.from_numpy(weights.astype(np.float32))
