"""The published rule (arXiv 2502.17522), as its code has it, for comparison only.

After each update of a node n the eigenvalues of the N x N matrix ``L_n = D_n - A_n W_n`` are
taken, where only n's own edges stand in A_n and the diagonal counts them (``count``) or sums their
weights (``both``). If none is complex (``im == 0`` exactly, no tolerance) nothing happens.
Otherwise, with a the *place* of the smallest and b that of the largest imaginary part in LAPACK's
list, the edge ``a -> b`` is deleted if it exists.

A place in a list of eigenvalues is not a node. LAPACK lists conjugates side by side, the positive
one first, so the rule can only ever delete an edge ``k+1 -> k``: what it prunes depends on how
nodes are numbered. Re-implemented from the description of that behaviour; no code was taken.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from ..linalg.weighted_graph import BoolArray, FloatArray, WeightedGraph

__all__ = ["WARNING", "published_edge", "published_sweeps"]

WARNING = (
    "variant='paper' takes an eigenvalue's place in LAPACK's list for a node: it can only cut "
    "edges k+1 -> k, and its result depends on the numbering of nodes. mode='local' is the "
    "corrected rule"
)


def published_edge(
    adjacency: BoolArray,
    weights: FloatArray,
    node: int,
    laplacian: Literal["count", "both"] = "both",
) -> tuple[int, int] | None:
    """The edge that the rule deletes after an update of ``node``, or ``None``.

    ``adjacency [N, N]`` bool and ``weights [N, N]``; row i, column j is the edge i -> j.

    Example:
        >>> a = np.array([[0, 1], [1, 0]], dtype=bool)
        >>> published_edge(a, np.array([[0.0, 2.0], [-2.0, 0.0]]), node=0)
        (1, 0)
    """
    star = np.zeros(adjacency.shape)
    star[node], star[:, node] = adjacency[node], adjacency[:, node]
    weighted = star * weights
    counted = star if laplacian == "count" else weighted
    matrix = np.diag(counted.sum(0) + counted.sum(1)) - weighted
    imaginary = np.linalg.eigvals(matrix).imag
    if (imaginary == 0).all():
        return None
    largest = imaginary.max()
    if not np.isin(-largest, imaginary):
        return None
    a, b = int(imaginary.argmin()), int(imaginary.argmax())
    return (a, b) if adjacency[a, b] else None


def published_sweeps(
    given: WeightedGraph, count: int, laplacian: Literal["count", "both"]
) -> BoolArray:
    """``[E]`` bool: what sweeps over all nodes leave; they end at ``count`` edges, or idle."""
    edges, n = given.num_edges, given.num_nodes
    kept = given.present[:edges].copy()
    u, v = given.sources[:edges], given.targets[:edges]
    adjacency, weights = np.zeros((n, n), dtype=bool), np.zeros((n, n))
    adjacency[u[kept], v[kept]] = True
    np.add.at(weights, (u[kept], v[kept]), given.weights[:edges][kept])
    deleted = True
    while deleted and int(kept.sum()) > count:
        deleted = False
        for node in range(n):
            if int(kept.sum()) <= count:
                break
            pair = published_edge(adjacency, weights, node, laplacian)
            if pair is not None:
                adjacency[pair] = False
                kept &= ~((u == pair[0]) & (v == pair[1]))
                deleted = True
    return kept
