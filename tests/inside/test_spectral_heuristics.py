"""Parts of the spectral search: feedback arcs, exchange, matrices solved in stacks."""

import itertools

import networkx as nx
import numpy as np
import pytest

import graphprune as gp
from graphprune import spectral
from graphprune.spectral import weighted_graph
from graphprune.spectral.linalg.eigensolver import Solver
from graphprune.spectral.linalg.sensitivity import Measure, measure_named
from graphprune.spectral.linalg.weighted_graph import operator
from graphprune.spectral.search.feedback_arcs import feedback_arcs
from graphprune.spectral.search.global_search import GlobalSearch
from graphprune.spectral.search.set_search import SetEvaluator, StackedMatrices, exchanged

pytestmark = pytest.mark.inside

KINDS = ("out", "in", "both", "rw", "adjacency", "count")


def drawn(nodes, edges, seed, signed=False):
    generator = np.random.default_rng(seed)
    pairs = np.array([(i, j) for i in range(nodes) for j in range(nodes) if i != j]).T
    index = pairs[:, np.sort(generator.permutation(pairs.shape[1])[:edges])]
    weights = generator.uniform(0.2, 1.5, edges)
    return index, weights * generator.choice([-1.0, 1.0], edges) if signed else weights


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
    given = weighted_graph((index, 7), weights)
    evaluator = SetEvaluator(given, Solver(operator("adjacency", None)), Measure("sum"), "damp")
    everything = np.ones(edges, dtype=bool)
    values = {}
    for gone in itertools.combinations(range(edges), 2):
        alive = everything.copy()
        alive[list(gone)] = False
        values[gone] = evaluator.value(alive)
    worst = max(values, key=values.__getitem__)
    alive = everything.copy()
    alive[list(worst)] = False
    found = exchanged(evaluator, alive, work=1e9)
    assert found.sum() == edges - 2
    assert evaluator.value(found) == pytest.approx(min(values.values()), abs=1e-9)
    assert min(values.values()) < values[worst]


def test_exact_greedy_is_tried_at_96_edges_and_24_removals():
    """It was skipped there: nothing of the search is worse than what it reaches."""
    index, weights = drawn(24, 96, 5)
    given = weighted_graph((index, 24), weights)
    solver = Solver(operator("out", None))
    measure = measure_named("gap", solver.solve(given, vectors=True), "out")
    search = GlobalSearch(given, solver, measure, "gap", effort=0.1)
    everything = np.ones(96, dtype=bool)
    alive = search.run(72)

    def gap(kept):
        index_left, weights_left = index[:, kept], weights[kept]
        return np.sort(np.linalg.eigvals(out_laplacian(index_left, weights_left)).real)[1]

    starts = dict(search._starts(72, None))
    assert starts["greedy"].sum() == 72
    assert gap(alive) >= gap(starts["greedy"]) - 1e-9
    assert gap(starts["greedy"]) > gap(everything)


@pytest.mark.parametrize("degrees", ["signed", "absolute"])
@pytest.mark.parametrize("kind", KINDS)
def test_effects_of_edges_that_go_and_come(kind, degrees):
    """Finite differences along the change of the dense matrix, whose spectrum numpy takes."""
    index, weights = drawn(9, 50, 3, signed=kind != "rw" or degrees == "absolute")
    present = np.arange(50) % 7 != 3
    # Between components, edges that close a new cycle are not predicted.
    assert nx.is_strongly_connected(nx.DiGraph(index[:, present].T.tolist()))
    graph = weighted_graph((index, 9), weights)
    evaluator = SetEvaluator(graph, Solver(operator(kind, degrees)), Measure("sum"), "damp")

    def matrix(kept):
        part = (index[:, kept], 9)
        return spectral.laplacian(part, weights[kept], kind, degrees=degrees).toarray()

    def rotation(matrix):
        return np.abs(np.linalg.eigvals(matrix).imag).sum()

    effects = evaluator.effects(present, evaluator.solve(present))
    start = matrix(present)
    for edge in range(0, 50, 2):
        step = 1e-6 * (matrix(present ^ (np.arange(50) == edge)) - start)
        slope = (rotation(start + step) - rotation(start - step)) / 2e-6
        assert effects[edge] == pytest.approx(slope, abs=1e-5), edge


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
    given = weighted_graph((index, 15), weights).extended([14, 2], [0, 5], [0.5, 1.1])
    form = operator(kind, degrees)
    solver = Solver(form)
    chosen = measure_named(measure, solver.solve(given, vectors=True), kind)
    sets = np.random.default_rng(0).random((60, len(weights))) < 0.7
    assert StackedMatrices.fit(given, form)
    values, doubtful = StackedMatrices(given, form, chosen).values(sets)
    exact = [chosen.value(solver.solve(given.keep(s), vectors=False).values) for s in sets]
    np.testing.assert_allclose(values[~doubtful], np.array(exact)[~doubtful], atol=1e-9)
    assert doubtful.sum() < len(sets)


def test_counting_sets_stops_in_time():
    """A number of sets that no float holds is many, not an error."""
    index, weights = drawn(40, 1500, 0)
    mask = spectral.prune((index, 40), weights, "out", goal="gap", size=750, effort=1e-9)
    assert mask.num_kept == 750
    graph = gp.ComputationalGraph.from_edges([("a", "b"), ("b", "a"), ("b", "c")])
    assert spectral.prune(graph, [1.0, -1.0, 1.0], size=2).num_kept == 2
