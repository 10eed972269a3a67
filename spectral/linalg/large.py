"""Graphs whose components are too large for all their eigenvalues."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from graphprune.core.graph import ComputationalGraph
from graphprune.errors import InputError

from .blocks import ComplexArray
from .laplacians import Degrees, Laplacian, operator
from .spectra import DENSE_LIMIT, Solver, levels
from .wiring import Wiring, wiring

__all__ = ["leading"]


def leading(
    graph: ComputationalGraph | Wiring | Any,
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
    solver = Solver(operator(laplacian, degrees), dense_limit, leading=2 * count, seed=seed)
    found = solver.decompose(wiring(graph, weights), vectors=False)
    for doubt in found.doubts:
        warnings.warn(doubt, UserWarning, stacklevel=2)
    values = found.values[found.values.imag >= 0]
    size = float(np.abs(values).max(initial=0.0))
    # Rounding must not order equal imaginary parts.
    best: ComplexArray = values[np.lexsort((values.real, levels(-values.imag, 1e-10 * size)))]
    return best[:count]
