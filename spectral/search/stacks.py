"""Many sets of edges of a small graph measured at once: their matrices in a stack, no loop.

A trial of a graph of a few dozen nodes is mostly overhead. In a stack it costs about what LAPACK
needs, fifty times less, which makes enumeration, exact greedy and annealing cheap there.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from ..linalg.blocks import DOUBTFUL
from ..linalg.laplacians import Operator
from ..linalg.measures import Measure
from ..linalg.wiring import BoolArray, FloatArray, Wiring

__all__ = ["Stacks"]

LARGEST = 64  # nodes
ENTRIES = 4_000_000  # of the matrices of a stack


class Stacks:
    """Measures sets of edges of one wiring.

    Args:
        given, form, measure: what is measured, of which matrix; at most 64 nodes.
    """

    def __init__(self, given: Wiring, form: Operator, measure: Measure) -> None:
        self.given, self.form, self.measure = given, form, measure
        n, count = given.num_nodes, len(given.sources)
        i, j, w = given.sources, given.targets, given.weights
        size = np.ones_like(w) if form.laplacian == "count" else form.size_of(w)
        entries = [(i * n + j, w if form.laplacian == "adjacency" else -w)]
        if form.laplacian in ("out", "rw", "both", "count"):
            entries.append((i * n + i, size))
        if form.laplacian in ("in", "both", "count"):
            entries.append((j * n + j, size))
        rows = np.concatenate([row for row, _ in entries])
        values = np.concatenate([value for _, value in entries])
        columns = np.tile(np.arange(count), len(entries))
        self.entries = csr_array((values, (rows, columns)), shape=(n * n, count))
        self.degrees = csr_array((size, (i, np.arange(count))), shape=(n, count))

    @staticmethod
    def fit(given: Wiring, form: Operator) -> bool:
        """Whether a graph is small enough, and no set of its edges can divide by 0."""
        signed = (
            form.laplacian == "rw" and form.degrees == "signed" and bool((given.weights < 0).any())
        )
        return given.num_nodes <= LARGEST and not signed

    @property
    def cost(self) -> float:
        """Of one set, in units of :data:`~graphprune.spectral.search.trials.WORK`."""
        return 4e3 + 75.0 * self.given.num_nodes**2

    def values(self, alive: BoolArray) -> tuple[FloatArray, BoolArray]:
        """``[B]`` measures of the sets ``alive [B, E]``, and which of them are in doubt."""
        step = max(1, ENTRIES // max(1, self.given.num_nodes) ** 2)
        parts = [self._values(alive[first : first + step]) for first in range(0, len(alive), step)]
        return np.concatenate([v for v, _ in parts]), np.concatenate([d for _, d in parts])

    def _values(self, alive: BoolArray) -> tuple[FloatArray, BoolArray]:
        matrices = self._matrices(alive)
        values = np.linalg.eigvals(matrices).astype(np.complex128)
        if self.measure.name == "gap":
            return self.measure.values(values), np.zeros(len(alive), dtype=bool)
        norm = np.linalg.norm(matrices, axis=(1, 2))[:, None]
        size = np.abs(values.imag)
        return self.measure.values(values), ((size > 0) & (size <= DOUBTFUL * norm)).any(1)

    def _matrices(self, alive: BoolArray) -> FloatArray:
        """``[B, n, n]``, what leads from one component to another taken out."""
        n, count = self.given.num_nodes, len(alive)
        present = np.ones((count, len(self.given.sources)))
        present[:, : self.given.num_edges] = alive
        present *= self.given.present
        made = np.ascontiguousarray((self.entries @ present.T).T).reshape(count, n, n)
        if self.form.laplacian == "rw":
            degree = (self.degrees @ present.T).T[:, :, None]
            made = np.divide(made, degree, out=np.zeros_like(made), where=degree != 0)
        reach = ((made != 0) | np.eye(n, dtype=bool)).astype(np.float32)
        length = 1
        while length < n:
            reach, length = np.minimum(reach @ reach, 1), 2 * length
        made[(reach == 0) | (reach.transpose(0, 2, 1) == 0)] = 0.0
        return made
