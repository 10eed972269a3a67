"""Subnetwork probing (Cao et al. 2021, arXiv 2104.03514), on edges as ACDC's authors compare it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.core.graph import ComputationalGraph
from graphprune.search.gates import hard_concrete, hard_concrete_open, log_odds, log_open, noise
from graphprune.search.loop import Draw, Moment
from graphprune.search.warm_start import StartingScores

from .optimiser import GateKind, MaskOptimiser

__all__ = ["SubnetworkProbing"]


@dataclass(frozen=True, kw_only=True)
class SubnetworkProbing(MaskOptimiser):
    """Hard concrete gates under a fixed price: the loss plus ``penalty`` times the open share.

    No multiplier steers the size: the mask holds exactly the budget's best edges.

    Args:
        penalty: the price of keeping all edges open, in units of the loss.
        lr: learning rate of log alpha.
        start: log alpha of every edge at first.
    """

    penalty: float = 10.0
    lr: float = 0.1
    start: float = 2.0

    @property
    def gate_kind(self) -> GateKind:
        """Hard concrete."""
        return "hard concrete"

    def parameters(
        self, graph: ComputationalGraph, start: StartingScores | None
    ) -> dict[str, Tensor]:
        """Log alpha of edges (and senders)."""
        cold = torch.full((graph.num_edges,), self.start)
        nodes = torch.full((graph.num_nodes,), self.start) if self.node_gates else None
        found = {"edges": self.begin(graph, cold, start, nodes)}
        if nodes is not None:
            found["nodes"] = nodes
        return found

    def optimiser(
        self, parameters: dict[str, Tensor], constants: list[Tensor]
    ) -> torch.optim.Optimizer:
        """Adam."""
        groups = self.groups(list(parameters.values()), constants)
        return torch.optim.Adam(groups, lr=self.lr)

    def rate(self, moment: Moment) -> float:
        """Constant."""
        return 1.0

    def draw(self, parameters: dict[str, Tensor], graph: ComputationalGraph, at: Moment) -> Draw:
        """One mask for the whole batch."""
        edges, nodes = parameters["edges"], parameters.get("nodes")
        width = len(edges) + (0 if nodes is None else len(nodes))
        u = noise((width,), self.chosen_seed, at.step, edges.device)
        z = hard_concrete(edges, u[: len(edges)])
        open_share = hard_concrete_open(edges).mean()
        if nodes is not None:
            z = z * hard_concrete(nodes, u[len(edges) :])[graph.edge_index[0].to(edges.device)]
            open_share = open_share + hard_concrete_open(nodes).mean()
        density = float((z.detach() > 0).float().mean())
        return Draw(z, density=density, penalty=self.penalty * open_share)

    def values(self, parameters: dict[str, Tensor], graph: ComputationalGraph) -> Tensor:
        """Log alpha, or log odds of being open where senders have gates too."""
        edges, nodes = parameters["edges"], parameters.get("nodes")
        if nodes is None:
            return edges
        return log_odds(log_open(edges) + log_open(nodes)[graph.edge_index[0].to(nodes.device)])
