"""Small message-passing modules, the graph they run on, and the deletion they are held against."""

import torch
import torch_geometric.nn as pyg
from torch_geometric.data import Data

import graphprune as gp
from graphprune.tasks import nodes

N, F, C = 9, 5, 3


def a_graph(seed=0, loops=False, edges=24):
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(N, (2, 3 * edges), generator=generator)
    index = torch.unique(index, dim=1)
    if not loops:
        index = index[:, index[0] != index[1]]
    order = torch.randperm(index.shape[1], generator=generator)[:edges]
    x = torch.randn(N, F, generator=generator, dtype=torch.float64)
    return Data(x=x, edge_index=index[:, order])


class Two(torch.nn.Module):
    """Two layers of one convolution with a tanh between."""

    def __init__(self, make):
        super().__init__()
        self.first, self.second = make(F, 8), make(8, C)

    def forward(self, x, edge_index):
        return self.second(torch.tanh(self.first(x, edge_index)), edge_index)


class Pooled(torch.nn.Module):
    """One convolution, and a mean over each graph's nodes."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = pyg.GraphConv(F, 6), torch.nn.Linear(6, C)

    def forward(self, x, edge_index, batch):
        return self.out(pyg.global_mean_pool(torch.relu(self.conv(x, edge_index)), batch))


def lin(a, b):
    return torch.nn.Sequential(torch.nn.Linear(a, b), torch.nn.Tanh())


MAKERS = {
    "GraphConv": lambda a, b: pyg.GraphConv(a, b),
    "GraphConv mean": lambda a, b: pyg.GraphConv(a, b, aggr="mean"),
    "GIN": lambda a, b: pyg.GINConv(lin(a, b)),
    "ResGated": lambda a, b: pyg.ResGatedGraphConv(a, b),
    "LEConv": lambda a, b: pyg.LEConv(a, b),
    "SAGE": lambda a, b: pyg.SAGEConv(a, b),
    "SAGE sum": lambda a, b: pyg.SAGEConv(a, b, aggr="sum"),
    "GCN": lambda a, b: pyg.GCNConv(a, b),
    "GCN unnormalised": lambda a, b: pyg.GCNConv(a, b, normalize=False),
    "TAG": lambda a, b: pyg.TAGConv(a, b, K=2),
    "Cheb": lambda a, b: pyg.ChebConv(a, b, K=2),
    "ARMA": lambda a, b: pyg.ARMAConv(a, b),
    "SG": lambda a, b: pyg.SGConv(a, b),
    "GAT": lambda a, b: pyg.GATConv(a, b),
    "GATv2": lambda a, b: pyg.GATv2Conv(a, b, heads=2, concat=False),
    "Transformer": lambda a, b: pyg.TransformerConv(a, b),
    "GEN": lambda a, b: pyg.GENConv(a, b),
    "FiLM": lambda a, b: pyg.FiLMConv(a, b),
    "GCN improved": lambda a, b: pyg.GCNConv(a, b, improved=True),
    "DirGNN": lambda a, b: pyg.DirGNNConv(pyg.SAGEConv(a, b)),
    "DirGNN GCN": lambda a, b: pyg.DirGNNConv(pyg.GCNConv(a, b, add_self_loops=False)),
    "Hypergraph": lambda a, b: pyg.HypergraphConv(a, b),
    "SuperGAT": lambda a, b: pyg.SuperGATConv(a, b),
    "EG": lambda a, b: pyg.EGConv(a, b, num_heads=1),
    "MixHop": lambda a, b: pyg.MixHopConv(a, b, powers=[1]),
}
HARD = {
    "GraphConv max": lambda a, b: pyg.GraphConv(a, b, aggr="max"),
    "EdgeConv": lambda a, b: pyg.EdgeConv(lin(2 * a, b)),
    "MF": lambda a, b: pyg.MFConv(a, b),
}


def system(make, seed=0, **options):
    torch.manual_seed(seed)
    data = a_graph(seed, **options)
    module = Two(make).double().eval()
    model = gp.wrap(module, data=data)
    labels = torch.arange(N) % C
    return module, data, model, nodes(data.x, labels, at=torch.tensor([0, 3, 5, 8]))


def deleted(module, data, kept):
    return module(data.x, data.edge_index[:, kept])
