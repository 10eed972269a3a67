"""The user's ``edge_index`` as plain tensors, which alone pass their messages one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphprune.errors import InputError

__all__ = ["plain_index", "untouched", "unwrapped"]


def untouched(data: Any) -> Any:
    """The user's data for a call of their own: a copy, whose edges are plain tensors."""
    from torch_geometric.data import HeteroData

    made = data.clone()
    for store in made.edge_stores if isinstance(made, HeteroData) else [made]:
        # A sorted ``EdgeIndex`` takes fused paths, which do not know every dtype.
        store["edge_index"] = unwrapped(store["edge_index"])
    return made


def unwrapped(index: Tensor) -> Tensor:
    """The tensor behind PyG's ``EdgeIndex``; others as they are."""
    from torch_geometric import EdgeIndex

    plain: Tensor = index.as_tensor() if isinstance(index, EdgeIndex) else index
    return plain


def plain_index(index: Any, where: str, sources: int, targets: int) -> Tensor:
    """``[2, E]`` as a plain tensor of its own; raises :class:`InputError` where it is no such."""
    if not isinstance(index, Tensor) or index.layout != torch.strided:
        raise InputError(
            f"expected {where} as a plain tensor [2, E]; a sparse adjacency takes fused "
            "paths that pass no messages one by one"
        )
    edges = index.as_subclass(Tensor).detach().clone()
    if edges.is_floating_point() or edges.dtype in (torch.bool, torch.complex64):
        raise InputError(f"{where} must hold whole numbers of nodes, got {edges.dtype}")
    if edges.ndim != 2 or edges.shape[0] != 2:
        raise InputError(f"{where} must be [2, E], got {list(edges.shape)}")
    for row, nodes in zip(edges, (sources, targets), strict=True):
        if row.numel() and not 0 <= int(row.min()) <= int(row.max()) < nodes:
            raise InputError(f"{where} names a node outside 0..{nodes - 1}")
    return edges
