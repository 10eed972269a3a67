"""Modules written in each of the usual ways, their data, and the user's own call of one on it."""

from functools import cache

import torch
import torch_geometric.nn as pyg
from torch_geometric.data import Batch as Graphs
from torch_geometric.data import Data

import graphprune as gp
from graphprune.tasks import graphs, nodes

from .hetero import RELATIONS
from .hetero import a_graph as a_hetero_graph

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


class HeteroWeights(OfHetero):
    def forward(self, x_dict, edge_index_dict, edge_weight_dict=None):
        none = dict.fromkeys(RELATIONS)
        return self.body(x_dict, edge_index_dict, edge_weight_dict or none, 1)


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


@cache
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
