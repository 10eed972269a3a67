"""Heterogeneous PyG modules as masked models: against plain PyG on smaller ``HeteroData``."""

import copy

import pytest
import torch
import torch_geometric.nn as pyg
from support.greedy import brute_force, mean_loss
from support.hetero import (
    FIRST,
    F,
    LABELS,
    MAKERS,
    NODES,
    RELATIONS,
    ByHand,
    C,
    Layers,
    Pooled,
    Transformer,
    a_graph,
    bipartite,
    paper_outputs,
)
from torch_geometric.data import Batch as Graphs
from torch_geometric.data import HeteroData

import graphprune as gp
from graphprune.adapters.gnn.passing import convolutions
from graphprune.conformance import adapter_checks, check_method
from graphprune.tasks.graphs import graphs, nodes, patterns


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


# ------------------------------------------------------------------ the graph


def test_nodes_and_edges_are_named_by_type():
    _, data, model, _ = system("GraphConv")
    graph = model.graph
    assert [n.name for n in graph.nodes][FIRST : FIRST + 2] == ["paper:0", "paper:1"]
    assert graph.edge_kinds == tuple("__".join(r) for r in RELATIONS)
    source, target = data[RELATIONS[0]].edge_index[:, 0].tolist()
    assert graph.edge_names[0] == f"author:{source}->paper:{target}<author__writes__paper>"
    assert len(set(graph.edge_names)) == graph.num_edges  # twins differ by their relation
    frame = gp.EdgeMask.full(graph).to_frame()
    counts = frame.groupby("kind", sort=False).size()
    assert counts.to_dict() == {"__".join(r): data[r].edge_index.shape[1] for r in data.edge_types}
    again = gp.ComputationalGraph.from_networkx(graph.to_networkx())
    assert again.fingerprint == graph.fingerprint
    assert model.provenance()["relations"]["paper__cites__paper"] == counts["paper__cites__paper"]


def test_circuits_keep_the_relation(tmp_path):
    _, _, model, task = system("SAGE")
    scores = gp.EAP().score(model, task)
    circuit = gp.Circuit.from_mask(scores.top(20), scores=scores, model=model, task=task)
    circuit.save(tmp_path / "c")
    again = gp.Circuit.load(tmp_path / "c")
    assert again.graph == model.graph
    kinds = {d["kind"] for _, _, d in circuit.to_networkx().edges(data=True)}
    assert kinds <= set(model.graph.edge_kinds)


# ------------------------------------------------------------------ exactness


@pytest.mark.parametrize("name", MAKERS)
def test_an_open_mask_is_the_users_own_output(name):
    module, data, model, task = system(name)
    (batch,) = task.batches()
    want = paper_outputs(module, data)[batch.positions - FIRST]
    for kind in ("counterfactual", "zero", "delete"):
        reference = model.reference(batch, gp.Ablation(kind))
        torch.testing.assert_close(reference.full, want, rtol=0, atol=1e-12)
        found = model.run(batch, gp.EdgeMask.full(model.graph), reference)
        torch.testing.assert_close(found, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MAKERS)
def test_deletion_is_the_smaller_graph(name):
    """Hard and soft: at zeros and ones the differentiable path is PyG on the smaller graph."""
    module, data, model, task = system(name)
    (batch,) = task.batches()
    reference = model.reference(batch, gp.Ablation("delete"))
    for seed in range(3):
        kept = drawn(model, seed)
        want = paper_outputs(module, smaller(data, kept))[batch.positions - FIRST]
        hard = model.run(batch, kept.double(), reference)
        torch.testing.assert_close(hard, want, rtol=0, atol=1e-12)
        soft = model.run(batch, kept.double().requires_grad_(True), reference)
        torch.testing.assert_close(soft.detach(), want, rtol=0, atol=1e-10)
    small = gp.EdgeMask(model.graph, kept.float()).apply(data)
    torch.testing.assert_close(paper_outputs(module, small)[batch.positions - FIRST], want)


@pytest.mark.parametrize("kind", ["zero", "counterfactual", "mean", "delete"])
@pytest.mark.parametrize("name", MAKERS)
def test_gradients_are_finite_differences(name, kind):
    _, _, model, task = system(name)
    (batch,) = task.batches()
    reference = model.reference(batch, gp.methods.resolve_ablation(model, task, kind))
    generator = torch.Generator().manual_seed(3)
    edges = model.graph.num_edges
    mask = (0.3 + 0.4 * torch.rand(edges, generator=generator, dtype=torch.float64)).requires_grad_(
        True
    )
    (gradient,) = torch.autograd.grad(model.run(batch, mask, reference).square().sum(), mask)
    direction = torch.rand(edges, generator=generator, dtype=torch.float64) - 0.5
    ahead, behind = (
        model.run(batch, (mask + s * 1e-5 * direction).detach().requires_grad_(True), reference)
        for s in (1, -1)
    )
    slope = (ahead.square().sum() - behind.square().sum()) / 2e-5
    assert float((gradient * direction).sum()) == pytest.approx(slope.item(), rel=1e-4, abs=1e-7)


def by_hand(module, x, indices, masks, others):
    """Two layers of sums, written out: messages mixed relation by relation."""
    sent = []
    for number, layer in enumerate((module.first, module.second)):
        new = {}
        for at, relation in enumerate(RELATIONS):
            conv = layer.convs[relation]
            (source, target), mask = indices[at], masks[at][:, None]
            message = x[relation[0]][source]
            sent.append(message)
            other = torch.zeros_like(message)
            if others is not None:
                other = others[number * len(RELATIONS) + at]
            message = mask * message + (1 - mask) * other
            read = torch.zeros_like(x[relation[2]]).index_add(0, target, message)
            out = conv.lin_rel(read) + conv.lin_root(x[relation[2]])
            new[relation[2]] = out + new.get(relation[2], 0)
        x = {k: torch.tanh(v) for k, v in new.items()} if number == 0 else new
    return x["paper"].detach(), sent


@pytest.mark.parametrize("kind", ["zero", "counterfactual", "mean", "mean_positional"])
def test_replaced_messages_follow_the_definition(kind):
    module, data, model, task = system("GraphConv")
    (batch,) = task.batches()
    indices = [data[r].edge_index for r in RELATIONS]
    counts = [i.shape[1] for i in indices]
    corrupt = {k: batch.corrupt[f"{k}.x"] for k in NODES}
    ones = [torch.ones(c, dtype=torch.float64) for c in counts]
    _, others = by_hand(module, corrupt, indices, ones, None)
    if kind == "mean":  # of each relation and layer
        others = [sent.mean(0, keepdim=True) for sent in others]
    mask = torch.rand(sum(counts), dtype=torch.float64)
    plain = None if kind == "zero" else others
    want, _ = by_hand(module, data.x_dict, indices, mask.split(counts), plain)
    reference = model.reference(batch, gp.methods.resolve_ablation(model, task, kind))
    found = model.run(batch, mask, reference)
    torch.testing.assert_close(found, want[batch.positions - FIRST])


@pytest.mark.parametrize("check", adapter_checks(), ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", ["GraphConv", "mixed with GCN", "to_hetero SAGE", "by hand"])
def test_it_conforms(check, name):
    _, _, model, task = system(name)
    check(model, task)


@pytest.mark.parametrize("check", adapter_checks(), ids=lambda c: c.__name__)
def test_patterns_conform(check):
    torch.manual_seed(0)
    model = gp.wrap(MAKERS["mixed with GCN"]().double(), data=a_graph())
    generator = torch.Generator().manual_seed(0)
    clean = {
        "paper.x": torch.randn(4, NODES["paper"], F, generator=generator, dtype=torch.float64),
        "author.x": torch.randn(4, NODES["author"], F, generator=generator, dtype=torch.float64),
    }
    check(model, patterns(clean, torch.arange(4) % C, positions=FIRST + torch.arange(4)))


@pytest.mark.parametrize("check", adapter_checks(), ids=lambda c: c.__name__)
def test_batched_graphs_conform(check):
    torch.manual_seed(0)
    data = Graphs.from_data_list([a_graph(seed) for seed in range(4)])
    model = gp.wrap(Pooled().double(), data=data)
    assert model.level == "graph"
    flipped = {f"{k}.x": data[k].x.flip(0) for k in NODES}
    task = graphs(torch.tensor([0, 1, 2, 0]), corrupt=flipped, classes=C)
    (batch,) = task.batches()
    want = model.module(data.x_dict, data.edge_index_dict, data.batch_dict)
    torch.testing.assert_close(model.reference(batch).full, want)
    check(model, task)


def test_a_batch_is_pruned_graph_by_graph():
    torch.manual_seed(0)
    singles = [a_graph(seed) for seed in range(3)]
    data = Graphs.from_data_list(singles)
    module = Pooled().double().eval()
    model = gp.wrap(module, data=data)
    (batch,) = graphs(torch.tensor([0, 1, 2]), classes=C).batches()
    kept = drawn(model, 0)
    small = gp.EdgeMask(model.graph, kept.float()).apply(data)
    want = module(small.x_dict, small.edge_index_dict, small.batch_dict)
    reference = model.reference(batch, gp.Ablation("delete"))
    torch.testing.assert_close(model.run(batch, kept.double(), reference), want.detach())
    parts = small.to_data_list()  # no stale slices
    relation = ("paper", "cites", "paper")
    number = RELATIONS.index(relation)
    first = sum(data[r].edge_index.shape[1] for r in RELATIONS[:number])
    count = singles[0][relation].edge_index.shape[1]
    mine = kept[first : first + count]
    assert torch.equal(parts[0][relation].edge_index, singles[0][relation].edge_index[:, mine])


# ------------------------------------------------------------------ methods


@pytest.mark.parametrize(
    "method",
    [
        gp.EAP(), gp.EAPIG(steps=3), gp.ExactPatching(), gp.InformationFlow(), gp.NAP(),
        gp.EdgePruning(sparsity=0.5, steps=5), gp.UGS(sparsity=0.5, steps=5),
        gp.MatryoshkaPruning(sparsity=0.5, steps=5), gp.SpectralPruning(density=0.7),
        gp.EAP(ablation="delete"), gp.EAP(ablation="mean"),
        gp.EdgePruning(sparsity=0.5, steps=5, ablation="delete"),
        gp.EdgePruning(sparsity=0.5, steps=5, ablation="optimal"),
    ],
    ids=lambda m: m.label,
)  # fmt: skip
def test_methods_of_the_core_run_unchanged(method):
    _, _, model, task = system("mixed with GCN")
    check_method(method, model, task)


def test_acdc_is_the_plain_loop():
    _, _, model, task = system("GraphConv")
    losses = mean_loss(model, task, "kl", "zero")
    for tau in (1e-3, 1e-2):
        rule = gp.ACDC(tau=tau, ablation="zero")
        want = brute_force(losses, model.graph, rule.edge_order(model.graph), tau)
        assert torch.equal(rule.prune(model, task).values.bool(), want)


def test_reports_curves_and_fidelity():
    module, data, model, task = system("by hand")
    scores = gp.EAPIG(steps=3).score(model, task)
    mask = scores.top(0.4)
    report = gp.evaluate(model, task, mask, ablation="delete")
    answer = paper_outputs(module, smaller(data, mask.kept))
    (batch,) = task.batches()
    at = batch.positions - FIRST
    want = (answer[at].argmax(-1) == batch.answer[:, 0]).double().mean()
    assert report["accuracy"] == pytest.approx(float(want))
    curve = gp.faithfulness_curve(model, task, scores, [0.2, 1.0])
    assert curve.to_frame()["faithfulness"].iloc[-1] == pytest.approx(1.0)
    full = paper_outputs(module, data)[at].argmax(-1)
    gone = paper_outputs(module, smaller(data, ~mask.kept))[at].argmax(-1)
    found = gp.fidelity(model, task, mask, ablation="delete")
    assert found.plus == pytest.approx(float((gone != full).double().mean()))


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
        gp.EAP(ablation="delete"), gp.EdgePruning(sparsity=0.5, steps=2, ablation="delete"),
        gp.EdgePruning(sparsity=0.5, steps=2, ablation="optimal"),
    ):  # fmt: skip
        with pytest.raises(gp.UnsupportedModelError, match="no one relation's, as where a layer"):
            method.score(model, task)
    with pytest.raises(gp.UnsupportedModelError, match="mask between 0 and 1"):
        model.run(batch, torch.full((model.graph.num_edges,), 0.5), reference)
    assert not any(part._forward_pre_hooks for part in convolutions(module).values())


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


def test_a_copy_of_twins_is_refused():
    class Copied(ByHand):
        def forward(self, x_dict, edge_index_dict):
            return super().forward(x_dict, {k: v.clone() for k, v in edge_index_dict.items()})

    module = Copied().double().eval()
    gp.wrap(module, data=a_graph(twins=False))  # told by what they hold
    with pytest.raises(gp.UnsupportedModelError, match="reviews__paper have alike"):
        gp.wrap(module, data=a_graph())


def test_keys_of_hetero_conv_do_not_matter():
    """``HeteroConv`` names a part ``<a___to___b>``; another order of its relations is the same."""
    module, data, model, task = system("SAGE")
    assert any("<paper___cites___paper>" in path for path in convolutions(module))
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
    assert len(model.seen(model.source.plain)[0]) == 2 * len(RELATIONS)
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
    calls, _ = model.seen(model.source.plain)
    cites = [c for c in calls if model.source.kinds[c.relation] == "paper__cites__paper"]
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
    for part in convolutions(module).values():
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
    with pytest.raises(gp.InputError, match="node_type is one of author, paper, venue, got 'x'"):
        gp.wrap(module, data=a_graph(), node_type="x")
    with pytest.raises(gp.InputError, match="means must be 'edge' or 'type'"):
        gp.wrap(module, data=a_graph(), means="node")
    lazy = Layers(bipartite(lambda a, b: pyg.SAGEConv((-1, -1), b)))
    with pytest.raises(gp.InputError, match="run it once on the data"):
        gp.wrap(lazy, data=a_graph())
    bare = HeteroData()
    bare["author"].num_nodes = bare["paper"].num_nodes = 3
    bare["author", "writes", "paper"].edge_index = torch.zeros(2, 1, dtype=torch.int64)
    with pytest.raises(gp.InputError, match="no node of the data has features"):
        gp.wrap(module, data=bare)
    (batch,) = patterns({"x": torch.zeros(1, 8, F)}, torch.tensor([0]), corrupt=None).batches()
    model = gp.wrap(module, data=a_graph())
    with pytest.raises(gp.InputError, match=r"the task names 'x'; nodes of the data have: auth"):
        model.reference(batch, gp.Ablation("zero"))
    mask = gp.EdgeMask.full(model.graph)
    with pytest.raises(gp.InputError, match="stand in another order"):
        mask.apply(a_graph(seed=1))


def test_modules_that_mix_graphs_are_refused():
    class Centred(ByHand):
        def forward(self, x_dict, edge_index_dict):
            out = super().forward(x_dict, edge_index_dict)["paper"]
            return out - out.mean(0)

    with pytest.raises(gp.UnsupportedModelError, match="mixes graphs that stand side by side"):
        gp.wrap(Centred().double(), data=a_graph())
