"""Pruning while a network learns, and graphs that have nothing left to damp."""

import networkx as nx
import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune import spectral
from graphprune.adapters import ARGNN

UPDATES = ("sequential", "bernoulli", "synchronous")


def a_network(update="synchronous", seed=0):
    drawn = nx.gnm_random_graph(7, 22, seed=seed, directed=True)
    edges = torch.tensor([e for e in drawn.edges if e[1] > 1]).T
    net = ARGNN(edges, 7, inputs=[0, 1], outputs=[5, 6], update=update, steps=4, seed=seed)
    return net.double()


def a_loss(net):
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return (net.read(net(x)) - 1.0).square().mean()


def by_finite_differences(net):
    """The loss's slope at each edge's weight as it counts: cut edges are opened at +-h alone."""
    slopes, h = [], 1e-5
    weight, keep = net.edge_weight.detach().clone(), net.edge_keep.clone()
    for edge in range(len(keep)):
        at = []
        for step in (h, -h):
            moved = weight * keep
            moved[edge] += step
            with torch.no_grad():
                net.edge_weight.copy_(moved)
                net.edge_keep.fill_(True)
                at.append(float(a_loss(net)))
        slopes.append((at[0] - at[1]) / (2 * h))
    with torch.no_grad():
        net.edge_weight.copy_(weight)
        net.edge_keep.copy_(keep)
    return torch.tensor(slopes, dtype=torch.float64)


@pytest.mark.parametrize("update", UPDATES)
def test_the_gradients_of_cut_edges_are_those_of_opening_them(update):
    net = a_network(update)
    net.keep(torch.arange(net.edge_weight.numel()) % 2)
    net.dense_gradient = torch.zeros_like(net.edge_weight)
    a_loss(net).backward()
    expected = by_finite_differences(net)
    assert not net.edge_weight.grad[~net.edge_keep].any()
    assert bool(expected[~net.edge_keep].any())
    torch.testing.assert_close(net.dense_gradient, expected, rtol=1e-6, atol=1e-9)
    own = net.edge_weight.grad[net.edge_keep]
    torch.testing.assert_close(own, expected[net.edge_keep], rtol=1e-6, atol=1e-9)


def test_regrowth_brings_back_what_lowers_the_loss_most():
    net = a_network()
    edges = net.edge_weight.numel()
    pruning = spectral.DynamicPruning(
        net, net.edge_index, 7, size=0.4, end=4, regrow=0.3, criterion="magnitude"
    )
    for _ in range(2):
        net.zero_grad()
        a_loss(net).backward()
        pruning.step()
    net.zero_grad()
    a_loss(net).backward()
    net.zero_grad()  # the target has its own record of them
    slopes = by_finite_differences(net).abs()
    cut = torch.nonzero(~net.edge_keep)[:, 0]
    best = set(cut[slopes[cut].argsort(descending=True)][: int(0.3 * len(cut))].tolist())
    assert len(best) > 1
    assert best != set(cut[: len(best)].tolist())
    before, weights = net.edge_keep.clone(), net.edge_weight.detach().clone()
    with torch.no_grad():
        pruning._grown(pruning._edges, before)
    assert set(torch.nonzero(net.edge_keep & ~before)[:, 0].tolist()) == best
    assert not net.edge_weight[list(best)].any()
    same = torch.ones(edges, dtype=torch.bool)
    same[list(best)] = False
    assert torch.equal(net.edge_weight[same], weights[same])


def test_gradients_that_say_nothing_are_refused():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.edge_weight = nn.Parameter(torch.arange(1.0, 7.0))
            self.register_buffer("edge_keep", torch.ones(6, dtype=torch.bool))

    index = [[0, 1, 2, 0, 1, 2], [1, 2, 0, 2, 0, 1]]
    options = {"size": 2, "end": 3, "regrow": 0.5, "criterion": "magnitude", "schedule": "linear"}
    net = Gated()
    pruning = spectral.DynamicPruning(net, index, 3, **options)
    (net.edge_weight * net.edge_keep).sum().backward()
    pruning.step()
    pruning.step()
    net.zero_grad()
    (net.edge_weight * net.edge_keep).sum().backward()
    with pytest.raises(gp.InputError, match="0 at every cut edge"):
        pruning.step()
    net.zero_grad()
    again = spectral.DynamicPruning(net, index, 3, **options)
    with pytest.raises(gp.InputError, match="is none"):
        again.step()


# ------------------------------------------------------------------ nothing left to damp


def symmetric_but_for_scales(nodes, share, seed):
    """Every edge with its reverse; weights symmetric times a scale of the source."""
    drawn = np.random.default_rng(seed)
    weights = np.triu(
        (drawn.random((nodes, nodes)) + 0.2) * (drawn.random((nodes, nodes)) < share), 1
    )
    weights = (weights + weights.T) * (drawn.random(nodes) + 0.5)[:, None]
    return np.nonzero(weights), weights


def rotation(weights):
    laplacian = np.diag(weights.sum(1)) - weights
    return np.abs(np.linalg.eigvals(laplacian).imag).sum()


@pytest.mark.parametrize("size", [0.95, 0.7, -1])
def test_a_graph_that_does_not_rotate_ends_without_rotation(size):
    ends, weights = symmetric_but_for_scales(150, 0.05, 1)
    count = len(ends[0]) - 1 if size == -1 else int(size * len(ends[0]))
    assert rotation(weights) < 1e-9
    mask = spectral.prune((np.stack(ends), weights[ends]), size=count, effort=0)
    left = np.zeros_like(weights)
    left[ends] = weights[ends] * mask.values.numpy()
    assert mask.num_kept == count
    assert rotation(left) < 1e-9
    one_way = np.count_nonzero((left != 0) != (left.T != 0)) // 2
    assert one_way == (len(ends[0]) - count) % 2


def test_a_graph_without_cycles_of_the_size_asked_for_is_done():
    graph = gp.ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("c", "a")])
    mask = spectral.prune(graph, [1.0, 2.0, 0.0], size=2)  # a training loop has cut the third
    assert mask.edges() == ["a->b", "b->c"]
    assert mask.notes["by"] == "nothing to cut"
    line = gp.ComputationalGraph.from_edges([("a", "b"), ("b", "c")])
    assert spectral.prune(line, [1.0, 2.0], size=2).num_kept == 2
    with pytest.raises(gp.InputError, match="no cycle"):
        spectral.prune(line, [1.0, 2.0], size=1)
    with pytest.raises(gp.InputError, match="no cycle"):
        spectral.prune(line, [1.0, 2.0], size=2, goal="preserve")
