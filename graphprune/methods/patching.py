"""Scorers that run the masked model: exact patching, and the gradient integrated along the mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from graphprune.model import MaskedModel
from graphprune.progress import track
from graphprune.scores import EdgeScores
from graphprune.task import Task

from .base import Scorer, at_least, mean, objective
from .gradient import Points, integration_points

__all__ = ["ExactPatching", "IntegratedMaskGradient"]


@dataclass(frozen=True, kw_only=True)
class ExactPatching(Scorer):
    """Each edge's true effect: the metric of the full model minus that without this one edge.

    One masked run an edge: for small graphs. ``candidates`` edges ride together on the batch axis.
    """

    candidates: int = 16

    def score(self, model: MaskedModel, task: Task) -> EdgeScores:
        """Mean effects over the task's examples."""
        at_least(self.candidates, 1, "candidates")
        edges = model.graph.num_edges
        total = torch.zeros(edges, dtype=torch.float64)
        for batch, reference in self._each(model, task):
            assert reference is not None
            full = reference.full
            sign = task.metric.sign
            with torch.no_grad():
                start = sign * task.metric(full, batch, full).double()
                chunks = range(0, edges, self.candidates)
                for first in track(chunks, "edges"):
                    stop = min(first + self.candidates, edges)
                    masks = torch.ones(stop - first, edges)
                    masks[torch.arange(stop - first), torch.arange(first, stop)] = 0.0
                    outputs = model.run(batch, masks, reference)
                    for row, out in enumerate(outputs):
                        value = sign * task.metric(out, batch, full).double()
                        total[first + row] += (start - value).sum().cpu()
        return EdgeScores(model.graph, mean(total, len(task), self.label), method=self.label)


@dataclass(frozen=True, kw_only=True)
class IntegratedMaskGradient(Scorer):
    """The mask gradient integrated along the straight line from all edges ablated to all kept.

    By the fundamental theorem the scores sum to metric(full) - metric(ablated), up to the error of
    the rule.
    """

    steps: int = 5
    points_at: Points = "midpoint"

    def score(self, model: MaskedModel, task: Task) -> EdgeScores:
        """Mean scores over the task's examples."""
        places, weights = integration_points(self.steps, self.points_at)
        edges = model.graph.num_edges
        total = torch.zeros(edges, dtype=torch.float64)
        for batch, reference in self._each(model, task):
            assert reference is not None
            value = objective(task, batch, reference)
            for place, weight in zip(places.tolist(), weights.tolist(), strict=True):
                mask = torch.full((edges,), place, requires_grad=True)
                with torch.enable_grad():
                    out = value(model.run(batch, mask, reference)).sum()
                (gradient,) = torch.autograd.grad(out, mask)
                total += weight * gradient.double()
        return EdgeScores(model.graph, mean(total, len(task), self.label), method=self.label)
