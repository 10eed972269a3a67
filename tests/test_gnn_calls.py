"""Modules are run as their users call them: plain PyG on the user's own call is the right value."""

import pytest
import torch
import torch_geometric.nn as pyg
from support.hetero import RELATIONS
from support.hetero import a_graph as a_hetero_graph
from torch_geometric.data import Batch as Graphs
from torch_geometric.data import Data

import graphprune as gp
from graphprune.tasks import graphs, nodes, patterns

N, E, F, C = 11, 26, 4, 3
D = torch.float64


def drawn(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=D) + 0.2


def a_graph(seed=0, n=N, e=E, **more):
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.cartesian_prod(torch.arange(n), torch.arange(n))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    index = pairs[torch.randperm(len(pairs), generator=generator)[:e]].T.contiguous()
    x = torch.randn(n, F, generator=generator, dtype=D)
    return Data(x=x, edge_index=index, **more)


def three(**more):
    made = [a_graph(seed, e=20 + seed) for seed in range(3)]
    for number, one in enumerate(made):
        for name, make in more.items():
            one[name] = make(number, one)
    return Graphs.from_data_list(made)


class Net(torch.nn.Module):
    def __init__(self, **given):
        super().__init__()
        self.a, self.b = pyg.GraphConv(F, 6), pyg.GraphConv(6, C)
        for name, value in given.items():
            setattr(self, name, value)

    def body(self, x, edge_index, *weight):
        return self.b(torch.tanh(self.a(x, edge_index, *weight)), edge_index, *weight)


class Weighted(Net):
    def forward(self, x, edge_index, edge_weight=None):
        return self.body(x, edge_index, edge_weight)


class NamedWeight(Net):
    def forward(self, x, edge_index, weight):
        return self.body(x, edge_index, weight)


class FirstOfU(Net):
    def forward(self, x, edge_index, u=None):
        return self.body(x, edge_index) * (1 if u is None else u[0, 0])


class UOfEach(Net):
    def forward(self, x, edge_index, u, batch):
        return self.body(x, edge_index) * u[batch, :1]


class UBroadcast(Net):
    def forward(self, x, edge_index, u):
        return self.body(x + u, edge_index)


class Scaled(Net):
    def forward(self, x, edge_index, scale=1.0):
        return self.body(x, edge_index) * scale


class ScaledEach(Net):
    def forward(self, x, edge_index, batch, scale):
        return pyg.global_add_pool(self.body(x, edge_index), batch) * scale[:, None]


class OfData(Net):
    def forward(self, data):
        out = self.body(data.x + data.pos, data.edge_index, data.w)
        known = torch.nn.functional.one_hot(data.y, C).to(out)
        return out * data.scale * data.u[0, 0] + known * len(data.title)


class OfBatch(Net):
    def forward(self, batch):
        out = self.body(batch.x, batch.edge_index)
        return pyg.global_mean_pool(out, batch.batch, batch.num_graphs) * batch.scale[:, None]


class OfHetero(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = pyg.GraphConv((F, F), C)

    def body(self, x, edges, weights, u):
        out = 0
        for relation in (RELATIONS[0], RELATIONS[2], RELATIONS[4]):
            pair = (x[relation[0]], x["paper"])
            out = out + torch.tanh(self.conv(pair, edges[relation], weights[relation]))
        return out * u

    def forward(self, data):
        return self.body(data.x_dict, data.edge_index_dict, data.w_dict, data.u[0, 0])


class HeteroNames(OfHetero):
    def forward(self, x_dict, edge_index_dict, w_dict, u=None):
        return self.body(x_dict, edge_index_dict, w_dict, 1 if u is None else u[0, 0])


class PooledOptional(Net):
    def forward(self, x, edge_index, batch=None):
        return pyg.global_mean_pool(self.body(x, edge_index), batch)


class NeedsBatch(Net):
    def forward(self, x, edge_index, batch, num_graphs):
        return pyg.global_mean_pool(self.body(x, edge_index), batch, num_graphs)


class NormedByGraph(Net):
    def forward(self, x, edge_index, batch=None):
        return self.body(self.norm(x, batch), edge_index)


class Attending(Net):
    def forward(self, x, edge_index, batch=None):
        return self.body(self.gps(x, edge_index, batch), edge_index)


class ByPlace(Net):
    def forward(self, x, edge_index, /, scale=2.0):
        return self.body(x, edge_index) * scale


class Pairs(Net):
    """Node outputs that read the pairs asked about, whose numbers must move with the copies."""

    def forward(self, x, edge_index, edge_label_index):
        out = self.body(x, edge_index)
        return out.index_add(0, edge_label_index[0], out[edge_label_index[1]])


class Parents(Net):
    def forward(self, x, edge_index, parent_index):
        out = self.body(x, edge_index)
        return out + out[parent_index]


class WithLoss(Net):
    def forward(self, x, edge_index, y=None):
        out = self.body(x, edge_index)
        return out if y is None else torch.nn.functional.cross_entropy(out, y)


class Ids(Net):
    def forward(self, x, edge_index):
        return self.body(self.table(x), edge_index)


class Gine(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = pyg.GINEConv(torch.nn.Linear(F, C), edge_dim=2)

    def forward(self, x, edge_index, edge_attr, batch):
        return pyg.global_add_pool(torch.tanh(self.a(x, edge_index, edge_attr)), batch)


class Table(Net):
    """Rows of a table by ids that PyG's name rule takes for numbers of nodes."""

    def forward(self, node_index, edge_index, parent_index=None):
        out = self.body(self.table(node_index), edge_index)
        return out if parent_index is None else out + out[parent_index]


class TableOfData(Net):
    def forward(self, data):
        return self.body(data.x + self.table(data.node_index), data.edge_index)


def table(kind, rows=N):
    return lambda: kind(table=torch.nn.Embedding(rows, F))


def standard(e=E, **more):
    """What PyG's data sets hold."""
    masks = {f"{n}_mask": torch.arange(N) % 3 == i for i, n in enumerate(("train", "val", "test"))}
    return a_graph(e=e, y=torch.arange(N) % C, pos=drawn(N, 3), edge_attr=drawn(e, 4),
                   idx=torch.tensor([7]), name="one", **masks, **more)  # fmt: skip


class Plain(Net):
    def forward(self, x, edge_index):
        return self.body(x, edge_index)


class Switched(Net):
    def forward(self, x, edge_index, hidden=False, dropout=0.0):
        out = torch.nn.functional.dropout(self.body(x, edge_index), dropout, self.training)
        return (out, x) if hidden else out


def hetero(**weights):
    data = a_hetero_graph()
    for number, relation in enumerate(data.edge_types):
        data[relation].w = drawn(data[relation].edge_index.shape[1], seed=number)
    data.u = torch.full((1, 2), 3.0, dtype=D)
    return data


def rich(n=N, e=E):
    return a_graph(
        n=n,
        e=e,
        w=drawn(e, seed=5),
        pos=drawn(n, F),
        y=torch.arange(n) % C,
        u=torch.full((1, 2), 5.0, dtype=D),
        scale=4.0,
        title="abc",
    )


def graph_norm():
    # With a batch vector PyG adds eps elsewhere than without one; this eps makes that large.
    return pyg.LayerNorm(F, mode="graph", eps=0.1).double()


def attention():
    return pyg.GPSConv(F, pyg.GraphConv(F, F), heads=2, norm=None)


U = torch.tensor([[5.0, 2.0, -1.0, 0.5]], dtype=D)
own_pairs = torch.tensor([[0, 3, 5, 5], [1, 2, 9, 0]])
parents = torch.arange(N).roll(3)


# (module, data, the user's call on data, names of what belongs to edges, options of wrap)
def by_vector(module, data):
    batch = torch.zeros(data.num_nodes).long() if data.batch is None else data.batch
    return module(data.x, data.edge_index, batch)


by_attr = {"forward": lambda m, d: m(d.x, d.edge_index, d.edge_attr)}
CASES = {
    "weights": (Weighted, lambda: a_graph(edge_weight=drawn(E)),
                lambda m, d: m(d.x, d.edge_index, d.edge_weight), ["edge_weight"], {}),
    "weights left out": (Weighted, a_graph, lambda m, d: m(d.x, d.edge_index), [], {}),
    "weights in edge_attr": (Weighted, lambda: a_graph(edge_attr=drawn(E)),
                             lambda m, d: m(d.x, d.edge_index, d.edge_attr), ["edge_attr"],
                             by_attr),
    "bond types beside": (Weighted, lambda: a_graph(edge_attr=drawn(E, 3)),
                          lambda m, d: m(d.x, d.edge_index), ["edge_attr"], {}),
    "as many nodes as edges": (NamedWeight, lambda: a_graph(e=N, weight=drawn(N)),
                               lambda m, d: m(d.x, d.edge_index, d.weight), ["weight"], {}),
    "as many nodes as edges, data": (OfData, lambda: rich(e=N), lambda m, d: m(d), ["w"], {}),
    "u, first": (FirstOfU, lambda: a_graph(u=U), lambda m, d: m(d.x, d.edge_index, d.u), [], {}),
    "u of each graph": (UOfEach, lambda: three(u=lambda i, d: U + i),
                        lambda m, d: m(d.x, d.edge_index, d.u, d.batch), [], {}),
    "u, broadcast": (UBroadcast, lambda: a_graph(u=U), lambda m, d: m(d.x, d.edge_index, d.u), [],
                     {}),
    "a number": (Scaled, lambda: a_graph(scale=4.0), lambda m, d: m(d.x, d.edge_index, d.scale), [],
                 {}),
    "a number of each graph": (ScaledEach, lambda: three(scale=lambda i, d: 1.0 + i),
                               lambda m, d: m(d.x, d.edge_index, d.batch, d.scale), [], {}),
    "the data itself": (OfData, rich, lambda m, d: m(d), ["w"], {}),
    "the batch itself": (OfBatch, lambda: three(scale=lambda i, d: 1.0 + i), lambda m, d: m(d), [],
                         {}),
    "hetero data itself": (OfHetero, hetero, lambda m, d: m(d), [], {"node_type": "paper"}),
    "hetero names": (HeteroNames, hetero,
                     lambda m, d: m(d.x_dict, d.edge_index_dict, d.w_dict, d.u), [],
                     {"node_type": "paper"}),
    "pooled without a vector": (PooledOptional, a_graph, lambda m, d: m(d.x, d.edge_index), [], {}),
    "a vector is needed": (NeedsBatch, a_graph,
                           lambda m, d: m(d.x, d.edge_index, torch.zeros(N, dtype=torch.long), 1),
                           [], {}),
    "a vector by hand": (PooledOptional, lambda: a_graph(batch=torch.arange(N) // 6),
                         lambda m, d: m(d.x, d.edge_index, d.batch), [], {}),
    "LayerNorm of graphs": (lambda: NormedByGraph(norm=graph_norm()), a_graph,
                            lambda m, d: m(d.x, d.edge_index), [], {}),
    "LayerNorm of graphs, by a vector": (lambda: NormedByGraph(norm=graph_norm()), a_graph,
                                         lambda m, d: m(d.x, d.edge_index, torch.zeros(N).long()),
                                         [], {"forward": by_vector}),
    "GPSConv": (lambda: Attending(gps=attention()), a_graph, lambda m, d: m(d.x, d.edge_index), [],
                {}),
    "by place": (ByPlace, a_graph, lambda m, d: m(d.x, d.edge_index), [], {}),
    "pairs": (Pairs, lambda: a_graph(edge_label_index=own_pairs),
              lambda m, d: m(d.x, d.edge_index, d.edge_label_index), [], {}),
    "as many pairs as edges": (Pairs, lambda: a_graph(e=4, edge_label_index=own_pairs),
                               lambda m, d: m(d.x, d.edge_index, d.edge_label_index), [], {}),
    "numbers of nodes": (Parents, lambda: a_graph(parent_index=parents),
                         lambda m, d: m(d.x, d.edge_index, d.parent_index), [], {}),
    "a loss of labels": (WithLoss, lambda: a_graph(y=torch.arange(N) % C),
                         lambda m, d: m(d.x, d.edge_index), [], {}),
    "GINE": (Gine, lambda: three(edge_attr=lambda i, d: drawn(d.num_edges, 2, seed=i)),
             lambda m, d: m(d.x, d.edge_index, d.edge_attr, d.batch), ["edge_attr"], {}),
    "PyG's GCN": (lambda: pyg.GCN(F, 6, 2, C, norm="batch", jk="cat"),
                  lambda: a_graph(edge_weight=drawn(E)),
                  lambda m, d: m(d.x, d.edge_index, d.edge_weight), ["edge_weight"], {}),
    "PyG's GIN, no weights": (lambda: pyg.GIN(F, 6, 2, C), lambda: a_graph(edge_weight=drawn(E)),
                              lambda m, d: m(d.x, d.edge_index), ["edge_weight"], {}),
    "ids called index": (table(Table), lambda: a_graph(node_index=torch.arange(N)),
                         lambda m, d: m(d.node_index, d.edge_index), [], {}),
    "ids, a larger table": (table(Table, 5 * N), lambda: a_graph(node_index=torch.arange(N)),
                            lambda m, d: m(d.node_index, d.edge_index), [], {}),
    "ids and numbers of nodes": (table(Table), lambda: a_graph(node_index=torch.arange(N).flip(0),
                                                               parent_index=parents),
                                 lambda m, d: m(d.node_index, d.edge_index, d.parent_index), [],
                                 {}),
    "ids in the data itself": (table(TableOfData), lambda: a_graph(node_index=torch.arange(N)),
                               lambda m, d: m(d), [], {}),
    "a data set": (Plain, standard, lambda m, d: m(d.x, d.edge_index), [], {}),
    "a data set, open weights": (Weighted, standard, lambda m, d: m(d.x, d.edge_index), [], {}),
    "a data set, as many nodes as edges": (Weighted, lambda: standard(N),
                                           lambda m, d: m(d.x, d.edge_index), [], {}),
    "a data set, switches": (Switched, lambda: standard(k=3), lambda m, d: m(d.x, d.edge_index), [],
                             {}),
    "a data set, PyG's GCN": (lambda: pyg.GCN(F, 6, 2, C), standard,
                              lambda m, d: m(d.x, d.edge_index), [], {}),
    "a data set, PyG's GIN": (lambda: pyg.GIN(F, 6, 2, C), standard,
                              lambda m, d: m(d.x, d.edge_index), [], {}),
    "a data set, PyG's GraphSAGE": (lambda: pyg.GraphSAGE(F, 6, 2, C), standard,
                                    lambda m, d: m(d.x, d.edge_index), [], {}),
    "PyG's GAT": (lambda: pyg.GAT(F, 6, 2, C, edge_dim=2, add_self_loops=False),
                  lambda: a_graph(edge_attr=drawn(E, 2)),
                  lambda m, d: m(d.x, d.edge_index, edge_attr=d.edge_attr), ["edge_attr"], {}),
}  # fmt: skip


def pruned(data, kept, names):
    """Plain PyG: the same data with fewer edges, built without the library."""
    small = data.clone()
    if "paper" in getattr(data, "node_types", ()):
        parts = kept.split([data[r].edge_index.shape[1] for r in data.edge_types])
        for relation, part in zip(data.edge_types, parts, strict=True):
            small[relation].edge_index = data[relation].edge_index[:, part]
            small[relation].w = data[relation].w[part]
        return small
    small.edge_index = data.edge_index[:, kept]
    for name in names:
        small[name] = data[name][kept]
    return small


def wrapped(name):
    make, data, call, _, options = CASES[name]
    torch.manual_seed(0)
    module, data = make().double().eval(), data()
    model = gp.wrap(module, data=data, **options)
    with torch.no_grad():
        want = call(module, data)
    if model.level == "graph":
        task = graphs(torch.arange(len(want)) % C, classes=C)
    else:
        first = 5 if model.graph.num_nodes != len(want) else 0  # papers stand behind five authors
        x = {f"{k}.x": v for k, v in data.x_dict.items()} if first else {"x": data.x}
        count = model.graph.num_nodes
        at = torch.arange(len(want)) + first
        task = nodes(x, torch.arange(count) % C, at=at, corrupt=None)
    return model, module, data, task, want


@pytest.mark.parametrize("name", CASES)
def test_an_open_mask_is_the_users_call(name):
    model, _, _, task, want = wrapped(name)
    (batch,) = task.batches()
    for kind in ("zero", "delete"):
        reference = model.reference(batch, gp.Ablation(kind))
        found = model.run(batch, torch.ones(model.graph.num_edges), reference)
        torch.testing.assert_close(found, want, rtol=0, atol=1e-8)
        torch.testing.assert_close(reference.full, want, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_deletion_is_plain_pyg_on_the_smaller_graph(name):
    """Several masks at once: copies side by side keep their own edges and attributes."""
    model, module, data, task, _ = wrapped(name)
    call, names = CASES[name][2:4]
    (batch,) = task.batches()
    generator = torch.Generator().manual_seed(3)
    masks = torch.rand(4, model.graph.num_edges, generator=generator) < 0.7
    found = model.run(batch, masks.double(), model.reference(batch, gp.Ablation("delete")))
    for row, kept in zip(found, masks, strict=True):
        with torch.no_grad():
            want = call(module, pruned(data, kept, names))
        torch.testing.assert_close(row, want, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", [k for k, v in CASES.items() if not v[-1].get("node_type")])
def test_patterns_are_plain_pyg_on_other_features(name):
    model, module, data, _, want = wrapped(name)
    call = CASES[name][2]
    x = torch.randn(3, *data.x.shape, generator=torch.Generator().manual_seed(4), dtype=D)
    at = None if model.level == "graph" else torch.tensor([0, 2, 4])
    if model.level == "graph" and len(want) > 1:
        return  # patterns answer at the first graph alone
    task = patterns({"x": x}, torch.arange(3), corrupt=None, classes=C, positions=at)
    (batch,) = task.batches()
    found = model.run(batch, torch.ones(model.graph.num_edges),
                      model.reference(batch, gp.Ablation("zero")))  # fmt: skip
    for number in range(3):
        other = data.clone()
        other.x = x[number]
        with torch.no_grad():
            row = call(module, other)[0 if at is None else at[number]]
        torch.testing.assert_close(found[number], row, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["weights", "the data itself", "GINE", "hetero data itself"])
def test_applied_masks_are_what_the_module_runs(name):
    model, module, data, _, _ = wrapped(name)
    call, names = CASES[name][2:4]
    kept = torch.rand(model.graph.num_edges, generator=torch.Generator().manual_seed(1)) < 0.6
    small = gp.EdgeMask(model.graph, kept.float()).apply(data)
    with torch.no_grad():
        torch.testing.assert_close(call(module, small), call(module, pruned(data, kept, names)))


def test_ids_are_checked_with_other_ids():
    data = a_graph()
    data.x = torch.arange(N)
    module = Ids(table=torch.nn.Embedding(N, F)).double().eval()
    model = gp.wrap(module, data=data)
    (batch,) = nodes(data.x, torch.arange(N) % C).batches()
    found = model.run(batch, torch.ones(E), model.reference(batch, gp.Ablation("zero")))
    torch.testing.assert_close(found, module(data.x, data.edge_index).detach())


def test_provenance_says_how_the_module_is_called():
    assert wrapped("weights")[0].provenance()["call"] == "module(x, edge_index, edge_weight)"
    assert wrapped("the data itself")[0].provenance()["call"] == "module(data)"


# ------------------------------------------------------------------ what names do not tell


class Anything(Net):
    def forward(self, x, edge_index, **more):
        return self.body(x, edge_index, more.get("edge_weight"))


class AnyNames(Net):
    def forward(self, x, edge_index, **more):
        out = self.body(x + more.get("pe", 0), edge_index) * more.get("scale", 1.0)
        return out + more["shift"] * more["size"] if {"shift", "size"} <= set(more) else out


class Whatever(Net):
    def forward(self, x, edge_index, *more):
        return self.body(x, edge_index, *more)


class WhateverBehind(Net):
    def forward(self, x, edge_index, scale=2.0, *more):
        return self.body(x, edge_index, *more) * scale


class WeightOrOne(Net):
    def forward(self, x, edge_index, w=1.0):
        return self.body(x, edge_index, None if isinstance(w, float) else w)


class Added(Net):
    def forward(self, x, edge_index, more=None):
        out = self.body(x, edge_index)
        return out if more is None else out + more


class AddedByPlace(Net):
    def forward(self, x, edge_index, more=None, /):
        out = self.body(x, edge_index)
        return out if more is None else out + more


class DataAndMore(Net):
    def forward(self, data, more=None):
        out = self.body(data.x, data.edge_index)
        return out if more is None else out * more


class Strange(Net):
    def forward(self, feat, edges):
        return self.body(feat, edges)


class OfLabels(Net):
    def forward(self, x, edge_index, y=None):
        out = self.body(x, edge_index)
        return out if y is None else out + y[:, None]


class HeteroWeights(OfHetero):
    def forward(self, x_dict, edge_index_dict, edge_weight_dict=None):
        none = dict.fromkeys(RELATIONS)
        return self.body(x_dict, edge_index_dict, edge_weight_dict or none, 1)


@pytest.mark.parametrize(
    ("module", "data", "said"),
    [
        (Weighted, lambda: a_graph(edge_attr=drawn(E)), "edge_weight=d.edge_attr"),
        (Weighted, lambda: a_graph(weights=torch.arange(E)), "edge_weight=d.weights"),
        (Anything, lambda: a_graph(edge_weight=drawn(E)), "edge_weight=d.edge_weight"),
        (HeteroWeights, hetero, "edge_weight_dict=d.w_dict"),
        # PyG's GCN takes edge_attr and leaves it unread.
        (lambda: pyg.GCN(F, 6, 2, C), lambda: a_graph(edge_attr=drawn(E)), "edge_weight=d.edge_a"),
        (FirstOfU, lambda: a_graph(state=U), "u=d.state"),
        (Weighted, lambda: a_graph(e=N, w=drawn(N)), "edge_weight=d.w"),
        (Weighted, lambda: a_graph(e=N, weight=drawn(N)), "edge_weight=d.weight"),
        (Weighted, lambda: a_graph(e=N, attr=drawn(N)), "edge_weight=d.attr"),
        (Anything, lambda: a_graph(edge_weight=drawn(E)), r"takes any names \(\*\*more\), so"),
        (AnyNames, lambda: a_graph(scale=3.0), "scale=d.scale"),
        (AnyNames, lambda: a_graph(scale=3), "scale=d.scale"),
        (AnyNames, lambda: a_graph(pe=drawn(N, F)), "pe=d.pe"),
        (AnyNames, lambda: a_graph(shift=2.0, size=drawn(1, C)), "shift=d.shift, size=d.size"),
        (
            Whatever,
            lambda: a_graph(edge_attr=drawn(E)),
            r"module\(d.x, d.edge_index, d.edge_attr\)",
        ),
        (WhateverBehind, lambda: a_graph(w=drawn(E)), r"module\(d.x, d.edge_index, 2.0, d.w\)"),
        (WeightOrOne, lambda: a_graph(edge_attr=drawn(E)), "w=d.edge_attr"),
        (Added, lambda: a_graph(u=torch.arange(C)[None] + 1), "more=d.u"),
        (Added, lambda: a_graph(k=3), "more=d.k"),
        (Added, lambda: a_graph(pos_enc=drawn(N, C)), "more=d.pos_enc"),
        (Added, lambda: a_graph(kinds=torch.arange(N * C).view(N, C)), "more=d.kinds"),
        (AddedByPlace, lambda: a_graph(u=drawn(1, C)), r"module\(d.x, d.edge_index, d.u\)"),
        (DataAndMore, lambda: a_graph(scale=3.0), r"module\(d, more=d.scale\)"),
        (Added, lambda: a_graph(**{f"n{i}": i for i in range(65)}), "more than 64 ways"),
        (Strange, a_graph, r"needs 'feat'"),
        (lambda: torch.nn.DataParallel(Weighted()), a_graph, "whatever it is given"),
        (OfLabels, lambda: a_graph(y=torch.arange(N)), "meant to read the labels"),
        (OfBatch, lambda: a_graph(), r"called as module\(data\) on the data fails"),
    ],
)
def test_what_is_not_known_is_asked_for(module, data, said):
    module = module().double().eval()
    with pytest.raises(gp.InputError, match=said) as told:
        gp.wrap(module, data=data())
    assert "forward=lambda module, d:" in str(told.value)


def test_forward_answers_the_question():
    data = a_graph()
    module = Strange().double().eval()
    model = gp.wrap(module, data=data, forward=lambda m, d: m(d.x, d.edge_index))
    (batch,) = nodes(data.x, torch.arange(N) % C).batches()
    found = model.run(batch, torch.ones(E), model.reference(batch, gp.Ablation("zero")))
    torch.testing.assert_close(found, module(data.x, data.edge_index).detach())
    with pytest.raises(gp.InputError, match="forward is a callable"):
        gp.wrap(module, data=data, forward="x, edge_index")


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
    with pytest.raises(gp.UnsupportedModelError, match="one row for each"):
        gp.wrap(OfPairs().double(), data=a_graph(edge_label_index=own_pairs))


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
def test_copies_that_feed_each_other_are_found_out(module, data):
    torch.manual_seed(0)
    with pytest.raises(gp.UnsupportedModelError, match="mixes graphs that stand side by side"):
        gp.wrap(module().double().eval(), data=data())


def test_counts_over_all_edges_are_found_out_at_deletion():
    class ByLargestDegree(Net):
        def forward(self, x, edge_index):
            largest = torch.bincount(edge_index[1], minlength=len(x)).max()
            return self.body(x / largest, edge_index)

    data = a_graph()
    model = gp.wrap(ByLargestDegree().double(), data=data)
    (batch,) = nodes(data.x, torch.arange(N) % C).batches()
    reference = model.reference(batch, gp.Ablation("delete"))
    with pytest.raises(gp.UnsupportedModelError, match="side by side once their edges"):
        model.run(batch, (drawn(3, E) > 0.7).double(), reference)


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


# ------------------------------------------------------------------ labels


def test_labels_are_whole_numbers_where_they_are_asked_for():
    x = torch.eye(5)
    with pytest.raises(gp.InputError, match=r"got 0\.5\. For targets of a regression"):
        nodes(x, torch.tensor([0.0, 0.5, 1.0, 0.0, 1.0]))
    (batch,) = nodes(x, torch.tensor([0.0, 2.0, 1.0, 0.0, 1.0])).batches()
    assert batch.answer[:, 0].tolist() == [0, 2, 1, 0, 1]
    at = torch.tensor([True, True, False, True, False])
    for odd in (torch.tensor([0, 2, -1, 1, -1]), torch.tensor([0, 2, float("nan"), 1, 0.5])):
        (batch,) = nodes(x, odd, at=at).batches()
        assert batch.positions.tolist() == [0, 1, 3]
        assert batch.answer[:, 0].tolist() == [0, 2, 1]
        assert batch.distractor.tolist() == [[1, 2], [0, 1], [0, 2]]
    # Classes of nodes that are not asked for are classes.
    (batch,) = nodes(x, torch.tensor([0, 1, 2, 3, 0]), at=[0]).batches()
    assert batch.distractor.tolist() == [[1, 2, 3]]
    with pytest.raises(gp.InputError, match=r"0 to 2, got -1; at= says which nodes"):
        nodes(x, torch.tensor([0, 2, -1, 1, -1]))
    with pytest.raises(gp.InputError, match=r"got \[5, 1\]: labels\[:, 0\]"):
        nodes(x, torch.zeros(5, 1))
    with pytest.raises(gp.InputError, match="at names nodes 0 to 5"):
        nodes(x, torch.zeros(5), at=[0, 5])
    with pytest.raises(gp.InputError, match=r"at as a mask must be \[5\]"):
        nodes(x, torch.zeros(5), at=torch.ones(4, dtype=torch.bool))
    with pytest.raises(gp.InputError, match="regression"):
        patterns(torch.eye(2), torch.tensor([0.2, 1.0]))
    with pytest.raises(gp.InputError, match="regression"):
        graphs(torch.tensor([0.2, 1.0]))


def test_data_brings_its_features_and_labels():
    data = a_graph(y=torch.arange(N) % C)
    (batch,) = nodes(data, at=[4, 2]).batches()
    assert torch.equal(batch.clean["x"], data.x)
    assert batch.answer[:, 0].tolist() == [1, 2]
    with pytest.raises(gp.InputError, match="labels are missing"):
        nodes(a_graph())
    with pytest.raises(gp.InputError, match="the data has no x"):
        nodes(Data(edge_index=data.edge_index, num_nodes=N), data.y)


def test_regression_works_as_the_error_says():
    data, module = a_graph(), Weighted().double().eval()
    targets = drawn(N, C)

    def closeness(outputs, batch):
        return -(outputs - targets[list(batch.indices)]).square().sum(-1)

    closeness.higher_is_better = True
    task = nodes(data.x, torch.zeros(N), metric=closeness)
    model = gp.wrap(module, data=data)
    found = gp.evaluate(model, task, gp.EdgeMask.full(model.graph), ablation="zero")
    want = -(module(data.x, data.edge_index).detach() - targets).square().sum(-1).mean()
    assert found["closeness"] == pytest.approx(float(want))
    assert (gp.EAP(ablation="zero").score(model, task).values != 0).any()


def test_tasks_that_no_edge_reaches_are_told():
    """The last node receives nothing; beside a node that does, it is asked about as any other."""
    data, module = a_graph(), Plain().double().eval()
    data.edge_index = data.edge_index[:, data.edge_index[1] < N - 1]
    model = gp.wrap(module, data=data)
    alone = nodes(data.x, torch.arange(N) % C, at=[N - 1])
    for method in (gp.EAP(), gp.EAP(ablation="zero"), gp.EdgePruning(size=5, steps=2)):
        with pytest.raises(gp.InputError, match="a node that no edge leads to"):
            method.prune(model, alone) if hasattr(method, "prune") else method.score(model, alone)
    both = nodes(data.x, torch.arange(N) % C, at=[N - 1, 5])
    reaching = data.edge_index[1] == 5
    assert (gp.EAP(ablation="zero").score(model, both).values[reaching] != 0).all()
