"""PyG modules as masked models: silent traps, bad input, and what is deployed."""

import copy

import pytest
import torch
import torch_geometric.nn as pyg
from support.hooked import hooked
from support.messages import MAKERS, C, F, N, Pooled, Two, a_graph, deleted, system
from torch_geometric.data import Batch as Graphs
from torch_geometric.data import Data

import graphprune as gp
from graphprune.tasks import nodes, patterns

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
    assert len(model.checked.watched(model.checked.call.data.own_features)[0]) == 2


def test_a_graph_turned_inside_is_the_graph():
    class Turned(Two):
        def forward(self, x, edge_index):
            return self.first(x, edge_index.flip(0))

    module, data = Turned(MAKERS["GraphConv"]).double(), a_graph()
    model, kept = gp.wrap(module, data=data), torch.arange(24) % 3 > 0
    batch = next(nodes(data.x, torch.arange(N) % C).batches())
    for kind in ("zero", "delete"):
        found = model.run(batch, kept.double(), model.reference(batch, gp.Ablation(kind)))
        torch.testing.assert_close(found, deleted(module, data, kept).detach())


def test_hooks_leave_no_trace_in_copies():
    module, _, model, task = system(MAKERS["GAT"])
    gp.EAP().score(model, task)
    twin = copy.deepcopy(module)
    assert hooked(module) == hooked(twin) == []


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
    with pytest.raises(gp.InputError, match="unknown option of Two 'dta'"):
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


# ------------------------------------------------------------------ what no mask follows


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
    with pytest.raises(gp.UnsupportedModelError, match="equals deleting an edge"):
        model.run(batch, torch.full((24,), 0.5), reference)
    kept = torch.arange(24) % 2 == 0
    found = model.run(batch, kept.double(), reference)
    torch.testing.assert_close(found, deleted(module, data, kept).detach())


def test_modules_that_mix_graphs_are_run_on_one_at_a_time():
    class Centred(Two):
        def forward(self, x, edge_index):
            out = super().forward(x, edge_index)
            return out - out.mean(0)

    module, data = Centred(MAKERS["GraphConv"]).double(), a_graph()
    model = gp.wrap(module, data=data)
    batch = next(nodes(data.x, torch.arange(N) % C).batches())
    masks = torch.rand(2, 24, generator=torch.Generator().manual_seed(0)) < 0.5
    for kind in ("zero", "delete"):
        found = model.run(batch, masks.double(), model.reference(batch, gp.Ablation(kind)))
        want = torch.stack([deleted(module, data, kept) for kept in masks]).detach()
        torch.testing.assert_close(found, want)
