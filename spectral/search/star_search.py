"""The local rule: each node's star by itself, in closed form.

The correction of the published rule (:mod:`.published`) for every Laplacian. A star is a node, its
neighbours and the edges between, with degrees counted inside the star. Where it turns, the weaker
direction of its most negative product ``L_ni L_in`` is cut. Without negative products no star turns
and nothing is ever cut.

A star's matrix is an arrowhead: only the centre's row, its column and the diagonal are filled. A
neighbour i in one direction alone adds its own diagonal entry, a real eigenvalue. The others solve
the secular equation

    lambda - c = sum_i s_i / (lambda - d_i),    s_i = L_ni L_in,

over the neighbours in both directions, of the diagonal entries c (the centre's) and d_i. For ``rw``
these are 1, and the products are divided by the degrees of both ends. Where all ``d_i`` are one d
this is a quadratic: the star turns iff ``(c - d)^2 + 4 sum_i s_i < 0``, always so for ``count``,
``adjacency`` and ``rw``. Where no s_i is negative the star is symmetric up to a scaling, and real.
Else equal d_i are put together, the small arrowhead is solved, and its roots are polished on the
secular equation.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

import numpy as np

from graphprune.errors import NumericalError

from ..linalg.eigensolver import ComplexArray
from ..linalg.weighted_graph import BoolArray, FloatArray, IntArray, Operator, WeightedGraph

__all__ = ["StarSearch", "arrowhead_rotation"]


class StarSearch:
    """Cuts edges star by star, the one that turns most first.

    Args:
        graph: self-loops are in no star; fixed edges are, but cannot be cut.
        form: which Laplacian the stars have.
    """

    def __init__(self, graph: WeightedGraph, form: Operator) -> None:
        self.graph, self.form = graph, form
        self.present = graph.present.copy()
        # Only nodes with a neighbour in both directions can have a star that turns.
        u, v, n = graph.sources, graph.targets, graph.num_nodes
        there = np.flatnonzero(graph.present & (u != v))
        mutual = there[np.isin(v[there] * n + u[there], u[there] * n + v[there])]
        ends, touching = np.concatenate([u[there], v[there]]), np.concatenate([there, there])
        order = np.argsort(ends, kind="stable")
        ends, touching = ends[order], touching[order]
        self._edges_of: dict[int, IntArray] = {
            node: touching[slice(*np.searchsorted(ends, [node, node + 1]))]
            for node in np.unique(u[mutual]).tolist()
        }

    def run(self, count: int) -> BoolArray:
        """``[E]`` bool: what is left when ``count`` edges are, or no star turns any more."""
        kept = self.present[: self.graph.num_edges]
        options = {node: self._option(node) for node in self._edges_of}
        heap = [(-turn, node, edge) for node, (turn, edge) in options.items() if edge >= 0]
        heapify(heap)
        while int(kept.sum()) > count and heap:
            turn, node, edge = heappop(heap)
            if options[node] != (-turn, edge):
                continue  # out of date
            kept[edge] = False
            # An edge is in the stars of its two ends and in no other.
            for end in (int(self.graph.sources[edge]), int(self.graph.targets[edge])):
                options[end] = self._option(end)
                if options[end][1] >= 0:
                    heappush(heap, (-options[end][0], end, options[end][1]))
        return kept

    def rotation(self, node: int) -> float:
        """The largest imaginary part of a node's star; exactly 0 where it is real."""
        out, into = self._star(node)
        return arrowhead_rotation(*self._arrowhead(node, out, into)[1:])

    def _star(self, node: int) -> tuple[IntArray, IntArray]:
        """The present edges that leave and that enter a node, self-loops aside."""
        edges = self._edges_of.get(node, np.zeros(0, dtype=np.int64))
        edges = edges[self.present[edges]]
        return edges[self.graph.sources[edges] == node], edges[self.graph.targets[edges] == node]

    def _arrowhead(
        self, node: int, out: IntArray, into: IntArray
    ) -> tuple[IntArray, float, FloatArray, FloatArray]:
        """The neighbours ``[k]`` in both directions, c, and their ``d_i`` and ``s_i [k]``."""
        graph, laplacian = self.graph, self.form.laplacian
        far_out, far_into = graph.targets[out], graph.sources[into]
        forth, back = graph.weights[out], graph.weights[into]
        share_out, share_into = self.form.degree_share(forth), self.form.degree_share(back)
        both = np.intersect1d(far_out, far_into)
        products = _sums(both, far_out, forth) * _sums(both, far_into, back)
        centre, leaves = 0.0, np.zeros(len(both))
        if laplacian in ("out", "rw", "both", "count"):  # the degree by edges that leave a node
            centre, leaves = centre + share_out.sum(), leaves + _sums(both, far_into, share_into)
        if laplacian in ("in", "both", "count"):  # and by those that enter it
            centre, leaves = centre + share_into.sum(), leaves + _sums(both, far_out, share_out)
        if laplacian == "rw" and len(both):
            total = np.r_[np.abs(forth).sum(), _sums(both, far_into, np.abs(back))]
            if (np.abs(np.r_[centre, leaves]) <= 1e-14 * total).any():
                raise NumericalError(
                    f"Laplacian 'rw' divides by out-degrees, and signed weights that leave a node "
                    f"of the star of node {node} add up to 0; use degrees='absolute'"
                )
            return both, 1.0, np.ones(len(both)), products / (centre * leaves)
        return both, float(centre), leaves, products

    def _option(self, node: int) -> tuple[float, int]:
        """How much a star turns and the edge to cut; -1 where it is real or all edges are fixed."""
        out, into = self._star(node)
        neighbours, centre, leaves, products = self._arrowhead(node, out, into)
        turn = arrowhead_rotation(centre, leaves, products)
        if turn <= 0:
            return 0.0, -1
        for number in np.argsort(products, kind="stable"):
            if products[number] >= 0:
                break
            edge = self._weaker(int(neighbours[number]), out, into)
            if edge >= 0:
                return turn, edge
        return turn, -1

    def _weaker(self, neighbour: int, out: IntArray, into: IntArray) -> int:
        """The edge to cut between a star's centre and a neighbour."""
        graph = self.graph
        forth = out[graph.targets[out] == neighbour]
        back = into[graph.sources[into] == neighbour]
        for side in sorted((forth, back), key=lambda side: abs(float(graph.weights[side].sum()))):
            free = side[side < graph.num_edges]
            if len(free):
                return int(free[np.argmin(np.abs(graph.weights[free]))])
        return -1


def _sums(nodes: IntArray, ends: IntArray, values: FloatArray) -> FloatArray:
    """``[k]``: the sum of the values at each of ``nodes`` (sorted)."""
    own = np.isin(ends, nodes)
    place = np.searchsorted(nodes, ends[own])
    return np.bincount(place, values[own], len(nodes)).astype(np.float64)


def arrowhead_rotation(centre: float, leaves: FloatArray, products: FloatArray) -> float:
    """The largest imaginary part of an arrowhead's eigenvalues; exactly 0 where they are real.

    Args:
        centre: c.
        leaves, products: ``[k]``, d_i and s_i.

    Example:
        >>> arrowhead_rotation(0.0, np.zeros(1), np.array([-4.0]))
        2.0
    """
    if not (products < 0).any():
        return 0.0
    distinct, group = np.unique(leaves, return_inverse=True)
    merged = np.bincount(group, products, len(distinct))
    if len(distinct) == 1:
        return float(np.sqrt(max(0.0, -((centre - distinct[0]) ** 2) - 4 * merged[0])) / 2)
    if (merged >= 0).all():
        return 0.0
    root = np.sqrt(np.abs(merged))
    matrix = np.diag(np.r_[centre, distinct])
    matrix[0, 1:], matrix[1:, 0] = -root, -root * np.sign(merged)
    norm = float(np.linalg.norm(matrix))
    values = np.linalg.eigvals(matrix).astype(np.complex128)
    # A double root splits by the root of eps: smaller imaginary parts are none.
    values = values[values.imag > 1e-7 * norm]
    polished = values
    for _ in range(2):  # Newton's steps
        distance = polished[:, None] - distinct
        error = polished - centre - (merged / distance).sum(1)
        polished = polished - error / (1 + (merged / distance**2).sum(1))
    near = np.abs(polished - values) <= 1e-6 * norm
    best: ComplexArray = np.where(near, polished, values)
    return float(best.imag.max(initial=0.0))
