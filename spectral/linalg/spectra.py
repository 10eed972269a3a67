"""Spectra by strongly connected component."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphprune.core.graph import ComputationalGraph
from graphprune.errors import InputError

from .blocks import DENSE_LIMIT, ComplexArray, Part, solve
from .components import Block, Components, components
from .laplacians import Degrees, Laplacian, Operator, operator
from .wiring import FloatArray, IntArray, Wiring, wiring

__all__ = ["DENSE_LIMIT", "Decomposition", "Solver", "levels", "spectrum"]


@dataclass(frozen=True, eq=False)
class Decomposition:
    """The spectrum of a wiring in parts: blocks, and nodes that are a component alone."""

    components: Components
    parts: tuple[Part, ...]
    alone: IntArray
    alone_values: FloatArray

    @property
    def values(self) -> ComplexArray:
        """All eigenvalues found, part by part, then the nodes alone."""
        return np.concatenate([*(part.values for part in self.parts), self.alone_values + 0j])

    @property
    def complete(self) -> bool:
        """Whether all N eigenvalues are there."""
        return all(part.complete for part in self.parts)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What is uncertain about the sparse parts."""
        return tuple(doubt for part in self.parts for doubt in part.doubts)


@dataclass(eq=False)
class Solver:
    """Decomposes wirings; a block that was solved before is not solved again.

    Args:
        operator: which matrix.
        dense_limit: components of more nodes are refused, or solved for their ``leading`` pairs.
        leading: how many eigenvalues of a larger component to find by ARPACK, those of the largest
            imaginary parts; ``None`` refuses.
        seed: of ARPACK's start vectors.
    """

    operator: Operator
    dense_limit: int = DENSE_LIMIT
    leading: int | None = None
    seed: int = 0
    _known: dict[bytes, Part] = field(default_factory=dict, repr=False)
    _before: dict[bytes, Part] = field(default_factory=dict, repr=False)

    def forget(self) -> None:
        """Drops blocks that were not asked for since the last call."""
        self._before, self._known = self._known, {}

    def decompose(self, given: Wiring, *, vectors: bool) -> Decomposition:
        """The spectrum of a wiring, with eigenvectors where asked for."""
        matrix = self.operator.matrix(given)
        found = components(matrix)
        alone = found.alone
        parts = tuple(self._part(block, vectors) for block in found.blocks(matrix))
        return Decomposition(found, parts, alone, matrix.diagonal()[alone])

    def _part(self, block: Block, vectors: bool) -> Part:
        digest = hashlib.blake2b(digest_size=16)
        for array in (block.nodes, block.rows, block.columns, block.entries):
            digest.update(array.tobytes())
        key = digest.digest()
        known = self._known.get(key) or self._before.get(key)
        if known is None or (vectors and known.left is None):
            known = self._solve(block, vectors)
        self._known[key] = known
        return known

    def _solve(self, block: Block, vectors: bool) -> Part:
        if block.size <= self.dense_limit:
            return solve(block, vectors=vectors)
        if self.leading is None:
            raise InputError(
                f"a strongly connected component has {block.size} nodes, above the "
                f"{self.dense_limit} of the exact dense path (it would take about "
                f"{block.size**2 * 40 / 2**30:.1f} GiB); gp.spectral.leading finds the eigenvalues "
                "of the largest imaginary parts of such a component, and dense_limit= allows more"
            )
        from .arpack import solve_leading

        return solve_leading(block, self.leading, vectors=vectors, seed=self.seed)


def spectrum(
    graph: ComputationalGraph | Wiring | Any,
    weights: Any = None,
    laplacian: Laplacian = "out",
    *,
    degrees: Degrees | None = None,
    dense_limit: int = DENSE_LIMIT,
) -> ComplexArray:
    """All eigenvalues, exactly by strongly connected component (degrees of the whole graph).

    Imaginary parts that are rounding or a defective block's noise are exactly 0, see
    :mod:`.blocks`.

    Args:
        graph, weights, laplacian, degrees: as for :func:`~graphprune.spectral.laplacian`.
        dense_limit: the largest component, in nodes, that is solved.

    Returns:
        ``[N]`` complex128, ordered by real, then imaginary part. Empty for a graph without nodes.

    Raises:
        InputError: wrong input, or a component above ``dense_limit``.
        NumericalError: a weight is NaN or infinite.

    Example:
        >>> ring = ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("c", "a")])
        >>> spectrum(ring).round(3)
        array([0. +0.j   , 1.5-0.866j, 1.5+0.866j])
        >>> chain = ComputationalGraph.from_edges([("a", "b"), ("b", "c")])
        >>> spectrum(chain)
        array([0.+0.j, 1.+0.j, 1.+0.j])
    """
    solver = Solver(operator(laplacian, degrees), dense_limit)
    found = solver.decompose(wiring(graph, weights), vectors=True).values
    # A conjugate pair's real parts may differ in the last digit; pairs stand together all the same.
    size = float(np.abs(found).max(initial=0.0))
    order = np.lexsort((found.imag, levels(found.real, 1e-10 * size)))
    return np.asarray(found[order] + 0.0)


def levels(values: FloatArray, gap: float) -> IntArray:
    """``values`` by rank, those closer than ``gap`` to their neighbour sharing one."""
    order = np.argsort(values, kind="stable")
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[order] = np.cumsum(np.diff(values[order], prepend=values[order][:1]) > gap)
    return ranks
