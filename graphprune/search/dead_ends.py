"""Edges of a random mask that lead nowhere, for many masks at once."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from graphprune.core.graph import ComputationalGraph

__all__ = ["alive_edges"]


@lru_cache(maxsize=4)
def _steps(graph: ComputationalGraph) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
    """Edges and wires ``(sources, targets, numbers)`` level by level of their source's depth.

    Wires have the number -1. On a cyclic graph all stand in one level. There, and where coupled
    groups join nodes of different depth, levels are swept until nothing changes.
    """
    group = torch.from_numpy(graph.representative)
    index = graph.untied.edge_index
    sources = torch.cat([group[index[0]], group[graph.fixed_edge_index[0]]])
    targets = torch.cat([group[index[1]], group[graph.fixed_edge_index[1]]])
    wires = torch.full((graph.fixed_edge_index.shape[1],), -1)
    numbers = torch.cat([graph.per_message(torch.arange(graph.num_edges)), wires])
    if not graph.is_acyclic:
        return ((sources, targets, numbers),)
    depth = torch.from_numpy(graph.depth)
    level = depth[sources]
    return tuple(
        (sources[level == d], targets[level == d], numbers[level == d])
        for d in torch.unique(level).tolist()
    )


def alive_edges(graph: ComputationalGraph, kept: Tensor, *, from_inputs: bool = True) -> Tensor:
    """``[..., E]`` bool: kept edges on a path from an input (if asked for) to an output.

    What :meth:`ComputationalGraph.alive` gives for each mask of ``kept [..., E]`` (bool), all at
    once, level by level.

    Example:
        >>> graph = ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("a", "c")])
        >>> alive_edges(graph, torch.tensor([[True, False, True], [True, True, False]]))
        tensor([[False, False,  True],
                [ True,  True, False]])
    """
    if not graph.has_dead_ends:
        return kept.clone()
    flat = kept.reshape(-1, graph.num_edges)
    group = torch.from_numpy(graph.representative).to(kept.device)
    levels = [tuple(t.to(kept.device) for t in level) for level in _steps(graph)]
    back = _spread(graph, flat, group[list(graph.output_nodes)], levels[::-1], backward=True)
    sources, targets = graph.untied.edge_index.to(kept.device)
    leading = back[:, group[targets]]
    if from_inputs:
        ahead = _spread(graph, flat, group[list(graph.input_nodes)], levels, backward=False)
        leading &= ahead[:, group[sources]]
    used = leading if graph.ties is None else graph.per_edge(leading.T.int()).T > 0
    return (flat & used).reshape(kept.shape)


def _spread(
    graph: ComputationalGraph,
    flat: Tensor,
    start: Tensor,
    levels: list[tuple[Tensor, ...]],
    *,
    backward: bool,
) -> Tensor:
    """``[K, N]`` bool: nodes reached from ``start`` over the kept edges of each mask."""
    seen = torch.zeros(len(flat), graph.num_nodes, dtype=torch.int32, device=flat.device)
    seen[:, start] = 1
    while True:
        before = int((seen > 0).sum())
        for sources, targets, numbers in levels:
            here, there = (targets, sources) if backward else (sources, targets)
            passes = torch.where(numbers < 0, True, flat[:, numbers.clamp_min(0)])
            moved = (seen[:, here] > 0) & passes
            seen.index_add_(1, there, moved.to(torch.int32)).clamp_(max=1)
        if (len(levels) > 1 and not graph.groups) or int((seen > 0).sum()) == before:
            return seen > 0
