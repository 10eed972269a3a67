"""Losses of circuits over a whole task: quick ones from trials, and exact ones to decide ties."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.batch import Batch
from graphprune.metrics import Metric
from graphprune.model import Ablation, MaskedModel, Reference
from graphprune.task import Task

from .trials import Trials

__all__ = ["Judge", "Referee"]

MakeTrials = Callable[[Batch, Tensor, Reference], Trials]


def total_loss(metric: Metric, outputs: Tensor, batch: Batch, full: Tensor) -> float:
    """The sum over examples of the metric, turned so that lower is better, in float64."""
    return -metric.sign * float(metric(outputs.double(), batch, full).sum())


@dataclass(frozen=True, eq=False)
class _Part:
    batch: Batch
    reference: Reference
    full: Tensor


def _parts(model: MaskedModel, task: Task, ablation: Ablation, size: int | None) -> list[_Part]:
    found = []
    for batch in task.batches(size):
        reference = model.reference(batch, ablation)
        found.append(_Part(batch, reference, reference.full.double()))
    return found


class Judge:
    """Mean losses while edges are cut, from one :class:`Trials` a batch."""

    def __init__(
        self,
        model: MaskedModel,
        task: Task,
        metric: Metric,
        ablation: Ablation,
        batch_size: int | None,
        make: MakeTrials,
    ) -> None:
        self.metric, self.count, self._make = metric, len(task), make
        self._parts = _parts(model, task, ablation, batch_size)
        self._trials: list[Trials] = []

    def start(self, kept: Tensor) -> None:
        """Takes ``kept [E]`` bool as the circuit."""
        self._trials = []  # the old ones must not stand beside the new ones
        for part in self._parts:
            self._trials.append(self._make(part.batch, kept, part.reference))

    @property
    def kept(self) -> Tensor:
        """``[E]`` bool: the circuit."""
        return self._trials[0].kept

    @property
    def overhead(self) -> float:
        """What a call costs beside its rows, in rows."""
        return max(trials.overhead for trials in self._trials)

    @property
    def most(self) -> int:
        """Rows in one call at most."""
        return min(trials.most for trials in self._trials)

    @property
    def spans(self) -> bool:
        """Whether a call may name edges of several readers."""
        return all(trials.spans for trials in self._trials)

    def loss(self) -> float:
        """Of the circuit."""
        total = 0.0
        for part, trials in zip(self._parts, self._trials, strict=True):
            outputs = trials.outputs()
            total += total_loss(self.metric, outputs, part.batch, part.full)
        return total / self.count

    def without(self, edges: Tensor, *, together: bool) -> list[float]:
        """Losses with the first, first two, ... of ``edges`` cut too, or with each alone."""
        totals = [0.0] * len(edges)
        for part, trials in zip(self._parts, self._trials, strict=True):
            for row, outputs in enumerate(trials.without(edges, together=together)):
                totals[row] += total_loss(self.metric, outputs, part.batch, part.full)
        return [total / self.count for total in totals]

    def cut(self, row: int) -> None:
        """Makes row ``row`` of the last call the circuit."""
        for trials in self._trials:
            trials.cut(row)

    def drop(self, edges: Tensor) -> None:
        """Cuts edges into nodes that lead nowhere."""
        for trials in self._trials:
            trials.drop(edges)


class Referee:
    """Losses of whole circuits, each by single runs of fixed shape: a function of the mask alone.

    Args:
        model: the one that decides; in float64 where there is such a copy.
    """

    def __init__(
        self,
        model: MaskedModel,
        task: Task,
        metric: Metric,
        ablation: Ablation,
        batch_size: int | None,
    ) -> None:
        self._model, self._task, self._metric = model, task, metric
        self._ablation, self._size = ablation, batch_size
        self._parts: list[_Part] = []
        self._known: dict[bytes, float] = {}

    def loss(self, kept: Tensor) -> float:
        """Mean loss of the circuit ``kept [E]`` bool."""
        key = kept.numpy().tobytes()
        if key not in self._known:
            while len(self._known) > 1:
                del self._known[next(iter(self._known))]
            self._known[key] = self._run(kept)
        return self._known[key]

    @torch.no_grad()
    def _run(self, kept: Tensor) -> float:
        if not self._parts:
            self._parts = _parts(self._model, self._task, self._ablation, self._size)
        total = 0.0
        for part in self._parts:
            outputs = self._model.run(part.batch, kept.float(), part.reference)
            total += total_loss(self._metric, outputs, part.batch, part.full)
        return total / len(self._task)
