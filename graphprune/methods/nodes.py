"""Scores of nodes from gradients: attribution patching of whole nodes, and its integral.

The gradient at one run is Nanda's ("Attribution patching", 2023), the integral over the inputs that
of Marks et al. (2024, arXiv 2403.19647), and the names NAP and NAP-IG are MIB's (arXiv 2504.13151).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from graphprune.capabilities import EdgeGradients, require
from graphprune.core.method import mean, objective
from graphprune.core.model import MaskedModel
from graphprune.core.scores import EdgeScores, NodeScores, PositionalEdgeScores
from graphprune.core.task import Task
from graphprune.core.variants import HasVariants
from graphprune.errors import InputError
from graphprune.methods.gradient import GradientScorer, Placement, input_gates, integration_points

__all__ = ["NAP", "NAPIG"]


@dataclass(frozen=True, kw_only=True)
class NAP(GradientScorer):
    """Node attribution patching (Nanda 2023): the gradient with respect to a node's whole output.

    ``score`` gives an edge the lower of its two ends' node scores by size (outputs count as
    infinitely useful); ``score_nodes`` gives the node scores themselves.

    Args:
        neurons: also score each neuron of each node's output.

    Example:
        >>> NAP().score(lm, prompts).top(2).edges()
        ['a0.h3->m0', 'a0.h3->logits']
    """

    neurons: bool = False

    @property
    def needs(self) -> tuple[type, ...]:
        """Gradients at nodes inside the model."""
        return (EdgeGradients,)

    def score_nodes(self, model: MaskedModel, task: Task) -> NodeScores:
        """Mean node scores over the task's examples."""
        self._check(model, task)
        gates, weights = self.interpolation(model)
        total: Tensor | None = None
        single: dict[str, Tensor] = {}
        for batch, reference in self._each(model, task):
            assert reference is not None
            found = require(model, EdgeGradients, self.label).edge_gradients(
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
class NAPIG(HasVariants, NAP):
    """NAP with gradients integrated over the inputs (Marks et al. 2024), as :class:`EAPIG`.

    Args:
        variant: ``"default"``, or ``"paper"``, see below.
        steps: number of points.
        points_at: where they lie; by default where the authors' code has them, ``k / steps`` for
            k = 1 ... steps: the clean end counts, the ablated one does not (EAP-IG's are the other
            way round).

    Variants:

    - ``"paper"``: 5 steps (MIB's run_attribution.py), points_at "right"
      (src/eap/attribute_node.py of github.com/hannamw/EAP-IG at 795f560).

    Example:
        >>> NAPIG(steps=3).score(lm, prompts).top(2).edges()
        ['input->a0.h3<q>', 'input->logits']
    """

    variants: ClassVar = {"paper": {"steps": 5, "points_at": "right"}}
    steps: int = 5
    points_at: Placement = "right"

    def interpolation(self, model: MaskedModel) -> tuple[Tensor | None, Tensor | None]:
        """Points of the integral over inputs."""
        places, weights = integration_points(self.steps, self.points_at)
        return input_gates(model, places), weights
