"""Small heterogeneous graphs, and modules over them written in each of the usual ways."""

import torch
import torch_geometric.nn as pyg
from torch_geometric.data import HeteroData
from torch_geometric.nn import HeteroConv, to_hetero

import graphprune as gp
from graphprune.tasks import nodes

F, H, C = 4, 6, 3
NODES = {"author": 5, "paper": 8, "venue": 3}
FIRST = NODES["author"]  # the number of the first paper
LABELS = torch.arange(NODES["paper"]) % C
RELATIONS = (
    ("author", "writes", "paper"),
    ("paper", "written_by", "author"),
    ("author", "reviews", "paper"),
    ("paper", "cites", "paper"),
    ("venue", "prints", "paper"),
    ("paper", "printed_in", "venue"),
)


def a_graph(seed=0, twins=True, loops=False):
    """Six relations over three types; ``reviews`` has the very edges of ``writes`` if ``twins``."""
    generator = torch.Generator().manual_seed(seed)
    data = HeteroData()
    for kind, count in NODES.items():
        data[kind].x = torch.randn(count, F, generator=generator, dtype=torch.float64)
    for relation in RELATIONS:
        source, _, target = relation
        pairs = torch.cartesian_prod(torch.arange(NODES[source]), torch.arange(NODES[target]))
        if source == target and not loops:
            pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        chosen = torch.randperm(len(pairs), generator=generator)[: 9 + len(relation[1])]
        data[relation].edge_index = pairs[chosen].T.contiguous()
    if twins:
        data["author", "reviews", "paper"].edge_index = data[RELATIONS[0]].edge_index.clone()
    return data


class Layers(torch.nn.Module):
    """Two ``HeteroConv`` layers with a tanh between; papers are answered."""

    def __init__(self, make, aggr="sum"):
        super().__init__()
        self.first = HeteroConv({r: make(r, F, H) for r in RELATIONS}, aggr=aggr)
        self.second = HeteroConv({r: make(r, H, C) for r in RELATIONS}, aggr=aggr)

    def forward(self, x_dict, edge_index_dict):
        x_dict = {k: torch.tanh(v) for k, v in self.first(x_dict, edge_index_dict).items()}
        return self.second(x_dict, edge_index_dict)["paper"]


class Pooled(torch.nn.Module):
    """A mean over each graph's papers."""

    def __init__(self, make=lambda a, b: pyg.SAGEConv((a, a), b)):
        super().__init__()
        self.body, self.out = Layers(bipartite(make)), torch.nn.Linear(C, C)

    def forward(self, x_dict, edge_index_dict, batch_dict):
        papers = self.body(x_dict, edge_index_dict)
        return self.out(pyg.global_mean_pool(torch.relu(papers), batch_dict["paper"]))


class Flat(torch.nn.Module):
    """What ``to_hetero`` takes."""

    def __init__(self, make):
        super().__init__()
        self.first, self.second = make(F, H), make(H, C)

    def forward(self, x, edge_index):
        return self.second(torch.tanh(self.first(x, edge_index)), edge_index)


class ByHand(torch.nn.Module):
    """One attention for each relation, called in a loop; outputs by type."""

    def __init__(self, make=None):
        super().__init__()
        make = make or (lambda a, b: pyg.GATConv((a, a), b, add_self_loops=False))
        self.enter = torch.nn.ModuleDict({k: torch.nn.Linear(F, H) for k in NODES})
        self.convs = torch.nn.ModuleDict({"__".join(r): make(H, H) for r in RELATIONS})
        self.leave = torch.nn.Linear(H, C)

    def forward(self, x_dict, edge_index_dict):
        x = {k: torch.tanh(self.enter[k](v)) for k, v in x_dict.items()}
        for _ in range(2):
            new = dict(x)
            for relation, index in edge_index_dict.items():
                conv = self.convs["__".join(relation)]
                source, target = x[relation[0]], x[relation[2]]
                new[relation[2]] = new[relation[2]] + conv((source, target), index)
            x = {k: torch.tanh(v) for k, v in new.items()}
        return {k: self.leave(v) for k, v in x.items()}


class Transformer(torch.nn.Module):
    """HGT, which merges all relations into one graph."""

    def __init__(self):
        super().__init__()
        meta = (list(NODES), list(RELATIONS))
        self.conv, self.leave = pyg.HGTConv(F, 8, meta, heads=2), torch.nn.Linear(8, C)

    def forward(self, x_dict, edge_index_dict):
        return self.leave(torch.tanh(self.conv(x_dict, edge_index_dict)["paper"]))


def bipartite(make):
    """``make(a, b)`` whatever the relation."""
    return lambda relation, a, b: make(a, b)


def mixed(relation, a, b):
    """A family of its own for each relation; on one type with self-loops of the layer's own."""
    if relation[0] == relation[2]:
        return pyg.GCNConv(a, b)
    if relation[1] in ("writes", "prints"):
        return pyg.SAGEConv((a, a), b)
    return pyg.GraphConv((a, a), b)


MAKERS = {
    "GraphConv": lambda: Layers(bipartite(lambda a, b: pyg.GraphConv((a, a), b))),
    "SAGE": lambda: Layers(bipartite(lambda a, b: pyg.SAGEConv((a, a), b)), aggr="mean"),
    "GATv2": lambda: Layers(
        bipartite(lambda a, b: pyg.GATv2Conv((a, a), b, heads=2, concat=False,
                                             add_self_loops=False))
    ),
    "mixed with GCN": lambda: Layers(mixed),
    "to_hetero SAGE": lambda: to_hetero(
        Flat(lambda a, b: pyg.SAGEConv((a, a), b)), (list(NODES), list(RELATIONS))
    ),
    "to_hetero GAT mean": lambda: to_hetero(
        Flat(lambda a, b: pyg.GATConv((a, a), b, add_self_loops=False)),
        (list(NODES), list(RELATIONS)),
        aggr="mean",
    ),
    "by hand": ByHand,
}  # fmt: skip


def paper_outputs(module, data):
    """Plain PyG on plain data: outputs of papers."""
    out = module(data.x_dict, data.edge_index_dict)
    return (out["paper"] if isinstance(out, dict) else out).detach()


def system(name, seed=0, **options):
    torch.manual_seed(seed)
    data = a_graph(seed)
    made = MAKERS[name]().double().eval()
    model = gp.wrap(made, data=data, **options)
    return made, data, model, nodes(data, LABELS, node_type="paper", at=torch.tensor([0, 3, 5, 7]))


def smaller(data, kept):
    """PyG's own: a subset of edges for each type."""
    counts = [data[r].edge_index.shape[1] for r in data.edge_types]
    return data.edge_subgraph(dict(zip(data.edge_types, kept.split(counts), strict=True)))


def drawn(model, seed, share=0.6):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(model.graph.num_edges, generator=generator) < share
