"""Searches that try everything: all sets of edges, every edge in every round, many draws.

They are the truth where they can be paid, and what a heuristic has to reach elsewhere.
"""

from __future__ import annotations

import itertools
from math import inf

import numpy as np

from ..linalg.wiring import BoolArray, FloatArray, IntArray
from .trials import Trials, first_least, flipped

__all__ = ["best_of_all", "drawn", "greedy", "number_of_sets"]

AT_ONCE = 4096  # sets


def number_of_sets(free: int, removals: int, limit: float) -> float:
    """How many sets of ``removals`` edges there are among those that may go; infinite above limit.

    Example:
        >>> number_of_sets(6, 4, 100), number_of_sets(10**5, 10**4, 100)
        (15, inf)
    """
    sets = 1
    for number in range(min(removals, free - removals)):
        sets = sets * (free - number) // (number + 1)
        if sets > limit:
            return inf
    return sets


def best_of_all(
    trials: Trials, alive: BoolArray, free: IntArray, removals: int, tie: FloatArray, scale: float
) -> BoolArray:
    """``[E]`` bool: the best of all ways to remove edges; of equal ones, that of the least ``tie``.

    Args:
        alive: ``[E]`` edges that are there; ``free [f]``: numbers of those that may go.
        tie: ``[E]``, summed over the edges that go.
        scale: of the losses; those that differ by rounding are equal.
    """
    sets = itertools.combinations(free.tolist(), removals)
    best: tuple[float, float, BoolArray] | None = None
    while len(part := np.array(list(itertools.islice(sets, AT_ONCE)), dtype=np.int64)):
        losses = trials.losses(flipped(alive, part))
        sums = tie[part].sum(1)
        near = np.flatnonzero(losses <= losses.min() + 1e-11 * scale)
        number = near[np.argmin(sums[near])]
        loss, total = float(losses[number]), float(sums[number])
        apart = np.inf if best is None else best[0] - loss
        if best is None or apart > 1e-11 * scale or (apart > -1e-11 * scale and total < best[1]):
            best = (loss, total, flipped(alive, part[number][None])[0])
    assert best is not None
    return best[2]


def greedy(
    trials: Trials, alive: BoolArray, locked: BoolArray, kept: int, scale: float
) -> BoolArray:
    """``[E]`` bool: in every round every edge is tried and the best goes, until ``kept`` are left.

    As many edges must be free to go.
    """
    alive = alive.copy()
    while int(alive.sum()) > kept:
        free = np.flatnonzero(alive & ~locked)
        losses = trials.losses(flipped(alive, free[:, None]))
        alive[free[first_least(losses, scale)]] = False
        trials.solver.forget()
    return alive


def drawn(
    trials: Trials, alive: BoolArray, free: IntArray, removals: int, scale: float, count: int = 50
) -> BoolArray:
    """``[E]`` bool: the best of ``count`` draws of the edges that go."""
    generator = np.random.default_rng(0)
    flips = np.array([generator.permutation(free)[:removals] for _ in range(count)])
    sets = flipped(alive, flips)
    return np.asarray(sets[first_least(trials.losses(sets), scale)])
