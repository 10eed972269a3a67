"""Attribution: the gradient of the metric with respect to the mask, at one or several points.

``s(u -> v) = mean over examples of (y_u - y~_u) . d metric / d (what v reads)``: clean minus
ablated, the metric turned so that higher is better, so a positive score is a useful edge. The
originals write corrupted minus clean times the gradient of a loss, which is the same number.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from graphprune.capabilities import EdgeGradients, PlacedMessages, require
from graphprune.core.batch import Batch
from graphprune.core.method import Scorer, mean, objective
from graphprune.core.model import MaskedModel, Objective, Reference, gradient_by_mask, require_model
from graphprune.core.sanity_checks import IdleAblationCheck
from graphprune.core.scores import EdgeScores, PositionalEdgeScores
from graphprune.core.task import Task
from graphprune.core.variants import HasVariants
from graphprune.errors import InputError, unknown_name
from graphprune.util.checks import at_least

__all__ = [
    "EAP",
    "EAPIG",
    "CleanCorrupted",
    "GradientScorer",
    "Placement",
    "input_gates",
    "integration_points",
]

log = logging.getLogger(__name__)

Placement = Literal["left", "right", "midpoint", "trapezoid", "gauss-legendre"]


def integration_points(steps: int, points: Placement) -> tuple[Tensor, Tensor]:
    """Places in [0, 1] (0 = ablated, 1 = clean) and weights that sum to 1.

    ``left`` are the reference's: ``k / steps`` for k = 0 ... steps - 1, the clean end excluded.

    Example:
        >>> integration_points(4, "left")[0].tolist(), integration_points(2, "midpoint")[0].tolist()
        ([0.0, 0.25, 0.5, 0.75], [0.25, 0.75])
    """
    at_least(steps, 1, "steps")
    even = torch.full((steps,), 1.0 / steps, dtype=torch.float64)
    k = torch.arange(steps, dtype=torch.float64)
    if points == "left":
        return k / steps, even
    if points == "right":
        return (k + 1) / steps, even
    if points == "midpoint":
        return (k + 0.5) / steps, even
    if points == "trapezoid":
        if steps < 2:
            raise InputError("the trapezoid rule needs at least 2 points")
        weights = torch.full((steps,), 1.0 / (steps - 1), dtype=torch.float64)
        weights[[0, -1]] /= 2
        return k / (steps - 1), weights
    if points == "gauss-legendre":
        places, weights_np = np.polynomial.legendre.leggauss(steps)
        return torch.from_numpy((places + 1) / 2), torch.from_numpy(weights_np / 2)
    raise unknown_name("points", points, get_args(Placement))


def input_gates(model: MaskedModel, places: Tensor) -> Tensor:
    """``[K, N]``: input nodes at ``places``, all others untouched."""
    gates = torch.ones(len(places), model.graph.num_nodes, dtype=torch.float64)
    gates[:, list(model.graph.input_nodes)] = places[:, None]
    return gates


def mask_gradient(
    model: MaskedModel, batch: Batch, measured: Objective, reference: Reference
) -> Tensor:
    """``[E]`` float32: the derivative of ``measured`` by the mask at the full model, by autograd.

    Summed over the batch. It is what ``edge_gradients`` gives at the clean model.
    """
    mask = torch.ones(model.graph.num_edges, requires_grad=True)
    with torch.enable_grad():
        total = measured(model.run(batch, mask, reference)).sum()
    return gradient_by_mask(total, mask)


class _Largest:
    """An objective that remembers the size of its largest value."""

    def __init__(self, objective: Objective) -> None:
        self._objective, self.largest = objective, 0.0

    def __call__(self, outputs: Tensor) -> Tensor:
        values = self._objective(outputs)
        if values.numel():
            self.largest = max(self.largest, float(values.detach().abs().max()))
        return values


@dataclass(frozen=True, kw_only=True)
class GradientScorer(Scorer):
    """Mean gradients by edge, weighed over points between the ablated and the clean run."""

    def interpolation(self, model: MaskedModel) -> tuple[Tensor | None, Tensor | None]:
        """Gates ``[K, N]`` and weights ``[K]`` of K points; ``(None, None)`` is the clean model.

        A gate of 1 leaves a node's message clean, a gate of 0 puts the ablated one in its place.
        """
        return None, None

    def held_constant(self, model: MaskedModel) -> Tensor | None:
        """``[K, N]`` bool: nodes whose gated messages pass no gradient on; ``None``: none."""
        return None

    def _check(self, model: MaskedModel, task: Task) -> None:
        if not task.metric.flat_at_full:
            return
        gates, _ = self.interpolation(model)
        at_clean = [True] if gates is None else [bool((g == 1).all()) for g in gates]
        if all(at_clean):
            raise InputError(
                f"metric {task.metric.name!r} has zero gradient at the full model, where "
                f"{type(self).__name__} takes it: every score would be 0. Use EAPIG, "
                "IntegratedMaskGradient or ExactPatching, or the metric 'logit_diff'"
            )
        if any(at_clean):
            log.warning(
                "metric %r has zero gradient at the full model, one of the points of %s",
                task.metric.name,
                type(self).__name__,
            )

    def _gradients(
        self,
        model: MaskedModel,
        batch: Batch,
        reference: Reference,
        measured: Objective,
        by_position: bool,
    ) -> Tensor:
        """One batch's sums, ``[E]`` or ``[E, pos]``."""
        gates, weights = self.interpolation(model)
        if gates is None and not by_position and not isinstance(model, EdgeGradients):
            return mask_gradient(model, batch, measured, reference)
        who = f"{self.label} by position" if by_position else self.label
        inside = require(model, EdgeGradients, who)
        return inside.edge_gradients(
            batch,
            measured,
            reference,
            gates=gates,
            weights=weights,
            by_position=by_position,
            constant=self.held_constant(model),
        ).edge

    def _mean(self, model: MaskedModel, task: Task, by_position: bool) -> Tensor:
        require_model(model)
        self._check(model, task)
        total: Tensor | None = None
        idle = IdleAblationCheck(model, self.label)
        for batch, reference in self._each(model, task, check=False):
            assert reference is not None
            measured = _Largest(objective(task, batch, reference))
            found = self._gradients(model, batch, reference, measured, by_position)
            idle.see_gradients(batch, reference, found, measured.largest)
            total = found if total is None else total + found
        idle.finish()
        return mean(total, len(task), self.label)

    def score(self, model: MaskedModel, task: Task) -> EdgeScores:
        """Mean scores over the task's examples."""
        values = self._mean(model, task, False)
        return EdgeScores.computed(model.graph, values, method=self.label)

    def score_positions(self, model: MaskedModel, task: Task) -> PositionalEdgeScores:
        """Mean scores for each edge and position; they sum to :meth:`score`.

        The task's prompts have one length, or its spans (see ``Task.from_pairs``) give every prompt
        the same slots: then a span is one position.
        """
        spans = next(iter(task.batches(1))).slot_names
        every = task.examples.lengths()
        lengths = {every[i] for i in (range(len(task)) if task.order is None else task.order)}
        if len(lengths) > 1 and not spans:
            raise InputError(
                "positional scores need prompts of one length, or spans that align them (the same "
                f"names in every record); this task has lengths {sorted(lengths)[:8]}"
            )
        values = self._mean(model, task, True)
        return PositionalEdgeScores(model.graph, values, spans, method=self.label)


@dataclass(frozen=True, kw_only=True)
class EAP(GradientScorer):
    """Edge attribution patching (Syed et al. 2023): the mask gradient at the clean model.

    Example:
        >>> scores = EAP().score(model, task)
        >>> scores.top(3).edges()
        ['0->1', '1->2', '0->4']
    """


@dataclass(frozen=True, kw_only=True)
class CleanCorrupted(GradientScorer):
    """The mean of the gradients at the clean and at the ablated input, times the difference.

    Example:
        >>> CleanCorrupted().score(lm, prompts).top(2).edges()
        ['a0.h3->m0', 'a1.h2->logits']
    """

    @property
    def needs(self) -> tuple[type, ...]:
        """Gradients at nodes inside the model."""
        return (EdgeGradients,)

    def interpolation(self, model: MaskedModel) -> tuple[Tensor | None, Tensor | None]:
        """Input nodes at 0 and at 1."""
        return input_gates(model, torch.tensor([0.0, 1.0], dtype=torch.float64)), None


def _readers_of_inputs_alone(model: MaskedModel, batch: Batch, group: list[int]) -> Tensor | None:
    """``[E]`` bool: the edges into readers whose whole input is the messages of ``group``.

    ``group`` are senders that the authors' code puts in as constants. It then has no gradient at a
    reader of nothing else, and scores its edges 0: with rotary positions, the first layer's
    readers. (A learned table of positions is part of what a reader reads, and gives it a gradient.)
    ``None`` where ``group`` holds other nodes than inputs: no reader reads such a group alone.
    """
    graph = model.graph
    if not set(group) <= set(graph.input_nodes) or not graph.is_acyclic:
        return None
    found = torch.zeros(graph.num_edges, dtype=torch.bool)
    for place in require(model, PlacedMessages, "EAPIG over activations").messages(batch):
        if not bool(torch.isin(graph.edge_index[0][place.edges], torch.tensor(group)).all()):
            continue
        if torch.allclose(place.values.sum(0), place.total, rtol=1e-5, atol=1e-7):
            found[place.edges.reshape(-1)] = True
    return found


@dataclass(frozen=True, kw_only=True)
class EAPIG(HasVariants, GradientScorer):
    """EAP with integrated gradients (Hanna et al. 2024, arXiv 2403.17806).

    Args:
        variant: ``"default"``, or a published integral, see below.
        steps: number of points.
        points_at: where they lie; ``None``: where the authors' code has them, ``"left"`` for
            inputs and ``"right"`` for activations.
        integrate: ``"inputs"`` interpolates the input nodes between ablated and clean;
            ``"activations"`` one group of senders after another, put in as a constant between its
            two values, and scores only the edges that leave it (as the paper writes it);
            ``"activations-reference"`` adds every pass to every edge and divides by groups x
            steps (as the authors' code does, which in the passes over the inputs has no gradient
            where a reader reads inputs alone: the first layer, if positions are rotary). No
            gradient passes through a constant to what its group read.

    Variants of github.com/hannamw/EAP-IG at 795f560 (src/eap/attribute.py), with MIB's 5 ``steps``
    (run_attribution.py of its circuit track):

    - ``"paper"``: integrate "inputs", points_at "left".
    - ``"paper-activations"``: integrate "activations-reference", points_at "right".

    Example:
        >>> scores = EAPIG(steps=5).score(model, task)
        >>> scores.top(3).edges()
        ['1->0', '0->4', '9->8']
    """

    variants: ClassVar = {
        "paper": {"steps": 5, "integrate": "inputs", "points_at": "left"},
        "paper-activations": {
            "steps": 5,
            "integrate": "activations-reference",
            "points_at": "right",
        },
    }
    steps: int = 5
    points_at: Placement | None = None
    integrate: Literal["inputs", "activations", "activations-reference"] = "inputs"

    @property
    def needs(self) -> tuple[type, ...]:
        """Gradients at nodes inside the model; the authors' way over activations messages too."""
        messages = (PlacedMessages,) if self.integrate == "activations-reference" else ()
        return (EdgeGradients, *messages)

    def interpolation(self, model: MaskedModel) -> tuple[Tensor | None, Tensor | None]:
        """Points of the integral over inputs, or over every group of senders in turn."""
        if self.integrate == "inputs":
            places, weights = integration_points(self.steps, self.points_at or "left")
            return input_gates(model, places), weights
        if self.integrate not in ("activations", "activations-reference"):
            raise InputError(
                f"integrate must be 'inputs', 'activations' or 'activations-reference', got "
                f"{self.integrate!r}"
            )
        places, weights = integration_points(self.steps, self.points_at or "right")
        groups = self._groups(model)
        rows = []
        for group in groups:
            gates = torch.ones(self.steps, model.graph.num_nodes, dtype=torch.float64)
            gates[:, group] = places[:, None]
            rows.append(gates)
        weights = weights.repeat(len(groups))
        # The paper's integral is a group's own; the authors' code takes the mean of all of them.
        return torch.cat(rows), weights if self.integrate == "activations" else weights / len(rows)

    def _groups(self, model: MaskedModel) -> list[list[int]]:
        return require(model, EdgeGradients, self.label).source_groups()

    def _passes(self, model: MaskedModel, batch: Batch) -> Iterator[tuple[slice, Tensor | None]]:
        """Points that go together, and ``[E]`` bool: edges they do not score."""
        groups, source = self._groups(model), model.graph.edge_index[0]
        if self.integrate == "activations":
            for number, group in enumerate(groups):
                rows = slice(number * self.steps, (number + 1) * self.steps)
                yield rows, ~torch.isin(source, torch.tensor(group))
            return
        yield slice(0, self.steps), _readers_of_inputs_alone(model, batch, groups[0])
        if len(groups) > 1:
            yield slice(self.steps, None), None

    def held_constant(self, model: MaskedModel) -> Tensor | None:
        """The group of senders that each point interpolates; ``None`` where inputs are."""
        if self.integrate == "inputs":
            return None
        groups = self._groups(model)
        found = torch.zeros(len(groups), model.graph.num_nodes, dtype=torch.bool)
        for row, group in zip(found, groups, strict=True):
            row[group] = True
        return found.repeat_interleave(self.steps, 0)

    def _gradients(
        self,
        model: MaskedModel,
        batch: Batch,
        reference: Reference,
        measured: Objective,
        by_position: bool,
    ) -> Tensor:
        constant = self.held_constant(model)
        if constant is None:
            return super()._gradients(model, batch, reference, measured, by_position)
        gates, weights = self.interpolation(model)
        assert gates is not None
        assert weights is not None
        total: Tensor | None = None
        for rows, left_out in self._passes(model, batch):
            found = (
                require(model, EdgeGradients, self.label)
                .edge_gradients(
                    batch,
                    measured,
                    reference,
                    gates=gates[rows],
                    weights=weights[rows],
                    by_position=by_position,
                    constant=constant[rows],
                )
                .edge
            )
            if left_out is not None:
                found[left_out] = 0.0
            total = found if total is None else total + found
        assert total is not None
        return total
