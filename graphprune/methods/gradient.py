"""Attribution: the gradient of the metric with respect to the mask, at one or several points.

``s(u -> v) = mean over examples of (y_u - y~_u) . d metric / d (what v reads)``: clean minus
ablated, the metric turned so that higher is better, so a positive score is a useful edge. The
originals write corrupted minus clean times the gradient of a loss, which is the same number.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from graphprune.batch import Batch
from graphprune.errors import InputError
from graphprune.model import MaskedModel, Objective, Reference, Rule
from graphprune.scores import EdgeScores, NodeScores, PositionalEdgeScores
from graphprune.task import Task

from .base import Scorer, at_least, mean, objective, require_model

__all__ = ["EAP", "EAPIG", "NAP", "NAPIG", "CleanCorrupted", "RelP", "integration_points"]

log = logging.getLogger(__name__)

Points = Literal["left", "right", "midpoint", "trapezoid", "gauss-legendre"]


def integration_points(steps: int, points: Points) -> tuple[Tensor, Tensor]:
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
    raise InputError(
        f"unknown points {points!r}; known: left, right, midpoint, trapezoid, gauss-legendre"
    )


def _input_gates(model: MaskedModel, places: Tensor) -> Tensor:
    """``[K, N]``: input nodes at ``places``, all others untouched."""
    gates = torch.ones(len(places), model.graph.num_nodes, dtype=torch.float64)
    gates[:, list(model.graph.input_nodes)] = places[:, None]
    return gates


@dataclass(frozen=True, kw_only=True)
class _GradientScorer(Scorer):
    @property
    def rule(self) -> Rule:
        """How derivatives are taken; see ``MaskedModel.edge_gradients``."""
        return "gradient"

    @abstractmethod
    def points(self, model: MaskedModel) -> tuple[Tensor | None, Tensor | None]:
        """Gates ``[K, N]`` and weights ``[K]``; ``(None, None)`` is the clean model."""

    def _check(self, model: MaskedModel, task: Task) -> None:
        if not task.metric.flat_at_full:
            return
        gates, _ = self.points(model)
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
        value: Objective,
        by_position: bool,
    ) -> Tensor:
        """One batch's sums, ``[E]`` or ``[E, pos]``."""
        gates, weights = self.points(model)
        return model.edge_gradients(
            batch,
            value,
            reference,
            gates=gates,
            weights=weights,
            rule=self.rule,
            by_position=by_position,
        ).edge

    def _mean(self, model: MaskedModel, task: Task, by_position: bool) -> Tensor:
        require_model(model)
        self._check(model, task)
        total: Tensor | None = None
        for batch, reference in self._each(model, task):
            assert reference is not None
            value = objective(task, batch, reference)
            found = self._gradients(model, batch, reference, value, by_position)
            total = found if total is None else total + found
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
class EAP(_GradientScorer):
    """Edge attribution patching (Syed et al. 2023): the mask gradient at the clean model."""

    def points(self, model: MaskedModel) -> tuple[Tensor | None, Tensor | None]:
        """The clean model."""
        return None, None


@dataclass(frozen=True, kw_only=True)
class RelP(_GradientScorer):
    """Relevance patching (arXiv 2508.21258): EAP with layer-wise relevance rules for gradients.

    Norm scales and attention patterns count as constants, so edges into q and k score 0.
    """

    @property
    def rule(self) -> Rule:
        """Layer-wise relevance propagation."""
        return "relp"

    def points(self, model: MaskedModel) -> tuple[Tensor | None, Tensor | None]:
        """The clean model."""
        return None, None


@dataclass(frozen=True, kw_only=True)
class CleanCorrupted(_GradientScorer):
    """The mean of the gradients at the clean and at the ablated input, times the difference."""

    def points(self, model: MaskedModel) -> tuple[Tensor | None, Tensor | None]:
        """Input nodes at 0 and at 1."""
        return _input_gates(model, torch.tensor([0.0, 1.0], dtype=torch.float64)), None


@dataclass(frozen=True, kw_only=True)
class EAPIG(_GradientScorer):
    """EAP with integrated gradients (Hanna et al. 2024).

    Args:
        steps: number of points.
        points_at: where they lie; ``"left"`` (default) are the reference's for inputs,
            ``"right"`` its points for activations.
        integrate: ``"inputs"`` interpolates the input nodes between ablated and clean;
            ``"activations"`` one group of senders after another, and scores only the edges that
            leave it (as the paper writes it); ``"activations-reference"`` adds every pass to
            every edge and divides by groups x steps (as the reference codes it).
    """

    steps: int = 5
    points_at: Points = "left"
    integrate: Literal["inputs", "activations", "activations-reference"] = "inputs"

    def points(self, model: MaskedModel) -> tuple[Tensor | None, Tensor | None]:
        """Points of the integral over inputs, or over every group of senders in turn."""
        places, weights = integration_points(self.steps, self.points_at)
        if self.integrate == "inputs":
            return _input_gates(model, places), weights
        if self.integrate not in ("activations", "activations-reference"):
            raise InputError(
                f"integrate must be 'inputs', 'activations' or 'activations-reference', got "
                f"{self.integrate!r}"
            )
        groups = model.source_groups()
        rows = []
        for group in groups:
            gates = torch.ones(self.steps, model.graph.num_nodes, dtype=torch.float64)
            gates[:, group] = places[:, None]
            rows.append(gates)
        return torch.cat(rows), weights.repeat(len(groups)) / len(groups)

    def _gradients(
        self,
        model: MaskedModel,
        batch: Batch,
        reference: Reference,
        value: Objective,
        by_position: bool,
    ) -> Tensor:
        if self.integrate != "activations":
            return super()._gradients(model, batch, reference, value, by_position)
        gates, weights = self.points(model)
        assert gates is not None
        assert weights is not None
        groups, source = model.source_groups(), model.graph.edge_index[0]
        total: Tensor | None = None
        for number, group in enumerate(groups):
            rows = slice(number * self.steps, (number + 1) * self.steps)
            found = model.edge_gradients(
                batch,
                value,
                reference,
                gates=gates[rows],
                weights=weights[rows] * len(groups),
                by_position=by_position,
            ).edge
            found[~torch.isin(source, torch.tensor(group))] = 0.0
            total = found if total is None else total + found
        assert total is not None
        return total


@dataclass(frozen=True, kw_only=True)
class NAP(_GradientScorer):
    """Node attribution patching: the gradient with respect to a node's whole output.

    ``score`` gives an edge the lower of its two ends' node scores by size (outputs count as
    infinitely useful); ``score_nodes`` gives the node scores themselves.

    Args:
        neurons: also score each neuron of each node's output.
    """

    neurons: bool = False

    def points(self, model: MaskedModel) -> tuple[Tensor | None, Tensor | None]:
        """The clean model."""
        return None, None

    def score_nodes(self, model: MaskedModel, task: Task) -> NodeScores:
        """Mean node scores over the task's examples."""
        self._check(model, task)
        gates, weights = self.points(model)
        total: Tensor | None = None
        single: dict[str, Tensor] = {}
        for batch, reference in self._each(model, task):
            assert reference is not None
            found = model.edge_gradients(
                batch,
                objective(task, batch, reference),
                reference,
                gates=gates,
                weights=weights,
                neurons=self.neurons,
            )
            total = found.node if total is None else total + found.node
            for name, values in found.neurons.items():
                single[name] = single.get(name, 0) + values / len(task)
        return NodeScores(
            model.graph, mean(total, len(task), self.label), single, method=self.label
        )

    def score_positions(self, model: MaskedModel, task: Task) -> PositionalEdgeScores:
        """Refused: a node's score is not a sum over positions of its edges' scores."""
        raise InputError(
            f"{type(self).__name__} scores nodes, which have no score for each edge and position; "
            "use EAP or EAPIG"
        )

    def score(self, model: MaskedModel, task: Task) -> EdgeScores:
        """Edge scores from node scores: an edge is as useful as the less useful of its ends."""
        nodes = self.score_nodes(model, task)
        return EdgeScores.computed(model.graph, nodes.edge_values(), method=self.label)


@dataclass(frozen=True, kw_only=True)
class NAPIG(NAP):
    """NAP with gradients integrated over the inputs, as :class:`EAPIG`."""

    steps: int = 5
    points_at: Points = "left"

    def points(self, model: MaskedModel) -> tuple[Tensor | None, Tensor | None]:
        """Points of the integral over inputs."""
        places, weights = integration_points(self.steps, self.points_at)
        return _input_gates(model, places), weights
