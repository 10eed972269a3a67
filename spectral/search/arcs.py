"""Feedback arcs: few edges whose removal leaves no directed cycle, so that nothing rotates.

Without cycles of three nodes or more, and with 2-cycles of non-negative product only, a real
diagonal plus the edges is similar to a symmetric matrix: its spectrum is real whatever the
Laplacian. Cutting every cycle is enough for that. The fewest such edges are hard to find (a
minimum feedback arc set); here nodes are put in an order with few edges that lead backwards: from
several starts, each node is moved to its best place until none moves (insertion search, in time
proportional to the edges for each pass).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from ..linalg.wiring import BoolArray, FloatArray, IntArray

__all__ = ["feedback_arcs"]

PASSES = 60


@dataclass(eq=False)
class _Order:
    """Nodes on a line: ``key [N]``, and each node's neighbours with what it costs to pass them."""

    key: list[float]
    near: list[list[tuple[int, float]]]  # (other, cost if other stands before - if behind)

    def settle(self, nodes: IntArray, generator: np.random.Generator) -> None:
        """Moves each node to where the fewest edges lead backwards, until none gains."""
        waiting = set(nodes.tolist())
        for _ in range(PASSES):
            if not waiting:
                return
            moved: set[int] = set()
            turn = np.array(sorted(waiting))
            for node, share in zip(
                generator.permutation(turn).tolist(), generator.random(len(turn)), strict=True
            ):
                if self._move(node, 0.25 + 0.5 * float(share)):
                    moved.update(other for other, _ in self.near[node])
                    moved.add(node)
            waiting = moved
            self._renumber()

    def _move(self, node: int, share: float) -> bool:
        """Puts one node in its best place; whether that is better than where it was."""
        key = self.key
        mine = key[node]
        near = sorted((key[other], change) for other, change in self.near[node])
        total = best = 0.0
        place, now = 0, 0.0
        for number, (where, change) in enumerate(near, start=1):
            total += change
            if where < mine:
                now = total
            if total < best - 1e-12:
                best, place = total, number
        if best >= now - 1e-12:
            return False
        low = near[place - 1][0] if place else near[0][0] - 1.0
        high = near[place][0] if place < len(near) else near[-1][0] + 1.0
        key[node] = low + (high - low) * share
        return True

    def _renumber(self) -> None:
        for place, node in enumerate(np.argsort(self.key, kind="stable").tolist()):
            self.key[node] = float(place)


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
    shape = (num_nodes, num_nodes)
    _, label = connected_components(
        csr_array((np.ones(len(sources)), (sources, targets)), shape=shape), connection="strong"
    )
    inside = np.flatnonzero((label[sources] == label[targets]) & (sources != targets))
    found = np.zeros(len(sources), dtype=bool)
    if not len(inside):
        return found
    nodes, ends = np.unique(np.stack([sources[inside], targets[inside]]), return_inverse=True)
    u, v = ends.reshape(2, -1)
    pulls: list[dict[int, float]] = [{} for _ in nodes]
    for i, j, c in zip(u.tolist(), v.tolist(), cost[inside].tolist(), strict=True):
        # i before j is free; j before i costs c.
        pulls[i][j] = pulls[i].get(j, 0.0) + c
        pulls[j][i] = pulls[j].get(i, 0.0) - c
    near = [[(other, c) for other, c in pull.items() if c] for pull in pulls]
    generator = np.random.default_rng(seed)
    lean = np.bincount(v, cost[inside], len(nodes)) - np.bincount(u, cost[inside], len(nodes))
    best: tuple[float, BoolArray] | None = None
    for start in range(max(1, starts)):
        line = np.argsort(lean, kind="stable") if start == 0 else generator.permutation(len(nodes))
        key = np.empty(len(nodes))
        key[line] = np.arange(len(nodes))
        order = _Order(key.tolist(), near)
        order.settle(np.arange(len(nodes)), generator)
        place = np.array(order.key)
        back = place[u] > place[v]
        total = float(cost[inside][back].sum())
        if best is None or total < best[0]:
            best = (total, back)
    assert best is not None
    found[inside] = best[1]
    return found
