"""The local rule: each node's star by itself, in closed form.

The star of node n holds n, its neighbours and the edges between n and them. With
``s_i = w_ni w_in`` over neighbours in both directions its eigenvalues solve
``lambda - d_n = sum_i s_i / (lambda - d_i)``: only 2-cycles with a negative product can turn it.
By counts (kind ``count``) a neighbour in both directions has d_i = 2, and the star turns iff
``(d_n - 2)^2 + 4 sum_i s_i < 0``: no eigensolver. By sums of weights (``both``) the small matrix is
solved.

The correction of the published rule (:mod:`graphprune.spectral.published`): where a star turns, the
weaker direction of its most negative product is cut. Without negative products nothing is ever cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from .wiring import BoolArray, FloatArray, Wiring

__all__ = ["LocalSearch", "star_turns"]

StarKind = Literal["count", "both"]


@dataclass(eq=False)
class LocalSearch:
    """Cuts edges star by star, the one that turns most first.

    Args:
        given: the wiring, without self-loops in its stars.
        kind: how degrees are counted.
        locked: edges ``[E]`` that must stay.
    """

    given: Wiring
    kind: StarKind = "count"
    locked: BoolArray | None = None

    def __post_init__(self) -> None:
        edges = self.given.num_edges
        self.alive = self.given.present[:edges].copy()
        if self.locked is None:
            self.locked = np.zeros(edges, dtype=bool)
        self._number = {
            (int(u), int(v)): e
            for e, (u, v) in enumerate(
                zip(self.given.sources[:edges], self.given.targets[:edges], strict=True)
            )
            if u != v
        }
        self._pairs = [
            (e, self._number[v, u]) for (u, v), e in self._number.items() if (v, u) in self._number
        ]

    def run(self, kept: int) -> BoolArray:
        """``[E]`` bool: what is left when ``kept`` edges are, or no star turns any more."""
        while int(self.alive.sum()) > kept:
            edge = self._next()
            if edge is None:
                break
            self.alive[edge] = False
        return self.alive

    def _next(self) -> int | None:
        by_node: dict[int, list[tuple[float, int]]] = {}
        weights = self.given.weights
        assert self.locked is not None
        for forth, back in self._pairs:
            if not (self.alive[forth] and self.alive[back]):
                continue
            product = float(weights[forth] * weights[back])
            by = (forth, back) if abs(weights[forth]) <= abs(weights[back]) else (back, forth)
            weaker = next((edge for edge in by if not self.locked[edge]), -1)
            by_node.setdefault(int(self.given.sources[forth]), []).append((product, weaker))
        best: tuple[float, int] | None = None
        for node, products in by_node.items():
            options = [(p, e) for p, e in products if p < 0 and e >= 0]
            if not options:
                continue
            turn = star_turns(self.given, self.alive, node, self.kind)
            if turn > 0 and (best is None or turn > best[0]):
                best = (turn, min(options)[1])
        return None if best is None else best[1]


def star_turns(given: Wiring, alive: BoolArray, node: int, kind: StarKind) -> float:
    """The largest imaginary part of a node's star; exactly 0 where it is real.

    ``alive [E]`` bool. Parallel edges count one by one, self-loops not at all.
    """
    edges = given.num_edges
    u, v = given.sources[:edges], given.targets[:edges]
    out = np.flatnonzero(alive & (u == node) & (v != node))
    into = np.flatnonzero(alive & (v == node) & (u != node))
    both = np.intersect1d(v[out], u[into])
    if not len(both):
        return 0.0
    w = given.weights
    forth = np.array([w[out[v[out] == i]].sum() for i in both])
    back = np.array([w[into[u[into] == i]].sum() for i in both])
    products = forth * back
    if kind == "count":
        degree = len(out) + len(into)
        if (np.bincount(u[into]).max() if len(into) else 0) <= 1 and len(np.unique(v[out])) == len(
            out
        ):
            gap = (degree - 2.0) ** 2 + 4.0 * float(products.sum())
            return float(np.sqrt(-gap)) / 2.0 if gap < 0 else 0.0
        leaves = np.array([(v[out] == i).sum() + (u[into] == i).sum() for i in both], dtype=float)
        return _arrowhead(float(degree), leaves, forth, back)
    total = float(w[out].sum() + w[into].sum())
    return _arrowhead(total, forth + back, forth, back)


def _arrowhead(centre: float, leaves: FloatArray, forth: FloatArray, back: FloatArray) -> float:
    """The largest imaginary part of ``[[d_n, -forth], [-back, diag(d_i)]]``; noise is 0."""
    if (forth * back >= 0).all():
        return 0.0
    size = len(leaves) + 1
    matrix = np.zeros((size, size))
    matrix[0, 0], matrix[0, 1:], matrix[1:, 0] = centre, -forth, -back
    matrix[np.arange(1, size), np.arange(1, size)] = leaves
    largest = float(np.abs(np.linalg.eigvals(matrix).imag).max())
    noise = 1e-7 * float(np.linalg.norm(matrix))  # a double root splits by the root of eps
    return largest if largest > noise else 0.0
