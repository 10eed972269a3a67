"""The strongly connected components of a wiring: the diagonal blocks that make its spectrum.

Ordered by components, the matrix is block triangular, so its spectrum is the union of its blocks'
(with degrees of the whole graph). Taking the blocks apart is needed for right answers, not only
for speed: a chain of components is a defective matrix, whose eigenvalues a solver splits into
complex pairs that are not there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from graphprune.core.graph import ComputationalGraph

from .wiring import FloatArray, IntArray, Wiring, wiring

__all__ = ["Block", "Components", "component_sizes", "components"]


@dataclass(frozen=True, eq=False)
class Block:
    """One component's part of the matrix: ``nodes [n]`` and its entries by local row and column."""

    nodes: IntArray
    rows: IntArray
    columns: IntArray
    entries: FloatArray

    @property
    def size(self) -> int:
        """How many nodes."""
        return len(self.nodes)

    def dense(self) -> FloatArray:
        """``[n, n]``."""
        made = np.zeros((self.size, self.size))
        made[self.rows, self.columns] = self.entries
        return made

    def sparse(self) -> Any:
        """``[n, n]`` CSR."""
        shape = (self.size, self.size)
        return csr_array((self.entries, (self.rows, self.columns)), shape=shape)


@dataclass(frozen=True, eq=False)
class Components:
    """Nodes by component.

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
    def alone(self) -> IntArray:
        """Nodes that are a component each: their eigenvalue stands on the diagonal."""
        found: IntArray = self.order[self.starts[:-1][self.sizes == 1]]
        return found

    def nodes(self, component: int) -> IntArray:
        """The nodes of one component."""
        return self.order[self.starts[component] : self.starts[component + 1]]

    def blocks(self, matrix: Any) -> Iterator[Block]:
        """The diagonal blocks of more than one node, in order of component."""
        entries = matrix.tocoo()
        rows, columns = entries.coords
        label = self.label[rows]
        inside = (label == self.label[columns]) & (self.sizes[label] > 1)
        rows, columns, data, label = (
            rows[inside],
            columns[inside],
            entries.data[inside],
            label[inside],
        )
        by = np.argsort(label, kind="stable")
        rows, columns, data = rows[by], columns[by], data[by]
        bounds = np.searchsorted(label[by], np.arange(len(self.sizes) + 1))
        for component in np.flatnonzero(self.sizes > 1):
            span = slice(bounds[component], bounds[component + 1])
            yield Block(
                self.nodes(int(component)),
                self.place[rows[span]],
                self.place[columns[span]],
                data[span],
            )


def components(matrix: Any) -> Components:
    """The strongly connected components of a sparse matrix without stored zeros.

    Example:
        >>> from scipy.sparse import csr_array
        >>> chain_into_ring = csr_array(np.array([[0, 1, 0], [0, 0, 2], [0, 3, 0]]))
        >>> components(chain_into_ring).sizes.tolist()
        [2, 1]
    """
    count, label = connected_components(matrix, directed=True, connection="strong")
    label = label.astype(np.int64)
    order = np.argsort(label, kind="stable")
    starts = np.searchsorted(label[order], np.arange(count + 1))
    place = np.empty_like(order)
    place[order] = np.arange(len(order)) - starts[label[order]]
    return Components(label, order, starts, place)


def component_sizes(graph: ComputationalGraph | Wiring | Any) -> IntArray:
    """``[C]``: nodes of each strongly connected component, the largest first.

    Example:
        >>> ring = ComputationalGraph.from_edges([("a", "b"), ("b", "a"), ("b", "c")])
        >>> component_sizes(ring).tolist()
        [2, 1]
    """
    given = wiring(graph)
    shape = (given.num_nodes, given.num_nodes)
    ones = np.ones(int(given.present.sum()))
    ends = given.sources[given.present], given.targets[given.present]
    sizes: IntArray = np.sort(components(csr_array((ones, ends), shape=shape)).sizes)[::-1]
    return sizes
