"""Networks that train while edges are cut: how dynamic pruning reaches into them.

All of it is undone when training ends, whatever happens: hooks go, flags are as they were. What the
optimiser learned stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from graphprune.core.graph import ComputationalGraph
from graphprune.errors import InputError
from graphprune.search.cut_edges import CutEdges

from .argnn import ARGNN
from .hooks import MessageHooks
from .module_call import ModuleCall
from .propagation import Propagation

__all__ = ["cutting_flags", "cutting_messages"]


class _Flags(CutEdges):
    """An ARGNN's edges, by its flags."""

    def __init__(self, network: ARGNN, graph: ComputationalGraph) -> None:
        super().__init__(graph)
        self.network = network

    @property
    def kept(self) -> Tensor:
        """See :class:`CutEdges`: of tied edges, those of which either direction is there."""
        return self.graph.per_edge(self.network.edge_keep.cpu().int()) > 0

    @torch.no_grad()
    def keep(self, kept: Tensor, grown: Tensor) -> None:
        """See :class:`CutEdges`."""
        network = self.network
        network.edge_keep.copy_(self.graph.per_message(kept))
        network.edge_weight[self.graph.per_message(grown).to(network.edge_weight.device)] = 0.0

    def weights(self) -> Tensor:
        """See :class:`CutEdges`."""
        return self.network.edge_weight.detach().cpu().double()

    def gradients(self) -> Tensor:
        """See :class:`CutEdges`."""
        dense = self.network.dense_gradient
        assert dense is not None
        return dense.cpu().double()

    def forget(self) -> None:
        """See :class:`CutEdges`."""
        self.network.dense_gradient = torch.zeros_like(self.network.edge_weight)

    def numbers(self) -> list[Tensor]:
        """See :class:`CutEdges`."""
        return [self.network.edge_weight]


@contextmanager
def cutting_flags(network: ARGNN, graph: ComputationalGraph) -> Iterator[CutEdges]:
    """An ARGNN's edges while it trains."""
    flags, gradient = network.edge_keep.clone(), network.dense_gradient
    edges = _Flags(network, graph)
    try:
        edges.forget()
        yield edges
    finally:
        network.edge_keep.copy_(flags)
        network.dense_gradient = gradient


class _Messages(CutEdges):
    """Edges of any message passing module: a mask on the messages of the user's own calls."""

    def __init__(self, graph: ComputationalGraph, device: torch.device) -> None:
        super().__init__(graph)
        count = graph.untied.num_edges
        self.mask = torch.ones(count, device=device, requires_grad=True)
        self._sums, self._calls = torch.zeros(count, dtype=torch.float64), 0
        self._were_read = False
        self.hooks: MessageHooks | None = None

    @property
    def kept(self) -> Tensor:
        """See :class:`CutEdges`."""
        return self.graph.per_edge(self.mask.detach().cpu()) > 0

    @torch.no_grad()
    def keep(self, kept: Tensor, grown: Tensor) -> None:
        """See :class:`CutEdges`."""
        self.mask.copy_(self.graph.per_message(kept))

    @property
    def has_weights(self) -> bool:
        """See :class:`CutEdges`."""
        return self._calls > 0

    def weights(self) -> Tensor:
        """See :class:`CutEdges`: mean norms of messages since they were asked for before."""
        if not self._calls:
            raise InputError("the module was not called yet, so its messages have no sizes")
        self._were_read = True
        return self._sums / self._calls

    def gradients(self) -> Tensor:
        """See :class:`CutEdges`."""
        if self.mask.grad is None:
            raise InputError(
                "no gradient reached the edges: call step() after backward(), on a loss of the "
                "module's outputs"
            )
        return self.mask.grad.cpu().double()

    def effects(self) -> Tensor:
        """See :class:`CutEdges`."""
        return self.gradients()

    def forget(self) -> None:
        """See :class:`CutEdges`."""
        self.mask.grad = None

    def stepped(self) -> None:
        """See :class:`CutEdges`: what calls made of the edges."""
        if self.hooks is not None:
            self.hooks.restart()

    def look_at(self, one: Propagation) -> None:
        """Takes the sizes of a propagation's messages."""
        if self._were_read:
            self._sums.zero_()
            self._calls, self._were_read = 0, False
        own = torch.nonzero(one.edges >= 0)[:, 0]
        norms = one.messages.detach()[own].flatten(1).norm(dim=1).double()
        self._sums.index_add_(0, one.edges[own].cpu(), norms.cpu())
        self._calls += 1


class _SizesOnly(list[Propagation]):
    """Takes the sizes of messages and lets them go: a module trains for many calls."""

    def __init__(self, edges: _Messages) -> None:
        super().__init__()
        self._edges, self._count = edges, 0

    def append(self, one: Propagation) -> None:
        """Counts a propagation."""
        self._count += 1
        self._edges.look_at(one)

    def __len__(self) -> int:
        return self._count


@contextmanager
def cutting_messages(call: ModuleCall, graph: ComputationalGraph) -> Iterator[CutEdges]:
    """The edges of a module that its user calls on the data that it was wrapped with.

    Masks are such that they equal deletion, in every layer that allows it.
    """
    module, source = call.module, call.data
    edges = _Messages(graph, source.device)
    # The user's calls bring the data's own tensors, by which relations are told.
    own = replace(source.make_copies().edges, index=tuple(source.relations.values()))
    hooks = MessageHooks(own, edges.mask, delete=True, look=True, seen=_SizesOnly(edges))
    edges.hooks = hooks
    with hooks.watch(module):
        yield edges
