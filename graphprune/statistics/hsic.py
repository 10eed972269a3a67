"""The Hilbert-Schmidt independence criterion and its permutation test.

``HSIC = tr(K H L H) / (n - 1)^2`` with Gaussian kernels ``exp(-d^2 / (2 s^2))`` and
``H = I - 1/n`` (Gretton et al. 2005, the biased estimate). Each side's width s is the median of
its own distances that are not 0; the published code of the circuit tests takes the median of the
distances *between* the two sides for both, which mixes two scales.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray

from graphprune.comparison.p_values import rank_p
from graphprune.errors import InputError
from graphprune.util.checks import at_least

Rows = Float[NDArray[np.float64], "example feature"]


def _rows(values: ArrayLike, what: str) -> Rows:
    rows = np.asarray(values, dtype=np.float64)
    rows = rows[:, None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise InputError(f"{what} must be finite numbers [n] or [n, d], got {list(rows.shape)}")
    return rows


def _centred_kernel(rows: Rows, width: float | None) -> NDArray[np.float64]:
    """``[n, n]``: ``H K H``; zeros where all rows are the same."""
    squares = (rows**2).sum(1)
    gaps = np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0.0)
    # What cancellation leaves of equal rows is no distance.
    gaps[gaps <= 1e-13 * squares.max(initial=0.0)] = 0.0
    if width is None:
        apart = gaps[gaps > 0]
        if not apart.size:
            return np.zeros_like(gaps)
        width = float(np.sqrt(np.median(apart)))
    kernel = np.exp(-gaps / (2 * width**2))
    kernel -= kernel.mean(0)
    centred: NDArray[np.float64] = kernel - kernel.mean(1, keepdims=True)
    return centred


def hsic(x: ArrayLike, y: ArrayLike, *, widths: tuple[float, float] | None = None) -> float:
    """HSIC of ``x [n]`` or ``[n, d]`` and ``y``, paired by rows.

    Args:
        widths: of the two kernels; ``None`` takes the median of each side's distances that are not
            0.

    Example:
        Two points each, one apart: both kernels are [[1, a], [a, 1]] with a = exp(-1/2), centred
        (1 - a) / 2 times [[1, -1], [-1, 1]], so HSIC is (1 - a)^2.

        >>> round(hsic([0.0, 1.0], [0.0, 1.0]), 6), round(float(1 - np.exp(-0.5)) ** 2, 6)
        (0.154818, 0.154818)
    """
    first, second = _rows(x, "x"), _rows(y, "y")
    if len(first) != len(second) or len(first) < 2:
        raise InputError(f"expected two samples of one size, got {len(first)} and {len(second)}")
    left, right = widths or (None, None)
    total = (_centred_kernel(first, left) * _centred_kernel(second, right)).sum()
    return float(total / (len(first) - 1) ** 2)


def hsic_test(
    x: ArrayLike, y: ArrayLike, *, draws: int = 1000, seed: int = 0
) -> tuple[float, float, NDArray[np.float64]]:
    """HSIC, the p-value of independence, and HSIC under each of ``draws`` permutations of ``y``.

    Where either side is constant HSIC is 0 and the p-value 1.

    Example:
        >>> x = np.arange(30.0)
        >>> hsic_test(x, x**2, draws=199)[1], hsic_test(x, np.zeros(30), draws=199)[1]
        (0.005, 1.0)
    """
    at_least(draws, 1, "draws")
    first, second = _rows(x, "x"), _rows(y, "y")
    n = len(first)
    if n != len(second) or n < 4:
        raise InputError(f"expected two samples of one size from 4 on, got {n} and {len(second)}")
    left, right = _centred_kernel(first, None), _centred_kernel(second, None)
    observed = float((left * right).sum()) / (n - 1) ** 2
    generator = np.random.default_rng(seed)
    null = np.empty(draws)
    for number in range(draws):
        order = generator.permutation(n)
        null[number] = np.einsum("ij,ij->", left, right[np.ix_(order, order)])
    null /= (n - 1) ** 2
    # Permutations that give the same number must not fall to rounding.
    noise = 1e-12 * float(np.abs(left).sum() + np.abs(right).sum()) / (n - 1) ** 2
    return observed, rank_p(observed, null, tolerance=noise), null
