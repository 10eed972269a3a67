"""How many passes a method plans, and what a pass takes on a case.

A *pass* is one forward and one backward run of one batch: a plain one that gives gradients for all
edges, or one under a mask. Forward runs under a mask alone, as searches and judgements need them,
are *trials*.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch

from graphprune.core.ablation import AblationLike, resolve_ablation
from graphprune.core.method import Method, objective
from graphprune.core.model import MaskedModel
from graphprune.core.task import Task
from graphprune.methods import (
    ACDC,
    EAP,
    UGS,
    CalibratedRanking,
    EdgePruning,
    ExactPatching,
    HybridEnsemble,
    InformationFlow,
    IntegratedMaskGradient,
    MatryoshkaPruning,
    ParallelEnsemble,
    Random,
    SequentialEnsemble,
)
from graphprune.methods.gradient import GradientScorer
from graphprune.methods.optimiser import MaskOptimiser
from graphprune.util.quantities import best_seconds

__all__ = ["PassSeconds", "Passes", "planned_passes"]

_TRIALS_A_ROUND = 8  # of calibration, at most


@dataclass(frozen=True)
class Passes:
    """Numbers of plain passes, passes under a mask and trials, of whole batches.

    ``unknown`` names methods whose number is not known; they are not counted.
    """

    plain: float = 0
    masked: float = 0
    trials: float = 0
    unknown: tuple[str, ...] = ()

    def __add__(self, other: Passes) -> Passes:
        return Passes(
            self.plain + other.plain,
            self.masked + other.masked,
            self.trials + other.trials,
            tuple(dict.fromkeys([*self.unknown, *other.unknown])),
        )

    @property
    def total(self) -> float:
        """Passes of both kinds."""
        return self.plain + self.masked


def planned_passes(method: object, model: MaskedModel, task: Task) -> Passes:
    """The passes of ``method.fit(model, task)``, at most, with those of the methods inside it.

    A batch counts by its size over that of the task's batches.
    """
    if not isinstance(method, Method):
        return Passes(unknown=(type(method).__name__,))
    total = _own_passes(method, model, task)
    for member in _methods_inside(method):
        total += planned_passes(member, model, task)
    return total


def _methods_inside(method: Method) -> Iterator[Method]:
    for entry in fields(method):
        value = getattr(method, entry.name)
        parts = value if isinstance(value, tuple | list) else [value]
        yield from (part for part in parts if isinstance(part, Method))


def _own_passes(method: Method, model: MaskedModel, task: Task) -> Passes:
    batches = len(task) / min(task.batch_size, len(task))  # of the task's size, whatever its own
    edges = model.graph.num_edges
    if isinstance(method, GradientScorer):
        gates, _ = method.interpolation(model)
        return Passes(plain=batches * (1 if gates is None else len(gates)))
    if isinstance(method, IntegratedMaskGradient):
        return Passes(masked=batches * method.steps)
    if isinstance(method, MaskOptimiser):
        size = task.batch_size if method.batch_size is None else method.batch_size
        share = min(size, len(task)) / min(task.batch_size, len(task))
        return Passes(masked=method.steps * masks_a_step(method) * share)
    if isinstance(method, CalibratedRanking):
        rounds = len(method.sizes) * method.rounds
        share = method.gradient_examples
        share = min(1.0, share / len(task)) if isinstance(share, int) else share
        return Passes(masked=rounds * share * batches, trials=rounds * _TRIALS_A_ROUND * batches)
    if isinstance(method, ACDC | ExactPatching):
        return Passes(trials=edges * batches)
    if isinstance(method, InformationFlow):
        return Passes(trials=batches)
    if isinstance(method, Random | ParallelEnsemble | HybridEnsemble | SequentialEnsemble):
        return Passes()
    return Passes(unknown=(type(method).__name__,))


def masks_a_step(method: MaskOptimiser) -> int:
    """How many masks a mask optimiser runs each batch under in one step."""
    if isinstance(method, UGS) or (isinstance(method, EdgePruning) and method.gates == "hard"):
        return method.samples
    return method.budgets if isinstance(method, MatryoshkaPruning) else 1


@dataclass(frozen=True)
class PassSeconds:
    """Seconds of a plain pass, a pass under a mask and a trial, of one batch."""

    plain: float
    masked: float
    trial: float

    @classmethod
    def measured(cls, model: MaskedModel, task: Task, ablation: AblationLike) -> PassSeconds:
        """Measured on the task's first batch, each once after a warm-up."""
        one_batch = task.take(min(task.batch_size, len(task)))
        batch = next(one_batch.batches())
        reference = model.reference(batch, resolve_ablation(model, task, ablation))
        edges = model.graph.num_edges

        def masked() -> None:
            mask = torch.full((edges,), 0.5, requires_grad=True)
            with torch.enable_grad():
                outputs = model.run(batch, mask, reference)
                objective(task, batch, reference)(outputs).sum().backward()

        def trial() -> None:
            with torch.no_grad():
                model.run(batch, torch.full((edges,), 0.5), reference)

        def plain() -> None:
            EAP(ablation=ablation).score(model, one_batch)

        device = reference.full.device
        forward = best_seconds(trial, device, 1)
        if not task.metric.differentiable:  # no method has a gradient of it
            return cls(forward, forward, forward)
        both_ways = best_seconds(masked, device, 1)
        flat = task.metric.flat_at_full  # a plain pass is refused; it takes about as long
        return cls(both_ways if flat else best_seconds(plain, device, 1), both_ways, forward)

    def of(self, passes: Passes) -> float:
        """Seconds of so many."""
        counts = (passes.plain, passes.masked, passes.trials)
        times = (self.plain, self.masked, self.trial)
        return sum(count * each for count, each in zip(counts, times, strict=True))
