"""The layers and models that PyG's users have, each against plain PyG on the smaller graph."""

import pytest
import torch
import torch_geometric.nn as pyg
from support.messages import C, F, N, Two, a_graph
from torch import nn
from torch_geometric.data import Batch as Graphs
from torch_geometric.data import Data

import graphprune as gp
from graphprune.tasks import graphs, nodes

E = 24
# GraphUNet multiplies sparse matrices, of which torch warns.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse")


@pytest.fixture(autouse=True)
def _double():
    """PyG counts degrees in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


class Relations(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.first, self.second = kind(F, 6, 3, **options), kind(6, C, 3, **options)

    def forward(self, x, edge_index, edge_type):
        return self.second(torch.tanh(self.first(x, edge_index, edge_type)), edge_index, edge_type)


class WithEdges(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.first, self.second = kind(F, 6, **options), kind(6, C, **options)

    def forward(self, x, edge_index, edge_attr):
        return self.second(torch.tanh(self.first(x, edge_index, edge_attr)), edge_index, edge_attr)


class Pooled(nn.Module):
    """A pooling layer between two convolutions, then a mean over each graph's nodes."""

    def __init__(self, pool, kind=pyg.GraphConv):
        super().__init__()
        self.first, self.pool, self.second = kind(F, 6), pool, kind(6, C)

    def forward(self, x, edge_index, batch):
        x = torch.tanh(self.first(x, edge_index))
        x, edge_index, _, batch, *_ = self.pool(x, edge_index, None, batch)
        return pyg.global_add_pool(self.second(x, edge_index), batch)


class LightGCN(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = pyg.LGConv(), pyg.LGConv(), nn.Linear(F, C)

    def forward(self, x, edge_index):
        once = self.first(x, edge_index)
        return self.out(x + once + self.second(once, edge_index))


class InitialResidual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside, self.out = nn.Linear(F, 6), nn.Linear(6, C)
        self.layers = nn.ModuleList(pyg.GCN2Conv(6, 0.1, 0.5, depth) for depth in (1, 2))

    def forward(self, x, edge_index):
        x = first = self.inside(x)
        for layer in self.layers:
            x = torch.tanh(layer(x, first, edge_index))
        return self.out(x)


class Normed(nn.Module):
    """A norm over all nodes between two convolutions, without a batch vector."""

    def __init__(self, norm):
        super().__init__()
        self.first, self.norm, self.second = pyg.GCNConv(F, 6), norm, pyg.GCNConv(6, C)

    def forward(self, x, edge_index):
        return self.second(torch.tanh(self.norm(self.first(x, edge_index))), edge_index)


class Embedded(nn.Module):
    """No features: a table of embeddings."""

    def __init__(self):
        super().__init__()
        self.table, self.body = nn.Embedding(N, F), pyg.GCN(F, 6, 2, C)

    def forward(self, edge_index):
        return self.body(self.table.weight, edge_index)


def with_types():
    return a_graph().update({"edge_type": torch.arange(E) % 3})


def parallel():
    """A multigraph: the same pairs of nodes again under other relations."""
    data = a_graph(edges=12)
    data.edge_index = data.edge_index.repeat(1, 2)
    data.edge_type = torch.arange(E) // 9
    return data


def with_attributes():
    return a_graph().update({"edge_attr": torch.randn(E, 4)})


def two_graphs():
    return Graphs.from_data_list([a_graph(0), a_graph(1)])


def featureless():
    return Data(edge_index=a_graph().edge_index, num_nodes=N)


SUMMED = {
    "RGCN": (lambda: Relations(pyg.RGCNConv), with_types),
    "RGCN of parallel edges": (lambda: Relations(pyg.RGCNConv, aggr="add"), parallel),
    "RGCN with bases": (lambda: Relations(pyg.RGCNConv, num_bases=2), with_types),
    "FastRGCN": (lambda: Relations(pyg.FastRGCNConv), with_types),
    "RGAT": (lambda: Relations(pyg.RGATConv), with_types),
    "FiLM by relation": (lambda: Relations(pyg.FiLMConv), with_types),
    "TopK": (lambda: Pooled(pyg.TopKPooling(6, 0.6)), two_graphs),
    "SAG": (lambda: Pooled(pyg.SAGPooling(6, 0.6)), two_graphs),
    "LightGCN": (LightGCN, a_graph),
    "GCN2": (InitialResidual, a_graph),
    "ClusterGCN": (lambda: Two(pyg.ClusterGCNConv), a_graph),
    "Transformer with edges": (lambda: WithEdges(pyg.TransformerConv, edge_dim=4), with_attributes),
    "GAT with edges": (lambda: WithEdges(pyg.GATConv, edge_dim=4), with_attributes),
    "PDN": (lambda: WithEdges(pyg.PDNConv, edge_dim=4, hidden_channels=3), with_attributes),
    "GraphNorm": (lambda: Normed(pyg.GraphNorm(6)), a_graph),
    "PairNorm": (lambda: Normed(pyg.PairNorm()), a_graph),
    "LayerNorm": (lambda: Normed(pyg.LayerNorm(6)), a_graph),
    "GraphNorm over subgraphs": (lambda: Normed(pyg.InstanceNorm(6)), a_graph),
    "no features": (Embedded, featureless),
}  # fmt: skip
# What does more with edges than sum over them.
OTHERS = {
    "GraphUNet": (lambda: pyg.GraphUNet(F, 6, C, depth=2), a_graph),
    "PNA": (
        lambda: Two(lambda a, b: pyg.PNAConv(
            a, b, ["mean", "max"], ["identity", "amplification"], torch.ones(9).long())),
        a_graph,
    ),
    "EdgeConv": (lambda: Two(lambda a, b: pyg.EdgeConv(nn.Linear(2 * a, b))), a_graph),
}  # fmt: skip


def call(module, data, kept=None):
    """Plain PyG on the graph with the edges ``kept``."""
    data = data.clone()
    if kept is not None:
        data.edge_index = data.edge_index[:, kept]
        for name in ("edge_type", "edge_attr"):
            if name in data:
                data[name] = data[name][kept]
    names = [n for n in ("x", "edge_index", "edge_type", "edge_attr", "batch") if n in data]
    takes = module.forward.__code__.co_varnames
    return module(*[data[name] for name in names if name in takes])


def system(name):
    make, data = {**SUMMED, **OTHERS}[name]
    module, data = make().double().eval(), data()
    model = gp.wrap(module, data=data)
    if isinstance(data, Graphs):
        return module, data, model, graphs(torch.arange(2), classes=C)
    return module, data, model, nodes(data, torch.arange(N) % C, corrupt=None)


@pytest.mark.parametrize("name", [*SUMMED, *OTHERS])
def test_hard_masks_are_the_smaller_graph(name):
    module, data, model, task = system(name)
    (batch,) = task.batches()
    reference = model.reference(batch, gp.Ablation("delete"))
    masks = (torch.rand(3, data.num_edges) < 0.6).double()
    found = model.run(batch, masks, reference)
    for row, mask in zip(found, masks, strict=True):
        torch.testing.assert_close(row, call(module, data, mask.bool()), rtol=0, atol=1e-9)
    torch.testing.assert_close(reference.full, call(module, data), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", SUMMED)
def test_soft_masks_end_in_deletion_and_have_its_slopes(name):
    module, data, model, task = system(name)
    (batch,) = task.batches()
    reference = model.reference(batch, gp.Ablation("delete"))
    mask = (torch.rand(data.num_edges) < 0.6).double().requires_grad_(True)
    found = model.run(batch, mask, reference)
    want = call(module, data, mask.detach().bool())
    torch.testing.assert_close(found, want, rtol=0, atol=1e-9)
    inner = (0.93 + 0.05 * torch.rand(data.num_edges)).requires_grad_(True)
    (gradient,) = torch.autograd.grad(model.run(batch, inner, reference).square().sum(), inner)
    direction = torch.rand(data.num_edges) - 0.5
    ahead, behind = (
        model.run(batch, (inner + s * 1e-6 * direction).detach(), reference).square().sum()
        for s in (1, -1)
    )
    slope = ((ahead - behind) / 2e-6).item()
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", OTHERS)
def test_what_does_more_than_sum_has_no_soft_mask(name):
    _, data, model, task = system(name)
    (batch,) = task.batches()
    reference = model.reference(batch, gp.Ablation("delete"))
    with pytest.raises(gp.UnsupportedModelError, match="equals deleting an edge"):
        model.run(batch, torch.full((data.num_edges,), 0.5), reference)
    assert gp.ExactPatching(ablation="delete").score(model, task).values.any()


@pytest.mark.parametrize("pool", [pyg.TopKPooling, pyg.SAGPooling])
def test_messages_of_pooled_graphs_are_their_edges(pool):
    """In sums of messages a zero is an absent edge, whatever numbers a pooled node has."""
    module, data = Pooled(pool(6, 0.6)).eval(), two_graphs()
    model = gp.wrap(module, data=data)
    (batch,) = graphs(torch.arange(2), classes=C).batches()
    masks = (torch.rand(4, data.num_edges) < 0.5).double()
    found = model.run(batch, masks, model.reference(batch, gp.Ablation("zero")))
    for row, mask in zip(found, masks, strict=True):
        torch.testing.assert_close(row, call(module, data, mask.bool()), rtol=0, atol=1e-9)


@pytest.mark.parametrize("aggr", ["add", "mean"])
def test_relations_taken_one_by_one_have_the_messages_of_all_at_once(aggr):
    """RGCNConv propagates over parts of the edges, FastRGCNConv over all: the same scores."""
    slow, fast = Relations(pyg.RGCNConv, aggr=aggr), Relations(pyg.FastRGCNConv, aggr=aggr)
    fast.load_state_dict(slow.state_dict())
    for data in (with_types(), parallel()):
        task = nodes(data, torch.arange(N) % C)
        both = [gp.wrap(module, data=data) for module in (slow, fast)]
        for kind in ("delete", "counterfactual", "zero") if aggr == "add" else ("delete",):
            for method in (gp.EAP(ablation=kind), gp.ExactPatching(ablation=kind)):
                one, other = (method.score(model, task).values for model in both)
                torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
                assert one.abs().max() > 1e-3


def test_both_directions_of_an_edge_fall_together():
    """DirGNNConv sends along and against each edge; by hand, with both messages masked."""
    conv = pyg.DirGNNConv(pyg.GraphConv(F, C), alpha=0.3)
    data = a_graph()
    model = gp.wrap(conv, data=data)
    (batch,) = nodes(data, torch.arange(N) % C).batches()
    mask = torch.rand(E)
    found = model.run(batch, mask, model.reference(batch, gp.Ablation("zero")))
    (source, target), x = data.edge_index, data.x
    ahead = torch.zeros_like(x).index_add(0, target, mask[:, None] * x[source])
    back = torch.zeros_like(x).index_add(0, source, mask[:, None] * x[target])
    into, out_of = conv.conv_in, conv.conv_out
    want = 0.7 * (into.lin_rel(ahead) + into.lin_root(x)) + conv.lin(x)
    want = want + 0.3 * (out_of.lin_rel(back) + out_of.lin_root(x))
    torch.testing.assert_close(found, want, rtol=0, atol=1e-9)
    with pytest.raises(gp.UnsupportedModelError, match="both ways along an edge"):
        gp.InformationFlow().score(model, nodes(data, torch.arange(N) % C))


def test_gradients_under_deletion_of_merged_relations_are_slopes():
    """Types of edges that a layer puts into one (as HGTConv does) are followed through that."""
    data = with_types()

    class Merged(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Relations(pyg.RGATConv)

        def forward(self, x, edge_index, edge_type):
            order = edge_type.argsort(stable=True)
            return self.body(x, edge_index[:, order], edge_type[order])

    model = gp.wrap(Merged().eval(), data=data)
    task = nodes(data, torch.arange(N) % C)
    scores = gp.EAP(ablation="delete").score(model, task).values
    (batch,) = task.batches()
    reference = model.reference(batch, gp.Ablation("delete"))
    ones = torch.ones(E)
    for edge in range(0, E, 5):
        step = torch.zeros(E).index_fill(0, torch.tensor([edge]), 1e-6)
        low, high = (
            task.metric(model.run(batch, ones - s * step, reference), batch).mean() for s in (2, 1)
        )
        assert float(scores[edge]) == pytest.approx(float((high - low) / 1e-6), rel=1e-3, abs=1e-6)


def test_edges_that_a_module_makes_itself_are_no_edges_of_the_graph():
    class Nearest(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = pyg.GraphConv(F, C)

        def forward(self, x, edge_index):
            near = torch.cdist(x, x).argsort(1)[:, 1]
            return self.conv(x, torch.stack([near, torch.arange(len(x))]))

    with pytest.raises(gp.UnsupportedModelError, match="the same without any edge of the graph"):
        gp.wrap(Nearest(), data=a_graph())


def test_patterns_of_a_model_that_mixes_copies_are_run_one_by_one():
    """Examples with features of their own, and a norm over all nodes."""
    module, data = Normed(pyg.GraphNorm(6)).eval(), a_graph()
    model = gp.wrap(module, data=data)
    x = torch.randn(3, N, F)
    task = gp.tasks.patterns({"x": x}, torch.arange(3), corrupt={"x": x.flip(0)},
                             positions=torch.tensor([0, 4, 8]))  # fmt: skip
    (batch,) = task.batches()
    masks = (torch.rand(2, E) < 0.5).double()
    found = model.run(batch, masks, model.reference(batch, gp.Ablation("delete")))
    for row, mask in zip(found, masks, strict=True):
        for out, features, at in zip(row, x, (0, 4, 8), strict=True):
            want = module(features, data.edge_index[:, mask.bool()])[at]
            torch.testing.assert_close(out, want, rtol=0, atol=1e-9)
    scores = gp.EAP().score(model, task).values
    reference = model.reference(batch)
    mask = torch.ones(E, requires_grad=True)
    metric = task.metric(model.run(batch, mask, reference), batch).mean()
    (want,) = torch.autograd.grad(metric, mask)
    torch.testing.assert_close(scores.double(), want, rtol=1e-4, atol=1e-6)
