"""Intervals of means over examples, and of ratios of two means over the same examples.

One routine for all tables. An end is that of the studentised bootstrap or of Student's t, whichever
lies farther out: the first follows the skew of the values, the second holds where resamples are too
few or too alike to show any. The bootstrap's quantiles lie a little farther out than the level
says, as a normal distribution's do when they have to reach Student's t times the root of
n / (n - 1), since samples of skewed values show too little of their tail. Simulated coverage at
95 % of 20 examples is .97 for normal and for exponential values and .94 for log-normal ones (sigma
1), of 100 examples .96, .96 and .95; plain percentiles cover .93, .90 and .86 of 20.
Values that all lie at the ends of their scale, such as right and wrong answers, are counted, and so
are values of two kinds: Clopper and Pearson's interval, which covers at least at its level. What a
sample does not show no interval knows: values that are 0 nine times in ten and exponential
otherwise are covered .7 of the time at 20, log-normal ones with sigma 1.5 .9 of the time.

Sources: Hall, The Bootstrap and Edgeworth Expansion, 1992 (studentised); Hesterberg, The American
Statistician 69, 2015 (quantiles farther out); Fieller 1954 (ratios); Clopper and Pearson 1934.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphprune.errors import InputError, NumericalError

UNBOUNDED = (-math.inf, math.inf)
ENOUGH = 20
"""Examples from which on intervals cover at least .92 of the time at a level of 95 %."""

_RESAMPLED = 5  # below, too many resamples have no spread at all
_CHUNK = 50
_ROUNDING = 1e-12  # of the largest value, in float64


def few_examples(count: int) -> str | None:
    """A remark on intervals from fewer than 20 examples, ``None`` from 20 on."""
    if count >= ENOUGH:
        return None
    if count == 1:
        return "one example: no interval"
    return (
        f"{count} examples: below {ENOUGH} the 95 % intervals are rough, those of skewed values "
        "hold the mean less often (.90 of the time for log-normal values at 8)"
    )


def bootstrap_interval(
    values: Tensor,
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
    bounds: tuple[float, float] = UNBOUNDED,
) -> tuple[float, float]:
    """The interval of the mean of ``values [n]``; see the module.

    Values that are all equal give an interval of width 0, unless they lie at an end of finite
    ``bounds``. A single value gives none (NaN), with the same exception, and so do values
    that are not all finite.

    Args:
        level: how often the interval is to hold the mean.
        draws: resamples.
        bounds: the least and the largest value that there can be; the interval stays inside.

    Raises:
        InputError: no values, or a level that is not between 0 and 1.

    Example:
        >>> import torch
        >>> bootstrap_interval(torch.full((20,), 0.5))
        (0.5, 0.5)
        >>> low, high = bootstrap_interval(torch.ones(20), bounds=(0, 1))
        >>> round(low, 3), high  # 20 of 20 right: the 20th root of .025
        (0.832, 1.0)
    """
    x = _checked(values, level)
    n, least, most = len(x), *bounds
    if math.isfinite(least) and math.isfinite(most) and np.isin(x, bounds).all():
        low, high = _counted(int((x == most).sum()), n, level)
        return least + (most - least) * low, least + (most - least) * high
    if n == 1 or not np.isfinite(x).all():
        return math.nan, math.nan
    seen = np.unique(x)
    if len(seen) == 2 and n >= _RESAMPLED:  # right and wrong under other names
        low, high = _counted(int((x == seen[1]).sum()), n, level)
        width = float(seen[1] - seen[0])
        return max(float(seen[0]) + width * low, least), min(float(seen[0]) + width * high, most)
    mean = float(x.mean())
    error = _error(x, float(np.abs(x).max()))
    if error == 0.0:
        return mean, mean
    below, above = _pivots(x - mean, level, draws, seed)
    return max(mean - above * error, least), min(mean - below * error, most)


def ratio_interval(
    above: Tensor, below: Tensor, *, level: float = 0.95, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """The interval of ``mean(above) / mean(below)``, both ``[n]`` of the same examples.

    It holds every ratio r at which the mean of ``above - r * below`` is not told apart from 0
    (Fieller), so that it contains the estimate. An end is infinite where the mean of ``below`` is
    not far enough from 0 to bound the ratio. NaN for a single example, and where a value is NaN
    or infinite.

    Example:
        >>> import torch
        >>> x = torch.arange(1.0, 31.0)
        >>> ratio_interval(x / 2, x)  # the same ratio on every example
        (0.5, 0.5)
        >>> ratio_interval(x, torch.cat([x[:15], -x[:15]]))
        (-inf, inf)
    """
    a, b = _checked(above, level), _checked(below, level)
    n = len(a)
    if n == 1 or not (np.isfinite(a) & np.isfinite(b)).all():
        return math.nan, math.nan
    sign = 1.0 if b.mean() >= 0 else -1.0
    a, b = sign * a, sign * b
    top, bottom = float(a.mean()), float(b.mean())
    if bottom == 0.0:
        return UNBOUNDED
    ratio = top / bottom
    rest = a - ratio * b
    largest = max(float(np.abs(a).max()), abs(ratio) * float(np.abs(b).max()))
    if _error(rest, largest) == 0.0:
        return ratio, ratio
    (aa, ab), (_, bb) = np.cov(a, b) / n
    under, over = _pivots(rest - rest.mean(), level, draws, seed)

    def end(pivot: float) -> float:
        """The r at which ``mean(a - r b)`` is ``pivot`` standard errors from 0."""
        square = bottom**2 - pivot**2 * bb
        if square <= 0:
            return math.copysign(math.inf, -pivot)
        half = top * bottom - pivot**2 * ab
        root = math.sqrt(max(half**2 - square * (top**2 - pivot**2 * aa), 0.0))
        return float((half - math.copysign(root, pivot)) / square)

    return min(end(over), ratio), max(end(under), ratio)


def function_interval(
    values: Tensor,
    function: Callable[[Tensor], Tensor],
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
    bounds: tuple[float, float] = UNBOUNDED,
) -> tuple[float, float]:
    """The interval of ``function(means)``, ``means [K]`` those of the columns of ``values [n, K]``.

    Rows are drawn anew, as :func:`bootstrap_interval` draws values; the error of the function, in
    each resample too, is that of its slope along the means.

    Args:
        values: a row for each example.
        function: ``[draws, K]`` to ``[draws]``, differentiable, a row at a time.
        level, draws, seed, bounds: as there.

    Example:
        >>> import torch
        >>> x = torch.arange(20.0)
        >>> columns = torch.stack([x, x + 1], dim=1)
        >>> [round(end, 3) for end in function_interval(columns, lambda means: means[:, 0])]
        [6.442, 12.457]
        >>> [round(end, 3) for end in bootstrap_interval(x)]
        [6.442, 12.457]
        >>> function_interval(columns, lambda means: means[:, 1] - means[:, 0])
        (1.0, 1.0)
    """
    x = torch.from_numpy(_checked(values, level)).reshape(len(values), -1)
    n = len(x)
    if n == 1 or not bool(x.isfinite().all()):
        return math.nan, math.nan

    def with_errors(means: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """The function and its standard error, ``[D]``, of resamples with ``counts [D, n]``."""
        means = means.detach().requires_grad_(True)
        with torch.enable_grad():
            out = function(means)
            (slope,) = torch.autograd.grad(out.sum(), means)
        along = slope @ x.T - (slope * means).sum(1, keepdim=True).detach()
        variance = (counts * along.square()).sum(1) / (n - 1)
        noise = (_ROUNDING * (slope.abs() @ x.abs().amax(0))) ** 2
        return out.detach(), torch.where(variance <= noise, 0.0, variance / n).sqrt()

    everything = torch.ones(1, n, dtype=torch.float64)
    centre, error = (float(part) for part in with_errors(x.mean(0, keepdim=True), everything))
    if error == 0.0:
        return centre, centre
    generator = np.random.default_rng(seed)
    chunks = [np.empty(0)]
    for first in range(0, draws if n >= _RESAMPLED else 0, _CHUNK):
        drawn = torch.from_numpy(generator.integers(n, size=(min(_CHUNK, draws - first), n)))
        counts = torch.zeros(drawn.shape, dtype=torch.float64)
        counts.scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=torch.float64))
        values_of, errors = with_errors(counts @ x / n, counts)
        spread = errors.square() > 1e-9 * error**2
        chunks.append(((values_of - centre) / errors)[spread].numpy())
    below, above = _outer_quantiles(np.concatenate(chunks), level, n)
    return max(centre - above * error, bounds[0]), min(centre - below * error, bounds[1])


def _checked(values: Tensor, level: float) -> NDArray[np.float64]:
    if not 0 < level < 1:
        raise InputError(f"level is a share between 0 and 1, got {level!r}")
    if not values.numel():
        raise InputError("an interval needs at least one value, got none")
    x: NDArray[np.float64] = values.detach().cpu().double().flatten().numpy()
    return x


def _error(x: NDArray[np.float64], largest: float) -> float:
    """The standard error of the mean of ``x [n]``; 0 where the values differ by rounding only."""
    spread = float(x.std(ddof=1))
    return 0.0 if spread <= _ROUNDING * largest else spread / math.sqrt(len(x))


def _pivots(
    centred: NDArray[np.float64], level: float, draws: int, seed: int
) -> tuple[float, float]:
    """The ends of what (mean - true mean) / standard error comes to, from ``centred [n]``."""
    n = len(centred)
    generator = np.random.default_rng(seed)
    chunks = [np.empty(0)]
    for first in range(0, draws if n >= _RESAMPLED else 0, _CHUNK):
        drawn = centred[generator.integers(n, size=(min(_CHUNK, draws - first), n))]
        mean, variance = drawn.mean(1), drawn.var(1)
        spread = variance > 1e-9 * centred.var()  # a resample of equal values tells no error
        chunks.append(mean[spread] / np.sqrt(variance[spread] / (n - 1)))
    return _outer_quantiles(np.concatenate(chunks), level, n)


def _outer_quantiles(pivots: NDArray[np.float64], level: float, n: int) -> tuple[float, float]:
    """The ends of resampled pivots, a little outside their quantiles, or Student's if farther."""
    from scipy.stats import norm, t

    tail = (1 - level) / 2
    reach = -float(t.ppf(tail, n - 1))
    if not len(pivots):
        return -reach, reach
    m = max(n, ENOUGH)  # fewer values have no tail as far out as theirs would be
    outer = float(norm.cdf(math.sqrt(m / (m - 1)) * t.ppf(tail, m - 1)))
    low, high = np.quantile(pivots, [outer, 1 - outer])
    return min(float(low), -reach), max(float(high), reach)


def _counted(successes: int, n: int, level: float) -> tuple[float, float]:
    """Clopper and Pearson's interval of a share."""
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = float(beta.ppf(tail, successes, n - successes + 1)) if successes else 0.0
    high = float(beta.ppf(1 - tail, successes + 1, n - successes)) if successes < n else 1.0
    return low, high


# Ranks: a float32 computation repeats to within about NOISE of its largest result when examples
# are batched otherwise or another processor adds in another order. What differs by less is a tie.
# Measured as shares of the largest score: up to 3.9e-6 between instruction sets and 1.3e-6 between
# batch sizes on SmolLM2-135M (EAP, EAP-IG, information flow); edges without effect reach 2.0e-6
# on a two-layer Llama.
NOISE = 2.0**-18
# Below this share a score is only what products of rounding leave (1e-22 beside 1e-3 on a compiled
# program, where processors differ by a sixth of it): it is 0, and graph order breaks the tie.
VANISHING = 2.0**-40


def levels(values: Tensor, noise: float) -> NDArray[np.int64]:
    """``[n]``: whole numbers in the order of ``values [n]`` that ties share.

    Magnitudes are walked through from 0 up; those within ``noise`` of where a level begins belong
    to it. The sign is kept, and level 0 are numbers not told from 0.

    Example:
        >>> levels(Tensor([0.5, -2.0, 1e-7, -3e-7, 0.5000001, 2.0]), noise=1e-5).tolist()
        [1, -2, 0, 0, 1, 2]
    """
    signed = values.detach().cpu().double().numpy()
    size = np.abs(signed)
    order = np.argsort(size, kind="stable")
    ascending = np.concatenate([[0.0], size[order]])
    ends = np.searchsorted(ascending, ascending + noise, side="right").tolist()
    begins = np.zeros(len(ascending), dtype=np.int64)
    place = 0
    while place < len(ends):
        begins[place] = 1
        place = ends[place]
    out = np.empty(len(size), dtype=np.int64)
    out[order] = np.cumsum(begins)[1:] - 1
    return np.where(signed < 0, -out, out)


def ranks(values: Tensor, noise: float) -> NDArray[np.float64]:
    """``[n]``: ranks from 1 (lowest) to n; ties (see :func:`levels`) share their mean rank.

    Example:
        >>> ranks(Tensor([0.5, -2.0, 1e-7, -3e-7]), noise=1e-5).tolist()
        [4.0, 1.0, 2.5, 2.5]
    """
    from scipy.stats import rankdata

    return np.asarray(rankdata(levels(values, noise)), dtype=np.float64)


def ranking(values: Tensor) -> Tensor:
    """Positions from the highest value to the lowest; equal values keep their order."""
    return torch.sort(values, descending=True, stable=True).indices


def highest(values: Tensor, count: int) -> Tensor:
    """``[n]`` bool: the first ``count`` of :func:`ranking`, without sorting the others.

    Example:
        >>> highest(torch.tensor([1.0, 3.0, 1.0, 2.0]), 3).tolist()
        [True, True, False, True]
    """
    size = len(values)
    if not 0 < count < size or not bool(torch.isfinite(values).all()):
        chosen = torch.zeros(size, dtype=torch.bool)
        chosen[ranking(values)[:count]] = True
        return chosen
    last = values.kthvalue(size - count + 1).values
    chosen = values > last
    ties = torch.nonzero(values == last)[:, 0]
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen


def positions_in(batched: Sequence[int], numbers: Sequence[int]) -> Tensor | None:
    """``[n]``: where each of the examples ``numbers`` stands among those of all batches.

    ``None`` unless both name the same examples, each once.
    """
    at = {number: place for place, number in enumerate(batched)}
    if len(at) < len(batched) or at.keys() != set(numbers):
        return None
    return torch.tensor([at[number] for number in numbers])


def require_finite(finite: Tensor, numbers: Sequence[int], what: str) -> None:
    """Raises :class:`NumericalError` naming the examples where ``finite [B]`` does not hold.

    ``numbers`` are the examples' own (none: they are counted from 0); ``what`` is the sentence's
    beginning, such as "the circuit gave NaN outputs".
    """
    if not bool(finite.all()):
        bad = torch.nonzero(~finite)[:, 0].tolist()
        named = [numbers[i] if numbers else i for i in bad]
        raise NumericalError(
            f"{what} on {len(bad)} of {len(finite)} examples; example numbers {named[:10]}"
        )


def check_outputs(outputs: Tensor, numbers: Sequence[int], what: str) -> None:
    """Raises :class:`NumericalError` naming the examples whose outputs are NaN or infinite."""
    finite = torch.isfinite(outputs).flatten(1).all(1)
    require_finite(finite, numbers, f"{what} gave NaN or infinite outputs")


class ExampleValues:
    """Values for each example, put back from batches into the order of ``numbers``."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = numbers
        self._parts: dict[str, list[tuple[tuple[int, ...], Tensor]]] = {}

    def add(self, name: str, numbers: tuple[int, ...], values: Tensor) -> None:
        """Takes a measure's ``values [B]`` on the examples ``numbers`` of a batch."""
        part = (numbers, values.detach().cpu().double())
        self._parts.setdefault(name, []).append(part)

    def columns(self, absent: Container[str] = ()) -> dict[str, Tensor]:
        """``[N]`` for each measure but those in ``absent``."""
        columns = {}
        for name, parts in self._parts.items():
            if name in absent:
                continue
            values = torch.cat([part for _, part in parts])
            order = positions_in([i for indices, _ in parts for i in indices], self._numbers)
            columns[name] = values if order is None else values[order]
        return columns
