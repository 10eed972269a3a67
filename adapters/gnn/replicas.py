"""Copies of one graph side by side: examples and masks become disjoint copies in one pass.

A batch of graphs is block-diagonal, so what a copy computes depends on no other. Examples that
share their features (nodes of one graph, graphs of one batch) share a copy wherever they share a
mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graphprune.errors import InputError

__all__ = ["Features", "Source"]


@dataclass(frozen=True, eq=False)
class Features:
    """What the nodes hold: tensors ``[C, N, ...]``, one copy for each pattern, or one for all."""

    nodes: Mapping[str, Tensor]

    @property
    def copies(self) -> int:
        """How many patterns."""
        return len(next(iter(self.nodes.values())))

    def of(self, numbers: Tensor) -> dict[str, Tensor]:
        """``[k * N, ...]``: copies by pattern number ``[k]``."""
        return {name: value[numbers].flatten(0, 1) for name, value in self.nodes.items()}


@dataclass(frozen=True, eq=False)
class Source:
    """The data a model's module is called with, and how it is copied.

    Args:
        edge_index: ``[2, E]``.
        num_nodes: N.
        node: tensors ``[N, ...]`` by name, of which tasks may replace some.
        edge: tensors ``[E, ...]`` by name.
        batch: ``[N]`` graph numbers, or ``None`` for one graph.
        num_graphs: how many graphs.
    """

    edge_index: Tensor
    num_nodes: int
    node: Mapping[str, Tensor]
    edge: Mapping[str, Tensor]
    batch: Tensor | None = None
    num_graphs: int = 1

    @classmethod
    def of(cls, data: Any) -> Source:
        """From a PyG ``Data`` or ``Batch``; raises :class:`InputError` where something is odd."""
        index = data.edge_index
        if not isinstance(index, Tensor) or index.layout != torch.strided:
            raise InputError(
                "expected data.edge_index as a plain tensor [2, E]; a sparse adjacency takes fused "
                "paths that pass no messages one by one"
            )
        edges = index.as_subclass(Tensor).detach().clone()
        if edges.ndim != 2 or edges.shape[0] != 2:
            raise InputError(f"data.edge_index must be [2, E], got {list(edges.shape)}")
        nodes = int(data.num_nodes)
        if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < nodes:
            raise InputError(f"data.edge_index names a node outside 0..{nodes - 1}")
        batch = getattr(data, "batch", None)
        node: dict[str, Tensor] = {}
        edge: dict[str, Tensor] = {}
        for name in data.keys():  # noqa: SIM118 - PyG's data is no mapping
            value = data[name]
            if name in ("edge_index", "batch", "ptr", "y") or not isinstance(value, Tensor):
                continue
            if data.is_edge_attr(name):
                edge[name] = value
            elif data.is_node_attr(name):
                node[name] = value
        for name, value in {**node, **edge}.items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise InputError(f"data.{name} holds NaN or infinite values")
        graphs = int(data.num_graphs) if batch is not None else 1
        return cls(edges, nodes, node, edge, batch, graphs)

    def features(self, side: Any, size: int) -> Features:
        """A batch's ``clean`` or ``corrupt`` over the data's own.

        Values with the data's shape are shared by all examples, with a leading axis more they
        are a pattern for each.
        """
        given = side if isinstance(side, Mapping) else {"x": side}
        own, shared = dict[str, Tensor](), dict[str, Tensor]()
        for name, value in given.items():
            if name == "graphs":
                continue
            key = "x" if name == "inputs" else name
            base = self.node.get(key)
            if base is None:
                known = ", ".join(self.node)
                raise InputError(f"the task names {name!r}; nodes of the data have: {known}")
            if value.shape[1:] == base.shape and len(value) == size:
                own[key] = value
            elif value.shape == base.shape:
                shared[key] = value
            else:
                raise InputError(
                    f"{name} must be {list(base.shape)}, shared by all examples, or "
                    f"{[size, *base.shape]}, got {list(value.shape)}"
                )
        count = size if own else 1
        found = {key: value[None].expand(count, *value.shape) for key, value in self.node.items()}
        found |= {key: value[None].expand(count, *value.shape) for key, value in shared.items()}
        return Features({**found, **own})

    def copies(self, count: int) -> dict[str, Any]:
        """``edge_index``, ``batch`` and edge tensors of so many copies."""
        shift = torch.arange(count, device=self.edge_index.device) * self.num_nodes
        index = (self.edge_index[:, None] + shift[None, :, None]).flatten(1)
        found: dict[str, Any] = {"edge_index": index}
        for name, value in self.edge.items():
            found[name] = value.repeat(count, *[1] * (value.ndim - 1))
        if self.batch is not None:
            shift = torch.arange(count, device=self.batch.device) * self.num_graphs
            found["batch"] = (self.batch[None] + shift[:, None]).flatten()
        return found
