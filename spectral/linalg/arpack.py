"""The leading eigenvalues of a component that is too large to solve whole.

ARPACK asked for the largest imaginary parts (``LI``) is known to return others without a word, so
the matrix is filtered first (:mod:`.chebyshev`), which turns them into the largest sizes. And a
Krylov space grown from one start holds one copy of a repeated eigenvalue. What a start found is
therefore taken out (deflation: later ones work orthogonally to it), and starts are made until one
finds nothing that turns faster than the last eigenvalue wanted. The basis then has a direction for
each copy, also where a defective matrix has fewer eigenvectors than eigenvalues.

Every pair is checked by its residual on L itself, left vectors too. A residual r bounds, to first
order, an eigenvalue's error by r / ``|nu|``. Where starts do not settle, components up to
``DENSE_LIMIT`` nodes are solved whole, and larger ones say what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from scipy.linalg import eig, qr

from graphprune.errors import NumericalError

from .chebyshev import ChebyshevFilter
from .eigensolver import DENSE_LIMIT, EPS, BlockSpectrum, ComplexArray, DiagonalBlock, solve_block
from .weighted_graph import FloatArray, IntArray

__all__ = ["solve_leading"]

TOLERANCE = 1e-8  # of the norm: what a residual may be
LOOSER = 1e-6  # the same above LARGE nodes, where each digit takes minutes
LARGE = 20_000
MARGIN = 6  # pairs more on the left, so that the last ones on the right are among them


@dataclass(frozen=True, eq=False)
class _Leaders:
    """Checked eigenpairs, one of each conjugate pair, the largest imaginary parts first.

    Args:
        values, vectors: ``[k]`` and ``[n, k]``; ``residual [k]`` by the norm.
        starts: how many were made.
        settled: whether all that were wanted are there and a start without them found no other.
    """

    values: ComplexArray
    vectors: ComplexArray
    residual: FloatArray
    starts: int
    settled: bool


def solve_leading(
    block: DiagonalBlock, count: int, *, vectors: bool, seed: int = 0
) -> BlockSpectrum:
    """``count`` eigenvalues of the largest imaginary parts, with copies and conjugates.

    The result is not ``complete``, unless it was solved whole, and its ``doubts`` say what was
    found. Raises :class:`NumericalError` where no start converges.

    Example:
        >>> import numpy as np
        >>> turn = np.arange(6)  # a ring of six: eigenvalues 1 - exp(2 pi i k / 6)
        >>> block = DiagonalBlock(
        ...     turn,
        ...     np.r_[turn, turn],
        ...     np.r_[turn, (turn + 1) % 6],
        ...     np.r_[np.ones(6), -np.ones(6)],
        ... )
        >>> solve_leading(block, 2, vectors=False).values.imag.round(3)
        array([ 0.   ,  0.866, -0.866,  0.866, -0.866,  0.   ])
    """
    if 4 * count > block.size and block.size <= DENSE_LIMIT:
        return solve_block(block, vectors=vectors)
    matrix = block.sparse().tocsr()
    norm = float(abs(matrix).sum(axis=1).max())
    pairs = max(1, count // 2)
    right = _leaders(matrix, pairs, norm, seed)
    if not right.settled and block.size <= DENSE_LIMIT:
        return solve_block(block, vectors=vectors)
    if not len(right.values):
        raise NumericalError(
            f"no eigenvalue of a component of {block.size} nodes met the residual of "
            f"{_allowed(block.size):.0e} of the norm from {right.starts} starts: its leading "
            "imaginary parts lie too close together; a larger dense_limit solves it whole, fewer "
            "modes or laplacian='rw' may be told apart"
        )
    noise = 10 * block.size * EPS * norm + _allowed(block.size) * norm
    upper: ComplexArray = np.where(
        np.abs(right.values.imag) <= noise, right.values.real + 0j, right.values
    )
    turning = upper.imag > 0
    values = _with_conjugates(upper, turning)
    residual = _with_conjugates(right.residual, turning)
    doubts = [_doubt(block.size, pairs, right)]
    if not vectors:
        doubts[0] += f"; residuals up to {residual.max():.1e} of the norm"
        return BlockSpectrum(
            block.nodes, values, complete=False, doubts=tuple(doubts), residual=residual
        )
    left, size, other = _dual(matrix, right, norm, seed + 1)
    lost = size == 0
    if lost.any():
        doubts.append(f"{int(lost.sum())} eigenvalues have no left vector and no sensitivity")
    bound = float((right.residual[~lost] * norm * size[~lost]).max(initial=0.0))
    doubts[0] += (
        f"; residuals up to {residual.max():.1e} (right) and {other.max():.1e} (left) of the norm, "
        f"a first-order error of at most {bound:.1e}"
    )
    return BlockSpectrum(
        block.nodes,
        values,
        _with_conjugates(left, turning),
        _with_conjugates(right.vectors, turning),
        _with_conjugates(np.where(lost, EPS**-2, size), turning),
        complete=False,
        doubts=tuple(doubts),
        residual=np.maximum(residual, _with_conjugates(other, turning)),
    )


def _with_conjugates(upper: Any, turning: Any) -> Any:
    return np.concatenate([upper, upper[..., turning].conj()], axis=-1)


def _dual(
    matrix: Any, right: _Leaders, norm: float, seed: int
) -> tuple[ComplexArray, FloatArray, FloatArray]:
    """Left vectors ``[n, k]`` with ``left.T @ right = 1``, their lengths and their residuals.

    Those of one repeated eigenvalue are made dual together: one by one they need not even be
    orthogonal to the other copies. A length of 0 where the transposed matrix gave none.
    """
    values, vectors = right.values, right.vectors
    transposed = _leaders(matrix.T.tocsr(), min(len(values) + MARGIN, len(vectors) - 2), norm, seed)
    near = np.abs(transposed.values[:, None] - values).min(axis=1, initial=np.inf) <= LOOSER * norm
    partners = transposed.vectors[:, near]
    left = partners @ np.linalg.pinv(partners.T @ vectors, rcond=1e-10).T
    size = np.linalg.norm(left, axis=0)
    residual = np.linalg.norm(matrix.T @ left - left * values, axis=0) / norm
    residual /= np.where(size > 0, size, 1.0)
    apart = np.abs(left.T @ vectors - np.eye(len(values))).max(axis=1, initial=0.0)
    lost = (size == 0) | (apart > 1e-6) | (residual > LOOSER)
    return (
        np.where(lost, 0.0, left),
        np.where(lost, 0.0, size),
        np.where(lost, 0.0, residual),
    )


def _leaders(matrix: Any, wanted: int, norm: float, seed: int) -> _Leaders:
    """``wanted`` eigenpairs of the largest imaginary parts, one of each conjugate pair."""
    generator = np.random.default_rng(seed)
    size = matrix.shape[0]
    tolerance = _allowed(size) * norm
    filtered = ChebyshevFilter(matrix, generator)
    basis = np.zeros((size, 0), dtype=np.complex128)
    values, vectors, residual = _ritz(matrix, basis, tolerance)
    starts, settled = 0, False
    while not settled and starts < 2 * wanted + 2:
        starts += 1
        # One is enough to show that there are more; each further copy shows itself the same way.
        count = min(max(1, wanted - len(values)), size // 4)
        width = min(size - 1, max(48, 3 * count))
        new = filtered.vectors(count, width, _allowed(size), basis)
        turning, new = _checked(matrix, new, basis, tolerance)
        if not len(turning):
            break
        enough = len(values) >= wanted
        settled = enough and turning.imag.max() <= values[wanted - 1].imag + tolerance
        basis = _joined(basis, new)
        values, vectors, residual = _ritz(matrix, basis, tolerance)
    return _Leaders(values[:wanted], vectors[:, :wanted], residual[:wanted] / norm, starts, settled)


def _checked(
    matrix: Any, vectors: ComplexArray, basis: ComplexArray, tolerance: float
) -> tuple[ComplexArray, ComplexArray]:
    """Those of ``vectors [n, k]`` that extend the invariant ``basis``, and their eigenvalues."""
    product = matrix @ vectors
    values = np.einsum("nk,nk->k", vectors.conj(), product)
    rest = product - vectors * values
    rest -= basis @ (basis.conj().T @ rest)
    good = np.linalg.norm(rest, axis=0) <= tolerance
    return values[good], vectors[:, good]


def _joined(basis: ComplexArray, new: ComplexArray) -> ComplexArray:
    """An orthonormal basis of both; nearly parallel vectors are left to the next start."""
    for _ in range(2):  # once leaves what rounding brought in
        new = new - basis @ (basis.conj().T @ new)
    directions, triangle, _ = cast(
        "tuple[ComplexArray, ComplexArray, IntArray]", qr(new, mode="economic", pivoting=True)
    )
    apart = np.abs(np.diag(triangle)) > 1e-2
    return np.concatenate([basis, directions[:, : len(apart)][:, apart]], axis=1)


def _ritz(
    matrix: Any, basis: ComplexArray, tolerance: float
) -> tuple[ComplexArray, ComplexArray, FloatArray]:
    """The eigenpairs that a basis holds, checked: those of Im >= 0, the largest first."""
    if not basis.shape[1]:
        return np.zeros(0, complex), basis, np.zeros(0)
    values, inside = cast(
        "tuple[ComplexArray, ComplexArray]", eig(basis.conj().T @ (matrix @ basis))
    )
    vectors = basis @ inside
    residual = np.linalg.norm(matrix @ vectors - vectors * values, axis=0)
    order = np.argsort(-values.imag, kind="stable")
    order = order[(residual <= tolerance)[order] & (values.imag >= -tolerance)[order]]
    return values[order], vectors[:, order], residual[order]


def _allowed(size: int) -> float:
    return TOLERANCE if size <= LARGE else LOOSER


def _doubt(size: int, wanted: int, leaders: _Leaders) -> str:
    doubt = f"a component of {size} nodes was solved for its leading eigenvalues only; "
    fewer = len(leaders.values) < wanted
    if fewer:
        doubt += f"only {len(leaders.values)} of the {wanted} wanted converged; "
    doubt += f"the largest imaginary part found is {leaders.values[0].imag:.6g}; "
    if leaders.settled:
        return doubt + (
            f"the last of {leaders.starts} starts, with these taken out, found none that turns "
            "faster"
        )
    return doubt + f"{leaders.starts} starts could not rule out that others turn faster"
