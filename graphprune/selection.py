"""How a ranking of edges becomes a set of edges."""

from __future__ import annotations

import heapq

import numpy as np
import torch
from torch import Tensor

from graphprune.graph import ComputationalGraph

__all__ = ["grow_from_output", "ranking"]


def ranking(values: Tensor) -> Tensor:
    """Positions from the highest value to the lowest; equal values keep their order."""
    return torch.sort(values, descending=True, stable=True).indices


def grow_from_output(graph: ComputationalGraph, values: Tensor, count: int) -> Tensor:
    """``[E]`` mask values of a circuit grown best-first from the output nodes.

    A node enters with the first edge that leaves it (together with its coupled group and the nodes
    wired into it); from then on the edges into it compete. A heap over node-sorted edges keeps
    this at O(count log E).
    """
    group = graph.representative
    target = group[graph.edge_index[1].numpy()]
    order = np.lexsort((-values.numpy(), target))
    starts = np.searchsorted(target[order], np.arange(graph.num_nodes + 1))
    wired: dict[int, list[int]] = {}
    for source, reader in graph.fixed_edge_index.T.tolist():
        wired.setdefault(int(group[reader]), []).append(int(group[source]))
    sources = group[graph.edge_index[0].numpy()]
    score = values.numpy()
    heap: list[tuple[float, int, int]] = []
    inside: set[int] = set()

    def offer(place: int, node: int) -> None:
        if place < starts[node + 1]:
            edge = int(order[place])
            heapq.heappush(heap, (-float(score[edge]), edge, place))

    def enter(node: int) -> None:
        if node not in inside:
            inside.add(node)
            offer(int(starts[node]), node)
            for other in wired.get(node, ()):
                enter(other)

    for node in graph.output_nodes:
        enter(int(group[node]))
    chosen = torch.zeros(graph.num_edges)
    for _ in range(count):
        if not heap:
            break
        _, edge, place = heapq.heappop(heap)
        chosen[edge] = 1.0
        offer(place + 1, int(target[edge]))
        enter(int(sources[edge]))
    return chosen
