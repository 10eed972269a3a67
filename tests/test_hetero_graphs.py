"""Heterogeneous PyG modules as masked models: against plain PyG on smaller ``HeteroData``."""

import networkx as nx
import pytest
import torch
from support.greedy import brute_force, mean_loss
from support.hetero import (
    FIRST,
    MAKERS,
    NODES,
    RELATIONS,
    C,
    F,
    Pooled,
    a_graph,
    drawn,
    paper_outputs,
    smaller,
    system,
)
from torch_geometric.data import Batch as Graphs

import graphprune as gp
from graphprune.conformance import check_adapter, check_method
from graphprune.export import export
from graphprune.tasks import graphs, patterns

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
    network = circuit.to_networkx()
    kinds = {d["kind"] for _, _, d in network.edges(data=True)}
    assert kinds <= set(model.graph.edge_kinds)
    for suffix in ("gexf", "json", "cyjs", "dot", "csv", "html"):
        assert export(circuit, tmp_path / f"c.{suffix}").stat().st_size > 0
    again = nx.read_graphml(export(circuit, tmp_path / "c.graphml"))
    names = sorted(d["name"] for _, _, d in again.edges(data=True))
    assert names == sorted(circuit.mask.edges())


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


@pytest.mark.parametrize("name", ["GraphConv", "mixed with GCN", "to_hetero SAGE", "by hand"])
def test_it_conforms(name):
    _, _, model, task = system(name)
    check_adapter(model, task)


def test_patterns_conform():
    torch.manual_seed(0)
    model = gp.wrap(MAKERS["mixed with GCN"]().double(), data=a_graph())
    generator = torch.Generator().manual_seed(0)
    clean = {
        "paper.x": torch.randn(4, NODES["paper"], F, generator=generator, dtype=torch.float64),
        "author.x": torch.randn(4, NODES["author"], F, generator=generator, dtype=torch.float64),
    }
    check_adapter(model, patterns(clean, torch.arange(4) % C, positions=FIRST + torch.arange(4)))


def test_batched_graphs_conform():
    torch.manual_seed(0)
    data = Graphs.from_data_list([a_graph(seed) for seed in range(4)])
    model = gp.wrap(Pooled().double(), data=data)
    assert model.level == "graph"
    flipped = {f"{k}.x": data[k].x.flip(0) for k in NODES}
    task = graphs(torch.tensor([0, 1, 2, 0]), corrupt=flipped, classes=C)
    (batch,) = task.batches()
    want = model.module(data.x_dict, data.edge_index_dict, data.batch_dict)
    torch.testing.assert_close(model.reference(batch).full, want)
    check_adapter(model, task)


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
        gp.MatryoshkaPruning(sparsity=0.5, steps=5), gp.SpectralPruning(size=0.7),
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
    assert report["accuracy"] == report["top1_accuracy"] == pytest.approx(float(want))
    own = paper_outputs(module, data)[at].argmax(-1)
    match = (answer[at].argmax(-1) == own).double().mean()
    assert report["top1_match"] == report["exact_match"] == pytest.approx(float(match))
    curve = gp.faithfulness_curve(model, task, scores, [0.2, 1.0])
    assert curve.to_frame()["faithfulness"].iloc[-1] == pytest.approx(1.0)
    full = paper_outputs(module, data)[at].argmax(-1)
    gone = paper_outputs(module, smaller(data, ~mask.kept))[at].argmax(-1)
    found = gp.fidelity(model, task, mask, ablation="delete")
    assert found.plus == pytest.approx(float((gone != full).double().mean()))
