"""The global search: rounds of first-order short-lists, feedback arcs, exchange, and annealing.

One round takes the spectrum and all sensitivities of what is left, predicts every edge's effect,
and either tries the ``shortlist`` best single edges exactly and cuts the one that does best, or
cuts a chunk of the best predicted. A chunk is tried in several compositions, since edges of one
node change each other's effect; one that the exact eigenvalues show to raise what should fall is
taken back and halved.

Rounds see one step ahead. Damping therefore also looks at the goal itself, a graph without cycles:
if its feedback arcs are no more than the edges to remove they go and nothing rotates; if they are
more, arcs come back from there (:mod:`.restoring`). Where arcs came back, rounds
stop halving chunks once they cost four times their plan (``effort=0``: they never do), and are left
out where large components have lost 99 % already.

What is left of the work goes into what can be paid (:mod:`.exhaustive`): all
sets of edges, where they are at most 1e5 and the graph has at most 64 nodes, which is the optimum;
else the ends of rounds, of exact greedy, of arcs and of random draws, single edges exchanged
(:mod:`.exchange`), and annealing from the best of them
(:mod:`.annealing`, up to 64 nodes). The best exact value is the answer, and
``by`` names what found it. Work is counted, not timed: the same input gives the same answer on any
machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphprune.util.progress import bar

from ..linalg.effects import first_order
from ..linalg.measures import Measure
from ..linalg.spectra import Solver
from ..linalg.wiring import BoolArray, FloatArray, IntArray, Wiring
from .annealing import annealed
from .exchange import exchange
from .exhaustive import best_of_all, drawn, greedy, number_of_sets
from .restoring import acyclic, restored
from .trials import WORK, Goal, Trials, flipped

__all__ = ["Search", "automatic_chunk"]

SETS = 100_000  # of edges: as many are all tried
DRAWS = 50
HELD = 1e-5  # of the measure that is preserved: nearer need no annealing come
COOLINGS, ANNEALING = 6, 3.0  # how often, and how much work in all, by that of a phase


def automatic_chunk(removals: int, sizes: IntArray) -> int:
    """Edges a round: one where components are small, more as an eigendecomposition costs more."""
    work = float((sizes.astype(np.float64) ** 3).sum())
    rounds = removals if work <= 60.0**3 else max(5.0, min(60.0, 20 * (240.0**3 / work) ** 0.5))
    return max(1, int(np.ceil(removals / rounds)))


@dataclass
class Search:
    """Removal of edges for a goal.

    Args:
        given: the wiring; ``alive`` and ``locked`` edges ``[E]``: those present, and those that
            must stay.
        solver, measure, goal: what is solved, measured, and wanted.
        chunk: edges a round, ``None``: by the size of components.
        shortlist: candidates verified a round; ``None``: 10 of single edges, one chunk.
        tie: ``[E]``: among edges without an effect those with the least go first; ``None``: the
            size of the weight.
        effort: work beyond the rounds: 0 none (rounds alone, one edge after the other), 1 about as
            much as theirs, more for better answers.
    """

    given: Wiring
    solver: Solver
    measure: Measure
    goal: Goal
    chunk: int | None = None
    shortlist: int | None = None
    locked: BoolArray | None = None
    tie: FloatArray | None = None
    effort: float = 1.0
    report: Callable[[int, float], None] | None = None
    trace: list[tuple[int, float]] = field(default_factory=list)
    rejected: int = 0

    def __post_init__(self) -> None:
        edges = self.given.num_edges
        self.alive = self.given.present[:edges].copy()
        if self.locked is None:
            self.locked = np.zeros(edges, dtype=bool)
        if self.tie is None:
            self.tie = np.abs(self.given.weights[:edges])
        self.trials = Trials(self.given, self.solver, self.measure, self.goal)
        self.now = self.trials.decompose(self.alive)
        self.start = self.value = self.measure.value(self.now.values)
        self.trials.start = self.start
        self.by = "rounds"
        self.trace.append((int(self.alive.sum()), self.value))

    def run(self, kept: int) -> BoolArray:
        """Removes edges until ``kept`` are left (or only locked ones): ``[E]`` bool."""
        before = self.alive.copy()
        total = int(before.sum()) - kept
        if total <= 0:
            return self.alive
        work = self.effort * WORK
        other = self._from_no_cycles(before, kept, work) if work > 0 else None
        if other is not None:
            found = self.trials.value(other)
            enough = 1e-2 * self.start if self._plan(kept)[1] > WORK / 2 else 0.0
            if found <= enough or self.trials.none_better(self._loss(found), self._scale()):
                self._offer(other, "cycles cut", better_than=np.inf)
                return self.alive
        self._rounds(kept, hurry=other is not None)
        free = np.flatnonzero(before & ~self._locked)
        if work <= 0 or self._finished() or len(free) < total:
            return self.alive
        if self._few(len(free), total):
            best = best_of_all(self.trials, before, free, total, self._tie, self._scale())
            self._offer(best, "all sets tried", better_than=np.inf)
            return self.alive
        for by, start in self._starts(before, free, kept, other):
            self._exchange(start, by, before, work)
            if self._finished():
                return self.alive
        if self.trials.stacks is not None and len(free) > total:
            self._anneal(before, free, work)
        return self.alive

    def _few(self, free: int, removals: int) -> bool:
        """Whether all sets can be tried."""
        sets = number_of_sets(free, removals, self.effort * SETS)
        small = self.trials.stacks is not None
        return sets < np.inf and (small or sets * self.trials.one(self.now) <= self.effort * WORK)

    def _starts(
        self, before: BoolArray, free: IntArray, kept: int, other: BoolArray | None
    ) -> Iterator[tuple[str, BoolArray]]:
        """Ways to ``kept`` edges that lead to different answers, as far as they can be paid."""
        yield "rounds", self.alive
        one, work, scale = self.trials.one(self.now), self.effort * WORK, self._scale()
        total = int(before.sum()) - kept
        if float(len(free)) * total * one <= 2 * work:
            yield "greedy", greedy(self.trials, before, self._locked, kept, scale)
        if other is not None:
            yield "cycles cut", other
        # Rounds are better than any draw, except where the gap closed on them.
        few = self.trials.stacks is not None or self.goal == "gap"
        if few and DRAWS * one <= work / 2:
            best = drawn(self.trials, before, free, total, scale, DRAWS)
            if self._loss(self.trials.value(best)) < self._loss(self.value):
                yield "draws", best

    def _exchange(self, start: BoolArray, by: str, before: BoolArray, work: float) -> None:
        found = exchange(self.trials, start, self._gone(before), work=work)
        by = by if np.array_equal(found, start) else f"{by}, exchanged"
        if by != "rounds":
            self._offer(found, by, better_than=self._loss(self.value))

    def _anneal(self, before: BoolArray, free: IntArray, work: float) -> None:
        """By turns from a draw, hot, and from the best so far, cooler."""
        generator = np.random.default_rng(0)
        total = int(before.sum() - self.alive.sum())
        for number in range(COOLINGS):
            start = self.alive
            if number % 2 == 0:
                start = flipped(before, generator.permutation(free)[None, :total])[0]
            found = annealed(
                self.trials,
                start,
                free,
                generator,
                work=ANNEALING * work / COOLINGS,
                heat=(1.0, 0.3)[number % 2],
                # What turns least hardly depends on whole nodes; the gap does.
                by_node=0.0 if self.goal == "damp" else 0.5,
                scale=self._scale(),
            )
            self._exchange(found, "annealed", before, work / COOLINGS)
            if self.goal == "preserve" and self._loss(self.value) <= HELD * self.start:
                return

    def _finished(self) -> bool:
        return self.trials.none_better(self._loss(self.value), self._scale())

    def _from_no_cycles(self, before: BoolArray, kept: int, work: float) -> BoolArray | None:
        """``kept`` edges by way of a graph without cycles, where that is the goal."""
        if self.goal != "damp" or self._settled():
            return None
        still = acyclic(self.given, before, self._locked, int(before.sum()) - kept)
        if int(still.sum()) >= kept:
            return self._thinned(still, kept)
        return restored(self.trials, still, before, kept, self._tie, work=4 * work)

    def _gone(self, before: BoolArray) -> BoolArray:
        """Edges that no exchange may touch: locked ones, and those that were not there."""
        return self._locked | ~before

    def _offer(self, alive: BoolArray, by: str, *, better_than: float) -> None:
        value = self.trials.value(alive)
        # Rounding makes nothing better.
        if self._loss(value) < better_than - self._slack():
            self._move(alive)
            self.by = by
            self.trace.append((int(alive.sum()), self.value))

    def _move(self, alive: BoolArray) -> None:
        self.alive = alive.copy()
        self.now = self.trials.decompose(self.alive)
        self.value = self.measure.value(self.now.values)

    def _thinned(self, alive: BoolArray, kept: int) -> BoolArray:
        """``alive`` without its least edges that are not locked."""
        free = np.flatnonzero(alive & ~self._locked)
        least = free[np.argsort(self._tie[free], kind="stable")[: int(alive.sum()) - kept]]
        thinner = alive.copy()
        thinner[least] = False
        return thinner

    def _plan(self, kept: int) -> tuple[int, float]:
        """Edges a round, and about the work of all rounds."""
        total = int(self.alive.sum()) - kept
        chunk = self.chunk or automatic_chunk(total, self.now.components.sizes)
        return chunk, 4 * float(np.ceil(total / chunk)) * self.trials.cost(self.now)

    def _rounds(self, kept: int, *, hurry: bool) -> None:
        chunk, planned = self._plan(kept)
        total = int(self.alive.sum()) - kept
        limit = self.trials.spent + (4 * planned + WORK if hurry else np.inf)
        size = chunk
        with bar(f"spectral {self.goal}", total) as shown:
            while (left := int(self.alive.sum()) - kept) > 0:
                order, cost = self._order()
                if not len(order):
                    break
                hurried = self.trials.spent > limit
                count = min(left if self._settled() else size, left, len(order))
                least = count if hurried else max(1, chunk // 8)
                cut = self._verified(order, cost, count, least)
                self._cut(cut)
                shown.update(len(cut))
                size = chunk if hurried else min(chunk, 2 * len(cut))

    @property
    def _locked(self) -> BoolArray:
        assert self.locked is not None
        return self.locked

    @property
    def _tie(self) -> FloatArray:
        assert self.tie is not None
        return self.tie

    # ---------------------------------------------------------------- one round

    def _cut(self, edges: IntArray) -> None:
        self.alive[edges] = False
        self._move(self.alive)
        self.trace.append((int(self.alive.sum()), self.value))
        if self.report is not None:
            self.report(*self.trace[-1])

    def _verified(self, order: IntArray, cost: FloatArray, count: int, least: int) -> IntArray:
        """The best chunk; halved down to ``least`` edges while it makes things worse."""
        best: tuple[float, IntArray] | None = None
        while True:
            edges, loss = self._best(order, count)
            if best is None or loss < best[0]:
                best = (loss, edges)
            if count <= least or loss <= self._allowed(cost[:count]):
                return edges if loss <= self._allowed(cost[:count]) else best[1]
            self.rejected += 1
            count = max(least, count // 2)

    def _allowed(self, cost: FloatArray) -> float:
        """The loss up to which a chunk is taken: what rounding and the prediction explain."""
        predicted = 0.0 if self.goal == "damp" else 2 * abs(float(cost.sum()))
        return self._loss(self.value) + predicted + 1e-3 * abs(self.start)

    def _order(self) -> tuple[IntArray, FloatArray]:
        """Edges that may go, the best predicted first, and what they are predicted to cost."""
        effect = first_order(
            self.solver.operator, self.given.keep(self.alive), self.now, self.measure
        )
        cost = {"damp": effect, "preserve": np.abs(effect), "gap": -effect}[self.goal]
        free = np.flatnonzero(self.alive & ~self._locked)
        cost = cost[free]
        # Rounding must not decide between edges that have no effect at all.
        noise = 1e-9 * max(float(np.abs(cost).max(initial=0.0)), self._scale() * 1e-3)
        cost = np.where(np.abs(cost) <= noise, 0.0, cost)
        by = np.lexsort((free, self._tie[free], cost))
        return free[by], cost[by]

    def _best(self, order: IntArray, count: int) -> tuple[IntArray, float]:
        found: tuple[IntArray, float] | None = None
        for edges in self._proposals(order, count):
            loss = self._loss(self._value_without(edges))
            if found is None or loss < found[1]:
                found = (edges, loss)
            if loss <= self._ideal() + self._slack():
                break
        assert found is not None
        return found

    def _proposals(self, order: IntArray, count: int) -> Iterator[IntArray]:
        if count == 1:
            for edge in order[: self.shortlist or 10]:
                yield np.array([edge])
            return
        yield order[:count]
        if self.shortlist is not None and self.shortlist > 1:
            # At most one, two, four edges of a node at a time, as far as there are enough.
            for most in (1, 2, 4):
                spread = self._spread(order[: max(4 * count, 50)], count, most)
                if len(spread) == count:
                    yield spread

    def _spread(self, order: IntArray, count: int, most: int) -> IntArray:
        laplacian = self.solver.operator.laplacian
        ends = {"in": (self.given.targets,), "out": (self.given.sources,)}
        ends["rw"] = ends["out"]
        sides = ends.get(laplacian, (self.given.sources, self.given.targets))
        used: dict[tuple[int, int], int] = {}
        chosen = []
        for edge in order.tolist():
            keys = [(n, int(side[edge])) for n, side in enumerate(sides)]
            if all(used.get(key, 0) < most for key in keys):
                chosen.append(edge)
                for key in keys:
                    used[key] = used.get(key, 0) + 1
                if len(chosen) == count:
                    break
        return np.array(chosen, dtype=np.int64)

    def _value_without(self, edges: IntArray) -> float:
        kept = self.alive.copy()
        kept[edges] = False
        return self.trials.value(kept)

    # ---------------------------------------------------------------- what is wanted

    def _loss(self, value: float) -> float:
        return self.trials.loss(value)

    def _ideal(self) -> float:
        return -np.inf if self.goal == "gap" else 0.0

    def _scale(self) -> float:
        return self.trials.scale(self.now)

    def _slack(self) -> float:
        return 1e-10 * self._scale()

    def _settled(self) -> bool:
        """Whether nothing is left to damp: the rest goes together, verified as any chunk."""
        return self.goal == "damp" and self.value == 0.0

    def notes(self) -> dict[str, Any]:
        """Plain values about the run."""
        return {
            "start": self.start,
            "end": self.value,
            "rounds": len(self.trace) - 1,
            "rejected": self.rejected,
            "by": self.by,
        }
