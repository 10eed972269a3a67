"""The global search: rounds of first-order short-lists, feedback arcs, exchange, and annealing.

One round takes the spectrum and all sensitivities of what is left, predicts every edge's effect,
and either tries the ``shortlist`` best single edges exactly and cuts the one that does best, or
cuts a chunk of the best predicted. A chunk is tried in several compositions, since edges of one
node change each other's effect; one that the exact eigenvalues show to raise what should fall is
taken back and halved.

Rounds see one step ahead. Damping therefore also looks at the goal itself, a graph without cycles:
if its feedback arcs are no more than the edges to remove they go and nothing rotates; if they are
more, arcs come back from there (:mod:`.feedback_arcs`). Where arcs came back, rounds
stop halving chunks once they cost four times their plan (``effort=0``: they never do), and are left
out where large components have lost 99 % already.

Where nothing rotates to begin with, opposite edges go together, the weakest first: one of the two
alone would make a symmetric graph turn.

What is left of the work goes into what can be paid (:mod:`.set_search`): all sets of edges, where
they are at most 1e5 and the graph has at most 64 nodes, which is the optimum; else the ends of
rounds, of exact greedy, of arcs and of random draws, single edges exchanged, and annealing from the
best of them (up to 64 nodes). The best exact value is the answer, and ``by`` names what found it.
Work is counted, not timed: the same input gives the same answer on any machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import comb

from graphprune.util.progress import bar

from ..linalg.eigensolver import Solver
from ..linalg.sensitivity import Measure
from ..linalg.weighted_graph import BoolArray, FloatArray, IntArray, WeightedGraph
from .feedback_arcs import restored, weakest_pairs, without_feedback_arcs, without_weakest
from .set_search import (
    WORK,
    Goal,
    SetEvaluator,
    annealed,
    best_draw,
    best_of_all,
    exchanged,
    greedy,
    ranks_of,
    removal_costs,
    toggled,
)

__all__ = ["GlobalSearch", "automatic_chunk"]

SETS = 100_000  # of edges: as many are all tried
DRAWS = 50
PRESERVED = 1e-5  # of the measure: nearer than that annealing need not come
PAIRS_TRIED = 20
COOLINGS, ANNEALING = 6, 3.0  # how often, and how much work in all, by that of a phase


def automatic_chunk(removals: int, sizes: IntArray) -> int:
    """Edges a round: one where components are small, more as an eigendecomposition costs more."""
    work = float((sizes.astype(np.float64) ** 3).sum())
    rounds = removals if work <= 60.0**3 else max(5.0, min(60.0, 20 * (240.0**3 / work) ** 0.5))
    return max(1, int(np.ceil(removals / rounds)))


@dataclass(eq=False)
class GlobalSearch:
    """Removal of edges for a goal.

    Args:
        graph, solver, measure, goal: what is pruned, solved, measured, and wanted.
        chunk: edges a round, ``None`` means by the size of components.
        shortlist: candidates verified a round; ``None`` means 10 of single edges, one chunk.
        effort: work beyond the rounds: 0 none (rounds alone, one edge after the other), 1 about as
            much as theirs, more for better answers.

    Attributes:
        kept: ``[E]`` bool, the best set so far; ``spectrum`` and ``value`` are its own.
        cuts: the edges that each round removed.
        by: what found the set.
    """

    graph: WeightedGraph
    solver: Solver
    measure: Measure
    goal: Goal
    chunk: int | None = None
    shortlist: int | None = None
    effort: float = 1.0

    def __post_init__(self) -> None:
        self.evaluator = SetEvaluator(self.graph, self.solver, self.measure, self.goal)
        self.kept = self.evaluator.initial.copy()
        self.spectrum, self.value = self.evaluator.spectrum, self.evaluator.start
        self.cuts: list[IntArray] = []
        self.by, self.steps, self.rejected = "rounds", 0, 0

    def run(self, count: int) -> BoolArray:
        """Removes edges until ``count`` are left: ``[E]`` bool."""
        evaluator = self.evaluator
        free = int(self.kept.sum())
        removals = free - count
        if removals <= 0:
            return self.kept
        if self.goal == "damp" and self.value == 0.0:
            pairs = self._by_pairs(removals)
            if pairs is not None:
                self._offer(pairs, "pairs cut", better_than=np.inf)
                return self.kept
        work = self.effort * WORK
        by_arcs = self._from_no_cycles(count, work) if work > 0 else None
        if by_arcs is not None:
            value = evaluator.value(by_arcs)
            enough = 1e-2 * evaluator.start if self._plan(removals)[1] > WORK / 2 else 0.0
            if value <= enough or evaluator.is_optimal(evaluator.loss(value)):
                self._offer(by_arcs, "cycles cut", better_than=np.inf)
                return self.kept
        self._rounds(count, hurry=by_arcs is not None)
        if work <= 0 or self._finished():
            return self.kept
        if self._can_try_all(free, removals):
            best = best_of_all(evaluator, removals)
            self._offer(best, "all sets tried", better_than=np.inf)
            return self.kept
        for by, start in self._starts(count, by_arcs):
            self._exchange(start, by, work)
            if self._finished():
                return self.kept
        if evaluator.stacks is not None and count > 0:
            self._anneal(removals, work)
        return self.kept

    def _can_try_all(self, free: int, removals: int) -> bool:
        sets = float(comb(free, removals))  # infinite where it overflows
        if sets > self.effort * SETS:
            return False
        cost = sets * self.evaluator.set_cost(self.spectrum)
        return self.evaluator.stacks is not None or cost <= self.effort * WORK

    def _starts(self, count: int, by_arcs: BoolArray | None) -> Iterator[tuple[str, BoolArray]]:
        """Ways to ``count`` edges that lead to different answers, as far as they can be paid."""
        yield "rounds", self.kept
        evaluator = self.evaluator
        one, work = evaluator.set_cost(self.spectrum), self.effort * WORK
        free = int(evaluator.initial.sum())
        if float(free) * (free - count) * one <= 2 * work:
            yield "greedy", greedy(evaluator, count)
        if by_arcs is not None:
            yield "cycles cut", by_arcs
        # Rounds are better than any draw, except where the gap closed on them.
        useful = evaluator.stacks is not None or self.goal == "gap"
        if useful and DRAWS * one <= work / 2:
            best = best_draw(evaluator, free - count, DRAWS)
            if evaluator.loss(evaluator.value(best)) < evaluator.loss(self.value):
                yield "draws", best

    def _exchange(self, start: BoolArray, by: str, work: float) -> None:
        result = exchanged(self.evaluator, start, work=work)
        by = by if np.array_equal(result, start) else f"{by}, exchanged"
        if by != "rounds":
            self._offer(result, by, better_than=self.evaluator.loss(self.value))

    def _anneal(self, removals: int, work: float) -> None:
        """By turns from a draw, hot, and from the best so far, cooler."""
        evaluator = self.evaluator
        generator = np.random.default_rng(0)
        edges = np.flatnonzero(evaluator.initial)
        for number in range(COOLINGS):
            start = self.kept
            if number % 2 == 0:
                removed = generator.permutation(edges)[None, :removals]
                start = toggled(evaluator.initial, removed)[0]
            result = annealed(
                evaluator,
                start,
                generator,
                work=ANNEALING * work / COOLINGS,
                heat=(1.0, 0.3)[number % 2],
                # What turns least hardly depends on whole nodes; the gap does.
                by_node=0.0 if self.goal == "damp" else 0.5,
            )
            self._exchange(result, "annealed", work / COOLINGS)
            near = evaluator.loss(self.value) <= PRESERVED * evaluator.start
            if self.goal == "preserve" and near:
                return

    def _finished(self) -> bool:
        return self.evaluator.is_optimal(self.evaluator.loss(self.value))

    def _by_pairs(self, removals: int) -> BoolArray | None:
        """What is left of a real spectrum's graph without its weakest pairs of opposite edges.

        Edge by edge a symmetric graph becomes a directed one, which rotates. ``None`` where this
        one does so all the same.
        """
        kept, left = self.kept.copy(), removals
        for group in weakest_pairs(self.graph, self.kept):
            if len(group) <= left:
                kept[group] = False
                left -= len(group)
        if left:  # too few for a pair: edges whose loss leaves the spectrum real
            for group in weakest_pairs(self.graph, kept)[:PAIRS_TRIED]:
                fewer = kept.copy()
                fewer[group[:left]] = False
                if self.evaluator.value(fewer) == 0.0:
                    return fewer
            return None
        return kept if self.evaluator.value(kept) == 0.0 else None

    def _from_no_cycles(self, count: int, work: float) -> BoolArray | None:
        """``count`` edges by way of a graph without cycles, where that is the goal."""
        # Both directions of a tied edge are a cycle: arcs of directed edges tell nothing of them.
        if self.goal != "damp" or self.value == 0.0 or len(self.graph.returning):
            return None
        acyclic = without_feedback_arcs(self.graph, int(self.kept.sum()) - count)
        if int(acyclic.sum()) >= count:
            return without_weakest(self.graph, acyclic, count)
        return restored(self.evaluator, acyclic, count, work=4 * work)

    def _offer(self, kept: BoolArray, by: str, *, better_than: float) -> None:
        # Rounding makes nothing better.
        slack = 1e-10 * self.evaluator.scale
        if self.evaluator.loss(self.evaluator.value(kept)) < better_than - slack:
            self._move(kept)
            self.by = by

    def _move(self, kept: BoolArray) -> None:
        self.kept = kept.copy()
        self.spectrum = self.evaluator.solve(self.kept)
        self.value = self.measure.value(self.spectrum.values)
        self.steps += 1

    # ---------------------------------------------------------------- rounds

    def _plan(self, removals: int) -> tuple[int, float]:
        """Edges a round, and about the work of all rounds."""
        chunk = self.chunk or automatic_chunk(removals, self.spectrum.components.sizes)
        rounds = float(np.ceil(removals / chunk))
        return chunk, 4 * rounds * self.evaluator.solve_cost(self.spectrum)

    def _rounds(self, count: int, *, hurry: bool) -> None:
        total = int(self.kept.sum()) - count
        chunk, planned = self._plan(total)
        limit = self.evaluator.work + (4 * planned + WORK if hurry else np.inf)
        size = chunk
        with bar(f"spectral {self.goal}", total) as shown:
            while (left := int(self.kept.sum()) - count) > 0:
                order, cost = self._order()
                hurried = self.evaluator.work > limit
                # Where nothing is left to damp, the rest goes together, verified as any chunk.
                settled = self.goal == "damp" and self.value == 0.0
                number = min(left if settled else size, left)
                least = number if hurried else max(1, chunk // 8)
                cut = self._verified(order, cost, number, least)
                self.cuts.append(cut)
                kept = self.kept.copy()
                kept[cut] = False
                self._move(kept)
                shown.update(len(cut))
                size = chunk if hurried else min(chunk, 2 * len(cut))

    def _order(self) -> tuple[IntArray, FloatArray]:
        """Edges that are left, the best predicted first, and what they are predicted to cost."""
        free = np.flatnonzero(self.kept)
        cost = removal_costs(self.goal, self.evaluator.effects(self.kept, self.spectrum)[free])
        # Rounding must not decide between edges of equal effect, nor between those of none.
        noise = 1e-9 * max(float(np.abs(cost).max(initial=0.0)), self.evaluator.scale * 1e-3)
        cost = np.where(np.abs(cost) <= noise, 0.0, cost)
        by = np.lexsort((free, self.evaluator.sizes[free], ranks_of(cost, noise)))
        return free[by], cost[by]

    def _verified(self, order: IntArray, cost: FloatArray, number: int, least: int) -> IntArray:
        """The best chunk; halved down to ``least`` edges while it makes things worse."""
        best: tuple[float, IntArray] | None = None
        while True:
            edges, loss = self._best(order, number)
            if best is None or loss < best[0] - 1e-11 * self.evaluator.scale:
                best = (loss, edges)
            # What rounding and the prediction explain.
            predicted = 0.0 if self.goal == "damp" else 2 * abs(float(cost[:number].sum()))
            rise = loss - self.evaluator.loss(self.value)
            if rise <= predicted + 1e-3 * abs(self.evaluator.start):
                return edges
            if number <= least:
                return best[1]
            self.rejected += 1
            number = max(least, number // 2)

    def _best(self, order: IntArray, number: int) -> tuple[IntArray, float]:
        """The composition of a chunk that does best, and its loss."""
        result: tuple[IntArray, float] | None = None
        for edges in self._compositions(order, number):
            kept = self.kept.copy()
            kept[edges] = False
            loss = self.evaluator.loss(self.evaluator.value(kept))
            if result is None or loss < result[1] - 1e-11 * self.evaluator.scale:
                result = (edges, loss)
            if self.evaluator.is_optimal(loss):
                break
        assert result is not None
        return result

    def _compositions(self, order: IntArray, number: int) -> Iterator[IntArray]:
        if number == 1:
            yield from order[: self.shortlist or 10, None]
            return
        yield order[:number]
        if self.shortlist is not None and self.shortlist > 1:
            # At most one, two, four edges of a node at a time, as far as there are enough.
            for most in (1, 2, 4):
                spread = self._spread(order[: max(4 * number, 50)], number, most)
                if len(spread) == number:
                    yield spread

    def _spread(self, order: IntArray, number: int, most: int) -> IntArray:
        """The first ``number`` edges with at most ``most`` at each of their degree nodes."""
        sides = self.solver.operator.degree_nodes(self.graph)
        sides = sides or (self.graph.sources, self.graph.targets)
        used: Counter[tuple[int, int]] = Counter()
        chosen: list[int] = []
        for edge in order.tolist():
            keys = [(n, int(side[edge])) for n, side in enumerate(sides)]
            if len(chosen) < number and all(used[key] < most for key in keys):
                chosen.append(edge)
                used.update(keys)
        return np.array(chosen, dtype=np.int64)

    def notes(self) -> dict[str, Any]:
        """Plain values about the run."""
        return {
            "start": self.evaluator.start,
            "end": self.value,
            "rounds": self.steps,
            "rejected": self.rejected,
            "by": self.by,
        }
