"""What both graph adapters share: masks as rows, gradients point by point, provenance."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
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
    Objective,
    Reference,
    as_constant,
    mask_values,
    require_same_batch,
)
from graphprune.errors import InputError

__all__ = ["GraphModel", "Sums", "require_corrupt", "weights_digest"]


class Sums:
    """Edge gradients of one point: ``edge [E, steps]`` and, where asked for, ``[E, d]`` neurons."""

    def __init__(self, edge: Tensor, neurons: Tensor | None = None) -> None:
        self.edge, self.neurons = edge, neurons


class GraphModel(MaskedModel):
    """A masked model whose nodes are a graph's nodes."""

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
        values = mask_values(self._graph, mask, batch.size).to(self._like)
        if reference is None:
            reference = self.reference(batch)
        require_same_batch(batch, reference)
        rows = values[None] if values.ndim == 1 else values
        out = self._rows(reference, rows)
        return out[0] if values.ndim == 1 else out

    @abstractmethod
    def _rows(self, reference: Any, rows: Tensor) -> Tensor:
        """``[K, B, ...]`` of masks ``[K, E]`` or ``[K, B, E]``."""

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
        nodes = self._graph.num_nodes
        points = torch.ones(1, nodes) if gates is None else gates
        if points.ndim != 2 or points.shape[1] != nodes:
            raise InputError(f"gates must be [K, {nodes}], got {list(points.shape)}")
        held = as_constant(constant, points)
        share = torch.full((len(points),), 1.0 / len(points)) if weights is None else weights
        edge: Tensor | None = None
        fine: Tensor | None = None
        source = self._graph.edge_index[0]
        for point, fixed, weight in zip(points, held, share.tolist(), strict=True):
            gate = None if bool((point == 1).all()) else point[source].to(self._like)
            stays = fixed[source].to(self._like.device) if bool(fixed.any()) else None
            found = self._point(reference, objective, gate, neurons, stays)
            edge = weight * found.edge + (0 if edge is None else edge)
            if found.neurons is not None:
                fine = weight * found.neurons + (0 if fine is None else fine)
        if edge is None:
            raise InputError("gates name no point to take a gradient at")
        edge = edge.to("cpu", torch.float32)
        total = edge.sum(1)
        node = torch.zeros(nodes).index_add_(0, source, total)
        return Gradients(edge if by_position else total, node, self._by_node(fine))

    @abstractmethod
    def _point(
        self,
        reference: Any,
        objective: Objective,
        gate: Tensor | None,
        neurons: bool,
        constant: Tensor | None,
    ) -> Sums:
        """Gradients at one point; ``gate [E]`` and ``constant [E]`` are the sender's, by edge."""

    def _by_node(self, fine: Tensor | None) -> dict[str, Tensor]:
        if fine is None:
            return {}
        fine = fine.to("cpu", torch.float32)
        source = self._graph.edge_index[0]
        sums = torch.zeros(self._graph.num_nodes, fine.shape[1]).index_add_(0, source, fine)
        return {self._graph.nodes[n].name: sums[n] for n in source.unique().tolist()}

    # ---------------------------------------------------------------- facts

    def source_groups(self) -> list[list[int]]:
        """Senders by the longest path that leads to them; nodes on a cycle stand together."""
        depth = self._graph.depth
        groups: dict[int, list[int]] = {}
        for node in self._graph.edge_index[0].unique().tolist():
            groups.setdefault(int(depth[node]), []).append(node)
        return [groups[level] for level in sorted(groups)]

    def provenance(self) -> dict[str, Any]:
        """The module's class, its graph's size and a hash of its weights."""
        return {
            "model": self._name or type(self._module).__name__,
            "architecture": type(self._module).__name__,
            "nodes": self._graph.num_nodes,
            "edges": self._graph.num_edges,
            "dtype": str(self._like.dtype).removeprefix("torch."),
            "weights": weights_digest(self._module),
        }

    _name: str = ""


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of all parameters and buffers, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        if isinstance(tensor, Tensor):
            plain = tensor.detach().cpu().contiguous()
            digest.update(plain.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def require_corrupt(batch: Batch, ablation: Ablation) -> None:
    """Raises :class:`InputError` where counterfactual ablation lacks corrupted inputs."""
    if ablation.kind == "counterfactual" and batch.corrupt is None:
        raise InputError(
            "counterfactual ablation needs corrupted inputs and this task has none; give them, or "
            "use ablation='zero', 'mean' or 'delete'"
        )
