"""p-values of circuit tests, Monte Carlo and exact, and corrections for several tests together.

A Monte Carlo p-value is ``(1 + #{draws at least as extreme}) / (1 + draws)``: never 0, and valid at
every number of draws (Phipson & Smyth 2010). The published code of the circuit tests divides the
count by the number of draws instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

P = TypeVar("P", float, float | None)


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


def holm(p_values: Sequence[P]) -> list[P]:
    """Holm's adjusted p-values: the chance of any false alarm in the family stays below them.

    Valid however the tests depend on each other. ``None`` stays ``None`` and counts for nothing.

    Example:
        >>> holm([0.01, 0.04, None, 0.03])
        [0.03, 0.06, None, 0.06]
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    out: list[Any] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min((len(known) - rank) * p, 1.0))
        out[place] = largest
    return out


def differs(wins: int, losses: int, n: int, epsilon: float) -> float:
    """The p-value of "either side wins on a share of ``n`` examples within 1/2 ± epsilon".

    Ties count half for either side. ``P(|K/n - 1/2| >= t)`` for K binomial at ``1/2 + epsilon``,
    the least favourable share (Shi et al. 2024, arXiv 2410.13032).

    Example:
        >>> differs(5, 5, 10, 0.1), round(differs(10, 0, 10, 0.1), 6)  # .6 ** 10 + .4 ** 10
        (1.0, 0.006151)
    """
    from scipy.stats import binom

    gap = abs(wins - losses)
    if gap == 0:
        return 1.0
    above = binom.sf(-(-(n + gap) // 2) - 1, n, 0.5 + epsilon)
    below = binom.cdf((n - gap) // 2, n, 0.5 + epsilon)
    return min(1.0, float(above + below))


def is_within(wins: int, losses: int, n: int, epsilon: float) -> float:
    """The p-value of "the share that one side wins lies outside 1/2 ± epsilon".

    Two one-sided binomial tests, the larger of their p-values; half a tie is rounded against.

    Example:
        >>> round(is_within(0, 0, 363, 0.1), 5), round(is_within(3, 3, 6, 0.1), 2)
        (9e-05, 0.46)
    """
    from scipy.stats import binom

    doubled = 2 * wins + (n - wins - losses)
    above = binom.sf(doubled // 2 - 1, n, 0.5 - epsilon)
    below = binom.cdf(-(-doubled // 2), n, 0.5 + epsilon)
    return float(max(above, below))


def beats_share(count: int, n: int, quantile: float, *, more: bool) -> float:
    """The p-value of "of all random ones it beats at most (``more``; else: at least) this share".

    ``count`` of ``n`` random ones were beaten; exact binomial.

    Example:
        >>> round(beats_share(100, 100, 0.9, more=True), 7)  # .9 ** 100
        2.66e-05
        >>> round(beats_share(0, 20, 0.9, more=False), 22)  # .1 ** 20
        1e-20
    """
    from scipy.stats import binom

    return float(binom.sf(count - 1, n, quantile) if more else binom.cdf(count, n, quantile))


def sign_flip_p(differences: ArrayLike, *, draws: int = 2000, seed: int = 0) -> float:
    """The p-value of "the differences are symmetric around 0", two-sided, by flips of their signs.

    Example:
        >>> sign_flip_p([1.0] * 20, draws=999), sign_flip_p([0.0] * 20, draws=999)
        (0.001, 1.0)
    """
    values = np.asarray(differences, dtype=float)
    observed = abs(values.mean())
    generator = np.random.default_rng(seed)
    null = np.empty(draws)
    for first in range(0, draws, 256):
        size = min(256, draws - first)
        signs = generator.integers(0, 2, size=(size, values.size)) * 2 - 1
        null[first : first + size] = np.abs(signs @ values) / values.size
    return rank_p(float(observed), null, tolerance=1e-12 * float(np.abs(values).max(initial=0.0)))
