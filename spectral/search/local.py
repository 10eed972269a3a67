"""The local rule: each node's star by itself, in closed form.

The correction of the published rule (:mod:`.published`) for every
Laplacian: where a star turns (:mod:`.stars`), the weaker direction of its most
negative product ``L_ni L_in`` is cut. Without negative products no star turns and nothing is ever
cut.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

import numpy as np

from ..linalg.laplacians import Degrees, Laplacian, Operator, operator
from ..linalg.wiring import BoolArray, IntArray, Wiring
from .stars import Star, star_of

__all__ = ["LocalSearch", "star_turns"]


@dataclass(eq=False)
class LocalSearch:
    """Cuts edges star by star, the one that turns most first.

    Args:
        given: the wiring; self-loops are in no star, wires are but cannot be cut.
        laplacian, degrees: which Laplacian the stars have.
        locked: edges ``[E]`` that must stay.
    """

    given: Wiring
    laplacian: Laplacian
    locked: BoolArray | None = None
    degrees: Degrees | None = None
    _of: dict[int, IntArray] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        edges = self.given.num_edges
        self.form = operator(self.laplacian, self.degrees)
        self.alive = self.given.present[:edges].copy()
        if self.locked is None:
            self.locked = np.zeros(edges, dtype=bool)
        # Only nodes with a neighbour in both directions can have a star that turns.
        u, v = self.given.sources, self.given.targets
        n = self.given.num_nodes
        there = np.flatnonzero(self.given.present & (u != v))
        mutual = there[np.isin(v[there] * n + u[there], u[there] * n + v[there])]
        ends, touching = np.concatenate([u[there], v[there]]), np.concatenate([there, there])
        by = np.argsort(ends, kind="stable")
        ends, touching = ends[by], touching[by]
        for node in np.unique(u[mutual]).tolist():
            self._of[node] = touching[slice(*np.searchsorted(ends, [node, node + 1]))]

    def run(self, kept: int) -> BoolArray:
        """``[E]`` bool: what is left when ``kept`` edges are, or no star turns any more."""
        options = {node: self._option(node) for node in self._of}
        heap = [(-turn, node, edge) for node, (turn, edge) in options.items() if edge >= 0]
        heapify(heap)
        while int(self.alive.sum()) > kept and heap:
            turn, node, edge = heappop(heap)
            if options[node] != (-turn, edge):
                continue  # out of date
            self.alive[edge] = False
            # An edge is in the stars of its two ends and in no other.
            for end in (int(self.given.sources[edge]), int(self.given.targets[edge])):
                options[end] = self._option(end)
                if options[end][1] >= 0:
                    heappush(heap, (-options[end][0], end, options[end][1]))
        return self.alive

    def _option(self, node: int) -> tuple[float, int]:
        """How much a star turns and the edge to cut; -1 where it is real or all is locked."""
        star, out, into = _star(self.form, self.given, self.alive, node, self._of[node])
        if not (star.products < 0).any() or (turn := star.turn) <= 0:
            return 0.0, -1
        for place in np.argsort(star.products, kind="stable"):
            if star.products[place] >= 0:
                break
            edge = self._weaker(int(star.neighbours[place]), out, into)
            if edge >= 0:
                return turn, edge
        return turn, -1

    def _weaker(self, neighbour: int, out: IntArray, into: IntArray) -> int:
        """The edge to cut between a star's centre and a neighbour."""
        assert self.locked is not None
        forth = out[self.given.targets[out] == neighbour]
        back = into[self.given.sources[into] == neighbour]
        sizes = [abs(float(self.given.weights[side].sum())) for side in (forth, back)]
        for side in (forth, back) if sizes[0] <= sizes[1] else (back, forth):
            free = side[side < self.given.num_edges]
            free = free[~self.locked[free]]
            if len(free):
                return int(free[np.argmin(np.abs(self.given.weights[free]))])
        return -1


def _star(
    form: Operator, given: Wiring, alive: BoolArray, node: int, edges: IntArray
) -> tuple[Star, IntArray, IntArray]:
    """The star of a node from the edges that touch it, and which of them leave and enter it."""
    there = np.concatenate([alive, given.present[given.num_edges :]])
    edges = edges[there[edges]]
    out, into = edges[given.sources[edges] == node], edges[given.targets[edges] == node]
    w = given.weights
    return (
        star_of(form, node, given.targets[out], given.sources[into], w[out], w[into]),
        out,
        into,
    )


def star_turns(
    given: Wiring, alive: BoolArray, node: int, laplacian: Laplacian, degrees: Degrees | None = None
) -> float:
    """The largest imaginary part of a node's star; exactly 0 where it is real.

    ``alive [E]`` bool. Parallel edges add up (and count one by one), self-loops are left out.
    """
    u, v = given.sources, given.targets
    edges = np.flatnonzero(((u == node) | (v == node)) & (u != v))
    return _star(operator(laplacian, degrees), given, alive, node, edges)[0].turn
