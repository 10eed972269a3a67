"""Connected circuits: grown from the output, or of exactly k edges without dead ends.

Every edge of a circuit of exactly k lies on a path from an input to an output. Edges are first
taken from the top of the ranking and dead ends dropped; then the best edges between nodes already
alive fill the budget, each of which adds exactly one. Where that runs out, the cheapest surplus
edges are removed from the next larger circuit instead.
"""

from __future__ import annotations

import heapq
import logging

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import EdgeMask
from graphprune.errors import InputError
from graphprune.util.numbers import highest, ranking

log = logging.getLogger(__name__)
_LONGEST_PATH = 64  # edges of the longest path that is sought to begin with
_NONE = -1  # in place of an edge or a wire that a node was reached by


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
    wired_into: dict[int, list[int]] = {}
    for source, reader in graph.fixed_edge_index.T.tolist():
        wired_into.setdefault(int(group[reader]), []).append(int(group[source]))
    sources = group[graph.edge_index[0].numpy()]
    score = values.numpy()
    heap: list[tuple[float, int, int]] = []
    inside: set[int] = set()

    def push_best_edge(place: int, node: int) -> None:
        if place < starts[node + 1]:
            edge = int(order[place])
            heapq.heappush(heap, (-float(score[edge]), edge, place))

    def add_node(node: int) -> None:
        if node not in inside:
            inside.add(node)
            push_best_edge(int(starts[node]), node)
            for other in wired_into.get(node, ()):
                add_node(other)

    for node in graph.output_nodes:
        add_node(int(group[node]))
    chosen = torch.zeros(graph.num_edges)
    for _ in range(count):
        if not heap:
            break
        _, edge, place = heapq.heappop(heap)
        chosen[edge] = 1.0
        push_best_edge(place + 1, int(target[edge]))
        add_node(int(sources[edge]))
    return chosen


def shortest_path_edges(graph: ComputationalGraph) -> int:
    """The fewest edges that connect an input with an output (wires and groups cost nothing)."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import dijkstra

    if not graph.has_dead_ends and graph.num_edges:
        return 1
    group = graph.representative
    index = group[graph.edge_index.numpy()]
    wires = group[graph.fixed_edge_index.numpy()]
    pairs = np.concatenate([index, wires], axis=1)
    # A stored zero means "no edge" to scipy: a wire weighs less than any sum of edges can matter.
    tiny = 1e-9
    weight = np.concatenate([np.ones(index.shape[1]), np.full(wires.shape[1], tiny)])
    loops = pairs[0] == pairs[1]
    order = np.argsort(weight[~loops], kind="stable")
    rows, columns = pairs[:, ~loops][:, order]
    first = np.unique(rows * graph.num_nodes + columns, return_index=True)[1]
    rows, columns, weight = rows[first], columns[first], weight[~loops][order][first]
    matrix = csr_array((weight, (rows, columns)), shape=(graph.num_nodes, graph.num_nodes))
    starts = np.unique(group[list(graph.input_nodes)])
    ends = np.unique(group[list(graph.output_nodes)])
    distance = dijkstra(matrix, indices=starts, min_only=True)[ends].min()
    if not np.isfinite(distance):
        raise InputError("no path leads from an input node to an output node of this graph")
    return max(1, round(float(distance)))


def require_feasible(graph: ComputationalGraph, count: int, *, from_inputs: bool = True) -> int:
    """The fewest edges a circuit can have; raises :class:`InputError` if ``count`` is less."""
    least = shortest_path_edges(graph) if from_inputs else 1
    if count < least:
        raise InputError(
            f"a circuit of {count} edges cannot connect input and output: the shortest path needs "
            f"{least}"
        )
    return least


def exact_budget(
    graph: ComputationalGraph, values: Tensor, count: int, *, from_inputs: bool = True
) -> EdgeMask:
    """The mask of exactly ``count`` edges without dead ends, taken from the top of ``values [E]``.

    ``from_inputs=False``: an edge need only lead to an output (see
    :meth:`EdgeMask.prune_dead_ends`). Raises :class:`InputError` if ``count`` is less than one path
    from input to output needs.

    Example:
        >>> graph = ComputationalGraph.from_edges(
        ...     [("a", "b"), ("b", "d"), ("a", "c"), ("c", "d"), ("a", "d")])
        >>> exact_budget(graph, torch.tensor([5.0, 1.0, 4.0, 3.0, 2.0]), 2).edges()
        ['a->c', 'c->d']
    """
    least = require_feasible(graph, count, from_inputs=from_inputs)
    size = graph.num_edges
    if not graph.has_dead_ends:
        return EdgeMask(graph, highest(values.detach().float().cpu(), count).float())
    order = ranking(values.detach().float().cpu()).numpy()

    def alive(n: int) -> NDArray[np.bool_]:
        kept = np.zeros(size, dtype=bool)
        kept[order[:n]] = True
        return graph.alive(kept, from_inputs=from_inputs)

    low, high = 0, size  # alive(low) has at most `count` edges, alive(high) at least
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if int(alive(middle).sum()) <= count else (low, middle)
    tried = [_fill(graph, alive(low), order, count, from_inputs)]
    if int(tried[-1].sum()) != count:
        tried.append(_trim(graph, alive(high), order, count, from_inputs))
    length = min(count, _LONGEST_PATH)
    while int(tried[-1].sum()) != count and length >= least:
        path = _best_walk(graph, values.detach().double().cpu().numpy(), length)
        tried.append(_fill(graph, path, order, count, from_inputs))
        length -= 1
    tried += [] if int(tried[-1].sum()) == count else [alive(size)]
    kept = min(tried, key=lambda some: (not some.any(), abs(int(some.sum()) - count)))
    if int(kept.sum()) != count:
        log.warning(
            "no circuit of exactly %d edges without dead ends was found; this one has %d",
            count,
            int(kept.sum()),
        )
    return EdgeMask(graph, torch.from_numpy(kept).float())


def _fill(
    graph: ComputationalGraph,
    kept: NDArray[np.bool_],
    order: NDArray[np.int64],
    count: int,
    from_inputs: bool,
) -> NDArray[np.bool_]:
    """Adds the best edges between nodes that are alive already (or into one, if that is enough)."""
    missing = count - int(kept.sum())
    if not missing or (from_inputs and not kept.any()):
        return kept
    sources, targets = graph.edge_index.numpy()
    back = graph.reachable(graph.output_nodes, kept, backward=True)
    fits = back[targets] & ~kept
    if from_inputs:
        forward = graph.reachable(graph.input_nodes, kept)
        fits &= back[sources] & forward[sources] & forward[targets]
    chosen = order[fits[order]][:missing]
    kept = kept.copy()
    kept[chosen] = True
    return kept


def _trim(
    graph: ComputationalGraph,
    kept: NDArray[np.bool_],
    order: NDArray[np.int64],
    count: int,
    from_inputs: bool,
) -> NDArray[np.bool_]:
    """Removes the worst edges one by one, each with the dead ends it leaves, down to ``count``.

    A removal that would cut below ``count`` is skipped.
    """
    kept = kept.copy()
    surplus = int(kept.sum()) - count
    for edge in order[kept[order]][::-1]:
        if surplus <= 0:
            break
        if not kept[edge]:
            continue
        without = kept.copy()
        without[edge] = False
        without = graph.alive(without, from_inputs=from_inputs)
        lost = int(kept.sum() - without.sum())
        if lost <= surplus:
            kept, surplus = without, surplus - lost
    return kept


def _best_walk(
    graph: ComputationalGraph, values: NDArray[np.float64], length: int
) -> NDArray[np.bool_]:
    """Edges of the walk of ``length`` edges from an input to an output with the highest sum.

    Wires and moves inside a coupled group are free. Gives no edge if there is no such walk.
    """
    group = graph.representative
    source, target = group[graph.edge_index.numpy()]
    wires = group[graph.fixed_edge_index.numpy()]
    best = np.full(graph.num_nodes, -np.inf)
    best[group[list(graph.input_nodes)]] = 0.0
    _along_wires(best, wires)
    edges_into: list[NDArray[np.int64]] = []
    wires_into: list[NDArray[np.int64]] = []
    for _ in range(length):
        reach = best[source] + values
        step = np.full(graph.num_nodes, -np.inf)
        np.maximum.at(step, target, reach)
        edge = np.full(graph.num_nodes, _NONE)
        hit = np.flatnonzero((reach == step[target]) & np.isfinite(reach))
        edge[target[hit]] = hit
        wires_into.append(_along_wires(step, wires))
        edges_into.append(edge)
        best = step
    kept = np.zeros(graph.num_edges, dtype=bool)
    ends = np.unique(group[list(graph.output_nodes)])
    node = int(ends[np.argmax(best[ends])])
    if not np.isfinite(best[node]):
        return kept
    for edge, wire in zip(reversed(edges_into), reversed(wires_into), strict=True):
        while wire[node] != _NONE:
            node = int(wire[node])
        kept[edge[node]] = True
        node = int(source[edge[node]])
    return kept


def _along_wires(best: NDArray[np.float64], wires: NDArray[np.int64]) -> NDArray[np.int64]:
    """Carries values along wires, in place; gives the wire that each node's came by, or `_NONE`."""
    wire_into = np.full(len(best), _NONE)
    pairs = [(int(u), int(v)) for u, v in wires.T if u != v]
    moved = True
    while moved:
        moved = False
        for u, v in pairs:
            if best[u] > best[v]:
                best[v], wire_into[v], moved = best[u], u, True
    return wire_into
