"""A recurrent network without the edges that are cut and the nodes that no output needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from graphprune.errors import InputError

from .schedule import Schedule
from .unrolled_network import UnrolledNetwork
from .unrolled_run import Product

__all__ = ["Compaction", "needed_nodes"]


@dataclass(eq=False)
class Compaction:
    """How a compacted network stands to the whole one, and how it runs.

    Args:
        nodes: ``[n]``: the numbers that its nodes have in the whole network.
        free: ``[N]`` bool: the whole network's nodes that are not clamped.
        product: how what nodes read is computed; ``None`` tries both when it first runs.

    Attributes:
        schedules: those drawn by the seed, by update, steps, rate and seed.
    """

    nodes: Tensor
    free: Tensor
    product: Product | None = None
    schedules: dict[tuple[Any, ...], Schedule] = field(default_factory=dict)
    _runs: UnrolledNetwork | None = None
    _given: tuple[Schedule, Schedule] | None = None  # a whole network's, and what it is here

    @classmethod
    def following(
        cls, before: Compaction | None, nodes: Tensor, free: Tensor, product: Product | None
    ) -> Compaction:
        """Of a network with some ``nodes`` of one that was compacted ``before``, or is whole."""
        if before is None:
            return cls(nodes, free, product)
        return cls(before.nodes[nodes], before.free, product)

    def unrolled(
        self,
        edge_index: Tensor,
        free: Tensor,
        inputs: Tensor,
        outputs: Tensor,
        activations: tuple[str, str],
    ) -> UnrolledNetwork:
        """Computes the network's states; made anew where its activations have changed."""
        runs = self._runs
        if runs is None or runs.activations != activations:
            runs = UnrolledNetwork(edge_index, free, inputs, outputs, activations, self.product)
            self._runs = runs
        return runs

    def own_schedule(self, schedule: Schedule, edge_index: Tensor) -> Schedule:
        """A schedule of the whole network or of this one, over this one's nodes and edges."""
        same_edges = schedule.edge_index.shape == edge_index.shape
        if schedule.num_nodes == len(self.nodes) and same_edges:
            return schedule
        if schedule.num_nodes != len(self.free):
            raise InputError(
                f"the schedule is of {schedule.num_nodes} nodes; this network has "
                f"{len(self.nodes)}, and the one it was made from {len(self.free)}"
            )
        if self._given is None or self._given[0] is not schedule:
            self._given = schedule, schedule.among(self.nodes, edge_index)
        return self._given[1]

    def own_nodes(self, states: Tensor | None) -> Tensor | None:
        """States ``[..., N, d]`` of the whole network or ``[..., n, d]``: those of this one."""
        if states is None or not states.shape[-2] == len(self.free) != len(self.nodes):
            return states
        return states.index_select(-2, self.nodes.to(states.device))


def needed_nodes(edge_index: Tensor, num_nodes: int, inputs: Tensor, outputs: Tensor) -> Tensor:
    """Numbers of the inputs, the outputs, and the nodes from which a path leads to an output.

    Example:
        >>> edges = torch.tensor([[0, 1, 1], [1, 2, 3]])
        >>> needed_nodes(edges, 5, torch.tensor([0]), torch.tensor([2])).tolist()
        [0, 1, 2]
    """
    source, target = edge_index
    needed = torch.zeros(num_nodes, dtype=torch.bool, device=edge_index.device)
    needed[outputs] = True
    count = -1
    while count != (count := int(needed.sum())):
        needed[source[needed[target]]] = True
    needed[inputs] = True
    return torch.nonzero(needed)[:, 0]
