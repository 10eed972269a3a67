"""Heterogeneous graphs: what goes wrong in silence elsewhere, and what is refused with a reason."""

import copy

import pytest
import torch
import torch_geometric.nn as pyg
from support.greedy import brute_force, mean_loss
from support.hetero import (
    FIRST,
    LABELS,
    MAKERS,
    NODES,
    RELATIONS,
    ByHand,
    C,
    F,
    Layers,
    Transformer,
    a_graph,
    bipartite,
    drawn,
    paper_outputs,
    smaller,
    system,
)
from torch_geometric.data import HeteroData
from torch_geometric.nn import MessagePassing

import graphprune as gp
from graphprune.tasks import nodes, patterns


def convolutions(module):
    return [part for part in module.modules() if isinstance(part, MessagePassing)]


# ------------------------------------------------------------------ layers that merge relations


def test_merged_relations_are_deleted_and_nothing_else():
    torch.manual_seed(0)
    data, module = a_graph(), Transformer().double().eval()
    model = gp.wrap(module, data=data)
    task = nodes(data, LABELS, node_type="paper")
    (batch,) = task.batches()
    reference = model.reference(batch, gp.Ablation("delete"))
    for seed in range(3):
        kept = drawn(model, seed)
        want = paper_outputs(module, smaller(data, kept))
        torch.testing.assert_close(model.run(batch, kept.double(), reference), want)
    mask = gp.EdgeMask(model.graph, kept.float())
    want = (want.argmax(-1) == LABELS).double().mean()
    found = gp.evaluate(model, task, mask, ablation="delete")["accuracy"]
    assert found == pytest.approx(float(want))
    rule = gp.ACDC(tau=1e-5, ablation="delete")
    want = brute_force(mean_loss(model, task, "kl", "delete"), model.graph,
                       rule.edge_order(model.graph), 1e-5)  # fmt: skip
    assert torch.equal(rule.prune(model, task).values.bool(), want)
    assert 0 < want.sum() < model.graph.num_edges
    assert gp.ExactPatching(ablation="delete").score(model, task).values.abs().sum() > 0
    for method in (
        gp.EAP(), gp.EAP(ablation="zero"), gp.EAP(ablation="mean"), gp.InformationFlow(),
        gp.EdgePruning(sparsity=0.5, steps=2, ablation="optimal"),
    ):  # fmt: skip
        with pytest.raises(gp.UnsupportedModelError, match="no one relation's, as where a layer"):
            method.score(model, task)
    # Sums over edges are known, so that masks between 0 and 1 have gradients under deletion.
    ones = torch.ones(model.graph.num_edges, dtype=torch.float64)
    scores = gp.EAP(ablation="delete").score(model, task).values
    for edge in range(0, model.graph.num_edges, 7):
        step = torch.zeros_like(ones).index_fill(0, torch.tensor([edge]), 1e-6)
        low, high = (
            task.metric(model.run(batch, ones - s * step, reference), batch).mean() for s in (2, 1)
        )
        assert float(scores[edge]) == pytest.approx(float((high - low) / 1e-6), rel=1e-3, abs=1e-6)
    assert not any(part._forward_pre_hooks for part in convolutions(module))


# ------------------------------------------------------------------ silent traps


def test_twin_relations_are_told_apart():
    """Two relations with the same numbers: a mask on one leaves the other alone."""
    module, data, model, task = system("GraphConv")
    kinds = model.graph.edge_kind
    (batch,) = task.batches()
    reference = model.reference(batch, gp.Ablation("zero"))
    outs = []
    for name in ("author__writes__paper", "author__reviews__paper"):
        kept = kinds != model.graph.edge_kinds.index(name)
        found = model.run(batch, kept.double(), reference)
        want = paper_outputs(module, smaller(data, kept))[batch.positions - FIRST]
        torch.testing.assert_close(found, want)
        outs.append(found)
    assert not torch.allclose(*outs)


def test_a_relation_turned_is_not_taken_for_its_reverse():
    """With ``rev_writes`` in the data a layer may use ``writes`` backwards: not the same edges."""
    data = a_graph()
    forth, back = ("author", "writes", "paper"), ("paper", "written_by", "author")
    data[back].edge_index = data[forth].edge_index.flip(0)

    class Turned(ByHand):
        def forward(self, x_dict, edge_index_dict):
            return super().forward(
                x_dict, {**edge_index_dict, back: edge_index_dict[forth].flip(0)}
            )

    module = Turned().double().eval()
    model = gp.wrap(module, data=data)
    task = nodes(data, LABELS, node_type="paper")
    (batch,) = task.batches()
    with pytest.raises(gp.UnsupportedModelError, match="such as paper__written_by__author has"):
        model.run(batch, torch.ones(model.graph.num_edges), model.reference(batch))
    reference = model.reference(batch, gp.Ablation("delete"))
    kept = model.graph.edge_kind != 0
    want = paper_outputs(module, smaller(data, kept))
    torch.testing.assert_close(model.run(batch, kept.double(), reference), want)
    unread = model.graph.edge_kind != 1  # written_by itself is never used
    found = model.run(batch, unread.double(), reference)
    torch.testing.assert_close(found, reference.full)


def test_keys_of_hetero_conv_do_not_matter():
    """``HeteroConv`` names a part ``<a___to___b>``; another order of its relations is the same."""
    module, data, model, task = system("SAGE")
    assert any("<paper___cites___paper>" in path for path, _ in module.named_modules())
    twin = copy.deepcopy(module)
    for layer in (twin.first, twin.second):
        convs = {r: layer.convs[r] for r in reversed(RELATIONS)}
        layer.convs = type(layer.convs)(convs)
    turned = gp.wrap(twin, data=data)
    assert turned.graph == model.graph
    torch.testing.assert_close(
        gp.EAP().score(turned, task).values, gp.EAP().score(model, task).values
    )


def test_sorted_edge_indices_lose_their_fused_path():
    from torch_geometric import EdgeIndex

    module, data, _, task = system("GraphConv")
    for kind, index in data.edge_index_dict.items():
        order = torch.argsort(index[1], stable=True)
        data[kind].edge_index = EdgeIndex(
            index[:, order], sort_order="col", sparse_size=(NODES[kind[0]], NODES[kind[2]])
        )
    model = gp.wrap(module, data=data)
    assert len(model.checked.watched(model.checked.call.data.own_features)[0]) == 2 * len(RELATIONS)
    assert (gp.EAP().score(model, task).values != 0).any()


@pytest.mark.filterwarnings("ignore:Sparse (invariant|CSC):UserWarning")
def test_fused_paths_inside_are_refused():
    """A module that hands its layers a sorted ``EdgeIndex`` would pass no messages at all."""
    from torch_geometric import EdgeIndex

    class Sorted(ByHand):
        def forward(self, x_dict, edge_index_dict):
            made = {}
            for kind, index in edge_index_dict.items():
                size = (len(x_dict[kind[0]]), len(x_dict[kind[2]]))
                made[kind] = EdgeIndex(index, sort_order="col", sparse_size=size)
            return super().forward(x_dict, made)

    data = a_graph(twins=False)
    for kind, index in data.edge_index_dict.items():
        data[kind].edge_index = index[:, torch.argsort(index[1], stable=True)]
    for kind in NODES:
        data[kind].x = data[kind].x.float()  # what sparse products take
    sums = Sorted(lambda a, b: pyg.GraphConv((a, a), b)).eval()
    with pytest.raises(gp.UnsupportedModelError, match="a fused path"):
        gp.wrap(sums, data=data)


def test_self_loops_inside_hetero_layers():
    """On one type a layer's own loops are no edges; between types they are refused."""
    module, _, model, _ = system("mixed with GCN")
    calls, _ = model.checked.watched(model.checked.call.data.own_features)
    cites = [
        c
        for c in calls
        if model.checked.call.data.relation_names[c.relation] == "paper__cites__paper"
    ]
    assert [int((c.edges < 0).sum()) for c in cites] == [NODES["paper"]] * 2
    looped = a_graph(loops=True)
    index = looped["paper", "cites", "paper"].edge_index
    assert (index[0] == index[1]).any()
    with pytest.raises(gp.InputError, match="Strip them first"):
        gp.wrap(module, data=looped)
    loose = ByHand(lambda a, b: pyg.GATConv((a, a), b)).double()
    with pytest.raises(gp.UnsupportedModelError, match="ends are of two types"):
        gp.wrap(loose, data=a_graph())


def test_hooks_are_gone_after_a_refusal():
    module = MAKERS["GraphConv"]().double()
    model = gp.wrap(module, data=a_graph())
    task = nodes(a_graph(), LABELS, node_type="paper")
    (batch,) = task.batches()

    def fails(outputs):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        model.edge_gradients(batch, fails)
    for part in convolutions(module):
        for hooks in (
            part._forward_pre_hooks,
            part._forward_hooks,
            part._message_forward_hooks,
            part._propagate_forward_pre_hooks,
            part._propagate_forward_hooks,
        ):
            assert not hooks  # fmt: skip


# ------------------------------------------------------------------ what is asked, what is refused


def test_outputs_by_type_are_read_where_the_task_asks():
    module, data, model, _ = system("by hand")
    out = module(data.x_dict, data.edge_index_dict)
    for kind, first in (("author", 0), ("paper", FIRST), ("venue", FIRST + NODES["paper"])):
        task = nodes(data, torch.arange(NODES[kind]) % C, node_type=kind)
        (batch,) = task.batches()
        assert batch.positions[0] == first
        full = model.reference(batch, gp.Ablation("zero")).full
        torch.testing.assert_close(full, out[kind].detach())
    only = gp.wrap(module, data=data, node_type="paper")
    (batch,) = nodes(data, torch.arange(5) % C, node_type="author").batches()
    with pytest.raises(gp.InputError, match="outputs are of paper alone"):
        only.run(batch, torch.ones(model.graph.num_edges))


def test_labels_stand_in_the_data():
    data = a_graph()
    data["paper"].y = LABELS
    (batch,) = nodes(data).batches()
    assert batch.positions.tolist() == [FIRST + i for i in range(NODES["paper"])]
    assert batch.answer[:, 0].tolist() == LABELS.tolist()
    moved = nodes(data, corrupt={"author": data["author"].x.flip(0)})
    (batch,) = moved.batches()
    assert torch.equal(batch.corrupt["author.x"], data["author"].x.flip(0))
    assert torch.equal(batch.corrupt["paper.x"], data["paper"].x)
    with pytest.raises(gp.InputError, match="one of author, paper, venue; got 'book'"):
        nodes(data, LABELS, node_type="book")
    with pytest.raises(gp.InputError, match=r"labels of author must be \[5\], got \[8\]"):
        nodes(data, LABELS, node_type="author")
    with pytest.raises(gp.InputError, match="has no y"):
        nodes(data, node_type="venue")
    with pytest.raises(gp.InputError, match="none was given"):
        nodes(a_graph(), LABELS)
    with pytest.raises(gp.InputError, match="node_type is for heterogeneous data"):
        nodes(torch.eye(3), torch.arange(3), node_type="paper")


def test_edge_attributes_and_plain_data_go_along():
    class Weighted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = pyg.GraphConv((F, F), C)

        def forward(self, x_dict, edge_index_dict, edge_weight_dict):
            kind = ("author", "writes", "paper")
            pair = (x_dict["author"], x_dict["paper"])
            return self.conv(pair, edge_index_dict[kind], edge_weight_dict[kind])

    torch.manual_seed(0)
    data, module = a_graph(), Weighted().double().eval()
    kind = ("author", "writes", "paper")
    data[kind].edge_weight = torch.rand(data[kind].edge_index.shape[1], dtype=torch.float64)
    task = nodes(data, LABELS, node_type="paper")
    (batch,) = task.batches()
    found = []
    for model in (
        gp.wrap(module, data=data),
        gp.wrap(
            module,
            data=data,
            forward=lambda m, d: m(d.x_dict, d.edge_index_dict, d.edge_weight_dict),
        ),
    ):
        kept = drawn(model, 1)
        small = smaller(data, kept)
        want = module(small.x_dict, small.edge_index_dict, small.edge_weight_dict).detach()
        reference = model.reference(batch, gp.Ablation("delete"))
        torch.testing.assert_close(model.run(batch, kept.double(), reference), want)
        found.append(gp.EAP().score(model, task).values)
        used = model.graph.edge_kind == 0  # the module reads one relation: others count nothing
        assert (found[-1][~used] == 0).all()
        assert (found[-1][used] != 0).any()
        gp.InformationFlow().score(model, task)
    torch.testing.assert_close(*found)


def test_bad_input():
    module = MAKERS["GraphConv"]().double()
    data = a_graph()
    data["paper"].x[0, 0] = float("nan")
    with pytest.raises(gp.InputError, match=r"data\['paper'\]\.x holds NaN"):
        gp.wrap(module, data=data)
    data = a_graph()
    data["author", "writes", "paper"].edge_index[0, 0] = 5
    with pytest.raises(gp.InputError, match=r"'writes', 'paper'\]\.edge_index names a node"):
        gp.wrap(module, data=data)
    data = a_graph()
    del data["author", "writes", "paper"].edge_index
    data["author", "writes", "paper"].adj_t = torch.eye(3)
    with pytest.raises(gp.InputError, match="edge_index as a plain tensor"):
        gp.wrap(module, data=data)
    with pytest.raises(gp.InputError, match="unknown node_type 'x'; known: author, paper, venue"):
        gp.wrap(module, data=a_graph(), node_type="x")
    with pytest.raises(gp.InputError, match="unknown means"):
        gp.wrap(module, data=a_graph(), means="node")
    lazy = Layers(bipartite(lambda a, b: pyg.SAGEConv((-1, -1), b)))
    with pytest.raises(gp.InputError, match="run it once on the data"):
        gp.wrap(lazy, data=a_graph())
    bare = HeteroData()
    bare["author"].num_nodes = bare["paper"].num_nodes = 3
    bare["author", "writes", "paper"].edge_index = torch.zeros(2, 1, dtype=torch.int64)
    with pytest.raises(gp.InputError, match="needs 'x_dict', which the data has no"):
        gp.wrap(module, data=bare)
    (batch,) = patterns({"x": torch.zeros(1, 8, F)}, torch.tensor([0]), corrupt=None).batches()
    model = gp.wrap(module, data=a_graph())
    with pytest.raises(gp.InputError, match=r"the task names 'x'; nodes of the data have: auth"):
        model.reference(batch, gp.Ablation("zero"))
    mask = gp.EdgeMask.full(model.graph)
    with pytest.raises(gp.InputError, match="stand in another order"):
        mask.apply(a_graph(seed=1))


def test_modules_that_mix_graphs_are_run_on_one_at_a_time():
    class Centred(ByHand):
        def forward(self, x_dict, edge_index_dict):
            out = super().forward(x_dict, edge_index_dict)["paper"]
            return out - out.mean(0)

    module, data = Centred().double(), a_graph()
    model = gp.wrap(module, data=data)
    (batch,) = nodes(data, LABELS, node_type="paper").batches()
    kept = torch.stack([drawn(model, seed) for seed in range(2)])
    found = model.run(batch, kept.double(), model.reference(batch, gp.Ablation("delete")))
    want = [paper_outputs(module, smaller(data, row)) for row in kept]
    torch.testing.assert_close(found, torch.stack(want))


class WithTable(torch.nn.Module):
    """Papers also have a topic, a row of a table, by an attribute that PyG takes for nodes."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(4, F)
        self.body = MAKERS["SAGE"]()

    def forward(self, x_dict, edge_index_dict, topic_index_dict):
        topics = self.table(topic_index_dict["paper"])
        return self.body({**x_dict, "paper": x_dict["paper"] + topics}, edge_index_dict)


def test_ids_under_an_index_name_stay_from_copy_to_copy():
    """Moved along as numbers of nodes they would leave the table."""
    torch.manual_seed(0)
    data, module = a_graph(), WithTable().double().eval()
    data["paper"].topic_index = torch.arange(NODES["paper"]) % 4
    model = gp.wrap(module, data=data)
    (batch,) = nodes(data, LABELS, node_type="paper").batches()
    rows = torch.stack([drawn(model, seed) for seed in range(2)])
    found = model.run(batch, rows.double(), model.reference(batch, gp.Ablation("delete")))
    for kept, out in zip(rows, found, strict=True):
        small = smaller(data, kept)
        want = module(small.x_dict, small.edge_index_dict, small.topic_index_dict)
        torch.testing.assert_close(out, want.detach())
