"""Exchange: one edge goes and another comes back, exactly verified, past local minima.

Each step tries the edges whose removal is predicted best (all, where a trial costs little) and
keeps the best of them, then the same for edges to bring back; the step is taken whether it helps or
not, and edges that moved stay put for some steps (tabu search), so that it can leave a minimum. The
best set seen is the answer, so it is never worse than what it began with.
"""

from __future__ import annotations

import numpy as np

from ..linalg.wiring import BoolArray
from .trials import Trials, first_least, flipped

__all__ = ["exchange"]

TRIED = (8, 24)  # edges of a half step: where a trial costs much, and where little
REST = (8, 12)  # steps for which an edge that went, or came back, stays put


def exchange(
    trials: Trials, alive: BoolArray, locked: BoolArray, *, work: float, patience: int = 12
) -> BoolArray:
    """``[E]`` bool: as many edges as in ``alive``, with a smaller loss where one is found.

    Stops after ``patience`` steps without one, or when ``work`` is done.
    """
    alive, best = alive.copy(), alive
    now = trials.decompose(alive)
    value = trials.measure.value(now.values)
    loss = least = trials.loss(value)
    scale = trials.scale(now)
    free_from = np.zeros(trials.given.num_edges, dtype=np.int64)
    step = stale = 0
    limit = trials.spent + work
    few, many = TRIED
    width = int(np.clip(work / (80 * trials.cost(now)), few, many))
    cost = (2 * width + 6) * trials.cost(now)
    if trials.stacks is not None:
        cost = len(alive) * trials.stacks.cost
    while stale < patience and trials.spent + cost <= limit and not trials.none_better(loss, scale):
        step += 1
        for going in (True, False):
            edges = np.flatnonzero((alive == going) & ~locked & (free_from < step))
            if not len(edges):
                return best
            if trials.stacks is None:
                effects = trials.effects(alive, now)[edges]
                edges = edges[np.argsort(trials.losses_of(value + effects), kind="stable")[:width]]
            losses = trials.losses(flipped(alive, edges[:, None]))
            chosen = first_least(losses, scale)
            loss, edge = float(losses[chosen]), edges[chosen]
            alive[edge] = not going
            free_from[edge] = step + REST[0 if going else 1]
            if trials.stacks is None:
                now = trials.decompose(alive)
                value = trials.measure.value(now.values)
        if loss < least - 1e-9 * scale:
            least, best, stale = loss, alive.copy(), 0
        else:
            stale += 1
    return best
