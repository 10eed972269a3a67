"""Runs a recurrent network until its states stay where they are."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from graphprune.util.checks import at_least

from .argnn import ARGNN
from .schedule import make_schedule

__all__ = ["Settled", "settle"]


class Settled(NamedTuple):
    """Where a run stopped.

    Attributes:
        state: ``[..., N, d]``.
        steps: how many steps were taken.
        change: the most by which an update of every node changed, or would change, a state; where
            it is above the tolerance the run ended at its last step.
    """

    state: Tensor
    steps: int
    change: float


def settle(
    network: ARGNN,
    x: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    tolerance: float = 1e-6,
    most: int = 1000,
    drive: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Settled:
    """Takes steps until an update of every node changes no state by more than ``tolerance``.

    A sweep or a synchronous step is such an update. Under Bernoulli updates one is tried, without
    being taken, after as many steps as a node waits for its own on average.

    Args:
        network: whole or compacted.
        x: inputs of the clamped nodes.
        h0: the state to start from.
        tolerance: see above; over all nodes, channels and examples.
        most: at most so many steps are taken.
        drive: ``[..., N, d]`` added to what nodes read in every step.
        generator: draws the updates; ``None`` means by the network's seed.

    Example:
        >>> net = ARGNN(torch.tensor([[0, 1], [1, 1]]), inputs=[0], activation="identity",
        ...             weight=torch.tensor([1.0, 0.5]), update="synchronous")
        >>> end = settle(net, torch.tensor([3.0]))
        >>> end.steps, round(end.state[1].item(), 4)
        (23, 6.0)
    """
    at_least(most, 1, "most")
    if generator is None:
        generator = torch.Generator().manual_seed(network.seed)
    bernoulli = network.update_rule == "bernoulli"
    every = make_schedule("synchronous", network.edge_index, network.free, 1, generator)
    if network.compaction is not None:
        h0 = network.compaction.own_nodes(h0)
    state = network.start(x, h0)
    done = 0
    change = math.inf
    while done < most and change > tolerance:
        count = min(math.ceil(1 / network.rate), most - done) if bernoulli else 1
        if network.update_rule == "synchronous":
            schedule = every
        else:
            schedule = network.schedule(count, generator)
        before, state = state, network(x, state, schedule=schedule, drive=drive)
        done += count
        probe = network(x, state, schedule=every, drive=drive) if bernoulli else before
        difference = (probe - state).detach().abs()
        change = float(difference.max()) if difference.numel() else 0.0
    return Settled(state, done, change)
