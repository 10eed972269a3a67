"""Regression, links and classes of pairs, against the same sums in plain PyG."""

import pytest
import torch
import torch_geometric.nn as pyg
from support.gnn_cases import C, N, Net, a_graph, drawn, three
from torch_geometric.data import HeteroData

import graphprune as gp
from graphprune.tasks import regression


class Plain(Net):
    def forward(self, x, edge_index):
        return self.body(x, edge_index)


class Pooled(Net):
    def forward(self, x, edge_index, batch):
        return pyg.global_add_pool(self.body(x, edge_index), batch)


class First(Plain):
    def forward(self, x, edge_index):
        return super().forward(x, edge_index)[:, 0]


def without(data, edge):
    kept = torch.arange(data.num_edges) != edge
    return gp.EdgeMask(gp.wrap(Plain().double(), data=data).graph, kept.float()).apply(data)


def by_deletion(data, loss):
    """``[E]``: how much ``loss(smaller data)`` grows by each edge's absence, in plain PyG."""
    return torch.stack([loss(without(data, edge)) - loss(data) for edge in range(data.num_edges)])


# ------------------------------------------------------------------ regression


@pytest.mark.parametrize("kind", [Plain, First])
def test_regression_of_nodes_is_the_mean_squared_error(kind):
    data, module, at = a_graph(), kind().double().eval(), [7, 0, 3]
    targets = drawn(N, C)[:, : 1 if kind is First else C]

    @torch.no_grad()
    def loss(d):
        out = module(d.x, d.edge_index).view(N, -1)
        return (out - targets)[at].square().mean()

    model = gp.wrap(module, data=data)
    task = regression(data, targets if kind is Plain else targets[:, 0], at=at)
    mask = gp.EdgeMask(model.graph, (torch.arange(model.graph.num_edges) % 3 > 0).float())
    found = gp.evaluate(model, task, mask, ablation="delete")
    assert found["squared_error"] == pytest.approx(float(loss(mask.apply(data))))
    assert found.full["squared_error"] == pytest.approx(float(loss(data)))
    assert "kl" not in found.values
    assert "faithfulness" in found.values
    # Edges are worth by how much the error grows without them.
    want = by_deletion(data, loss)
    patched = gp.ExactPatching(ablation="delete").score(model, task).values
    torch.testing.assert_close(patched.double(), want, atol=1e-6, rtol=1e-5)
    eap = gp.EAP(ablation="delete").score(model, task).values.double()
    weight = torch.ones(data.num_edges, dtype=torch.float64, requires_grad=True)
    hidden = torch.tanh(module.a(data.x, data.edge_index, weight))
    out = module.b(hidden, data.edge_index, weight)
    out = out if kind is Plain else out[:, :1]
    (slope,) = torch.autograd.grad((out - targets)[at].square().mean(), weight)
    torch.testing.assert_close(eap, -slope, atol=1e-6, rtol=1e-5)


def test_regression_of_graphs_reads_a_list_of_graphs():
    data, module = three(y=lambda number, _: drawn(1, C, seed=number)), Pooled().double().eval()
    model, task = gp.wrap(module, data=data), regression(data.to_data_list(), at=[2, 0])

    @torch.no_grad()
    def loss(d):
        return (module(d.x, d.edge_index, d.batch) - data.y)[[2, 0]].square().mean()

    assert len(task) == 2
    mask = gp.EdgeMask(model.graph, (torch.arange(model.graph.num_edges) % 3 > 0).float())
    found = gp.evaluate(model, task, mask, ablation="delete")
    assert found["squared_error"] == pytest.approx(float(loss(mask.apply(data))))
    assert regression(data, level="graph").fingerprint == regression(data).fingerprint
    assert regression(data, data.y + 1).fingerprint != regression(data).fingerprint


def test_pruning_for_a_regression_keeps_the_error_low():
    """The module is its own truth but for half the edges, which only disturb it."""
    data, module = a_graph(), Plain().double().eval()
    good = torch.arange(data.num_edges) % 2 == 0
    targets = module(data.x, data.edge_index[:, good]).detach()
    model, task = gp.wrap(module, data=data), regression(data, targets)

    def error(mask):
        found = gp.evaluate(model, task, mask, ablation="delete")
        return found["squared_error"]

    truth = gp.EdgeMask(model.graph, good.float())
    assert error(truth) == pytest.approx(0, abs=1e-20)
    full = error(gp.EdgeMask.full(model.graph))
    learned = gp.EdgePruning(size=13, steps=40, loss="task", ablation="delete").prune(model, task)
    ranked = gp.EAP(ablation="delete").score(model, task).top(data.num_edges - 1, by="signed")
    assert error(learned) < full
    assert error(learned) < error(gp.Random().score(model, task).top(13))
    assert error(ranked) < full
    # By default the outputs stay near the full model's, in mean square.
    near, same = (
        gp.EdgePruning(size=20, steps=5, loss=loss, ablation="delete").prune(model, task)
        for loss in ("auto", "mse")
    )
    assert torch.equal(near.values, same.values)


def test_regression_of_one_type_of_node():
    data = HeteroData()
    data["author"].x, data["paper"].x = drawn(4, 3), drawn(5, 3, seed=1)
    data["paper"].y = drawn(5, seed=2)
    data["author", "writes", "paper"].edge_index = torch.tensor([[0, 1, 2, 3, 0], [0, 1, 2, 3, 4]])
    conv = pyg.SAGEConv((3, 3), 1).double()

    def forward(module, d):
        edges = d["author", "writes", "paper"].edge_index
        return module((d["author"].x, d["paper"].x), edges)

    model = gp.wrap(conv, data=data, forward=forward, node_type="paper")
    found = gp.evaluate(
        model, regression(data, at=[4, 1]), gp.EdgeMask.full(model.graph), ablation="delete"
    )
    want = (forward(conv, data).detach()[:, 0] - data["paper"].y)[[4, 1]].square().mean()
    assert found["squared_error"] == pytest.approx(float(want))


def test_fidelity_of_a_regression_has_a_tolerance():
    data, module = a_graph(), Plain().double().eval()
    model, targets = gp.wrap(module, data=data), drawn(N, C)
    mask = gp.EdgeMask(model.graph, (torch.arange(model.graph.num_edges) % 3 > 0).float())
    own, small = module(data.x, data.edge_index), module(data.x, mask.apply(data).edge_index)
    far = (own - small).detach().square().mean(-1).sqrt()
    limit = float(far.median())
    task = regression(data, targets, tolerance=limit)
    found = gp.fidelity(model, task, mask, ablation="delete")
    assert found.minus == pytest.approx(float((far > limit).double().mean()))


def test_targets_that_are_none():
    data = a_graph()
    with pytest.raises(gp.InputError, match="targets are missing"):
        regression(data)
    with pytest.raises(gp.InputError, match=f"there are {N} nodes, and targets of 5"):
        regression(data, torch.zeros(5))
    odd = torch.zeros(N)
    odd[4] = float("nan")
    with pytest.raises(gp.InputError, match="the target of node 4 is NaN"):
        regression(data, odd)
    assert len(regression(data, odd, at=torch.arange(N) != 4)) == N - 1
    model = gp.wrap(Plain().double(), data=data)
    with pytest.raises(gp.InputError, match="an example has 1 targets"):
        gp.EAP().score(model, regression(data, torch.zeros(N)))
