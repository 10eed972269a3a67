"""Searches among sets of edges by exact losses: all sets, greedy, draws, exchange and annealing.

The first three try everything (all sets, every edge in every round, many draws): they are the truth
where they can be paid, and what a heuristic has to reach elsewhere.

*Exchange* takes one edge out and another back in. Each half step tries the edges that are predicted
best (all, where an evaluation costs little) and keeps the best of them. A step is taken whether it
helps or not, and edges that moved stay put for some steps (tabu search), so that it can leave a
minimum.

*Annealing* crosses more of the many minima, where an evaluation is cheap: edges are swapped at
random, and worse sets are taken ever more rarely. Some moves are of a node: all its edges in (or
out) go, and as many come back, another node's first. One swap after the other hardly gets there:
the gap, say, is often widest where some nodes lie on no cycle, and is narrow on the way. Several
moves of one set are tried at once, and the first that is taken counts: the chain is that of one
after the other.

Each function gives ``[E]`` bool, the edges that are kept.
"""

from __future__ import annotations

import itertools

import numpy as np

from ..linalg.weighted_graph import BoolArray, FloatArray
from .set_evaluation import SetEvaluator, first_least, toggled

__all__ = ["annealed", "best_draw", "best_of_all", "exchanged", "greedy"]

SETS_AT_ONCE = 4096
TRIED = (
    8,
    24,
)  # edges of a half step of exchange: where an evaluation costs much, and where little
REST = (12, 8)  # steps for which an edge stays put that came back, and one that went
MOVES_AT_ONCE = 8
COOLEST = 1e-2  # the last temperature, by the first


def best_of_all(evaluator: SetEvaluator, removals: int) -> BoolArray:
    """The best of all ways to remove edges; of equal ones, that of the least weights removed."""
    scale = evaluator.scale
    sets = itertools.combinations(np.flatnonzero(evaluator.initial).tolist(), removals)
    best: tuple[float, float, BoolArray] | None = None
    while len(part := np.array(list(itertools.islice(sets, SETS_AT_ONCE)), dtype=np.int64)):
        losses = evaluator.losses(toggled(evaluator.initial, part))
        weights = evaluator.sizes[part].sum(1)
        # Losses that differ by rounding are equal.
        near = np.flatnonzero(losses <= losses.min() + 1e-11 * scale)
        number = near[np.argmin(weights[near])]
        loss, weight = float(losses[number]), float(weights[number])
        gain = np.inf if best is None else best[0] - loss
        if best is None or gain > 1e-11 * scale or (gain > -1e-11 * scale and weight < best[1]):
            best = (loss, weight, toggled(evaluator.initial, part[number][None])[0])
    assert best is not None
    return best[2]


def greedy(evaluator: SetEvaluator, count: int) -> BoolArray:
    """In every round every edge is tried and the best goes, until ``count`` are left."""
    kept = evaluator.initial.copy()
    while int(kept.sum()) > count:
        edges = np.flatnonzero(kept)
        losses = evaluator.losses(toggled(kept, edges[:, None]))
        kept[edges[first_least(losses, evaluator.scale)]] = False
        evaluator.solver.forget()
    return kept


def best_draw(evaluator: SetEvaluator, removals: int, draws: int) -> BoolArray:
    """The best of some draws of the edges that go."""
    generator = np.random.default_rng(0)
    edges = np.flatnonzero(evaluator.initial)
    removed = np.array([generator.permutation(edges)[:removals] for _ in range(draws)])
    sets = toggled(evaluator.initial, removed)
    return np.asarray(sets[first_least(evaluator.losses(sets), evaluator.scale)])


def exchanged(
    evaluator: SetEvaluator, start: BoolArray, *, work: float, patience: int = 12
) -> BoolArray:
    """As many edges as in ``start``, with a smaller loss where exchange finds one.

    Stops after ``patience`` steps without a smaller one, or when ``work`` is done.
    """
    kept, best = start.copy(), start
    spectrum = evaluator.solve(kept)
    value = evaluator.measure.value(spectrum.values)
    loss = least = evaluator.loss(value)
    free_from = np.zeros(len(kept), dtype=np.int64)
    step = stale = 0
    limit = evaluator.work + work
    one = evaluator.solve_cost(spectrum)
    width = int(np.clip(work / (80 * one), *TRIED))
    cost = (2 * width + 6) * one
    if evaluator.stacks is not None:
        cost = len(kept) * evaluator.stacks.cost
    while stale < patience and evaluator.work + cost <= limit and not evaluator.is_optimal(loss):
        step += 1
        for going in (True, False):
            edges = np.flatnonzero((kept == going) & evaluator.initial & (free_from < step))
            if not len(edges):
                return best
            if evaluator.stacks is None:
                predicted = value + evaluator.effects(kept, spectrum)[edges]
                edges = edges[np.argsort(evaluator.losses_of(predicted), kind="stable")[:width]]
            losses = evaluator.losses(toggled(kept, edges[:, None]))
            chosen = first_least(losses, evaluator.scale)
            loss, edge = float(losses[chosen]), edges[chosen]
            kept[edge] = not going
            free_from[edge] = step + REST[going]
            if evaluator.stacks is None:
                spectrum = evaluator.solve(kept)
                value = evaluator.measure.value(spectrum.values)
        if loss < least - 1e-9 * evaluator.scale:
            least, best, stale = loss, kept.copy(), 0
        else:
            stale += 1
    return best


def annealed(
    evaluator: SetEvaluator,
    start: BoolArray,
    generator: np.random.Generator,
    *,
    work: float,
    heat: float,
    by_node: float,
) -> BoolArray:
    """The best set of as many edges that one cooling from ``start`` saw.

    Args:
        start: ``[E]``: some of the edges must be there, and some not.
        heat: the first temperature, in typical changes of the loss by a move.
        by_node: the share of moves that are of a node.
    """
    scale = evaluator.scale
    kept = best = start
    sets = np.concatenate(
        [kept[None], _moved(evaluator, kept, generator, 4 * MOVES_AT_ONCE, by_node)]
    )
    loss, *others = evaluator.losses(sets).tolist()
    least = loss
    changes = np.abs(np.array(others) - loss)
    changes = changes[changes > 1e-11 * scale]
    warm = heat * (float(np.median(changes)) if len(changes) else 1e-3 * scale)
    begun, limit = evaluator.work, evaluator.work + work
    while evaluator.work < limit and not evaluator.is_optimal(least):
        temperature = warm * COOLEST ** ((evaluator.work - begun) / work)
        sets = _moved(evaluator, kept, generator, MOVES_AT_ONCE, by_node)
        losses = evaluator.losses(sets)
        bound: FloatArray = loss - temperature * np.log1p(-generator.random(MOVES_AT_ONCE))
        taken = np.flatnonzero(losses <= bound)
        if len(taken):
            kept, loss = sets[taken[0]], float(losses[taken[0]])
            if loss < least - 1e-11 * scale:
                least, best = loss, kept
    return best


def _moved(
    evaluator: SetEvaluator,
    kept: BoolArray,
    generator: np.random.Generator,
    count: int,
    by_node: float,
) -> BoolArray:
    """``[count, E]``: sets one move away from ``kept``."""
    graph = evaluator.graph
    going, coming = np.flatnonzero(kept), np.flatnonzero(evaluator.initial & ~kept)
    sets = np.repeat(kept[None], count, axis=0)
    whole = generator.random(count) < by_node
    firsts = going[generator.integers(len(going), size=count)]
    seconds = coming[generator.integers(len(coming), size=count)]
    for moved, is_node_move, first, second in zip(sets, whole, firsts, seconds, strict=True):
        if not is_node_move:
            moved[first], moved[second] = False, True
            continue
        ends = (graph.sources, graph.targets)[generator.integers(2)]
        out = going[ends[going] == ends[first]][: len(coming)]
        # The other node's edges come before any others, either in no order.
        order = (ends[coming] != ends[second]) + generator.random(len(coming)) / 2
        moved[out], moved[coming[np.argsort(order)[: len(out)]]] = False, True
    return sets
