"""Uniform gradient sampling (Li & Janson 2024, arXiv 2409.09951): a mask for every example.

The expected gradient by a logit of a loss a m, linear in the gate m with keep chance p, is
a p (1 - p), as it is of the expected loss a p, and as the price of an edge has it. In the other
variants it is the authors' code's: a w (1 - (1 - w)^n) with w = p (1 - p) for the n masks of a step
(all examples'), which is the same but for gates that are nearly open or nearly closed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from graphprune.core.graph import ComputationalGraph
from graphprune.core.model import ablation_kind
from graphprune.errors import InputError
from graphprune.search.dead_ends import alive_edges
from graphprune.search.gates import noise, of_senders, uniform_window, window_weights
from graphprune.search.loop import Draw, Moment, Parameters
from graphprune.util.checks import at_least, at_least_0

from .optimiser import GateKind, MaskOptimiser

__all__ = ["UGS", "UniformGradientSampling"]

_RELEASED: dict[str, Any] = {
    "loss": "kl",
    "batch_size": 5,
    "samples": 12,
    "start": 0.7310585786300049,  # the sigmoid of 1
    "clip": 5.0,
    "drop_dangling": True,
}


@dataclass(frozen=True, kw_only=True)
class UniformGradientSampling(MaskOptimiser):
    """Gates with keep chances p, sampled anew for every example, under a fixed price of edges.

    ``UGS`` is its short name. (To users of graph networks UGS is the Unified GNN Sparsification of
    Chen et al. 2021, which is another method.) Minimises the loss plus ``penalty`` times the sum of
    p. The size that a penalty leads to is not known beforehand: the mask holds exactly the
    budget's best edges.

    Args:
        variant: ``"default"``, or the authors' code, see below: gradients as the module says,
            gradients cut by group, and a price on nodes.
        penalty: the price lambda of an edge (published: 1e-4 to 1e-2 by circuit size; MIB 1e-3).
        node_penalty: the price of a node of which a layer has several (a head): rises with the sum
            of p of its edges, by this much an edge at first, and levels off. ``None``: none, or in
            the paper variant half of ``penalty``, at most 2e-4.
        samples: masks for each example and step (published: 12 or 25).
        lr: ``None``: .15, .10, .05 for penalties up to 1e-4, up to 5e-4, and larger, a fifth of it
            under counterfactual ablation, as published.
        lr_constants: learning rate of learned constants (``ablation="optimal"``).
        drop_dangling: edges of a sampled mask that lie on no path count as cut, as published.
        start: p of every edge at first; ``None``: .9.
        clip: gradients of a larger norm are cut to it: all of them, or in the paper variant those
            of edges between two kinds of nodes, group by group. Nodes that are alone in their
            layer (MLPs), inputs and outputs count as one kind.

    Variants as released. All have ``loss`` "kl" (pruners/EdgePruner.py), ``batch_size`` 5 and 12
    ``samples`` (utils/MaskConfig.py), ``start`` 0.731, the sigmoid of 1, and ``clip`` 5.0 by group
    (edge_pruning_unif.py), ``drop_dangling`` True (mask_samplers/EdgeMaskSampler.py), and the rules
    of ``lr`` and ``node_penalty`` above (edge_pruning_unif.py):

    - ``"paper"`` (github.com/maxtli/optimalablation at ac02e85, edge_pruning_unif.py): 3000 steps;
      the penalty is swept.
    - ``"paper-optimal"`` (the same file): 6000 steps, ablation "optimal", lr_constants 0.002.
    - ``"mib"``, MIB's runs on ioi (github.com/alestolfo/optimalablation at 61e4c5b,
      edge_pruning_unif_mib.py): penalty 0.001, 1900 steps, ablation "counterfactual".

    Example:
        >>> UGS(steps=20).fit(model, task, size=8).mask
        EdgeMask(8 of 24 edges, 33.3333%)
    """

    variants: ClassVar = {
        "paper": _RELEASED | {"steps": 3000},
        "paper-optimal": _RELEASED | {"steps": 6000, "ablation": "optimal", "lr_constants": 0.002},
        "mib": _RELEASED | {"steps": 1900, "penalty": 0.001, "ablation": "counterfactual"},
    }
    penalty: float = 1e-3
    node_penalty: float | None = None
    samples: int = 12
    lr: float | None = None
    lr_constants: float = 1e-2
    drop_dangling: bool = True
    start: float | None = None
    clip: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self.samples, 1, "samples")
        if self.start is not None and not 0 < self.start < 1:
            raise InputError(f"start is a chance in (0, 1), got {self.start}")
        if self.penalty < 0 or self.clip <= 0:
            raise InputError(
                f"penalty must be at least 0 and clip positive, got {self.penalty} and {self.clip}"
            )
        for name in ("node_penalty", "lr", "lr_constants"):
            at_least_0(getattr(self, name), name)

    @property
    def gate_kind(self) -> GateKind:
        """Logits of keep chances."""
        return "chance"

    @property
    def _paper(self) -> bool:
        return self.variant != "default"

    @property
    def _node_price(self) -> float:
        if self.node_penalty is not None:
            return self.node_penalty
        return min(0.5 * self.penalty, 2e-4) if self._paper else 0.0

    @property
    def _rate(self) -> float:
        if self.lr is not None:
            return self.lr
        found = 0.15 if self.penalty <= 1e-4 else 0.10 if self.penalty <= 5e-4 else 0.05
        return found / 5 if ablation_kind(self.chosen_ablation) == "counterfactual" else found

    def cold_gates(self, count: int, generator: torch.Generator) -> Tensor:
        """Logits of the keep chances."""
        start = 0.9 if self.start is None else self.start
        return torch.logit(torch.tensor(start)).repeat(count)

    def optimiser(self, parameters: Parameters, constants: list[Tensor]) -> torch.optim.Optimizer:
        """AdamW without decay, beta2 .995."""
        groups = self.groups(parameters.values(), constants, self.lr_constants)
        return torch.optim.AdamW(groups, lr=self._rate, betas=(0.9, 0.995), weight_decay=0.0)

    def draw(self, parameters: Parameters, graph: ComputationalGraph, moment: Moment) -> Draw:
        """``samples`` masks for each example of the batch."""
        edges, nodes = parameters["edges"], parameters.get("nodes")
        width = len(edges) + (0 if nodes is None else len(nodes))
        shape = (self.samples, moment.total, width)
        u = noise(shape, self.chosen_seed, moment.step, edges.device)
        p = torch.sigmoid(edges)
        z = self._gates(p, u[..., : len(edges)], moment)
        if nodes is not None:
            sent = self._gates(torch.sigmoid(nodes), u[..., len(edges) :], moment)
            z = z * of_senders(sent, graph)
        if self.drop_dangling:
            z = z * alive_edges(graph, z.detach() > 0, from_inputs=moment.from_inputs)
        price = p.sum() if nodes is None else p.sum() + torch.sigmoid(nodes).sum()
        penalty = self.penalty * price
        if self._node_price:
            penalty = penalty + self._node_price * _node_load(p, graph)
        return Draw(
            z,
            density=float(p.detach().mean()),
            penalty=penalty,
            clip=self.clip,
            clip_groups=self._groups(parameters, graph) if self._paper else None,
        )

    def _gates(self, p: Tensor, u: Tensor, moment: Moment) -> Tensor:
        """``[samples, rows, n]`` of this process's examples; every process weighs all masks."""
        z = uniform_window(p, u[:, list(moment.rows)])
        weight = window_weights(p, u, released=self._paper)
        return weight * z + ((1 - weight) * z).detach()

    def _groups(self, parameters: Parameters, graph: ComputationalGraph) -> dict[str, Tensor]:
        source, target = _kinds(graph)[graph.edge_index]
        found = {"edges": torch.stack([source, target], 1).unique(dim=0, return_inverse=True)[1]}
        if "nodes" in parameters:
            found["nodes"] = torch.zeros(graph.num_nodes, dtype=torch.int64)
        return found


UGS = UniformGradientSampling


@lru_cache(maxsize=4)
def _kinds(graph: ComputationalGraph) -> Tensor:
    """``[N]``: a number for each kind of node; 0 for inputs, outputs and those alone in a layer."""
    alike = Counter((node.kind, node.layer) for node in graph.nodes)
    ends = {*graph.input_nodes, *graph.output_nodes}
    numbers: dict[str, int] = {}
    return torch.tensor(
        [
            0
            if number in ends or alike[node.kind, node.layer] == 1
            else numbers.setdefault(node.kind, len(numbers) + 1)
            for number, node in enumerate(graph.nodes)
        ]
    )


def _node_load(p: Tensor, graph: ComputationalGraph) -> Tensor:
    """The sum over nodes with others beside them of ``N / 2 tanh(2 (sum of p of its edges) / N)``.

    N is their number. The derivative by each p is at most 1, for a node without open edges.
    """
    several = _kinds(graph) > 0
    count = int(several.sum())
    load = torch.zeros(graph.num_nodes, device=p.device)
    for ends in graph.edge_index.to(p.device):
        load = load.index_add(0, ends, p)
    return (torch.tanh(2 * load[several.to(p.device)] / max(count, 1)) * count / 2).sum()
