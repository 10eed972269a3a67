"""PyG modules as masked models: against plain PyG with messages changed or edges deleted."""

import copy

import pytest
import torch
import torch_geometric.nn as pyg
from support.hooked import hooked
from support.marks import quick
from support.messages import HARD, MAKERS, C, F, N, Pooled, Two, a_graph, deleted, system
from torch_geometric.data import Batch as Graphs
from torch_geometric.data import Data

import graphprune as gp
from graphprune.conformance import check_adapter, check_method
from graphprune.tasks import graphs, nodes, patterns


@pytest.mark.parametrize("name", [*MAKERS, *HARD])
def test_hard_deletion_is_the_smaller_graph(name):
    module, data, model, task = system({**MAKERS, **HARD}[name])
    (batch,) = task.batches()
    reference = model.reference(batch, gp.Ablation("delete"))
    generator = torch.Generator().manual_seed(1)
    masks = (torch.rand(3, data.num_edges, generator=generator) < 0.6).double()
    found = model.run(batch, masks, reference)
    for row, mask in zip(found, masks, strict=True):
        want = deleted(module, data, mask.bool())[batch.positions]
        torch.testing.assert_close(row, want, rtol=0, atol=1e-10)
    torch.testing.assert_close(reference.full, module(data.x, data.edge_index)[batch.positions])


@pytest.mark.parametrize("name", MAKERS)
def test_soft_masks_end_in_deletion_and_have_gradients(name):
    """The table of families: at zeros and ones the differentiable path is deletion itself."""
    module, data, model, task = system(MAKERS[name])
    (batch,) = task.batches()
    reference = model.reference(batch, gp.Ablation("delete"))
    generator = torch.Generator().manual_seed(2)
    mask = (torch.rand(data.num_edges, generator=generator) < 0.6).double().requires_grad_(True)
    found = model.run(batch, mask, reference)
    want = deleted(module, data, mask.detach().bool())[batch.positions]
    torch.testing.assert_close(found, want, rtol=0, atol=1e-9)
    inner = (0.3 + 0.4 * torch.rand(data.num_edges, generator=generator)).double()
    inner.requires_grad_(True)
    (gradient,) = torch.autograd.grad(model.run(batch, inner, reference).square().sum(), inner)
    direction = torch.rand(data.num_edges, generator=generator, dtype=torch.float64) - 0.5
    ahead, behind = (
        model.run(batch, (inner + s * 1e-5 * direction).detach().requires_grad_(True), reference)
        for s in (1, -1)
    )
    slope = (ahead.square().sum() - behind.square().sum()) / 2e-5
    assert float((gradient * direction).sum()) == pytest.approx(slope.item(), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("name", HARD)
def test_where_no_mask_is_deletion_soft_ones_are_refused(name):
    _, data, model, task = system(HARD[name])
    (batch,) = task.batches()
    reference = model.reference(batch, gp.Ablation("delete"))
    with pytest.raises(gp.UnsupportedModelError, match="equals deleting an edge"):
        model.run(batch, torch.full((data.num_edges,), 0.5), reference)
    with pytest.raises(gp.UnsupportedModelError, match="equals deleting an edge"):
        gp.EAP(ablation="delete").score(model, task)
    assert hooked(model.module) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [pyg.GraphSAGE, pyg.GAT])
def test_soft_deletion_in_half_precision_is_that_of_float32_but_for_rounding(kind, dtype):
    torch.manual_seed(0)
    x, edges = torch.randn(12, 8), torch.randint(12, (2, 50)).unique(dim=1)
    edges = edges[:, edges[0] != edges[1]]
    mask, plain = torch.rand(edges.shape[1]), kind(8, 16, 2, 3)
    outputs = []
    for module, features in ((plain, x), (copy.deepcopy(plain).to(dtype), x.to(dtype))):
        model = gp.wrap(module, data=Data(x=features, edge_index=edges))
        (batch,) = nodes(features, torch.arange(12) % 3).batches()
        reference = model.reference(batch, gp.Ablation("delete"))
        outputs.append(model.run(batch, mask, reference).float())
    room = 8 * torch.finfo(dtype).eps * (1 + float(outputs[0].abs().max()))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=room)


def by_hand(layers, x, index, mask, other):
    """Two sum convolutions with messages mixed by hand; ``other``: messages at mask 0."""
    sent = []
    for number, conv in enumerate(layers):
        source, target = index
        message = x[source]
        instead = torch.zeros_like(message) if other is None else other[number]
        message = mask[:, None] * message + (1 - mask[:, None]) * instead
        sent.append(message)
        read = torch.zeros_like(x).index_add(0, target, message)
        out = conv.lin_rel(read) + conv.lin_root(x)
        x = torch.tanh(out) if number == 0 else out
    return x, sent


@pytest.mark.parametrize("kind", ["zero", "counterfactual", "mean"])
def test_replaced_messages_follow_the_definition(kind):
    module, data, model, task = system(MAKERS["GraphConv"])
    (batch,) = task.batches()
    ablation = gp.methods.resolve_ablation(model, task, kind)
    layers = [module.first, module.second]
    ones = torch.ones(data.num_edges, dtype=torch.float64)
    _, corrupt = by_hand(layers, batch.corrupt["x"], data.edge_index, ones, None)
    mask = torch.rand(data.num_edges, dtype=torch.float64)
    other = None if kind == "zero" else corrupt  # the mean over one corrupted graph is that graph
    want, _ = by_hand(layers, data.x, data.edge_index, mask, other)
    found = model.run(batch, mask, model.reference(batch, ablation))
    torch.testing.assert_close(found, want[batch.positions].detach())


@pytest.mark.parametrize("kind", ["zero", "counterfactual"])
def test_constant_nodes_pass_no_gradient_on(kind):
    """EAP-IG over activations: finite differences of two convolutions by hand."""
    module, data, model, task = system(MAKERS["GraphConv"])
    (batch,) = task.batches()
    layers, h = [module.first, module.second], 1e-6
    ones = torch.ones(data.num_edges, dtype=torch.float64)
    _, clean = by_hand(layers, data.x, data.edge_index, ones, None)
    _, other = by_hand(layers, batch.corrupt["x"], data.edge_index, ones, None)
    other = [torch.zeros_like(m) if kind == "zero" else m for m in other]
    group = torch.tensor([0, 2, 3])
    held = torch.isin(data.edge_index[0], group)
    gates = torch.ones(1, model.graph.num_nodes, dtype=torch.float64)
    constant = torch.zeros(1, model.graph.num_nodes, dtype=torch.bool)
    gates[0, group], constant[0, group] = 0.4, True
    reference = model.reference(batch, gp.Ablation(kind))
    value = lambda out: out[:, 0]  # noqa: E731
    found = model.edge_gradients(batch, value, reference, gates=gates, constant=constant).edge
    through = model.edge_gradients(batch, value, reference, gates=gates).edge
    want = torch.zeros(data.num_edges, dtype=torch.float64)
    for edge in range(data.num_edges):
        outs = []
        for shift in (h, -h):
            mask = torch.where(held, 0.0, 1.0).double()
            mask[edge] = 0.0 if held[edge] else 1.0 - 1e-9
            moved = [0.4 * a + 0.6 * b for a, b in zip(clean, other, strict=True)]
            for place, a, b in zip(moved, clean, other, strict=True):
                place[~held] = 0.0
                place[edge] += shift * (a - b)[edge] / (1.0 - mask[edge])
            out, _ = by_hand(layers, data.x, data.edge_index, mask, moved)
            outs.append(out[batch.positions, 0].sum().detach())
        want[edge] = (outs[0] - outs[1]) / (2 * h)
    torch.testing.assert_close(found.double(), want, rtol=1e-4, atol=1e-4)
    assert float((through.double() - want).abs().max()) > 1e-2


@pytest.mark.parametrize(
    "name", quick(["GraphConv", "GCN", "GAT", "SAGE", "EdgeConv"], ["GCN", "EdgeConv"])
)
def test_it_conforms(name):
    _, _, model, task = system({**MAKERS, **HARD}[name])
    check_adapter(model, task)


def test_patterns_conform():
    torch.manual_seed(0)
    data = a_graph()
    model = gp.wrap(Two(MAKERS["GCN"]).double(), data=data)
    x = torch.randn(6, N, F, dtype=torch.float64)
    task = patterns({"x": x}, torch.arange(6) % C, positions=torch.arange(6))
    check_adapter(model, task)


def test_batched_graphs_conform():
    torch.manual_seed(0)
    data = Graphs.from_data_list([a_graph(seed) for seed in range(4)])
    model = gp.wrap(Pooled().double(), data=data)
    assert model.level == "graph"
    task = graphs(torch.tensor([0, 1, 2, 0]), corrupt={"x": data.x.flip(0)}, classes=C)
    (batch,) = task.batches()
    want = model.module(data.x, data.edge_index, data.batch)
    torch.testing.assert_close(model.reference(batch).full, want)
    check_adapter(model, task)


@pytest.mark.parametrize(
    "method",
    [
        gp.EAP(ablation="delete"), gp.EAPIG(steps=3), gp.ExactPatching(), gp.InformationFlow(),
        gp.EdgePruning(sparsity=0.5, steps=5, ablation="delete"), gp.UGS(sparsity=0.5, steps=5),
        gp.SpectralPruning(size=0.7),
    ],
    ids=lambda m: m.label,
)  # fmt: skip
def test_methods_of_the_core_run_unchanged(method):
    _, _, model, task = system(MAKERS["GCN"])
    check_method(method, model, task)


def test_acdc_is_the_plain_loop():
    from support.greedy import brute_force, mean_loss

    _, _, model, task = system(MAKERS["GraphConv"])
    assert not model.graph.is_acyclic
    losses = mean_loss(model, task, "kl", "zero")
    for tau in (1e-3, 1e-2, 0.1):
        rule = gp.ACDC(tau=tau, ablation="zero")
        want = brute_force(losses, model.graph, rule.edge_order(model.graph), tau)
        assert torch.equal(rule.prune(model, task).values.bool(), want)


class One(torch.nn.Module):
    """A single convolution behind a linear map, with its own flow."""

    def __init__(self, conv):
        super().__init__()
        self.enter, self.conv, self.leave = torch.nn.Linear(F, 8), conv, torch.nn.Linear(8, C)

    def forward(self, x, edge_index):
        return self.leave(torch.tanh(self.conv(torch.tanh(self.enter(x)), edge_index)))


MORE = {
    "GatedGraph": lambda: pyg.GatedGraphConv(8, num_layers=2),
    "Simple sum": lambda: pyg.SimpleConv(aggr="sum"),
    "Simple mean": lambda: pyg.SimpleConv(aggr="mean"),
    "APPNP": lambda: pyg.APPNP(K=3, alpha=0.2),
    "SSG": lambda: pyg.SSGConv(8, 8, alpha=0.1, K=2),
    "SAGE, turned": lambda: pyg.SAGEConv(8, 8, flow="target_to_source"),
    "GraphConv, turned": lambda: pyg.GraphConv(8, 8, flow="target_to_source"),
    "GAT, turned": lambda: pyg.GATConv(8, 8, flow="target_to_source"),
}


@pytest.mark.parametrize("name", MORE)
def test_more_families_and_turned_flows(name):
    torch.manual_seed(0)
    data = a_graph()
    module = One(MORE[name]()).double().eval()
    model = gp.wrap(module, data=data)
    (batch,) = nodes(data.x, torch.arange(N) % C).batches()
    reference = model.reference(batch, gp.Ablation("delete"))
    for seed in range(3):
        kept = torch.rand(24, generator=torch.Generator().manual_seed(seed)) < 0.6
        want = deleted(module, data, kept).detach()
        soft = kept.double().requires_grad_(True)
        torch.testing.assert_close(model.run(batch, soft, reference).detach(), want)
        torch.testing.assert_close(model.run(batch, kept.double(), reference), want)


def test_message_norms_of_nodes_that_share_their_features():
    from torch_geometric.nn import SAGEConv, Sequential

    torch.manual_seed(0)
    x, edges = torch.randn(12, 3), torch.randint(12, (2, 30))
    layers = [(SAGEConv(3, 5), "x, edge_index -> x"), (SAGEConv(5, 2), "x, edge_index -> x")]
    model = gp.wrap(Sequential("x, edge_index", layers), data=Data(x=x, edge_index=edges))
    task = gp.tasks.nodes(x, torch.arange(12) % 2, batch_size=5)
    inner = model.module[0](x, edges)
    expected = (x.norm(dim=1) + inner.norm(dim=1))[edges[0]] / 2  # a layer's messages are states
    norms = gp.spectral.message_norms(model, task)
    torch.testing.assert_close(norms, expected.detach().double(), rtol=1e-5, atol=1e-6)
    group = next(iter(model.messages(next(iter(task.batches())))))
    assert group.values.shape[1] == len(group.total) == 5
    assert group.values.stride(1) == 0  # one copy, however many nodes are asked for
