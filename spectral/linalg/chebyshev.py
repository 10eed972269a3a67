"""A filter that makes fast rotation dominant: ``exp(-i t L)`` by Chebyshev polynomials.

An eigenvalue lambda of L becomes ``exp(-i t lambda)``, of size ``exp(t Im lambda)``: the largest
imaginary part is the largest size, which is what Krylov methods find most surely, and close ones
are set apart by the factor t. Nothing is factored: an application is some sixty products with L.

Real parts lie between the extreme eigenvalues of ``(L + L^T) / 2`` and imaginary ones below those
of ``(L - L^T) / 2`` (Bendixson), which set the interval and the degree. With ``x = (L - c) / r``

    exp(-i t r x) = J_0(t r) + 2 sum_k (-i)^k J_k(t r) T_k(x).
"""

from __future__ import annotations

import warnings
from typing import Any, cast

import numpy as np
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigs, eigsh
from scipy.special import jv

from .eigensolver import ComplexArray

__all__ = ["ChebyshevFilter"]

SHARPNESS = 30.0  # t r
TRUNCATED = 1e-9


class ChebyshevFilter:
    """``exp(-i t L)`` of a real sparse matrix, up to a factor.

    Args:
        matrix: ``[n, n]`` CSR, float64.
        generator: draws the start vectors.
    """

    def __init__(self, matrix: Any, generator: np.random.Generator) -> None:
        self.matrix, self.generator, self.size = matrix, generator, matrix.shape[0]
        even = ((matrix + matrix.T) / 2).tocsr()
        high, low = self._extreme(even, "LA"), self._extreme(even, "SA")
        self.middle, self.radius = (high + low) / 2, max((high - low) / 2 * 1.02, 1e-300)
        skew = ((matrix - matrix.T) / 2).tocsr()
        width = float(np.sqrt(max(self._extreme((skew.T @ skew).tocsr(), "LA"), 0.0)))
        growth = float(np.arcsinh(width / self.radius))
        degrees = np.arange(int(SHARPNESS), 400)
        with np.errstate(divide="ignore"):
            size = np.log(np.abs(jv(degrees, SHARPNESS)) + 1e-300) + degrees * growth
        self.degree = int(degrees[np.argmax(size < np.log(TRUNCATED))]) or 400
        orders = np.arange(self.degree + 1)
        terms = 2 * (-1j) ** (orders % 4) * jv(orders, SHARPNESS)
        terms[0] /= 2
        self.terms: ComplexArray = terms

    def _extreme(self, matrix: Any, which: str) -> float:
        """A bound on a symmetric matrix's extreme eigenvalue, a little outside it."""
        start = self.generator.standard_normal(self.size)
        try:
            value = eigsh(
                matrix,
                k=1,
                which=which,
                v0=start,
                tol=1e-2,  # pyright: ignore[reportArgumentType] - not only whole numbers
                return_eigenvectors=False,
            )
            return float(value[0] + (1 if which == "LA" else -1) * 0.02 * abs(value[0]))
        except ArpackError:
            bound = float(abs(matrix).sum(axis=1).max())
            return bound if which == "LA" else -bound

    def apply(self, vector: ComplexArray) -> ComplexArray:
        """``exp(-i t (L - c)) v``, ``[n]`` complex128."""
        before = np.ascontiguousarray(vector.reshape(-1), dtype=np.complex128)
        now = self._step(before)
        total = self.terms[0] * before + self.terms[1] * now
        for term in self.terms[2:]:
            before, now = now, 2 * self._step(now) - before
            total += term * now
        return np.asarray(total)

    def _step(self, vector: ComplexArray) -> ComplexArray:
        # A real matrix takes real and imaginary parts side by side; complex would copy it.
        both = self.matrix @ vector.view(np.float64).reshape(-1, 2)
        product = np.ascontiguousarray(both).view(np.complex128)[:, 0]
        return np.asarray((product - self.middle * vector) / self.radius)

    def vectors(
        self, count: int, width: int, tolerance: float, taken: ComplexArray
    ) -> ComplexArray:
        """About ``count`` eigenvectors of the largest imaginary parts, from one drawn start.

        Args:
            width: vectors that ARPACK keeps.
            tolerance: of the filtered eigenvalues.
            taken: ``[n, m]``, an orthonormal basis of an invariant subspace to leave out.

        Returns:
            ``[n, k]`` unit vectors orthogonal to ``taken``, eigenvectors but for what lies in it;
            unchecked, and none where ARPACK gives up.
        """

        def outside(vector: ComplexArray) -> ComplexArray:
            return np.asarray(vector - taken @ (taken.conj().T @ vector))

        start = self.generator.standard_normal(self.size)
        start = outside(start + 1j * self.generator.standard_normal(self.size))
        form = LinearOperator(
            (self.size, self.size),
            lambda v: outside(self.apply(v)),
            dtype=np.complex128,  # pyright: ignore[reportCallIssue] - read off another class
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                _, vectors = cast(
                    "tuple[ComplexArray, ComplexArray]",
                    eigs(
                        form,
                        k=count,
                        which="LM",
                        v0=start,
                        ncv=width,
                        tol=tolerance,  # pyright: ignore[reportArgumentType] - as above
                        maxiter=12,
                    ),
                )
            except ArpackNoConvergence as error:
                vectors = error.eigenvectors
            except ArpackError:
                vectors = np.zeros((self.size, 0), dtype=np.complex128)
        vectors = outside(vectors)
        return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=0), 1e-300))
