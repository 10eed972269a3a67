"""Sweeps of the asynchronous recurrent network: by levels, by matrices, edge by edge."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.wheels import random_network

from graphprune.adapters.gnn.adjacency import WeightedAdjacency
from graphprune.adapters.gnn.schedule import levels_of

pytestmark = pytest.mark.inside

UPDATES = ("sequential", "bernoulli", "synchronous")
X = torch.tensor([0.5, -1.0, 2.0])


def node_by_node(net, state, order, mask, base):
    """A sweep as it is defined: each node in turn reads the newest states."""
    weight = net.masked_weight(mask).detach()
    state = state.expand(len(mask), *state.shape[-3:]).clone()
    for node in order.tolist():
        mine = torch.nonzero(net.edge_index[1] == node)[:, 0]
        sent = state[..., net.edge_index[0, mine], :] * weight[:, None, mine, None]
        state[..., node, :] = torch.tanh(sent.sum(-2) + base[node])
    return state


@settings(max_examples=30, deadline=None)
@given(
    nodes=st.integers(4, 30),
    degree=st.floats(0.5, 6.0),
    seed=st.integers(0, 10_000),
    channels=st.integers(1, 2),
)
def test_levels_equal_the_plain_loop(nodes, degree, seed, channels):
    net = random_network(nodes, 2, degree, seed, update="sequential", channels=channels)
    schedule = net.schedule(1)
    x = torch.randn(4, 2, channels)
    start = net.start(x.squeeze(-1) if channels == 1 else x, torch.randn(nodes, channels))
    mask = torch.rand(3, net.edge_index.shape[1])
    base = torch.randn(nodes, channels)
    adjacency = net.adjacency(net.masked_weight(mask[:, None]))
    loop = node_by_node(net, start, schedule.steps[0], mask, base)
    found = net.advance(start, schedule, 0, adjacency, base)
    assert found.shape == loop.shape == (3, 4, nodes, channels)
    assert torch.allclose(found, loop, atol=1e-5)


def test_levels_are_longest_paths_and_hold_every_edge_once():
    net = random_network(60, 4, 3.0, 1, update="sequential")
    (order,) = net.schedule(1).steps
    found = levels_of(net.edge_index, order, 60)
    place = {int(n): i for i, n in enumerate(order)}
    depth = dict.fromkeys(range(60), 0)
    for node in order.tolist():
        for s, t in net.edge_index.T.tolist():
            if t == node and place.get(s, -1) >= 0 and place[s] < place[node]:
                depth[node] = max(depth[node], depth[s] + 1)
    for level, nodes in enumerate(found.nodes):
        assert all(depth[n] == level for n in nodes.tolist())
    every = torch.cat([found.backward, *found.edges]).sort().values
    assert torch.equal(every, torch.arange(net.edge_index.shape[1]))
    assert sorted(torch.cat(found.nodes).tolist()) == sorted(order.tolist())


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("dense", [True, False])
def test_gradients_are_finite_differences(update, dense, monkeypatch):
    net = random_network(update=update, bias=True).double()
    schedule = net.schedule()
    monkeypatch.setattr(
        net, "adjacency", lambda w: WeightedAdjacency(net.edge_index, w, net.num_nodes, dense=dense)
    )
    mask = torch.rand(net.edge_index.shape[1], dtype=torch.float64, requires_grad=True)

    def run(mask, weight, x, h0):
        kept = net.edge_weight
        try:
            del net.edge_weight
            net.edge_weight = weight
            return net(x, h0, schedule=schedule, edge_mask=mask)
        finally:
            del net.edge_weight
            net.edge_weight = kept

    weight = net.edge_weight.detach().clone().requires_grad_(True)
    x = X.double().requires_grad_(True)
    h0 = torch.randn(12, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (mask, weight, x, h0))
