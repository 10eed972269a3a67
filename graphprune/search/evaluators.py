"""Losses of circuits over a whole task: quick ones from trials, and exact ones to decide ties."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.capabilities import LowPrecision, require
from graphprune.core.batch import Batch
from graphprune.core.metrics import Metric
from graphprune.core.model import Ablation, MaskedModel, Reference
from graphprune.core.sanity_checks import require_effect
from graphprune.core.task import Task
from graphprune.core.trials import EdgeTrials
from graphprune.precision import Precision, PrecisionPolicy

__all__ = [
    "ExactEvaluator",
    "LossEvaluator",
    "MakeTrials",
    "Measurement",
    "MixedPrecisionEvaluator",
    "Recheck",
]

log = logging.getLogger(__name__)

MakeTrials = Callable[[MaskedModel, Batch, Tensor, Reference], EdgeTrials]


@dataclass(frozen=True, eq=False)
class _PreparedBatch:
    """A batch, and the full model's outputs in float64, which ``metric`` is fixed to."""

    batch: Batch
    reference: Reference
    full: Tensor
    metric: Metric

    def total(self, outputs: Tensor) -> float:
        """The sum over examples of the metric, turned so that lower is better, in float64."""
        return -self.metric.sign * float(self.metric(outputs.double(), self.batch, self.full).sum())


@dataclass(frozen=True, eq=False)
class Measurement:
    """What a loss is: minus the mean of ``metric`` over ``task`` under ``ablation``.

    (The mean itself where lower is better.) ``batch_size``: ``None`` takes the task's.
    """

    task: Task
    metric: Metric
    ablation: Ablation
    batch_size: int | None

    def prepared(self, model: MaskedModel) -> list[_PreparedBatch]:
        """Every batch with the model's clean and ablated values."""
        batches = []
        for batch in self.task.batches(self.batch_size):
            reference = model.reference(batch, self.ablation)
            full = reference.full.double()
            batches.append(_PreparedBatch(batch, reference, full, self.metric.fixed(full)))
        pairs = ((b.batch, b.reference) for b in batches)
        require_effect(model, pairs, f"task {self.task.name!r}")
        return batches


class LossEvaluator:
    """Mean losses while edges are cut, from one :class:`EdgeTrials` a batch."""

    def __init__(self, model: MaskedModel, measured: Measurement, make: MakeTrials) -> None:
        self.measured, self.count = measured, len(measured.task)
        self._make = make
        self._trials: list[EdgeTrials] = []
        self._use(model)

    def _use(self, model: MaskedModel) -> None:
        self._model = model
        self._batches = self.measured.prepared(model)

    def start(self, kept: Tensor) -> None:
        """Takes ``kept [E]`` bool as the circuit."""
        self._trials = []  # the old ones must not stand beside the new ones
        for part in self._batches:
            self._trials.append(self._make(self._model, part.batch, kept, part.reference))

    def raise_precision(self, node: int) -> bool:
        """Prepares for cuts of edges into ``node``; true if the circuit's loss is another now."""
        return False

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
        for part, trials in zip(self._batches, self._trials, strict=True):
            total += part.total(trials.outputs())
        return total / self.count

    def without(self, edges: Tensor, cuts: Tensor) -> list[float]:
        """Losses with those of ``edges [n]`` cut too that each row of ``cuts [C, n]`` names."""
        totals = [0.0] * len(cuts)
        for part, trials in zip(self._batches, self._trials, strict=True):
            for row, outputs in enumerate(trials.without(edges, cuts)):
                totals[row] += part.total(outputs)
        return [total / self.count for total in totals]

    def cut(self, row: int) -> None:
        """Makes row ``row`` of the last call the circuit."""
        for trials in self._trials:
            trials.cut(row)

    def drop(self, edges: Tensor) -> None:
        """Cuts edges into nodes that lead nowhere."""
        for trials in self._trials:
            trials.drop(edges)


@dataclass(eq=False)
class Recheck:
    """Exact decisions near a threshold: within ``band``, or a ``factor`` of it.

    ``count``: decisions made so far.
    """

    exact: ExactEvaluator
    band: float
    factor: float = 1.0
    count: int = 0

    def concerns(self, value: float, tau: float) -> bool:
        """Whether ``value`` is too near ``tau`` to be trusted."""
        ends = tau / self.factor, tau * self.factor
        return abs(value - tau) <= self.band or min(ends) <= value <= max(ends)

    def rise(self, kept: Tensor, edge: int, seen: float) -> float:
        """The rise of the loss when ``edge`` is cut; widens the band if ``seen`` was far off."""
        less = kept.clone()
        less[edge] = False
        rise = self.exact.loss(less) - self.exact.loss(kept)
        self.count += 1
        if abs(rise - seen) > 0.5 * self.band:
            self.band = 4.0 * abs(rise - seen)
            log.info("noise %.2g at edge %d: band now %.2g", rise - seen, edge, self.band)
        return rise


class MixedPrecisionEvaluator(LossEvaluator):
    """An evaluator in low precision that raises the node whose edges are being tried.

    Args:
        policy: the precisions otherwise.
        raised: kinds of nodes that are raised to float32 while edges into them are tried, each
            with the nodes of these kinds that it is wired to. Losses, the outputs they compare
            with among them, are those of the model so raised.
        others: as a :class:`LossEvaluator` takes them; ``model`` is in low precision.
    """

    def __init__(
        self,
        model: MaskedModel,
        measured: Measurement,
        make: MakeTrials,
        policy: PrecisionPolicy,
        raised: Sequence[str],
    ) -> None:
        super().__init__(model, measured, make)
        self._policy, self._now = policy, frozenset[str]()
        nodes = model.graph.nodes
        self._raised = {i: {n.name} for i, n in enumerate(nodes) if n.kind in raised}
        for pair in model.graph.fixed_edge_index.T.tolist():
            for one, other in (pair, pair[::-1]):
                if one in self._raised and other in self._raised:
                    self._raised[one].add(nodes[other].name)

    @property
    def spans(self) -> bool:
        """No: another reader may mean another model."""
        return False

    def raise_precision(self, node: int) -> bool:
        """Raises what belongs to ``node``, and nothing else."""
        wanted = frozenset(self._raised.get(node, ()))
        if wanted == self._now:
            return False
        kept = self.kept.clone()
        self._trials = []
        names: dict[str, Precision] = dict.fromkeys(sorted(wanted), "fp32")
        low = require(self._model, LowPrecision, "raised precision")
        self._use(low.at_precision(self._policy.with_nodes(names)))
        self._now = wanted
        self.start(kept)
        return True


class ExactEvaluator:
    """Losses of whole circuits, each by single runs of fixed shape: a function of the mask alone.

    Args:
        model: the one that decides; in float64 where there is such a copy.
        measured: what its losses are.
    """

    def __init__(self, model: MaskedModel, measured: Measurement) -> None:
        self._model, self._measured = model, measured
        self._batches: list[_PreparedBatch] = []
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
        if not self._batches:
            self._batches = self._measured.prepared(self._model)
        total = 0.0
        for part in self._batches:
            total += part.total(self._model.run(part.batch, kept.float(), part.reference))
        return total / len(self._measured.task)
