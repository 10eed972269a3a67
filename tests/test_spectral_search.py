"""The global search: against chance, one-shot, exact greedy and its own rounds; feedback arcs."""

import itertools

import networkx as nx
import numpy as np
import pytest
import torch

import graphprune as gp
from graphprune import spectral
from graphprune.spectral import close, wiring
from graphprune.spectral.arcs import feedback_arcs
from graphprune.spectral.exchange import exchange
from graphprune.spectral.laplacians import operator
from graphprune.spectral.measures import Measure, measure_named
from graphprune.spectral.search import Search
from graphprune.spectral.spectra import Solver
from graphprune.spectral.trials import Trials

KINDS = ("out", "in", "both", "rw", "adjacency", "count")


def drawn(nodes, degree, seed, signed=False):
    graph = nx.gnp_random_graph(nodes, degree / (nodes - 1), seed=seed, directed=True)
    index = np.array(graph.edges).T
    generator = np.random.default_rng(seed)
    weights = generator.uniform(0.2, 1.5, index.shape[1])
    if signed:
        weights *= generator.choice([-1.0, 1.0], index.shape[1])
    return index, weights


def rotation(index, nodes, weights, kept, kind="out"):
    """By LAPACK on the blocks of networkx's components: none of the library's own solvers."""
    graph = nx.DiGraph()
    graph.add_edges_from(index[:, kept].T.tolist())
    whole = spectral.laplacian((index[:, kept], nodes), weights[kept], kind).toarray()
    total = 0.0
    for part in nx.strongly_connected_components(graph):
        place = sorted(part)
        values = np.linalg.eigvals(whole[np.ix_(place, place)])
        total += np.abs(values.imag[np.abs(values.imag) > 1e-6]).sum()
    return total


def greedy(index, nodes, weights, kept, kind):
    """Exact greedy: every edge tried, the best goes."""
    alive = np.ones(len(weights), dtype=bool)
    while alive.sum() > kept:
        best = None
        for edge in np.flatnonzero(alive):
            alive[edge] = False
            value = np.abs(
                spectral.spectrum((index[:, alive], nodes), weights[alive], kind).imag
            ).sum()
            alive[edge] = True
            if best is None or value < best[0]:
                best = (value, edge)
        alive[best[1]] = False
    return alive


def searched(index, nodes, weights, kind, kept, goal="damp", **options):
    given = wiring((index, nodes), weights)
    solver = Solver(operator(kind, None))
    name = "gap" if goal == "gap" else "sum"
    measure = measure_named(name, solver.decompose(given, vectors=True), kind)
    search = Search(given, solver, measure, goal, **options)
    search.run(kept)
    assert int(search.alive.sum()) == kept
    return search


@pytest.mark.parametrize("kind", ["out", "rw"])
def test_a_fifth_of_forty_nodes(kind):
    """Means over three graphs of n = 40, degree 4, positive weights; rounds alone leave a third."""
    left = {"search": [], "one-shot": [], "random": []}
    for seed in range(3):
        index, weights = drawn(40, 4, seed)
        kept = int(0.8 * len(weights))
        start = rotation(index, 40, weights, np.ones(len(weights), dtype=bool), kind)
        graph = gp.ComputationalGraph.from_edges(
            [(str(u), str(v)) for u, v in index.T], [str(n) for n in range(40)]
        )
        found = spectral.prune(graph, weights, kind, size=0.8)
        assert found.num_kept == kept
        shot = np.argsort(spectral.removal_effects(graph, weights, kind).numpy())
        chance = np.random.default_rng(seed).permutation(len(weights))
        for name, gone in (("one-shot", shot), ("random", chance)):
            alive = np.ones(len(weights), dtype=bool)
            alive[gone[: len(weights) - kept]] = False
            left[name].append(rotation(index, 40, weights, alive, kind) / start)
        left["search"].append(rotation(index, 40, weights, found.kept.numpy(), kind) / start)
    means = {name: np.mean(values) for name, values in left.items()}
    assert means["search"] <= {"out": 0.06, "rw": 0.28}[kind]
    assert means["search"] < 0.5 * means["one-shot"] < means["random"]


@pytest.mark.parametrize(("kind", "signed"), [("out", True), ("rw", False)])
def test_against_exact_greedy(kind, signed):
    """Budgets too small for all feedback arcs; small graphs, since greedy tries every edge."""
    ours, theirs = 0.0, 0.0
    for seed in range(2):
        index, weights = drawn(12, 5, seed, signed)
        kept = int(0.87 * len(weights))
        found = searched(index, 12, weights, kind, kept).alive
        ours += rotation(index, 12, weights, found, kind)
        theirs += rotation(index, 12, weights, greedy(index, 12, weights, kept, kind), kind)
    assert ours <= theirs + 1e-9


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("goal", ["damp", "preserve", "gap"])
@pytest.mark.parametrize("kind", KINDS)
def test_never_worse_than_rounds_alone(kind, goal, signed):
    if goal == "gap" and kind not in ("out", "in", "rw"):
        return
    index, weights = drawn(14, 4, 1, signed)
    kept = int(0.9 * len(weights))
    rounds = searched(index, 14, weights, kind, kept, goal, effort=0)
    whole = searched(index, 14, weights, kind, kept, goal, effort=0.03)
    again = searched(index, 14, weights, kind, kept, goal, effort=0.03)
    assert np.array_equal(whole.alive, again.alive)
    loss = whole.trials.loss
    assert loss(whole.value) <= loss(rounds.value) + 1e-9
    # The value told is the value of what is left.
    alive = whole.given.keep(whole.alive)
    values = Solver(operator(kind, None)).decompose(alive, vectors=True).values
    assert whole.measure.value(values) == pytest.approx(whole.value, abs=1e-7)


@pytest.mark.slow
def test_better_than_rounds_where_arcs_are_too_many():
    """Degree 8: feedback arcs are half as many again as the budget."""
    ours, rounds = [], []
    for seed in range(2):
        index, weights = drawn(30, 8, seed, signed=bool(seed))
        kept = int(0.8 * len(weights))
        for values, effort in ((rounds, 0), (ours, 1)):
            found = searched(index, 30, weights, "rw", kept, effort=effort)
            values.append(rotation(index, 30, weights, found.alive, "rw"))
    assert all(a < 0.8 * b for a, b in zip(ours, rounds, strict=True)), (ours, rounds)


@pytest.mark.parametrize("degrees", ["signed", "absolute"])
@pytest.mark.parametrize("kind", KINDS)
def test_without_cycles_every_kind_is_real(kind, degrees):
    """The budget covers all feedback arcs: exactly nothing is left, counts are met."""
    index, weights = drawn(30, 4, 5, signed=kind != "rw" or degrees == "absolute")
    graph = gp.ComputationalGraph.from_edges(
        [(str(u), str(v)) for u, v in index.T], [str(n) for n in range(30)]
    )
    mask = spectral.prune(graph, weights, kind, degrees=degrees, size=0.75)
    assert mask.num_kept == int(0.75 * len(weights))
    assert mask.notes["end"] == 0.0
    assert not spectral.spectrum(
        (index[:, mask.kept.numpy()], 30), weights[mask.kept.numpy()], kind, degrees=degrees
    ).imag.any()


def test_locked_edges_and_wires_stay():
    index, weights = drawn(20, 4, 3)
    given = wiring((index, 20), weights)
    locked = np.random.default_rng(0).random(len(weights)) < 0.4
    solver = Solver(operator("out", None))
    search = Search(given, solver, Measure("sum"), "damp", locked=locked)
    alive = search.run(int(0.75 * len(weights)))
    assert alive[locked].all()
    assert int(alive.sum()) == int(0.75 * len(weights))
    chain = gp.ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("a", "c"), ("c", "d")])
    closed = close(chain, [1.0, 1.0, 1.0, 1.0], feedback=[("d", "a")])
    mask = spectral.prune(closed, size=3)
    assert mask.num_kept == 3
    assert mask.notes["end"] == 0.0  # the only way through the wire is cut: c->d
    assert mask.edges() == ["a->b", "b->c", "a->c"]


@pytest.mark.parametrize("seed", range(6))
def test_feedback_arcs_against_all_orders(seed):
    """Seven nodes: every order of nodes tried."""
    index, weights = drawn(7, 3.5, seed)
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
    index, weights = drawn(7, 2, 1)
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


def test_preserving_comes_near_the_start():
    index, weights = drawn(40, 5, 2)
    search = searched(index, 40, weights, "out", int(0.7 * len(weights)), "preserve")
    assert abs(search.value / search.start - 1) < 0.01
    assert rotation(index, 40, weights, search.alive) == pytest.approx(search.value, rel=1e-6)


@pytest.mark.network
@pytest.mark.parametrize("kind", KINDS)
def test_the_worm_stops_turning(kind):
    """A fifth of C. elegans' connections, where all feedback arcs fit."""
    try:
        graph, synapses = gp.tasks.celegans()
    except gp.FetchError as error:
        pytest.skip(str(error))
    mask = spectral.prune(graph, synapses, kind, size=0.8)
    kept = mask.kept.numpy()
    assert mask.num_kept == 1908
    left = nx.DiGraph(graph.edge_index.numpy()[:, kept].T.tolist())
    assert nx.is_directed_acyclic_graph(left)
    sub = (graph.edge_index[:, torch.from_numpy(kept)], graph.num_nodes)
    assert not spectral.spectrum(sub, synapses.numpy()[kept], kind).imag.any()
