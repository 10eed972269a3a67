"""Graphs whose components are too large for all their eigenvalues."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from graphprune.errors import InputError
from graphprune.graph import ComputationalGraph

from .blocks import ComplexArray
from .laplacians import Degrees, Kind, operator
from .spectra import DENSE_LIMIT, Solver
from .wiring import Wiring, wiring

__all__ = ["leading"]


def leading(
    graph: ComputationalGraph | Wiring | Any,
    weights: Any = None,
    kind: Kind = "out",
    *,
    count: int = 6,
    degrees: Degrees | None = None,
    dense_limit: int = DENSE_LIMIT,
    seed: int = 0,
) -> ComplexArray:
    """The eigenvalues of the largest imaginary parts, also of very large components.

    Components up to ``dense_limit`` nodes are solved whole; larger ones by ARPACK from several
    starts, with a warning that says how far these agree. A lower bound, never a proof.

    Args:
        graph, weights, kind, degrees: as for :func:`~graphprune.spectral.spectrum`.
        count: how many.
        seed: of the start vectors.

    Returns:
        Up to ``count`` complex numbers with imaginary part >= 0, the largest first; of each
        conjugate pair the upper one.

    Example:
        >>> ring = ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("c", "a")])
        >>> leading(ring, count=1).round(3)
        array([1.5+0.866j])
    """
    if count < 1:
        raise InputError(f"count must be at least 1, got {count}")
    solver = Solver(operator(kind, degrees), dense_limit, leading=2 * count, seed=seed)
    found = solver.decompose(wiring(graph, weights), vectors=False)
    for doubt in found.doubts:
        warnings.warn(doubt, UserWarning, stacklevel=2)
    values = found.values[found.values.imag >= 0]
    best: ComplexArray = values[np.argsort(-values.imag, kind="stable")][:count]
    return best
