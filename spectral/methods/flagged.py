"""Edges with a weight and a flag each, whatever they belong to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphprune.core.graph import ComputationalGraph, Node
from graphprune.errors import InputError
from graphprune.search.cut_edges import CutEdges, no_gradients

from ..linalg.weighted_graph import weighted_graph

__all__ = ["Flagged"]


class Flagged(CutEdges):
    """The edges of anything with ``edge_weight [E]`` and ``edge_keep [E]`` bool.

    A weight that is multiplied by its flag has no gradient where it is cut, so a target with
    ``dense_gradient`` (``None`` or ``[E]``, as :class:`graphprune.adapters.ARGNN` has it) is asked
    for the gradient by each edge's weight as it counts in the run. Of others ``edge_weight.grad``
    is read; one of zeros at all cut edges is refused.
    """

    def __init__(self, target: Any, edge_index: Any, num_nodes: int) -> None:
        for name in ("edge_weight", "edge_keep"):
            if not isinstance(getattr(target, name, None), Tensor):
                raise InputError(f"what is pruned needs a tensor {name} [E]")
        given = weighted_graph((edge_index, num_nodes))
        count = given.num_edges
        shapes = [list(target.edge_weight.shape), list(target.edge_keep.shape)]
        if shapes != [[count], [count]]:
            raise InputError(f"edge_weight and edge_keep must be [{count}], got {shapes}")
        if target.edge_keep.dtype != torch.bool:
            raise InputError(f"edge_keep must be bool, got {target.edge_keep.dtype}")
        ends = torch.stack([torch.from_numpy(given.sources), torch.from_numpy(given.targets)])
        nodes = tuple(Node(str(i)) for i in range(num_nodes))
        super().__init__(ComputationalGraph(nodes, ends, torch.zeros(count, dtype=torch.uint8)))
        self.target = target

    @property
    def kept(self) -> Tensor:
        """See :class:`~graphprune.search.cut_edges.CutEdges`."""
        kept: Tensor = self.target.edge_keep
        return kept.cpu().clone()

    @torch.no_grad()
    def keep(self, kept: Tensor, grown: Tensor) -> None:
        """See :class:`~graphprune.search.cut_edges.CutEdges`."""
        self.target.edge_keep.copy_(kept)
        self.target.edge_weight[grown.to(self.target.edge_weight.device)] = 0.0

    def weights(self) -> Tensor:
        """See :class:`~graphprune.search.cut_edges.CutEdges`."""
        weight: Tensor = self.target.edge_weight
        return weight.detach().cpu().double()

    def gradients(self) -> Tensor:
        """See :class:`~graphprune.search.cut_edges.CutEdges`."""
        dense = getattr(self.target, "dense_gradient", None)
        slope = self.target.edge_weight.grad if dense is None else dense
        cut = ~self.target.edge_keep
        if slope is None or (dense is None and bool(cut.any()) and not bool(slope[cut].any())):
            raise no_gradients("none" if slope is None else "0 at every cut edge")
        return torch.as_tensor(slope).cpu().double()

    def forget(self) -> None:
        """See :class:`~graphprune.search.cut_edges.CutEdges`."""
        if hasattr(self.target, "dense_gradient"):
            self.target.dense_gradient = torch.zeros_like(self.target.edge_weight)

    def numbers(self) -> list[Tensor]:
        """See :class:`~graphprune.search.cut_edges.CutEdges`."""
        return [self.target.edge_weight]
