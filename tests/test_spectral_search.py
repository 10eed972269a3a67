"""The global search: against chance, one-shot, exact greedy and its own rounds; feedback arcs."""

import networkx as nx
import numpy as np
import pytest
import torch

import graphprune as gp
from graphprune import spectral
from graphprune.spectral import close

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


@pytest.mark.parametrize("kind", ["out", pytest.param("rw", marks=pytest.mark.slow)])
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
        mask = spectral.prune((index, 12), weights, kind, size=kept, effort=0.1)
        found = mask.kept.numpy()
        ours += rotation(index, 12, weights, found, kind)
        theirs += rotation(index, 12, weights, greedy(index, 12, weights, kept, kind), kind)
    assert ours <= theirs + 1e-9


@pytest.mark.slow
def test_better_than_rounds_where_arcs_are_too_many():
    """Degree 8: feedback arcs are half as many again as the budget."""
    ours, rounds = [], []
    for seed in range(2):
        index, weights = drawn(30, 8, seed, signed=bool(seed))
        kept = int(0.8 * len(weights))
        for values, effort in ((rounds, 0), (ours, 1)):
            found = spectral.prune((index, 30), weights, "rw", size=kept, effort=effort)
            values.append(rotation(index, 30, weights, found.kept.numpy(), "rw"))
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


def test_wires_stay():
    chain = gp.ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("a", "c"), ("c", "d")])
    closed = close(chain, [1.0, 1.0, 1.0, 1.0], feedback=[("d", "a")])
    mask = spectral.prune(closed, size=3)
    assert mask.num_kept == 3
    assert mask.notes["end"] == 0.0  # the only way through the wire is cut: c->d
    assert mask.edges() == ["a->b", "b->c", "a->c"]


def test_preserving_comes_near_the_start():
    index, weights = drawn(24, 5, 2)
    mask = spectral.prune((index, 24), weights, goal="preserve", size=int(0.7 * len(weights)))
    start, end = mask.notes["start"], mask.notes["end"]
    assert abs(end / start - 1) < 0.01
    assert rotation(index, 24, weights, mask.kept.numpy()) == pytest.approx(end, rel=1e-6)


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
