"""Undirected edges: one mask value, one score and one fate, against plain PyG without both ways."""

from collections import Counter

import networkx as nx
import pytest
import torch
from torch import nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import GATConv, GCNConv, GraphConv, HeteroConv, SAGEConv
from torch_geometric.transforms import ToUndirected
from torch_geometric.utils import is_undirected

import graphprune as gp
from graphprune import spectral
from graphprune.conformance import check_adapter, check_method
from graphprune.export import to_explanation
from graphprune.tasks import nodes

NODES = 9
RIGHT = gp.Metric(
    "logit", lambda out, batch, full: out.gather(-1, batch.answer)[:, 0], needs=("answer",)
)


def undirected(seed=0, loops=0):
    """Data of an undirected graph in a mixed order, with a weight and two attributes an edge."""
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.tensor(list(nx.gnm_random_graph(NODES, 14, seed=seed).edges)).T
    weight = torch.rand(pairs.shape[1], generator=generator).double() + 0.5
    index = torch.cat([pairs, pairs.flip(0), torch.arange(loops).expand(2, -1)], 1)
    weight = torch.cat([weight, weight, torch.ones(loops).double()])
    order = torch.randperm(index.shape[1], generator=generator)
    attributes = torch.stack([weight.round(), weight], 1)
    x = torch.randn(NODES, 4, generator=generator).double()
    return Data(
        x=x, edge_index=index[:, order], edge_weight=weight[order], edge_attr=attributes[order]
    )


class Net(nn.Module):
    def __init__(self, conv=GCNConv, weighted=True):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = conv(4, 5).double(), conv(5, 3).double()
        self.weighted = weighted

    def forward(self, x, edge_index, edge_weight):
        more = (edge_weight,) if self.weighted else ()
        return self.second(torch.tanh(self.first(x, edge_index, *more)), edge_index, *more)


def a_task(data, corrupt=None):
    labels = torch.arange(NODES) % 3
    return nodes(data.x, labels, classes=3, corrupt=corrupt, metric=RIGHT)


def without(data, one, other):
    """The data without the edges between two nodes, either way."""
    low, high = data.edge_index.min(0).values, data.edge_index.max(0).values
    keep = ~((low == min(one, other)) & (high == max(one, other)))
    return data.x, data.edge_index[:, keep], data.edge_weight[keep]


def ends_of(graph):
    return graph.edge_index.T.tolist()


# ------------------------------------------------------------------ what is tied


def counted_pairs(index, features):
    """How many edges there are if opposite ones of equal features count once, by counting."""
    rows = Counter(
        (u, v, *row) for (u, v), row in zip(index.T.tolist(), features.tolist(), strict=True)
    )
    loops = sum(c for (u, v, *_), c in rows.items() if u == v)
    there = sum(c for (u, v, *_), c in rows.items() if u < v)
    back = sum(c for (u, v, *_), c in rows.items() if u > v)
    paired = sum(min(c, rows[v, u, *f]) for (u, v, *f), c in rows.items() if u < v)
    return there + back - paired + loops, paired == there == back


@pytest.mark.parametrize("seed", range(30))
def test_pairs_are_those_that_counting_finds(seed):
    """Multigraphs with self-loops, repeated edges and features; half of them undirected."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(5, (2, 12), generator=generator)
    features = torch.randint(2, (12, 1), generator=generator).float()
    if seed % 2:
        ways = index[0] != index[1]
        index = torch.cat([index, index[:, ways].flip(0)], 1)
        features = torch.cat([features, features[ways]])
    order = torch.randperm(index.shape[1], generator=generator)
    index, features = index[:, order], features[order]
    data = Data(x=torch.eye(5), edge_index=index, edge_attr=features)
    net = GraphConv(5, 2)
    call = {"forward": lambda module, d: module(d.x, d.edge_index)}
    count, whole = counted_pairs(index, features)
    auto = gp.wrap(net, data=data, **call).graph
    assert auto.num_edges == (count if whole else index.shape[1])
    assert (auto.ties is None) == (not whole or count == index.shape[1])
    if whole:
        assert auto.untied.edge_index.tolist() == index.tolist()
        for edge in range(auto.num_edges):
            mine = index[:, auto.ties.edge == edge]
            assert len({frozenset(pair) for pair in mine.T.tolist()}) == 1
            assert len(features[auto.ties.edge == edge].unique(dim=0)) == 1
    assert gp.wrap(net, data=data, tie=False, **call).graph.ties is None
    # All that come in pairs, whatever their features where these do not pair all.
    plain, _ = counted_pairs(index, torch.zeros(len(features), 1))
    if plain == index.shape[1]:
        with pytest.raises(gp.InputError, match="no edge of this graph has one"):
            gp.wrap(net, data=data, tie=True, **call)
        return
    forced = gp.wrap(net, data=data, tie=True, **call).graph
    assert forced.num_edges == (count if whole else plain)


def test_what_is_no_undirected_graph_is_not_tied():
    data = undirected()
    net = Net()
    assert gp.wrap(net, data=data).graph.num_edges == 14
    other = data.clone()
    other.edge_weight[3] += 1e-9
    assert gp.wrap(net, data=other).graph.num_edges == 28
    assert gp.wrap(net, data=other, tie=True).graph.num_edges == 14
    fewer = Data(x=data.x, edge_index=data.edge_index[:, 1:], edge_weight=data.edge_weight[1:])
    assert gp.wrap(net, data=fewer).graph.num_edges == 27
    assert gp.wrap(net, data=fewer, tie=True).graph.num_edges == 14
    one_way = data.edge_index[0] < data.edge_index[1]
    single = Data(
        x=data.x, edge_index=data.edge_index[:, one_way], edge_weight=data.edge_weight[one_way]
    )
    assert gp.wrap(net, data=single).graph.num_edges == 14
    with pytest.raises(gp.InputError, match="no edge of this graph has one"):
        gp.wrap(net, data=single, tie=True)
    with pytest.raises(gp.InputError, match="tie must be 'auto', True, False or a mapping"):
        gp.wrap(net, data=data, tie="yes")


def test_counts_say_that_they_are_of_pairs():
    model = gp.wrap(Net(GraphConv), data=undirected(loops=2))
    assert repr(model.graph) == "ComputationalGraph(9 nodes, 16 pairs, 30 messages)"
    mask = gp.Random().score(model, a_task(undirected())).top(4)
    assert repr(mask) == "EdgeMask(4 of 16 pairs, 25.0000%)"
    assert sum("--" in name for name in model.graph.edge_names) == 14
    assert {"0->0", "1->1"} < set(model.graph.edge_names)


# ------------------------------------------------------------------ values


@pytest.mark.parametrize("conv", [GCNConv, GraphConv, GATConv, SAGEConv])
def test_a_pair_is_cut_as_plain_pyg_cuts_both_directions(conv):
    """Exact patching under deletion: the metric without the two edges, edge by edge."""
    data, net = undirected(loops=int(conv is GraphConv)), Net(conv, conv in (GCNConv, GraphConv))
    model, task = gp.wrap(net, data=data), a_task(data)
    scores = gp.ExactPatching(ablation="delete").score(model, task)
    right = torch.arange(NODES), torch.arange(NODES) % 3
    full = net(data.x, data.edge_index, data.edge_weight).detach()
    for edge, (u, v) in enumerate(ends_of(model.graph)):
        with torch.no_grad():
            less = net(*without(data, u, v))
        want = (full[right] - less[right]).mean()
        assert float(scores.values[edge]) == pytest.approx(float(want), abs=1e-6)


def test_masks_weigh_both_directions_and_gradients_are_their_sum():
    """GraphConv multiplies messages by weights, so a mask is the weights times the mask."""
    data, net = undirected(loops=1), Net(GraphConv)
    model, task = gp.wrap(net, data=data), a_task(data)
    (batch,) = task.batches()
    reference = model.reference(batch, gp.Ablation("zero"))
    graph = model.graph
    mask = torch.rand(graph.num_edges, generator=torch.Generator().manual_seed(3)).double()
    number = {frozenset(pair): i for i, pair in enumerate(ends_of(graph))}
    spread = [mask[number[frozenset(pair)]] for pair in data.edge_index.T.tolist()]
    want = net(data.x, data.edge_index, data.edge_weight * torch.stack(spread))
    torch.testing.assert_close(model.run(batch, mask, reference), want.detach())

    def total(values):
        weights = torch.stack(
            [values[number[frozenset(pair)]] for pair in data.edge_index.T.tolist()]
        )
        out = net(data.x, data.edge_index, data.edge_weight * weights)
        return out[torch.arange(NODES), torch.arange(NODES) % 3].sum()

    scores = gp.EAP(ablation="zero").score(model, task)
    for edge in range(graph.num_edges):
        ahead, behind = torch.ones(2, graph.num_edges).double()
        ahead[edge] += 1e-5
        behind[edge] -= 1e-5
        slope = (total(ahead) - total(behind)) / 2e-5 / len(task)
        assert float(scores.values[edge]) == pytest.approx(slope.item(), rel=1e-4, abs=1e-7)
    alone = gp.EAP(ablation="zero").score(gp.wrap(net, data=data, tie=False), task)
    sums = torch.zeros(graph.num_edges)
    for value, pair in zip(alone.values, data.edge_index.T.tolist(), strict=True):
        sums[number[frozenset(pair)]] += value
    torch.testing.assert_close(scores.values, sums)


METHODS = [
    gp.EAP(ablation="zero"),
    gp.EAPIG(steps=2),
    gp.IntegratedMaskGradient(steps=2, ablation="zero"),
    gp.InformationFlow(),
    gp.NAP(ablation="zero"),
    gp.Random(seed=1),
    gp.ExactPatching(ablation="mean"),
    gp.ACDC(tau=1e-2, ablation="zero"),
    gp.EdgePruning(steps=6, ablation="zero"),
    gp.UGS(steps=6, ablation="zero"),
    gp.SubnetworkProbing(steps=6, ablation="zero"),
    gp.MatryoshkaPruning(steps=6, ablation="zero"),
    gp.SpectralPruning(goal="gap", edge_weights="message_norm", effort=0.02),
    gp.SpectralPruning(goal="damp", laplacian="out", effort=0.02),
    spectral.EffectiveResistance(),
    gp.ParallelEnsemble([gp.EAP(ablation="zero"), gp.Random(seed=1)]),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_what_any_method_keeps_is_undirected(method):
    data = undirected()
    model = gp.wrap(Net(), data=data)
    task = a_task(data, corrupt={"x": data.x.flip(0)})
    result = method.fit(model, task) if isinstance(method, gp.ACDC) else method.fit(model, task, 6)
    mask = result.mask
    assert mask.graph == model.graph
    if not isinstance(method, gp.ACDC):
        assert mask.num_kept <= 6
    small = mask.apply(data)
    assert small.edge_index.shape[1] == 2 * mask.num_kept
    assert is_undirected(small.edge_index, small.edge_attr, NODES)
    report = gp.evaluate(model, task, mask).to_dict()
    assert report["n_edges"] == mask.num_kept


def test_conformance_holds_with_ties():
    data = undirected(loops=1)
    task = a_task(data, corrupt={"x": data.x.flip(0)})
    model = gp.wrap(Net(GraphConv), data=data)
    check_adapter(model, task)
    check_method(gp.EAP(), model, task)


# ------------------------------------------------------------------ heterogeneous graphs


def shops():
    generator = torch.Generator().manual_seed(0)
    data = HeteroData()
    data["user"].x = torch.randn(5, 3, generator=generator)
    data["item"].x = torch.randn(6, 3, generator=generator)
    every = torch.cartesian_prod(torch.arange(5), torch.arange(6)).T
    data["user", "buys", "item"].edge_index = every[:, torch.randperm(30, generator=generator)[:9]]
    knows = torch.tensor([[0, 1, 3], [1, 2, 4]])
    data["user", "knows", "user"].edge_index = torch.cat([knows, knows.flip(0)], 1)
    return ToUndirected()(data)


class Shop(nn.Module):
    def __init__(self, data):
        super().__init__()
        torch.manual_seed(0)
        self.conv = HeteroConv({r: GraphConv((3, 3), 2) for r in data.edge_types})

    def forward(self, x_dict, edge_index_dict):
        return self.conv(x_dict, edge_index_dict)["item"]


def test_reverse_relations_are_tied_on_request():
    data = shops()
    buys, back = ("user", "buys", "item"), ("item", "rev_buys", "user")
    net = Shop(data)
    options = {"data": data, "node_type": "item"}
    by_itself = gp.wrap(net, **options)
    assert by_itself.graph.num_edges == 9 + 9 + 3  # friends alone
    tied = gp.wrap(net, tie=True, **options)
    assert tied.graph.num_edges == 9 + 3
    assert gp.wrap(net, tie={buys: back}, **options).graph == tied.graph
    named = {"user__buys__item": "item__rev_buys__user"}
    assert gp.wrap(net, tie=named, **options).graph == tied.graph
    with pytest.raises(gp.InputError, match="not each other's reverses"):
        gp.wrap(net, tie={buys: ("user", "knows", "user")}, **options)
    with pytest.raises(gp.InputError, match="the graph has user__buys__item"):
        gp.wrap(net, tie={buys: ("item", "sold", "user")}, **options)
    names = list(tied.graph.edge_names)
    assert "user:0--user:1<user__knows__user>" in names
    generator = torch.Generator().manual_seed(1)
    mask = gp.EdgeMask(tied.graph, (torch.rand(12, generator=generator) < 0.5).float())
    small = mask.apply(data)
    pairs = set(map(tuple, small[buys].edge_index.T.tolist()))
    assert 0 < len(pairs) < 9
    assert pairs == {(u, v) for v, u in small[back].edge_index.T.tolist()}
    assert is_undirected(small["user", "knows", "user"].edge_index)
    explained = to_explanation(gp.Circuit.from_mask(mask), data)
    assert int(explained[back].edge_mask.sum()) == len(pairs)


def test_a_tied_mask_runs_as_the_smaller_heterogeneous_graph():
    data = shops()
    net = Shop(data)
    model = gp.wrap(net, data=data, node_type="item", tie=True)
    task = gp.tasks.nodes(data, torch.arange(6) % 2, classes=2, node_type="item")
    (batch,) = task.batches()
    generator = torch.Generator().manual_seed(1)
    mask = gp.EdgeMask(model.graph, (torch.rand(12, generator=generator) < 0.5).float())
    found = model.run(batch, mask, model.reference(batch, gp.Ablation("zero")))
    small = mask.apply(data)
    want = net(small.x_dict, small.edge_index_dict).detach()
    torch.testing.assert_close(found, want)


# ------------------------------------------------------------------ files and other libraries


def test_a_tied_circuit_comes_back_from_files_and_libraries(tmp_path):
    data = undirected(loops=1)
    model, task = gp.wrap(Net(GraphConv), data=data), a_task(data)
    scores = gp.EAP(ablation="zero").score(model, task)
    circuit = gp.Circuit.from_mask(scores.top(6), scores=scores, model=model, task=task)
    circuit.save(tmp_path / "c")
    again = gp.Circuit.load(tmp_path / "c")
    assert again.graph == model.graph
    assert again.graph.ties.edge.tolist() == model.graph.ties.edge.tolist()
    assert again.mask.edges() == circuit.mask.edges()
    assert is_undirected(again.mask.apply(data).edge_index)
    whole = model.graph.to_networkx()
    assert sorted(whole.edges) == sorted((str(u), str(v)) for u, v in data.edge_index.T.tolist())
    assert gp.ComputationalGraph.from_networkx(whole) == model.graph
    path = tmp_path / "graph.graphml"
    nx.write_graphml(whole, path)
    assert gp.ComputationalGraph.from_networkx(nx.read_graphml(path)) == model.graph
    assert model.graph.to_pyg().edge_index.tolist() == data.edge_index.tolist()
    back = gp.ComputationalGraph.from_pyg(model.graph.to_pyg())
    assert back.edge_names[:] == model.graph.edge_names[:]
    left = circuit.to_networkx()
    assert {frozenset(e) for e in left.edges} == {
        frozenset(name.replace("->", "--").split("--")) for name in circuit.mask.edges()
    }
    assert all(left.has_edge(v, u) for u, v in left.edges)
    cut = circuit.mask.apply(whole)
    assert {frozenset(e) for e in cut.edges} == {frozenset(e) for e in left.edges}
    explained = to_explanation(circuit, data)
    assert explained.edge_index.tolist() == data.edge_index.tolist()
    assert bool((explained.edge_mask > 0).sum() == circuit.mask.apply(data).num_edges)


def test_ties_that_leave_an_edge_without_a_message_are_refused():
    graph = gp.ComputationalGraph.from_edges([("a", "b"), ("b", "a"), ("a", "c")])
    with pytest.raises(gp.InputError, match="each with at least one message"):
        graph.tied(torch.tensor([0, 2, 2]))
