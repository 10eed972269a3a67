"""Sweeps of the asynchronous recurrent network: by levels, by matrices, edge by edge."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.wheels import random_network

from graphprune.adapters.gnn.schedule import levels_of
from graphprune.adapters.gnn.wiring import Wiring

pytestmark = pytest.mark.inside

UPDATES = ("sequential", "bernoulli", "synchronous")
X = torch.tensor([0.5, -1.0, 2.0])


@settings(max_examples=30, deadline=None)
@given(
    nodes=st.integers(4, 30),
    degree=st.floats(0.5, 6.0),
    seed=st.integers(0, 10_000),
    channels=st.integers(1, 2),
)
def test_levels_equal_the_plain_loop(nodes, degree, seed, channels):
    net = random_network(nodes, 2, degree, seed, update="sequential", channels=channels)
    plan = net.schedule(1)
    x = torch.randn(3, 2, channels)
    start = net.start(x.squeeze(-1) if channels == 1 else x, torch.randn(nodes, channels))
    mask = torch.rand(3, net.edge_index.shape[1])
    wiring = Wiring(net.edge_index, net.masked_weight(mask), nodes)
    base = torch.randn(nodes, channels)
    loop = net.sweep_loop(start, plan, 0, wiring, base)
    assert torch.allclose(net.sweep_levels(start, plan, 0, wiring, base), loop, atol=1e-5)


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
    plan = net.schedule()
    if update == "sequential":  # both ways through a sweep
        monkeypatch.setattr(type(plan), "sweeps_by_level", (dense,) * len(plan))
    monkeypatch.setattr(
        net, "_wiring", lambda w: Wiring(net.edge_index, w, net.num_nodes, dense=dense)
    )
    mask = torch.rand(net.edge_index.shape[1], dtype=torch.float64, requires_grad=True)

    def run(mask, weight, x, h0):
        kept = net.edge_weight
        try:
            del net.edge_weight
            net.edge_weight = weight
            return net(x, h0, schedule=plan, edge_mask=mask)
        finally:
            del net.edge_weight
            net.edge_weight = kept

    weight = net.edge_weight.detach().clone().requires_grad_(True)
    x = X.double().requires_grad_(True)
    h0 = torch.randn(12, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (mask, weight, x, h0))
