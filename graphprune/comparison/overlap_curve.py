"""Overlap of two rankings at matched densities: the strongest edges of each, as many of both.

A curve over sizes says more than one cut: two tasks may share their strongest edges and nothing
beyond, or only agree on what is left when almost everything is kept. Edges are the top of each
ranking without pruning of dead ends, so that both circuits have exactly the size asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphprune.comparison.edge_groups import make_strata
from graphprune.comparison.overlap_nulls import NullName, OverlapNull, overlap_null, require_nulls
from graphprune.core.mask import budget, require_same_graph
from graphprune.core.scores import EdgeScores, Ranking
from graphprune.core.sizes import MIB_SIZES
from graphprune.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class OverlapPoint:
    """The overlap of the ``kept`` strongest edges of either ranking, and what chance gives.

    Example:
        >>> point = gp.matched_overlap(scores, scores, [6]).points[0]
        >>> point.kept, point.shared, point.jaccard
        (6, 6, 1.0)
    """

    size: float
    kept: int
    shared: int
    nulls: Mapping[NullName, OverlapNull]

    @property
    def jaccard(self) -> float:
        """Shared edges over the union; 1 where nothing is kept."""
        return self.shared / (2 * self.kept - self.shared) if self.kept else 1.0

    @property
    def share(self) -> float:
        """Shared edges over kept edges; 1 where nothing is kept."""
        return self.shared / self.kept if self.kept else 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class OverlapCurve:
    """Overlap at every size; ``strata`` are what chance ``"composition"`` keeps.

    Example:
        >>> curve = gp.matched_overlap(
        ...     scores, gp.spectral.Magnitude().score(model, task), [6, 12]
        ... )
        >>> [(point.kept, point.shared) for point in curve.points]
        [(6, 4), (12, 7)]
    """

    points: tuple[OverlapPoint, ...]
    by: Ranking
    names: tuple[str, str]
    strata: tuple[str, ...]

    def to_frame(self) -> pd.DataFrame:
        """A row for each size."""
        import pandas as pd

        return pd.DataFrame(self._rows())

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        from graphprune.util.plain import plain

        return {
            "names": list(self.names),
            "by": self.by,
            "strata": list(self.strata),
            "points": [plain(row) for row in self._rows()],
        }

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {
                "size": point.size,
                "kept": point.kept,
                "shared": point.shared,
                "share": point.share,
                "jaccard": point.jaccard,
            }
            | {
                f"{name}_{key}": value
                for name, null in point.nulls.items()
                for key, value in null.to_dict().items()
                if key != "p_adjusted"
            }
            for point in self.points
        ]

    def plot(self, path: Any = None, ax: Any = None) -> Any:
        """Draws the overlap over the size, with chance and its 95 % band; gives the axes."""
        from graphprune.drawing.comparisons import plot_overlap

        return plot_overlap(self, path=path, ax=ax)


def matched_overlap(
    first: EdgeScores,
    second: EdgeScores,
    sizes: Sequence[float] | None = None,
    *,
    by: Ranking = "abs",
    nulls: Sequence[NullName] = ("uniform", "composition"),
    strata: Sequence[str] | None = None,
    names: tuple[str, str] | None = None,
) -> OverlapCurve:
    """The overlap of the top edges of two rankings at each size.

    Args:
        first, second: scores over one graph.
        sizes: fractions of all edges or numbers of edges (int); ``None`` takes MIB's ten.
        by: ranks by magnitude or by sign.
        nulls: kinds of chance, as for :func:`compare_circuits`.
        strata: what chance ``"composition"`` keeps.
        names: for figures; ``None`` takes the scores' methods.

    Raises :class:`GraphMismatchError` for scores of different graphs.

    Example:
        >>> import torch
        >>> from graphprune import ComputationalGraph
        >>> graph = ComputationalGraph.from_edges(
        ...     [("in", "a"), ("in", "b"), ("a", "out"), ("b", "out")])
        >>> one = EdgeScores(graph, torch.tensor([4.0, 1.0, -3.0, 2.0]))
        >>> two = EdgeScores(graph, torch.tensor([3.0, 2.0, 4.0, 1.0]))
        >>> curve = matched_overlap(one, two, [1, 2, 3])
        >>> [(point.kept, point.shared, point.nulls["uniform"].mean) for point in curve.points]
        [(1, 0, 0.25), (2, 2, 1.0), (3, 2, 2.25)]
    """
    require_same_graph(first.graph, second.graph, "scores")
    require_nulls(nulls)
    total = first.graph.num_edges
    requested = tuple(MIB_SIZES if sizes is None else sizes)
    if not requested:
        raise InputError("sizes must be at least one")
    classes = make_strata(first.graph, strata)
    points = []
    for size in requested:
        count = budget(size, total)
        one, two = first.top(count, by=by), second.top(count, by=by)
        points.append(
            OverlapPoint(
                size=size / total if isinstance(size, int) else float(size),
                kept=count,
                shared=int((one.kept & two.kept).sum()),
                nulls={null: overlap_null(one, two, null, strata=classes) for null in nulls},
            )
        )
    named = names or (first.method or "first", second.method or "second")
    return OverlapCurve(points=tuple(points), by=by, names=named, strata=classes.axes)
