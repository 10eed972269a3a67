"""Parts of the spectral search: feedback arcs, exchanges, stacks of trials, locked edges."""

import itertools

import networkx as nx
import numpy as np
import pytest

import graphprune as gp
from graphprune import spectral
from graphprune.spectral import wiring
from graphprune.spectral.linalg.laplacians import operator
from graphprune.spectral.linalg.measures import Measure, measure_named
from graphprune.spectral.linalg.spectra import Solver
from graphprune.spectral.search.arcs import feedback_arcs
from graphprune.spectral.search.exchange import exchange
from graphprune.spectral.search.exhaustive import number_of_sets
from graphprune.spectral.search.global_search import Search
from graphprune.spectral.search.stacks import Stacks
from graphprune.spectral.search.trials import Trials

pytestmark = pytest.mark.inside

KINDS = ("out", "in", "both", "rw", "adjacency", "count")


def drawn(nodes, edges, seed, signed=False):
    generator = np.random.default_rng(seed)
    pairs = np.array([(i, j) for i in range(nodes) for j in range(nodes) if i != j]).T
    index = pairs[:, np.sort(generator.permutation(pairs.shape[1])[:edges])]
    weights = generator.uniform(0.2, 1.5, edges)
    return index, weights * generator.choice([-1.0, 1.0], edges) if signed else weights


def without(edges, gone):
    alive = np.ones(edges, dtype=bool)
    alive[list(gone)] = False
    return alive


def sparse(nodes, degree, seed):
    graph = nx.gnp_random_graph(nodes, degree / (nodes - 1), seed=seed, directed=True)
    index = np.array(graph.edges).T
    generator = np.random.default_rng(seed)
    weights = generator.uniform(0.2, 1.5, index.shape[1])
    return index, weights


def out_laplacian(index, weights, nodes=24):
    a = np.zeros((nodes, nodes))
    np.add.at(a, tuple(index), weights)
    return np.diag(a.sum(1)) - a


@pytest.mark.parametrize("seed", range(6))
def test_feedback_arcs_against_all_orders(seed):
    """Seven nodes: every order of nodes tried."""
    index, weights = sparse(7, 3.5, seed)
    found = feedback_arcs(index[0], index[1], weights, 7, starts=8)
    left = nx.DiGraph(index[:, ~found].T.tolist())
    assert nx.is_directed_acyclic_graph(left)
    best = min(
        sum(w for (u, v), w in zip(index.T.tolist(), weights, strict=True) if p[u] > p[v])
        for p in itertools.permutations(range(7))
    )
    assert weights[found].sum() <= best * 1.1 + 1e-12


def test_exchange_leaves_a_minimum_of_rounds():
    """Brute force: all ways to keep 10 of 13 edges; what exchange reaches from a bad one."""
    index, weights = sparse(7, 2, 1)
    edges = len(weights)
    given = wiring((index, 7), weights)
    trials = Trials(given, Solver(operator("adjacency", None)), Measure("sum"), "damp")
    everything = np.ones(edges, dtype=bool)
    trials.start = trials.value(everything)
    values = {}
    for gone in itertools.combinations(range(edges), 2):
        alive = everything.copy()
        alive[list(gone)] = False
        values[gone] = trials.value(alive)
    worst = max(values, key=values.__getitem__)
    alive = everything.copy()
    alive[list(worst)] = False
    found = exchange(trials, alive, np.zeros(edges, dtype=bool), work=1e9)
    assert found.sum() == edges - 2
    assert trials.value(found) == pytest.approx(min(values.values()), abs=1e-9)
    assert min(values.values()) < values[worst]


def test_exact_greedy_is_tried_at_96_edges_and_24_removals():
    """It was skipped there: nothing of the search is worse than what it reaches."""
    index, weights = drawn(24, 96, 5)
    given = wiring((index, 24), weights)
    solver = Solver(operator("out", None))
    measure = measure_named("gap", solver.decompose(given, vectors=True), "out")
    search = Search(given, solver, measure, "gap", effort=0.1)
    everything = np.ones(96, dtype=bool)
    alive = search.run(72)

    def gap(kept):
        index_left, weights_left = index[:, kept], weights[kept]
        return np.sort(np.linalg.eigvals(out_laplacian(index_left, weights_left)).real)[1]

    starts = dict(search._starts(everything, np.arange(96), 72, None))
    assert starts["greedy"].sum() == 72
    assert gap(alive) >= gap(starts["greedy"]) - 1e-9
    assert gap(starts["greedy"]) > gap(everything)


@pytest.mark.parametrize("degrees", ["signed", "absolute"])
@pytest.mark.parametrize("measure", ["sum", "max", "gap"])
@pytest.mark.parametrize("kind", KINDS)
def test_stacks_are_the_solver_s_values(kind, measure, degrees):
    """With parallel edges, self-loops, wires, and chains of components, which seem to turn."""
    if measure == "gap" and kind not in ("out", "in", "rw"):
        return
    index, weights = drawn(9, 30, 2, signed=kind != "rw" or degrees == "absolute")
    twos = [[9, 10, 10, 11, 12, 12, 13, 14], [10, 9, 11, 12, 11, 13, 14, 13]]
    index = np.concatenate([index, [[0, 3, 3], [1, 3, 4]], twos], axis=1)
    weights = np.concatenate([weights, [0.7, 0.4, 0.9], np.ones(8)])
    given = wiring((index, 15), weights).extended([14, 2], [0, 5], [0.5, 1.1])
    form = operator(kind, degrees)
    solver = Solver(form)
    chosen = measure_named(measure, solver.decompose(given, vectors=True), kind)
    sets = np.random.default_rng(0).random((60, len(weights))) < 0.7
    assert Stacks.fit(given, form)
    values, doubtful = Stacks(given, form, chosen).values(sets)
    exact = [chosen.value(solver.decompose(given.keep(s), vectors=False).values) for s in sets]
    np.testing.assert_allclose(values[~doubtful], np.array(exact)[~doubtful], atol=1e-9)
    assert doubtful.sum() < len(sets)


def test_locked_edges_stay_in_every_search():
    index, weights = drawn(8, 20, 1)
    given = wiring((index, 8), weights)
    solver = Solver(operator("out", None))
    measure = measure_named("gap", solver.decompose(given, vectors=True), "out")
    locked = np.arange(20) % 2 == 0
    for edges in (18, 15):
        search = Search(given, solver, measure, "gap", locked=locked, effort=1e-3)
        whole = Search(given, solver, measure, "gap", locked=locked)
        for one in (search, whole):
            alive = one.run(edges)
            assert alive[locked].all()
            assert alive.sum() == edges
        free = np.flatnonzero(~locked)
        losses = []
        for gone in itertools.combinations(free, 20 - edges):
            kept = given.keep(without(20, gone))
            losses.append(-measure.value(solver.decompose(kept, vectors=False).values))
        assert -whole.value == pytest.approx(min(losses), abs=1e-10)


def test_counting_sets_stops_in_time():
    assert number_of_sets(30, 4, 1e5) == 27_405
    assert number_of_sets(10**6, 10**5, 1e5) == np.inf
    graph = gp.ComputationalGraph.from_edges([("a", "b"), ("b", "a"), ("b", "c")])
    assert spectral.prune(graph, [1.0, -1.0, 1.0], size=2).num_kept == 2
