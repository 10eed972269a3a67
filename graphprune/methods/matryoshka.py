"""Matryoshka attribution (MAttr, arXiv 2609.25518): one run whose ranking serves every size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from graphprune.core.graph import ComputationalGraph
from graphprune.core.sizes import MIB_SIZES, trapezoid_weights
from graphprune.errors import InputError
from graphprune.search.gates import budgeted_sigmoid, noise
from graphprune.search.loop import Draw, Moment, Parameters
from graphprune.util.checks import at_least, require_one_of

from .optimiser import GateKind, MaskOptimiser

__all__ = ["MatryoshkaPruning"]

_RELEASED: dict[str, Any] = {
    "steps": 5000,
    "loss": "task",
    "batch_size": 1,
    "temperature": 0.5,
    "smallest": 1,
    "sizes": "log_uniform",
    "budgets": 1,
    "decay": 0.0,
}


@dataclass(frozen=True, kw_only=True)
class MatryoshkaPruning(MaskOptimiser):
    """A soft top-k with a new random k each step, so that every prefix of the ranking is a circuit.

    Published as Matryoshka attribution (MAttr), whose loss is the task's metric. KL and the gaps of
    the metric as its loss, ``sizes="curve"``, several budgets a step and a warm start are ours. The
    mask is ``sigmoid((s - tau) / temperature)`` with tau such that it sums to k.

    Args:
        variant: ``"default"``, or the authors' settings for edges, see below.
        lr: learning rate of the scores.
        step_rule: ``"adam"`` or ``"sgd"``, without momentum.
        decay: the share of steps, the last ones, over which the learning rate falls to 0.
        temperature: of the sigmoids.
        smallest: the smallest k, as a count or a share of all edges.
        sizes: how k is drawn: ``"log_uniform"``, ``"uniform"``, or ``"curve"``: one of MIB's sizes
            below 1, as often as it counts in the trapezoid rule, so that the expected loss is the
            loss's area over those sizes (``smallest`` is then the least count alone).
        budgets: values of k at each step, run side by side.

    Variants: the rows of the paper's table of MIB's edge circuits. All have 5000 ``steps`` and
    ``loss`` "task" (README.md of github.com/aryamanarora/matryoshka-attribution at 271901e),
    ``batch_size`` 1, ``temperature`` 0.5 (scripts/mib/eval_mib_edge.py), scores of 0 at first, one
    k a step (``budgets`` 1) and a constant rate (``decay`` 0.0;
    src/matryoshka_attribution/trainer.py):

    - ``"paper"``: step_rule "adam", lr 0.05, k from 1 (``smallest``) to E by sizes "log_uniform":
      CPR 6.23 on the mean of MIB's cells (CLAUDE.md there, directory mib_edge_topk_log_lr05).
    - ``"paper-sgd"``: step_rule "sgd", lr 3.0, the same k: CPR 5.93 (mib_edge_softlog_sgd_lr_3.0).
    - ``"paper-uniform"``: as "paper" with sizes "uniform", the command that README.md gives.

    Example:
        >>> ranking = MatryoshkaPruning(steps=30).score(model, task)
        >>> ranking.top(4), ranking.top(12)
        (EdgeMask(4 of 24 edges, 16.6667%), EdgeMask(12 of 24 edges, 50.0000%))
    """

    variants: ClassVar = {
        "paper": _RELEASED | {"step_rule": "adam", "lr": 0.05},
        "paper-sgd": _RELEASED | {"step_rule": "sgd", "lr": 3.0},
        "paper-uniform": _RELEASED | {"step_rule": "adam", "lr": 0.05, "sizes": "uniform"},
    }
    lr: float = 0.05
    step_rule: Literal["adam", "sgd"] = "adam"
    decay: float = 0.2
    temperature: float = 0.5
    smallest: float = 1e-3
    sizes: Literal["log_uniform", "uniform", "curve"] = "log_uniform"
    budgets: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self.budgets, 1, "budgets")
        require_one_of(self.sizes, ("log_uniform", "uniform", "curve"), "sizes")
        require_one_of(self.step_rule, ("adam", "sgd"), "step_rule")
        if not 0.0 <= self.decay <= 1.0:
            raise InputError(f"decay is a share of the steps in [0, 1], got {self.decay}")
        if self.temperature <= 0 or self.smallest <= 0:
            raise InputError(
                f"temperature and smallest must be positive, got {self.temperature} and "
                f"{self.smallest}"
            )

    @property
    def gate_kind(self) -> GateKind:
        """Scores under a random budget."""
        return "ranking"

    def cold_gates(self, count: int, generator: torch.Generator) -> Tensor:
        """Scores of 0."""
        return torch.zeros(count)

    def optimiser(self, parameters: Parameters, constants: list[Tensor]) -> torch.optim.Optimizer:
        """Adam, or plain gradient descent."""
        kind = torch.optim.Adam if self.step_rule == "adam" else torch.optim.SGD
        return kind(self.groups(parameters.values(), constants), lr=self.lr)

    def rate(self, moment: Moment) -> float:
        """Constant, then linearly to 0 over the last steps."""
        if not self.decay:
            return 1.0
        return min(1.0, (1.0 / self.decay) * (moment.steps - moment.step) / moment.steps)

    def draw(self, parameters: Parameters, graph: ComputationalGraph, moment: Moment) -> Draw:
        """One mask for each budget."""
        scores = self.values(parameters, graph)
        total = graph.num_edges
        if self.smallest >= total:
            raise InputError(f"smallest={self.smallest} of a graph with {total} edges")
        least = self.smallest if self.smallest >= 1 else max(1.0, self.smallest * total)
        most = total - 0.5
        u = noise((self.budgets,), self.chosen_seed, moment.step, scores.device)
        if self.sizes == "uniform":
            counts = least + u * (most - least)
        elif self.sizes == "curve":
            counts = (total * _on_curve(u)).clamp(min=least)
        else:
            counts = torch.exp(math.log(least) + u * (math.log(most) - math.log(least)))
        wide = scores.expand(self.budgets, -1)
        z, _ = budgeted_sigmoid(wide, counts.clamp(max=most), self.temperature)
        return Draw(z, density=float(counts.mean()) / total)


def _on_curve(u: Tensor) -> Tensor:
    """MIB's sizes below 1, each for as much of ``[0, 1)`` as it counts in the trapezoid rule."""
    ends = torch.tensor(trapezoid_weights(MIB_SIZES)[:-1]).cumsum(0).to(u)
    sizes = torch.tensor(MIB_SIZES[:-1]).to(u)
    return sizes[torch.searchsorted(ends, u * ends[-1], right=True).clamp(max=len(sizes) - 1)]
