"""Where gates start from when scores are known: three ways from scores to gates.

``ranks`` nudges the cold start by the scores' ranks. ``density`` places gates by rank so that the
expected share of open edges at the first step is the one asked for. ``paper`` is the mapping of
Mondorf et al. (arXiv 2510.06811), kept for comparison, with its defects:

- it mixes 3 % of uniform noise into raw magnitudes, which are around 1e-6 in practice, so beyond
  the few largest edges the order is random;
- its bias is searched in [0, 1] only, where at start densities below about 0.17 it stops at 1:
  densities 0.1 and 0.05 give the same gates;
- its gates' mean is calibrated, not the share that is open: with the asked density of 0.1 about
  two thirds of the gates are not 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from graphprune.core.graph import ComputationalGraph
from graphprune.core.method import Scorer
from graphprune.core.scores import EdgeScores
from graphprune.errors import InputError
from graphprune.search.gates import BETA, GateKind, hard_concrete_open, of_senders
from graphprune.util.checks import require_one_of
from graphprune.util.numbers import ranks

__all__ = [
    "StartMapping",
    "StartingScores",
    "WarmStart",
    "first_gates",
    "gates_of_density",
    "paper_log_alpha",
    "rank_values",
]

ScoreSource: TypeAlias = EdgeScores | Scorer | str
StartMapping = Literal["ranks", "density", "paper"]
MAPPINGS = ("ranks", "density", "paper")


def rank_values(scores: Tensor, noise: float = 0.0) -> Tensor:
    """Magnitudes as ranks from -1 to 1: what gates start from, whatever the scores' scale.

    Magnitudes within ``noise`` of each other share their mean rank.

    Example:
        >>> rank_values(torch.tensor([0.1, -9.0, 0.0]))
        tensor([ 0.,  1., -1.])
    """
    even = torch.from_numpy(ranks(scores.abs(), noise)) - (len(scores) + 1) / 2
    return (even / max((len(scores) - 1) / 2, 0.5)).to(scores.dtype)


@dataclass(frozen=True)
class WarmStart:
    """A warm start that says how scores become gates; what ``warm_start=`` takes.

    Args:
        scores: :class:`~graphprune.EdgeScores`, a scorer, or its registered name.
        mapping: see the module.
        density: the expected share of open edges at the first step; ``None`` means the optimiser's
            own start, where it has one (only ``ranks`` and gates under a budget do).
        spread: gates lie from -spread to spread around their middle; ``None`` means 1 for gates
            that are shifted to a budget, 3 for those that are log odds.
    """

    scores: ScoreSource
    mapping: StartMapping = "density"
    density: float | None = None
    spread: float | None = None

    def __post_init__(self) -> None:
        require_one_of(self.mapping, MAPPINGS, "mapping")
        if self.density is not None and not 0 < self.density < 1:
            raise InputError(f"a start density is a share in (0, 1), got {self.density!r}")
        if self.spread is not None and not 0 < self.spread < math.inf:
            raise InputError(f"spread must be a positive number, got {self.spread!r}")
        if self.mapping == "ranks" and (self.density is not None or self.spread is not None):
            raise InputError("mapping='ranks' nudges the optimiser's own start: it reads neither "
                             "density nor spread")  # fmt: skip
        if self.mapping == "paper" and (self.density is None or self.spread is not None):
            raise InputError("mapping='paper' needs a density and reads no spread")


@dataclass(frozen=True, eq=False)
class StartingScores:
    """A warm start with its scores at hand: ``scores [E]``; ``seed`` is of the published noise.

    ``noise``: how far apart scores are told apart, see :class:`~graphprune.EdgeScores`.
    """

    scores: Tensor
    how: WarmStart
    seed: int = 0
    noise: float = 0.0


def first_gates(
    kind: GateKind,
    graph: ComputationalGraph,
    cold: Tensor,
    start: StartingScores | None,
    nodes: Tensor | None = None,
) -> Tensor:
    """``[E]``: the edges' first gates, the ``cold`` ones or those of a warm start.

    ``nodes [N]`` are the senders' first gates: an edge is open if both gates are.
    """
    if start is None:
        return cold
    how = start.how
    if how.mapping == "ranks":
        return cold + rank_values(start.scores, start.noise)
    if how.mapping == "paper":
        assert how.density is not None
        return paper_log_alpha(graph, start.scores, how.density, start.seed)
    if kind in ("budget", "ranking"):
        return cold + (how.spread or 1.0) * rank_values(start.scores, start.noise)
    chance = torch.sigmoid if kind == "chance" else hard_concrete_open
    assert how.density is not None
    wanted = how.density
    if nodes is not None:
        wanted /= float(of_senders(chance(nodes), graph).mean())
    if wanted >= 1:
        raise InputError(
            f"a start density of {how.density} cannot be met: gates on nodes alone leave "
            f"{how.density / wanted:.3g} of the edges open"
        )
    return gates_of_density(start.scores, wanted, how.spread or 3.0, chance, start.noise)


def gates_of_density(
    scores: Tensor,
    density: float,
    spread: float,
    chance: Callable[[Tensor], Tensor],
    noise: float = 0.0,
) -> Tensor:
    """``[E]``: gates by rank of magnitude, shifted until the mean ``chance`` of being open is met.

    The shift has no bounds, so every density in (0, 1) is reached; magnitudes within ``noise`` of
    each other get equal gates.

    Example:
        >>> gates = gates_of_density(torch.arange(100.0), 0.05, 3.0, torch.sigmoid)
        >>> round(float(torch.sigmoid(gates).mean()), 5)
        0.05
    """
    gates = spread * rank_values(scores.double(), noise)
    low, high = -60.0 - spread, 60.0 + spread
    for _ in range(80):
        bias = (low + high) / 2
        if float(chance(gates + bias).mean()) < density:
            low = bias
        else:
            high = bias
    return (gates + (low + high) / 2).float()


def paper_log_alpha(graph: ComputationalGraph, scores: Tensor, density: float, seed: int) -> Tensor:
    """``[E]``: log alpha as Mondorf et al. start them, defects included; see the module.

    Magnitudes with 3 % noise are ranked to [0, 1] among the edges into one layer; keep chances are
    ``sigmoid((rank - b) / 0.25)`` with b in [0, 1] found by bisection in each layer; the gate's
    stretch is inverted; edges into the first layer and the output get 0.15 more. (Nodes without a
    layer form one of their own.)
    """
    generator = torch.Generator().manual_seed(seed)
    size = scores.abs()
    size = 0.97 * size + 0.03 * torch.rand(len(size), generator=generator)
    layers = [-1 if node.layer is None else node.layer for node in graph.nodes]
    of_edge = torch.tensor(layers)[graph.edge_index[1]]
    out = torch.empty(len(size))
    for layer in of_edge.unique():
        edges = torch.nonzero(of_edge == layer)[:, 0]
        rank = torch.empty(len(edges))
        rank[size[edges].argsort()] = torch.arange(len(edges), dtype=torch.float32)
        rank /= max(1, len(edges) - 1)
        low, high = 0.0, 1.0
        for _ in range(40):
            b = (low + high) / 2
            more = float(torch.sigmoid((rank - b) / 0.25).mean()) > density
            low, high = (b, high) if more else (low, b)
        keep = torch.sigmoid((rank - (low + high) / 2) / 0.25)
        out[edges] = BETA * torch.logit((keep + 0.1) / 1.2)
    first = min((layer for layer in layers if layer >= 0), default=0)
    ends = torch.isin(graph.edge_index[1], torch.tensor(graph.output_nodes))
    return out + 0.15 * ((of_edge == first) | ends).float()
