"""How many edges two circuits would share by chance, under three readings of chance.

``"uniform"``: both are random sets of edges of their sizes; hypergeometric, exact.

``"composition"``: both are random but keep how many edges they have in every *stratum*, a class of
edges that agree in level and kind of both ends and in kind of edge (fewer of these where the graph
has none); a sum of independent hypergeometric counts, exact. What is left to chance is which of the
components that stand alike are used; strata of one edge are left nothing.

``"degrees"``: one circuit stays, the other is random with its own size and, in expectation, its own
degrees (see :mod:`graphprune.comparison.degrees`); exact for that distribution, which spreads
somewhat wider than circuits with exactly these degrees do. Each stays once and the less surprising
of the two is reported, so that the order does not matter.

A circuit is taken as the set of its kept edges (mask value above 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from graphprune.comparison.axes import edge_groups, usable_axes
from graphprune.comparison.counts import CountDistribution, hypergeometric, total
from graphprune.comparison.degrees import degree_overlap, edge_chances
from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask, require_same_graph
from graphprune.errors import unknown_name

__all__ = [
    "NULLS",
    "STRATA",
    "NullName",
    "OverlapNull",
    "Strata",
    "judged",
    "make_strata",
    "overlap_distribution",
    "overlap_null",
    "stratified",
]

NullName = Literal["uniform", "composition", "degrees"]
NULLS: tuple[NullName, ...] = ("uniform", "composition", "degrees")
STRATA = ("source_level", "target_level", "source_kind", "target_kind", "kind")


@dataclass(frozen=True, kw_only=True, eq=False)
class Strata:
    """Classes of edges: edge e is in ``codes[e]``; ``axes`` are what its edges agree in."""

    axes: tuple[str, ...]
    codes: NDArray[np.int64]
    left_out: dict[str, str]

    @property
    def count(self) -> int:
        """How many strata there are."""
        return int(self.codes.max(initial=-1)) + 1

    @cached_property
    def _in_order(self) -> NDArray[np.int64]:
        return np.argsort(self.codes, kind="stable")

    def shuffled(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """``[E]``: a random permutation of the edges that stays within the strata."""
        out = np.empty_like(self._in_order)
        out[self._in_order] = np.argsort(self.codes + rng.random(len(self.codes)))
        return out


def make_strata(graph: ComputationalGraph, axes: Sequence[str] | None = None) -> Strata:
    """The strata by ``axes`` (``None``: all of level and kind that the graph has).

    Example:
        >>> graph = ComputationalGraph.from_edges([("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")])
        >>> make_strata(graph).codes
        array([0, 0, 1, 1])
    """
    used, left_out = usable_axes(graph, axes, STRATA)
    codes = np.zeros(graph.num_edges, dtype=np.int64)
    for axis in used:
        groups = edge_groups(graph, axis)
        _, codes = np.unique(codes * len(groups.names) + groups.codes, return_inverse=True)
    return Strata(axes=used, codes=codes, left_out=left_out)


@dataclass(frozen=True, kw_only=True)
class OverlapNull:
    """What chance gives for the number of shared edges, and how far the found number is from it.

    ``low`` to ``high`` holds 95 %; ``z`` is ``None`` where chance leaves nothing open;
    ``p_more`` and ``p_less`` are the chances of at least and at most as many as found;
    ``jaccard`` is the expected overlap (not that of the expected number); ``p_least`` is the
    smallest ``p_more`` that there could have been, had the circuits shared all that chance leaves
    open; ``p_adjusted`` is ``p_more`` after Holm's correction over all pairs compared together.
    """

    name: NullName
    mean: float
    sd: float
    low: int
    high: int
    jaccard: float
    z: float | None
    p_more: float
    p_less: float
    p_least: float
    p_adjusted: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields but the name."""
        return {k: v for k, v in self.__dict__.items() if k != "name"}


def overlap_distribution(
    first: EdgeMask, second: EdgeMask, null: NullName = "uniform", *, strata: Strata | None = None
) -> CountDistribution:
    """The number of shared edges by chance; under ``"degrees"`` the first circuit is the random.

    Raises :class:`GraphMismatchError` for masks of different graphs.

    Example:
        >>> graph = ComputationalGraph.from_edges([("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")])
        >>> one = EdgeMask.from_edges(graph, ["a->b", "b->d"])
        >>> two = EdgeMask.from_edges(graph, ["a->b", "c->d"])
        >>> overlap_distribution(one, two).pmf * 6
        array([1., 4., 1.])
        >>> overlap_distribution(one, two, "composition").pmf
        array([0.25, 0.5 , 0.25])
    """
    require_same_graph(first.graph, second.graph, "masks")
    one, two = first.kept.numpy(), second.kept.numpy()
    if null == "uniform":
        return hypergeometric(len(one), int(one.sum()), int(two.sum()))
    if null == "composition":
        strata = make_strata(first.graph) if strata is None else strata
        return stratified(strata.codes, one, two)
    if null == "degrees":
        chances, _ = edge_chances(first.graph, one)
        return degree_overlap(chances, two, int(one.sum()))
    raise unknown_name("null", null, NULLS)


def stratified(
    codes: NDArray[np.int64], one: NDArray[np.bool_], two: NDArray[np.bool_]
) -> CountDistribution:
    """How many things two sets share that are random but for their numbers in every stratum.

    ``codes [n]`` is each thing's stratum, ``one`` and ``two`` ``[n]`` the sets.
    """
    count = int(codes.max(initial=-1)) + 1
    sizes = [np.bincount(codes[of], minlength=count) for of in (one, two)]
    rows, times = np.unique(
        np.stack([np.bincount(codes, minlength=count), *sizes]), axis=1, return_counts=True
    )
    parts: list[CountDistribution] = []
    for (n, a, b), again in zip(rows.T.tolist(), times.tolist(), strict=True):
        parts += [hypergeometric(n, a, b)] * again
    return total(parts)


def overlap_null(
    first: EdgeMask, second: EdgeMask, null: NullName = "uniform", *, strata: Strata | None = None
) -> OverlapNull:
    """The shared edges of two circuits beside what chance gives.

    Example:
        >>> graph = ComputationalGraph.from_edges([("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")])
        >>> mask = EdgeMask.from_edges(graph, ["a->b", "b->d"])
        >>> found = overlap_null(mask, mask)
        >>> found.mean, found.p_more, round(found.z, 3), round(found.jaccard, 3)
        (1.0, 0.16666666666666666, 1.732, 0.389)
    """
    shared, both = int((first.kept & second.kept).sum()), first.num_kept + second.num_kept
    found = judged(overlap_distribution(first, second, null, strata=strata), shared, both, null)
    if null != "degrees":
        return found
    turned = judged(overlap_distribution(second, first, null), shared, both, null)
    told = max(found, turned, key=lambda side: (side.p_more, side.mean))
    return replace(told, p_least=max(found.p_least, turned.p_least))


def judged(chance: CountDistribution, shared: int, both: int, null: NullName) -> OverlapNull:
    """A number of shared things, of two sets with ``both`` in all, against its distribution."""
    low, high = chance.band()
    sd = chance.sd
    return OverlapNull(
        name=null,
        mean=chance.mean,
        sd=sd,
        low=low,
        high=high,
        jaccard=chance.expected(lambda k: k / (both - k)) if both else 1.0,
        z=(shared - chance.mean) / sd if sd > 1e-9 else None,
        p_more=chance.at_least(shared),
        p_less=chance.at_most(shared),
        p_least=chance.at_least(int(chance.counts[-1])),
    )
