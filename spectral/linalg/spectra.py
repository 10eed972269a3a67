"""Eigenvalues of weighted graphs, and what follows from them: stable steps and spectral drift."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask, require_same_graph
from graphprune.errors import InputError

from .arpack import solve_leading
from .eigensolver import DENSE_LIMIT, ComplexArray, Solver
from .weighted_graph import (
    BoolArray,
    Degrees,
    FloatArray,
    IntArray,
    Laplacian,
    WeightedGraph,
    operator,
    weighted_graph,
)

__all__ = ["drift", "leading", "spectrum", "stable_step"]

MOST_PAIRED = 5_000  # nodes whose eigenvalues are paired: the time grows with their cube


def spectrum(
    graph: ComputationalGraph | WeightedGraph | Any,
    weights: Any = None,
    laplacian: Laplacian = "out",
    *,
    degrees: Degrees | None = None,
    dense_limit: int = DENSE_LIMIT,
) -> ComplexArray:
    """All eigenvalues, exactly by strongly connected component (degrees of the whole graph).

    Imaginary parts that are rounding or a defective block's noise are exactly 0, see
    :mod:`.eigensolver`.

    Args:
        graph, weights, laplacian, degrees: as for :func:`~graphprune.spectral.laplacian`.
        dense_limit: the largest component, in nodes, that is solved.

    Returns:
        ``[N]`` complex128, ordered by real, then imaginary part. Empty for a graph without nodes.

    Raises:
        InputError: wrong input, or a component above ``dense_limit``.
        NumericalError: a weight is NaN or infinite.

    Example:
        >>> ring = ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("c", "a")])
        >>> spectrum(ring).round(3)
        array([0. +0.j   , 1.5-0.866j, 1.5+0.866j])
        >>> chain = ComputationalGraph.from_edges([("a", "b"), ("b", "c")])
        >>> spectrum(chain)
        array([0.+0.j, 1.+0.j, 1.+0.j])
    """
    solver = Solver(operator(laplacian, degrees), dense_limit)
    values = solver.solve(weighted_graph(graph, weights), vectors=True).values
    # A conjugate pair's real parts may differ in the last digit; pairs stand together all the same.
    size = float(np.abs(values).max(initial=0.0))
    order = np.lexsort((values.imag, _ranks(values.real, 1e-10 * size)))
    return np.asarray(values[order] + 0.0)


def _ranks(values: FloatArray, gap: float) -> IntArray:
    """The rank of each value, those closer than ``gap`` to their neighbour sharing one."""
    order = np.argsort(values, kind="stable")
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[order] = np.cumsum(np.diff(values[order], prepend=values[order][:1]) > gap)
    return ranks


def leading(
    graph: ComputationalGraph | WeightedGraph | Any,
    weights: Any = None,
    laplacian: Laplacian = "out",
    *,
    count: int = 6,
    degrees: Degrees | None = None,
    dense_limit: int = DENSE_LIMIT,
    seed: int = 0,
) -> ComplexArray:
    """The eigenvalues of the largest imaginary parts, also of very large components.

    Components up to ``dense_limit`` nodes are solved whole; larger ones by ARPACK, each copy of a
    repeated eigenvalue too, with residuals checked. A warning says how many of those wanted were
    found and whether a last start found others; a component of up to 2,000 nodes where one is in
    doubt is solved whole.

    Args:
        graph, weights, laplacian, degrees: as for :func:`~graphprune.spectral.spectrum`.
        count: how many.
        seed: of the start vectors.

    Returns:
        ``count`` complex numbers with imaginary part >= 0, the largest first and equal ones by
        real part, repeated as often as they are eigenvalues; of each conjugate pair the upper one.
        Fewer where the graph has fewer, or with the warning.

    Example:
        >>> ring = ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("c", "a")])
        >>> leading(ring, count=1).round(3)
        array([1.5+0.866j])
    """
    if count < 1:
        raise InputError(f"count must be at least 1, got {count}")
    solve_large = partial(solve_leading, count=2 * count, seed=seed)
    solver = Solver(operator(laplacian, degrees), dense_limit, solve_large)
    result = solver.solve(weighted_graph(graph, weights), vectors=False)
    for doubt in result.doubts:
        warnings.warn(doubt, UserWarning, stacklevel=2)
    values = result.values[result.values.imag >= 0]
    size = float(np.abs(values).max(initial=0.0))
    # Rounding must not order equal imaginary parts.
    best: ComplexArray = values[np.lexsort((values.real, _ranks(-values.imag, 1e-10 * size)))]
    return best[:count]


def stable_step(
    graph: ComputationalGraph | WeightedGraph | Any,
    weights: Any = None,
    laplacian: Laplacian = "out",
    *,
    degrees: Degrees | None = None,
    dense_limit: int = DENSE_LIMIT,
) -> float:
    """The largest step ``eps`` for which the linear system ``h <- h - eps L h`` does not grow.

    A mode is multiplied by ``1 - eps lambda``, which shrinks it iff ``eps < 2 Re lambda /
    |lambda|^2``: at one real part, rotation makes the bound smaller. A mode with ``Re lambda < 0``
    grows at any step; one with ``Re lambda = 0`` and rotation too. Modes at 0 stay as they are (a
    simple or semisimple 0 is a Laplacian's equilibrium) and bound nothing.

    Args:
        graph, weights, laplacian, degrees, dense_limit: as for
            :func:`~graphprune.spectral.spectrum`; not ``adjacency``, which is no Laplacian.

    Returns:
        The smallest ``2 Re lambda / |lambda|^2`` over modes that are not 0: below it every such
        mode shrinks, above it one grows. 0.0 where a mode grows at any step, infinity where all
        modes are 0.

    Example:
        >>> ring = ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("c", "a")])
        >>> stable_step(ring)  # lambda = 1.5 +- 0.866i
        1.0
        >>> both_ways = ([[0, 1], [1, 0]], 2)
        >>> stable_step(both_ways)  # lambda = 2
        1.0
    """
    if laplacian == "adjacency":
        raise InputError(
            "h <- h - eps A h is no diffusion: Laplacian 'adjacency' has no stable step; use "
            "out, in, both, rw or count"
        )
    values = spectrum(graph, weights, laplacian, degrees=degrees, dense_limit=dense_limit)
    size = np.abs(values)
    moving = values[size > 1e-9 * float(size.max(initial=0.0))]
    if not len(moving):
        return float("inf")
    # A real part within rounding of 0 is none.
    real = np.where(moving.real > 1e-12 * size.max(), moving.real, 0.0)
    return float((2 * real / np.abs(moving) ** 2).min())


def drift(
    graph: ComputationalGraph | WeightedGraph | Any,
    weights: Any = None,
    mask: EdgeMask | Any = None,
    laplacian: Laplacian = "out",
    *,
    degrees: Degrees | None = None,
    dense_limit: int = DENSE_LIMIT,
) -> dict[str, float]:
    """The change of the spectrum when a mask's edges are cut.

    Their nodes stay, and degrees are counted anew.

    Args:
        graph, weights, laplacian, degrees, dense_limit: as for
            :func:`~graphprune.spectral.spectrum`.
        mask: an :class:`~graphprune.EdgeMask` or ``[E]`` of what is kept: zeros and ones.

    Returns:
        ``distance``: the mean distance between eigenvalues before and after, paired so that it is
        least (the Wasserstein-1 distance of the two spectra), in units of the weights;
        ``relative``: the same over the mean size before; ``rotation`` (sum of ``|Im lambda|``) and
        ``radius`` (largest size), each ``_before`` and ``_after``.

    Raises:
        InputError: no mask, one of another number of edges, values between 0 and 1, or more than
            5,000 nodes.
        GraphMismatchError: a mask of another graph.

    Example:
        >>> ring = ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("c", "a")])
        >>> change = drift(ring, mask=[1, 1, 0], laplacian="adjacency")
        >>> round(change["distance"], 3), change["rotation_after"], change["radius_before"]
        (1.0, 0.0, 1.0)
    """
    given = weighted_graph(graph, weights)
    kept = _kept(mask, given)
    if given.num_nodes > MOST_PAIRED:
        raise InputError(
            f"eigenvalues of {given.num_nodes} nodes are too many to pair, {MOST_PAIRED} at most; "
            "compare spectrum() or leading() before and after"
        )
    before, after = (
        spectrum(one, laplacian=laplacian, degrees=degrees, dense_limit=dense_limit)
        for one in (given, given.keep(kept))
    )
    apart = np.abs(before[:, None] - after[None])
    distance = float(apart[linear_sum_assignment(apart)].mean()) if len(before) else 0.0
    size = float(np.abs(before).mean()) if len(before) else 0.0
    result = {"distance": distance, "relative": distance / size if size else 0.0}
    for name, values in (("before", before), ("after", after)):
        result[f"rotation_{name}"] = float(np.abs(values.imag).sum())
        result[f"radius_{name}"] = float(np.abs(values).max(initial=0.0))
    return result


def _kept(mask: Any, given: WeightedGraph) -> BoolArray:
    edges = given.num_edges
    if mask is None:
        raise InputError("drift compares a graph with what a mask leaves of it: give mask=")
    if isinstance(mask, EdgeMask) and given.graph is not None:
        require_same_graph(given.graph, mask.graph, "the graph and the mask")
    values = np.asarray(mask.values if isinstance(mask, EdgeMask) else mask, dtype=float)
    if values.shape != (edges,):
        raise InputError(f"expected a mask of {edges} edges, got the shape {list(values.shape)}")
    if not np.isin(values, (0.0, 1.0)).all():
        raise InputError("drift is of edges that are absent: a mask of zeros and ones")
    return np.asarray(values == 1)
