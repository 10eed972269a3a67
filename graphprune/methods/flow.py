"""Scores that need no metric: information flow routes, and chance."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from graphprune.capabilities import PlacedMessages, require
from graphprune.core.method import Scorer, mean
from graphprune.core.model import MaskedModel, require_model
from graphprune.core.scores import EdgeScores
from graphprune.core.task import Task

__all__ = ["InformationFlow", "Random"]


@dataclass(frozen=True, kw_only=True)
class InformationFlow(Scorer):
    """Information flow routes (Ferrando & Voita 2024): how much of its reader a message makes up.

    Proximity ``max(0, |x|_1 - |x - y_u|_1)`` of message y_u to all that is read, x, normalised over
    u at each position; then the mean over real positions and over examples. Forward passes only.

    Example:
        >>> InformationFlow().score(lm, prompts).top(2).edges()
        ['input->a0.h0<q>', 'input->a0.h1<q>']
    """

    @property
    def needs(self) -> tuple[type, ...]:
        """Messages at every place."""
        return (PlacedMessages,)

    def score(self, model: MaskedModel, task: Task) -> EdgeScores:
        """Mean shares over the task's examples, each in [0, 1]."""
        require_model(model)
        inside = require(model, PlacedMessages, self.label)
        total = torch.zeros(model.graph.num_edges, dtype=torch.float64)
        for batch, _ in self._each(model, task, reference=False):
            for place in inside.messages(batch):
                x = place.total.double()
                whole = x.abs().sum(-1)
                share = torch.stack(
                    [(whole - (x - y.double()).abs().sum(-1)).clamp(min=0) for y in place.values]
                )
                share = share / share.sum(0, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)
                weight = place.weight.double()
                for_example = (share * weight).sum(-1) / weight.sum(-1).clamp(min=1)
                values = for_example.sum(-1).cpu()
                total[place.edges.reshape(-1)] += values.repeat(place.edges.shape[0])
        values = mean(total, len(task), self.label)
        return EdgeScores.computed(model.graph, values, method=self.label)


@dataclass(frozen=True, kw_only=True)
class Random(Scorer):
    """Scores drawn from N(0, 1) by ``seed`` (``None``: 0): the baseline every method must beat.

    Example:
        >>> scores = Random(seed=1).score(model, task)
        >>> scores.top(3).edges()
        ['0->5', '8->7', '8->2']
    """

    seed: int | None = None

    def score(self, model: MaskedModel, task: Task) -> EdgeScores:
        """Random scores; the task is not looked at."""
        generator = torch.Generator().manual_seed(self.chosen_seed)
        values = torch.randn(model.graph.num_edges, generator=generator)
        return EdgeScores(model.graph, values, method=self.label)
