"""Figures of a network that is pruned while it trains."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from graphprune.search.cut_edges import CutEdges

from ..linalg.eigensolver import Solver
from ..linalg.sensitivity import measure_named
from ..linalg.weighted_graph import weighted_graph

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TrainingRecord"]


class TrainingRecord:
    """Rows of figures.

    Args:
        measured: gives the user's own figures.
        solver: of the matrix whose rotation is recorded.
        every: a row at every so many counts; ``None``: at each pruning.
    """

    def __init__(
        self, measured: Callable[[], Mapping[str, Any]], solver: Solver, every: int | None
    ) -> None:
        self.measured, self.solver, self.every = measured, solver, every
        self.rows: list[dict[str, Any]] = []
        self._running, self._since = 0.0, time.perf_counter()

    def pruned(self, count: int, edges: CutEdges) -> None:
        """What to do after a pruning."""
        if self.every is None:
            self.add(count, edges)

    def counted(self, count: int, edges: CutEdges) -> None:
        """What to do after each count."""
        if self.every is not None and count % self.every == 0:
            self.add(count, edges)

    def add(self, count: int, edges: CutEdges) -> None:
        """A row; what it takes to make it does not count as time."""
        self._running += time.perf_counter() - self._since
        row = {
            "count": count,
            "kept": int(edges.kept.sum()),
            "rotation": self._rotation(edges),
            "seconds": self._running,
        }
        self.rows.append(row | dict(self.measured()))
        self._since = time.perf_counter()

    def _rotation(self, edges: CutEdges) -> float:
        """The sum of the imaginary parts; NaN where weights are not known or too many."""
        if edges.graph.num_nodes > self.solver.dense_limit or not edges.has_weights:
            return float("nan")
        given = weighted_graph(edges.graph, edges.weights()).keep(edges.kept.numpy())
        self.solver.forget()
        return measure_named("sum").value(self.solver.solve(given, vectors=False).values)

    def to_frame(self) -> pd.DataFrame:
        """Columns count, kept, rotation, seconds, and the user's."""
        import pandas as pd

        return pd.DataFrame(self.rows)
