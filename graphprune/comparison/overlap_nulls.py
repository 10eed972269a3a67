"""Null models: the number of edges that two circuits share by chance, in three senses of chance.

``"uniform"``: both are random sets of edges of their sizes; hypergeometric, exact.

``"composition"``: both are random but keep how many edges they have in every *stratum*, a class of
edges that agree in level and kind of both ends and in kind of edge (fewer of these where the graph
has none); a sum of independent hypergeometric counts, exact. What is left to chance is which of the
components that stand alike are used; strata of one edge are left nothing.

``"degrees"``: one circuit stays, the other is random with its own size and, in expectation, its own
degrees; exact for that distribution, which spreads somewhat wider than circuits with exactly these
degrees do (:func:`graphprune.statistics.random_circuits` draws those). Each stays once and the less
surprising of the two is reported, so that the order does not matter.

A node's out-degree is the number of kept edges that leave it; in-degrees are counted at each input
of a node (its q, k and v apart, where the graph keeps them apart), so that both stay meaningful.
:func:`edge_chances` gives every edge of the graph a chance
``p(u -> v) = 1 / (1 + exp(-a(u) - b(v)))`` such that all *expected* degrees are the circuit's: the
distribution of greatest entropy with these degrees (Park & Newman 2004, arXiv cond-mat/0405566),
restricted to edges that the graph has. Overlaps under it are exact sums of independent events.

A circuit is taken as the set of its kept edges (mask value above 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from graphprune.comparison.count_distribution import (
    CountDistribution,
    bernoulli_sum,
    hypergeometric,
    total,
)
from graphprune.comparison.edge_groups import Strata, make_strata
from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask, require_same_graph
from graphprune.errors import unknown_name
from graphprune.util.checks import require_one_of

_ROUNDS = 2000
NullName = Literal["uniform", "composition", "degrees"]
NULLS: tuple[NullName, ...] = ("uniform", "composition", "degrees")


@dataclass(frozen=True, kw_only=True)
class OverlapNull:
    """The number of shared edges by chance, and how far the observed number is from it.

    ``low`` to ``high`` holds 95 %; ``z`` is ``None`` where chance leaves nothing open;
    ``p_more`` and ``p_less`` are the chances of at least and at most as many as found;
    ``jaccard`` is the expected overlap (not that of the expected number); ``p_least`` is the
    smallest ``p_more`` that there could have been, had the circuits shared all that chance leaves
    open; ``p_adjusted`` is ``p_more`` after Holm's correction over all pairs compared together.

    Example:
        >>> two = {"EAP": scores.top(12), "random": gp.Random().score(model, task).top(12)}
        >>> nulls = gp.compare_circuits(two).pair("EAP", "random").nulls
        >>> {name: (null.mean, null.p_more) for name, null in nulls.items()}
        {'uniform': (6.0, 0.890), 'composition': (6.0, 0.890),
        'degrees': (5.0, 1.0)}
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
        return {k: v for k, v in asdict(self).items() if k != "name"}


def require_nulls(nulls: Sequence[str]) -> None:
    """Raises :class:`InputError` for a name that is none of :data:`NULLS`."""
    for null in nulls:
        require_one_of(null, NULLS, "null")


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
    """The number of things that two sets share, random but for their numbers in every stratum.

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
        >>> null = overlap_null(mask, mask)
        >>> null.mean, null.p_more, round(null.z, 3), round(null.jaccard, 3)
        (1.0, 0.16666666666666666, 1.732, 0.389)
    """
    shared, both = int((first.kept & second.kept).sum()), first.num_kept + second.num_kept
    result = judged(overlap_distribution(first, second, null, strata=strata), shared, both, null)
    if null != "degrees":
        return result
    turned = judged(overlap_distribution(second, first, null), shared, both, null)
    largest = max(result, turned, key=lambda side: (side.p_more, side.mean))
    return replace(largest, p_least=max(result.p_least, turned.p_least))


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


# -------------------------------------------------------------------- chance by degrees


def edge_ends(graph: ComputationalGraph) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``[E]`` each: the number of an edge's source, and of the input of its target.

    Parallel edges of one kind (multigraphs) have an input of their own each.
    """
    sources, targets = graph.edge_index.numpy()
    kinds = len(graph.edge_kinds)
    ports = targets * kinds + graph.edge_kind.numpy().astype(np.int64)
    pair = sources * (int(ports.max(initial=0)) + 1) + ports
    order = np.argsort(pair, kind="stable")
    ranked = pair[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]]) if len(ranked) else order
    copy = np.empty(len(pair), dtype=np.int64)
    copy[order] = np.arange(len(pair)) - np.repeat(starts, np.diff(np.r_[starts, len(pair)]))
    _, inputs = np.unique(ports * (int(copy.max(initial=0)) + 1) + copy, return_inverse=True)
    return sources.astype(np.int64), inputs


def edge_chances(
    graph: ComputationalGraph, kept: NDArray[np.bool_], *, tolerance: float = 0.01
) -> tuple[NDArray[np.float64], float]:
    """``[E]``: each edge's chance under the given degrees, and the largest error of a degree.

    Fitted by Newton's steps on sources and inputs in turn, until no expected degree is off by more
    than ``tolerance`` edges or 2,000 rounds are over (where a degree sequence forces single edges,
    their chances reach 0 or 1 only in the limit).

    Example:
        >>> import numpy as np
        >>> names = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]
        >>> graph = ComputationalGraph.from_edges(names)
        >>> edge_chances(graph, np.array([True, False, False, True]))[0]
        array([0.5, 0.5, 0.5, 0.5])
        >>> edge_chances(graph, np.array([True, True, False, False]))[0]
        array([1., 1., 0., 0.])
    """
    from scipy.special import expit

    ends = edge_ends(graph)
    chances = kept.astype(np.float64)
    free = _open_edges(ends, kept)
    if not free.any():
        return chances, 0.0
    sides = [np.unique(end[free], return_inverse=True)[1] for end in ends]
    wanted = [np.bincount(side, weights=kept[free]) for side in sides]
    fields = [np.zeros(len(want)) for want in wanted]
    start = kept[free].mean()
    fields[0] += np.log(start / (1 - start))
    error = np.inf

    def fitted() -> NDArray[np.float64]:
        return np.asarray(expit(fields[0][sides[0]] + fields[1][sides[1]]))

    for _ in range(_ROUNDS):
        for side, want, field in zip(sides, wanted, fields, strict=True):
            p = fitted()
            gap = np.bincount(side, weights=p) - want
            slope = np.bincount(side, weights=p * (1 - p))
            field -= np.clip(gap / np.maximum(slope, 1e-12), -1, 1)
        p = fitted()
        error = max(
            float(np.abs(np.bincount(side, weights=p) - want).max())
            for side, want in zip(sides, wanted, strict=True)
        )
        if error <= tolerance:
            break
    chances[free] = fitted()
    return chances, error


def _open_edges(ends: tuple[NDArray[np.int64], ...], kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """``[E]``: edges whose chance is open, since no end keeps all or none of its open edges."""
    free = np.ones(len(kept), dtype=bool)
    while True:
        before = int(free.sum())
        for end in ends:
            have = np.bincount(end[free & kept], minlength=int(end.max(initial=0)) + 1)
            room = np.bincount(end[free], minlength=len(have))
            free &= ((have > 0) & (have < room))[end]
        if int(free.sum()) == before:
            return free


def degree_overlap(
    chances: NDArray[np.float64], other: NDArray[np.bool_], size: int
) -> CountDistribution:
    """The number of edges of ``other`` that a random circuit of ``size`` edges has, by ``chances``.

    Exact for independent edges given that there are ``size`` of them.

    Example:
        >>> degree_overlap(np.full(4, 0.3), np.array([True, True, False, False]), 2).pmf * 6
        array([1., 4., 1.])
    """
    outside = bernoulli_sum(chances[~other])
    return bernoulli_sum(chances[other]).reweighted(lambda counts: outside.of(size - counts))
