"""How many passes a method plans, and what a pass takes on a case; see ``graphprune.core.passes``.

The unit of tables, :func:`pass_seconds`, is one plain pass: EAP on one batch, a clean and a
corrupted forward run and one backward run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache

import torch

from graphprune.capabilities import trials_of
from graphprune.core.ablation import DEFAULT_ABLATION, AblationLike, resolve_ablation
from graphprune.core.batch import Batch
from graphprune.core.contents import fingerprint
from graphprune.core.method import Method, objective
from graphprune.core.model import MaskedModel, Reference
from graphprune.core.passes import Passes, PlansPasses
from graphprune.core.registry import method_class
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
from graphprune.methods.gradient import GradientScorer, integration_points
from graphprune.methods.optimiser import MaskOptimiser
from graphprune.search.order import edge_order, readers
from graphprune.search.refine import BATCHES, TRIALS_A_ROUND
from graphprune.search.warm_start import WarmStart
from graphprune.util.quantities import best_seconds

from .cases import Case

__all__ = ["PassSeconds", "Passes", "masks_a_step", "pass_seconds", "planned_passes"]

_CALIBRATION_TRIALS = 8  # a round, at most
_TIMED_CUTS = 5  # calls of trials that are timed, spread over the edges


def planned_passes(method: object, model: MaskedModel, task: Task) -> Passes:
    """The passes of ``method.fit(model, task)``, at most, with those of the methods inside it.

    A batch counts by its size over that of the task's batches. Equal methods inside one are run,
    and counted, once. What cannot be known before is counted as if no search ended sooner: every
    edge that ACDC might try at one threshold, every round of a local search.
    """
    if isinstance(method, Method):
        method = method.resolved()  # members say what they inherit, so that equal ones are equal
    total = Passes()
    parts = {fingerprint(part): part for part in _with_methods_inside(method)}
    for part in parts.values():
        if isinstance(part, PlansPasses):
            total += part.planned_passes(model, task)
        elif isinstance(part, Method):
            total += _own_passes(part, model, task)
        else:
            total += Passes(unknown=(type(part).__name__,))
    return total


def _with_methods_inside(method: object) -> Iterator[object]:
    yield method
    if not isinstance(method, Method) or isinstance(method, PlansPasses):
        return
    for entry in fields(method):
        value = getattr(method, entry.name)
        if entry.name == "warm_start":
            value = value.scores if isinstance(value, WarmStart) else value
            value = method_class(value)() if isinstance(value, str) else value
        for part in value if isinstance(value, tuple | list) else [value]:
            if isinstance(part, Method):
                yield from _with_methods_inside(part)


def _own_passes(method: Method, model: MaskedModel, task: Task) -> Passes:
    batches = len(task) / min(task.batch_size, len(task))  # of the task's size, whatever its own
    edges = model.graph.num_edges
    if isinstance(method, GradientScorer):
        gates, _ = method.interpolation(model)
        return Passes(plain=batches * (1 if gates is None else len(gates)))
    if isinstance(method, IntegratedMaskGradient):
        places, _ = integration_points(method.steps, method.points_at)
        return Passes(masked=batches * len(places))
    if isinstance(method, MaskOptimiser):
        return _optimiser_passes(method, model, task, batches)
    if isinstance(method, CalibratedRanking):
        rounds = len(method.sizes) * method.rounds
        share = method.gradient_examples
        share = min(1.0, share / len(task)) if isinstance(share, int) else share
        return Passes(
            masked=rounds * share * batches, trials=rounds * _CALIBRATION_TRIALS * batches
        )
    if isinstance(method, ACDC | ExactPatching):
        return Passes(cuts=edges * batches)
    if isinstance(method, InformationFlow):
        return Passes(trials=batches)
    if isinstance(method, Random | ParallelEnsemble | HybridEnsemble | SequentialEnsemble):
        return Passes()
    return Passes(unknown=(type(method).__name__,))


def _optimiser_passes(
    method: MaskOptimiser, model: MaskedModel, task: Task, batches: float
) -> Passes:
    """Steps, and the local search at the end, which is on a few batches."""
    size = task.batch_size if method.batch_size is None else method.batch_size
    share = min(size, len(task)) / min(task.batch_size, len(task))
    steps = method.steps * masks_a_step(method) * share
    rounds = 0 if method.is_minimal else method.rounds(model)
    searched = rounds * min(BATCHES * share, batches)
    return Passes(masked=steps + searched, trials=TRIALS_A_ROUND * searched)


def masks_a_step(method: MaskOptimiser) -> int:
    """How many masks a mask optimiser runs each batch under in one step."""
    if isinstance(method, UGS) or (isinstance(method, EdgePruning) and method.gates == "hard"):
        return method.samples
    return method.budgets if isinstance(method, MatryoshkaPruning) else 1


@dataclass(frozen=True)
class PassSeconds:
    """Seconds of a plain pass, a pass under a mask, a trial and a cut, of one batch.

    ``cut`` is 0 where it was not measured.
    """

    plain: float
    masked: float
    trial: float
    cut: float = 0.0

    @classmethod
    def measured(
        cls, model: MaskedModel, task: Task, ablation: AblationLike, *, cuts: bool = False
    ) -> PassSeconds:
        """Measured on the task's first batch, each once after a warm-up; cuts if asked for."""
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
        cut = _cut_seconds(model, batch, reference) if cuts else 0.0
        if not task.metric.differentiable:  # no method has a gradient of it
            return cls(forward, forward, forward, cut)
        both_ways = best_seconds(masked, device, 1)
        flat = task.metric.flat_at_full  # a plain pass is refused; it takes about as long
        return cls(both_ways if flat else best_seconds(plain, device, 1), both_ways, forward, cut)

    def of(self, passes: Passes) -> float:
        """Seconds of so many."""
        counts = (passes.plain, passes.masked, passes.trials, passes.cuts)
        times = (self.plain, self.masked, self.trial, self.cut)
        return sum(count * each for count, each in zip(counts, times, strict=True))


@torch.no_grad()
def _cut_seconds(model: MaskedModel, batch: Batch, reference: Reference) -> float:
    """Seconds of one edge tried, at readers spread over the graph's order, as searches do it."""
    order = edge_order(model.graph, "reverse_topological")
    trials = trials_of(model, batch, torch.ones(len(order), dtype=torch.bool), reference, order)
    reader = readers(model.graph)[order]
    seconds = edges = 0.0
    for call in range(_TIMED_CUTS):
        at = order[reader == reader[(2 * call + 1) * len(order) // (2 * _TIMED_CUTS)]]
        tried = at[: max(1, trials.most)]
        rows = torch.eye(len(tried), dtype=torch.bool)

        def one_call(tried: torch.Tensor = tried, rows: torch.Tensor = rows) -> None:
            trials.without(tried, rows)

        seconds += best_seconds(one_call, reference.full.device, 1)
        edges += len(tried)
    return seconds / edges


@lru_cache(maxsize=1)
def pass_seconds(case: Case) -> float:
    """Seconds of a plain pass on a case's training examples, measured once for its jobs here.

    Where the metric has no gradient at the full model, those of a pass under a mask; where it has
    none at all, of a forward run.
    """
    model, task = case.model, case.train
    if not task.metric.differentiable or task.metric.flat_at_full:
        return PassSeconds.measured(model, task, DEFAULT_ABLATION).plain
    one_batch = task.take(min(task.batch_size, len(task)))
    device = model.reference(next(one_batch.batches())).full.device
    return best_seconds(lambda: EAP().score(model, one_batch), device)
