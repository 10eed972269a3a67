"""Calls that ended in a raw traceback: each works, or is refused by one sentence."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
import torch_geometric.nn as pyg
from support.tiny import random_pair, tiny
from torch_geometric.data import Batch, Data

import graphprune as gp
from graphprune.tasks import graphs, nodes, patterns

RING = torch.tensor([[0, 1, 2, 3, 4, 0, 2], [1, 2, 3, 4, 0, 2, 0]])


def data(seed=0):
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
    return Data(x=x, edge_index=RING, y=torch.tensor([0, 1, 2, 1, 1]))


class Net(torch.nn.Module):
    def __init__(self, outputs=3, norm=None):
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.norm = pyg.GraphConv(3, 4), pyg.GraphConv(4, outputs), norm

    def forward(self, x, edge_index, batch=None):
        x = self.a(x, edge_index)
        return self.b(torch.tanh(x if self.norm is None else self.norm(x, batch)), edge_index)


def language():
    module = tiny("llama")
    clean, corrupt = random_pair(module, batch=4)
    return gp.wrap(module), gp.Task.from_tensors(clean, corrupt, answer=[1] * 4)


def one_argument(outputs):
    return outputs[:, 0]


one_argument.higher_is_better = True


def generating(given):
    model, _ = language()
    return model.generate_with(gp.EdgeMask.full(model.graph), given, max_new_tokens=2)


PADDED = {"input_ids": torch.tensor([[3, 4, 5]]), "attention_mask": torch.tensor([[1, 1, 0]])}

REFUSED = {
    "one output, three classes": (
        lambda: gp.EAP().score(gp.wrap(Net(1), data=data()), nodes(data())),
        r"numbers of outputs, and the model has 1, 0 to 0; got 2\. One output .* callable metric",
    ),
    "a metric with one argument": (
        lambda: language()[1].with_metric(one_argument),
        r"metric\(outputs, batch\).*'one_argument' takes \(outputs\)",
    ),
    "data in place of a task": (
        lambda: gp.EAP().score(gp.wrap(Net(), data=data()), data()),
        "expected a task, got Data; make one first",
    ),
    "data in place of a task, optimised": (
        lambda: gp.EdgePruning(size=3, steps=2).prune(gp.wrap(Net(), data=data()), data()),
        "expected a task, got Data; make one first",
    ),
    "features in place of data": (
        lambda: gp.wrap(Net(), data=data().x),
        r"Data, HeteroData or Batch, got Tensor; give Data\(x=x, edge_index=edge_index\)",
    ),
    "a list of graphs to wrap": (
        lambda: gp.wrap(Net(), data=[data(0), data(1)]),
        "got a list of 2; .*from_data_list",
    ),
    "a list of graphs as nodes": (
        lambda: nodes([data(0), data(1)], torch.tensor([0, 1])),
        "x must be a tensor, got list; .*from_data_list",
    ),
    "a list of graphs as patterns": (
        lambda: patterns([data(0), data(1)], torch.tensor([0, 1])),
        "inputs must be a tensor, got list",
    ),
    "a list of graphs as labels": (
        lambda: graphs([data(0), data(1)]),
        r"labels must be \[n\] class numbers, got list.*from_data_list\(graphs\)\.y",
    ),
    "padding to generate from": (lambda: generating(PADDED), "attention_mask marks padding"),
    "a text to generate from": (lambda: generating("once"), "token ids of one prompt, got str"),
    "a mapping without ids": (lambda: generating({"a": 1}), "mapping with input_ids; .* 'a'"),
    "another graph to apply to": (
        lambda: gp.EdgeMask.full(gp.ComputationalGraph.from_networkx(nx.DiGraph([(0, 1)]))).apply(
            nx.DiGraph([(1, 0)])
        ),
        "networkx graph's edges are not those of the mask's graph",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_by_a_sentence(name):
    call, sentence = REFUSED[name]
    with pytest.raises(gp.GraphPruneError, match=f"(?s){sentence}"):
        call()


def test_generates_from_what_a_tokenizer_gives():
    ids = torch.tensor([[3, 4, 5]])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(generating(given), generating(ids))


@pytest.mark.parametrize("kind", [nx.DiGraph, nx.MultiDiGraph])
def test_a_mask_applies_to_the_networkx_graph_it_was_found_on(kind):
    graph = kind()
    graph.add_nodes_from([(7, {"colour": "red"}), "b", "c"])
    pairs = [("b", "c"), (7, "b"), ("c", 7), ("c", "b")] + [("c", 7)] * (kind is nx.MultiDiGraph)
    for weight, (u, v) in enumerate(pairs):
        graph.add_edge(u, v, weight=weight)
    ours = gp.ComputationalGraph.from_networkx(graph)
    stood = list(graph.edges(data="weight"))
    values = [float(i != 2) for i in range(ours.num_edges)]
    small = gp.EdgeMask(ours, values).apply(graph)
    assert type(small) is kind
    assert dict(small.nodes(data=True)) == dict(graph.nodes(data=True))
    assert list(small.edges(data="weight")) == [e for i, e in enumerate(stood) if i != 2]
    assert list(graph.edges(data="weight")) == stood


def test_a_mask_applies_to_a_graph_that_was_exported():
    ours = gp.ComputationalGraph.from_edges([("c", "a"), ("a", "b"), ("b", "c"), ("a", "c")])
    small = gp.EdgeMask(ours, [0.0, 1, 1, 0]).apply(ours.to_networkx())
    assert {(u, v) for u, v, *_ in small.edges} == {("a", "b"), ("b", "c")}


@pytest.mark.parametrize("norm", [pyg.LayerNorm(4, eps=1e-12), pyg.GraphNorm(4)], ids=repr)
def test_norms_over_a_graph_work_on_one_graph(norm):
    """Outputs are plain PyG's with a weight on each edge.

    PyG's LayerNorm adds eps to the standard deviation without a batch vector and to the variance
    with one, so that eps is as good as nothing here.
    """
    module = Net(norm=norm).double()
    one = data()
    one.x = one.x.double()
    alone, batch = (gp.wrap(module, data=d) for d in (one, Batch.from_data_list([one])))
    task = nodes(one)
    mask = (torch.arange(7) % 3 > 0).double()
    for model in (alone, batch):
        drawn = next(iter(task.batches()))
        reference = model.reference(drawn, gp.Ablation("zero"))
        got = model.run(drawn, mask, reference)
        want = plainly(module, one.x, one.edge_index, mask)[drawn.positions]
        torch.testing.assert_close(got, want)


def plainly(module, x, edge_index, weight):
    """PyG's own forward; GraphConv multiplies each message by its edge's weight."""
    x = module.norm(module.a(x, edge_index, weight))
    return module.b(torch.tanh(x), edge_index, weight).detach()


def test_outputs_that_are_nan_are_blamed_on_the_module():
    module = Net()
    with torch.no_grad():
        module.b.lin_rel.weight[0, 0] = float("nan")
    with pytest.raises(gp.GraphPruneError, match="outputs of Net itself hold NaN"):
        gp.wrap(module, data=data())
