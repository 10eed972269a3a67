"""Networks that train while edges are cut: how dynamic pruning reaches into them.

All of it is undone when training ends, whatever happens: hooks go, flags are as they were. What the
optimiser learned stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from graphprune.core.graph import ComputationalGraph
from graphprune.errors import InputError
from graphprune.search.cut_edges import CutEdges

from .argnn import ARGNN
from .hooks import MessageHooks
from .module_call import ModuleCall

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
        self.sizes: Tensor | None = None

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
        return self.sizes is not None

    def weights(self) -> Tensor:
        """See :class:`CutEdges`: mean norms of the messages of the last call."""
        if self.sizes is None:
            raise InputError("the module was not called yet, so its messages have no sizes")
        return self.sizes

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

    def look_at(self, hooks: MessageHooks) -> None:
        """Takes the sizes of the messages of a call, which is over."""
        sums, calls = torch.zeros(self.mask.shape, dtype=torch.float64), torch.zeros(1)
        for one in hooks.seen:
            own = one.edges >= 0
            norms = one.messages.detach()[own].flatten(1).norm(dim=1).double().cpu()
            sums.index_add_(0, one.edges[own].cpu(), norms)
            calls += 1
        self.sizes = sums / calls.clamp(min=1)
        hooks.forget()


@contextmanager
def cutting_messages(call: ModuleCall, graph: ComputationalGraph) -> Iterator[CutEdges]:
    """The edges of a module that its user calls on the data that it was wrapped with.

    Masks are such that they equal deletion, in every layer that allows it.
    """
    module, source = call.module, call.data
    edges = _Messages(graph, source.device)
    # The user's calls bring the data's own tensors, by which relations are told.
    own = replace(source.make_copies().edges, index=tuple(source.relations.values()))
    hooks = MessageHooks(own, edges.mask, delete=True)

    def begin(*_: Any) -> None:
        hooks.forget()  # a call that failed

    def end(*_: Any) -> None:
        edges.look_at(hooks)

    with hooks.watch(module):
        handles = [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
        try:
            yield edges
        finally:
            for handle in handles:
                handle.remove()
