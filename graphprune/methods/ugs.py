"""Uniform gradient sampling (Li & Janson 2024, arXiv 2409.09951): a mask for every example."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.errors import InputError
from graphprune.graph import ComputationalGraph
from graphprune.optimise.dangling import alive_edges
from graphprune.optimise.gates import noise, uniform_window
from graphprune.optimise.loop import Draw, Moment
from graphprune.optimise.warm import Start

from .base import at_least
from .optimiser import GateKind, MaskOptimiser

__all__ = ["UGS"]


@dataclass(frozen=True, kw_only=True)
class UGS(MaskOptimiser):
    """Gates with keep chances p, sampled anew for every example, under a fixed price of edges.

    Minimises the loss plus ``penalty`` times the sum of p; p is the edge's score. The size that a
    penalty leads to is not known beforehand: the mask holds exactly the budget's best edges.

    Args:
        penalty: the price lambda of an edge (published: 1e-4 to 1e-2 by circuit size; MIB 1e-3).
        samples: masks for each example and step (published: 12 or 25).
        lr: ``None``: .15, .10, .05 for penalties up to 1e-4, up to 5e-4, and larger, a fifth of it
            under counterfactual ablation, as published.
        drop_dangling: edges of a sampled mask that lie on no path count as cut, as published.
        start: p of every edge at first.
        clip: gradients of a larger norm are cut to it.
    """

    penalty: float = 1e-3
    samples: int = 12
    lr: float | None = None
    drop_dangling: bool = True
    start: float = 0.9
    clip: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self.samples, 1, "samples")
        if not 0 < self.start < 1:
            raise InputError(f"start is a chance in (0, 1), got {self.start}")
        if self.penalty < 0 or self.clip <= 0:
            raise InputError(
                f"penalty must be at least 0 and clip positive, got {self.penalty} and {self.clip}"
            )

    @property
    def gate_kind(self) -> GateKind:
        """Logits of keep chances."""
        return "chance"

    @property
    def _rate(self) -> float:
        if self.lr is not None:
            return self.lr
        found = 0.15 if self.penalty <= 1e-4 else 0.10 if self.penalty <= 5e-4 else 0.05
        kind = getattr(self.chosen_ablation, "kind", self.chosen_ablation)
        return found / 5 if kind == "counterfactual" else found

    def parameters(self, graph: ComputationalGraph, start: Start | None) -> dict[str, Tensor]:
        """Logits of the keep chances."""
        first = torch.logit(torch.tensor(self.start))
        nodes = first.repeat(graph.num_nodes) if self.node_gates else None
        found = {"edges": self.begin(graph, first.repeat(graph.num_edges), start, nodes)}
        if nodes is not None:
            found["nodes"] = nodes
        return found

    def optimiser(
        self, parameters: dict[str, Tensor], constants: list[Tensor]
    ) -> torch.optim.Optimizer:
        """AdamW without decay, beta2 .995."""
        groups = self.groups(list(parameters.values()), constants)
        return torch.optim.AdamW(groups, lr=self._rate, betas=(0.9, 0.995), weight_decay=0.0)

    def rate(self, moment: Moment) -> float:
        """Constant."""
        return 1.0

    def draw(self, parameters: dict[str, Tensor], graph: ComputationalGraph, at: Moment) -> Draw:
        """``samples`` masks for each example of the batch."""
        edges, nodes = parameters["edges"], parameters.get("nodes")
        width = len(edges) + (0 if nodes is None else len(nodes))
        shape = (self.samples, at.total, width)
        u = noise(shape, self.chosen_seed, at.step, edges.device)[:, list(at.rows)]
        p = torch.sigmoid(edges)
        z = uniform_window(p, u[..., : len(edges)])
        if nodes is not None:
            sent = uniform_window(torch.sigmoid(nodes), u[..., len(edges) :])
            z = z * sent[..., graph.edge_index[0].to(edges.device)]
        if self.drop_dangling:
            z = z * alive_edges(graph, z.detach() > 0, from_inputs=at.from_inputs)
        price = p.sum() if nodes is None else p.sum() + torch.sigmoid(nodes).sum()
        return Draw(
            z, density=float(p.detach().mean()), penalty=self.penalty * price, clip=self.clip
        )

    def values(self, parameters: dict[str, Tensor], graph: ComputationalGraph) -> Tensor:
        """Keep chances, times the sender's where nodes have gates."""
        p, nodes = torch.sigmoid(parameters["edges"]), parameters.get("nodes")
        if nodes is None:
            return p
        return p * torch.sigmoid(nodes)[graph.edge_index[0].to(nodes.device)]
