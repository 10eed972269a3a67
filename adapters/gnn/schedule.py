"""Which nodes update in which step of an asynchronous recurrent network.

A *step* of a ``"synchronous"`` schedule updates all free nodes from the old states, one of a
``"bernoulli"`` schedule each free node with a fixed chance, one of a ``"sequential"`` schedule all
free nodes one after another in a random order, each from the newest states (a Gauss-Seidel sweep).

A sweep need not go node by node. Under an order, an edge is *forward* if its source updates before
its target. Backward edges carry old states, known before the sweep; nodes of one *level* (the
longest path of forward edges that ends at them) do not read each other, so they update together.
The result is the sweep's, in as many operations as there are levels: in a dense graph as many as
nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphprune.util.checks import at_least
from graphprune.util.paths import longest_paths

__all__ = ["UPDATES", "Schedule", "SweepLevels", "Update", "levels_of", "make_schedule"]

Update = Literal["sequential", "bernoulli", "synchronous"]
UPDATES: tuple[Update, ...] = ("sequential", "bernoulli", "synchronous")


@dataclass(frozen=True, eq=False)
class SweepLevels:
    """A sweep's edges and nodes, level by level.

    ``backward [b]`` are numbers of the edges that carry old states. Level l updates ``nodes[l]``;
    ``edges[l]`` are the forward edges into them and ``places[l]`` their targets as positions in
    ``nodes[l]``. Edges into nodes that do not update stand nowhere. ``forward [E]`` bool marks all
    forward edges.
    """

    backward: Tensor
    nodes: tuple[Tensor, ...]
    edges: tuple[Tensor, ...]
    places: tuple[Tensor, ...]
    forward: Tensor

    def __len__(self) -> int:
        return len(self.nodes)


def levels_of(edge_index: Tensor, order: Tensor, num_nodes: int) -> SweepLevels:
    """The levels of a sweep in ``order [n]`` over the nodes it names; others keep their state.

    Example:
        >>> levels = levels_of(torch.tensor([[0, 1, 2], [1, 2, 0]]), torch.tensor([0, 1, 2]), 3)
        >>> len(levels), levels.backward.tolist(), [n.tolist() for n in levels.nodes]
        (3, [2], [[0], [1], [2]])
    """
    source, target = edge_index.cpu().numpy()
    turn = np.full(num_nodes, -1, dtype=np.int64)
    turn[order.cpu().numpy()] = np.arange(len(order))
    reads = turn[target] >= 0
    forward = reads & (turn[source] >= 0) & (turn[source] < turn[target])
    pairs = np.stack([source[forward], target[forward]])
    level = longest_paths(pairs, np.arange(num_nodes))  # forward edges form no cycle
    nodes = _grouped(level[order.numpy()])
    node_groups = [order.numpy()[group] for group in nodes]
    position = np.zeros(num_nodes, dtype=np.int64)
    for group in node_groups:
        position[group] = np.arange(len(group))
    numbers = np.flatnonzero(forward)
    by_level = _grouped(level[target[numbers]], len(node_groups))
    edges = [numbers[group] for group in by_level]
    return SweepLevels(
        backward=torch.from_numpy(np.flatnonzero(reads & ~forward)),
        nodes=tuple(map(torch.from_numpy, node_groups)),
        edges=tuple(map(torch.from_numpy, edges)),
        places=tuple(torch.from_numpy(position[target[e]]) for e in edges),
        forward=torch.from_numpy(forward),
    )


def _grouped(keys: NDArray[np.int64], count: int | None = None) -> list[NDArray[np.int64]]:
    """Positions of keys 0, 1, ..., each group in order."""
    groups = int(keys.max(initial=-1)) + 1 if count is None else count
    order = np.argsort(keys, kind="stable")
    ends = np.searchsorted(keys[order], np.arange(groups + 1))
    return [order[a:b] for a, b in pairwise(ends)]


@dataclass(frozen=True, eq=False)
class Schedule:
    """The updates of a run, drawn beforehand so that several runs can share them.

    Args:
        update: the kind of step.
        edge_index: ``[2, E]``; levels depend on it.
        num_nodes: how many nodes there are.
        steps: one tensor a step: ``[n]`` int64, the order of a sweep; or ``[N]`` bool, the nodes
            that update.
    """

    update: Update
    edge_index: Tensor
    num_nodes: int
    steps: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.steps)

    def among(self, nodes: Tensor, edge_index: Tensor) -> Schedule:
        """The same updates of some ``nodes [n]``, ascending, which are now 0 to n - 1."""
        nodes = nodes.cpu()
        if len(nodes) == self.num_nodes:
            steps = self.steps
        elif self.update == "sequential":
            place = torch.full((self.num_nodes,), -1)
            place[nodes] = torch.arange(len(nodes))
            orders = (place[order.cpu()] for order in self.steps)
            steps = tuple(order[order >= 0] for order in orders)
        else:
            steps = torch.stack(self.steps).cpu()[:, nodes].unbind()
        return Schedule(self.update, edge_index.cpu(), len(nodes), steps)

    @cached_property
    def levels(self) -> tuple[SweepLevels, ...]:
        """The levels of every sweep; empty unless sequential."""
        if self.update != "sequential":
            return ()
        return tuple(levels_of(self.edge_index, order, self.num_nodes) for order in self.steps)


def make_schedule(
    update: Update,
    edge_index: Tensor,
    free: Tensor,
    steps: int,
    generator: torch.Generator,
    rate: float = 0.5,
) -> Schedule:
    """Draws ``steps`` steps over the nodes ``free [N]`` bool; ``rate`` is the Bernoulli chance."""
    free = free.cpu()
    count = at_least(steps, 1, "steps")
    if update == "sequential":
        nodes = torch.nonzero(free)[:, 0]
        orders = (torch.randperm(len(nodes), generator=generator) for _ in range(count))
        drawn = tuple(nodes[order] for order in orders)
    elif update == "bernoulli":
        drawn = (free & (torch.rand(count, len(free), generator=generator) < rate)).unbind()
    else:
        drawn = (free,) * count
    return Schedule(update, edge_index.cpu(), len(free), drawn)
