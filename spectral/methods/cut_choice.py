"""How many edges dynamic pruning keeps, which it cuts and which it grows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from graphprune.errors import InputError
from graphprune.search.cut_edges import CutEdges
from graphprune.util.checks import require_one_of

from ..linalg.eigensolver import Solver
from ..linalg.sensitivity import measure_named
from ..linalg.weighted_graph import (
    BoolArray,
    Degrees,
    FloatArray,
    Laplacian,
    operator,
    require_known,
    weighted_graph,
)
from ..search.global_search import GlobalSearch
from ..search.set_search import Goal
from ..search.star_search import StarSearch
from .spectral import SpectralPruning

__all__ = ["CutChoice", "Schedule", "criterion_of", "scheduled"]

Schedule = Literal["linear", "cubic", "geometric"]
Criterion = Literal["spectral", "local", "magnitude", "gradient", "random"]
_GOALS = ("damp", "preserve", "gap")


def scheduled(schedule: Schedule, share: float, end: float) -> float:
    """The share of edges kept after a ``share`` of the schedule, from 1 down to ``end``.

    Example:
        >>> [scheduled(s, 0.5, 0.25) for s in ("linear", "cubic", "geometric")]
        [0.625, 0.34375, 0.5]
    """
    require_known(schedule, Schedule, "schedule")
    share = min(max(share, 0.0), 1.0)
    if schedule == "linear":
        return 1.0 - (1.0 - end) * share
    if schedule == "cubic":
        return end + (1.0 - end) * (1.0 - share) ** 3
    return float(end**share)


def criterion_of(method: str | SpectralPruning, goal: Goal) -> tuple[str, Goal]:
    """The criterion and the goal that ``method`` names."""
    if isinstance(method, SpectralPruning):
        return ("local" if method.mode == "local" else "spectral"), method.goal
    if method in _GOALS:
        return "spectral", method  # type: ignore[return-value]
    known = (*_GOALS, "local", "magnitude", "gradient", "random", "spectral")
    require_one_of(method, known, "method")
    return method, goal


@dataclass(frozen=True)
class CutChoice:
    """A criterion.

    Args:
        criterion: its name.
        goal, laplacian, degrees, chunk, effort, dense_limit: of the spectral ones, as for
            :func:`~graphprune.spectral.prune`.
        random: draws for ``"random"``.
    """

    criterion: str
    goal: Goal
    laplacian: Laplacian
    degrees: Degrees | None
    chunk: int | None
    effort: float
    dense_limit: int
    random: np.random.Generator

    def __post_init__(self) -> None:
        require_known(self.criterion, Criterion, "criterion")
        if self.criterion == "local" and self.goal != "damp":
            raise InputError(f"criterion='local' only damps, got goal={self.goal!r}")

    def cut(self, edges: CutEdges, kept: Tensor, wanted: int) -> BoolArray:
        """``[E]`` bool: ``wanted`` of the edges ``kept [E]`` bool (``"local"``: maybe more)."""
        before = kept.numpy()
        if self.criterion in ("magnitude", "gradient", "random"):
            order = np.argsort(-np.where(before, self._sizes(edges), -1.0), kind="stable")
            result: BoolArray = np.zeros_like(before)
            result[order[:wanted]] = True
            return np.asarray(result & before)
        given = weighted_graph(edges.graph, edges.weights()).keep(before)
        form = operator(self.laplacian, self.degrees)
        if self.criterion == "local":
            return StarSearch(given, form).run(wanted)
        solver = Solver(form, self.dense_limit)
        name: Any = "gap" if self.goal == "gap" else "sum"
        measure = measure_named(name, solver.solve(given, vectors=True), self.laplacian)
        chunk = self.chunk or max(1, int(before.sum()) - wanted)
        search = GlobalSearch(given, solver, measure, self.goal, chunk=chunk, effort=self.effort)
        return search.run(wanted)

    def _sizes(self, edges: CutEdges) -> FloatArray:
        if self.criterion == "random":
            return self.random.random(edges.graph.num_edges)
        values = edges.effects() if self.criterion == "gradient" else edges.weights()
        sizes: FloatArray = edges.graph.per_edge(values.double().abs()).numpy()
        return sizes

    def grow(self, edges: CutEdges, cut: Tensor, count: int) -> Tensor:
        """``count`` of the edges numbered ``cut``: of the largest gradients, or any."""
        if self.criterion == "random":
            return torch.from_numpy(self.random.permutation(cut.numpy())[:count])
        slope = edges.graph.per_edge(edges.gradients().abs())[cut]
        return cut[slope.argsort(descending=True, stable=True)[:count]]
