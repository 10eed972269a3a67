"""Exact evaluation of sets of edges: their losses by the goal, and the work that it took.

A single evaluation of a graph of a few dozen nodes is mostly overhead. There the matrices of many
sets are solved in one stack, which costs about what LAPACK needs, fifty times less: enumeration,
exact greedy and annealing become cheap.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy.sparse import csr_array

from ..linalg.eigensolver import DOUBTFUL, Solver, Spectrum
from ..linalg.sensitivity import Measure, entry_gradients, toggle_effects
from ..linalg.weighted_graph import BoolArray, FloatArray, IntArray, Operator, WeightedGraph

__all__ = [
    "WORK", "Goal", "SetEvaluator", "StackedMatrices", "first_least", "removal_costs", "toggled",
]  # fmt: skip

Goal = Literal["damp", "preserve", "gap"]

WORK = 6e8
"""What a phase of the search may cost beyond its plan, in units of a component's cubed nodes: about
1.5 seconds of one core."""

OVERHEAD = 4e5  # of one evaluation, whatever its size
STACKED_NODES = 64  # the largest graph whose sets are solved in stacks
STACK_ENTRIES = 4_000_000  # of the matrices of a stack: 32 MB


@dataclass(eq=False)
class SetEvaluator:
    """Solves sets of edges of one graph and judges them by a goal; counts the work.

    Args:
        graph, solver, measure, goal: what is solved, measured and wanted.

    Attributes:
        initial: ``[E]`` bool, the edges that are there and may go.
        spectrum, start: of these edges; ``start`` is the measure that ``"preserve"`` holds.
        scale: the size that rounding is judged by.
        work: so far, see :data:`WORK`. A count, not a clock: results do not depend on the machine.
    """

    graph: WeightedGraph
    solver: Solver
    measure: Measure
    goal: Goal
    work: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        form = self.solver.operator
        self.stacks: StackedMatrices | None = None
        if StackedMatrices.fit(self.graph, form):
            self.stacks = StackedMatrices(self.graph, form, self.measure)
        self.initial = self.graph.present[: self.graph.num_edges].copy()
        self.sizes = np.abs(self.graph.weights[: self.graph.num_edges])
        self.spectrum = self.solve(self.initial)
        self.start = self.measure.value(self.spectrum.values)
        largest = float(np.abs(self.spectrum.values).max(initial=0.0))
        self.scale = max(abs(self.start), largest)

    def solve(self, kept: BoolArray) -> Spectrum:
        """The spectrum with vectors of the edges ``kept [E]``; older blocks are forgotten."""
        self.solver.forget()
        spectrum = self.solver.solve(self.graph.keep(kept), vectors=True)
        self.work += 3 * self.solve_cost(spectrum)
        return spectrum

    def value(self, kept: BoolArray) -> float:
        """The measure of the edges ``kept [E]``."""
        spectrum = self.solver.solve(self.graph.keep(kept), vectors=False)
        self.work += self.solve_cost(spectrum)
        return self.measure.value(spectrum.values)

    def losses(self, sets: BoolArray) -> FloatArray:
        """``[B]``: the loss of each set of edges ``[B, E]``."""
        if self.stacks is None:
            return self.losses_of(np.array([self.value(kept) for kept in sets]))
        values, doubtful = self.stacks.values(sets)
        self.work += len(sets) * self.stacks.cost
        values[doubtful] = [self.value(kept) for kept in sets[doubtful]]
        return self.losses_of(values)

    def losses_of(self, values: FloatArray) -> FloatArray:
        """What is to become small, of measures ``[B]``."""
        if self.goal == "preserve":
            return np.abs(values - self.start)
        return values if self.goal == "damp" else -values

    def loss(self, value: float) -> float:
        """The same of one measure."""
        return float(self.losses_of(np.array(value)))

    def solve_cost(self, spectrum: Spectrum) -> float:
        """The work of one evaluation of a graph with about these components."""
        return OVERHEAD + float(sum(float(len(b.nodes)) ** 3 for b in spectrum.blocks))

    def set_cost(self, spectrum: Spectrum) -> float:
        """The work of one set among many, see :meth:`losses`."""
        return self.solve_cost(spectrum) if self.stacks is None else self.stacks.cost

    def is_optimal(self, loss: float) -> bool:
        """Whether no set can have a smaller loss."""
        return self.goal != "gap" and loss <= 1e-10 * self.scale

    def effects(self, kept: BoolArray, spectrum: Spectrum) -> FloatArray:
        """``[E]``: to first order, the measure's change where an edge goes or comes back."""
        graph = self.graph.keep(kept)
        k = entry_gradients(graph, spectrum, self.measure)
        return toggle_effects(self.solver.operator, graph, k)[: graph.num_edges]


def removal_costs(goal: Goal, effects: FloatArray) -> FloatArray:
    """The goal's loss to first order, of changes of its measure."""
    return {"damp": effects, "preserve": np.abs(effects), "gap": -effects}[goal]


def toggled(kept: BoolArray, toggles: IntArray) -> BoolArray:
    """``[B, E]``: copies of ``kept [E]``, in each the edges of one row of ``toggles [B, m]`` other.

    Example:
        >>> toggled(np.array([True, True, False]), np.array([[0], [2]])).tolist()
        [[False, True, False], [True, True, True]]
    """
    sets = np.repeat(kept[None], len(toggles), axis=0)
    rows = np.arange(len(toggles))[:, None]
    sets[rows, toggles] = ~sets[rows, toggles]
    return sets


def first_least(losses: FloatArray, scale: float) -> int:
    """The number of the first loss that is the least but for rounding, which must not decide."""
    return int(np.argmax(losses <= losses.min() + 1e-11 * scale))


class StackedMatrices:
    """The matrices of many sets of edges of a small graph, solved in one call.

    Args:
        graph, form, measure: what is measured, of which matrix; at most 64 nodes.
    """

    def __init__(self, graph: WeightedGraph, form: Operator, measure: Measure) -> None:
        self.graph, self.form, self.measure = graph, form, measure
        n, count = graph.num_nodes, len(graph.sources)
        share = form.degree_share(graph.weights)
        degree_nodes = form.degree_nodes(graph)
        places = [graph.sources * n + graph.targets, *(nodes * (n + 1) for nodes in degree_nodes)]
        values = [form.sign * graph.weights, *(share for _ in degree_nodes)]
        columns = np.tile(np.arange(count), len(places))
        # But for the division of `rw` a matrix is linear in the set of its edges.
        self.entries = csr_array(
            (np.concatenate(values), (np.concatenate(places), columns)), shape=(n * n, count)
        )
        self.degrees = csr_array((share, (graph.sources, np.arange(count))), shape=(n, count))

    @staticmethod
    def fit(graph: WeightedGraph, form: Operator) -> bool:
        """Whether a graph is small enough, and no set of its edges can divide by 0."""
        signed = (
            form.laplacian == "rw" and form.degrees == "signed" and bool((graph.weights < 0).any())
        )
        return graph.num_nodes <= STACKED_NODES and not signed

    @property
    def cost(self) -> float:
        """Of one set, in units of :data:`WORK`."""
        return 4e3 + 75.0 * self.graph.num_nodes**2

    def values(self, sets: BoolArray) -> tuple[FloatArray, BoolArray]:
        """``[B]`` measures of the sets ``[B, E]``, and which of them are in doubt."""
        step = max(1, STACK_ENTRIES // max(1, self.graph.num_nodes) ** 2)
        parts = [self._values(sets[first : first + step]) for first in range(0, len(sets), step)]
        return np.concatenate([v for v, _ in parts]), np.concatenate([d for _, d in parts])

    def _values(self, sets: BoolArray) -> tuple[FloatArray, BoolArray]:
        matrices = self._matrices(sets)
        values = np.linalg.eigvals(matrices).astype(np.complex128)
        if self.measure.name == "gap":
            return self.measure.values(values), np.zeros(len(sets), dtype=bool)
        norm = np.linalg.norm(matrices, axis=(1, 2))[:, None]
        size = np.abs(values.imag)
        return self.measure.values(values), ((size > 0) & (size <= DOUBTFUL * norm)).any(1)

    def _matrices(self, sets: BoolArray) -> FloatArray:
        """``[B, n, n]``, entries from one component to another taken out."""
        n, count = self.graph.num_nodes, len(sets)
        present = np.ones((count, len(self.graph.sources)))
        present[:, : self.graph.num_edges] = sets
        present *= self.graph.present
        matrices = np.ascontiguousarray((self.entries @ present.T).T).reshape(count, n, n)
        if self.form.laplacian == "rw":
            degree = (self.degrees @ present.T).T[:, :, None]
            matrices = np.divide(matrices, degree, out=np.zeros_like(matrices), where=degree != 0)
        # Squaring the pattern doubles the length of the walks that it covers.
        reach = ((matrices != 0) | np.eye(n, dtype=bool)).astype(np.float32)
        length = 1
        while length < n:
            reach, length = np.minimum(reach @ reach, 1), 2 * length
        matrices[(reach == 0) | (reach.transpose(0, 2, 1) == 0)] = 0.0
        return matrices
