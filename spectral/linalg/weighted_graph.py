"""Weighted directed graphs and the matrices whose spectra are taken.

``A[i, j] = w`` is the edge i -> j. Weights are float64. Parallel edges add up; a self-loop enters
the diagonal of A and both degrees of its node (so that it cancels out of ``D - A`` by out- or
in-degrees). A graph's edges come first, in its own order; fixed edges and feedback edges, which
can never be cut, follow.

``D_out = diag(sum_j a(w_ij))`` and ``D_in = diag(sum_i a(w_ij))``, where ``a(w)`` is w
(``degrees="signed"``) or \\|w\\| (``"absolute"``), edge by edge.

=============  =============================  ==============================================
laplacian      matrix
=============  =============================  ==============================================
``out``        ``D_out - A``                  rows sum to 0 (signed degrees)
``in``         ``D_in - A``                   columns sum to 0 (signed degrees)
``both``       ``D_in + D_out - A``           the published ``D_W``
``rw``         ``I - D_out^-1 A``             a node without out-edges: a row of zeros
``adjacency``  ``A``
``count``      ``(edges in + out) - A``       the published ``D``: counts, whatever the weights
=============  =============================  ==============================================

All of them can have complex eigenvalues. Chung's and the magnetic Laplacian cannot, and are left
out. ``rw`` takes absolute degrees by default, the others signed ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from graphprune.core.graph import ComputationalGraph
from graphprune.errors import InputError, NumericalError, unknown_name

from .conversions import as_graph_or_pair, checked_pair

__all__ = [
    "BoolArray", "Degrees", "FloatArray", "IntArray", "Laplacian", "NodePairs", "Operator",
    "WeightedGraph", "close", "finite_number", "laplacian", "operator", "require_known",
    "weighted_graph",
]  # fmt: skip

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
NodePairs = Sequence[tuple[str | int, str | int]]
Laplacian = Literal["out", "in", "both", "rw", "adjacency", "count"]
Degrees = Literal["signed", "absolute"]


@dataclass(frozen=True, eq=False)
class WeightedGraph:
    """A directed graph with a weight on each edge, as the spectral functions see it.

    Args:
        num_nodes: N.
        sources, targets: ``[E + F]`` node numbers; only the first ``num_edges`` can be cut, the F
            others are fixed edges.
        weights: ``[E + F]``, float64, finite.
        present: ``[E + F]``; an absent edge enters neither A nor any degree.
        num_edges: E.
        graph: where it came from, if that was a :class:`~graphprune.ComputationalGraph`.
        returning: ``[R]``: the edges whose other direction the first R of the F fixed ones are.
            They come and go with their edges (ties of an undirected graph).

    Example:
        >>> ring = gp.ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("c", "a")])
        >>> graph = weighted_graph(ring, [1.0, 2.0, 0.5])
        >>> graph.num_nodes, graph.weights.tolist()
        (3, [1.0, 2.0, 0.5])
    """

    num_nodes: int
    sources: IntArray
    targets: IntArray
    weights: FloatArray
    present: BoolArray
    num_edges: int
    graph: ComputationalGraph | None = None
    returning: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def keep(self, kept: BoolArray) -> WeightedGraph:
        """The same nodes with the edges ``kept [E]`` alone; fixed edges stay."""
        present = self.present.copy()
        present[: self.num_edges + len(self.returning)] &= self.both_ways(kept)
        return replace(self, present=present)

    def both_ways(self, values: Any) -> Any:
        """``[..., E + R]`` of values of the edges ``[..., E]``: each direction has its edge's."""
        if not len(self.returning):
            return values
        return np.concatenate([values, values[..., self.returning]], axis=-1)

    def per_edge(self, values: FloatArray) -> FloatArray:
        """``[E]`` of ``[E + F]``: sums over both directions of an edge."""
        count, back = self.num_edges, len(self.returning)
        if not back:
            return values[:count]
        returned = values[count : count + back]
        return values[:count] + np.bincount(self.returning, returned, minlength=count)

    @property
    def sizes(self) -> FloatArray:
        """``[E]``: sizes of the edges' weights, of both directions together."""
        return self.per_edge(np.abs(self.weights))

    def reweighted(self, weights: Any) -> WeightedGraph:
        """Other weights ``[E]`` on the edges (tied: or ``[M]``, by message); fixed keep theirs."""
        values, directions = self.weights.copy(), self.num_edges + len(self.returning)
        given = self._checked(weights, directions)
        if len(given) > self.num_edges and self.graph is not None and self.graph.ties is not None:
            given = given[np.concatenate([self.graph.ties.first, self.graph.ties.others])]
        else:
            given = self.both_ways(given)
        values[:directions] = given
        return replace(self, weights=values)

    def extended(self, sources: Any, targets: Any, weights: Any) -> WeightedGraph:
        """The graph with further fixed edges."""
        more = np.asarray(sources, dtype=np.int64)
        return replace(
            self,
            sources=np.concatenate([self.sources, more]),
            targets=np.concatenate([self.targets, np.asarray(targets, dtype=np.int64)]),
            weights=np.concatenate([self.weights, np.asarray(weights, dtype=np.float64)]),
            present=np.concatenate([self.present, np.ones(len(more), dtype=bool)]),
        )

    def fixed_weight(self, requested: Literal["mean"] | float, what: str) -> float:
        """The weight of fixed edges: a number, or the mean size of the edges' non-zero weights."""
        if requested != "mean":
            return finite_number(requested, what)
        sizes = np.abs(self.weights[: self.num_edges])
        sizes = sizes[sizes > 0]
        return float(sizes.mean()) if len(sizes) else 1.0

    def node(self, name: str | int) -> int:
        """A node's number from its name or number; raises :class:`InputError`."""
        if isinstance(name, str) and self.graph is not None and name in self.graph.node_number:
            return self.graph.node_number[name]
        if isinstance(name, (int, np.integer)) and 0 <= name < self.num_nodes:
            return int(name)
        known = [n.name for n in self.graph.nodes[:8]] if self.graph else f"0..{self.num_nodes - 1}"
        raise InputError(f"no node {name!r}; nodes: {known}{' ...' if self.graph else ''}")

    def node_name(self, node: int) -> str:
        """The node's name in messages."""
        return self.graph.nodes[node].name if self.graph is not None else str(node)

    def __repr__(self) -> str:
        fixed = len(self.sources) - self.num_edges
        return f"WeightedGraph({self.num_nodes} nodes, {self.num_edges} edges, {fixed} fixed)"

    def _checked(self, weights: Any, directions: int) -> FloatArray:
        edges = self.num_edges
        try:
            tensor = torch.as_tensor(weights).detach().cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"edge weights must be numbers: {error}") from None
        if tensor.is_complex():
            raise InputError(f"edge weights must be real numbers, got {tensor.dtype}")
        if tensor.ndim != 1 or len(tensor) not in (edges, directions):
            raise InputError(
                f"expected a weight for each of the {edges} edges, got {list(tensor.shape)}"
            )
        values: FloatArray = tensor.to(torch.float64).numpy()
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            edge, name = int(bad[0]), f"{self.sources[bad[0]]}->{self.targets[bad[0]]}"
            if self.graph is not None:
                named = self.graph if len(values) == edges else self.graph.untied
                name = named.edge_names[edge]
            raise NumericalError(
                f"{len(bad)} of {len(values)} edge weights are NaN or infinite, first at edge "
                f"{edge} ({name})"
            )
        return values


def weighted_graph(
    graph: ComputationalGraph | WeightedGraph | Any,
    weights: Any = None,
    *,
    wire_weight: Literal["mean"] | float = "mean",
) -> WeightedGraph:
    """A :class:`WeightedGraph` from what users have.

    Args:
        graph: a :class:`~graphprune.ComputationalGraph`; ``(edge_index [2, E], num_nodes)``; a
            :class:`WeightedGraph` (then ``weights=None`` keeps its own); or what
            :mod:`.conversions` lists: networkx, PyG, scipy.sparse, ``(edge_index, weights)``.
        weights: ``[E]`` numbers, signed; ``None`` means those that the graph carries, else 1 each.
        wire_weight: the weight of the graph's fixed edges: ``"mean"``, the mean size of the edges'
            weights, or a number.

    Raises:
        InputError: no directed graph, or another number of weights than edges.
        NumericalError: a weight is NaN or infinite; names the first.

    Example:
        >>> weighted_graph(([[0, 1], [1, 0]], 3), [0.5, -1.0])
        WeightedGraph(3 nodes, 2 edges, 0 fixed)
    """
    if isinstance(graph, WeightedGraph):
        return graph if weights is None else graph.reweighted(weights)
    if not isinstance(graph, ComputationalGraph):
        graph, weights = as_graph_or_pair(graph, weights)
    if isinstance(graph, ComputationalGraph):
        pairs, nodes, source = graph.edge_index.numpy(), graph.num_nodes, graph
    else:
        pairs, nodes, source = (*checked_pair(graph), None)
    count = pairs.shape[1]
    ends, returning = pairs.astype(np.int64), np.zeros(0, dtype=np.int64)
    if source is not None and source.ties is not None:
        others = source.ties.others
        ends = np.concatenate([ends, source.ties.index[:, others].numpy()], axis=1)
        returning = source.ties.edge[others].numpy()
    here = np.ones(ends.shape[1], dtype=bool)
    result = WeightedGraph(
        nodes, ends[0], ends[1], np.ones(len(here)), here, count, source, returning
    )
    if weights is not None:
        result = result.reweighted(weights)
    if source is not None and source.fixed_edge_index.numel():
        fixed = source.fixed_edge_index.numpy()
        size = result.fixed_weight(wire_weight, "wire_weight")
        result = result.extended(fixed[0], fixed[1], np.full(fixed.shape[1], size))
    return result


def close(
    graph: ComputationalGraph | WeightedGraph | Any,
    weights: Any = None,
    *,
    feedback: NodePairs = (),
    feedback_weight: Literal["mean"] | float = "mean",
    wire_weight: Literal["mean"] | float = "mean",
) -> WeightedGraph:
    """The graph closed by feedback edges, for the spectrum only: never cut, never counted.

    Args:
        graph, weights, wire_weight: as for :func:`weighted_graph`.
        feedback: pairs (source, target) of node names or numbers, such as
            ``[("logits", "input")]``.
        feedback_weight: ``"mean"``, the mean size of the edges' weights, or a number.

    Example:
        >>> chain = ComputationalGraph.from_edges([("a", "b"), ("b", "c")])
        >>> close(chain, [1.0, 3.0], feedback=[("c", "a")]).weights.tolist()
        [1.0, 3.0, 2.0]
    """
    result = weighted_graph(graph, weights, wire_weight=wire_weight)
    given: object = feedback
    if isinstance(given, str) or any(
        isinstance(pair, str) or len(tuple(pair)) != 2 for pair in feedback
    ):
        raise InputError(f"feedback is a list of pairs (source, target), got {feedback!r}")
    if not feedback:
        return result
    size = result.fixed_weight(feedback_weight, "feedback_weight")
    sources, targets = zip(*((result.node(u), result.node(v)) for u, v in feedback), strict=True)
    return result.extended(sources, targets, np.full(len(feedback), size))


def finite_number(value: Any, what: str) -> float:
    """``value`` as a float; raises :class:`InputError` for what is no finite number."""
    good = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not good or not np.isfinite(value):
        raise InputError(f"{what} must be 'mean' or a finite number, got {value!r}")
    return float(value)


def require_known(value: object, names: Any, what: str) -> None:
    """Raises :class:`~graphprune.InputError` unless a setting is one of a ``Literal``'s names."""
    if value not in get_args(names):
        raise unknown_name(what, value, get_args(names))


# ------------------------------------------------------------------ matrices


@dataclass(frozen=True)
class Operator:
    """One of the matrices of a weighted graph: its name and how degrees are counted.

    Every edge adds ``sign * w`` at its place and ``a(w)`` to the diagonal entries of its degree
    nodes; ``rw`` is then divided, row by row, by the degree.
    """

    laplacian: Laplacian = "out"
    degrees: Degrees = "signed"

    @property
    def sign(self) -> float:
        """The factor of a weight in the matrix."""
        return 1.0 if self.laplacian == "adjacency" else -1.0

    def degree_nodes(self, graph: WeightedGraph) -> tuple[IntArray, ...]:
        """The nodes to whose degree each edge adds: arrays ``[E + F]``, none for ``adjacency``."""
        out, into = (graph.sources,), (graph.targets,)
        ends = {"out": out, "rw": out, "in": into, "adjacency": ()}
        return ends.get(self.laplacian, out + into)

    def degree_share(self, weights: FloatArray) -> FloatArray:
        """``a(w)``, the amount that an edge adds to a degree: 1 for ``count``."""
        if self.laplacian == "count":
            return np.ones_like(weights)
        return np.abs(weights) if self.degrees == "absolute" else weights

    def degree_slope(self, weights: FloatArray) -> FloatArray:
        """``da/dw``; 0 at w = 0 for absolute degrees, whose derivative jumps there."""
        if self.laplacian == "count":
            return np.zeros_like(weights)
        return np.sign(weights) if self.degrees == "absolute" else np.ones_like(weights)

    def degree(self, graph: WeightedGraph) -> FloatArray:
        """``[N]``: the degrees on the diagonal (for ``rw``: those that it divides by)."""
        here = graph.present
        share = self.degree_share(graph.weights[here])
        total = np.zeros(graph.num_nodes)
        for nodes in self.degree_nodes(graph):
            total += np.bincount(nodes[here], share, graph.num_nodes)
        return total

    def matrix(self, graph: WeightedGraph) -> Any:
        """The matrix as a sparse float64 ``[N, N]`` CSR array without stored zeros."""
        here, nodes = graph.present, np.arange(graph.num_nodes)
        degree = self.degree(graph)
        rows = np.concatenate([graph.sources[here], nodes])
        columns = np.concatenate([graph.targets[here], nodes])
        values = np.concatenate([self.sign * graph.weights[here], degree])
        result = csr_array((values, (rows, columns)), shape=(graph.num_nodes, graph.num_nodes))
        if self.laplacian == "rw":
            result.data *= np.repeat(self._inverse(graph, degree), np.diff(result.indptr))
        result.eliminate_zeros()
        return result

    def _inverse(self, graph: WeightedGraph, degree: FloatArray) -> FloatArray:
        """``1 / d``, and 0 for a node without out-edges (of weight)."""
        here = graph.present
        sums = np.bincount(graph.sources[here], np.abs(graph.weights[here]), graph.num_nodes)
        bad = np.flatnonzero((np.abs(degree) <= 1e-14 * sums) & (sums > 0))
        if len(bad):
            raise NumericalError(
                f"Laplacian 'rw' divides by out-degrees, and the signed weights that leave "
                f"{graph.node_name(int(bad[0]))} add up to 0 ({len(bad)} such nodes); use "
                "degrees='absolute'"
            )
        return np.asarray(np.divide(1.0, degree, out=np.zeros_like(degree), where=sums > 0))


def operator(laplacian: Laplacian, degrees: Degrees | None) -> Operator:
    """The operator by name; ``degrees=None``: absolute for ``rw``, signed for the others."""
    require_known(laplacian, Laplacian, "laplacian")
    if degrees is None:
        degrees = "absolute" if laplacian == "rw" else "signed"
    require_known(degrees, Degrees, "degrees")
    return Operator(laplacian, degrees)


def laplacian(
    graph: ComputationalGraph | WeightedGraph | Any,
    weights: Any = None,
    laplacian: Laplacian = "out",
    *,
    degrees: Degrees | None = None,
) -> Any:
    """A Laplacian (or the adjacency matrix) of a directed weighted graph.

    Args:
        graph: a :class:`~graphprune.ComputationalGraph`, or ``(edge_index [2, E], num_nodes)``.
        weights: ``[E]`` signed weights; ``None`` means 1 for every edge.
        laplacian: which matrix, see the table at the top of this module.
        degrees: ``"signed"`` sums or ``"absolute"`` sums of weights; ``None`` means absolute for
            ``rw``, signed otherwise.

    Returns:
        A ``scipy.sparse.csr_array`` ``[N, N]``, float64.

    Raises:
        InputError: an unknown Laplacian, or another number of weights than edges.
        NumericalError: a weight is NaN or infinite, or ``rw`` would divide by 0.

    Example:
        >>> ring = ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("c", "a")])
        >>> laplacian(ring, [1.0, 2.0, 3.0]).toarray()
        array([[ 1., -1.,  0.],
               [ 0.,  2., -2.],
               [-3.,  0.,  3.]])
        >>> laplacian(ring, [1.0, 2.0, 3.0], laplacian="both").diagonal()
        array([4., 3., 5.])
    """
    return operator(laplacian, degrees).matrix(weighted_graph(graph, weights))
