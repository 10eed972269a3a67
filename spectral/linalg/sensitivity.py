"""How a spectrum's measure changes with each edge: all edges from one decomposition.

For a simple eigenvalue, ``L v = lambda v``, ``u^H L = lambda u^H``, ``nu = u^H v``, the change with
one entry is ``dlambda / dL_ij = conj(u_i) v_j / nu``. With ``K_ij = Re sum_k h_k conj(u_ki) v_kj /
nu_k`` (``h`` is the measure's, see :mod:`.measures`) the derivative by the
weight of edge i -> j is, with a' the slope of degrees:

=============  =======================================
``out``        ``a' K_ii - K_ij``
``in``         ``a' K_jj - K_ij``
``both``       ``a' (K_ii + K_jj) - K_ij``
``rw``         ``-(K_ij - a' G_ii) / d_i``, G as K with ``(1 - lambda) h``
``adjacency``  ``K_ij``
``count``      ``-K_ij``
=============  =======================================

Between two components ``K_ij`` is 0, but the degrees' terms are not: such edges count too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphprune.core.graph import ComputationalGraph

from .blocks import ComplexArray, Part
from .laplacians import Degrees, Laplacian, Operator, operator
from .measures import Measure, MeasureName, measure_named
from .spectra import DENSE_LIMIT, Decomposition, Solver
from .wiring import FloatArray, IntArray, Wiring, wiring

__all__ = ["DEFECTIVE", "Contractions", "contract", "removals", "sensitivity", "slopes"]

DEFECTIVE = 1e-8
"""Eigenvalues with \\|nu\\| below this have no usable derivative and are left out."""


class Contractions:
    """``K`` and ``G`` at edges and on the diagonal; see the module."""

    def __init__(self, edges: int, nodes: int) -> None:
        self.edge = np.zeros(edges)
        self.node = np.zeros(nodes)
        self.walk = np.zeros(nodes)


def contract(
    given: Wiring, found: Decomposition, measure: Measure, *, limit: float = np.inf
) -> Contractions:
    """``K`` at all of the wiring's edges, present or not, and on the diagonal.

    An eigenvalue whose condition is above ``limit`` counts as if it were ``limit``.
    """
    made = Contractions(len(given.sources), given.num_nodes)
    h = measure.pull(found.values)
    label, place = found.components.label, found.components.place
    start = 0
    inside = label[given.sources] == label[given.targets]
    by = np.flatnonzero(inside)
    by = by[np.argsort(label[given.sources[by]], kind="stable")]
    labels = label[given.sources[by]]
    for part in found.parts:
        mine = h[start : start + len(part.values)]
        start += len(part.values)
        if not mine.any():
            continue
        component = label[part.nodes[0]]
        span = slice(*np.searchsorted(labels, [component, component + 1]))
        edges = by[span]
        _contract_part(
            made, part, mine, limit, edges, place[given.sources[edges]], place[given.targets[edges]]
        )
    single = h[start:].real
    made.node[found.alone] = single
    made.walk[found.alone] = single * (1 - found.alone_values)
    loops = by[given.sources[by] == given.targets[by]]
    made.edge[loops] = made.node[given.sources[loops]]
    return made


def _contract_part(
    made: Contractions,
    part: Part,
    h: ComplexArray,
    limit: float,
    edges: IntArray,
    sources: IntArray,
    targets: IntArray,
) -> None:
    assert part.left is not None
    assert part.right is not None
    assert part.condition is not None
    used = np.flatnonzero((h != 0) & (part.condition <= 1 / DEFECTIVE))
    weight = h[used] * np.minimum(1.0, limit / part.condition[used])
    left, right = part.left[:, used] * weight, part.right[:, used]
    products = left * right
    made.node[part.nodes] = products.real.sum(1)
    made.walk[part.nodes] = (products * (1 - part.values[used])).real.sum(1)
    # Re(left @ right.T): by matrix products where edges are many, edge by edge where they are few.
    if len(edges) * 8 > len(part.nodes) ** 2:
        whole = left.real @ right.real.T - left.imag @ right.imag.T
        made.edge[edges] = whole[sources, targets]
        return
    parts = [np.ascontiguousarray(x) for x in (left.real, left.imag, right.real, right.imag)]
    step = max(1, 2_000_000 // max(1, len(used)))
    for first in range(0, len(edges), step):
        i, j = sources[first : first + step], targets[first : first + step]
        value = np.einsum("ek,ek->e", parts[0][i], parts[2][j])
        value -= np.einsum("ek,ek->e", parts[1][i], parts[3][j])
        made.edge[edges[first : first + step]] = value


def slopes(form: Operator, given: Wiring, k: Contractions) -> FloatArray:
    """``[E + F]``: the derivative of the measure by each edge's weight."""
    i, j = given.sources, given.targets
    slope = form.slope_of(given.weights)
    if form.laplacian == "out":
        return np.asarray(slope * k.node[i] - k.edge)
    if form.laplacian == "in":
        return np.asarray(slope * k.node[j] - k.edge)
    if form.laplacian == "both":
        return np.asarray(slope * (k.node[i] + k.node[j]) - k.edge)
    if form.laplacian == "rw":
        return np.asarray(-(k.edge - slope * k.walk[i]) * _inverse(form.diagonal(given))[i])
    return np.asarray(k.edge if form.laplacian == "adjacency" else -k.edge)


def removals(form: Operator, given: Wiring, k: Contractions) -> FloatArray:
    """``[E + F]``: the first-order change of the measure where an edge is taken out.

    The change of the matrix is exact: the published ``count`` loses two counts, and ``rw`` divides
    by what is left of the degree (a last out-edge leaves a row of zeros).
    """
    i, j, w = given.sources, given.targets, given.weights
    if form.laplacian == "count":
        return np.asarray(w * k.edge - k.node[i] - k.node[j])
    if form.laplacian != "rw":
        return np.asarray(-w * slopes(form, given, k))
    degree, size = form.diagonal(given)[i], form.size_of(w)
    rest = degree - size
    last = np.abs(rest) <= 1e-12 * np.maximum(np.abs(degree), np.abs(size))
    thinner = (w * k.edge - size * k.walk[i]) / np.where(last, 1.0, rest)
    return np.asarray(np.where(last, -(k.node[i] - k.walk[i]), thinner))


def _inverse(values: FloatArray) -> FloatArray:
    found: FloatArray = np.divide(1.0, values, out=np.zeros_like(values), where=values != 0)
    return found


def sensitivity(
    graph: ComputationalGraph | Wiring | Any,
    weights: Any = None,
    laplacian: Laplacian = "out",
    *,
    measure: MeasureName = "sum",
    degrees: Degrees | None = None,
    dense_limit: int = DENSE_LIMIT,
) -> Tensor:
    """d(sum of \\|Im lambda\\|) / d(weight) for every edge, from one decomposition.

    Args:
        graph, weights, laplacian, degrees, dense_limit: as for
            :func:`~graphprune.spectral.spectrum`.
        measure: ``"sum"`` of \\|Im lambda\\| over all eigenvalues, ``"max"`` of them, or ``"gap"``,
            the smallest positive real part (see :mod:`.measures`).

    Returns:
        ``[E]`` float64. Eigenvalues too close to defective to have a derivative count as constant.

    Raises as :func:`~graphprune.spectral.spectrum`.

    Example:
        >>> ring = ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("c", "a")])
        >>> sensitivity(ring, [1.0, 1.0, 1.0])
        tensor([0.5774, 0.5774, 0.5774], dtype=torch.float64)
    """
    given, form = wiring(graph, weights), operator(laplacian, degrees)
    found = Solver(form, dense_limit).decompose(given, vectors=True)
    chosen = measure_named(measure, found, laplacian)
    values = slopes(form, given, contract(given, found, chosen))
    return torch.from_numpy(values[: given.num_edges].copy())
