"""Pruning where a component is too large for all its eigenvalues.

Damping first looks for feedback arcs (:func:`prune_all_cycles`), which need no eigenvalue: if they
are no more than the edges to remove they go, no directed cycle is left, and the spectrum is real.
That is a proof.

Otherwise a few rounds follow the leading modes (:mod:`..linalg.arpack`): from one sparse solve with
left and right vectors comes the first-order effect of every edge on their sum (or largest) of
imaginary parts. A round of damping cuts those that lower it, and, where they run out, the heaviest
feedback arcs; a round that raised what it should lower is taken back and made of arcs alone. What
is known in the end is about the modes that were found, with their residuals: a mode that no start
reached may turn faster, and modes below the leading ones are not looked at.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphprune.errors import InputError
from graphprune.util.progress import bar

from ..linalg.eigensolver import ComplexArray, Solver, Spectrum, component_sizes
from ..linalg.sensitivity import Measure, entry_gradients, toggle_effects
from ..linalg.weighted_graph import BoolArray, FloatArray, IntArray, WeightedGraph
from .feedback_arcs import without_feedback_arcs, without_weakest
from .set_search import Goal

__all__ = ["PROOF", "LargeSearch", "prune_all_cycles"]

PROOF = "no directed cycle is left, so the spectrum is real: no eigenvalue was needed"
ROUNDS = 4


def prune_all_cycles(graph: WeightedGraph, count: int) -> BoolArray | None:
    """``[E]`` bool: ``count`` edges without a directed cycle, the weakest others gone too.

    ``None`` where the feedback arcs that were found are more than the edges to remove. Self-loops
    are no cycle here: they stand on the diagonal.
    """
    if len(graph.returning):
        return None  # both directions of a tied edge are a cycle
    edges = int(graph.present[: graph.num_edges].sum())
    acyclic = without_feedback_arcs(graph, edges - count)
    if int(acyclic.sum()) < count or component_sizes(graph.keep(acyclic))[:1].sum() > 1:
        return None
    return without_weakest(graph, acyclic, count)


@dataclass(eq=False)
class LargeSearch:
    """Removal of edges by leading modes and feedback arcs.

    Args:
        graph, solver, measure, goal: what is pruned, solved, measured and wanted; the goal is
            ``"damp"`` or ``"preserve"``.
        pairs: how many of the largest imaginary parts are followed.
    """

    graph: WeightedGraph
    solver: Solver
    measure: Measure
    goal: Goal
    pairs: int

    def __post_init__(self) -> None:
        if self.goal == "gap":
            raise InputError("the gap needs all eigenvalues: a component is above dense_limit")
        self.sizes = self.graph.sizes
        self.kept = self.graph.present[: self.graph.num_edges].copy()
        self.first = self.spectrum = self.solver.solve(self.graph, vectors=True)
        self.rounds = self.rejected = 0

    def run(self, count: int) -> BoolArray:
        """``[E]`` bool: ``count`` edges are left."""
        for doubt in self.spectrum.doubts:
            warnings.warn(doubt, UserWarning, stacklevel=4)
        total = int(self.kept.sum()) - count
        if total <= 0:
            return self.kept
        arcs = np.zeros(len(self.kept), dtype=bool)
        if self.goal == "damp" and not len(self.graph.returning):
            arcs = self.kept & ~without_feedback_arcs(self.graph, total)
        with bar(f"spectral {self.goal}", total) as shown:
            for number in range(ROUNDS):
                left = int(self.kept.sum()) - count
                removals = left // (ROUNDS - number)
                if removals > 0:
                    self._round(removals, arcs)
                    shown.update(removals)
        return self.kept

    def _round(self, removals: int, arcs: BoolArray) -> None:
        before, value = self.kept.copy(), self._value(self.spectrum)
        self._remove(before, self._order(arcs)[:removals])
        if self.goal == "damp" and self._value(self.spectrum) > value * (1 + 1e-6):
            self.rejected += 1
            free = np.flatnonzero(before)
            order = free[np.lexsort((-self.sizes[free], ~arcs[free]))]
            self._remove(before, order[:removals])
        self.rounds += 1

    def _order(self, arcs: BoolArray) -> IntArray:
        """The edges that are left, the best to cut first."""
        graph, free = self.graph.keep(self.kept), np.flatnonzero(self.kept)
        k = entry_gradients(graph, self.spectrum, self.measure)
        effect = graph.per_edge(toggle_effects(self.solver.operator, graph, k))[free]
        # As exact as the sparse solver's residuals; smaller effects are none.
        noise = 1e-6 * float(np.abs(effect).max(initial=0.0))
        effect = np.where(np.abs(effect) <= noise, 0.0, effect)
        if self.goal == "preserve":
            return free[np.lexsort((self.sizes[free], np.abs(effect)))]
        return free[np.lexsort((-self.sizes[free], ~arcs[free], np.minimum(effect, 0.0)))]

    def _remove(self, before: BoolArray, edges: IntArray) -> None:
        self.kept = before.copy()
        self.kept[edges] = False
        self.solver.forget()
        self.spectrum = self.solver.solve(self.graph.keep(self.kept), vectors=True)

    def _value(self, spectrum: Spectrum) -> float:
        return self.measure.value(self._followed(spectrum))

    def _followed(self, spectrum: Spectrum) -> ComplexArray:
        """As many of the largest imaginary parts as are followed, however many were found."""
        turning = spectrum.values[spectrum.values.imag > 0]
        order = np.argsort(-turning.imag, kind="stable")
        return turning[order[: self.pairs]]

    def notes(self) -> dict[str, Any]:
        """Plain values about the run; ``leading`` are eigenvalues before and after."""
        return {
            "start": self._value(self.first),
            "end": self._value(self.spectrum),
            "rounds": self.rounds,
            "rejected": self.rejected,
            "by": "leading modes and feedback arcs",
            "leading": (self._followed(self.first), self._followed(self.spectrum)),
            "residual": (_residual(self.first), _residual(self.spectrum)),
            "solved": "leading eigenvalues of the largest components only, a lower bound; "
            + "; ".join(self.spectrum.doubts or ("after: all eigenvalues",)),
        }


def _residual(spectrum: Spectrum) -> float:
    """The largest residual of the sparse parts, by the norm; 0 where all are dense."""
    sizes: list[FloatArray] = [b.residual for b in spectrum.blocks if b.residual is not None]
    return float(max((size.max(initial=0.0) for size in sizes), default=0.0))
