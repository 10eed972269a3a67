"""Tied pairs of a recurrent network: what is kept, what is reached, and its spectrum."""

import itertools

import networkx as nx
import numpy as np
import pytest
import torch

import graphprune as gp
from graphprune import spectral
from graphprune.adapters import ARGNN
from graphprune.tasks import patterns


def a_network(seed=0, symmetric=True):
    drawn = nx.gnm_random_graph(8, 14, seed=seed)
    pairs = [(u, v) for u, v in drawn.edges if min(u, v) > 1]
    into = [(u, v) for u, v in drawn.edges if min(u, v) <= 1 < max(u, v)]
    index = torch.tensor([*pairs, *[(v, u) for u, v in pairs], *into]).T
    own = torch.randn(len(pairs), generator=torch.Generator().manual_seed(seed))
    other = own if symmetric else -own.flip(0).abs()
    weight = torch.cat([own, other, torch.ones(len(into))])
    return ARGNN(
        index, 8, inputs=[0, 1], outputs=[6, 7], update="synchronous", steps=4, weight=weight
    ), len(pairs)


def test_a_recurrent_network_is_tied_on_request():
    """Its edges into inputs' readers have no reverse, so it is not undirected as a whole."""
    net, pairs = a_network()
    assert gp.wrap(net).graph.ties is None
    model = gp.wrap(net, tie=True)
    edges = net.edge_index.shape[1]
    assert model.graph.num_edges == edges - pairs
    task = patterns(torch.randn(6, 2), torch.tensor([0, 1] * 3))
    mask = gp.EAP(ablation="zero").prune(model, task, size=0.6)
    net.keep(mask)
    kept = set(map(tuple, net.edge_index[:, net.edge_keep].T.tolist()))
    assert kept
    assert {(v, u) for u, v in kept if u > 1} == {(u, v) for u, v in kept if u > 1}
    (batch,) = task.batches()
    want = net.read(net(batch.clean["inputs"], schedule=model.schedule)).detach()
    net.keep(None)
    reference = model.reference(batch, gp.Ablation("zero"))
    torch.testing.assert_close(model.run(batch, mask, reference), want)
    torch.testing.assert_close(model.compiled(batch, mask, reference)(), want)


@pytest.mark.parametrize("seed", range(6))
def test_dead_ends_follow_both_directions(seed):
    net, _ = a_network(seed)
    graph = gp.wrap(net, tie=True).graph
    generator = torch.Generator().manual_seed(seed)
    mask = gp.EdgeMask(graph, (torch.rand(graph.num_edges, generator=generator) < 0.5).float())
    walk = nx.DiGraph()
    walk.add_nodes_from(range(8))
    messages = graph.untied.edge_index.T.tolist()
    kept = [pair for pair, edge in zip(messages, graph.ties.edge, strict=True) if mask.kept[edge]]
    walk.add_edges_from(kept)
    ahead = {0, 1}.union(*(nx.descendants(walk, n) for n in (0, 1)))
    back = {6, 7}.union(*(nx.ancestors(walk, n) for n in (6, 7)))
    alive = {frozenset((u, v)) for u, v in kept if u in ahead and v in back}
    left = mask.prune_dead_ends().kept
    assert {frozenset(pair) for pair in graph.edge_index[:, left].T.tolist()} == alive


# ------------------------------------------------------------------ spectra


def rotation(nodes, ends, weight, laplacian):
    """The sum of imaginary parts' sizes, by dense numpy."""
    a = np.zeros((nodes, nodes))
    np.add.at(a, tuple(ends), weight)
    out, into = np.diag(a.sum(1)), np.diag(a.sum(0))
    matrix = {"out": out - a, "in": into - a, "both": out + into - a, "adjacency": a}[laplacian]
    return np.abs(np.linalg.eigvals(matrix).imag).sum()


@pytest.mark.parametrize("laplacian", ["out", "in", "both", "adjacency"])
@pytest.mark.parametrize("goal", ["damp", "preserve"])
def test_spectral_search_cuts_the_best_pairs(laplacian, goal):
    """No set of as many pairs is better, of all there are."""
    net, _ = a_network(4, symmetric=False)
    model = gp.wrap(net, tie=True)
    graph, count = model.graph, model.graph.num_edges
    task = patterns(torch.randn(6, 2), torch.tensor([0, 1] * 3))
    result = gp.SpectralPruning(laplacian=laplacian, goal=goal, size=count - 2).fit(model, task)
    index, weight = net.edge_index.numpy(), net.edge_weight.detach().double().numpy()

    def loss(cut):
        here = ~np.isin(graph.ties.edge.numpy(), cut)
        value = rotation(8, index[:, here], weight[here], laplacian)
        return value if goal == "damp" else abs(value - whole)

    whole = rotation(8, index, weight, laplacian)
    assert whole > 0.1
    best = min(loss(cut) for cut in itertools.combinations(range(count), 2))
    found = torch.nonzero(~result.mask.kept)[:, 0].numpy()
    assert len(found) == 2
    assert loss(found) == pytest.approx(best, abs=1e-6 * whole)


def test_a_pairs_sensitivity_is_that_of_both_weights():
    net, _ = a_network(4, symmetric=False)
    graph = gp.wrap(net, tie=True).graph
    weight = net.edge_weight.detach().double()
    ends = net.edge_index.numpy()
    found = spectral.sensitivity(graph, weight)
    whole = rotation(8, ends, weight.numpy(), "out")
    assert whole > 0.1
    for edge in range(graph.num_edges):
        step = 1e-6 * (graph.ties.edge == edge).double()
        ahead, behind = (rotation(8, ends, (weight + s * step).numpy(), "out") for s in (1, -1))
        slope = (ahead - behind) / 2e-6
        assert float(found[edge]) == pytest.approx(slope, rel=1e-3, abs=1e-6)
    with pytest.raises(gp.InputError, match="tie=False, or take mode='global'"):
        spectral.prune(graph, weight, mode="local")
