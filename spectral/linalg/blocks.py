"""Eigenvalues and eigenvectors of one strongly connected block, and which of them are real.

Each block is balanced first (``B = T^-1 L T``, T diagonal), which also gives the condition
``1 / |nu|``, ``nu = u^H v``, its meaning: in the balanced block, an error of size eps ‖B‖ moves an
eigenvalue by about eps ‖B‖ / ``|nu|``. An imaginary part below ten n times that is noise, and set
to exactly 0. A block that some diagonal T makes symmetric (undirected graphs, trees of 2-cycles
with positive products) goes to the symmetric solver, whose eigenvalues are real by construction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eig, eigh, eigvals, eigvalsh, matrix_balance
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

from graphprune.errors import NumericalError

from .components import Block
from .wiring import FloatArray, IntArray

__all__ = ["DENSE_LIMIT", "ComplexArray", "Part", "solve"]

ComplexArray = NDArray[np.complex128]
EPS = float(np.finfo(np.float64).eps)

DENSE_LIMIT = 2000
"""Nodes of a component up to which all its eigenvalues are computed."""

DOUBTFUL = 1e-5
"""Imaginary parts below this share of the norm are judged with eigenvectors, never without."""


@dataclass(frozen=True, eq=False)
class Part:
    """Eigenpairs of one block, unit vectors of the balanced block scaled back.

    Args:
        nodes: ``[n]``.
        values: ``[k]``; imaginary parts that are noise are exactly 0.
        left: ``[n, k]``, conj(u) / nu, so that ``left.T @ right`` is the identity; ``None`` where
            only values were asked for.
        right: ``[n, k]``, v.
        condition: ``[k]``, ``1 / |nu|``.
        complete: whether all n eigenvalues are there.
        doubts: what is uncertain, in words; empty for a dense solve.
        residual: ``[k]``, of right and left vectors, by the norm; sparse solves alone.
    """

    nodes: IntArray
    values: ComplexArray
    left: ComplexArray | None = None
    right: ComplexArray | None = None
    condition: FloatArray | None = None
    complete: bool = True
    doubts: tuple[str, ...] = ()
    residual: FloatArray | None = None


def solve(block: Block, *, vectors: bool) -> Part:
    """All eigenvalues of a block by LAPACK, with left and right vectors where asked for."""
    matrix = block.dense()
    scale = _symmetriser(block)
    if scale is not None:
        return _symmetric(block, matrix, scale, vectors)
    balanced, (scaling, _) = matrix_balance(matrix, permute=False, separate=True)
    norm = float(np.linalg.norm(balanced))
    if not np.isfinite(norm):
        raise NumericalError(
            f"a component of {block.size} nodes has entries too large for float64 arithmetic"
        )
    if not vectors:
        values = eigvals(balanced, check_finite=False)
        size = np.abs(values.imag)
        if not ((size > 0) & (size <= DOUBTFUL * norm)).any():
            return Part(block.nodes, values)
    values, left, right = eig(balanced, left=True, right=True, check_finite=False)
    left, nearness = _dual(values, left, right, norm)
    noise = 10 * block.size * EPS * norm / np.maximum(nearness, EPS**2)
    values = np.where(np.abs(values.imag) <= noise, values.real + 0j, values)
    if not vectors:
        return Part(block.nodes, values)
    return Part(
        block.nodes,
        values,
        left / scaling[:, None],
        right * scaling[:, None],
        1.0 / np.maximum(nearness, EPS**2),
    )


def _dual(
    values: ComplexArray, left: ComplexArray, right: ComplexArray, norm: float
) -> tuple[ComplexArray, FloatArray]:
    """conj(u) / nu ``[n, k]``, and the size of nu ``[k]`` for unit vectors.

    LAPACK's vectors of a repeated eigenvalue are any basis of its space on either side, which need
    not be dual to one another: they are made so, together. What a function of all copies gains
    from them then does not depend on which basis that was.
    """
    dual = left.conj()
    overlap = np.einsum("nk,nk->k", dual, right)
    nearness = np.abs(overlap)
    dual = dual / np.where(nearness > 0, overlap, 1.0)
    for copies in _repeated(values, norm):
        gram = left[:, copies].conj().T @ right[:, copies]
        if np.linalg.cond(gram) < 1e8:  # else it is defective, and each vector says so by its nu
            dual[:, copies] = left[:, copies].conj() @ np.linalg.inv(gram).T
            nearness[copies] = 1.0 / np.linalg.norm(dual[:, copies], axis=0)
    return dual, nearness


def _repeated(values: ComplexArray, norm: float) -> list[IntArray]:
    """The numbers of eigenvalues that are one but for rounding, in groups of two and more."""
    close = np.abs(values[:, None] - values) <= 1e-10 * norm
    if not np.triu(close, 1).any():
        return []
    count, label = connected_components(csr_array(close), directed=False)
    groups = [np.flatnonzero(label == number) for number in range(count)]
    return [group for group in groups if len(group) > 1]


def _symmetric(block: Block, matrix: FloatArray, scale: FloatArray, vectors: bool) -> Part:
    similar = matrix * (scale[None, :] / scale[:, None])
    similar = (similar + similar.T) / 2
    if not vectors:
        return Part(block.nodes, eigvalsh(similar, check_finite=False) + 0j)
    values, q = eigh(similar, check_finite=False)
    ones = np.ones(len(values))
    left, right = q / scale[:, None] + 0j, q * scale[:, None] + 0j
    return Part(block.nodes, values + 0j, left, right, ones)


def _symmetriser(block: Block) -> FloatArray | None:
    """``t [n]`` with ``l_ij t_j / t_i`` symmetric, or ``None`` where there is none.

    It exists iff the pattern is symmetric, opposite entries have one sign, and around every cycle
    the products in the two directions agree; checked on a spanning tree and then on all entries.
    """
    off = block.rows != block.columns
    rows, columns, entries = block.rows[off], block.columns[off], block.entries[off]
    forth = np.lexsort((columns, rows))
    back = np.lexsort((rows, columns))
    if not np.array_equal(rows[forth], columns[back]) or not np.array_equal(
        columns[forth], rows[back]
    ):
        return None
    mirrored = np.empty_like(entries)
    mirrored[forth] = entries[back]
    if (entries * mirrored <= 0).any():
        return None
    # l_ij t_j / t_i = l_ji t_i / t_j, so log t_j - log t_i = log(l_ji / l_ij) / 2.
    steps = np.log(mirrored / entries) / 2
    pattern = csr_array((np.ones(len(rows)), (rows, columns)), shape=(block.size, block.size))
    order, before = breadth_first_order(pattern, 0, directed=True)
    by = np.lexsort((columns, rows))
    keys = rows[by] * block.size + columns[by]
    logs = np.zeros(block.size)
    tree = before[order[1:]].astype(np.int64) * block.size + order[1:]
    jumps = steps[by][np.searchsorted(keys, tree)]
    for node, jump in zip(order[1:], jumps, strict=True):
        logs[node] = logs[before[node]] + jump
    gap = np.abs(logs[columns] - logs[rows] - steps)
    if (gap > 1e-13 * block.size).any() or np.ptp(logs) > 600:
        return None
    centred: FloatArray = np.exp(logs - logs.mean())
    return centred
