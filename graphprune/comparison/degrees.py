"""Random circuits whose nodes have the degrees of a given one.

A node's out-degree is the number of kept edges that leave it; in-degrees are counted at each input
of a node (its q, k and v apart, where the graph keeps them apart), so that both stay meaningful.

:func:`edge_chances` gives every edge of the graph a chance
``p(u -> v) = 1 / (1 + exp(-a(u) - b(v)))`` such that all *expected* degrees are the circuit's: the
distribution of greatest entropy with these degrees (Park & Newman 2004, arXiv cond-mat/0405566),
restricted to edges that the graph has. Overlaps under it are exact sums of independent events.
(:func:`graphprune.statistics.random_circuits` draws circuits with exactly these degrees.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graphprune.comparison.counts import CountDistribution, bernoulli_sum
from graphprune.core.graph import ComputationalGraph

__all__ = ["degree_overlap", "edge_chances", "edge_ends"]


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
    ends = edge_ends(graph)
    chances = kept.astype(np.float64)
    free = _settle(ends, kept)
    if not free.any():
        return chances, 0.0
    sides = [np.unique(end[free], return_inverse=True)[1] for end in ends]
    wanted = [np.bincount(side, weights=kept[free]) for side in sides]
    fields = [np.zeros(len(want)) for want in wanted]
    start = kept[free].mean()
    fields[0] += np.log(start / (1 - start))
    error = np.inf
    for _ in range(2000):
        for side, want, field in zip(sides, wanted, fields, strict=True):
            found = _logistic(fields[0][sides[0]] + fields[1][sides[1]])
            gap = np.bincount(side, weights=found) - want
            slope = np.bincount(side, weights=found * (1 - found))
            field -= np.clip(gap / np.maximum(slope, 1e-12), -1, 1)
        found = _logistic(fields[0][sides[0]] + fields[1][sides[1]])
        error = max(
            float(np.abs(np.bincount(side, weights=found) - want).max())
            for side, want in zip(sides, wanted, strict=True)
        )
        if error <= tolerance:
            break
    chances[free] = found
    return chances, error


def _settle(ends: tuple[NDArray[np.int64], ...], kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """``[E]``: edges not decided by an end all or none of whose undecided edges are kept."""
    free = np.ones(len(kept), dtype=bool)
    while True:
        before = int(free.sum())
        for end in ends:
            have = np.bincount(end[free & kept], minlength=int(end.max(initial=0)) + 1)
            room = np.bincount(end[free], minlength=len(have))
            free &= ((have > 0) & (have < room))[end]
        if int(free.sum()) == before:
            return free


def _logistic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.special import expit

    return np.asarray(expit(x))


def degree_overlap(
    chances: NDArray[np.float64], other: NDArray[np.bool_], size: int
) -> CountDistribution:
    """How many edges of ``other`` a random circuit of ``size`` edges has, by ``chances``.

    Exact for independent edges given that there are ``size`` of them.

    Example:
        >>> degree_overlap(np.full(4, 0.3), np.array([True, True, False, False]), 2).pmf * 6
        array([1., 4., 1.])
    """
    outside = bernoulli_sum(chances[~other])
    return bernoulli_sum(chances[other]).reweighted(lambda counts: outside.of(size - counts))
