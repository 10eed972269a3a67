"""Annealing of small graphs: edges swapped at random, worse sets taken ever more rarely.

Exchange looks one swap ahead, and the goals' measures have many minima; annealing crosses more of
them, where a trial is cheap. Some moves are of a node: all its edges in (or out) go, and as many
come back, another node's first. One swap after the other hardly gets there: the gap, say, is often
widest where some nodes lie on no cycle, and is narrow on the way. Several moves of one set are
tried at once, and the first that is taken counts: the chain is that of one after the other.
"""

from __future__ import annotations

import numpy as np

from ..linalg.wiring import BoolArray, IntArray
from .trials import Trials

__all__ = ["annealed"]

AT_ONCE = 8  # moves
COOLEST = 1e-2  # the last temperature, by the first


def annealed(
    trials: Trials,
    alive: BoolArray,
    free: IntArray,
    generator: np.random.Generator,
    *,
    work: float,
    heat: float,
    by_node: float,
    scale: float,
) -> BoolArray:
    """``[E]`` bool: the best set of as many edges that one cooling from ``alive`` saw.

    Args:
        free: ``[f]``, numbers of edges that may go or come: some of either.
        heat: the first temperature, in typical changes of the loss by a move.
        by_node: the share of moves that are of a node.
        scale: of the losses.
    """

    def moved(count: int) -> BoolArray:
        return _moved(trials, alive, free, generator, count, by_node)

    loss, *others = trials.losses(np.concatenate([alive[None], moved(4 * AT_ONCE)])).tolist()
    changes = np.abs(np.array(others) - loss)
    changes = changes[changes > 1e-11 * scale]
    warm = heat * (float(np.median(changes)) if len(changes) else 1e-3 * scale)
    least, best = loss, alive
    begun, limit = trials.spent, trials.spent + work
    while trials.spent < limit and not trials.none_better(least, scale):
        temperature = warm * COOLEST ** ((trials.spent - begun) / work)
        sets = moved(AT_ONCE)
        losses = trials.losses(sets)
        bound = loss - temperature * np.log1p(-generator.random(AT_ONCE))
        taken = np.flatnonzero(losses <= bound)
        if len(taken):
            alive, loss = sets[taken[0]], float(losses[taken[0]])
            if loss < least - 1e-11 * scale:
                least, best = loss, alive
    return best


def _moved(
    trials: Trials,
    alive: BoolArray,
    free: IntArray,
    generator: np.random.Generator,
    count: int,
    by_node: float,
) -> BoolArray:
    """``[count, E]``: sets one move away from ``alive``."""
    going, coming = free[alive[free]], free[~alive[free]]
    sets = np.repeat(alive[None], count, axis=0)
    whole = generator.random(count) < by_node
    firsts = going[generator.integers(len(going), size=count)]
    seconds = coming[generator.integers(len(coming), size=count)]
    for moved, all_of_it, first, second in zip(sets, whole, firsts, seconds, strict=True):
        if not all_of_it:
            moved[first], moved[second] = False, True
            continue
        ends = (trials.given.sources, trials.given.targets)[generator.integers(2)]
        out = going[ends[going] == ends[first]][: len(coming)]
        # The other node's edges come before any others, either in no order.
        order = (ends[coming] != ends[second]) + generator.random(len(coming)) / 2
        moved[out], moved[coming[np.argsort(order)[: len(out)]]] = False, True
    return sets
