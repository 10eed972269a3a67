"""Subnetwork probing (Cao et al. 2021, arXiv 2104.03514), on edges as ACDC's authors compare it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from graphprune.core.graph import ComputationalGraph
from graphprune.search.gates import hard_concrete, hard_concrete_open, noise, of_senders
from graphprune.search.loop import Draw, Moment, Parameters

from .optimiser import GateKind, MaskOptimiser

__all__ = ["SubnetworkProbing"]


@dataclass(frozen=True, kw_only=True)
class SubnetworkProbing(MaskOptimiser):
    """Hard concrete gates under a fixed price: the loss plus ``penalty`` times the open share.

    No multiplier steers the size: the mask holds exactly the budget's best edges.

    Args:
        variant: ``"default"``, or ``"paper"``, see below.
        penalty: the price of keeping all edges open, in units of the loss.
        lr: learning rate of log alpha.
        start: log alpha of every edge at first.

    Variants:

    - ``"paper"``: the comparison of ACDC's authors, who mask nodes (Cao et al. masked weights of
      BERT) and pay for the mean open share, as here
      (github.com/ArthurConmy/Automatic-Circuit-Discovery at bc99ace): Adam at lr 0.001, loss "kl",
      penalty 50.0 (subnetwork_probing/train.py; swept from .01 to 250), 10000 steps of 100 examples
      (``batch_size`` 100; subnetwork_probing/launch_grid_fill.py for ioi), start 1.6094379, at
      which a gate without noise is .9 (mask_p in transformer_lens/hook_points.py, as in Cao's
      masked_linear.py).

    Example:
        >>> SubnetworkProbing(steps=30, penalty=2.0).fit(model, task, size=8).mask
        EdgeMask(8 of 24 edges, 33.3333%)
    """

    variants: ClassVar = {
        "paper": {
            "loss": "kl",
            "steps": 10000,
            "batch_size": 100,
            "lr": 0.001,
            "penalty": 50.0,
            "start": 1.6094379124341003,  # the logit of (.9 + .1) / 1.2
        }
    }
    penalty: float = 10.0
    lr: float = 0.1
    start: float = 2.0

    @property
    def gate_kind(self) -> GateKind:
        """Hard concrete."""
        return "hard concrete"

    def cold_gates(self, count: int, generator: torch.Generator) -> Tensor:
        """Log alpha."""
        return torch.full((count,), self.start)

    def optimiser(self, parameters: Parameters, constants: list[Tensor]) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.groups(parameters.values(), constants), lr=self.lr)

    def draw(self, parameters: Parameters, graph: ComputationalGraph, moment: Moment) -> Draw:
        """One mask for the whole batch."""
        edges, nodes = parameters["edges"], parameters.get("nodes")
        width = len(edges) + (0 if nodes is None else len(nodes))
        u = noise((width,), self.chosen_seed, moment.step, edges.device)
        z = hard_concrete(edges, u[: len(edges)])
        open_share = hard_concrete_open(edges).mean()
        if nodes is not None:
            z = z * of_senders(hard_concrete(nodes, u[len(edges) :]), graph)
            open_share = open_share + hard_concrete_open(nodes).mean()
        density = float((z.detach() > 0).float().mean())
        return Draw(z, density=density, penalty=self.penalty * open_share)
