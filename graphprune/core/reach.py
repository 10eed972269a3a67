"""Which examples each edge can change, and edges that can be cut at once: those that share none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["EdgeReach", "Pack"]

_Numbers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pack:
    """Edges that change no example in common.

    Args:
        edges: ``[n]``: their numbers.
        examples: ``[m]``: the examples that one of them may change, each once.
        cause: ``[m]``: the edge that may change each of them.

    Example:
        >>> import numpy as np
        >>> Pack(np.array([4, 2]), np.array([0, 1, 3]), np.array([4, 2, 2])).first().examples
        array([0])
    """

    edges: _Numbers
    examples: _Numbers
    cause: _Numbers

    def first(self) -> Pack:
        """Its first edge alone."""
        own = self.cause == self.edges[0]
        return Pack(self.edges[:1], self.examples[own], self.cause[own])


@dataclass(frozen=True, eq=False)
class EdgeReach:
    """The examples of a batch that each edge may change: edges of one group change the same.

    Args:
        group: ``[E]``: each edge's group.
        starts, examples: those of group g are ``examples[starts[g] : starts[g + 1]]``.
        size: how many examples there are.

    Example:
        >>> import numpy as np
        >>> reach = EdgeReach(np.array([0, 1, 1]), np.array([0, 1, 2]), np.array([3, 0]), 4)
        >>> [pack.edges.tolist() for pack in reach.packs()]
        [[1, 0], [2]]
    """

    group: _Numbers
    starts: _Numbers
    examples: _Numbers
    size: int

    @cached_property
    def _classes(self) -> list[_Numbers]:
        """Groups that share no example, class after class: first fit, the largest groups first."""
        counts = np.bincount(self.group, minlength=len(self.starts) - 1)
        changing = np.flatnonzero((counts > 0) & (np.diff(self.starts) > 0))
        order = changing[np.argsort(-counts[changing], kind="stable")]
        taken = [0] * self.size  # a bit for each class
        classes: list[list[int]] = []
        for group in order.tolist():
            own = self.examples[self.starts[group] : self.starts[group + 1]].tolist()
            used = 0
            for example in own:
                used |= taken[example]
            free = ~used & (used + 1)
            number = free.bit_length() - 1
            if number == len(classes):
                classes.append([])
            classes[number].append(group)
            for example in own:
                taken[example] |= free
        return [np.array(groups, dtype=np.int64) for groups in classes]

    @cached_property
    def _counts(self) -> _Numbers:
        return np.bincount(self.group, minlength=len(self.starts) - 1)

    @property
    def num_packs(self) -> int:
        """How many packs there are."""
        return sum(int(self._counts[groups].max()) for groups in self._classes)

    def packs(self) -> Iterator[Pack]:
        """Every edge that may change an example, once."""
        order = np.argsort(self.group, kind="stable")
        first = np.concatenate([[0], np.cumsum(self._counts)])
        for groups in self._classes:
            own = [self.examples[self.starts[g] : self.starts[g + 1]] for g in groups.tolist()]
            member = np.repeat(np.arange(len(groups)), [len(each) for each in own])
            examples = np.concatenate(own)
            for place in range(int(self._counts[groups].max())):
                active = self._counts[groups] > place
                edges = np.full(len(groups), -1)
                edges[active] = order[first[groups[active]] + place]
                seen = active[member]
                yield Pack(edges[active], examples[seen], edges[member[seen]])
