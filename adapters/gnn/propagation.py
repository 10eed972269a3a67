"""Messages of one propagation, and where they lie among a relation's edges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .edge_values import Rows

__all__ = ["EdgeRows", "Propagation"]


@dataclass(frozen=True, eq=False)
class EdgeRows:
    """Where messages on the edges ``edges [M]`` (-1: the layer's own) lie among ``numbers``.

    ``numbers`` are those of all edges of a relation, ascending.
    """

    edges: Tensor
    numbers: Tensor

    @cached_property
    def rows(self) -> Rows:
        """The messages on the graph's edges; ``None`` means all."""
        if self.edges is self.numbers:
            return None
        rows = torch.nonzero(self.edges >= 0)[:, 0]
        if len(rows) == len(self.edges):
            return None
        first = not len(rows) or int(rows[-1]) == len(rows) - 1
        return slice(0, len(rows)) if first else rows

    @cached_property
    def own(self) -> Tensor:
        """``[M']``: the numbers of the graph's edges among the messages, in order."""
        return self.edges if self.rows is None else self.edges[self.rows]

    @cached_property
    def among(self) -> Tensor | None:
        """``[M']``: their places among ``numbers``; ``None``: all are there, in order."""
        if self.own is self.numbers or torch.equal(self.own, self.numbers):
            return None
        return torch.searchsorted(self.numbers, self.own)


@dataclass(eq=False)
class Propagation:
    """Messages of one propagation: ``[M, ...]`` on edges, at ``places`` among a relation's.

    ``find_targets`` gives ``[M]`` the nodes they reach (-1: not told), at ``end`` (1; 0: messages
    go against the edges) of the relation numbered ``relation``. ``weight [E_r]``: what gathers the
    messages' attribution, where that is asked for.
    """

    messages: Tensor
    places: EdgeRows
    find_targets: Callable[[], Tensor]
    relation: int = 0
    end: int = 1
    weight: Tensor | None = None

    @property
    def edges(self) -> Tensor:
        """``[M]``: the edges' numbers; -1: the layer's own."""
        return self.places.edges

    @property
    def numbers(self) -> Tensor:
        """``[k * E_r]``: the numbers of the relation's edges."""
        return self.places.numbers

    @cached_property
    def targets(self) -> Tensor:
        """``[M]``: the nodes reached; -1: not told."""
        return self.find_targets()

    def on_graph_edges(self, copies: int, values: Tensor | None = None) -> Tensor:
        """``[copies, E_r, ...]``: messages on the graph's edges, in order; 0 where there is none.

        ``values [M, ...]``: these in place of the messages.
        """
        every = self.messages if values is None else values
        rows, among = self.places.rows, self.places.among
        own = every if rows is None else every[rows]
        if among is not None:
            filled = own.new_zeros(len(self.numbers), *own.shape[1:])
            own = filled.index_put((among,), own)
        return own.reshape(copies, len(own) // copies, *own.shape[1:])
