"""PyG modules as masked models: against plain PyG with messages changed or edges deleted."""

import copy

import pytest
import torch
import torch_geometric.nn as pyg
from torch_geometric.data import Batch as Graphs
from torch_geometric.data import Data

import graphprune as gp
from graphprune.adapters.gnn.deletion import way_of
from graphprune.adapters.gnn.passing import convolutions
from graphprune.conformance import adapter_checks, check_method
from graphprune.tasks.graphs import graphs, nodes, patterns

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
}
HARD = {
    "GraphConv max": lambda a, b: pyg.GraphConv(a, b, aggr="max"),
    "EdgeConv": lambda a, b: pyg.EdgeConv(lin(2 * a, b)),
    "Transformer": lambda a, b: pyg.TransformerConv(a, b),
    "GEN": lambda a, b: pyg.GENConv(a, b),
    "FiLM": lambda a, b: pyg.FiLMConv(a, b),
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
    assert way_of(model.module.first) == "none"
    for part in convolutions(model.module).values():
        assert not part._message_forward_hooks
        assert not part._propagate_forward_pre_hooks
        assert not part._propagate_forward_hooks


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


@pytest.mark.parametrize("check", adapter_checks(), ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", ["GraphConv", "GCN", "GAT", "SAGE", "EdgeConv"])
def test_it_conforms(check, name):
    _, _, model, task = system({**MAKERS, **HARD}[name])
    check(model, task)


@pytest.mark.parametrize("check", adapter_checks(), ids=lambda c: c.__name__)
def test_patterns_conform(check):
    torch.manual_seed(0)
    data = a_graph()
    model = gp.wrap(Two(MAKERS["GCN"]).double(), data=data)
    x = torch.randn(6, N, F, dtype=torch.float64)
    task = patterns({"x": x}, torch.arange(6) % C, positions=torch.arange(6))
    check(model, task)


class Pooled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = pyg.GraphConv(F, 6), torch.nn.Linear(6, C)

    def forward(self, x, edge_index, batch):
        return self.out(pyg.global_mean_pool(torch.relu(self.conv(x, edge_index)), batch))


@pytest.mark.parametrize("check", adapter_checks(), ids=lambda c: c.__name__)
def test_batched_graphs_conform(check):
    torch.manual_seed(0)
    data = Graphs.from_data_list([a_graph(seed) for seed in range(4)])
    model = gp.wrap(Pooled().double(), data=data)
    assert model.level == "graph"
    task = graphs(torch.tensor([0, 1, 2, 0]), corrupt={"x": data.x.flip(0)}, classes=C)
    (batch,) = task.batches()
    want = model.module(data.x, data.edge_index, data.batch)
    torch.testing.assert_close(model.reference(batch).full, want)
    check(model, task)


@pytest.mark.parametrize(
    "method",
    [
        gp.EAP(), gp.EAPIG(steps=3), gp.ExactPatching(), gp.InformationFlow(),
        gp.EdgePruning(sparsity=0.5, steps=5), gp.UGS(sparsity=0.5, steps=5),
        gp.MatryoshkaPruning(sparsity=0.5, steps=5), gp.SpectralPruning(density=0.7),
        gp.EAP(ablation="delete"), gp.EdgePruning(sparsity=0.5, steps=5, ablation="delete"),
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


# ------------------------------------------------------------------ silent traps


def test_self_loops_of_the_graph_are_not_shifted():
    """A layer that moves the graph's own loops is refused; one that leaves them is masked."""
    index = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 2, 1, 2, 0]])
    data = Data(x=torch.randn(3, F, dtype=torch.float64), edge_index=index)
    with pytest.raises(gp.InputError, match="Strip them first"):
        gp.wrap(Two(MAKERS["GCN"]).double(), data=data)
    module = Two(MAKERS["GraphConv"]).double()
    model = gp.wrap(module, data=data)
    task = nodes(data.x, torch.tensor([0, 1, 2]))
    (batch,) = task.batches()
    mask = torch.ones(6, dtype=torch.float64)
    mask[1] = 0
    found = model.run(batch, mask, model.reference(batch, gp.Ablation("zero")))
    torch.testing.assert_close(found, deleted(module, data, mask.bool()).detach())


def test_cached_normalisation_is_refused():
    with pytest.raises(gp.UnsupportedModelError, match="cached=False"):
        gp.wrap(Two(lambda a, b: pyg.GCNConv(a, b, cached=True)).double(), data=a_graph())


def test_sparse_adjacencies_are_refused():
    data = a_graph()
    sparse = copy.copy(data)
    sparse.edge_index = torch.sparse_coo_tensor(
        data.edge_index, torch.ones(24), (N, N), check_invariants=True
    )
    with pytest.raises(gp.InputError, match="plain tensor"):
        gp.wrap(Two(MAKERS["GraphConv"]).double(), data=sparse)

    class Sparse(Two):
        def forward(self, x, edge_index):
            ones = torch.ones(edge_index.shape[1])
            a = torch.sparse_coo_tensor(edge_index, ones, (N, N), check_invariants=True)
            return self.first(x, a.to(x.dtype).coalesce())

    with pytest.raises(gp.UnsupportedModelError, match="sparse adjacency"):
        gp.wrap(Sparse(MAKERS["GraphConv"]).double(), data=data)


def test_sorted_edge_indices_lose_their_fused_path():
    from torch_geometric import EdgeIndex

    data = a_graph()
    order = torch.argsort(data.edge_index[1], stable=True)
    data.edge_index = EdgeIndex(data.edge_index[:, order], sort_order="col", sparse_size=(N, N))
    model = gp.wrap(Two(MAKERS["GraphConv"]).double(), data=data)
    assert len(model.seen(model.source.features({}, 1))[0]) == 2


def test_another_graph_inside_is_refused():
    class Turned(Two):
        def forward(self, x, edge_index):
            return self.first(x, edge_index.flip(0))

    with pytest.raises(gp.UnsupportedModelError, match="edges that are not the graph's"):
        gp.wrap(Turned(MAKERS["GraphConv"]).double(), data=a_graph())


def test_hooks_leave_no_trace_in_copies():
    module, _, model, task = system(MAKERS["GAT"])
    gp.EAP().score(model, task)
    twin = copy.deepcopy(module)
    for part in convolutions(twin).values():
        assert not part._message_forward_hooks
        assert not part._propagate_forward_pre_hooks
        assert not part._aggregate_forward_hooks


def test_recurrent_cells_share_a_mask_at_every_step():
    """Any convolution in a loop: one mask value an edge, at all steps."""

    class Loop(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.cell = pyg.GraphConv(F, F), torch.nn.GRUCell(F, F)

        def forward(self, x, edge_index):
            for _ in range(3):
                x = self.cell(self.conv(x, edge_index), x)
            return x

    torch.manual_seed(0)
    module, data = Loop().double(), a_graph()
    model = gp.wrap(module, data=data)
    task = nodes(data.x, torch.arange(N) % F)
    (batch,) = task.batches()
    mask = (torch.rand(data.num_edges) < 0.5).double()
    found = model.run(batch, mask, model.reference(batch, gp.Ablation("zero")))
    torch.testing.assert_close(found, deleted(module, data, mask.bool()).detach())
    assert gp.EAP().score(model, task).values.abs().sum() > 0


def test_bad_input():
    with pytest.raises(gp.InputError, match=r"needs the graph: gp.wrap\(module, data=data\)"):
        gp.wrap(Two(MAKERS["GraphConv"]))
    with pytest.raises(gp.InputError, match="unknown option 'dta'"):
        gp.wrap(Two(MAKERS["GraphConv"]), dta=1)
    data = a_graph()
    data.x[0, 0] = float("nan")
    with pytest.raises(gp.InputError, match=r"data\.x holds NaN"):
        gp.wrap(Two(MAKERS["GraphConv"]).double(), data=data)
    _, data, model, _ = system(MAKERS["GraphConv"])
    (batch,) = patterns({"y": data.x[None]}, torch.tensor([0]), corrupt=None, classes=2).batches()
    with pytest.raises(gp.InputError, match="nodes of the data have: x"):
        model.reference(batch, gp.Ablation("zero"))
    empty = Data(x=data.x, edge_index=torch.zeros(2, 0, dtype=torch.int64))
    with pytest.raises(gp.InputError, match="no edges"):
        gp.wrap(Two(MAKERS["GraphConv"]).double(), data=empty)


# ------------------------------------------------------------------ what is deployed


def test_a_mask_deletes_edges_of_data():
    module, data, model, task = system(MAKERS["GCN"])
    data.edge_attr = torch.arange(data.num_edges)
    mask = gp.EAP(ablation="zero").score(model, task).top(0.5)
    small = mask.apply(data)
    assert small.num_edges == mask.num_kept
    assert torch.equal(small.edge_attr, data.edge_attr[mask.kept])
    assert small.num_nodes == N
    (batch,) = task.batches()
    want = module(small.x, small.edge_index)[batch.positions].detach()
    found = model.run(batch, mask, model.reference(batch, gp.Ablation("delete")))
    torch.testing.assert_close(found, want)
    flipped = copy.copy(data)
    flipped.edge_index = data.edge_index.flip(1)
    with pytest.raises(gp.InputError, match="stand in another order"):
        mask.apply(flipped)
    with pytest.raises(gp.InputError, match="between 0 and 1 deletes nothing"):
        gp.EdgeMask(model.graph, mask.values * 0.5).apply(data)


def test_a_batch_keeps_no_stale_slices():
    data = Graphs.from_data_list([a_graph(seed) for seed in range(3)])
    model = gp.wrap(Pooled().double().eval(), data=data)
    mask = gp.EdgeMask(model.graph, (torch.rand(data.num_edges) < 0.5).float())
    small = mask.apply(data)
    parts = small.to_data_list()
    assert sum(part.num_edges for part in parts) == mask.num_kept
    first = mask.kept[: a_graph(0).num_edges]
    assert torch.equal(parts[0].edge_index, a_graph(0).edge_index[:, first])


def test_heterogeneous_data_goes_type_by_type():
    from torch_geometric.data import HeteroData

    data = HeteroData()
    data["a"].x, data["b"].x = torch.zeros(3, 1), torch.zeros(2, 1)
    data["a", "to", "b"].edge_index = torch.tensor([[0, 1, 2], [0, 1, 1]])
    data["b", "back", "a"].edge_index = torch.tensor([[0, 1], [2, 0]])
    graph = gp.ComputationalGraph.from_edges(
        [("a0", "b0"), ("a1", "b1"), ("a2", "b1"), ("b0", "a2"), ("b1", "a0")]
    )
    small = gp.EdgeMask(graph, [1, 0, 1, 0, 1]).apply(data)
    assert small["a", "to", "b"].edge_index.tolist() == [[0, 2], [0, 1]]
    assert small["b", "back", "a"].edge_index.tolist() == [[1], [0]]


def test_fidelity_is_its_formula_on_deleted_graphs():
    module, data, model, task = system(MAKERS["SAGE"])
    mask = gp.EAP(ablation="zero").score(model, task).top(0.4)
    found = gp.fidelity(model, task, mask, ablation="delete")
    (batch,) = task.batches()
    full = module(data.x, data.edge_index)[batch.positions].argmax(-1)
    shares = []
    for kept in (~mask.kept, mask.kept):
        answer = deleted(module, data, kept)[batch.positions].argmax(-1)
        shares.append(float((answer != full).double().mean()))
    assert (found.plus, found.minus) == pytest.approx(tuple(shares))
    rest = 1 - found.minus
    want = 2 * found.plus * rest / (found.plus + rest) if found.plus * rest else 0.0
    assert found.characterization == pytest.approx(want)


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


def test_normalisation_outside_the_layers_is_found_out():
    """A module that divides by degrees itself: no layer's mask follows that."""

    class Divided(Two):
        def forward(self, x, edge_index):
            degree = torch.bincount(edge_index[1], minlength=len(x)).clamp(min=1)
            return super().forward(x, edge_index) / degree[:, None]

    torch.manual_seed(0)
    data = a_graph()
    module = Divided(MAKERS["GraphConv"]).double().eval()
    model = gp.wrap(module, data=data)
    (batch,) = nodes(data.x, torch.arange(N) % C).batches()
    reference = model.reference(batch, gp.Ablation("delete"))
    with pytest.raises(gp.UnsupportedModelError, match="does not equal deleting edges"):
        model.run(batch, torch.full((24,), 0.5), reference)
    kept = torch.arange(24) % 2 == 0
    found = model.run(batch, kept.double(), reference)
    torch.testing.assert_close(found, deleted(module, data, kept).detach())


@pytest.mark.parametrize(
    "conv",
    [
        pyg.GCNConv(8, 8, improved=True),
        pyg.GATConv(8, 8, edge_dim=2),
    ],
    ids=["improved GCN", "GAT with edge attributes"],
)
def test_self_loops_that_depend_on_edges_have_no_soft_mask(conv):
    assert way_of(conv) == "none"


def test_modules_that_mix_graphs_are_refused():
    class Centred(Two):
        def forward(self, x, edge_index):
            out = super().forward(x, edge_index)
            return out - out.mean(0)

    with pytest.raises(gp.UnsupportedModelError, match="mixes graphs that stand side by side"):
        gp.wrap(Centred(MAKERS["GraphConv"]).double(), data=a_graph())
