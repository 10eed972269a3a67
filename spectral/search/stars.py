"""Stars: a node, its neighbours and the edges between, with degrees counted inside the star.

A star's matrix is an arrowhead: only the centre's row, its column and the diagonal are filled. A
neighbour i in one direction alone adds its own diagonal entry, a real eigenvalue. The others solve
the secular equation

    lambda - c = sum_i s_i / (lambda - d_i),    s_i = L_ni L_in,

over the neighbours in both directions, of the diagonal entries c (the centre's) and d_i:

=============  ==================================  ==================  =========================
laplacian      c                                   d_i                 s_i
=============  ==================================  ==================  =========================
``out``        sum of a(w_nj)                      a(w_in)             w_ni w_in
``in``         sum of a(w_jn)                      a(w_ni)             w_ni w_in
``both``       the sum of both                     the sum of both     w_ni w_in
``count``      number of edges                     2                   w_ni w_in
``adjacency``  0                                   0                   w_ni w_in
``rw``         1                                   1                   w_ni w_in / (c' a(w_in))
=============  ==================================  ==================  =========================

(a(w) is w or \\|w\\|, c' the sum of a(w_nj).) Where all ``d_i`` are one d this is a quadratic: the
star turns iff ``(c - d)^2 + 4 sum_i s_i < 0``, always so for ``count``, ``adjacency`` and ``rw``.
Where no s_i is negative the star is symmetric up to a scaling, and real. Else equal d_i are put
together, the small arrowhead is solved, and its roots are polished on the secular equation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphprune.errors import NumericalError

from ..linalg.blocks import ComplexArray
from ..linalg.laplacians import Operator
from ..linalg.wiring import FloatArray, IntArray

__all__ = ["Star", "star_of"]


@dataclass(frozen=True, eq=False)
class Star:
    """One node's star: its secular equation.

    Args:
        centre: c.
        leaves, products: ``[k]``, d_i and s_i of the neighbours in both directions.
        neighbours: ``[k]`` their numbers.
    """

    centre: float
    leaves: FloatArray
    products: FloatArray
    neighbours: IntArray

    @property
    def turn(self) -> float:
        """The largest imaginary part of the star's eigenvalues; exactly 0 where they are real."""
        return float(self.values.imag.max(initial=0.0))

    @property
    def values(self) -> ComplexArray:
        """The roots of the secular equation, merged leaves once: ``[groups + 1]``."""
        return _roots(self.centre, self.leaves, self.products)


def star_of(
    form: Operator, node: int, out: IntArray, into: IntArray, forth: FloatArray, back: FloatArray
) -> Star:
    """The star of ``node``.

    Args:
        form: which matrix.
        out, into: targets of its out-edges and sources of its in-edges, no self-loops; parallel
            edges stand one by one.
        forth, back: their weights.

    Raises:
        NumericalError: signed ``rw``, and the weights that leave a node of the star add up to 0.

    Example:
        >>> star = star_of(Operator("adjacency"), 0, np.array([1]), np.array([1]),
        ...                np.array([2.0]), np.array([-2.0]))
        >>> star.products.tolist(), star.turn
        ([-4.0], 2.0)
    """
    both = np.intersect1d(out, into)
    a_out = np.ones_like(forth) if form.laplacian == "count" else form.size_of(forth)
    a_into = np.ones_like(back) if form.laplacian == "count" else form.size_of(back)
    w_out, w_into = _sums(both, out, forth), _sums(both, into, back)
    d_out, d_into = _sums(both, out, a_out), _sums(both, into, a_into)
    sum_out, sum_into = float(a_out.sum()), float(a_into.sum())
    if form.laplacian == "rw" and len(both):
        total = np.concatenate([[float(np.abs(forth).sum())], _sums(both, into, np.abs(back))])
        zero = np.abs(np.concatenate([[sum_out], d_into])) <= 1e-14 * total
        if zero.any():
            raise NumericalError(
                f"Laplacian 'rw' divides by out-degrees, and signed weights that leave a node of "
                f"the star of node {node} add up to 0; use degrees='absolute'"
            )
        products = w_out * w_into / (sum_out * d_into)
        return Star(1.0, np.ones(len(both)), products, both)
    centre, leaves = {
        "out": (sum_out, d_into),
        "in": (sum_into, d_out),
        "adjacency": (0.0, np.zeros(len(both))),
    }.get(form.laplacian, (sum_out + sum_into, d_out + d_into))
    return Star(centre, leaves, w_out * w_into, both)


def _sums(both: IntArray, ends: IntArray, values: FloatArray) -> FloatArray:
    """``[k]``: values by neighbour."""
    place = np.searchsorted(both, ends)
    mine = np.isin(ends, both)
    found: FloatArray = np.bincount(place[mine], values[mine], len(both)).astype(np.float64)
    return found


def _roots(centre: float, leaves: FloatArray, products: FloatArray) -> ComplexArray:
    if not len(leaves):
        return np.array([centre + 0j])
    different, group = np.unique(leaves, return_inverse=True)
    merged = np.bincount(group, products, len(different))
    if len(different) == 1:
        middle, gap = (centre + different[0]) / 2, (centre - different[0]) ** 2 + 4 * merged[0]
        root = np.sqrt(complex(gap)) / 2
        return np.array([middle - root, middle + root])
    size = len(different) + 1
    matrix = np.zeros((size, size))
    root = np.sqrt(np.abs(merged))
    matrix[0, 0], matrix[0, 1:], matrix[1:, 0] = centre, -root, -root * np.sign(merged)
    matrix[np.arange(1, size), np.arange(1, size)] = different
    if (merged >= 0).all():
        return np.asarray(np.linalg.eigvalsh(matrix) + 0j)
    values = np.linalg.eigvals(matrix).astype(np.complex128)
    # A double root splits by the root of eps.
    turning = np.abs(values.imag) > 1e-7 * float(np.linalg.norm(matrix))
    values = np.where(turning, values, values.real + 0j)
    polished = values[turning]
    for _ in range(2):
        apart = polished[:, None] - different
        error = polished - centre - (merged / apart).sum(1)
        polished = polished - error / (1 + (merged / apart**2).sum(1))
    near = np.abs(polished - values[turning]) <= 1e-6 * float(np.linalg.norm(matrix))
    values[turning] = np.where(near, polished, values[turning])
    return values
