"""The largest stable step of a linear system on a graph.

``h <- h - eps L h`` multiplies a mode by ``1 - eps lambda``, which shrinks iff ``|1 - eps lambda| <
1``, that is

    eps < 2 Re lambda / |lambda|^2.

Rotation costs step: at one real part an imaginary part makes the bound smaller. A mode with ``Re
lambda < 0`` grows at any step; one with ``Re lambda = 0`` and rotation too. Modes at 0 stay as they
are (a simple or semisimple 0 is what a Laplacian's equilibrium is) and bound nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graphprune.core.graph import ComputationalGraph
from graphprune.errors import InputError

from .blocks import ComplexArray
from .laplacians import Degrees, Laplacian
from .spectra import DENSE_LIMIT, spectrum
from .wiring import Wiring

__all__ = ["stable_step"]


def stable_step(
    graph: ComputationalGraph | Wiring | Any,
    weights: Any = None,
    laplacian: Laplacian = "out",
    *,
    degrees: Degrees | None = None,
    dense_limit: int = DENSE_LIMIT,
) -> float:
    """The largest ``eps`` for which ``h <- h - eps L h`` does not grow: a bound from above.

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
    found = spectrum(graph, weights, laplacian, degrees=degrees, dense_limit=dense_limit)
    return _bound(found)


def _bound(values: ComplexArray) -> float:
    size = np.abs(values)
    moving = values[size > 1e-9 * float(size.max(initial=0.0))]
    if not len(moving):
        return float("inf")
    # A real part within rounding of 0 is none.
    real = np.where(moving.real > 1e-12 * size.max(), moving.real, 0.0)
    return float((2 * real / np.abs(moving) ** 2).min())
