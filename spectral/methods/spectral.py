"""Spectral pruning of any masked model, as a method like others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from graphprune.core.mask import as_size
from graphprune.core.method import Pruner, Scorer, ablation_of
from graphprune.core.model import MaskedModel, require_model
from graphprune.core.result import Result
from graphprune.core.scores import EdgeScores
from graphprune.core.task import Task
from graphprune.errors import InputError, UnsupportedModelError

from ..linalg.effects import first_order
from ..linalg.laplacians import Degrees, Laplacian
from ..linalg.measures import MeasureName
from ..linalg.spectra import DENSE_LIMIT
from ..linalg.wiring import Wiring, close, finite_number
from ..search.global_search import Search
from ..search.prune import SIZE, Mode, Variant, prune, require_consistent, start
from ..search.trials import Goal
from .weighing import EdgeWeights, edge_weights

__all__ = ["SpectralPruning", "SpectralScores", "feedback_dependence"]


@dataclass(frozen=True, kw_only=True)
class _Spectral:
    laplacian: Laplacian = "out"
    goal: Goal = "damp"
    measure: MeasureName | None = None
    degrees: Degrees | None = None
    edge_weights: EdgeWeights | Any = "auto"
    feedback: tuple[tuple[str | int, str | int], ...] = ()
    feedback_weight: Literal["mean"] | float = "mean"
    dense_limit: int = DENSE_LIMIT

    def __post_init__(self) -> None:
        require_consistent(self.goal, self.laplacian, self.degrees, self.measure)
        pairs: Sequence[Any] = self.feedback
        object.__setattr__(self, "feedback", tuple(tuple(pair) for pair in pairs))
        if self.feedback_weight != "mean":
            finite_number(self.feedback_weight, "feedback_weight")

    def _closed(self, model: MaskedModel, task: Task) -> Wiring:
        require_model(model)
        weights = edge_weights(model, task, self.edge_weights, ablation=ablation_of(self))
        try:
            return close(
                model.graph, weights, feedback=self.feedback, feedback_weight=self.feedback_weight
            )
        except InputError as error:
            raise InputError(f"{type(self).__name__}: {error}") from None

    def _refuse_acyclic(self, model: MaskedModel) -> None:
        if self.goal != "gap" and model.graph.is_acyclic and not self.feedback:
            raise UnsupportedModelError(
                f"{type(self).__name__} needs cycles: this model's graph is acyclic, so its "
                "spectrum is real and imaginary parts say nothing. Close it for the spectrum by "
                "feedback=[('logits', 'input')] (generation feeds the sampled token back)"
            )


@dataclass(frozen=True, kw_only=True)
class SpectralPruning(_Spectral, Pruner):
    """Edges removed by what they do to the Laplacian's imaginary parts.

    The seed method on any graph; see :func:`graphprune.spectral.prune` for settings of its names.

    Args:
        size: what is kept: an int counts edges, a float is a fraction of all; ``None`` is not said:
            the size that :meth:`fit` is given, else 0.8.
        mode: ``"global"`` search, or ``"local"``: each node's star in closed form.
        variant: ``"default"``, or ``"paper"``: the published rule with its defect.
        effort: work beyond the rounds of the global search, a factor.
        edge_weights: see :func:`graphprune.spectral.edge_weights`.
        feedback: edges that close the graph for the spectrum only: never cut, never counted.

    Raises :class:`UnsupportedModelError` for an acyclic graph without feedback.

    Example:
        >>> SpectralPruning(goal="preserve", size=0.5).label
        "SpectralPruning(goal='preserve', size=0.5)"
    """

    size: int | float | None = None
    mode: Mode = "global"
    variant: Variant = "default"
    chunk: int | None = None
    shortlist: int | None = None
    effort: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_consistent(
            self.goal, self.laplacian, self.degrees, self.measure, self.mode, self.variant
        )
        if self.size is not None:
            object.__setattr__(self, "size", as_size(self.size))

    @property
    def chosen_size(self) -> int | float:
        """What it keeps: the size that was said, else 0.8 of the edges."""
        return SIZE if self.size is None else self.size

    def resolved(self) -> Self:
        """The same method with its ablation and its size said."""
        return replace(super().resolved(), size=self.chosen_size)

    def fit(self, model: MaskedModel, task: Task, size: int | float | None = None) -> Result:
        """The mask, with its notes; see :func:`graphprune.spectral.prune`."""
        if size is not None:
            return self.sized(size).fit(model, task)
        self._refuse_acyclic(model)
        mask = prune(
            self._closed(model, task),
            laplacian=self.laplacian,
            goal=self.goal,
            size=self.chosen_size,
            mode=self.mode,
            variant=self.variant,
            measure=self.measure,
            degrees=self.degrees,
            chunk=self.chunk,
            shortlist=self.shortlist,
            effort=self.effort,
            dense_limit=self.dense_limit,
        )
        return Result(mask, None, self.chosen_ablation, notes=mask.notes)


@dataclass(frozen=True, kw_only=True)
class SpectralScores(_Spectral, Scorer):
    """Edges ranked by the first-order change of the goal's measure where they are removed.

    A high score stays: for ``goal="damp"`` an edge whose removal raises the rotation, for
    ``"preserve"`` one whose removal changes it much, for ``"gap"`` one whose removal closes the
    gap. ``by_search=True`` ranks by the order in which :class:`SpectralPruning` would remove all
    edges instead (slow).
    """

    by_search: bool = False

    def score(self, model: MaskedModel, task: Task) -> EdgeScores:
        """One score for each edge; see the class."""
        self._refuse_acyclic(model)
        given = self._closed(model, task)
        solver, chosen, found = start(
            given, self.laplacian, self.degrees, self.goal, self.measure, self.dense_limit
        )
        if self.by_search:
            if not found.complete:
                raise InputError(
                    f"by_search=True solves every component whole, and one has more than "
                    f"{self.dense_limit} nodes"
                )
            values = _removal_order(Search(given, solver, chosen, self.goal, effort=0))
        else:
            effect = first_order(solver.operator, given, found, chosen)
            values = {"damp": effect, "preserve": np.abs(effect), "gap": -effect}[self.goal]
        if self.goal != "preserve":
            values = values - values.min()  # a ranking: what goes first has the smallest size too
        return EdgeScores.computed(model.graph, torch.from_numpy(values).float(), method=self.label)


def _removal_order(search: Search) -> Any:
    """``[E]``: 1 for the edge removed first, E for the last; those of a chunk share a place."""
    place = np.zeros(search.given.num_edges)
    before, gone = search.alive.copy(), 0

    def note(left: int, value: float) -> None:
        nonlocal before, gone
        cut = before & ~search.alive
        gone += int(cut.sum())
        place[cut] = gone
        before = search.alive.copy()

    search.report = note
    search.run(0)
    return place


def feedback_dependence(
    model: MaskedModel,
    task: Task,
    method: SpectralScores,
    weights: Sequence[float] = (0.1, 1.0, 10.0),
) -> Tensor:
    """How much scores depend on the feedback's weight.

    Args:
        weights: multiples of the edges' mean weight.

    Returns:
        ``[k, k]``: Spearman rank correlations of the scores at each pair of weights.
    """
    from scipy.stats import spearmanr

    mean = float(edge_weights(model, task, method.edge_weights).abs().mean())
    rows = [
        replace(method, feedback_weight=mean * weight).score(model, task).values.numpy()
        for weight in weights
    ]
    found = [[float(spearmanr(a, b).statistic) for b in rows] for a in rows]
    return torch.tensor(found, dtype=torch.float64)
