"""Damping by cutting every cycle: feedback arcs, and the way back from a graph without cycles.

Without cycles of three nodes or more, and with 2-cycles of non-negative product only, a real
diagonal plus the edges is similar to a symmetric matrix: its spectrum is real whatever the
Laplacian. Cutting every cycle is enough for that. The fewest such edges are hard to find (a
minimum feedback arc set); here nodes are put in an order with few edges that lead backwards: from
several starts, each node is moved to its best place until none moves (insertion search, in time
proportional to the edges for each pass).

Where the arcs are no more than the edges to remove, nothing rotates at the end and the weakest
edges make up the number. Where they are more, arcs come back one by one, each time the one of the
smallest exact increase among a few: those whose return joins the fewest nodes to one component, or
that were seen to cost little before. 2-cycles that do not rotate come back for nothing.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from graphprune.util.paths import components

from ..linalg.weighted_graph import BoolArray, FloatArray, IntArray, WeightedGraph
from .set_search import SetEvaluator

__all__ = [
    "feedback_arcs", "restored", "weakest_pairs", "without_feedback_arcs", "without_weakest",
]  # fmt: skip

PASSES = 60
TRIED = 8  # arcs evaluated for each that comes back
FIXED_COST = 1e9
MOST_NODES = 1200  # on cycles, up to which reachability is kept as a matrix


def feedback_arcs(
    sources: IntArray,
    targets: IntArray,
    cost: FloatArray,
    num_nodes: int,
    *,
    starts: int = 4,
    seed: int = 0,
) -> BoolArray:
    """``[M]`` bool: edges whose removal leaves no cycle, of a small total cost.

    Args:
        sources, targets: ``[M]`` node numbers; self-loops are never among the answer.
        cost: ``[M]``, positive: what an edge's removal costs (very much where it must stay).
        starts: orders to start from: the first by degrees, the others drawn.

    Example:
        >>> ring = np.array([0, 1, 2]), np.array([1, 2, 0])
        >>> feedback_arcs(*ring, np.array([1.0, 0.5, 1.0]), 3)
        array([False,  True, False])
    """
    label = components(num_nodes, np.stack([sources, targets]), "strong")
    inside = np.flatnonzero((label[sources] == label[targets]) & (sources != targets))
    arcs = np.zeros(len(sources), dtype=bool)
    if not len(inside):
        return arcs
    nodes, ends = np.unique(np.stack([sources[inside], targets[inside]]), return_inverse=True)
    u, v = ends.reshape(2, -1)
    price = cost[inside]
    # For each node and neighbour: the change of the cost when the neighbour comes to stand before
    # the node instead of behind it. u -> v leads backwards, and is paid for, where v stands first.
    change: list[dict[int, float]] = [defaultdict(float) for _ in nodes]
    for i, j, c in zip(u.tolist(), v.tolist(), price.tolist(), strict=True):
        change[i][j] += c
        change[j][i] -= c
    neighbours = [[(other, c) for other, c in row.items() if c] for row in change]
    generator = np.random.default_rng(seed)
    balance = np.bincount(v, price, len(nodes)) - np.bincount(u, price, len(nodes))
    least = np.inf
    for start in range(max(1, starts)):
        order = (
            np.argsort(balance, kind="stable") if start == 0 else generator.permutation(len(nodes))
        )
        place = np.empty(len(nodes))
        place[order] = np.arange(len(nodes))
        place = _settled(place, neighbours, generator)
        backwards = place[u] > place[v]
        total = float(price[backwards].sum())
        if total < least:
            least, arcs[inside] = total, backwards
    return arcs


def _settled(
    place: FloatArray, neighbours: list[list[tuple[int, float]]], generator: np.random.Generator
) -> FloatArray:
    """Places ``[N]`` on a line after each node has moved to its best one, until none gains."""
    line = place.tolist()
    waiting = np.arange(len(line))
    for _ in range(PASSES):
        moved: set[int] = set()
        nodes = generator.permutation(waiting).tolist()
        for node, share in zip(nodes, generator.random(len(nodes)), strict=True):
            if _move(line, node, neighbours[node], 0.25 + 0.5 * float(share)):
                moved.update(other for other, _ in neighbours[node])
                moved.add(node)
        for number, node in enumerate(np.argsort(line, kind="stable").tolist()):
            line[node] = float(number)
        if not moved:
            break
        waiting = np.array(sorted(moved))
    return np.array(line)


def _move(line: list[float], node: int, neighbours: list[tuple[int, float]], share: float) -> bool:
    """Puts a node in its best place, ``share`` of the way between two neighbours.

    Gives whether that is better than where it was.
    """
    here = line[node]
    near = sorted((line[other], change) for other, change in neighbours)
    total = best = now = 0.0
    place = 0
    for number, (where, change) in enumerate(near, start=1):
        total += change
        if where < here:
            now = total
        if total < best - 1e-12:
            best, place = total, number
    if best >= now - 1e-12:
        return False
    low = near[place - 1][0] if place else near[0][0] - 1.0
    high = near[place][0] if place < len(near) else near[-1][0] + 1.0
    line[node] = low + (high - low) * share
    return True


def without_feedback_arcs(graph: WeightedGraph, count: int) -> BoolArray:
    """``[E]`` bool: the graph's edges without its feedback arcs; ``count`` or fewer if possible.

    Arcs of small weights are preferred as long as they are few enough.
    """
    edges = graph.num_edges
    ends = np.flatnonzero(graph.present)
    fixed = ends >= edges
    size = np.abs(graph.weights[ends])
    mean = float(size.mean()) if len(size) and size.any() else 1.0
    starts = 8 if len(ends) <= 5_000 else 2
    kept = graph.present[:edges].copy()
    # The more each edge costs beside its weight, the fewer arcs are found.
    for cost_of_each in (0.05, 1.0, 50.0):
        cost = np.where(fixed, FIXED_COST, cost_of_each + size / mean)
        arcs = feedback_arcs(
            graph.sources[ends], graph.targets[ends], cost, graph.num_nodes, starts=starts
        )
        removed = ends[arcs & ~fixed]
        kept = graph.present[:edges].copy()
        kept[removed] = False
        if len(removed) <= count:
            break
    return kept


def without_weakest(graph: WeightedGraph, kept: BoolArray, count: int) -> BoolArray:
    """``[E]`` bool: the ``count`` edges of the largest weights among ``kept [E]``."""
    edges = np.flatnonzero(kept)
    order = np.argsort(np.abs(graph.weights[edges]), kind="stable")
    fewer = kept.copy()
    fewer[edges[order[: len(edges) - count]]] = False
    return fewer


def weakest_pairs(graph: WeightedGraph, kept: BoolArray) -> list[IntArray]:
    """Edges of ``kept [E]`` by the pair of nodes they join, the smallest mean weight first.

    Where opposite edges go together, a matrix that is symmetric up to a scaling stays so.
    """
    edges = np.flatnonzero(kept)
    u, v = graph.sources[edges], graph.targets[edges]
    _, pair = np.unique(np.minimum(u, v) * graph.num_nodes + np.maximum(u, v), return_inverse=True)
    count = np.bincount(pair)
    mean = np.bincount(pair, np.abs(graph.weights[edges])) / count
    by_pair = np.split(edges[np.argsort(pair, kind="stable")], np.cumsum(count)[:-1])
    first = [group[0] for group in by_pair]  # equal means: in the order of the edges
    return [by_pair[number] for number in np.lexsort((first, mean))] if len(edges) else []


def restored(
    evaluator: SetEvaluator, acyclic: BoolArray, count: int, *, work: float
) -> BoolArray | None:
    """Brings removed edges back to ``acyclic`` until ``count`` are there.

    Returns ``[E]`` bool, or ``None`` for a graph too large for it. When ``work`` is done the rest
    comes back by what is known of it, unverified.
    """
    graph = evaluator.graph
    u, v = graph.sources[: graph.num_edges], graph.targets[: graph.num_edges]
    absent = np.flatnonzero(evaluator.initial & ~acyclic)
    nodes = np.unique(np.concatenate([u[absent], v[absent]]))
    if len(nodes) > MOST_NODES or graph.num_nodes > 4 * MOST_NODES:
        return None
    reach = _reachability(graph.keep(acyclic))
    kept, value = acyclic.copy(), evaluator.value(acyclic)
    increase = np.zeros(graph.num_edges)
    limit = evaluator.work + work
    while (missing := count - int(kept.sum())) > 0:
        absent = np.flatnonzero(evaluator.initial & ~kept)
        # Nodes that would lie on cycles through each edge.
        joined = (reach[v[absent]] & reach[:, u[absent]].T).sum(1)
        order = absent[np.lexsort((-evaluator.sizes[absent], joined, increase[absent]))]
        if evaluator.work > limit:
            kept[order[:missing]] = True
            break
        best, least = -1, np.inf
        evaluator.solver.forget()
        for edge in order[:TRIED].tolist():
            if increase[edge] >= least:
                break
            kept[edge] = True
            increase[edge] = evaluator.value(kept) - value
            kept[edge] = False
            if increase[edge] < least:
                best, least = edge, float(increase[edge])
            if increase[edge] <= 1e-10 * evaluator.start:
                break
        kept[best] = True
        value += least
        reach |= np.outer(reach[:, u[best]], reach[v[best]])
    return kept


def _reachability(graph: WeightedGraph) -> BoolArray:
    """``[N, N]`` bool: which node can be reached from which, itself included."""
    reach = np.eye(graph.num_nodes, dtype=np.float32)
    reach[graph.sources[graph.present], graph.targets[graph.present]] = 1
    while True:
        wider = (reach @ reach > 0).astype(np.float32)
        if np.array_equal(wider, reach):
            return wider > 0
        reach = wider
