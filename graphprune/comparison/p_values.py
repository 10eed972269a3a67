"""Monte Carlo p-values, and corrections for several tests made together.

A Monte Carlo p-value is ``(1 + #{draws at least as extreme}) / (1 + draws)``: never 0, and valid at
every number of draws (Phipson & Smyth 2010). The published code of the circuit tests divides the
count by the number of draws instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import ArrayLike, NDArray


def rank_p(value: float, draws: ArrayLike, *, tolerance: float = 0.0) -> float:
    """The chance of a draw as large as ``value``, where ``value`` is one of the draws by the null.

    Example:
        >>> rank_p(3.0, [1.0, 2.0, 3.0, 4.0]), rank_p(9.0, [0.0] * 99)
        (0.6, 0.01)
    """
    drawn = np.asarray(draws, dtype=float)
    return float((1 + np.count_nonzero(drawn >= value - tolerance)) / (1 + drawn.size))


def bonferroni(p_values: ArrayLike) -> NDArray[np.float64]:
    """``[n]``: p-values times their number, at most 1."""
    p = np.asarray(p_values, dtype=float)
    return np.asarray(np.minimum(1.0, p * p.size))


@overload
def holm(p_values: Sequence[float]) -> list[float]: ...
@overload
def holm(p_values: Sequence[float | None]) -> list[float | None]: ...
def holm(p_values: Sequence[float | None]) -> Sequence[float | None]:
    """Holm's adjusted p-values: the chance of any false alarm in the family stays below them.

    Valid however the tests depend on each other. ``None`` stays ``None`` and counts for nothing.

    Example:
        >>> holm([0.01, 0.04, None, 0.03])
        [0.03, 0.06, None, 0.06]
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    out: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min((len(known) - rank) * p, 1.0))
        out[place] = largest
    return out
