"""Spectral pruning: of a weighted graph, and of any masked model as a method like others."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from graphprune.errors import InputError, UnsupportedModelError
from graphprune.graph import ComputationalGraph
from graphprune.mask import EdgeMask, budget
from graphprune.methods.base import Pruner, Scorer, require_model
from graphprune.model import MaskedModel
from graphprune.scores import EdgeScores
from graphprune.task import Task

from .effects import first_order
from .laplacians import Degrees, Kind, operator
from .local import LocalSearch
from .measures import Measure, MeasureName, measure_named
from .published import WARNING, published_sweeps
from .search import Goal, Search
from .spectra import DENSE_LIMIT, Solver
from .weighing import EdgeWeights, edge_weights
from .wiring import BoolArray, Closure, Wiring, close

__all__ = ["Mode", "SpectralPruning", "SpectralScores", "feedback_dependence", "prune"]

log = logging.getLogger(__name__)

Mode = Literal["global", "local", "paper"]


def prune(
    graph: ComputationalGraph | Wiring | tuple[Any, int],
    weights: Any = None,
    kind: Kind = "out",
    *,
    goal: Goal = "damp",
    density: float = 0.8,
    mode: Mode = "global",
    measure: MeasureName | None = None,
    degrees: Degrees | None = None,
    feedback: Closure = (),
    feedback_weight: Literal["mean"] | float = "mean",
    chunk: int | None = None,
    shortlist: int | None = None,
    dense_limit: int = DENSE_LIMIT,
) -> EdgeMask:
    """Removes edges for a spectral goal.

    Args:
        graph, weights, kind, degrees, dense_limit: as for :func:`~graphprune.spectral.spectrum`.
        goal: ``"damp"`` lowers the rotation, ``"preserve"`` keeps it and removes what it does not
            need, ``"gap"`` keeps the smallest positive real part up.
        density: what is kept: an int counts edges, a float is a fraction of all.
        mode: ``"global"``: re-solved chunks, first-order short-lists, exact verification.
            ``"local"``: the closed form of each node's star (kinds ``count`` and ``both``; damping
            only). ``"paper"``: the published rule with its defect, and a warning. The last two stop
            where they find nothing more to cut and may leave more edges than asked for.
        measure: ``"sum"`` or ``"max"`` of ``|Im lambda|``; ``None``: the sum (for ``goal="gap"``
            the gap).
        feedback, feedback_weight: edges that close the graph for the spectrum only, see
            :func:`close`.
        chunk, shortlist: edges a round and candidates verified; ``None``: by size.

    Raises:
        InputError: an acyclic graph without feedback, or an undirected one, whose spectrum is real
            whatever is cut; wrong settings; a component above ``dense_limit``.
        NumericalError: a weight is NaN or infinite.

    Example:
        >>> two_rings = ComputationalGraph.from_edges(
        ...     [("a", "b"), ("b", "c"), ("c", "a"), ("a", "d"), ("d", "a")])
        >>> mask = prune(two_rings, [1.0, 1.0, 1.0, 1.0, 1.0], goal="damp", density=4)
        >>> (~mask.kept).nonzero().item() < 3  # one of the three-cycle's edges goes
        True
    """
    _known(goal, Goal, "goal")
    _known(mode, Mode, "mode")
    given = close(graph, weights, feedback=feedback, feedback_weight=feedback_weight)
    if given.graph is None:
        raise InputError("prune needs a ComputationalGraph, whose mask it gives")
    kept = budget(density, given.num_edges)
    if mode == "global":
        solver, chosen = _start(given, kind, degrees, goal, measure, dense_limit)
        search = Search(given, solver, chosen, goal, chunk=chunk, shortlist=shortlist)
        found = search.run(kept)
        log.info("spectral %s: %s", goal, search.notes())
    else:
        found = _by_stars(given, kind, goal, mode, kept)
    return EdgeMask(given.graph, torch.from_numpy(found).float())


def _known(value: object, names: Any, what: str) -> None:
    if value not in get_args(names):
        raise InputError(f"{what} must be one of {', '.join(get_args(names))}, got {value!r}")


def _start(
    given: Wiring,
    kind: Kind,
    degrees: Degrees | None,
    goal: Goal,
    measure: MeasureName | None,
    dense_limit: int,
) -> tuple[Solver, Measure]:
    """The solver and the measure; refuses graphs on which the goal says nothing."""
    if goal == "gap" and measure not in (None, "gap"):
        raise InputError(f"goal='gap' measures the gap, not {measure!r}")
    if goal != "gap" and measure == "gap":
        raise InputError("measure='gap' goes with goal='gap'")
    name = measure or ("gap" if goal == "gap" else "sum")
    solver = Solver(operator(kind, degrees), dense_limit)
    found = solver.decompose(given, vectors=True)
    if goal != "gap" and found.components.largest <= 1:
        raise InputError(
            "the graph has no cycle, so its spectrum is real whatever is cut and its imaginary "
            "parts say nothing; close it by feedback, such as feedback=[('logits', 'input')] (the "
            "sampled token feeds the embedding), or use another method"
        )
    chosen = measure_named(name, found, kind)
    if goal != "gap" and _undirected(given):
        raise InputError(
            "the graph is undirected (every edge has its reverse, of the same weight), so its "
            "spectrum is real and its imaginary parts say nothing; direct its edges, or use "
            "another method"
        )
    if goal != "gap" and chosen.value(found.values) == 0:
        log.warning("the spectrum is real already: edges go by the size of their weights")
    return solver, chosen


def _undirected(given: Wiring) -> bool:
    """Whether opposite edges weigh the same; parallel ones are added."""
    matrix = operator("adjacency", None).matrix(given)
    gap = abs(matrix - matrix.T)
    return bool(gap.max() <= 1e-12 * abs(matrix).max())


def _by_stars(given: Wiring, kind: Kind, goal: Goal, mode: Mode, kept: int) -> BoolArray:
    if goal != "damp":
        raise InputError(f"mode={mode!r} only damps; goal={goal!r} needs mode='global'")
    if kind != "count" and kind != "both":
        raise InputError(f"mode={mode!r} is defined for kinds 'count' and 'both', got {kind!r}")
    if mode == "paper":
        warnings.warn(WARNING, UserWarning, stacklevel=4)
        found = published_sweeps(given, kept, kind)
    else:
        found = LocalSearch(given, kind).run(kept)
    if int(found.sum()) > kept:
        log.warning(
            "no star turns any more: %d edges are left, %d were asked for", found.sum(), kept
        )
    return found


@dataclass(frozen=True, kw_only=True)
class _Spectral:
    laplacian: Kind = "out"
    goal: Goal = "damp"
    measure: MeasureName | None = None
    degrees: Degrees | None = None
    edge_weights: EdgeWeights | Any = "auto"
    feedback: tuple[tuple[str | int, str | int], ...] = ()
    feedback_weight: Literal["mean"] | float = "mean"
    dense_limit: int = DENSE_LIMIT

    def _checked(self) -> None:
        _known(self.goal, Goal, "goal")
        operator(self.laplacian, self.degrees)
        pairs: Sequence[Any] = self.feedback
        object.__setattr__(self, "feedback", tuple(tuple(pair) for pair in pairs))
        weight: Any = self.feedback_weight
        good = isinstance(weight, int | float) and math.isfinite(weight)
        if weight != "mean" and not good:
            raise InputError(f"feedback_weight must be 'mean' or a finite number, got {weight!r}")

    def _closed(self, model: MaskedModel, task: Task) -> Wiring:
        require_model(model)
        weights = edge_weights(model, task, self.edge_weights)
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

    The seed method on any graph; see :func:`graphprune.spectral.prune` for the settings that bear
    its names (``laplacian`` is its ``kind``).

    Args:
        density: what is kept: an int counts edges, a float is a fraction of all.
        mode: ``"global"``, ``"local"`` or ``"paper"``.
        edge_weights: see :func:`graphprune.spectral.edge_weights`.
        feedback: edges that close the graph for the spectrum only: never cut, never counted.

    Raises :class:`UnsupportedModelError` for an acyclic graph without feedback.

    Example:
        >>> SpectralPruning(goal="preserve", density=0.5).label
        "SpectralPruning(goal='preserve', density=0.5)"
    """

    density: float = 0.8
    mode: Mode = "global"
    chunk: int | None = None
    shortlist: int | None = None

    def __post_init__(self) -> None:
        self._checked()
        _known(self.mode, Mode, "mode")

    def with_size(self, size: float) -> SpectralPruning:
        """The same method that keeps ``size``: a number of edges or a fraction of them."""
        return replace(self, density=size)

    def prune(self, model: MaskedModel, task: Task) -> EdgeMask:
        """The mask; see :func:`graphprune.spectral.prune`."""
        self._refuse_acyclic(model)
        return prune(
            self._closed(model, task),
            kind=self.laplacian,
            goal=self.goal,
            density=self.density,
            mode=self.mode,
            measure=self.measure,
            degrees=self.degrees,
            chunk=self.chunk,
            shortlist=self.shortlist,
            dense_limit=self.dense_limit,
        )


@dataclass(frozen=True, kw_only=True)
class SpectralScores(_Spectral, Scorer):
    """Edges ranked by the first-order change of the goal's measure where they are removed.

    A high score stays: for ``goal="damp"`` an edge whose removal raises the rotation, for
    ``"preserve"`` one whose removal changes it much, for ``"gap"`` one whose removal closes the
    gap. ``by_search=True`` ranks by the order in which :class:`SpectralPruning` would remove all
    edges instead (slow).
    """

    by_search: bool = False

    def __post_init__(self) -> None:
        self._checked()

    def score(self, model: MaskedModel, task: Task) -> EdgeScores:
        """One score for each edge; see the class."""
        self._refuse_acyclic(model)
        given = self._closed(model, task)
        solver, chosen = _start(
            given, self.laplacian, self.degrees, self.goal, self.measure, self.dense_limit
        )
        if self.by_search:
            values = _removal_order(Search(given, solver, chosen, self.goal))
        else:
            found = solver.decompose(given, vectors=True)
            effect = first_order(solver.operator, given, found, chosen)
            values = {"damp": effect, "preserve": np.abs(effect), "gap": -effect}[self.goal]
        if self.goal != "preserve":
            values = values - values.min()  # a ranking: what goes first has the smallest size too
        return EdgeScores(model.graph, torch.from_numpy(values).float(), method=self.label)


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
