"""Damping from the other side: cut every cycle, then bring back what rotates least.

Where the feedback arcs (:mod:`.arcs`) are no more than the edges to remove,
nothing rotates at the end and the weakest edges make up the number. Where they are more, arcs come
back one by one, each time the one of the smallest exact increase among a few: those whose return
joins the fewest nodes to one component, or that were seen to cost little before. 2-cycles that do
not rotate come back for nothing.
"""

from __future__ import annotations

import numpy as np

from ..linalg.wiring import BoolArray, FloatArray, IntArray, Wiring
from .arcs import feedback_arcs
from .trials import Trials

__all__ = ["acyclic", "restored"]

TRIED = 8
LOCKED = 1e9
LARGEST = 1200  # nodes on cycles, up to which reachability is kept as a matrix


def acyclic(given: Wiring, alive: BoolArray, locked: BoolArray, count: int) -> BoolArray:
    """``[E]`` bool: ``alive`` without its feedback arcs; at most ``count`` of them if possible.

    Arcs of small weights are preferred as long as they are few enough.
    """
    edges = given.num_edges
    ends = np.flatnonzero(np.concatenate([alive, given.present[edges:]]))
    fixed = np.concatenate([locked, np.ones(len(given.sources) - edges, dtype=bool)])[ends]
    size = np.abs(given.weights[ends])
    mean = float(size.mean()) if len(size) and size.any() else 1.0
    starts = 8 if len(ends) <= 5_000 else 2
    kept = alive
    for count_weight in (0.05, 1.0, 50.0):
        cost = np.where(fixed, LOCKED, count_weight + size / mean)
        arcs = feedback_arcs(
            given.sources[ends], given.targets[ends], cost, given.num_nodes, starts=starts
        )
        gone = ends[arcs & ~fixed]
        kept = alive.copy()
        kept[gone] = False
        if len(gone) <= count:
            break
    return kept


def restored(
    trials: Trials, alive: BoolArray, before: BoolArray, kept: int, tie: FloatArray, *, work: float
) -> BoolArray | None:
    """Brings edges of ``before`` back to ``alive`` until ``kept`` are there.

    Returns ``[E]`` bool, or ``None`` for a graph too large for it. When ``work`` is done the rest
    comes back by what is known of it, unverified.
    """
    u = trials.given.sources[: trials.given.num_edges]
    v = trials.given.targets[: trials.given.num_edges]
    absent = np.flatnonzero(before & ~alive)
    nodes = np.unique(np.concatenate([u[absent], v[absent]]))
    if len(nodes) > LARGEST or trials.given.num_nodes > 4 * LARGEST:
        return None
    reach = _Reach(trials.given.keep(alive))
    alive, value = alive.copy(), trials.value(alive)
    increase = np.zeros(trials.given.num_edges)
    limit = trials.spent + work
    while (missing := kept - int(alive.sum())) > 0:
        absent = np.flatnonzero(before & ~alive)
        joined = reach.joined(u[absent], v[absent])
        order = absent[np.lexsort((-tie[absent], joined, increase[absent]))]
        if trials.spent > limit:
            alive[order[:missing]] = True
            break
        best: tuple[float, int] | None = None
        trials.solver.forget()
        for edge in order[:TRIED].tolist():
            if best is not None and increase[edge] >= best[0]:
                break
            alive[edge] = True
            increase[edge] = trials.value(alive) - value
            alive[edge] = False
            if best is None or increase[edge] < best[0]:
                best = (float(increase[edge]), edge)
            if increase[edge] <= 1e-10 * trials.start:
                break
        assert best is not None
        alive[best[1]] = True
        value += best[0]
        reach.join(int(u[best[1]]), int(v[best[1]]))
    return alive


class _Reach:
    """``[N, N]`` bool: which node can be reached from which, itself included."""

    def __init__(self, given: Wiring) -> None:
        step = np.eye(given.num_nodes, dtype=np.float32)
        step[given.sources[given.present], given.targets[given.present]] = 1
        while True:
            wider = (step @ step > 0).astype(np.float32)
            if np.array_equal(wider, step):
                break
            step = wider
        self.whole: BoolArray = step > 0

    def joined(self, sources: IntArray, targets: IntArray) -> IntArray:
        """How many nodes would lie on cycles through each edge."""
        found: IntArray = (self.whole[targets] & self.whole[:, sources].T).sum(1)
        return found

    def join(self, source: int, target: int) -> None:
        """With one more edge."""
        self.whole |= np.outer(self.whole[:, source], self.whole[target])
