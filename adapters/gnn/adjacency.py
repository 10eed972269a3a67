"""Sums over edges: what nodes read of each other's states, and products summed over examples.

A node reads ``out[t] = sum over edges s -> t of weight * state[s]``. Small graphs use one dense
matrix for all steps of a run, large ones gather and add: a gathered message costs some fifty times
a multiplication inside a matrix product.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["WeightedAdjacency", "add_at", "edge_products"]

_DENSE_NODES = 1024
_DENSE_ENTRIES = 1 << 25  # of all matrices of one run together: 128 MiB in float32
_DENSE_PRODUCT_NODES = 2048
_GATHER_COST = 50
_CHUNK = 1 << 24  # gathered numbers at a time


def add_at(values: Tensor, index: Tensor, size: int) -> Tensor:
    """``[..., size, d]``: the sums of ``values [..., E, d]`` at ``index [E]``."""
    shape = (*values.shape[:-2], size, values.shape[-1])
    return values.new_zeros(shape).index_add(-2, index, values)


class WeightedAdjacency:
    """The edges of one run with their weights, ready to carry states step after step.

    Args:
        edge_index: ``[2, E]``.
        weight: ``[..., E]``; leading axes are those of the states, each equal or 1.
        num_nodes: how many nodes there are.
        dense: whether to use matrices; ``None`` decides by size.
    """

    def __init__(
        self, edge_index: Tensor, weight: Tensor, num_nodes: int, *, dense: bool | None = None
    ) -> None:
        self.source, self.target = edge_index
        self.weight, self.nodes = weight, num_nodes
        rows = weight[..., 0].numel() if weight.shape[-1] else 1
        if dense is None:
            dense = (
                num_nodes <= _DENSE_NODES
                and rows * num_nodes**2 <= _DENSE_ENTRIES
                and num_nodes**2 <= _GATHER_COST * max(weight.shape[-1], 1)
            )
        self._matrix = self._dense() if dense else None

    def _dense(self) -> Tensor:
        flat = self.weight.new_zeros((*self.weight.shape[:-1], self.nodes**2))
        cells = self.source * self.nodes + self.target
        filled = flat.index_add(-1, cells, self.weight)
        return filled.reshape(*filled.shape[:-1], self.nodes, self.nodes)

    def propagate(self, state: Tensor) -> Tensor:
        """``[..., N, d]``: what each node reads of ``state [..., N, d]``."""
        if self._matrix is None:
            return add_at(self.messages(state), self.target, self.nodes)
        rows = state.movedim(-2, -1)
        matrix = self._matrix
        if matrix.ndim > 2 and matrix.shape[-3] == 1:
            # Examples that share a matrix are rows of one product.
            joint = rows.reshape(*rows.shape[:-3], -1, self.nodes) @ matrix[..., 0, :, :]
            read = joint.reshape(*joint.shape[:-2], *rows.shape[-3:-1], self.nodes)
        else:
            read = rows @ matrix
        return read.movedim(-1, -2)

    def messages(self, state: Tensor, edges: Tensor | None = None) -> Tensor:
        """``[..., E, d]``: the message on every edge, or on those numbered ``edges``."""
        if edges is None:
            return state.index_select(-2, self.source) * self.weight[..., None]
        weight = self.weight.index_select(-1, edges)
        return state.index_select(-2, self.source[edges]) * weight[..., None]


def edge_products(sent: Tensor, felt: Tensor, edge_index: Tensor) -> Tensor:
    """``[E]``: the sums over all but the node axis of ``sent[s] * felt[t]`` for each edge s -> t.

    Both are ``[B, N, d]``.
    """
    source, target = edge_index
    batch, nodes, width = sent.shape
    edges = len(source)
    if nodes <= _DENSE_PRODUCT_NODES and nodes**2 <= _GATHER_COST * max(edges, 1):
        left = sent.movedim(1, 0).reshape(nodes, batch * width)
        right = felt.movedim(1, 0).reshape(nodes, batch * width)
        return (left @ right.T)[source, target]
    size = max(1, _CHUNK // max(batch * width, 1))
    parts = [
        (sent[:, s] * felt[:, t]).sum((0, 2))
        for s, t in zip(source.split(size), target.split(size), strict=True)
    ]
    return torch.cat(parts) if parts else sent.new_zeros(0)
