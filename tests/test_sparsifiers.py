"""Graph sparsifiers against closed forms: resistances, degrees, K neighbours, the spectral gap."""

import networkx as nx
import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.nn import GraphConv

import graphprune as gp
from graphprune.conformance import check_method
from graphprune.spectral import Degree, EffectiveResistance, GapDeletion, KNeighbour
from graphprune.tasks import nodes


def wrapped(graph, weights=None):
    """A model on an undirected networkx graph, both directions of each edge, and a task."""
    pairs = torch.tensor(list(graph.edges)).T
    index = torch.cat([pairs, pairs.flip(0)], 1)
    data = Data(x=torch.randn(len(graph), 3), edge_index=index)
    task = nodes(data.x, torch.arange(len(graph)) % 2, corrupt=None)
    return gp.wrap(GraphConv(3, 2), data=data, tie=False), task


def drawn(seed, n=12, chance=0.35):
    graph = nx.gnp_random_graph(n, chance, seed=seed)
    return graph if nx.is_connected(graph) else drawn(seed + 100, n, chance)


def test_resistances_are_the_pseudoinverses_and_sum_to_a_tree():
    graph = drawn(0)
    model, task = wrapped(graph)
    scores = EffectiveResistance(edge_weights="equal").score(model, task).values
    laplacian = 2 * nx.laplacian_matrix(graph).toarray()  # both directions conduct
    inverse = np.linalg.pinv(laplacian)
    u, v = model.graph.edge_index.numpy()
    wanted = inverse[u, u] + inverse[v, v] - 2 * inverse[u, v]
    np.testing.assert_allclose(scores, wanted, rtol=1e-5)
    by_networkx = nx.resistance_distance(graph)
    np.testing.assert_allclose(
        scores, [by_networkx[a][b] / 2 for a, b in zip(u, v, strict=True)], rtol=1e-5
    )
    # Of all spanning trees a pair is in the share w R (Kirchhoff); a tree has n - 1 edges (Foster).
    assert float(scores.sum()) == pytest.approx(len(graph) - 1, rel=1e-5)
    small = nx.Graph([(0, 1), (1, 2), (2, 0), (2, 3)])
    model, task = wrapped(small)
    shares = EffectiveResistance(edge_weights="equal").score(model, task).values
    assert (2 * shares).tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 1] * 2)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_k_neighbours_keep_k_edges_of_each_node(k):
    model, task = wrapped(drawn(1))
    target = model.graph.edge_index[1]
    degree = torch.bincount(target)
    size = int(degree.clamp(max=k).sum())
    seen = []
    for seed in range(3):
        mask = KNeighbour(seed=seed).score(model, task).top(size)
        assert torch.bincount(target[mask.kept]).equal(degree.clamp(max=k))
        seen.append(mask.values)
    assert not torch.equal(seen[0], seen[1])


def test_neighbours_are_drawn_by_weight():
    """The first of three edges of weights 1, 2 and 5 is each one in that share of seeds."""
    graph = gp.ComputationalGraph.from_edges([("a", "d"), ("b", "d"), ("c", "d")])
    data = Data(x=torch.randn(4, 3), edge_index=graph.edge_index)
    model = gp.wrap(GraphConv(3, 2), data=data, tie=False)
    task = nodes(data.x, torch.tensor([0, 1, 0, 1]), corrupt=None)
    weights = (1.0, 2.0, 5.0)
    first = torch.zeros(3)
    for seed in range(2000):
        scores = KNeighbour(seed=seed, edge_weights=weights).score(model, task)
        first[int(scores.values.argmax())] += 1
    assert (first / 2000).tolist() == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.035)
    never = KNeighbour(edge_weights=(0.0, 1.0, 1.0)).score(model, task)
    assert int(never.values.argmin()) == 0


def test_local_degree_by_hand():
    """Node 0 has degree 4 and reads 1 (degree 3), 2 (2), 3 (2), 4 (1)."""
    graph = nx.Graph([(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (1, 3)])
    model, task = wrapped(graph)
    scores = Degree().score(model, task).values
    # (0, 2): node 2 has degree 2 and prefers node 0: its exponent is 0, the score 1.
    # (1, 2): of node 1's three, 0 is first, 2 and 3 share place 2; of node 2's two it is second.
    wanted = [1, 1, 1, 1, 1 - np.log(2) / np.log(3), 1 - np.log(2) / np.log(3)]
    assert scores.tolist() == pytest.approx(wanted * 2)
    sums = Degree(rule="sum").score(model, task).values
    assert sums.tolist() == [7, 6, 6, 5, 5, 5] * 2
    with pytest.raises(gp.InputError, match="unknown rule 'product'"):
        Degree(rule="product").score(model, task)


def gap_of(graph):
    values = np.linalg.eigvalsh(nx.normalized_laplacian_matrix(graph).toarray())
    return values[1]


def test_the_first_deletion_is_the_steepest_by_finite_differences():
    for seed in range(3):
        graph = drawn(seed)
        model, task = wrapped(graph)
        scores = GapDeletion(rounds=10**6).score(model, task)
        slopes = {}
        for a, b in graph.edges:
            step = 1e-5
            less = graph.copy()
            nx.set_edge_attributes(less, 1.0, "weight")
            less[a][b]["weight"] = 1 - step
            slopes[a, b] = (gap_of(less) - gap_of(graph)) / step
        a, b = max(slopes, key=slopes.get)
        (gone,) = {
            tuple(sorted(model.graph.edge_index[:, edge].tolist()))
            for edge in scores.values.argsort()[:2].tolist()
        }
        assert gone == tuple(sorted((a, b)))


def test_deleting_for_the_gap_widens_it():
    """Beside random deletions of as many pairs from a ring of cliques' noisy cousin."""
    graph = nx.stochastic_block_model([10, 10], [[0.9, 0.15], [0.15, 0.9]], seed=3)
    model, task = wrapped(nx.Graph(graph.edges))
    pairs = graph.number_of_edges()
    kept = GapDeletion(rounds=pairs).score(model, task).top(2 * (pairs - 15))
    ends = model.graph.edge_index[:, kept.kept].T.tolist()
    assert sorted(map(tuple, ends)) == sorted((b, a) for a, b in ends)  # pairs go together
    ours = gap_of(nx.Graph(ends))
    generator = np.random.default_rng(0)
    every = list(graph.edges)
    by_chance = []
    for _ in range(20):
        stay = generator.permutation(pairs)[15:]
        by_chance.append(gap_of(nx.Graph([every[k] for k in stay])))
    assert ours > max(by_chance)
    assert ours > gap_of(graph)


def test_large_graphs_take_the_sparse_solver():
    """The first round, a quarter of the pairs; later ones may meet several equal eigenvalues."""
    model, task = wrapped(drawn(2, 30, 0.3))
    first = model.graph.num_edges // 4
    dense, sparse = (
        GapDeletion(rounds=4, dense_limit=limit).score(model, task).values for limit in (2000, 5)
    )
    assert torch.equal(dense.argsort()[:first], sparse.argsort()[:first])


@pytest.mark.parametrize("method", [KNeighbour(), Degree(), Degree(rule="sum"), GapDeletion()])
def test_they_conform(method):
    assert set(check_method(method, *wrapped(drawn(4))).values()) == {"passed"}


def test_loops_and_pieces():
    """A self-loop is never deleted; pairs that stand alone go last but for it."""
    index = torch.tensor([[0, 1, 2, 3, 0, 4, 5], [1, 2, 3, 0, 0, 5, 4]])
    data = Data(x=torch.randn(6, 3), edge_index=index)
    model = gp.wrap(GraphConv(3, 2), data=data, tie=False)
    task = nodes(data.x, torch.arange(6) % 2, corrupt=None)
    scores = GapDeletion(rounds=10).score(model, task).values
    assert set(scores.topk(3).indices.tolist()) >= {4}
    for method in (Degree(), KNeighbour()):
        assert bool(torch.isfinite(method.score(model, task).values).all())
