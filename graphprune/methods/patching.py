"""Scorers that run the masked model: exact patching, and the gradient integrated along the mask."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from graphprune.capabilities import LocalEffects, trials_of
from graphprune.core.batch import Batch
from graphprune.core.graph import ComputationalGraph
from graphprune.core.method import Scorer, mean, objective
from graphprune.core.model import MaskedModel, Reference, gradient_by_mask, require_model
from graphprune.core.sanity_checks import equal_but_for_rounding
from graphprune.core.scores import EdgeScores
from graphprune.core.task import Task
from graphprune.core.trials import EdgeTrials
from graphprune.search.order import edge_order, readers
from graphprune.util.checks import at_least
from graphprune.util.progress import track

from .gradient import Placement, integration_points

__all__ = ["ExactPatching", "IntegratedMaskGradient"]

_MOST_VALUES = 1 << 22  # of masks and outputs in one call


@dataclass(frozen=True, kw_only=True)
class ExactPatching(Scorer):
    """Each edge's true effect: the metric of the full model minus that without this one edge.

    One run an edge, for small graphs; where the model can, of what the edge changes alone, or one
    run for all edges that change no example in common (graph networks, in which an edge changes
    what lies within as many hops as there are layers).
    ``candidates``: edges that ride together on the batch axis at most; a model may take fewer.

    Example:
        >>> scores = ExactPatching().score(model, task)
        >>> scores.top(3).edges()
        ['1->0', '0->4', '9->8']
    """

    candidates: int = 64

    def score(self, model: MaskedModel, task: Task) -> EdgeScores:
        """Mean effects over the task's examples."""
        at_least(self.candidates, 1, "candidates")
        require_model(model)
        graph = model.graph
        order = edge_order(graph, "reverse_topological")
        total = torch.zeros(graph.num_edges, dtype=torch.float64)
        for batch, reference in self._each(model, task):
            assert reference is not None
            metric, full = task.metric, reference.full
            effects = self._by_reach(model, task, batch, reference)
            if effects is not None:
                total += effects
                continue
            every = torch.ones(len(order), dtype=torch.bool)
            with torch.no_grad():
                trials = trials_of(model, batch, every, reference, order)
                start = metric(trials.outputs(), batch, full).double()
                for edges in track(self._calls(graph, order, trials), "edges"):
                    outputs = trials.without(edges, torch.eye(len(edges), dtype=torch.bool))
                    for edge, out in zip(edges.tolist(), outputs, strict=True):
                        change = start - metric(out, batch, full).double()
                        total[edge] += metric.sign * change.sum().cpu()
        return EdgeScores.computed(graph, mean(total, len(task), self.label), method=self.label)

    @torch.no_grad()
    def _by_reach(
        self, model: MaskedModel, task: Task, batch: Batch, reference: Reference
    ) -> Tensor | None:
        """``[E]``: summed effects from runs without many edges; ``None`` where single edges go.

        The examples that none of the edges should change are looked at in every run.
        """
        reach = model.reach(batch, reference) if isinstance(model, LocalEffects) else None
        edges = model.graph.num_edges
        if reach is None or 2 * reach.num_packs > edges:
            return None
        full = model.run(batch, torch.ones(edges), reference)
        start = task.metric(full, batch, reference.full).double().cpu()
        total = torch.zeros(edges, dtype=torch.float64)
        rows = max(1, min(self.candidates, _MOST_VALUES // (edges + full.numel())))
        packs = reach.packs()
        for first in track(range(0, reach.num_packs, rows), "edges that share no example"):
            some = list(islice(packs, rows))
            if not first:  # one edge alone: where packs hold all examples no other would be seen
                some.insert(0, some[0].first())
            masks = torch.ones(len(some), edges)
            for row, pack in zip(masks, some, strict=True):
                row[torch.from_numpy(pack.edges)] = 0.0
            for number, out in enumerate(model.run(batch, masks, reference)):
                pack = some[number]
                examples, cause = torch.from_numpy(pack.examples), torch.from_numpy(pack.cause)
                same = torch.ones(batch.size, dtype=torch.bool)
                same[examples] = False
                same = same.to(out.device)
                if not equal_but_for_rounding(out[same], full[same]):
                    return None  # something else than edges joins the nodes
                if first or number:
                    change = start - task.metric(out, batch, reference.full).double().cpu()
                    total.index_add_(0, cause, task.metric.sign * change[examples])
        return total

    def _calls(self, graph: ComputationalGraph, order: Tensor, trials: EdgeTrials) -> list[Tensor]:
        """The edges of each call: as many as may ride, of one reader where the trials ask it."""
        runs = [order]
        if not trials.spans:
            counts = torch.unique_consecutive(readers(graph)[order], return_counts=True)[1]
            runs = list(order.split(counts.tolist()))
        most = max(1, min(self.candidates, trials.most))
        return [edges for run in runs for edges in run.split(most)]


@dataclass(frozen=True, kw_only=True)
class IntegratedMaskGradient(Scorer):
    """The mask gradient integrated along the straight line from all edges ablated to all kept.

    By the fundamental theorem the scores sum to metric(full) - metric(ablated), up to the error of
    the rule.

    Example:
        >>> scores = IntegratedMaskGradient(steps=5).score(model, task)
        >>> scores.top(3).edges()
        ['1->0', '0->4', '9->8']
    """

    steps: int = 5
    points_at: Placement = "midpoint"

    def score(self, model: MaskedModel, task: Task) -> EdgeScores:
        """Mean scores over the task's examples."""
        places, weights = integration_points(self.steps, self.points_at)
        edges = model.graph.num_edges
        total = torch.zeros(edges, dtype=torch.float64)
        for batch, reference in self._each(model, task):
            assert reference is not None
            measured = objective(task, batch, reference)
            for place, weight in zip(places.tolist(), weights.tolist(), strict=True):
                mask = torch.full((edges,), place, requires_grad=True)
                with torch.enable_grad():
                    out = measured(model.run(batch, mask, reference)).sum()
                total += weight * gradient_by_mask(out, mask).double()
        values = mean(total, len(task), self.label)
        return EdgeScores.computed(model.graph, values, method=self.label)
