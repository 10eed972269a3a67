"""Sums over examples of products between what an edge's source sends and its target feels."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["edge_products"]

_DENSE_NODES = 2048
_CHUNK = 1 << 24  # gathered numbers at a time


def edge_products(sent: Tensor, felt: Tensor, edge_index: Tensor) -> Tensor:
    """``[E]``: the sums over all but the node axis of ``sent[s] * felt[t]`` for each edge s -> t.

    Both are ``[B, N, d]``.
    """
    source, target = edge_index
    batch, nodes, width = sent.shape
    edges = len(source)
    if nodes <= _DENSE_NODES and nodes**2 <= 50 * max(edges, 1):
        left = sent.movedim(1, 0).reshape(nodes, batch * width)
        right = felt.movedim(1, 0).reshape(nodes, batch * width)
        return (left @ right.T)[source, target]
    size = max(1, _CHUNK // max(batch * width, 1))
    parts = [
        (sent[:, s] * felt[:, t]).sum((0, 2))
        for s, t in zip(source.split(size), target.split(size), strict=True)
    ]
    return torch.cat(parts) if parts else sent.new_zeros(0)
