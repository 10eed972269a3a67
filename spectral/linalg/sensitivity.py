"""Measures of a spectrum, and how they change with each edge: all edges from one decomposition.

A measure F is a real function of the eigenvalues with ``dF = Re sum_k h_k dlambda_k``; ``h`` is
non-zero for one member of each conjugate pair only (the one with the positive imaginary part).

- ``sum``: the sum of \\|Im lambda\\| over all eigenvalues, conjugates included.
- ``max``: the largest \\|Im lambda\\|.
- ``gap``: the real part of the eigenvalue that comes after ``skip`` others in order of real parts;
  ``skip`` counts those at or below 0 in the graph as it was given. A cut that makes one more
  eigenvalue 0 (one more closed class) therefore closes the gap.

Where several eigenvalues tie for the ``max`` or the ``gap``, repeated ones among them, each counts
in equal parts: no order of nodes and no choice of eigenvectors decides between them.

For a simple eigenvalue, ``L v = lambda v``, ``u^H L = lambda u^H``, ``nu = u^H v``, the change with
one entry is ``dlambda / dL_ij = conj(u_i) v_j / nu``, so that of the measure is ``K_ij = Re sum_k
h_k conj(u_ki) v_kj / nu_k``. An edge i -> j of weight w adds ``-w`` at (i, j) (``+w`` for
``adjacency``) and a(w) to the diagonal at its degree nodes. With ``K_d`` the sum of K_nn over those
nodes n, the measure's change is

- by the weight: ``a' K_d - K_ij``, a' the slope of a;
- where the edge comes: ``a K_d - w K_ij``; where it goes: minus that.

For ``rw`` row i is divided by the degree d. ``K_d`` is then ``G_ii``, as K with ``(1 - lambda) h``;
the change by the weight is divided by d, that by an edge by the degree that is left afterwards.
Between two components ``K_ij`` is 0, but the degrees' terms are not: such edges count too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from graphprune.core.graph import ComputationalGraph
from graphprune.errors import InputError
from graphprune.util.progress import track

from .eigensolver import DENSE_LIMIT, BlockSpectrum, ComplexArray, Solver, Spectrum
from .weighted_graph import (
    Degrees,
    FloatArray,
    IntArray,
    Laplacian,
    Operator,
    WeightedGraph,
    operator,
    require_known,
    weighted_graph,
)

__all__ = [
    "DEFECTIVE", "EntryGradients", "Measure", "MeasureName", "entry_gradients", "measure_named",
    "removal_effects", "rotation", "sensitivity", "toggle_effects", "weight_gradients",
]  # fmt: skip

MeasureName = Literal["sum", "max", "gap"]
TIE = 1e-10  # of the largest size: what rounding sets apart

DEFECTIVE = 1e-8
"""Eigenvalues with \\|nu\\| below this have no usable derivative and are left out."""


@dataclass(frozen=True)
class Measure:
    """A real function of a spectrum."""

    name: MeasureName
    skip: int = 0

    def value(self, values: ComplexArray) -> float:
        """F of eigenvalues; 0 for an empty spectrum."""
        return float(self.values(values[None])[0])

    def values(self, values: ComplexArray) -> FloatArray:
        """F of each spectrum of a stack ``[B, k]``."""
        if self.name == "sum":
            return np.asarray(2.0 * np.maximum(values.imag, 0.0).sum(1))
        if self.name == "max":
            return np.asarray(values.imag.max(1, initial=0.0))
        if self.skip >= values.shape[1]:
            return np.zeros(len(values))
        return np.sort(values.real, axis=1)[:, self.skip]

    def gradient(self, values: ComplexArray) -> ComplexArray:
        """``h`` for each eigenvalue."""
        h = np.zeros(len(values), dtype=np.complex128)
        if self.name == "sum":
            h[values.imag > 0] = -2j
            return h
        now = self.value(values)
        if self.skip >= len(values) or (self.name == "max" and now <= 0):
            return h
        part = (
            values.imag if self.name == "max" else np.where(values.imag >= 0, values.real, np.inf)
        )
        tied = np.abs(part - now) <= TIE * np.abs(values).max()
        h[tied] = (-1j if self.name == "max" else 1.0) / tied.sum()
        return h


def measure_named(name: str, start: Spectrum | None = None, laplacian: str = "out") -> Measure:
    """A measure by name; ``gap`` counts the closed classes of ``start``."""
    require_known(name, MeasureName, "measure")
    if name in ("sum", "max"):
        return Measure("sum" if name == "sum" else "max")
    if laplacian not in ("out", "in", "rw"):
        raise InputError(
            f"the gap is defined for Laplacians whose rows or columns sum to 0: out, in or rw, not "
            f"{laplacian!r}"
        )
    if start is None or not start.complete:
        raise InputError("the gap needs the whole spectrum: no component may be above dense_limit")
    values = start.values
    near = 1e-9 * float(np.abs(values).max(initial=0.0))
    return Measure("gap", int((values.real <= near).sum()))


@dataclass(eq=False)
class EntryGradients:
    """A measure's gradients by entries of the matrix, see the head of this module.

    Args:
        edge: ``[E + F]``, ``K_ij`` at each edge.
        node: ``[N]``, ``K_ii``.
        walk: ``[N]``, ``G_ii``.
    """

    edge: FloatArray
    node: FloatArray
    walk: FloatArray


def entry_gradients(
    graph: WeightedGraph, spectrum: Spectrum, measure: Measure, *, limit: float = np.inf
) -> EntryGradients:
    """The measure's gradients at all of the graph's edges, present or not, and on the diagonal.

    An eigenvalue whose condition is above ``limit`` counts as if it were ``limit``.
    """
    nodes = graph.num_nodes
    result = EntryGradients(np.zeros(len(graph.sources)), np.zeros(nodes), np.zeros(nodes))
    h = measure.gradient(spectrum.values)
    label, place = spectrum.components.label, spectrum.components.place
    inside = np.flatnonzero(label[graph.sources] == label[graph.targets])
    inside = inside[np.argsort(label[graph.sources[inside]], kind="stable")]
    labels = label[graph.sources[inside]]
    start = 0
    for block in spectrum.blocks:
        own = h[start : start + len(block.values)]
        start += len(block.values)
        if own.any():
            component = label[block.nodes[0]]
            edges = inside[slice(*np.searchsorted(labels, [component, component + 1]))]
            ends = place[graph.sources[edges]], place[graph.targets[edges]]
            _add_block(result, block, own, limit, edges, *ends)
    single, nodes_alone = h[start:].real, spectrum.components.single
    result.node[nodes_alone] = single
    result.walk[nodes_alone] = single * (1 - spectrum.single_values)
    loops = inside[graph.sources[inside] == graph.targets[inside]]
    result.edge[loops] = result.node[graph.sources[loops]]
    return result


def _add_block(
    result: EntryGradients,
    block: BlockSpectrum,
    h: ComplexArray,
    limit: float,
    edges: IntArray,
    sources: IntArray,
    targets: IntArray,
) -> None:
    assert block.left is not None
    assert block.right is not None
    assert block.condition is not None
    used = np.flatnonzero((h != 0) & (block.condition <= 1 / DEFECTIVE))
    factor = h[used] * np.minimum(1.0, limit / block.condition[used])
    left, right = block.left[:, used] * factor, block.right[:, used]
    products = left * right
    result.node[block.nodes] = products.real.sum(1)
    result.walk[block.nodes] = (products * (1 - block.values[used])).real.sum(1)
    # Re(left @ right.T): by matrix products where edges are many, edge by edge where they are few.
    if len(edges) * 8 > len(block.nodes) ** 2:
        whole = left.real @ right.real.T - left.imag @ right.imag.T
        result.edge[edges] = whole[sources, targets]
        return
    u_real, u_imag, v_real, v_imag = (
        np.ascontiguousarray(x) for x in (left.real, left.imag, right.real, right.imag)
    )
    step = max(1, 2_000_000 // max(1, len(used)))  # 16 MB for each of the gathered arrays
    for first in range(0, len(edges), step):
        i, j = sources[first : first + step], targets[first : first + step]
        value = np.einsum("ek,ek->e", u_real[i], v_real[j])
        value -= np.einsum("ek,ek->e", u_imag[i], v_imag[j])
        result.edge[edges[first : first + step]] = value


def _at_degree_nodes(form: Operator, graph: WeightedGraph, k: EntryGradients) -> FloatArray:
    """``K_d [E + F]``."""
    entries = k.walk if form.laplacian == "rw" else k.node
    total = np.zeros(len(graph.sources))
    for nodes in form.degree_nodes(graph):
        total += entries[nodes]
    return total


def weight_gradients(form: Operator, graph: WeightedGraph, k: EntryGradients) -> FloatArray:
    """``[E + F]``: the derivative of the measure by each edge's weight."""
    slope = form.degree_slope(graph.weights)
    gradient = slope * _at_degree_nodes(form, graph, k) + form.sign * k.edge
    if form.laplacian == "rw":
        degree = form.degree(graph)[graph.sources]
        return np.divide(gradient, degree, out=np.zeros_like(gradient), where=degree != 0)
    return gradient


def toggle_effects(form: Operator, graph: WeightedGraph, k: EntryGradients) -> FloatArray:
    """``[E + F]``: the measure's first-order change where an edge goes, or an absent one comes.

    The change of the matrix is exact: ``count`` loses two counts, and ``rw`` divides by the degree
    that is left (a last out-edge leaves a row of zeros). An edge that would make that degree 0 by
    coming is never worth it: infinite.
    """
    step = np.where(graph.present, -1.0, 1.0)
    share = form.degree_share(graph.weights)
    effect = step * (share * _at_degree_nodes(form, graph, k) + form.sign * graph.weights * k.edge)
    if form.laplacian != "rw":
        return effect
    sources = graph.sources
    degree = form.degree(graph)[sources]
    rest = degree + step * share
    empty = np.abs(rest) <= 1e-12 * np.maximum(np.abs(degree), np.abs(share))
    emptied = np.where(graph.present, k.walk[sources] - k.node[sources], np.inf)
    return np.where(empty, emptied, effect / np.where(empty, 1.0, rest))


def sensitivity(
    graph: ComputationalGraph | WeightedGraph | Any,
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
            the smallest positive real part (see the head of this module).

    Returns:
        ``[E]`` float64. Eigenvalues too close to defective to have a derivative count as constant.

    Raises as :func:`~graphprune.spectral.spectrum`.

    Example:
        >>> ring = ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("c", "a")])
        >>> sensitivity(ring, [1.0, 1.0, 1.0])
        tensor([0.5774, 0.5774, 0.5774], dtype=torch.float64)
    """
    given, form = weighted_graph(graph, weights), operator(laplacian, degrees)
    spectrum = Solver(form, dense_limit).solve(given, vectors=True)
    chosen = measure_named(measure, spectrum, laplacian)
    values = weight_gradients(form, given, entry_gradients(given, spectrum, chosen))
    return torch.from_numpy(given.per_edge(values).copy())


def removal_effects(
    graph: ComputationalGraph | WeightedGraph | Any,
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
        graph, weights, laplacian, degrees, measure, dense_limit: as for :func:`sensitivity`.
        exact: solve again without each edge (slow: an eigendecomposition an edge); otherwise to
            first order, from one decomposition.
        edges: numbers of the edges wanted; the others are NaN. ``None`` means all.

    Returns:
        ``[E]`` float64; negative where the removal lowers the measure.

    Example:
        >>> ring = ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("c", "a")])
        >>> removal_effects(ring), removal_effects(ring, exact=True)
        (tensor([-0.5774, -0.5774, -0.5774], dtype=torch.float64),
         tensor([-1.7321, -1.7321, -1.7321], dtype=torch.float64))
    """
    given = weighted_graph(graph, weights)
    solver = Solver(operator(laplacian, degrees), dense_limit)
    spectrum = solver.solve(given, vectors=True)
    chosen = measure_named(measure, spectrum, laplacian)
    wanted = np.arange(given.num_edges) if edges is None else np.asarray(list(edges), dtype=int)
    if wanted.size and not 0 <= wanted.min() <= wanted.max() < given.num_edges:
        raise InputError(f"edges names an edge outside 0..{given.num_edges - 1}")
    values = np.full(given.num_edges, np.nan)
    if not exact:
        k = entry_gradients(given, spectrum, chosen)
        values[wanted] = given.per_edge(toggle_effects(solver.operator, given, k))[wanted]
        return torch.from_numpy(values)
    now = chosen.value(spectrum.values)
    every = np.arange(given.num_edges)
    for edge in track(wanted, "edges"):
        # Only the blocks that the edge touches are solved again.
        less = solver.solve(given.keep(every != edge), vectors=False)
        values[edge] = chosen.value(less.values) - now
        solver.forget()
        solver.solve(given, vectors=False)  # its blocks stay known
    return torch.from_numpy(values)


class _Rotation(torch.autograd.Function):
    """A measure of the spectrum with a gradient by the weights.

    Plain autograd through ``torch.linalg.eigvals`` raises on defective blocks and gives gradients
    of 1e23 near them. Here eigenvalues come by component, those without a derivative count as
    constant, and a badly conditioned one counts only as far as ``limit`` allows.
    """

    @staticmethod
    def forward(
        ctx: Any, weights: Tensor, given: WeightedGraph, solver: Solver, name: str, limit: float
    ) -> Tensor:
        measure = measure_named(name)
        now = given.reweighted(weights)
        spectrum = solver.solve(now, vectors=True)
        if ctx.needs_input_grad[0]:
            k = entry_gradients(now, spectrum, measure, limit=limit)
            gradient = now.per_edge(weight_gradients(solver.operator, now, k))
            ctx.gradient = torch.from_numpy(gradient.copy()).to(weights)
        return weights.new_tensor(measure.value(spectrum.values))

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, None, None, None, None]:
        return grad * ctx.gradient, None, None, None, None


def rotation(
    graph: ComputationalGraph | WeightedGraph | Any,
    weights: Tensor,
    laplacian: Laplacian = "out",
    *,
    measure: Literal["sum", "max"] = "sum",
    degrees: Degrees | None = None,
    limit: float = 1e4,
    dense_limit: int = DENSE_LIMIT,
) -> Tensor:
    """The sum (or the largest) of ``|Im lambda|``, differentiable once in ``weights [E]``.

    Args:
        graph, laplacian, degrees, dense_limit: as for :func:`~graphprune.spectral.spectrum`.
        measure: ``"sum"`` over all eigenvalues, or the ``"max"``.
        limit: the condition ``1 / |u^H v|`` above which an eigenvalue's part of the gradient is
            scaled down to what it would be there.

    Returns:
        A scalar of the weights' dtype. Gradients are finite for finite weights.

    Raises as :func:`~graphprune.spectral.spectrum`.

    Example:
        >>> ring = ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("c", "a")])
        >>> w = torch.ones(3, dtype=torch.float64, requires_grad=True)
        >>> turning = rotation(ring, w)
        >>> turning.backward()
        >>> turning.item(), w.grad
        (1.732..., tensor([0.5774, 0.5774, 0.5774], dtype=torch.float64))
    """
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        raise InputError("weights must be a float tensor [E]; a list has no gradient")
    require_known(measure, Literal["sum", "max"], "measure")
    given = weighted_graph(graph)
    solver = Solver(operator(laplacian, degrees), dense_limit)
    out: Tensor = _Rotation.apply(weights, given, solver, measure, limit)  # type: ignore[no-untyped-call]
    return out
