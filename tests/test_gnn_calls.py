"""Modules are run as their users call them: plain PyG on the user's own call is the right value."""

import pytest
import torch
import torch_geometric.nn as pyg
from support.gnn_cases import (
    CASES,
    C,
    D,
    E,
    F,
    FirstOfU,
    HeteroWeights,
    Ids,
    N,
    Net,
    OfBatch,
    U,
    Weighted,
    a_graph,
    drawn,
    hetero,
    pruned,
    wrapped,
)

import graphprune as gp
from graphprune.tasks import nodes, patterns


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
        (Anything, lambda: a_graph(edge_weight=drawn(E)), r"takes any names \(\*\*more\), so"),
        (AnyNames, lambda: a_graph(scale=3.0), "scale=d.scale"),
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
        (AddedByPlace, lambda: a_graph(u=drawn(1, C)), r"module\(d.x, d.edge_index, d.u\)"),
        (DataAndMore, lambda: a_graph(scale=3.0), r"module\(d, more=d.scale\)"),
        (Added, lambda: a_graph(**{f"n{i}": i for i in range(65)}), "more than 64 ways"),
        (Strange, a_graph, r"needs 'feat'"),
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
