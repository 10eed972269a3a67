"""Tests of whether a group of edges is chosen more by one circuit than by another.

On one graph the test looks at the edges that only one of the two circuits has. If the circuits did
not differ, which of these are the first one's would have nothing to do with their group: the number
of them in a group is hypergeometric (:func:`exchange_test`, exact). Between different graphs there
is no such pairing: whether the odds of being kept, inside a group against the other groups that
both graphs have, are the same in both models is tested by Woolf's comparison of log odds ratios
with half an edge added to each count (:func:`woolf_test`, normal approximation; Woolf 1955).
P-values are two-sided.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from graphprune.comparison.count_distribution import CountDistribution, hypergeometric
from graphprune.comparison.edge_groups import EdgeGroups
from graphprune.core.mask import EdgeMask


def two_sided(chance: CountDistribution, count: int) -> float | None:
    """Twice the smaller tail, at most 1; ``None`` where only one count is possible.

    Example:
        >>> round(two_sided(hypergeometric(4, 2, 2), 2), 4)
        0.3333
    """
    if len(chance.pmf) == 1:
        return None
    return min(1.0, 2 * min(chance.at_least(count), chance.at_most(count)))


def exchange_test(first: EdgeMask, second: EdgeMask, groups: EdgeGroups) -> dict[str, float | None]:
    """The p-value of each group, from the edges that only one of two circuits of a graph has."""
    one, two = first.kept.numpy(), second.kept.numpy()
    apart, ours = groups.count(one ^ two).tolist(), groups.count(one & ~two).tolist()
    return {
        name: two_sided(hypergeometric(sum(apart), size, sum(ours)), count)
        for name, size, count in zip(groups.names, apart, ours, strict=True)
    }


def woolf_test(edges: NDArray[np.int64], kept: NDArray[np.int64]) -> list[float | None]:
    """The p-value of each of G groups, from counts ``[2, G]`` of edges and of kept edges."""
    all_edges, all_kept = edges.sum(1, keepdims=True), kept.sum(1, keepdims=True)
    outside = all_edges - edges
    # Kept and not, inside the group and outside of it.
    counts = np.stack([kept, edges - kept, all_kept - kept, outside - all_kept + kept])
    a, b, c, d = counts + 0.5
    logs = np.log(a * d / (b * c))
    variances = 1 / a + 1 / b + 1 / c + 1 / d
    z = (logs[0] - logs[1]) / np.sqrt(variances.sum(0))
    alone = (outside == 0).any(0)  # the only group of a graph has none to be held against
    return [
        None if without else math.erfc(abs(value) / math.sqrt(2))
        for value, without in zip(z.tolist(), alone.tolist(), strict=True)
    ]
