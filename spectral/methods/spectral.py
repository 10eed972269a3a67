"""Spectral pruning and scores of any masked model, from the weights of its edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from torch import Tensor

from graphprune.capabilities import PlacedMessages, TiedEdges, WeightedEdges, require
from graphprune.core.ablation import AblationLike
from graphprune.core.mask import as_size, budget
from graphprune.core.method import Pruner, Scorer, ablation_of
from graphprune.core.model import MaskedModel, require_model
from graphprune.core.passes import Passes
from graphprune.core.result import Result
from graphprune.core.scores import EdgeScores
from graphprune.core.task import Task
from graphprune.errors import InputError, UnsupportedModelError
from graphprune.methods import EAP
from graphprune.util.progress import track

from ..linalg.eigensolver import DENSE_LIMIT
from ..linalg.sensitivity import MeasureName, entry_gradients, toggle_effects
from ..linalg.weighted_graph import Degrees, Laplacian, WeightedGraph, close, finite_number
from ..search.global_search import GlobalSearch
from ..search.prune import SIZE, Mode, Variant, prune, require_consistent, start
from ..search.set_search import Goal, removal_costs

__all__ = [
    "EdgeWeights", "SpectralPruning", "SpectralScores", "edge_weights", "feedback_dependence",
    "message_norms",
]  # fmt: skip

EdgeWeights = Literal["auto", "equal", "module", "message_norm", "attribution"]


def edge_weights(
    model: MaskedModel,
    task: Task,
    how: EdgeWeights | Any = "auto",
    *,
    ablation: AblationLike | None = None,
) -> Tensor:
    """``[E]`` float64: the weights of a model's edges, or what flows along them.

    Of tied edges ``[M]``, the weight of each direction, except for attributions.

    ``"module"``: the signed weights of the model's own edges; ``"message_norm"``: see
    :func:`message_norms`; ``"attribution"``: sizes of EAP's scores on the task, under
    ``ablation``; ``"auto"``: the first where the model has weights, else the second; ``"equal"``: 1
    each. Numbers ``[E]`` are taken as they are.

    Example:
        >>> edge_weights(model, task)[:4]
        tensor([1.9370, 3.1260, 2.1979, 1.9678], dtype=torch.float64)
        >>> edge_weights(model, task, "attribution")[:2]
        tensor([1.1683, 0.9617], dtype=torch.float64)
    """
    if not isinstance(how, str):
        values = torch.as_tensor(how, dtype=torch.float64)
        if values.shape not in ((model.graph.num_edges,), (model.graph.untied.num_edges,)):
            raise InputError(
                f"edge_weights: expected {model.graph.num_edges} numbers, got {list(values.shape)}"
            )
        return values
    if how == "equal":
        return torch.ones(model.graph.num_edges, dtype=torch.float64)
    directed = model.untied() if isinstance(model, TiedEdges) else model
    if how in ("auto", "module") and isinstance(directed, WeightedEdges):
        own = directed.edge_weights()
        if own is not None:
            return own.detach().double().cpu()
    if how == "module":
        raise UnsupportedModelError(
            "edge_weights='module' needs a model whose edges have weights of their own, and those "
            f"of {type(model).__name__} have none; use 'message_norm' or 'attribution'"
        )
    if how == "attribution":
        return EAP(ablation=ablation).score(model, task).values.abs().double()
    if how in ("auto", "message_norm"):
        return message_norms(directed, task)
    raise InputError(
        "edge_weights must be 'auto', 'equal', 'module', 'message_norm', 'attribution' or numbers, "
        f"got {how!r}"
    )


def weight_passes(model: MaskedModel, task: Task, how: EdgeWeights | Any) -> Passes:
    """Passes of :func:`edge_weights`: a trial of each batch for norms, EAP's passes, or none.

    Example:
        >>> weight_passes(model, task, "attribution").to_dict()
        {'passes': 1.0, 'trials': 0}
    """
    batches = len(task) / min(task.batch_size, len(task))
    if not isinstance(how, str):
        return Passes()
    if how == "attribution":
        return Passes(plain=batches)
    if how == "auto" and isinstance(model, WeightedEdges) and model.edge_weights() is not None:
        return Passes()
    return Passes() if how in ("equal", "module") else Passes(trials=batches)


@torch.no_grad()
def message_norms(model: MaskedModel, task: Task) -> Tensor:
    """``[E]`` float64: the norm of each edge's clean message, averaged over real positions.

    Example:
        >>> message_norms(model, task)[:4]
        tensor([1.9370, 3.1260, 2.1979, 1.9678], dtype=torch.float64)
    """
    inside = require(model, PlacedMessages, "edge_weights='message_norm'")
    total = torch.zeros(model.graph.num_edges, dtype=torch.float64)
    count = 0.0
    for batch in track(task.batches(), "message norms", task.num_batches()):
        seen = 0.0
        for group in inside.messages(batch):
            weight, values = group.weight.double(), group.values
            if values.stride(1) == 0:  # all examples share their messages
                values = values[:, :1]
            norms = torch.linalg.vector_norm(values, dim=-1, dtype=torch.float64)
            mean = (norms * weight).flatten(1).sum(1).cpu()
            seen = float(weight.sum())
            total[group.edges.flatten()] += mean.expand(group.edges.shape).flatten()
        count += seen
    return total / max(count, 1.0)


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

    def planned_passes(self, model: MaskedModel, task: Task) -> Passes:
        """Those of the edges' weights; the spectrum is the graph's and runs no model."""
        return weight_passes(model, task, self.edge_weights)

    def _closed(self, model: MaskedModel, task: Task) -> WeightedGraph:
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

    Raises :class:`UnsupportedModelError` for an acyclic graph without feedback, unless it is to be
    damped and has no more edges of weight than ``size``: then these are the circuit.

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
        given = self._closed(model, task)
        heavy = int(np.count_nonzero(given.sizes))
        if self.goal != "damp" or heavy > budget(self.chosen_size, given.num_edges):
            self._refuse_acyclic(model)
        mask = prune(
            given,
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

    Example:
        >>> from torch_geometric.data import Data
        >>> from torch_geometric.nn import GCNConv
        >>> one_way = Data(x=data.x, edge_index=data.edge_index[:, :12])
        >>> directed = gp.wrap(GCNConv(4, 2), data=one_way)
        >>> SpectralScores(goal="damp").score(directed, task).top(3)
        EdgeMask(3 of 12 edges, 25.0000%)
    """

    by_search: bool = False

    def score(self, model: MaskedModel, task: Task) -> EdgeScores:
        """One score for each edge; see the class."""
        self._refuse_acyclic(model)
        given = self._closed(model, task)
        solver, chosen, spectrum = start(
            given, self.laplacian, self.degrees, self.goal, self.measure, self.dense_limit
        )
        if self.by_search:
            if not spectrum.complete:
                raise InputError(
                    f"by_search=True solves every component whole, and one has more than "
                    f"{self.dense_limit} nodes"
                )
            search = GlobalSearch(given, solver, chosen, self.goal, effort=0)
            search.run(0)
            # 1 for the edge removed first, E for the last; those of a chunk share a place.
            values, rank = np.zeros(given.num_edges), 0
            for cut in search.cuts:
                rank += len(cut)
                values[cut] = rank
        else:
            k = entry_gradients(given, spectrum, chosen)
            effects = given.per_edge(toggle_effects(solver.operator, given, k))
            values = removal_costs(self.goal, effects)
        if self.goal != "preserve":
            values = values - values.min()  # a ranking: what goes first has the smallest size too
        return EdgeScores.computed(model.graph, torch.from_numpy(values).float(), method=self.label)


def feedback_dependence(
    model: MaskedModel,
    task: Task,
    method: SpectralScores,
    weights: Sequence[float] = (0.1, 1.0, 10.0),
) -> Tensor:
    """Rank correlations of scores under different weights of the feedback.

    Args:
        weights: multiples of the edges' mean weight.

    Returns:
        ``[k, k]``: Spearman rank correlations of the scores at each pair of weights.

    Example:
        >>> closed = gp.SpectralScores(feedback=[("logits", "input")])
        >>> feedback_dependence(lm, prompts.take(2), closed).diagonal()
        tensor([1.0000, 1.0000, 1.0000], dtype=torch.float64)
    """
    from scipy.stats import spearmanr

    mean = float(edge_weights(model, task, method.edge_weights).abs().mean())
    rows = [
        replace(method, feedback_weight=mean * weight).score(model, task).values.numpy()
        for weight in weights
    ]
    table = [[float(cast("Any", spearmanr(a, b)).statistic) for b in rows] for a in rows]
    return torch.tensor(table, dtype=torch.float64)
