"""Masked models of graphs: masks as rows, gradients point by point, provenance."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.core.batch import Batch
from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask
from graphprune.core.model import (
    Ablation,
    Gradients,
    MaskedModel,
    Messages,
    Objective,
    Reference,
    gradient_points,
    mask_values,
    require_same_batch,
)
from graphprune.core.sanity_checks import equal_but_for_rounding
from graphprune.errors import InputError
from graphprune.util.plain import weights_hash

__all__ = ["GradientPoint", "GraphModel", "PointGradients", "all_alike", "require_corrupt"]


@dataclass(frozen=True, eq=False)
class GradientPoint:
    """What is differentiated, and where.

    Args:
        objective: the function of outputs.
        gate: ``[E]``: the share of its sender's clean message that an edge carries; ``None`` for 1.
        constant: ``[E]`` bool: edges whose messages pass no gradient on; ``None`` means none does.
        neurons: whether gradients by neuron are asked for.
    """

    objective: Objective
    gate: Tensor | None
    constant: Tensor | None
    neurons: bool


@dataclass(frozen=True, eq=False)
class PointGradients:
    """Edge gradients of one point: ``edge [E, steps]`` and, where asked for, ``[E, d]`` neurons."""

    edge: Tensor
    neurons: Tensor | None = None


class GraphModel(MaskedModel):
    """A masked model whose nodes are a graph's nodes.

    Its references compute masked runs: ``reference.run(rows)`` gives ``[K, B, ...]`` of masks
    ``[K, M]`` or ``[K, B, M]``. The M messages are the edges, except where edges are tied
    (:mod:`graphprune.adapters.gnn.tying`): then one edge is both directions, masks are spread over
    the messages and gradients summed over them here, and what runs the module knows of no ties.
    """

    _graph: ComputationalGraph
    _module: nn.Module

    @property
    def graph(self) -> ComputationalGraph:
        """Graph nodes and the edges that carry messages between them."""
        return self._graph

    @property
    def module(self) -> nn.Module:
        """The user's own module."""
        return self._module

    @property
    def _like(self) -> Tensor:
        """A tensor of the module's device and dtype."""
        every = [*self._module.parameters(), *self._module.buffers()]
        return next((p for p in every if p.is_floating_point()), torch.zeros(()))

    # ---------------------------------------------------------------- running

    def run(
        self, batch: Batch, mask: EdgeMask | Tensor, reference: Reference | None = None
    ) -> Tensor:
        """See :class:`~graphprune.core.model.MaskedModel`."""
        values = self._graph.per_message(mask_values(self._graph, mask, batch.size))
        values = values.to(self._like)
        values_of_batch: Any = self.reference(batch) if reference is None else reference
        require_same_batch(batch, values_of_batch)
        rows = values[None] if values.ndim == 1 else values
        out: Tensor = values_of_batch.run(rows)
        return out[0] if values.ndim == 1 else out

    # ---------------------------------------------------------------- gradients

    def edge_gradients(
        self,
        batch: Batch,
        objective: Objective,
        reference: Reference | None = None,
        *,
        gates: Tensor | None = None,
        weights: Tensor | None = None,
        by_position: bool = False,
        neurons: bool = False,
        constant: Tensor | None = None,
    ) -> Gradients:
        """See :class:`~graphprune.capabilities.EdgeGradients`; a position is a layer's call."""
        if reference is None:
            reference = self.reference(batch)
        require_same_batch(batch, reference)
        nodes, source = self._graph.num_nodes, self._graph.untied.edge_index[0]
        edge_sum: Any = 0
        neuron_sum: Any = 0
        points = zip(*gradient_points(gates, weights, constant, nodes), strict=True)
        for gate, is_constant, weight in points:
            # What holds for a sender holds for each of its edges.
            edge_gate = None if bool((gate == 1).all()) else gate[source].to(self._like)
            edge_constant = None
            if bool(is_constant.any()):
                edge_constant = is_constant[source].to(self._like.device)
            point = GradientPoint(objective, edge_gate, edge_constant, neurons)
            at_point = self._at_point(reference, point)
            edge_sum = edge_sum + weight * at_point.edge
            if at_point.neurons is not None:
                neuron_sum = neuron_sum + weight * at_point.neurons
        edge = edge_sum.to("cpu", torch.float32)
        total = edge.sum(1)
        node = edge.new_zeros(nodes).index_add_(0, source, total)
        by_neuron: dict[str, Tensor] = {}
        if neurons:
            per_edge = neuron_sum.to("cpu", torch.float32)
            sums = per_edge.new_zeros(nodes, per_edge.shape[1]).index_add_(0, source, per_edge)
            by_neuron = {self._graph.nodes[n].name: sums[n] for n in source.unique().tolist()}
        return Gradients(self._graph.per_edge(edge if by_position else total), node, by_neuron)

    @abstractmethod
    def _at_point(self, reference: Any, point: GradientPoint) -> PointGradients:
        """Gradients at one point."""

    # ---------------------------------------------------------------- messages

    def messages(self, batch: Batch) -> Iterator[Messages]:
        """See :class:`~graphprune.capabilities.PlacedMessages`; a tied edge has two of them."""
        for one in self._messages(batch):
            edges = one.edges if self._graph.ties is None else self._graph.ties.edge[one.edges]
            yield replace(one, edges=edges)

    @abstractmethod
    def _messages(self, batch: Batch) -> Iterator[Messages]:
        """The messages by their own numbers."""

    def untied(self) -> GraphModel:
        """The same model with each message as an edge of its own."""
        twin = copy.copy(self)
        twin._graph = self._graph.untied
        return twin

    # ---------------------------------------------------------------- learned constants

    def _learned(self, start: Ablation) -> Ablation:
        """Constants that begin as the messages of ``start``, a zero or a mean ablation."""
        dtype = torch.float64 if self._like.dtype == torch.float64 else torch.float32
        if start.kind == "mean" and not start.per_position:
            values = [start.values] if isinstance(start.values, Tensor) else start.values
        elif start.kind == "zero":
            values = self._zero_messages()
        else:
            raise InputError(
                f"learned constants start from zero or mean ablation, got {start.name!r}"
            )
        leaves = (value.detach().to(dtype).clone().requires_grad_(True) for value in values)
        return Ablation("optimal", tuple(leaves))

    @abstractmethod
    def _zero_messages(self) -> list[Tensor]:
        """Zeros in the shapes of a mean ablation's messages."""

    # ---------------------------------------------------------------- facts

    def source_groups(self) -> list[list[int]]:
        """Senders by the longest path that leads to them; nodes on a cycle stand together."""
        depth = self._graph.depth
        groups: dict[int, list[int]] = {}
        for node in self._graph.untied.edge_index[0].unique().tolist():
            groups.setdefault(int(depth[node]), []).append(node)
        return [groups[level] for level in sorted(groups)]

    def provenance(self) -> dict[str, Any]:
        """The module's class, its graph's size and a hash of its weights."""
        return {
            "model": self._name or type(self._module).__name__,
            "architecture": type(self._module).__name__,
            "nodes": self._graph.num_nodes,
            self._graph.counted: self._graph.num_edges,
            "dtype": str(self._like.dtype).removeprefix("torch."),
            "weights": weights_hash(sorted(self._module.state_dict().items())),
        }

    _name: str = ""


def all_alike(pairs: Iterable[tuple[Tensor, Tensor | None]]) -> bool:
    """Whether messages are what stands in for them (``None`` means zeros), but for rounding."""
    return all(
        not bool(own.any()) if instead is None else equal_but_for_rounding(own, instead)
        for own, instead in pairs
    )


def require_corrupt(batch: Batch, ablation: Ablation) -> None:
    """Raises :class:`InputError` where counterfactual ablation lacks corrupted inputs."""
    if ablation.kind == "counterfactual" and batch.corrupt is None:
        raise InputError(
            "counterfactual ablation needs corrupted inputs and this task has none; give them, or "
            "use ablation='zero', 'mean' or 'delete'"
        )
