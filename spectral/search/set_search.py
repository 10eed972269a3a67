"""Searches among sets of edges by exact losses: all sets, greedy, draws, exchange and annealing.

The first three try everything (all sets, every edge in every round, many draws): they are the truth
where they can be paid, and what a heuristic has to reach elsewhere.

*Exchange* takes one edge out and another back in. Each half step tries the edges that are predicted
best (all, where an evaluation costs little) and keeps the best of them. A step is taken whether it
helps or not, and edges that moved stay put for some steps (tabu search), so that it can leave a
minimum.

*Annealing* crosses more of the many minima, where an evaluation is cheap: edges are swapped at
random, and worse sets are taken ever more rarely. Some moves are of a node: all its edges in (or
out) go, and as many come back, another node's first. One swap after the other hardly gets there:
the gap, say, is often widest where some nodes lie on no cycle, and is narrow on the way. Several
moves of one set are tried at once, and the first that is taken counts: the chain is that of one
after the other.

Evaluations are exact. One of a graph of a few dozen nodes is mostly overhead. There the matrices of
many sets are solved in one stack, which costs about what LAPACK needs, fifty times less:
enumeration, exact greedy and annealing become cheap.

Each search gives ``[E]`` bool, the edges that are kept.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy.sparse import csr_array

from ..linalg.eigensolver import DOUBTFUL, Solver, Spectrum
from ..linalg.sensitivity import Measure, entry_gradients, toggle_effects
from ..linalg.weighted_graph import BoolArray, FloatArray, IntArray, Operator, WeightedGraph

__all__ = [
    "WORK", "Goal", "SetEvaluator", "StackedMatrices", "annealed", "best_draw", "best_of_all",
    "exchanged", "first_least", "greedy", "ranks_of", "removal_costs", "toggled",
]  # fmt: skip

Goal = Literal["damp", "preserve", "gap"]

WORK = 6e8
"""What a phase of the search may cost beyond its plan, in units of a component's cubed nodes: about
1.5 seconds of one core."""

OVERHEAD = 4e5  # of one evaluation, whatever its size
STACKED_NODES = 64  # the largest graph whose sets are solved in stacks
STACK_ENTRIES = 4_000_000  # of the matrices of a stack: 32 MB
SETS_AT_ONCE = 4096
TRIED = (8, 24)  # edges of a half step of exchange: few where an evaluation costs much
REST = (12, 8)  # steps for which an edge stays put that came back, and one that went
MOVES_AT_ONCE = 8
COOLEST = 1e-2  # the last temperature, by the first


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
        self.sizes = self.graph.sizes
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
        return graph.per_edge(toggle_effects(self.solver.operator, graph, k))


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


def ranks_of(values: FloatArray, noise: float) -> IntArray:
    """``[n]``: whole numbers in the order of ``values [n]``; neighbours within ``noise`` share one.

    Example:
        >>> ranks_of(np.array([2.0, 1.0, 2.0 + 1e-12]), 1e-9).tolist()
        [1, 0, 1]
    """
    order = np.argsort(values, kind="stable")
    rises = np.diff(values[order], prepend=values[order[:1]]) > noise
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[order] = np.cumsum(rises)
    return ranks


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
        cells = [graph.sources * n + graph.targets, *(nodes * (n + 1) for nodes in degree_nodes)]
        values = [form.sign * graph.weights, *(share for _ in degree_nodes)]
        columns = np.tile(np.arange(count), len(cells))
        # But for the division of `rw` a matrix is linear in the set of its edges.
        self.entries = csr_array(
            (np.concatenate(values), (np.concatenate(cells), columns)), shape=(n * n, count)
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
        given = self.graph.both_ways(sets)
        present[:, : given.shape[1]] = given
        present *= self.graph.present
        matrices = np.ascontiguousarray((self.entries @ present.T).T).reshape(count, n, n)
        if self.form.laplacian == "rw":
            degree = np.asarray(self.degrees @ present.T).T[:, :, None]
            matrices = np.divide(matrices, degree, out=np.zeros_like(matrices), where=degree != 0)
        # Squaring the pattern doubles the length of the walks that it covers.
        reach = ((matrices != 0) | np.eye(n, dtype=bool)).astype(np.float32)
        length = 1
        while length < n:
            reach, length = np.minimum(reach @ reach, 1), 2 * length
        matrices[(reach == 0) | (reach.transpose(0, 2, 1) == 0)] = 0.0
        return matrices


def best_of_all(evaluator: SetEvaluator, removals: int) -> BoolArray:
    """The best of all ways to remove edges; of equal ones, that of the least weights removed."""
    scale = evaluator.scale
    sets = itertools.combinations(np.flatnonzero(evaluator.initial).tolist(), removals)
    best: tuple[float, float, BoolArray] | None = None
    while len(part := np.array(list(itertools.islice(sets, SETS_AT_ONCE)), dtype=np.int64)):
        losses = evaluator.losses(toggled(evaluator.initial, part))
        weights = evaluator.sizes[part].sum(1)
        # Losses that differ by rounding are equal.
        near = np.flatnonzero(losses <= losses.min() + 1e-11 * scale)
        number = near[np.argmin(weights[near])]
        loss, weight = float(losses[number]), float(weights[number])
        gain = np.inf if best is None else best[0] - loss
        if best is None or gain > 1e-11 * scale or (gain > -1e-11 * scale and weight < best[1]):
            best = (loss, weight, toggled(evaluator.initial, part[number][None])[0])
    assert best is not None
    return best[2]


def greedy(evaluator: SetEvaluator, count: int) -> BoolArray:
    """In every round every edge is tried and the best goes, until ``count`` are left."""
    kept = evaluator.initial.copy()
    while int(kept.sum()) > count:
        edges = np.flatnonzero(kept)
        losses = evaluator.losses(toggled(kept, edges[:, None]))
        kept[edges[first_least(losses, evaluator.scale)]] = False
        evaluator.solver.forget()
    return kept


def best_draw(evaluator: SetEvaluator, removals: int, draws: int) -> BoolArray:
    """The best of some draws of the edges that go."""
    generator = np.random.default_rng(0)
    edges = np.flatnonzero(evaluator.initial)
    removed = np.array([generator.permutation(edges)[:removals] for _ in range(draws)])
    sets = toggled(evaluator.initial, removed)
    return np.asarray(sets[first_least(evaluator.losses(sets), evaluator.scale)])


def exchanged(
    evaluator: SetEvaluator, start: BoolArray, *, work: float, patience: int = 12
) -> BoolArray:
    """As many edges as in ``start``, with a smaller loss where exchange finds one.

    Stops after ``patience`` steps without a smaller one, or when ``work`` is done.
    """
    kept, best = start.copy(), start
    spectrum = evaluator.solve(kept)
    value = evaluator.measure.value(spectrum.values)
    loss = least = evaluator.loss(value)
    free_from = np.zeros(len(kept), dtype=np.int64)
    step = stale = 0
    limit = evaluator.work + work
    one = evaluator.solve_cost(spectrum)
    width = int(np.clip(work / (80 * one), *TRIED))
    cost = (2 * width + 6) * one
    if evaluator.stacks is not None:
        cost = len(kept) * evaluator.stacks.cost
    while stale < patience and evaluator.work + cost <= limit and not evaluator.is_optimal(loss):
        step += 1
        for going in (True, False):
            edges = np.flatnonzero((kept == going) & evaluator.initial & (free_from < step))
            if not len(edges):
                return best
            if evaluator.stacks is None:
                predicted = value + evaluator.effects(kept, spectrum)[edges]
                ranks = ranks_of(evaluator.losses_of(predicted), 1e-11 * evaluator.scale)
                edges = edges[np.argsort(ranks, kind="stable")[:width]]
            losses = evaluator.losses(toggled(kept, edges[:, None]))
            chosen = first_least(losses, evaluator.scale)
            loss, edge = float(losses[chosen]), edges[chosen]
            kept[edge] = not going
            free_from[edge] = step + REST[going]
            if evaluator.stacks is None:
                spectrum = evaluator.solve(kept)
                value = evaluator.measure.value(spectrum.values)
        if loss < least - 1e-9 * evaluator.scale:
            least, best, stale = loss, kept.copy(), 0
        else:
            stale += 1
    return best


def annealed(
    evaluator: SetEvaluator,
    start: BoolArray,
    generator: np.random.Generator,
    *,
    work: float,
    heat: float,
    by_node: float,
) -> BoolArray:
    """The best set of as many edges that one cooling from ``start`` saw.

    Args:
        start: ``[E]``: some of the edges must be there, and some not.
        heat: the first temperature, in typical changes of the loss by a move.
        by_node: the share of moves that are of a node.
    """
    scale = evaluator.scale
    kept = best = start
    sets = np.concatenate(
        [kept[None], _moved(evaluator, kept, generator, 4 * MOVES_AT_ONCE, by_node)]
    )
    loss, *others = evaluator.losses(sets).tolist()
    least = loss
    changes = np.abs(np.array(others) - loss)
    changes = changes[changes > 1e-11 * scale]
    warm = heat * (float(np.median(changes)) if len(changes) else 1e-3 * scale)
    begun, limit = evaluator.work, evaluator.work + work
    while evaluator.work < limit and not evaluator.is_optimal(least):
        temperature = warm * COOLEST ** ((evaluator.work - begun) / work)
        sets = _moved(evaluator, kept, generator, MOVES_AT_ONCE, by_node)
        losses = evaluator.losses(sets)
        bound: FloatArray = loss - temperature * np.log1p(-generator.random(MOVES_AT_ONCE))
        taken = np.flatnonzero(losses <= bound)
        if len(taken):
            kept, loss = sets[taken[0]], float(losses[taken[0]])
            if loss < least - 1e-11 * scale:
                least, best = loss, kept
    return best


def _moved(
    evaluator: SetEvaluator,
    kept: BoolArray,
    generator: np.random.Generator,
    count: int,
    by_node: float,
) -> BoolArray:
    """``[count, E]``: sets one move away from ``kept``."""
    graph = evaluator.graph
    going, coming = np.flatnonzero(kept), np.flatnonzero(evaluator.initial & ~kept)
    sets = np.repeat(kept[None], count, axis=0)
    whole = generator.random(count) < by_node
    firsts = going[generator.integers(len(going), size=count)]
    seconds = coming[generator.integers(len(coming), size=count)]
    for moved, is_node_move, first, second in zip(sets, whole, firsts, seconds, strict=True):
        if not is_node_move:
            moved[first], moved[second] = False, True
            continue
        ends = (graph.sources, graph.targets)[generator.integers(2)]
        out = going[ends[going] == ends[first]][: len(coming)]
        # The other node's edges come before any others, either in no order.
        order = (ends[coming] != ends[second]) + generator.random(len(coming)) / 2
        moved[out], moved[coming[np.argsort(order)[: len(out)]]] = False, True
    return sets
