"""Sizes: how many edges a number means, and the sizes of the MIB benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphprune.errors import InputError

__all__ = ["MIB_SIZES", "as_size", "budget", "some_edges", "trapezoid_weights"]

MIB_SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def trapezoid_weights(sizes: Sequence[float]) -> tuple[float, ...]:
    """What each value counts in the trapezoid rule: half of the way between its neighbours.

    Example:
        >>> [round(weight, 4) for weight in trapezoid_weights(MIB_SIZES)[-4:]]
        [0.075, 0.2, 0.4, 0.25]
    """
    ends = [sizes[0], *sizes, sizes[-1]]
    return tuple((after - before) / 2 for before, after in zip(ends[:-2], ends[2:], strict=True))


def budget(size: float, total: int) -> int:
    """How many edges ``size`` means: an int is a count, a float a fraction, ``int(f * total)``.

    Raises :class:`InputError` for a count outside 0..total or a fraction outside (0, 1].

    Example:
        >>> budget(0.01, 32491), budget(7, 32491)
        (324, 7)
    """
    if isinstance(size, bool) or not isinstance(size, (int, float, np.integer, np.floating)):
        raise InputError(f"expected a number of edges (int) or a fraction (float), got {size!r}")
    if isinstance(size, (int, np.integer)):
        if not 0 <= size <= total:
            raise InputError(f"expected a number of edges from 0 to {total}, got {size}")
        return int(size)
    if not 0.0 < size <= 1.0:
        raise InputError(
            f"expected a density in (0, 1] (or an int for a number of edges), got {size}"
        )
    return int(size * total)


def as_size(size: Any) -> int | float:
    """A number of edges as an int, a share of them as a float.

    Raises :class:`InputError` for anything else; whether a graph has so many is seen when it runs.
    """
    if isinstance(size, int | np.integer) and not isinstance(size, bool):
        return int(size)
    if isinstance(size, float | np.floating):
        return float(size)
    raise InputError(f"size is a number of edges (int) or a share of them (float), got {size!r}")


def some_edges(size: Any, total: int) -> int:
    """How many edges ``size`` means, at least one; :class:`InputError` otherwise."""
    count = budget(size, total)
    if count < 1:
        raise InputError(f"size={size!r} keeps no edge of {total}")
    return count
