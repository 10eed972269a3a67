"""Overlap of scores: nothing is cut off, every edge counts by its score.

Signs: with ``signs="split"`` each score is taken as two amounts, one of usefulness and one of harm,
of which one is 0; an edge that helps here and harms there is then a disagreement. ``"ignore"``
compares magnitudes; ``"positive"`` the useful amounts alone. Scale: scores of two tasks have
different units, so each set is divided by its sum of amounts unless ``scale=None``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from graphprune.comparison.edge_groups import Strata
from graphprune.core.mask import require_same_graph
from graphprune.core.scores import EdgeScores, Ranking
from graphprune.errors import InputError, unknown_name
from graphprune.util.numbers import ranks

Signs = Literal["split", "ignore", "positive"]


def weighted_jaccard(
    first: EdgeScores,
    second: EdgeScores,
    *,
    signs: Signs = "split",
    scale: Literal["sum"] | None = "sum",
) -> float:
    """Ruzicka's similarity of two sets of scores: the sum of smaller amounts over that of larger.

    1 for equal scores (equal up to a factor, with ``scale="sum"``), 0 where no edge has an amount
    in both; of masks of zeros and ones, and without a scale, the Jaccard overlap. 1 for two sets
    without any amount, 0 for one.

    Raises :class:`GraphMismatchError` for scores of different graphs.

    Example:
        >>> import torch
        >>> from graphprune import ComputationalGraph
        >>> graph = ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("a", "c")])
        >>> one = EdgeScores(graph, torch.tensor([3.0, -1.0, 0.0]))
        >>> two = EdgeScores(graph, torch.tensor([1.0, 1.0, 2.0]))
        >>> weighted_jaccard(one, two), weighted_jaccard(one, two, signs="ignore")
        (0.14285714285714285, 0.3333333333333333)
    """
    require_same_graph(first.graph, second.graph, "scores")
    return ruzicka(amounts(first, signs, scale), amounts(second, signs, scale))


def amounts(
    scores: EdgeScores, signs: Signs = "split", scale: Literal["sum"] | None = "sum"
) -> NDArray[np.float64]:
    """``[parts, E]``: what is compared, nothing below 0; two parts where signs are split."""
    values = scores.values.double().numpy()
    if signs == "split":
        parts = np.stack([np.maximum(values, 0), np.maximum(-values, 0)])
    elif signs == "ignore":
        parts = np.abs(values)[None]
    elif signs == "positive":
        parts = np.maximum(values, 0)[None]
    else:
        raise unknown_name("signs", signs, ("split", "ignore", "positive"))
    if scale not in ("sum", None):
        raise InputError(f"scale must be 'sum' or None, got {scale!r}")
    whole = float(parts.sum())
    return parts / whole if scale == "sum" and whole > 0 else parts


def ruzicka(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """The sum of minima over the sum of maxima; 1 where both are 0 everywhere."""
    larger = float(np.maximum(first, second).sum())
    return float(np.minimum(first, second).sum()) / larger if larger > 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class RankCorrelation:
    """Spearman's correlation of two rankings of all edges.

    Chance: scores of one are permuted among all edges (mean 0, standard deviation
    ``1 / sqrt(E - 1)``, whatever the ties), or within strata (``composition_mean``,
    ``composition_sd``, exact too). The p-values are the normal distribution's for the upper tail.

    Example:
        >>> strata = gp.comparison.make_strata(model.graph)
        >>> other = gp.spectral.Magnitude().score(model, task)
        >>> correlation = gp.comparison.rank_correlation(scores, other, strata)
        >>> correlation.value, correlation.p
        (0.518, 0.0065)
    """

    value: float
    z: float
    p: float
    composition_mean: float
    composition_sd: float
    composition_z: float | None
    composition_p: float | None

    def to_dict(self) -> dict[str, Any]:
        """All fields."""
        return dict(self.__dict__)


def rank_correlation(
    first: EdgeScores, second: EdgeScores, strata: Strata, *, by: Ranking = "signed"
) -> RankCorrelation | None:
    """Spearman's correlation by sign or by magnitude; ``None`` where either is constant.

    Example:
        >>> import torch
        >>> from graphprune import ComputationalGraph
        >>> from graphprune.comparison import make_strata
        >>> graph = ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("a", "c")])
        >>> one = EdgeScores(graph, torch.tensor([3.0, -4.0, 0.0]))
        >>> two = EdgeScores(graph, torch.tensor([1.0, 0.5, 2.0]))
        >>> rank_correlation(one, two, make_strata(graph)).value
        0.5
        >>> rank_correlation(one, two, make_strata(graph), by="abs").value
        -1.0
    """
    require_same_graph(first.graph, second.graph, "scores")
    centred = []
    for scores in (first, second):
        values = scores.values.abs() if by == "abs" else scores.values
        rank = ranks(values, scores.noise)
        centred.append(rank - rank.mean())
    size = math.sqrt(float((centred[0] ** 2).sum()) * float((centred[1] ** 2).sum()))
    if not size > 0:
        return None
    value = float(centred[0] @ centred[1]) / size
    count = np.bincount(strata.codes, minlength=strata.count)
    sums = [np.bincount(strata.codes, weights=r, minlength=strata.count) for r in centred]
    within = [
        np.bincount(strata.codes, weights=r**2, minlength=strata.count) - s**2 / count
        for r, s in zip(centred, sums, strict=True)
    ]
    mean = float((sums[0] * sums[1] / count).sum()) / size
    spread = within[0].clip(0) * within[1].clip(0) / np.maximum(count - 1, 1)
    sd = math.sqrt(float(spread.sum())) / size
    z = value * math.sqrt(len(centred[0]) - 1)
    within_z = (value - mean) / sd if sd > 1e-9 else None
    return RankCorrelation(
        value=value,
        z=z,
        p=max(_upper(z), _one_in([len(centred[0])])),
        composition_mean=mean,
        composition_sd=sd,
        composition_z=within_z,
        composition_p=None if within_z is None else max(_upper(within_z), _one_in(count.tolist())),
    )


def _one_in(sizes: list[int]) -> float:
    """One over the number of permutations within groups of these sizes."""
    return math.exp(-sum(math.lgamma(size + 1) for size in sizes))


def _upper(z: float) -> float:
    """The normal distribution's upper tail."""
    return math.erfc(z / math.sqrt(2)) / 2
