"""What users have, stars of every kind, stable steps and large components."""

import itertools

import networkx as nx
import numpy as np
import pytest
import torch
from scipy.sparse import coo_matrix, csr_array
from torch_geometric.data import Data

import graphprune as gp
from graphprune import spectral

KINDS = ("out", "in", "both", "rw", "adjacency", "count")
RING = [[0, 1, 2, 2, 3], [1, 2, 0, 3, 2]]
WEIGHTS = [1.0, 2.0, 1.5, -0.5, 0.7]


def every_form():
    directed = nx.DiGraph()
    directed.add_nodes_from(range(4))
    for u, v, w in zip(*RING, WEIGHTS, strict=True):
        directed.add_edge(u, v, weight=w)
    index = torch.tensor(RING)
    entries = (WEIGHTS, RING)
    return {
        "networkx": directed,
        "edge_weight": Data(edge_index=index, edge_weight=torch.tensor(WEIGHTS), num_nodes=4),
        "edge_attr": Data(edge_index=index, edge_attr=torch.tensor(WEIGHTS)[:, None], num_nodes=4),
        "matrix": coo_matrix(entries, shape=(4, 4)),
        "array": csr_array(entries, shape=(4, 4)),
        "pair": (RING, WEIGHTS),
        "tensors": (index, torch.tensor(WEIGHTS)),
    }


@pytest.mark.parametrize("form", every_form())
def test_all_forms_are_one_graph(form):
    graph = every_form()[form]
    expected = spectral.laplacian((RING, 4), WEIGHTS).toarray()
    np.testing.assert_allclose(spectral.laplacian(graph).toarray(), expected, rtol=1e-6)
    mask = spectral.prune(graph, size=4)
    assert mask.num_kept == 4
    assert mask.graph.num_nodes == 4
    kept = mask.kept.numpy()
    assert not spectral.spectrum((mask.graph.edge_index[:, kept], 4)).imag.any()
    if form not in ("pair", "tensors"):
        other = spectral.laplacian(graph, np.ones(5)).diagonal()  # weights that are given win
        np.testing.assert_allclose(other, [1, 1, 2, 1])


def test_forms_that_are_refused():
    with pytest.raises(gp.InputError, match="networkx graph is undirected"):
        spectral.prune(nx.path_graph(4))
    both_ways = Data(edge_index=torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), num_nodes=3)
    with pytest.raises(gp.InputError, match="the graph is undirected"):
        spectral.prune(both_ways)
    some = nx.DiGraph()
    some.add_edge(0, 1, weight=2.0)
    some.add_edge(1, 0)
    with pytest.raises(gp.InputError, match=r"1 of 2 edges of the networkx graph have no weight"):
        spectral.prune(some)
    with pytest.raises(gp.InputError, match="expected a square matrix"):
        spectral.spectrum(csr_array(np.ones((2, 3))))
    with pytest.raises(gp.InputError, match="given twice"):
        spectral.prune((RING, WEIGHTS), WEIGHTS)
    many = Data(edge_index=torch.tensor(RING), edge_attr=torch.ones(5, 3), num_nodes=4)
    with pytest.raises(gp.InputError, match=r"edge_attr holds \[3\] numbers an edge"):
        spectral.prune(many)


def test_an_undirected_graph_is_refused(caplog):
    ties = [("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")]
    graph = gp.ComputationalGraph.from_edges([*ties, *((v, u) for u, v in ties)])
    weights = np.tile([1.0, 2.0, 0.5, 1.5], 2)
    for kind in ("out", "in", "both", "rw", "adjacency"):
        assert not spectral.spectrum(graph, weights, kind).imag.any()
        with pytest.raises(gp.InputError, match="the graph is undirected"):
            spectral.prune(graph, weights, kind)
    weights[:3], weights[4:7] = 3.0, 0.1  # one way round weighs more: directed, and it turns
    assert spectral.spectrum(graph, weights, "out").imag.any()
    assert spectral.prune(graph, weights, size=6).num_kept == 6
    tree = gp.ComputationalGraph.from_edges([("a", "b"), ("b", "a")])
    spectral.prune(tree, [1.0, 2.0], size=1)
    assert "the spectrum is real already" in caplog.text


# ------------------------------------------------------------------ stars


@pytest.mark.parametrize("degrees", ["signed", "absolute"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_local_rule_of_every_kind(kind, degrees):
    generator = np.random.default_rng(2)
    pairs = [p for p in itertools.permutations(range(8), 2) if generator.random() < 0.7]
    index = np.array(pairs).T
    weights = generator.normal(0, 4, len(pairs))
    mask = spectral.prune((index, 8), weights, kind, degrees=degrees, mode="local", size=1)
    kept = mask.kept.numpy()
    before = after = 0.0
    for node in range(8):
        for alive in (np.ones(len(pairs), dtype=bool), kept):
            star = alive & ((index[0] == node) | (index[1] == node))
            part = (index[:, star], 8)
            matrix = spectral.laplacian(part, weights[star], kind, degrees=degrees).toarray()
            turn = np.abs(np.linalg.eigvals(matrix).imag).max()
            if alive is kept:
                after = max(after, turn)
            else:
                before = max(before, turn)
    assert before > 1e-2 or kind == "both"
    assert after < 1e-5
    assert (mask.num_kept < len(pairs)) == (before > 1e-5)
    for u, v in index[:, ~kept].T:  # only edges of a negative product with their reverse
        back = (index[0] == v) & (index[1] == u)
        assert back.any()
        if kind != "rw" or degrees == "absolute":  # signed degrees change the product's sign
            assert (weights[back] * weights[(index[0] == u) & (index[1] == v)] < 0).all()
    if before > 1e-5:  # and no more than were asked for
        some = spectral.prune(
            (index, 8), weights, kind, degrees=degrees, mode="local", size=len(pairs) - 1
        )
        assert some.num_kept == len(pairs) - 1
    positive = spectral.prune((index, 8), np.abs(weights), kind, mode="local", size=1)
    assert positive.num_kept == len(pairs)


# ------------------------------------------------------------------ the stable step


@pytest.mark.parametrize("kind", ["out", "in", "both", "rw"])
def test_stable_steps_by_simulation(kind):
    generator = np.random.default_rng(6)
    drawn = nx.gnp_random_graph(20, 0.3, seed=6, directed=True)
    index = np.array(drawn.edges).T
    weights = generator.uniform(0.2, 2, index.shape[1])
    step = spectral.stable_step((index, 20), weights, kind)
    matrix = spectral.laplacian((index, 20), weights, kind).toarray()
    sizes = []
    for share in (0.98, 1.02):
        state = generator.standard_normal((20, 3))
        for _ in range(3000):
            state = state - share * step * (matrix @ state)
        sizes.append(np.abs(state).max())
    assert sizes[0] < 20
    assert sizes[1] > 1e6


def test_odd_stable_steps():
    ring = ([[0, 1, 2], [1, 2, 0]], 3)
    assert spectral.stable_step(ring) == pytest.approx(1.0)
    assert spectral.stable_step((np.zeros((2, 0), dtype=int), 3)) == float("inf")
    assert spectral.stable_step(ring, [-1.0, -1.0, -1.0]) == 0  # grows at any step
    with pytest.raises(gp.InputError, match="no diffusion"):
        spectral.stable_step(ring, laplacian="adjacency")


# ------------------------------------------------------------------ large components


def large(nodes=400, degree=5, seed=0):
    generator = np.random.default_rng(seed)
    index = generator.integers(nodes, size=(2, nodes * degree))
    index = index[:, index[0] != index[1]]
    return (index, nodes), generator.uniform(0.2, 1.5, index.shape[1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_filter_finds_the_dense_leaders(kind):
    graph, weights = large()
    whole = np.linalg.eigvals(spectral.laplacian(graph, weights, kind).toarray()).imag
    with pytest.warns(UserWarning, match="found none that turns faster"):
        found = spectral.leading(graph, weights, kind, count=6, dense_limit=50)
    np.testing.assert_allclose(found.imag, np.sort(whole)[::-1][:6], rtol=1e-8)


def test_pruning_above_the_dense_limit():
    (index, nodes), weights = large()
    with pytest.warns(UserWarning, match="leading eigenvalues only.*first-order error"):
        mask = spectral.prune((index, nodes), weights, size=0.95, dense_limit=100)
    assert mask.num_kept == int(0.95 * len(weights))
    kept = mask.kept.numpy()

    def top(alive):
        whole = spectral.laplacian((index[:, alive], nodes), weights[alive]).toarray()
        return 2 * np.sort(np.linalg.eigvals(whole).imag)[::-1][:8].sum()

    # What the notes say of the leading modes is what the dense solver says.
    assert mask.notes["start"] == pytest.approx(top(np.ones(len(weights), dtype=bool)), rel=1e-6)
    assert mask.notes["end"] == pytest.approx(top(kept), rel=1e-6)
    assert mask.notes["end"] < 0.9 * mask.notes["start"]
    assert "lower bound" in mask.notes["solved"]
    assert max(mask.notes["residual"]) < 1e-8
    chance = np.ones(len(weights), dtype=bool)
    chance[np.random.default_rng(0).permutation(len(weights))[mask.num_kept :]] = False
    assert mask.notes["end"] < top(chance)


def test_no_cycle_left_is_a_proof():
    graph, weights = large(300)
    mask = spectral.prune(graph, weights, size=0.7, dense_limit=100)  # no warning
    assert mask.num_kept == int(0.7 * len(weights))
    assert "no directed cycle is left" in mask.notes["solved"]
    left = nx.DiGraph(graph[0][:, mask.kept.numpy()].T.tolist())
    assert nx.is_directed_acyclic_graph(left)


def test_large_goals():
    graph, weights = large(250)
    with pytest.warns(UserWarning, match="leading eigenvalues only"):
        kept = spectral.prune(graph, weights, goal="preserve", size=0.8, dense_limit=100)
    with pytest.warns(UserWarning, match="leading eigenvalues only"):
        few = spectral.prune(graph, weights, size=len(weights) - 2, dense_limit=100)
    assert few.num_kept == len(weights) - 2  # fewer removals than rounds
    assert abs(kept.notes["end"] / kept.notes["start"] - 1) < 0.2
    with pytest.raises(gp.InputError, match="the gap needs"):
        spectral.prune(graph, weights, goal="gap", dense_limit=100)
    with pytest.raises(gp.InputError, match="measure='gap' goes with goal='gap'"):
        spectral.prune(graph, weights, measure="gap", size=0.5, dense_limit=100)
    with pytest.raises(gp.InputError, match="unknown measure 'mean'"):
        spectral.prune(graph, weights, measure="mean", size=0.5, dense_limit=100)
