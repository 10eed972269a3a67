"""Annealing of small graphs: edges swapped at random, worse sets taken ever more rarely.

Exchange looks one swap ahead and the measures of the goals have many minima (the gap is the least of
many eigenvalues); annealing crosses more of them, where a trial is cheap. Several swaps of one set
are tried at once, and the first that is taken counts: the chain is that of one after the other.
"""

from __future__ import annotations

import numpy as np

from .trials import Trials, flipped
from .wiring import BoolArray, IntArray

__all__ = ["annealed"]

AT_ONCE = 8  # swaps
COOLEST = 1e-3  # the last temperature, by the first


def annealed(
    trials: Trials,
    alive: BoolArray,
    free: IntArray,
    generator: np.random.Generator,
    *,
    work: float,
    heat: float,
    scale: float,
) -> BoolArray:
    """``[E]`` bool: the best set of as many edges that one cooling from ``alive`` saw.

    Args:
        free: ``[f]``, numbers of edges that may go or come.
        heat: the first temperature, in typical changes of the loss by a swap.
        scale: of the losses.
    """
    swaps = _swaps(alive, free, generator, 32)
    if not len(swaps):
        return alive
    loss, *losses = trials.losses(np.concatenate([alive[None], flipped(alive, swaps)])).tolist()
    changes = np.abs(np.array(losses) - loss)
    changes = changes[changes > 1e-11 * scale]
    warm = heat * (float(np.median(changes)) if len(changes) else 1e-3 * scale)
    least, best = loss, alive
    begun, limit = trials.spent, trials.spent + work
    while trials.spent < limit and not trials.none_better(least, scale):
        temperature = warm * COOLEST ** ((trials.spent - begun) / work)
        sets = flipped(alive, _swaps(alive, free, generator, AT_ONCE))
        losses = trials.losses(sets)
        bound = loss - temperature * np.log1p(-generator.random(AT_ONCE))
        taken = np.flatnonzero(losses <= bound)
        if len(taken):
            alive, loss = sets[taken[0]], float(losses[taken[0]])
            if loss < least - 1e-11 * scale:
                least, best = loss, alive
    return best


def _swaps(
    alive: BoolArray, free: IntArray, generator: np.random.Generator, count: int
) -> IntArray:
    """``[count, 2]``: an edge that goes and one that comes; none where there is no choice."""
    going, coming = free[alive[free]], free[~alive[free]]
    if not len(going) or not len(coming):
        return np.zeros((0, 2), dtype=np.int64)
    return np.stack([generator.choice(going, count), generator.choice(coming, count)], axis=1)
