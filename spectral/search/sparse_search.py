"""Pruning where a component is too large for all its eigenvalues.

Damping first looks for feedback arcs (:func:`without_cycles`), which need no eigenvalue: if they
are no more than the edges to remove they go, no directed cycle is left, and the spectrum is real.
That is a proof.

Otherwise a few rounds follow the leading modes (:mod:`.arpack`): from one sparse
solve with left and right vectors the first-order effect of every edge on their sum (or largest) of
imaginary parts. A round of damping cuts those that lower it, and, where they run out, the heaviest
feedback arcs; a round that raised what it should lower is taken back and made of arcs alone. What
is known in the end is about the modes that were found, with their residuals: a mode that no start
reached may turn faster, and modes below the leading ones are not looked at.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from graphprune.errors import InputError
from graphprune.util.progress import bar

from ..linalg.components import components
from ..linalg.effects import first_order
from ..linalg.measures import Measure
from ..linalg.spectra import Decomposition, Solver
from ..linalg.wiring import BoolArray, FloatArray, IntArray, Wiring
from .restoring import acyclic
from .trials import Goal

__all__ = ["PROOF", "LargeSearch", "without_cycles"]

PROOF = "no directed cycle is left, so the spectrum is real: no eigenvalue was needed"


def without_cycles(given: Wiring, kept: int) -> BoolArray | None:
    """``[E]`` bool: ``kept`` edges without a directed cycle, the weakest others gone too.

    ``None`` where the feedback arcs that were found are more than the edges to remove. Self-loops
    are no cycle here: they stand on the diagonal.
    """
    alive = given.present[: given.num_edges].copy()
    still = acyclic(given, alive, np.zeros_like(alive), int(alive.sum()) - kept)
    ends = given.keep(still).present
    shape = (given.num_nodes, given.num_nodes)
    pattern = csr_array(
        (np.ones(int(ends.sum())), (given.sources[ends], given.targets[ends])), shape
    )
    if int(still.sum()) < kept or components(pattern).largest > 1:
        return None
    free = np.flatnonzero(still)
    size = np.abs(given.weights[free])
    still[free[np.argsort(size, kind="stable")[: len(free) - kept]]] = False
    return still


@dataclass(eq=False)
class LargeSearch:
    """Removal of edges by leading modes and feedback arcs.

    Args:
        given, solver, measure, goal: as for :class:`.global_search.Search`; the solver
            has ``leading`` set, and the goal is ``"damp"`` or ``"preserve"``.
        rounds: sparse solves, at least.
        locked: ``[E]`` edges that must stay.
    """

    given: Wiring
    solver: Solver
    measure: Measure
    goal: Goal
    rounds: int = 4
    locked: BoolArray | None = None
    trace: list[tuple[int, float]] = field(default_factory=list)
    rejected: int = 0

    def __post_init__(self) -> None:
        if self.goal == "gap":
            raise InputError("the gap needs all eigenvalues: a component is above dense_limit")
        edges = self.given.num_edges
        self.alive = self.given.present[:edges].copy()
        if self.locked is None:
            self.locked = np.zeros(edges, dtype=bool)
        self.now = self.solver.decompose(self.given, vectors=True)
        self.first = self.now
        self.trace.append((int(self.alive.sum()), self._value(self.now)))

    def run(self, kept: int) -> BoolArray:
        """``[E]`` bool: ``kept`` edges are left (or only locked ones)."""
        assert self.locked is not None
        for doubt in self.now.doubts:
            warnings.warn(doubt, UserWarning, stacklevel=4)
        total = int(self.alive.sum()) - kept
        if total <= 0:
            return self.alive
        arcs = np.zeros(len(self.alive), dtype=bool)
        if self.goal == "damp":
            still = acyclic(self.given, self.alive, self.locked, total)
            arcs = self.alive & ~still
        with bar(f"spectral {self.goal}", total) as shown:
            for number in range(self.rounds):
                left = int(self.alive.sum()) - kept
                count = left // (self.rounds - number)
                cut = self._chosen(count, arcs)
                if not len(cut):
                    break
                self._cut(cut, arcs, count)
                shown.update(count)
        return self.alive

    def _chosen(self, count: int, arcs: BoolArray) -> IntArray:
        """The edges of a round, the best first."""
        assert self.locked is not None
        free = np.flatnonzero(self.alive & ~self.locked)
        effect = first_order(
            self.solver.operator, self.given.keep(self.alive), self.now, self.measure
        )[free]
        size = np.abs(self.given.weights[free])
        noise = 1e-6 * float(np.abs(effect).max(initial=0.0))
        if self.goal == "preserve":
            harm = np.where(np.abs(effect) <= noise, 0.0, np.abs(effect))
            return free[np.lexsort((size, harm))[:count]]
        lower = np.where(effect < -noise, effect, 0.0)
        return free[np.lexsort((-size, ~arcs[free], lower))[:count]]

    def _cut(self, edges: IntArray, arcs: BoolArray, count: int) -> None:
        before, value = self.alive.copy(), self._value(self.now)
        self._take(before, edges)
        if self.goal == "damp" and self._value(self.now) > value * (1 + 1e-6):
            assert self.locked is not None
            self.rejected += 1
            size = np.abs(self.given.weights[: self.given.num_edges])
            free = np.flatnonzero(before & ~self.locked)
            self._take(before, free[np.lexsort((-size[free], ~arcs[free]))[:count]])
        self.trace.append((int(self.alive.sum()), self._value(self.now)))

    def _take(self, before: BoolArray, edges: IntArray) -> None:
        self.alive = before.copy()
        self.alive[edges] = False
        self.solver.forget()
        self.now = self.solver.decompose(self.given.keep(self.alive), vectors=True)

    def _value(self, found: Decomposition) -> float:
        return self.measure.value(self._followed(found))

    def _followed(self, found: Decomposition) -> Any:
        """As many of the largest imaginary parts as are followed, whatever was found of them."""
        assert self.solver.leading is not None
        turning = found.values[found.values.imag > 0]
        order = np.argsort(-turning.imag, kind="stable")
        return turning[order[: max(1, self.solver.leading // 2)]]

    def notes(self) -> dict[str, Any]:
        """Plain values about the run; ``leading`` are eigenvalues before and after."""
        return {
            "start": self.trace[0][1],
            "end": self.trace[-1][1],
            "rounds": len(self.trace) - 1,
            "rejected": self.rejected,
            "by": "leading modes and feedback arcs",
            "leading": (self._followed(self.first), self._followed(self.now)),
            "residual": (_residual(self.first), _residual(self.now)),
            "solved": "leading eigenvalues of the largest components only, a lower bound; "
            + "; ".join(self.now.doubts or ("after: all eigenvalues",)),
        }


def _residual(found: Decomposition) -> float:
    """The largest residual of the sparse parts, by the norm; 0 where all are dense."""
    sizes: list[FloatArray] = [part.residual for part in found.parts if part.residual is not None]
    return float(max((size.max(initial=0.0) for size in sizes), default=0.0))
