"""What large graphs need gives what plain PyG, loops and searches gave before, on small ones."""

import pytest
import torch
import torch_geometric.nn as pyg
from torch_geometric.data import Data

import graphprune as gp
from graphprune.adapters.gnn import find_call
from graphprune.search.gates import budgeted_sigmoid
from graphprune.selection.connected import exact_budget
from graphprune.util.numbers import highest, ranking

pytestmark = pytest.mark.inside


class Net(torch.nn.Module):
    def __init__(self, conv, width=6):
        super().__init__()
        self.a, self.b = conv(4, width), conv(width, 3)

    def forward(self, x, edge_index):
        return self.b(torch.tanh(self.a(x, edge_index)), edge_index)


def made(conv, nodes=14, edges=40, seed=0):
    torch.manual_seed(seed)
    index = torch.randint(nodes, (2, edges)).unique(dim=1)
    index = index[:, index[0] != index[1]]
    index = index[:, torch.randperm(index.shape[1])]
    data = Data(x=torch.randn(nodes, 4, dtype=torch.float64), edge_index=index)
    return Net(conv).double(), data, gp.tasks.nodes(data.x, torch.arange(nodes) % 3)


def weighted(net, data, corrupt, mask):
    """Plain PyG: outputs under messages ``mask * clean + (1 - mask) * corrupted``."""
    handles, other = [], []

    def record(_, inputs, out):
        other.append(out.detach())

    def mix(_, inputs, out):
        number = len(used)
        used.append(out)
        weight = torch.ones(len(out), 1, dtype=out.dtype)
        weight[: len(mask)] = mask[:, None]
        return weight * out + (1 - weight) * other[number]

    used = []
    for hook, x in ((record, corrupt), (mix, data.x)):
        handles = [c.register_message_forward_hook(hook) for c in (net.a, net.b)]
        out = net(x, data.edge_index)
        for handle in handles:
            handle.remove()
    return out


@pytest.mark.parametrize("conv", [pyg.GraphConv, pyg.GCNConv, pyg.SAGEConv])
def test_attribution_is_the_gradient_of_plain_pyg(conv):
    net, data, task = made(conv)
    model = gp.wrap(net, data=data)
    scores = gp.EAP().score(model, task)
    mask = torch.ones(data.num_edges, dtype=torch.float64, requires_grad=True)
    batch = next(task.batches())
    out = weighted(net, data, batch.corrupt["x"], mask)
    value = task.metric(out[batch.positions], batch, out).mean()
    (gradient,) = torch.autograd.grad(value, mask)
    torch.testing.assert_close(scores.values.double(), gradient, rtol=0, atol=1e-6)


def test_edge_features_that_a_layer_sends_stay_the_users():
    class Sent(pyg.MessagePassing):
        def forward(self, x, edge_index, edge_attr):
            return x[:, :3] + self.propagate(edge_index, edge_attr=edge_attr, x=x)

        def message(self, edge_attr):
            return edge_attr

    _, data, _ = made(pyg.GraphConv)
    data.edge_attr = torch.randn(data.num_edges, 3, dtype=torch.float64)
    before = data.edge_attr.clone()
    model = gp.wrap(Sent(), data=data)
    with pytest.raises(gp.GraphPruneError, match="changes nothing"):
        gp.EAP().score(model, gp.tasks.nodes(data.x, torch.arange(14) % 3))
    assert torch.equal(data.edge_attr, before)


@pytest.mark.parametrize("conv", [pyg.GraphConv, pyg.GCNConv])
def test_masks_between_are_those_of_plain_pyg(conv):
    net, data, task = made(conv)
    model, batch = gp.wrap(net, data=data), next(task.batches())
    mask = torch.rand(data.num_edges, dtype=torch.float64)
    for values in (mask, (mask > 0.5).double(), torch.ones_like(mask)):
        values = values.clone().requires_grad_(True)
        ours = model.run(batch, values)
        plain = weighted(net, data, batch.corrupt["x"], values)[batch.positions]
        torch.testing.assert_close(ours, plain)
        seed = torch.randn_like(ours)
        a, b = (torch.autograd.grad((out * seed).sum(), values)[0] for out in (ours, plain))
        torch.testing.assert_close(a, b)


def test_no_edge_of_a_graph_network_can_be_dead():
    """The circuit of a size is the one that a search for dead ends finds."""
    net, data, _ = made(pyg.GraphConv)
    graph = gp.wrap(net, data=data).graph
    assert not graph.has_dead_ends
    searched = gp.wrap(net, data=data).graph
    vars(searched)["has_dead_ends"] = True
    values = torch.randn(graph.num_edges).round(decimals=1)  # with ties
    for count in (1, 5, graph.num_edges - 1, graph.num_edges):
        quick, slow = (exact_budget(g, values, count) for g in (graph, searched))
        assert torch.equal(quick.values, slow.values)
    chain = gp.ComputationalGraph.from_edges([("a", "b"), ("b", "c")])
    assert chain.has_dead_ends


def test_the_highest_are_the_first_of_the_ranking():
    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 50):
        values = torch.randint(5, (size,), generator=generator).float()
        for count in range(size + 1):
            first = torch.zeros(size, dtype=torch.bool)
            first[ranking(values)[:count]] = True
            assert torch.equal(highest(values, count), first)


@pytest.mark.parametrize("temperature", [0.5, 0.05])
def test_a_soft_budget_is_met(temperature):
    torch.manual_seed(0)
    scores = torch.randn(3, 1000) * torch.tensor([[0.1], [1.0], [10.0]])
    for count in (1.0, 20.0, 500.0, 999.0):
        values, tau = budgeted_sigmoid(scores, torch.full((3,), count), temperature)
        torch.testing.assert_close(values.sum(-1), torch.full((3,), count), rtol=1e-5, atol=0)
        torch.testing.assert_close(values, torch.sigmoid((scores - tau) / temperature))


@pytest.mark.parametrize("conv", [pyg.GraphConv, pyg.GCNConv])
def test_checks_on_part_of_the_edges_find_the_same_call(conv, monkeypatch):
    class Weighted(Net):
        def forward(self, x, edge_index, edge_weight=None, batch=None):
            x = torch.tanh(self.a(x, edge_index, edge_weight))
            if mixing:
                x = x - x.mean(0)
            return self.b(x, edge_index, edge_weight)

    mixing = False
    _, data, task = made(conv, 40, 600)
    net = Weighted(conv).double()
    whole = gp.wrap(net, data=data)
    monkeypatch.setattr(find_call, "_MANY_EDGES", 300)
    part = gp.wrap(net, data=data)
    assert find_call.part_of(part.checked.call.data).sum() < data.num_edges / 5
    assert str(part.checked.call) == str(whole.checked.call) == "module(x, edge_index)"
    assert part.checked.call.data.layout == whole.checked.call.data.layout
    assert torch.equal(gp.EAP().score(part, task).values, gp.EAP().score(whole, task).values)
    mixing = True  # is still seen, and copies run alone
    assert gp.wrap(net, data=data).checked.call.data.layout.alone
    data.edge_attr = torch.rand(data.num_edges, dtype=torch.float64)
    with pytest.raises(gp.InputError, match=r"data\.edge_attr"):
        gp.wrap(net, data=data)


def one_by_one(model, task, ablation):
    """Exact effects by a run for each edge."""
    effects = torch.zeros(model.graph.num_edges, dtype=torch.float64)
    for batch in task.batches():
        reference = model.reference(batch, gp.Ablation(ablation))
        start = task.metric(reference.full, batch, reference.full)
        for edge in range(model.graph.num_edges):
            mask = torch.ones(model.graph.num_edges)
            mask[edge] = 0.0
            out = model.run(batch, mask, reference)
            effects[edge] = (start - task.metric(out, batch, reference.full)).double().sum()
    return (effects / len(task)).float()


def many_runs(model):
    """Counts masks that the model runs."""
    rows, run = [], model.run

    def counted(batch, mask, reference=None):
        rows.append(1 if mask.ndim == 1 else len(mask))
        return run(batch, mask, reference)

    model.run = counted
    return rows


@pytest.mark.parametrize(
    ("conv", "ablation", "undirected"),
    [
        (pyg.GraphConv, "counterfactual", False),
        (pyg.SAGEConv, "zero", True),
        (pyg.GCNConv, "delete", False),
        (pyg.GCNConv, "delete", True),
    ],
)
def test_exact_patching_of_edges_that_share_no_node(conv, ablation, undirected):
    net, data, _ = made(conv, 120, 70, seed=1)
    if undirected:
        data.edge_index = torch.cat([data.edge_index, data.edge_index.flip(0)], 1).unique(dim=1)
    model = gp.wrap(net, data=data)
    assert (model.graph.ties is not None) == undirected
    at = torch.arange(120)[torch.arange(120) % 5 > 0]
    task = gp.tasks.nodes(data.x, torch.arange(120) % 3, at=at)
    wanted = one_by_one(model, task, ablation)
    rows = many_runs(model)
    scores = gp.ExactPatching(ablation=ablation).score(model, task)
    assert sum(rows) < 0.6 * model.graph.num_edges
    torch.testing.assert_close(scores.values, wanted, rtol=0, atol=1e-6)


def test_exact_patching_of_graphs_and_where_nodes_are_joined_otherwise():
    class Graphs(Net):
        def forward(self, x, edge_index, batch):
            return pyg.global_mean_pool(super().forward(x, edge_index), batch)

    class Mixed(Net):
        def forward(self, x, edge_index):
            x = torch.tanh(self.a(x, edge_index))
            return self.b(x - x.mean(0), edge_index)

    from torch_geometric.data import Batch

    graphs = Batch.from_data_list([made(pyg.GraphConv, 6, 12, seed)[1] for seed in range(8)])
    model = gp.wrap(Graphs(pyg.GraphConv).double(), data=graphs)
    task = gp.tasks.graphs(torch.arange(8) % 3)
    wanted, rows = one_by_one(model, task, "zero"), many_runs(model)
    found = gp.ExactPatching(ablation="zero").score(model, task).values
    assert sum(rows) < 20 < model.graph.num_edges
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)

    _, data, task = made(pyg.GraphConv, 60, 70, seed=1)
    model = gp.wrap(Mixed(pyg.GraphConv).double(), data=data)
    found = gp.ExactPatching(ablation="zero").score(model, task).values
    torch.testing.assert_close(found, one_by_one(model, task, "zero"), rtol=0, atol=1e-6)
