"""Checks of what an ARGNN is made with: edges, numbers of nodes, settings, first weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from graphprune.errors import InputError, unknown_name

from .schedule import UPDATES

__all__ = [
    "ACTIVATIONS",
    "check_settings",
    "checked_edges",
    "first_weights",
    "free_nodes",
    "node_numbers",
]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "identity": lambda x: x,
}


def checked_edges(edge_index: Tensor, num_nodes: int | None) -> tuple[Tensor, int]:
    """The edges ``[2, E]``, and how many nodes there are."""
    edges = torch.as_tensor(edge_index, dtype=torch.int64)
    if edges.ndim != 2 or edges.shape[0] != 2:
        raise InputError(f"edge_index must be [2, E], got {list(edges.shape)}")
    count = int(edges.max()) + 1 if edges.numel() else 0
    nodes = count if num_nodes is None else num_nodes
    if nodes < count or (edges.numel() and int(edges.min()) < 0):
        raise InputError(f"edge_index names a node outside 0..{nodes - 1}")
    return edges, nodes


def free_nodes(edges: Tensor, nodes: int, clamped: Tensor) -> Tensor:
    """``[N]`` bool: the nodes that are not clamped; no edge may lead into the others."""
    free = torch.ones(nodes, dtype=torch.bool)
    free[clamped] = False
    into = edges[1][~free[edges[1]]]
    if len(into):
        raise InputError(
            f"an edge leads into node {int(into[0])}, which is clamped: its state never "
            "changes, so leave the edge out"
        )
    return free


def node_numbers(given: Iterable[int], nodes: int, what: str) -> Tensor:
    """``[n]``: numbers of nodes, each once; ``what`` they are stands in messages."""
    numbers = torch.as_tensor(list(given), dtype=torch.int64)
    if numbers.numel() and not 0 <= int(numbers.min()) <= int(numbers.max()) < nodes:
        raise InputError(f"{what} names a node outside 0..{nodes - 1}")
    if len(numbers.unique()) != len(numbers):
        raise InputError(f"{what} names a node twice")
    return numbers


def check_settings(update: str, rate: float, *activations: str | None) -> None:
    """Refuses an unknown update or activation, and a rate that is no chance."""
    if update not in UPDATES:
        raise unknown_name("update", update, UPDATES)
    if not 0 < rate <= 1:
        raise InputError(f"rate is the chance of an update, in (0, 1], got {rate!r}")
    for activation in activations:
        if activation is not None and activation not in ACTIVATIONS:
            raise unknown_name("activation", activation, ACTIVATIONS)


def first_weights(edges: Tensor, nodes: int, weight: Tensor | None, seed: int) -> Tensor:
    """``[E]``: the given weights, or normal ones of variance 1 / in-degree."""
    count = edges.shape[1]
    if weight is None:
        generator = torch.Generator().manual_seed(seed)
        degree = torch.bincount(edges[1], minlength=nodes).clamp(min=1)
        return torch.randn(count, generator=generator) / degree[edges[1]].sqrt()
    given = torch.as_tensor(weight)
    if given.shape != (count,) or not given.is_floating_point():
        raise InputError(f"weight must be [{count}] floats, got {list(given.shape)} {given.dtype}")
    if not bool(torch.isfinite(given).all()):
        raise InputError(f"{int((~torch.isfinite(given)).sum())} weights are NaN or infinite")
    return given.detach().clone()
