"""Rows and axes are not guessed from lengths, and graphs side by side do not feed each other."""

import inspect

import pytest
import torch
import torch_geometric.nn as pyg
from support.gnn_cases import (
    C,
    D,
    E,
    F,
    HeteroWeights,
    N,
    NamedWeight,
    Net,
    OfHetero,
    PooledOptional,
    Weighted,
    a_graph,
    attention,
    drawn,
    graph_norm,
    hetero,
)
from support.hetero import RELATIONS
from support.hetero import a_graph as a_hetero_graph
from torch_geometric.data import Batch as Graphs

import graphprune as gp
from graphprune.tasks import nodes

# ------------------------------------------------------------------ rows and axes by chance


class OfEdges(Net):
    def forward(self, x, edge_index):
        out = self.body(x, edge_index)
        return out[edge_index[0]] * out[edge_index[1]]


class OfPairs(Net):
    def forward(self, x, edge_index, edge_label_index):
        out = self.body(x, edge_index)
        return out[edge_label_index[0]] * out[edge_label_index[1]]


def test_rows_of_edges_and_pairs_are_not_taken_for_nodes():
    with pytest.raises(gp.UnsupportedModelError, match="rows of OfEdges are of edges"):
        gp.wrap(OfEdges().double(), data=a_graph(e=N))
    pairs = torch.stack([torch.arange(N), torch.arange(N).roll(1)])
    with pytest.raises(gp.UnsupportedModelError, match="rows of OfPairs are of pairs"):
        gp.wrap(OfPairs().double(), data=a_graph(edge_label_index=pairs))
    with pytest.raises(gp.UnsupportedModelError, match="Rows of edges would go with the edges"):
        gp.wrap(OfEdges().double(), data=a_graph())


def test_axes_are_not_guessed_from_lengths():
    data = a_graph(e=N, weight=drawn(N), edge_attr=drawn(N, 2), y=torch.arange(N))
    graph = gp.wrap(NamedWeight().double(), data=data).graph
    kept = torch.arange(N) % 3 > 0
    mask = gp.EdgeMask(graph, kept.float())
    with pytest.raises(gp.InputError, match=r"whether data\.weight belongs to nodes or to edges"):
        mask.apply(data)
    small = mask.apply(data, edge_attrs=["weight"])
    assert torch.equal(small.weight, data.weight[kept])
    assert torch.equal(small.edge_attr, data.edge_attr[kept])
    assert torch.equal(small.y, data.y)
    assert torch.equal(small.x, data.x)
    assert torch.equal(mask.apply(data, edge_attrs=[]).weight, data.weight)
    with pytest.raises(gp.InputError, match="edge_attrs names 'x', which has no entry"):
        mask.apply(data, edge_attrs=["x"])


def test_a_batch_says_what_each_of_its_graphs_cannot():
    """One graph has as many edges as nodes, and a label vector as long as another has edges."""
    made = [a_graph(seed, e=e, w=drawn(e)) for seed, e in enumerate((N, 20, 24))]
    for one in made:
        one.goal = drawn(1, 20)[0]
    data = Graphs.from_data_list(made)
    graph = gp.wrap(PooledOptional().double(), data=data).graph
    kept = torch.rand(data.num_edges, generator=torch.Generator().manual_seed(0)) < 0.5
    small = gp.EdgeMask(graph, kept.float()).apply(data)
    assert torch.equal(small.w, data.w[kept])
    assert torch.equal(small.goal, data.goal)
    assert torch.equal(small.edge_index, data.edge_index[:, kept])


def test_pairs_asked_about_are_no_edges():
    data = a_hetero_graph()
    kind = RELATIONS[3]
    count = data[kind].edge_index.shape[1]
    data[kind].edge_label_index = data[kind].edge_index.flip(1).clone()
    data[kind].edge_label = torch.arange(count)
    data[kind].time = torch.arange(count)
    sizes = [data[r].edge_index.shape[1] for r in data.edge_types]
    module = HeteroWeights().double()
    graph = gp.wrap(
        module, data=data, forward=lambda m, d: m(d.x_dict, d.edge_index_dict), node_type="paper"
    ).graph
    kept = torch.arange(sum(sizes)) % 3 > 0
    small = gp.EdgeMask(graph, kept.float()).apply(data)
    mine = kept.split(sizes)[3]
    assert torch.equal(small[kind].time, data[kind].time[mine])
    assert torch.equal(small[kind].edge_label_index, data[kind].edge_label_index)
    assert torch.equal(small[kind].edge_label, data[kind].edge_label)


# ------------------------------------------------------------------ copies that feed each other


class Centred(Net):
    """A permutation of the inputs leaves this alone; other inputs do not."""

    def forward(self, x, edge_index):
        return self.body(x - x.mean(0), edge_index)


class AttendingBlindly(Net):
    def forward(self, x, edge_index):
        return self.body(self.gps(x, edge_index), edge_index)


class NormedBlindly(Net):
    def forward(self, x, edge_index):
        return self.body(self.norm(x), edge_index)


class WeightsOverTheirMean(Net):
    def forward(self, x, edge_index, edge_weight):
        return self.body(x, edge_index, edge_weight / edge_weight.mean())


class HeteroCentred(OfHetero):
    def forward(self, x_dict, edge_index_dict, w_dict):
        x_dict = {kind: x - x.mean(0) for kind, x in x_dict.items()}
        return {"paper": self.body(x_dict, edge_index_dict, w_dict, 1)}


@pytest.mark.parametrize(
    ("module", "data"),
    [
        (Centred, a_graph),
        (lambda: AttendingBlindly(gps=attention()), a_graph),
        (lambda: NormedBlindly(norm=graph_norm()), a_graph),
        (lambda: NormedBlindly(norm=pyg.GraphNorm(F)), a_graph),
        (WeightsOverTheirMean, lambda: a_graph(edge_weight=drawn(E))),
        (Centred, lambda: a_graph().update({"x": torch.ones(N, F, dtype=D)})),
        (HeteroCentred, hetero),
    ],
    ids=["mean of inputs", "GPSConv", "LayerNorm", "GraphNorm", "mean of weights",
         "constant inputs", "hetero"],
)  # fmt: skip
def test_copies_that_feed_each_other_are_found_out_and_run_one_by_one(module, data, caplog):
    torch.manual_seed(0)
    module, data = module().double().eval(), data()
    with caplog.at_level("INFO", "graphprune"):
        model = gp.wrap(module, data=data)
    assert "mixes graphs that stand side by side" in caplog.text
    masks = torch.rand(3, model.graph.num_edges, generator=torch.Generator().manual_seed(0)) < 0.6
    names = {"node_type": "paper"} if "paper" in getattr(data, "node_types", []) else {}
    labels = torch.arange(data["paper"].num_nodes if names else data.num_nodes) % C
    (batch,) = nodes(data, labels, corrupt=None, **names).batches()
    found = model.run(batch, masks.double(), model.reference(batch, gp.Ablation("delete")))
    for row, mask in zip(found, masks, strict=True):
        small = gp.EdgeMask(model.graph, mask.float()).apply(data)
        torch.testing.assert_close(row, called(module, small).detach())


def called(module, data):
    """Plain PyG by the names of the module's parameters."""
    names = inspect.signature(module.forward).parameters
    values = [
        data.collect(n[:-5]) if n.endswith("_dict") else data[n] for n in names if n != "batch"
    ]
    out = module(*values)
    return out["paper"] if isinstance(out, dict) else out


def test_counts_over_all_edges_are_those_of_each_smaller_graph():
    class ByLargestDegree(Net):
        def forward(self, x, edge_index):
            largest = torch.bincount(edge_index[1], minlength=len(x)).max()
            return self.body(x / largest, edge_index)

    data, module = a_graph(), ByLargestDegree().double()
    model = gp.wrap(module, data=data)
    (batch,) = nodes(data.x, torch.arange(N) % C).batches()
    masks = drawn(3, E) > 0.7
    found = model.run(batch, masks.double(), model.reference(batch, gp.Ablation("delete")))
    want = [module(data.x, data.edge_index[:, kept]) for kept in masks]
    torch.testing.assert_close(found, torch.stack(want).detach())


def test_modules_that_need_every_edge_are_told():
    class OwnWeights(Net):
        def forward(self, x, edge_index):
            own = self.weight.repeat(edge_index.shape[1] // E)
            return self.body(x, edge_index, own)

    data = a_graph()
    module = OwnWeights(weight=torch.nn.Parameter(drawn(E))).double()
    model = gp.wrap(module, data=data)
    (batch,) = nodes(data.x, torch.arange(N) % C).batches()
    found = model.run(batch, torch.ones(E), model.reference(batch, gp.Ablation("zero")))
    torch.testing.assert_close(found, module(data.x, data.edge_index).detach())
    with pytest.raises(gp.UnsupportedModelError, match="does not run on the graph with"):
        model.run(batch, torch.zeros(E), model.reference(batch, gp.Ablation("delete")))


def test_odd_edges_and_outputs_are_told():
    data = a_graph()
    data.edge_index = data.edge_index.double()
    with pytest.raises(gp.InputError, match=r"whole numbers of nodes, got torch\.float64"):
        gp.wrap(Weighted().double(), data=data)
    module = Weighted().double()
    module.a.lin_rel.weight.data[0, 0] = float("nan")
    with pytest.raises(gp.UnsupportedModelError, match="itself hold NaN"):
        gp.wrap(module, data=a_graph())
