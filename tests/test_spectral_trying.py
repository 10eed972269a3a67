"""Small graphs: the optimum by enumeration, never worse than exact greedy and random draws.

Truth is ``numpy.linalg.eigvals`` on the blocks of networkx's components, set by set.
"""

import itertools

import networkx as nx
import numpy as np
import pytest
from support.marks import quick

from graphprune import spectral

KINDS = ("out", "in", "both", "rw", "adjacency", "count")


def drawn(nodes, edges, seed, signed=False):
    generator = np.random.default_rng(seed)
    pairs = np.array([(i, j) for i in range(nodes) for j in range(nodes) if i != j]).T
    index = pairs[:, np.sort(generator.permutation(pairs.shape[1])[:edges])]
    weights = generator.uniform(0.2, 1.5, edges)
    return index, weights * generator.choice([-1.0, 1.0], edges) if signed else weights


def eigenvalues(index, nodes, weights, kind):
    """By networkx's components and numpy; imaginary parts that are rounding are none."""
    graph = nx.DiGraph()
    graph.add_nodes_from(range(nodes))
    graph.add_edges_from(index.T.tolist())
    whole = spectral.laplacian((index, nodes), weights, kind).toarray()
    parts = [
        np.linalg.eigvals(whole[np.ix_(list(part), list(part))])
        for part in nx.strongly_connected_components(graph)
    ]
    values = np.concatenate(parts)
    return np.where(np.abs(values.imag) < 1e-6, values.real, values)


class Goal:
    """A goal's loss of a set of edges that stays."""

    def __init__(self, index, nodes, weights, kind, goal):
        self.given = index, nodes, weights, kind
        self.goal, self.skip, self.start = goal, 0, 0.0
        everything = np.ones(len(weights), dtype=bool)
        values = self.values(everything)
        self.skip = int((values.real <= 1e-9 * np.abs(values).max()).sum())
        self.start = self.measure(everything)

    def values(self, alive):
        index, nodes, weights, kind = self.given
        return eigenvalues(index[:, alive], nodes, weights[alive], kind)

    def measure(self, alive):
        values = self.values(alive)
        if self.goal != "gap":
            return np.abs(values.imag).sum()
        return [*np.sort(values.real), *[0.0] * len(values)][self.skip]  # 0 where none is positive

    def __call__(self, alive):
        value = self.measure(alive)
        return {"damp": value, "gap": -value, "preserve": abs(value - self.start)}[self.goal]

    def pruned(self, kept, **options):
        index, nodes, weights, kind = self.given
        mask = spectral.prune((index, nodes), weights, kind, goal=self.goal, size=kept, **options)
        alive = mask.kept.numpy()
        assert alive.sum() == kept
        return alive, mask.notes


def without(edges, gone):
    alive = np.ones(edges, dtype=bool)
    alive[list(gone)] = False
    return alive


# Each kind with each goal that it serves, and one kind with weights of both signs.
CASES = [
    *((kind, goal, False) for kind in KINDS for goal in ("damp", "preserve")),
    *((kind, "gap", False) for kind in ("out", "in", "rw")),
    *(("out", goal, True) for goal in ("damp", "preserve", "gap")),
]


@pytest.mark.parametrize(("kind", "goal", "signed"), CASES)
def test_the_optimum_where_all_sets_can_be_tried(kind, goal, signed):
    nodes, edges, removed = 6, 17, 2
    index, weights = drawn(nodes, edges, 4, signed)
    loss = Goal(index, nodes, weights, kind, goal)
    best = min(loss(without(edges, c)) for c in itertools.combinations(range(edges), removed))
    alive, notes = loss.pruned(edges - removed)
    assert loss(alive) == pytest.approx(best, abs=1e-8)
    assert notes["by"] == "all sets tried" or best == pytest.approx(0, abs=1e-9)


# Each kind, each goal, and weights of both signs, in turn.
TURNS = [case for i, case in enumerate(CASES) if (i + i // 2) % 2 == 0]


@pytest.mark.parametrize(("kind", "goal", "signed"), quick(CASES, TURNS))
def test_never_worse_than_rounds_alone(kind, goal, signed):
    """The same seed gives the same answer, and the value told is that of what is left."""
    index, weights = drawn(14, 52, 1, signed)
    loss = Goal(index, 14, weights, kind, goal)
    rounds, _ = loss.pruned(47, effort=0)
    whole, notes = loss.pruned(47, effort=0.03)
    again, _ = loss.pruned(47, effort=0.03)
    assert np.array_equal(whole, again)
    assert loss(whole) <= loss(rounds) + 1e-9
    assert notes["end"] == pytest.approx(loss.measure(whole), abs=1e-7)


def greedy(loss, edges, removed):
    alive = np.ones(edges, dtype=bool)
    for _ in range(removed):
        free = np.flatnonzero(alive)
        losses = []
        for edge in free:
            alive[edge] = False
            losses.append(loss(alive))
            alive[edge] = True
        alive[free[np.argmin(losses)]] = False
    return loss(alive)


@pytest.mark.parametrize(
    ("goal", "kind", "removed"),
    [("gap", "out", 10), ("gap", "rw", 10), ("preserve", "in", 10), ("damp", "adjacency", 5)],
)
def test_never_worse_than_greedy_or_draws(goal, kind, removed):
    nodes, edges = 14, 52
    index, weights = drawn(nodes, edges, 3)
    loss = Goal(index, nodes, weights, kind, goal)
    ours = loss(loss.pruned(edges - removed, effort=0.1)[0])
    generator = np.random.default_rng(7)
    draws = [loss(without(edges, generator.permutation(edges)[:removed])) for _ in range(50)]
    assert ours <= greedy(loss, edges, removed) + 1e-9
    assert ours <= min(draws) + 1e-9
