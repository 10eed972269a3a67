"""Exact trials of a search: what a set of edges gives, and what solving it cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from .measures import Measure
from .sensitivity import contract, removals, slopes
from .spectra import Decomposition, Solver
from .wiring import BoolArray, FloatArray, Wiring

__all__ = ["WORK", "Goal", "Trials"]

Goal = Literal["damp", "preserve", "gap"]

WORK = 6e8
"""What a phase of the search may cost beyond its plan, in units of a component's cubed nodes."""

OVERHEAD = 4e5  # of a trial, whatever its size


@dataclass(eq=False)
class Trials:
    """Solves sets of edges and judges them by the goal; counts the work.

    Args:
        given, solver, measure, goal: what is solved, measured and wanted.
        start: the measure that ``"preserve"`` holds.
        spent: work so far, see :data:`WORK`. A count, not a clock: results do not depend on the
            machine.
    """

    given: Wiring
    solver: Solver
    measure: Measure
    goal: Goal
    start: float = 0.0
    spent: float = 0.0

    def decompose(self, alive: BoolArray) -> Decomposition:
        """The spectrum with vectors of the edges ``alive [E]``; older blocks are forgotten."""
        self.solver.forget()
        found = self.solver.decompose(self.given.keep(alive), vectors=True)
        self.spent += 3 * self.cost(found)
        return found

    def value(self, alive: BoolArray) -> float:
        """The measure of the edges ``alive [E]``."""
        found = self.solver.decompose(self.given.keep(alive), vectors=False)
        self.spent += self.cost(found)
        return self.measure.value(found.values)

    def cost(self, found: Decomposition) -> float:
        """The work of one trial of about these components."""
        return OVERHEAD + float(sum(float(len(part.nodes)) ** 3 for part in found.parts))

    def loss(self, value: float) -> float:
        """What is to become small."""
        if self.goal == "preserve":
            return abs(value - self.start)
        return value if self.goal == "damp" else -value

    def scale(self, found: Decomposition) -> float:
        """The size that rounding is judged by."""
        return max(abs(self.start), float(np.abs(found.values).max(initial=0.0)))

    def done(self, value: float, scale: float) -> bool:
        """Whether nothing better exists."""
        return self.goal != "gap" and self.loss(value) <= 1e-10 * scale

    def effects(self, alive: BoolArray, found: Decomposition) -> FloatArray:
        """``[E]``: to first order, the measure's change where an edge goes or comes back.

        ``rw`` cannot return an edge to a node without out-edges to first order: infinite.
        """
        form, edges = self.solver.operator, self.given.num_edges
        here = self.given.keep(alive)
        k = contract(here, found, self.measure)
        going = removals(form, here, k)[:edges]
        coming = (slopes(form, here, k) * self.given.weights)[:edges]
        if form.kind == "count":
            i, j = self.given.sources[:edges], self.given.targets[:edges]
            coming = coming + k.node[i] + k.node[j]
        if form.kind == "rw":
            empty = form.diagonal(here)[self.given.sources[:edges]] == 0
            coming = np.where(empty, np.inf, coming)
        return np.where(alive, going, coming)
