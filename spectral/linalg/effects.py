"""What each edge's removal does to a measure: for all to first order, or exactly one by one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphprune.core.graph import ComputationalGraph
from graphprune.errors import InputError
from graphprune.util.progress import track

from .laplacians import Degrees, Laplacian, Operator, operator
from .measures import Measure, MeasureName, measure_named
from .sensitivity import contract, removals
from .spectra import DENSE_LIMIT, Decomposition, Solver
from .wiring import FloatArray, Wiring, wiring

__all__ = ["first_order", "removal_effects"]


def first_order(
    form: Operator, given: Wiring, found: Decomposition, measure: Measure
) -> FloatArray:
    """``[E]``: the first-order change of the measure where an edge is removed."""
    return removals(form, given, contract(given, found, measure))[: given.num_edges]


def removal_effects(
    graph: ComputationalGraph | Wiring | Any,
    weights: Any = None,
    laplacian: Laplacian = "out",
    *,
    measure: MeasureName = "sum",
    degrees: Degrees | None = None,
    exact: bool = False,
    edges: Iterable[int] | None = None,
    dense_limit: int = DENSE_LIMIT,
) -> Tensor:
    """The change of the sum of \\|Im lambda\\| (or another measure) where an edge is removed.

    Args:
        graph, weights, laplacian, degrees, measure, dense_limit: as for
            :func:`.sensitivity`.
        exact: solve again without each edge (slow: an eigendecomposition an edge); otherwise to
            first order, from one decomposition.
        edges: numbers of the edges wanted; the others are NaN. ``None``: all.

    Returns:
        ``[E]`` float64; negative where the removal lowers the measure.

    Example:
        >>> ring = ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("c", "a")])
        >>> removal_effects(ring), removal_effects(ring, exact=True)
        (tensor([-0.5774, -0.5774, -0.5774], dtype=torch.float64),
         tensor([-1.7321, -1.7321, -1.7321], dtype=torch.float64))
    """
    given = wiring(graph, weights)
    solver = Solver(operator(laplacian, degrees), dense_limit)
    found = solver.decompose(given, vectors=True)
    chosen = measure_named(measure, found, laplacian)
    wanted = np.arange(given.num_edges) if edges is None else np.asarray(list(edges), dtype=int)
    if wanted.size and not 0 <= wanted.min() <= wanted.max() < given.num_edges:
        raise InputError(f"edges names an edge outside 0..{given.num_edges - 1}")
    values = np.full(given.num_edges, np.nan)
    if not exact:
        values[wanted] = first_order(solver.operator, given, found, chosen)[wanted]
        return torch.from_numpy(values)
    now = chosen.value(found.values)
    every = np.arange(given.num_edges)
    for edge in track(wanted, "edges"):
        # Only the blocks that the edge touches are solved again.
        less = solver.decompose(given.keep(every != edge), vectors=False)
        values[edge] = chosen.value(less.values) - now
        solver.forget()
        solver.decompose(given, vectors=False)  # its blocks stay known
    return torch.from_numpy(values)
