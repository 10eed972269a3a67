"""The leading eigenvalues of a component that is too large to solve whole.

ARPACK asked for the largest imaginary parts (``LI``) is known to return others without a word, so
the matrix is filtered first (:mod:`graphprune.spectral.filtering`), which turns them into the
largest sizes, from several start vectors; small matrices are asked in the plain form too. Every
pair is checked by its residual on L itself, left vectors too, and what stays uncertain is said. A
residual r bounds, to first order, an eigenvalue's error by r / ``|nu|``. What was found is a lower
bound: a pair that no start reached is missing.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, eigs

from graphprune.errors import NumericalError

from .blocks import EPS, ComplexArray, Part
from .components import Block
from .filtering import Filter

__all__ = ["solve_leading"]

STARTS = 2
TOLERANCE = 1e-8  # of the norm: what a residual may be
LOOSER = 1e-6  # the same above PLAIN nodes, where each digit takes minutes
PLAIN = 20_000  # nodes up to which the plain form is asked too


def solve_leading(block: Block, count: int, *, vectors: bool, seed: int = 0) -> Part:
    """``count`` eigenvalues of the largest imaginary parts, as far as ARPACK finds them.

    The part is not ``complete`` and its ``doubts`` say how far starts agree. Raises
    :class:`NumericalError` where no start converges.
    """
    matrix = block.sparse().tocsr()
    count = min(count, block.size - 2)
    norm = float(abs(matrix).sum(axis=1).max())
    right, seen = _pairs(matrix, count, norm, seed)
    doubts = [_doubt(block.size, seen)]
    values, vectors_right = _largest(*right, count, 10 * _allowed(block.size) * norm)
    noise = 10 * block.size * EPS * norm + _allowed(block.size) * norm
    values = np.where(np.abs(values.imag) <= noise, values.real + 0j, values)
    residual = np.linalg.norm(matrix @ vectors_right - vectors_right * values, axis=0) / norm
    if not vectors:
        doubts[0] += f"; residuals up to {residual.max():.1e} of the norm"
        return Part(block.nodes, values, complete=False, doubts=tuple(doubts), residual=residual)
    # More are asked for on the left, so that the last ones on the right are among them.
    left_values, left = _pairs(matrix.T.tocsr(), min(count + 12, block.size - 2), norm, seed + 1)[0]
    left_values = np.concatenate([left_values, left_values.conj()])
    left = np.concatenate([left, left.conj()], axis=1)
    match = np.abs(left_values[None, :] - values[:, None]).argmin(1)
    off = np.abs(left_values[match] - values)
    lost = off > 1e-6 * norm
    if lost.any():
        doubts.append(f"{int(lost.sum())} eigenvalues have no left vector and no sensitivity")
    conjugate = left[:, match]  # of the transposed matrix: conj(u) up to a factor
    overlap = np.einsum("nk,nk->k", conjugate, vectors_right)
    size = np.abs(overlap) / np.linalg.norm(conjugate, axis=0)
    other = np.linalg.norm(matrix.T @ conjugate - conjugate * values, axis=0) / norm
    other = np.where(lost, 0.0, other / np.linalg.norm(conjugate, axis=0))
    found = ~lost & (size > 0)
    bound = float((residual[found] * norm / size[found]).max(initial=0.0))
    doubts[0] += (
        f"; residuals up to {residual.max():.1e} (right) and {other.max():.1e} (left) of the norm, "
        f"a first-order error of at most {bound:.1e}"
    )
    size = np.where(lost, 0.0, size)
    safe = np.where(np.abs(overlap) > 0, overlap, 1.0)
    return Part(
        block.nodes,
        values,
        conjugate / safe,
        vectors_right,
        1.0 / np.maximum(size, EPS**2),
        complete=False,
        doubts=tuple(doubts),
        residual=np.maximum(residual, other),
    )


def _pairs(
    matrix: Any, count: int, norm: float, seed: int
) -> tuple[tuple[ComplexArray, ComplexArray], list[float]]:
    """All checked eigenpairs of several runs, and the largest imaginary part each run found."""
    generator = np.random.default_rng(seed)
    size = matrix.shape[0]
    upper = max(1, count // 2)  # the upper member of each pair
    filtered = Filter(matrix, generator)
    found: list[tuple[ComplexArray, ComplexArray]] = []
    seen: list[float] = []
    for run in range(STARTS + 1):
        if run < STARTS:
            values, vectors = filtered.pairs(
                upper, min(size - 1, max(48, 3 * upper)), _allowed(size)
            )
        elif size <= PLAIN:
            values, vectors = _plain(matrix, count, generator)
        else:
            continue
        if not len(values):
            continue
        residual = np.linalg.norm(matrix @ vectors - vectors * values, axis=0)
        good = residual <= _allowed(size) * norm
        found.append((values[good], vectors[:, good]))
        if run < STARTS:
            seen.append(float(np.abs(values[good].imag).max(initial=0.0)))
    if not found or not sum(len(values) for values, _ in found):
        raise NumericalError(
            f"no eigenvalue of a component of {size} nodes met the residual of "
            f"{_allowed(size):.0e} of the norm from {STARTS} starts: its leading imaginary parts "
            "lie too close together; a larger dense_limit solves it whole, fewer modes or "
            "kind='rw' may be told apart"
        )
    both = np.concatenate([v for v, _ in found]), np.concatenate([v for _, v in found], axis=1)
    return both, seen


def _allowed(size: int) -> float:
    return TOLERANCE if size <= PLAIN else LOOSER


def _plain(
    matrix: Any, count: int, generator: np.random.Generator
) -> tuple[ComplexArray, ComplexArray]:
    """What ARPACK gives for ``LI``: values and vectors, none where it gives up."""
    size = matrix.shape[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            values, vectors = eigs(
                matrix,
                k=count,
                which="LI",
                v0=generator.standard_normal(size),
                ncv=min(size - 1, max(80, 3 * count)),
                tol=TOLERANCE / 10,
                maxiter=30,
            )
        except ArpackNoConvergence as error:
            values, vectors = error.eigenvalues, error.eigenvectors
        except ArpackError:
            values, vectors = np.zeros(0, complex), np.zeros((size, 0), complex)
    return values, vectors


def _largest(
    values: ComplexArray, vectors: ComplexArray, count: int, apart: float
) -> tuple[ComplexArray, ComplexArray]:
    """Different eigenvalues, those of the largest imaginary parts first, conjugates made exact."""
    order = np.argsort(-np.abs(values.imag), kind="stable")
    kept: list[int] = []
    for number in order:
        if values[number].imag < 0:
            continue
        if all(abs(values[number] - values[other]) > apart for other in kept):
            kept.append(int(number))
    upper = np.array(kept[: max(1, count // 2)], dtype=np.int64)
    complex_ones = upper[values[upper].imag > 0]
    return (
        np.concatenate([values[upper], values[complex_ones].conj()]),
        np.concatenate([vectors[:, upper], vectors[:, complex_ones].conj()], axis=1),
    )


def _doubt(size: int, seen: list[float]) -> str:
    told = f"a component of {size} nodes was solved for its leading eigenvalues only; "
    if not seen:
        return told + "no start for the largest imaginary part converged"
    low, high = min(seen), max(seen)
    if high - low > 1e-6 * max(high, 1e-300):
        return told + f"starts disagree on the largest imaginary part: {low:.6g} to {high:.6g}"
    return told + f"{len(seen)} starts agree on the largest imaginary part, {high:.6g}"
