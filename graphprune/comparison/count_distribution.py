"""Distributions of a number of shared edges, as exact probabilities.

``CountDistribution(first, pmf)`` gives the counts ``first, first + 1, ...`` their probabilities.
Probabilities below 1e-300 are cut from the ends where distributions are added; tails are summed
from the small end, so that small p-values keep their digits. None is below the smallest float: a
p-value of 0 means one under 1e-300.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphprune.errors import InputError

_SMALLEST = 1e-300
_CHUNK = 256


@dataclass(frozen=True, eq=False)
class CountDistribution:
    """Probabilities ``pmf`` of the counts ``first, first + 1, ...``.

    Example:
        >>> coin = CountDistribution(0, np.array([0.5, 0.5]))
        >>> two = coin.plus(coin)
        >>> two.mean, two.at_least(1), two.at_most(0), two.band()
        (1.0, 0.75, 0.25, (0, 2))
    """

    first: int
    pmf: NDArray[np.float64]

    @property
    def counts(self) -> NDArray[np.int64]:
        """The counts that have a probability."""
        return np.arange(self.first, self.first + len(self.pmf))

    @property
    def mean(self) -> float:
        """The expected count."""
        return float(self.pmf @ self.counts)

    @property
    def sd(self) -> float:
        """The standard deviation."""
        return float(np.sqrt(self.pmf @ (self.counts - self.mean) ** 2))

    def expected(self, function: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> float:
        """The mean of a function of the count."""
        return float(self.pmf @ function(self.counts.astype(np.float64)))

    def at_least(self, count: int) -> float:
        """P(count or more)."""
        return float(min(self.pmf[max(count - self.first, 0) :][::-1].sum(), 1.0))

    def at_most(self, count: int) -> float:
        """P(count or fewer)."""
        return float(min(self.pmf[: max(count - self.first + 1, 0)].sum(), 1.0))

    def band(self) -> tuple[int, int]:
        """95 % of the probability: the smallest counts to which .025 and .975 of it lie."""
        cumulative = self.pmf.cumsum()
        # A float's width of slack: the sum of all probabilities is 1 up to rounding.
        places = np.searchsorted(cumulative, [0.025 - 1e-12, 0.975 - 1e-12])
        low, high = np.minimum(places, len(self.pmf) - 1) + self.first
        return int(low), int(high)

    def plus(self, other: CountDistribution) -> CountDistribution:
        """The sum of two independent counts."""
        return CountDistribution(
            self.first + other.first, np.convolve(self.pmf, other.pmf)
        ).trimmed()

    def trimmed(self) -> CountDistribution:
        """Without ends whose probability is below 1e-300."""
        large = np.flatnonzero(self.pmf >= _SMALLEST)
        if not len(large):
            return self
        return CountDistribution(self.first + int(large[0]), self.pmf[large[0] : large[-1] + 1])

    def reweighted(
        self, weight: Callable[[NDArray[np.int64]], NDArray[np.float64]]
    ) -> CountDistribution:
        """Probabilities times ``weight(counts)``, made to sum to 1 again."""
        product = self.pmf * weight(self.counts)
        whole = float(product.sum())
        if not whole > 0:
            raise InputError("no count has a probability above 0 under this condition")
        return CountDistribution(self.first, product / whole)

    def of(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """The probabilities of these counts."""
        places = counts - self.first
        inside = (places >= 0) & (places < len(self.pmf))
        return np.where(inside, self.pmf[np.clip(places, 0, len(self.pmf) - 1)], 0.0)


def hypergeometric(whole: int, first: int, second: int) -> CountDistribution:
    """The number of members that two random sets share, ``first`` and ``second`` of ``whole``.

    Example:
        >>> hypergeometric(4, 2, 2).pmf * 6
        array([1., 4., 1.])
    """
    low, high = max(0, first + second - whole), min(first, second)
    counts = np.arange(low, high, dtype=np.float64)
    # The ratio of each probability to the one before, exact in float64. scipy's own takes 20 ms
    # for each distribution of this size, this one 0.1.
    up = (first - counts) * (second - counts)
    down = (counts + 1) * (whole - first - second + counts + 1)
    logs = np.concatenate([np.zeros(1), np.cumsum(np.log(up / down))])
    pmf = np.exp(logs - logs.max())
    return CountDistribution(low, pmf / pmf.sum())


def bernoulli_sum(chances: NDArray[np.float64]) -> CountDistribution:
    """The number of independent events with these chances that happen (Poisson binomial).

    Example:
        >>> bernoulli_sum(np.array([0.5, 0.5, 1.0])).pmf, bernoulli_sum(np.array([1.0])).first
        (array([0.25, 0.5 , 0.25]), 1)
    """
    certain = int((chances >= 1).sum())
    open_ = chances[(chances > 0) & (chances < 1)]
    if not len(open_):
        return CountDistribution(certain, np.ones(1))
    padded = np.zeros(-(-len(open_) // _CHUNK) * _CHUNK)
    padded[: len(open_)] = open_
    rows = padded.reshape(-1, _CHUNK)
    table = np.zeros((len(rows), _CHUNK + 1))
    table[:, 0] = 1.0
    for step in range(_CHUNK):
        chance = rows[:, step : step + 1]
        table[:, 1:] = table[:, 1:] * (1 - chance) + table[:, :-1] * chance
        table[:, 0] *= 1 - chance[:, 0]
    summed = total([CountDistribution(0, row).trimmed() for row in table])
    return CountDistribution(summed.first + certain, summed.pmf)


def total(parts: Sequence[CountDistribution]) -> CountDistribution:
    """The sum of independent counts, added in pairs of like size."""
    left = list(parts)
    if not left:
        return CountDistribution(0, np.ones(1))
    while len(left) > 1:
        pairs = zip(left[::2], left[1::2], strict=False)
        left = [a.plus(b) for a, b in pairs] + ([left[-1]] if len(left) % 2 else [])
    return left[0]
