"""Laplacians of directed, weighted, signed graphs.

``A[i, j] = w`` is the edge i -> j; ``D_out = diag(sum_j a(w_ij))``, ``D_in = diag(sum_i a(w_ij))``,
where ``a(w)`` is w (``degrees="signed"``) or \\|w\\| (``"absolute"``), edge by edge.

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

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.sparse import coo_array, csr_array, diags_array

from graphprune.core.graph import ComputationalGraph
from graphprune.errors import NumericalError

from .names import known
from .wiring import FloatArray, Wiring, wiring

__all__ = ["Degrees", "Laplacian", "Operator", "laplacian", "operator"]

Laplacian = Literal["out", "in", "both", "rw", "adjacency", "count"]
Degrees = Literal["signed", "absolute"]


@dataclass(frozen=True)
class Operator:
    """Which matrix of a wiring: its name and how degrees are counted."""

    laplacian: Laplacian = "out"
    degrees: Degrees = "signed"

    @property
    def has_zero_sums(self) -> bool:
        """Whether rows (or columns) sum to 0 for non-negative weights: a Laplacian proper."""
        return self.laplacian in ("out", "in", "rw")

    def size_of(self, weights: FloatArray) -> FloatArray:
        """``a(w)``: what a weight adds to a degree."""
        return np.abs(weights) if self.degrees == "absolute" else weights

    def slope_of(self, weights: FloatArray) -> FloatArray:
        """``da/dw``; 0 at w = 0 for absolute degrees, whose derivative jumps there."""
        return np.sign(weights) if self.degrees == "absolute" else np.ones_like(weights)

    def diagonal(self, given: Wiring) -> FloatArray:
        """``[N]``: the degrees on its diagonal (for ``rw``: those that it divides by).

        Zeros for the adjacency matrix.
        """
        here = given.present
        size = self.size_of(given.weights[here])
        if self.laplacian == "count":
            size = np.ones_like(size)
        n = given.num_nodes
        out: FloatArray = np.bincount(given.sources[here], size, n).astype(np.float64)
        into: FloatArray = np.bincount(given.targets[here], size, n).astype(np.float64)
        if self.laplacian in ("out", "rw"):
            return out
        if self.laplacian == "in":
            return into
        return np.zeros(given.num_nodes) if self.laplacian == "adjacency" else out + into

    def matrix(self, given: Wiring) -> Any:
        """The matrix as a sparse float64 ``[N, N]`` CSR array without stored zeros."""
        here = given.present
        shape = (given.num_nodes, given.num_nodes)
        entries = (given.weights[here], (given.sources[here], given.targets[here]))
        adjacency = csr_array(coo_array(entries, shape=shape))
        if self.laplacian != "adjacency":
            degree = self.diagonal(given)
            adjacency = diags_array(degree, format="csr") - adjacency
            if self.laplacian == "rw":
                adjacency = diags_array(self._inverse(given, degree), format="csr") @ adjacency
        made = csr_array(adjacency)
        made.sum_duplicates()
        made.eliminate_zeros()
        return made

    def _inverse(self, given: Wiring, degree: FloatArray) -> FloatArray:
        """``1 / d``, and 0 for a node without out-edges (of weight)."""
        sums = np.zeros(given.num_nodes)
        np.add.at(sums, given.sources[given.present], np.abs(given.weights[given.present]))
        bad = np.flatnonzero((np.abs(degree) <= 1e-14 * sums) & (sums > 0))
        if len(bad):
            raise NumericalError(
                f"Laplacian 'rw' divides by out-degrees, and the signed weights that leave "
                f"{given.node_name(int(bad[0]))} add up to 0 ({len(bad)} such nodes); use "
                "degrees='absolute'"
            )
        found: FloatArray = np.divide(1.0, degree, out=np.zeros_like(degree), where=sums > 0)
        return found


def operator(laplacian: Laplacian, degrees: Degrees | None) -> Operator:
    """The operator by name; ``degrees=None``: absolute for ``rw``, signed for the others."""
    known(laplacian, Laplacian, "laplacian")
    if degrees is None:
        degrees = "absolute" if laplacian == "rw" else "signed"
    known(degrees, Degrees, "degrees")
    return Operator(laplacian, degrees)


def laplacian(
    graph: ComputationalGraph | Wiring | Any,
    weights: Any = None,
    laplacian: Laplacian = "out",
    *,
    degrees: Degrees | None = None,
) -> Any:
    """A Laplacian (or the adjacency matrix) of a directed weighted graph.

    Args:
        graph: a :class:`~graphprune.ComputationalGraph`, or ``(edge_index [2, E], num_nodes)``.
        weights: ``[E]`` signed weights; ``None``: 1 for every edge.
        laplacian: which matrix, see the table at the top of this module.
        degrees: ``"signed"`` sums or ``"absolute"`` sums of weights; ``None``: absolute for
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
    return operator(laplacian, degrees).matrix(wiring(graph, weights))
