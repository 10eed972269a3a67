"""What spectral scores are compared with: size, slope, and resistance of edges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from graphprune.core.method import Scorer
from graphprune.core.model import MaskedModel, require_model
from graphprune.core.passes import Passes
from graphprune.core.scores import EdgeScores
from graphprune.core.task import Task
from graphprune.errors import InputError
from graphprune.methods import EAP

from ..linalg.weighted_graph import FloatArray, WeightedGraph, weighted_graph
from .spectral import EdgeWeights, edge_weights, weight_passes

__all__ = ["EffectiveResistance", "Magnitude", "Taylor", "effective_resistance"]


@dataclass(frozen=True, kw_only=True)
class Magnitude(Scorer):
    """Edges ranked by the size of their weight (where they have none: of their messages).

    Example:
        >>> Magnitude().score(model, task).top(3).edges()
        ['1->2', '9->5', '9->8']
    """

    edge_weights: EdgeWeights = "auto"

    def planned_passes(self, model: MaskedModel, task: Task) -> Passes:
        """Those of the edges' weights."""
        return weight_passes(model, task, self.edge_weights)

    def score(self, model: MaskedModel, task: Task) -> EdgeScores:
        """``|w|``."""
        require_model(model)
        weights = edge_weights(model, task, self.edge_weights)
        values = torch.from_numpy(weighted_graph(model.graph, weights).sizes)
        return EdgeScores(model.graph, values.float(), method=self.label)


@dataclass(frozen=True, kw_only=True)
class Taylor(Scorer):
    """``|w dL/dw|``: the size of the loss's first-order change when an edge's message becomes 0.

    A message is proportional to its edge's weight, so this is the mask gradient under zero
    ablation, on any model.

    Example:
        >>> Taylor().score(model, task).top(3).edges()
        ['2->3', '9->5', '9->8']
    """

    def planned_passes(self, model: MaskedModel, task: Task) -> Passes:
        """EAP's."""
        return weight_passes(model, task, "attribution")

    def score(self, model: MaskedModel, task: Task) -> EdgeScores:
        """Sizes of the mask gradient under zero ablation."""
        gradients = EAP(ablation="zero", batch_size=self.batch_size).score(model, task)
        return EdgeScores.computed(model.graph, gradients.values.abs(), method=self.label)


@dataclass(frozen=True, kw_only=True)
class EffectiveResistance(Scorer):
    """``|w| R``: the share of the current between an edge's ends that the edge carries itself.

    Of the undirected graph with conductances ``|w|``, both directions added; 1 for a bridge.

    Example:
        >>> EffectiveResistance().score(model, task).top(3).edges()
        ['9->5', '1->0', '9->8']
    """

    edge_weights: EdgeWeights = "auto"
    most_nodes: int = 3000

    def planned_passes(self, model: MaskedModel, task: Task) -> Passes:
        """Those of the edges' weights."""
        return weight_passes(model, task, self.edge_weights)

    def score(self, model: MaskedModel, task: Task) -> EdgeScores:
        """See the class; raises :class:`InputError` above ``most_nodes``."""
        require_model(model)
        weights = edge_weights(model, task, self.edge_weights)
        given = weighted_graph(model.graph, weights)
        if given.num_nodes > self.most_nodes:
            raise InputError(
                f"effective resistance inverts a {given.num_nodes} x {given.num_nodes} matrix; "
                f"most_nodes={self.most_nodes} allows less"
            )
        values = effective_resistance(given) * given.sizes
        return EdgeScores.computed(model.graph, torch.from_numpy(values).float(), method=self.label)


def effective_resistance(given: WeightedGraph) -> FloatArray:
    """``[E]``: resistance between each edge's ends; 0 for self-loops.

    Example:
        >>> chain = weighted_graph(([[0, 1], [1, 2]], 3), [1.0, 2.0])
        >>> effective_resistance(chain).round(3).tolist()
        [1.0, 0.5]
    """
    n, edges = given.num_nodes, given.num_edges
    conductance = np.zeros((n, n))
    np.add.at(conductance, (given.sources, given.targets), np.abs(given.weights) * given.present)
    conductance = conductance + conductance.T
    np.fill_diagonal(conductance, 0.0)
    inverse = np.linalg.pinv(np.diag(conductance.sum(1)) - conductance, hermitian=True)
    u, v = given.sources[:edges], given.targets[:edges]
    resistance: FloatArray = inverse[u, u] + inverse[v, v] - 2 * inverse[u, v]
    return np.where(u == v, 0.0, np.maximum(resistance, 0.0))
