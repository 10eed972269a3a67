"""The distance of two circuits in what they choose, whatever their graphs are made of.

A circuit's share of, say, query edges says as much about how many of these its model has as about
the circuit. What is compared here is what the circuits chose, along one axis, within the groups
that both graphs have. With ``E_g`` edges in a group and ``K_g`` of them kept:

- *standardised shares* are the shares a circuit would have on a graph of the mean composition of
  the two: proportional to ``b_g K_g / E_g``, with b the mean of the graphs' shares ``E_g / sum E``
  (direct standardisation). They are b where all edges are kept, and the circuit's plain shares
  where both lie on one graph. The *distance* is half the sum of their differences;
- *by chance* is the mean distance of circuits that prefer the same groups. On one graph: the edges
  that only one of them has, dealt out anew. On two: each edge is kept by a coin flip at the rate of
  its group, and the rates have the log odds "graph + group" that fit the counts best, equal
  preferences at each circuit's own density;
- *corrected* is ``(distance - by chance) / (1 - by chance)``: 0 where preferences are the same, 1
  where no group is chosen by both, a little below 0 by luck. Its interval is a bootstrap over edges
  within groups, corrected by the same bootstrap of circuits by chance.

Edges are taken as independent. Circuits keep and drop them in clusters (a node with all it reads),
so that intervals are rather too narrow for circuits of few nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphprune.comparison.p_values import rank_p

_ROUNDS = 1000
Counts = NDArray[np.int64]
Shares = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PreferenceDistance:
    """The distance of two circuits along one axis; see the module.

    ``groups`` are those that both graphs have; ``covered_first`` and ``covered_second`` say which
    part of each circuit's edges lies in them. ``low`` to ``high`` is the 95 % interval of
    ``corrected``. ``p`` is the chance of a distance as large if preferences were equal, (1 + draws
    at least as large) / (1 + draws), ``least_p`` the smallest that could have come out, and
    ``p_adjusted`` Holm's over all axes. ``graph_distance`` is that of the whole graphs, all their
    groups: half the sum of differences of plain shares of all edges.

    Example:
        >>> first, second = (
        ...     gp.circuit_profile(m.score(lm, prompts).top(40)) for m in (gp.EAP(), gp.Random())
        ... )
        >>> kinds = first.difference(second).axes["kind"]
        >>> kinds.distance, kinds.by_chance, kinds.p
        (0.2, 0.140, 0.191)
    """

    axis: str
    groups: tuple[str, ...]
    covered_first: float
    covered_second: float
    distance: float
    by_chance: float
    corrected: float | None
    low: float | None
    high: float | None
    p: float
    least_p: float
    graph_distance: float
    p_adjusted: float | None = None


def standardised(edges: Counts, kept: NDArray[np.int64] | Shares) -> Shares:
    """``[..., 2, G]`` standardised shares of ``kept [..., 2, G]`` on graphs with ``edges [2, G]``.

    Every group has edges in both graphs, and both circuits keep some edge.

    Example:
        Both keep every second edge of the first group and none of the other; the graphs differ.

        >>> edges = np.array([[10, 90], [50, 50]])
        >>> standardised(edges, np.array([[5, 0], [25, 0]])).tolist()
        [[1.0, 0.0], [1.0, 0.0]]
        >>> standardised(edges, edges).round(3).tolist()  # all edges: no preference
        [[0.3, 0.7], [0.3, 0.7]]
    """
    base = (edges / edges.sum(1, keepdims=True)).mean(0)
    amounts = base * kept / edges
    return np.asarray(amounts / amounts.sum(-1, keepdims=True))


def equal_preference(edges: Counts, kept: Counts) -> Shares:
    """``[2, G]``: rates at which edges are kept, with log odds "graph + group", that fit ``kept``.

    Iterative proportional fitting: the edges kept of each graph, and of each group in both graphs
    together, are those found.

    Example:
        >>> edges = np.array([[20, 20], [10, 40]])
        >>> rates = equal_preference(edges, np.array([[8, 2], [4, 4]]))
        >>> (rates * edges).sum(1).round(6), (rates * edges).sum(0).round(6)
        (array([10.,  8.]), array([12.,  6.]))
    """
    cells = np.stack([kept, edges - kept]).astype(float)  # kept or not, graph, group
    fitted = np.ones_like(cells)
    for _ in range(_ROUNDS):
        before = fitted
        for axis in (0, 2, 1):
            have, want = fitted.sum(axis, keepdims=True), cells.sum(axis, keepdims=True)
            fitted = fitted * np.divide(want, have, out=np.zeros_like(want), where=have > 0)
        if np.abs(fitted - before).max() < 1e-9 * edges.sum():
            break
    return np.asarray(np.clip(fitted[0] / edges, 0.0, 1.0))


def _apart(edges: Counts, kept: Counts) -> Shares:
    """Total variation of standardised shares; draws in which a circuit is empty are left out."""
    there = (kept.sum(-1) > 0).all(-1)
    shares = standardised(edges, kept[there])
    return np.asarray(np.abs(shares[:, 0] - shares[:, 1]).sum(-1) / 2)


def preference_distance(
    axis: str,
    groups: tuple[str, ...],
    edges: Counts,
    kept: Counts,
    *,
    both: Counts | None,
    covered: tuple[float, float],
    graph_distance: float,
    draws: int,
    generator: np.random.Generator,
) -> PreferenceDistance:
    """The distance along one axis.

    Args:
        groups: the G groups that both graphs have.
        edges, kept: ``[2, G]``, of all edges and of the circuits'.
        both: ``[G]``, edges that both circuits keep, where they lie on one graph.
        draws: of circuits by chance, and of the bootstrap.
    """
    distance = float(_apart(edges, kept[None])[0])
    if both is None:
        chance = generator.binomial(edges, equal_preference(edges, kept), (draws, *edges.shape))
        again = generator.binomial(edges, kept / edges, (draws, *edges.shape))
        twice = generator.binomial(edges, chance / edges)
    else:
        chance = _exchanged(kept, both, draws, generator)
        again = _resampled(edges[0], kept[None].repeat(draws, 0), both, generator)
        twice = _resampled(edges[0], chance, both, generator)
    null, spread, noise = (_apart(edges, drawn) for drawn in (chance, again, twice))
    mean = float(null.mean()) if len(null) else distance
    low = high = corrected = None
    if mean < 1 - 1e-9:
        corrected = (distance - mean) / (1 - mean)
        if len(spread) and len(noise):
            # Resampling adds its own noise to the distance, so it is held against resampled chance.
            zero = float(noise.mean())
            low, high = (
                float(end - zero) / (1 - zero) for end in np.quantile(spread, [0.025, 0.975])
            )
            if low == high and abs(low - corrected) > 1e-9:
                low = high = None  # a few edges are resampled to themselves: no certainty
            else:
                low, high = min(low, corrected), max(high, corrected)
    return PreferenceDistance(
        axis=axis,
        groups=groups,
        covered_first=covered[0],
        covered_second=covered[1],
        distance=distance,
        by_chance=mean,
        corrected=corrected,
        low=low,
        high=high,
        p=rank_p(distance, null, tolerance=1e-12),
        least_p=rank_p(1.0, null, tolerance=1e-12),
        graph_distance=graph_distance,
    )


def _exchanged(kept: Counts, both: Counts, draws: int, generator: np.random.Generator) -> Counts:
    """``[draws, 2, G]``: the edges that only one circuit has, dealt out anew."""
    ours, theirs = kept - both
    first = generator.multivariate_hypergeometric(ours + theirs, int(ours.sum()), size=draws)
    return np.stack([both + first, both + ours + theirs - first], 1)


def _resampled(edges: Counts, kept: Counts, both: Counts, generator: np.random.Generator) -> Counts:
    """``[draws, 2, G]``: edges of ``kept [draws, 2, G]`` drawn anew within their groups.

    An edge brings what both circuits did with it: ``both [G]`` are kept by both.
    """
    ones, twos = kept[:, 0], kept[:, 1]
    cells = np.stack([both + 0 * ones, ones - both, twos - both, edges - ones - twos + both], -1)
    drawn = generator.multinomial(edges, cells / edges[:, None])
    return np.stack([drawn[..., 0] + drawn[..., 1], drawn[..., 0] + drawn[..., 2]], 1)
