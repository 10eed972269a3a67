"""Calibrated rankings: a sequential ensemble whose second part swaps edges until circuits fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Self, cast

import torch
from torch import Tensor

from graphprune.core.ablation import resolve_ablation
from graphprune.core.batch import Batch
from graphprune.core.mask import EdgeMask, budget
from graphprune.core.method import Method, Scorer, objective, ranked
from graphprune.core.model import MaskedModel, Reference, gradient_by_mask, require_model
from graphprune.core.result import Result
from graphprune.core.sanity_checks import MetricRange
from graphprune.core.scores import EdgeScores
from graphprune.core.sizes import MIB_SIZES
from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.search.minibatches import MiniBatches
from graphprune.search.nested_circuits import NestedCircuit, nested_circuits
from graphprune.selection.combine import magnitude_ranks, require_informative
from graphprune.selection.selectors import without_dead_ends
from graphprune.util.checks import at_least

from .gradient import EAPIG
from .members import (
    AroundScorer,
    Member,
    as_member,
    describe,
    inherit,
    member_scores,
    require_served,
)

__all__ = ["CalibratedRanking"]

_PASSES = 100  # each example is seen about as often: references are worth keeping


@dataclass(frozen=True)
class CalibratedRanking(AroundScorer, Scorer):
    """A ranking whose circuits of several sizes have the model's own metric, neither less nor more.

    A scorer's ranking is cut at each of ``sizes``, the largest first; where the circuit's
    faithfulness f = (m(circuit) - m(ablated)) / (m(model) - m(ablated)) is not 1, few edges are
    swapped within the next larger circuit: those whose mask gradients close the gap, as measured
    (:mod:`graphprune.search.nested_circuits`). That is what CMD counts, and few swaps
    leave most of the scorer's order as it was.

    The result ranks edges by magnitude, all scores positive: signs of effects are not in it.

    Args:
        scorer: a scorer, scores, a registered name, or ``{"name": ..., settings}``.
        sizes: fractions of all edges or counts (int); between two of them edges stand as the scorer
            has them. Default: MIB's below 1.
        tolerance: a gap from 1 that is small enough; with a few dozen prompts the error of
            sampling them is larger.
        rounds: mask gradients at each size at most. A trial of a circuit costs about a third of a
            gradient, and there are at most eight a round.
        gradient_examples: how many examples (int) or which share of them a mask gradient is of, in
            whole batches, others each time. Circuits are measured on all examples in any case.
        seed: of the batches' members (``None``: 0), and given to a scorer that says none.
        cache: bytes that cached clean and ablated passes may take; ``None``: a quarter of the free
            memory; 0: none. It changes the time, never the result.
        ablation, batch_size: the scorer's too, where that says none.

    Example:
        >>> CalibratedRanking({"name": "eap-ig", "steps": 3}, rounds=2).label
        'CalibratedRanking(scorer=EAPIG(steps=3), rounds=2)'
    """

    scorer: Member = EAPIG()  # noqa: RUF009 - frozen
    _: KW_ONLY
    sizes: Sequence[float] = MIB_SIZES[:-1]
    tolerance: float = 0.01
    rounds: int = 4
    gradient_examples: int | float = 1.0
    seed: int | None = None
    cache: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        at_least(self.rounds, 0, "rounds")
        at_least(self.chosen_seed, 0, "seed")
        self._gradient_examples(10**9)
        if not self.tolerance >= 0:
            raise InputError(f"tolerance is a distance from 1, from 0 on; got {self.tolerance!r}")
        sizes: object = self.sizes
        if isinstance(sizes, str) or not len(self.sizes):
            raise InputError(f"sizes are fractions or counts of edges, got {self.sizes!r}")
        object.__setattr__(self, "sizes", tuple(self.sizes))
        object.__setattr__(self, "scorer", as_member(self.scorer, "the scorer"))

    def _gradient_examples(self, total: int) -> int:
        try:
            if isinstance(self.gradient_examples, int):
                at_least(self.gradient_examples, 1, "gradient_examples")
                return self.gradient_examples
            return max(1, budget(self.gradient_examples, total))
        except InputError as error:
            raise InputError(
                "gradient_examples is a number of examples (int) or a share of them in (0, 1]; got "
                f"{self.gradient_examples!r}"
            ) from error

    @property
    def _scorer(self) -> Scorer | EdgeScores:
        given = cast("Scorer | EdgeScores", self.scorer)
        return inherit(given, self.ablation, self.batch_size, self.seed)

    def resolved(self) -> Self:
        """The same with everything said that its scorer inherits."""
        said = super().resolved()
        scorer = said._scorer
        return replace(said, scorer=scorer.resolved() if isinstance(scorer, Scorer) else scorer)

    def score(self, model: MaskedModel, task: Task) -> EdgeScores:
        """The calibrated ranking: ranks in (0, 1]."""
        return Method.score(self, model, task)

    def fit(self, model: MaskedModel, task: Task, size: int | float | None = None) -> Result:
        """The ranking, its circuits and their faithfulness on the task's examples.

        ``circuits`` are those of the calibrated sizes, each inside the next larger one, dead ends
        included: ``scores.top(n)`` is ``circuits[n]``. ``history`` has a row for each of them, the
        smallest first: ``kept``, faithfulness ``before`` and ``after`` the swaps (training
        examples), ``swaps``, ``rounds``. ``notes["runs"]``: circuits measured, each on all
        examples.

        Raises :class:`InputError` for a metric without a gradient, for constant scores, and for a
        metric that does not tell the whole model from the wholly ablated one (see
        :mod:`graphprune.core.sanity_checks`).
        """
        require_model(model)
        graph = model.graph
        counts = [budget(size, graph.num_edges) for size in self.sizes]
        scorer = self._scorer
        require_served(model, {"the scorer": scorer}, "scorer=gp.EAP()")
        start = member_scores(scorer, model, task, "the scorer")
        require_informative(start, f"the scorer ({describe(scorer)})")
        strengths = magnitude_ranks(start.values, start.noise)
        examples = _Examples(self, model, task)
        steps = nested_circuits(
            strengths,
            [count for count in counts if 0 < count < graph.num_edges],
            examples.faithfulness,
            examples.slope,
            tolerance=self.tolerance,
            rounds=self.rounds,
        )
        # Shells, then strength: an order made here, exact, so nothing in it is noise.
        shells = strengths + 2.0 * sum(step.kept.double() for step in steps)
        scores = EdgeScores(graph, magnitude_ranks(shells).float(), method=self.label)
        return replace(
            ranked(scores, size, self.chosen_ablation, task),
            history=[_row(step) for step in reversed(steps)],
            circuits={s.count: EdgeMask(graph, s.kept.float()) for s in reversed(steps)},
            notes={"runs": examples.runs},
        )


def _row(step: NestedCircuit) -> dict[str, float]:
    return {
        "kept": step.count,
        "before": step.before,
        "after": step.value,
        "swaps": step.swaps,
        "rounds": step.rounds,
    }


class _Examples:
    """Faithfulness of circuits on a task's examples, and its slope by the mask."""

    def __init__(self, method: CalibratedRanking, model: MaskedModel, task: Task) -> None:
        self.model, self.task, self.runs, self._slopes = model, task, 0, 0
        ablation = resolve_ablation(model, task, method.ablation)
        self._ablation = ablation
        size = task.batch_size if method.batch_size is None else method.batch_size
        batches = -(-len(task) // min(size, len(task)))
        steps = _PASSES * batches
        self._minibatches = MiniBatches(
            model, task, ablation, size, method.chosen_seed, steps, method.cache
        )
        self._minibatches.require_effect()
        self._gradient_batches = min(batches, -(-method._gradient_examples(len(task)) // size))
        ends: list[tuple[Tensor, Tensor]] = []
        for batch, reference in self._parts():
            value = objective(task, batch, reference)
            with torch.no_grad():
                ends.append((value(reference.full).cpu(), value(reference.ablated).cpu()))
        full, ablated = (torch.cat(side).double() for side in zip(*ends, strict=True))
        gap = MetricRange.of(full, ablated)
        if gap.why is not None:
            raise InputError(
                f"faithfulness is not defined on task {task.name!r}, metric {task.metric.name!r}: "
                f"{gap.why}"
            )
        self._ablated = float(ablated.sum())
        self._range = float(full.sum()) - self._ablated

    def _parts(self, first: int = 0, count: int = 0) -> Iterator[tuple[Batch, Reference]]:
        """``count`` batches from ``first`` on, round and round; all of them by default."""
        batches = self._minibatches.num_batches
        for index in range(first, first + (count or batches)):
            part = self._minibatches.part(index % batches)
            assert part is not None
            yield part

    @torch.no_grad()
    def faithfulness(self, kept: Tensor) -> float:
        """Of a circuit without its dead ends, as curves measure it."""
        self.runs += 1
        whole = EdgeMask(self.model.graph, kept.float())
        mask = without_dead_ends(whole, ablation=self._ablation, task=self.task)
        total = 0.0
        for batch, reference in self._parts():
            outputs = self.model.run(batch, mask, reference)
            total += float(objective(self.task, batch, reference)(outputs).double().sum())
        return (total - self._ablated) / self._range

    def slope(self, kept: Tensor) -> Tensor:
        """``[E]``: the derivative of faithfulness by the mask, float64.

        Of ``gradient_examples`` it is an estimate: examples have unlike ranges, and the range that
        it is divided by is that of all of them.
        """
        total, seen = torch.zeros(len(kept), dtype=torch.float64), 0
        first = self._slopes * self._gradient_batches
        self._slopes += 1
        for batch, reference in self._parts(first, self._gradient_batches):
            seen += batch.size
            mask = kept.float().to(reference.full.device).requires_grad_(True)
            with torch.enable_grad():
                outputs = self.model.run(batch, mask, reference)
                value = objective(self.task, batch, reference)(outputs).sum()
            total += gradient_by_mask(value, mask).double().cpu()
        return total * (len(self.task) / seen) / self._range
