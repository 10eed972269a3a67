"""What every node of a recurrent network receives, sorted by node, for writing runs out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Drive", "Flags", "Numbers", "Wiring", "ranges"]

Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]
Drive = Literal["none", "constant", "by step"]
NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class Wiring:
    """A network's edges and what else its nodes receive.

    A *source* is a node, or behind the N nodes: the ones that biases multiply, a sum of constants
    for each node, a drive for each node.

    Args:
        edge_index: ``[2, E]``.
        inputs: numbers of the clamped nodes, in the order that inputs are given.
        free: ``[N]`` bool: nodes that are not clamped.
        keeps_zero: ``[N]`` bool: the node's activation maps zero to zero.
        kind: ``[N]``, ascending: 0, or 1 for the outputs' own activation.
        bias: whether nodes have one.
        drive: what else is added to what nodes read: nothing, the same or another in each step.
    """

    edge_index: Numbers
    inputs: Numbers
    free: Flags
    keeps_zero: Flags
    kind: Numbers
    bias: bool
    drive: Drive

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return len(self.free)

    @property
    def sources(self) -> int:
        """How many sources there are."""
        return 3 * self.nodes + 1

    @property
    def ones(self) -> int:
        """The source that is 1."""
        return self.nodes

    def sum_of(self, nodes: Numbers) -> Numbers:
        """The sources that are the sums of these nodes' constants."""
        return self.nodes + 1 + nodes

    def drive_of(self, nodes: Numbers) -> Numbers:
        """The sources that are these nodes' drives."""
        return 2 * self.nodes + 1 + nodes

    @property
    def one(self) -> int:
        """The number of the factor 1: behind the weights and, where there are, the biases."""
        return int(self.edge_index.shape[1]) + (self.nodes if self.bias else 0)

    @cached_property
    def free_nodes(self) -> Numbers:
        """Numbers of the nodes that are not clamped."""
        return np.flatnonzero(self.free)

    @cached_property
    def between(self) -> tuple[Numbers, Numbers]:
        """Sources and targets of the edges between nodes that are not clamped."""
        source, target = self.edge_index
        inner = self.free[source]
        return source[inner], target[inner]

    @cached_property
    def _everything(self) -> tuple[Numbers, Numbers, Numbers, Flags]:
        """Source, target, factor of all that nodes receive, and whether it is the same always."""
        edges, free = self.edge_index.shape[1], self.free_nodes
        parts = [(self.edge_index[0], self.edge_index[1], np.arange(edges))]
        if self.bias:
            parts.append((np.full(len(free), self.ones), free, edges + free))
        if self.drive != "none":
            parts.append((self.drive_of(free), free, np.full(len(free), self.one)))
        source, target, factor = (np.concatenate(part) for part in zip(*parts, strict=True))
        same = np.ones(self.sources, dtype=bool)
        same[: self.nodes] = ~self.free
        same[self.drive_of(free)] = self.drive == "constant"
        return source, target, factor, same[source]

    @cached_property
    def has_sum(self) -> Flags:
        """``[N]``: nodes that receive several constants, and other things beside them."""
        _, target, _, same = self._everything
        several = np.bincount(target[same], minlength=self.nodes) > 1
        return several & (np.bincount(target[~same], minlength=self.nodes) > 0)

    @cached_property
    def constants(self) -> tuple[Numbers, Numbers, Numbers]:
        """Source, target and factor of what goes into the sums of constants, by target."""
        source, target, factor, same = self._everything
        return _by_target(source, target, factor, same & self.has_sum[target])

    @cached_property
    def received(self) -> tuple[Numbers, Numbers, Numbers]:
        """Source, target and factor of what nodes receive, the sums as one, by target."""
        source, target, factor, same = self._everything
        rest = ~(same & self.has_sum[target])
        summed = np.flatnonzero(self.has_sum)
        return _by_target(
            np.concatenate([source[rest], self.sum_of(summed)]),
            np.concatenate([target[rest], summed]),
            np.concatenate([factor[rest], np.full(len(summed), self.one)]),
        )

    @cached_property
    def in_degree(self) -> Numbers:
        """``[N]``: how much each node receives, the sums as one."""
        return np.bincount(self.received[1], minlength=self.nodes)

    @cached_property
    def first_received(self) -> Numbers:
        """``[N]``: where what each node receives begins."""
        return np.cumsum(self.in_degree) - self.in_degree

    @cached_property
    def never_zero(self) -> Flags:
        """``[N]``: nodes that an update cannot set to zero for want of anything to read."""
        source, target, _ = self.received
        given = np.ones(self.sources, dtype=bool)
        given[: self.nodes] = ~self.free
        return ~self.keeps_zero | (np.bincount(target[given[source]], minlength=self.nodes) > 0)

    def steps_until_rest(self, most: int) -> Numbers:
        """``[N]``: after how many steps in which all nodes update a node never changes again.

        More than ``most`` is a very large number, and so is "never".
        """
        source, target = self.between
        steps = np.where(self.free, NEVER, 0)
        if self.drive == "by step":
            return steps
        for number in range(1, most + 1):
            moving = np.zeros(self.nodes, dtype=bool)
            moving[target[steps[source] == NEVER]] = True
            new = (steps == NEVER) & ~moving
            if not new.any():
                break
            steps[new] = number
        return steps

    def turns(self, order: Numbers) -> Numbers:
        """``[N]``: each node's turn in a sweep; N for those that do not update."""
        turn = np.full(self.nodes, self.nodes)
        turn[order] = np.arange(len(order))
        return turn


def ranges(starts: NDArray[Any], lengths: NDArray[Any]) -> Numbers:
    """The numbers of several ranges, one range behind the other.

    Example:
        >>> ranges(np.array([5, 0]), np.array([2, 3])).tolist()
        [5, 6, 0, 1, 2]
    """
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)


def _by_target(
    source: Numbers, target: Numbers, factor: Numbers, chosen: Flags | None = None
) -> tuple[Numbers, Numbers, Numbers]:
    if chosen is not None:
        source, target, factor = source[chosen], target[chosen], factor[chosen]
    order = np.argsort(target, kind="stable")
    return source[order], target[order], factor[order]
