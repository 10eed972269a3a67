"""Spectra by strongly connected component, dense up to ``DENSE_LIMIT`` nodes.

Ordered by components, the matrix is block triangular, so its spectrum is the union of its diagonal
blocks' (with degrees of the whole graph). Taking the blocks apart is needed for right answers, not
only for speed: a chain of components is a defective matrix, whose eigenvalues a solver splits into
complex pairs that are not there.

Each block is balanced first (``B = T^-1 L T``, T diagonal), which also gives the condition
``1 / |nu|``, ``nu = u^H v``, its meaning: in the balanced block, an error of size eps ‖B‖ moves an
eigenvalue by about eps ‖B‖ / ``|nu|``. An imaginary part below ten n times that is noise, and set
to exactly 0. A block that some diagonal T makes symmetric (undirected graphs, trees of 2-cycles
with positive products) goes to the symmetric solver, whose eigenvalues are real by construction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eig, eigh, eigvals, eigvalsh, matrix_balance
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order

from graphprune.core.graph import ComputationalGraph
from graphprune.errors import InputError, NumericalError
from graphprune.util import paths

from .weighted_graph import FloatArray, IntArray, Operator, WeightedGraph, weighted_graph

__all__ = [
    "DENSE_LIMIT", "DOUBTFUL", "EPS", "BlockSpectrum", "ComplexArray", "Components",
    "DiagonalBlock", "Solver", "Spectrum", "component_sizes", "components", "solve_block",
]  # fmt: skip

ComplexArray = NDArray[np.complex128]
EPS = float(np.finfo(np.float64).eps)

DENSE_LIMIT = 2000
"""Nodes of a component up to which all its eigenvalues are computed."""

DOUBTFUL = 1e-5
"""Imaginary parts below this share of the norm are judged with eigenvectors, never without."""


@dataclass(frozen=True, eq=False)
class DiagonalBlock:
    """One component's part of the matrix: ``nodes [n]`` and its entries by local row and column."""

    nodes: IntArray
    rows: IntArray
    columns: IntArray
    entries: FloatArray

    @property
    def size(self) -> int:
        """The number of nodes."""
        return len(self.nodes)

    def sparse(self) -> Any:
        """``[n, n]`` CSR."""
        shape = (self.size, self.size)
        return csr_array((self.entries, (self.rows, self.columns)), shape=shape)


@dataclass(frozen=True, eq=False)
class Components:
    """Nodes by strongly connected component.

    Args:
        label: ``[N]``, each node's component.
        order: ``[N]`` nodes, component by component; ``starts [C + 1]`` bounds them.
        place: ``[N]``, each node's place inside its component.
    """

    label: IntArray
    order: IntArray
    starts: IntArray
    place: IntArray

    @property
    def sizes(self) -> IntArray:
        """``[C]``: nodes of each component."""
        return np.diff(self.starts)

    @property
    def largest(self) -> int:
        """Nodes of the largest component; 0 for an empty graph."""
        return int(self.sizes.max(initial=0))

    @property
    def single(self) -> IntArray:
        """Nodes that are a component each: their eigenvalue stands on the diagonal."""
        return np.asarray(self.order[self.starts[:-1][self.sizes == 1]])

    def blocks(self, matrix: Any) -> list[DiagonalBlock]:
        """The diagonal blocks of more than one node, in order of component."""
        entries = matrix.tocoo()
        rows, columns = entries.coords
        label = self.label[rows]
        inside = np.flatnonzero((label == self.label[columns]) & (self.sizes[label] > 1))
        inside = inside[np.argsort(label[inside], kind="stable")]
        rows, columns, data = rows[inside], columns[inside], entries.data[inside]
        bounds = np.searchsorted(label[inside], np.arange(len(self.sizes) + 1))
        result = []
        for component in np.flatnonzero(self.sizes > 1):
            nodes = self.order[self.starts[component] : self.starts[component + 1]]
            span = slice(bounds[component], bounds[component + 1])
            place = self.place[rows[span]], self.place[columns[span]]
            result.append(DiagonalBlock(nodes, *place, data[span]))
        return result


def components(matrix: Any) -> Components:
    """The strongly connected components of a sparse matrix without stored zeros.

    Example:
        >>> chain_into_ring = csr_array(np.array([[0, 1, 0], [0, 0, 2], [0, 3, 0]]))
        >>> components(chain_into_ring).sizes.tolist()
        [2, 1]
    """
    label = paths.components(matrix.shape[0], np.stack(matrix.nonzero()), "strong")
    order = np.argsort(label, kind="stable")
    starts = np.searchsorted(label[order], np.arange(label.max(initial=-1) + 2))
    place = np.empty_like(order)
    place[order] = np.arange(len(order)) - starts[label[order]]
    return Components(label, order, starts, place)


def component_sizes(graph: ComputationalGraph | WeightedGraph | Any) -> IntArray:
    """``[C]``: nodes of each strongly connected component, the largest first.

    Example:
        >>> ring = ComputationalGraph.from_edges([("a", "b"), ("b", "a"), ("b", "c")])
        >>> component_sizes(ring).tolist()
        [2, 1]
    """
    given = weighted_graph(graph)
    pairs = np.stack([given.sources, given.targets])[:, given.present]
    return np.sort(np.bincount(paths.components(given.num_nodes, pairs, "strong")))[::-1]


# ------------------------------------------------------------------ one block


@dataclass(frozen=True, eq=False)
class BlockSpectrum:
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


def solve_block(block: DiagonalBlock, *, vectors: bool) -> BlockSpectrum:
    """All eigenvalues of a block by LAPACK, with left and right vectors where asked for."""
    matrix = np.zeros((block.size, block.size))
    matrix[block.rows, block.columns] = block.entries
    scale = _symmetrising_scale(block)
    if scale is not None:
        return _solve_symmetric(block, matrix, scale, vectors)
    balanced, (scaling, _) = matrix_balance(matrix, permute=False, separate=True)
    norm = float(np.linalg.norm(balanced))
    if not np.isfinite(norm):
        raise NumericalError(
            f"a component of {block.size} nodes has entries too large for float64 arithmetic"
        )
    if not vectors:
        alone = cast("ComplexArray", eigvals(balanced, check_finite=False))
        size = np.abs(alone.imag)
        # Without vectors nothing tells a small imaginary part from a defective block's noise.
        if not ((size > 0) & (size <= DOUBTFUL * norm)).any():
            return BlockSpectrum(block.nodes, alone)
    solved = eig(balanced, left=True, right=True, check_finite=False)
    values, left, right = cast("tuple[ComplexArray, ComplexArray, ComplexArray]", solved)
    left, nearness = _dual(values, left, right, norm)
    nearness = np.maximum(nearness, EPS**2)
    noise = 10 * block.size * EPS * norm / nearness
    values = np.where(np.abs(values.imag) <= noise, values.real + 0j, values)
    if not vectors:
        return BlockSpectrum(block.nodes, values)
    left, right = left / scaling[:, None], right * scaling[:, None]
    return BlockSpectrum(block.nodes, values, left, right, 1.0 / nearness)


def _dual(
    values: ComplexArray, left: ComplexArray, right: ComplexArray, norm: float
) -> tuple[ComplexArray, FloatArray]:
    """conj(u) / nu ``[n, k]``, and the size of nu ``[k]`` for unit vectors.

    LAPACK's vectors of a repeated eigenvalue are any basis of its space on either side, which need
    not be dual to one another: they are made so, together. A function of all copies then has a
    sensitivity that does not depend on which basis that was.
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
    near = np.abs(values[:, None] - values) <= 1e-10 * norm
    if not np.triu(near, 1).any():
        return []
    label = paths.components(len(values), np.stack(np.nonzero(near)), "weak")
    groups = [np.flatnonzero(label == number) for number in range(label.max() + 1)]
    return [group for group in groups if len(group) > 1]


def _solve_symmetric(
    block: DiagonalBlock, matrix: FloatArray, scale: FloatArray, vectors: bool
) -> BlockSpectrum:
    similar = matrix * (scale[None, :] / scale[:, None])
    similar = (similar + similar.T) / 2
    if not vectors:
        return BlockSpectrum(block.nodes, eigvalsh(similar, check_finite=False) + 0j)
    values, q = eigh(similar, check_finite=False)
    left, right = q / scale[:, None] + 0j, q * scale[:, None] + 0j
    return BlockSpectrum(block.nodes, values + 0j, left, right, np.ones(len(values)))


def _symmetrising_scale(block: DiagonalBlock) -> FloatArray | None:
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
    keys = rows[forth] * block.size + columns[forth]
    logs = np.zeros(block.size)
    tree = before[order[1:]].astype(np.int64) * block.size + order[1:]
    jumps = steps[forth][np.searchsorted(keys, tree)]
    for node, jump in zip(order[1:], jumps, strict=True):
        logs[node] = logs[before[node]] + jump
    gap = np.abs(logs[columns] - logs[rows] - steps)
    # Beyond e^600 the scale itself would overflow.
    if (gap > 1e-13 * block.size).any() or np.ptp(logs) > 600:
        return None
    return np.asarray(np.exp(logs - logs.mean()))


# ------------------------------------------------------------------ the whole graph


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A graph's spectrum: that of its blocks, and of nodes that are a component alone."""

    components: Components
    blocks: tuple[BlockSpectrum, ...]
    single_values: FloatArray

    @property
    def values(self) -> ComplexArray:
        """All eigenvalues found, block by block, then those of single nodes."""
        parts = [*(block.values for block in self.blocks), self.single_values]
        return np.concatenate(parts, dtype=np.complex128)

    @property
    def complete(self) -> bool:
        """Whether all N eigenvalues are there."""
        return all(block.complete for block in self.blocks)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What is uncertain about blocks that were solved in part."""
        return tuple(doubt for block in self.blocks for doubt in block.doubts)


@dataclass(eq=False)
class Solver:
    """Solves graphs block by block; a block that was solved before is not solved again.

    Args:
        operator: which matrix.
        dense_limit: nodes up to which a component is solved whole.
        solve_large: solves larger components in part, such as :func:`.arpack.solve_leading`;
            ``None`` refuses them.
    """

    operator: Operator
    dense_limit: int = DENSE_LIMIT
    solve_large: Callable[..., BlockSpectrum] | None = None
    _recent: dict[bytes, BlockSpectrum] = field(default_factory=dict, repr=False)
    _older: dict[bytes, BlockSpectrum] = field(default_factory=dict, repr=False)

    def forget(self) -> None:
        """Drops blocks that were not asked for since the last call."""
        self._older, self._recent = self._recent, {}

    def solve(self, graph: WeightedGraph, *, vectors: bool) -> Spectrum:
        """The spectrum of a graph, with eigenvectors where asked for."""
        matrix = self.operator.matrix(graph)
        parts = components(matrix)
        blocks = tuple(self._solved(block, vectors) for block in parts.blocks(matrix))
        return Spectrum(parts, blocks, matrix.diagonal()[parts.single])

    def _solved(self, block: DiagonalBlock, vectors: bool) -> BlockSpectrum:
        digest = hashlib.blake2b(digest_size=16)
        for array in (block.nodes, block.rows, block.columns, block.entries):
            digest.update(array.tobytes())
        key = digest.digest()
        result = self._recent.get(key) or self._older.get(key)
        if result is None or (vectors and result.left is None):
            result = self._solve(block, vectors)
        self._recent[key] = result
        return result

    def _solve(self, block: DiagonalBlock, vectors: bool) -> BlockSpectrum:
        if block.size <= self.dense_limit:
            return solve_block(block, vectors=vectors)
        if self.solve_large is not None:
            return self.solve_large(block, vectors=vectors)
        raise InputError(
            f"a strongly connected component has {block.size} nodes, above the "
            f"{self.dense_limit} of the exact dense path (it would take about "
            f"{block.size**2 * 40 / 2**30:.1f} GiB); gp.spectral.leading finds the eigenvalues "
            "of the largest imaginary parts of such a component, and dense_limit= allows more"
        )
