"""How far a graph's spectrum moves when a mask cuts edges: part of judging a pruned graph."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask, require_same_graph
from graphprune.errors import InputError

from .blocks import ComplexArray
from .laplacians import Degrees, Laplacian
from .spectra import DENSE_LIMIT, spectrum
from .wiring import BoolArray, Wiring, wiring

__all__ = ["drift"]

LARGEST = 5_000  # nodes whose eigenvalues are paired: the time grows with their cube


def drift(
    graph: ComputationalGraph | Wiring | Any,
    weights: Any = None,
    mask: EdgeMask | Any = None,
    laplacian: Laplacian = "out",
    *,
    degrees: Degrees | None = None,
    dense_limit: int = DENSE_LIMIT,
) -> dict[str, float]:
    """What cutting a mask's edges does to the spectrum; their nodes stay, degrees are made anew.

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
        >>> found = drift(ring, mask=[1, 1, 0], laplacian="adjacency")
        >>> round(found["distance"], 3), found["rotation_after"], found["radius_before"]
        (1.0, 0.0, 1.0)
    """
    given = wiring(graph, weights)
    kept = _kept(mask, given)
    if given.num_nodes > LARGEST:
        raise InputError(
            f"eigenvalues of {given.num_nodes} nodes are too many to pair, {LARGEST} at most; "
            "compare spectrum() or leading() before and after"
        )
    before, after = (
        spectrum(one, laplacian=laplacian, degrees=degrees, dense_limit=dense_limit)
        for one in (given, given.keep(kept))
    )
    distance = _distance(before, after)
    size = float(np.abs(before).mean()) if len(before) else 0.0
    found = {"distance": distance, "relative": distance / size if size else 0.0}
    for name, values in (("before", before), ("after", after)):
        found[f"rotation_{name}"] = float(np.abs(values.imag).sum())
        found[f"radius_{name}"] = float(np.abs(values).max(initial=0.0))
    return found


def _distance(before: ComplexArray, after: ComplexArray) -> float:
    if not len(before):
        return 0.0
    apart = np.abs(before[:, None] - after[None])
    return float(apart[linear_sum_assignment(apart)].mean())


def _kept(mask: Any, given: Wiring) -> BoolArray:
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
    found: BoolArray = values == 1
    return found
