"""Exact trials of a search: what a set of edges gives, and what solving it cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ..linalg.measures import Measure
from ..linalg.sensitivity import contract, removals, slopes
from ..linalg.spectra import Decomposition, Solver
from ..linalg.wiring import BoolArray, FloatArray, IntArray, Wiring
from .stacks import Stacks

__all__ = ["WORK", "Goal", "Trials", "first_least", "flipped"]

Goal = Literal["damp", "preserve", "gap"]

WORK = 6e8
"""What a phase of the search may cost beyond its plan, in units of a component's cubed nodes: about
1.5 seconds of one core."""

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
    stacks: Stacks | None = field(init=False)

    def __post_init__(self) -> None:
        fits = Stacks.fit(self.given, self.solver.operator)
        self.stacks = Stacks(self.given, self.solver.operator, self.measure) if fits else None

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

    def losses(self, sets: BoolArray) -> FloatArray:
        """``[B]``: the loss of each set of edges ``[B, E]``."""
        if self.stacks is None:
            values = np.array([self.value(alive) for alive in sets])
        else:
            values, doubtful = self.stacks.values(sets)
            self.spent += len(sets) * self.stacks.cost
            values[doubtful] = [self.value(alive) for alive in sets[doubtful]]
        return self.losses_of(values)

    def one(self, found: Decomposition) -> float:
        """The work of one set among many, see :meth:`losses`."""
        return self.cost(found) if self.stacks is None else self.stacks.cost

    def cost(self, found: Decomposition) -> float:
        """The work of one trial of about these components."""
        return OVERHEAD + float(sum(float(len(part.nodes)) ** 3 for part in found.parts))

    def losses_of(self, values: FloatArray) -> FloatArray:
        """What is to become small, of measures ``[B]``."""
        if self.goal == "preserve":
            return np.abs(values - self.start)
        return values if self.goal == "damp" else -values

    def loss(self, value: float) -> float:
        """The same of one measure."""
        return float(self.losses_of(np.array(value)))

    def scale(self, found: Decomposition) -> float:
        """The size that rounding is judged by."""
        return max(abs(self.start), float(np.abs(found.values).max(initial=0.0)))

    def none_better(self, loss: float, scale: float) -> bool:
        """Whether no set can have a smaller loss."""
        return self.goal != "gap" and loss <= 1e-10 * scale

    def effects(self, alive: BoolArray, found: Decomposition) -> FloatArray:
        """``[E]``: to first order, the measure's change where an edge goes or comes back.

        ``rw`` cannot return an edge to a node without out-edges to first order: infinite.
        """
        form, edges = self.solver.operator, self.given.num_edges
        here = self.given.keep(alive)
        k = contract(here, found, self.measure)
        going = removals(form, here, k)[:edges]
        coming = (slopes(form, here, k) * self.given.weights)[:edges]
        if form.laplacian == "count":
            i, j = self.given.sources[:edges], self.given.targets[:edges]
            coming = coming + k.node[i] + k.node[j]
        if form.laplacian == "rw":
            empty = form.diagonal(here)[self.given.sources[:edges]] == 0
            coming = np.where(empty, np.inf, coming)
        return np.where(alive, going, coming)


def flipped(alive: BoolArray, flips: IntArray) -> BoolArray:
    """``[B, E]``: copies of ``alive [E]``, in each the edges of one row of ``flips [B, m]`` other.

    Example:
        >>> flipped(np.array([True, True, False]), np.array([[0], [2]])).tolist()
        [[False, True, False], [True, True, True]]
    """
    sets = np.repeat(alive[None], len(flips), axis=0)
    rows = np.arange(len(flips))[:, None]
    sets[rows, flips] = ~sets[rows, flips]
    return sets


def first_least(losses: FloatArray, scale: float) -> int:
    """The number of the first loss that is the least but for rounding, which must not decide."""
    return int(np.argmax(losses <= losses.min() + 1e-11 * scale))
