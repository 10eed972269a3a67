"""Graph, mask, scores and selection against brute force."""

from functools import cache

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny import tiny
from transformer_graph import transformer_graph

import graphprune as gp

TWO = {"num_attention_heads": 2}
MODELS = {
    "plain": lambda: gp.wrap(tiny("gpt2", **TWO)),
    "grouped": lambda: gp.wrap(tiny("llama")),
    "coupled": lambda: gp.wrap(tiny("gemma2", **TWO)),
    "parallel": lambda: gp.wrap(tiny("gpt_neox", num_hidden_layers=3, **TWO)),
    "two embeddings": lambda: gp.wrap(tiny("gpt2", **TWO), embedding_nodes=2),
}


@cache
def graph_of(name):
    return MODELS[name]().graph


@pytest.fixture(params=MODELS, scope="module")
def graph(request):
    return graph_of(request.param)


def random_mask(graph, density, seed):
    generator = torch.Generator().manual_seed(seed)
    return gp.EdgeMask(graph, (torch.rand(graph.num_edges, generator=generator) < density).float())


def alive_by_paths(graph, mask, *, from_inputs=True):
    """Edges on an input-output path, by networkx reachability over a contracted graph."""
    group = graph.representative
    walk = nx.DiGraph()
    walk.add_nodes_from(group.tolist())
    kept = torch.nonzero(mask.kept)[:, 0].tolist()
    for e in kept:
        u, v = graph.edge_index[:, e].tolist()
        walk.add_edge(int(group[u]), int(group[v]))
    for u, v in graph.fixed_edge_index.T.tolist():
        walk.add_edge(int(group[u]), int(group[v]))
    forward, back = set(), set()
    for n in graph.input_nodes:
        forward |= {int(group[n])} | nx.descendants(walk, int(group[n]))
    for n in graph.output_nodes:
        back |= {int(group[n])} | nx.ancestors(walk, int(group[n]))
    return {
        e
        for e in kept
        if (not from_inputs or int(group[graph.edge_index[0, e]]) in forward)
        and int(group[graph.edge_index[1, e]]) in back
    }


@pytest.mark.parametrize("density", [0.02, 0.1, 0.3])
def test_dead_ends_are_what_lies_on_no_path(graph, density):
    for seed in range(10):
        mask = random_mask(graph, density, seed)
        pruned = mask.prune_dead_ends()
        want = alive_by_paths(graph, mask)
        assert set(torch.nonzero(pruned.kept)[:, 0].tolist()) == want
        assert pruned.prune_dead_ends() == pruned
        assert mask.connected() == bool(want)
        leading = mask.prune_dead_ends(from_inputs=False)
        want = alive_by_paths(graph, mask, from_inputs=False)
        assert set(torch.nonzero(leading.kept)[:, 0].tolist()) == want


def test_a_grouped_reader_lives_through_its_heads():
    """kv1 feeds heads 2 and 3: an edge into it is alive exactly if one of them is used."""
    graph = graph_of("grouped")
    used = ["input->a0.kv1<v>", "a0.h3->logits"]
    assert gp.EdgeMask.from_edges(graph, used).prune_dead_ends().num_kept == 2
    other = ["input->a0.kv0<v>", "a0.h3->logits"]
    assert gp.EdgeMask.from_edges(graph, other).prune_dead_ends().num_kept == 0


def test_a_coupled_group_counts_as_one_node():
    graph = graph_of("coupled")
    names = ["input->a0.h0<q>", "a0.h1->logits"]
    assert gp.EdgeMask.from_edges(graph, names).prune_dead_ends().num_kept == 2
    plain = graph_of("plain")
    assert gp.EdgeMask.from_edges(plain, names).prune_dead_ends().num_kept == 0


def greedy_by_hand(graph, values, count):
    """EAP-IG's greedy construction, one edge at a time over all candidates."""
    group = graph.representative
    inside = {int(group[n]) for n in graph.output_nodes}
    chosen = []

    def close():
        grown = True
        while grown:
            grown = False
            for u, v in graph.fixed_edge_index.T.tolist():
                if int(group[v]) in inside and int(group[u]) not in inside:
                    inside.add(int(group[u]))
                    grown = True

    close()
    for _ in range(count):
        options = [
            e
            for e in range(graph.num_edges)
            if e not in chosen and int(group[graph.edge_index[1, e]]) in inside
        ]
        if not options:
            break
        best = max(options, key=lambda e: (float(values[e]), -e))
        chosen.append(best)
        inside.add(int(group[graph.edge_index[0, best]]))
        close()
    return set(chosen)


def test_greedy_by_hand(graph):
    for seed in range(4):
        values = torch.randn(graph.num_edges, generator=torch.Generator().manual_seed(seed))
        scores = gp.EdgeScores(graph, values)
        for count in (1, 5, 17, graph.num_edges):
            for by, ranked in (("abs", values.abs()), ("signed", values)):
                mask = scores.greedy(count, by=by)
                assert set(torch.nonzero(mask.kept)[:, 0].tolist()) == greedy_by_hand(
                    graph, ranked, count
                )
                assert mask.num_kept == count


def test_counts_are_mibs():
    """An int is a count, a float int(f * E); ties are taken in graph order."""
    graph = transformer_graph(12, 12)
    scores = gp.EdgeScores(graph, torch.zeros(graph.num_edges))
    for f, want in ((0.001, 32), (0.01, 324), (0.5, 16245), (1.0, 32491)):
        assert scores.top(f).num_kept == want
    assert scores.top(3).edges() == list(graph.edge_names[:3])
    for bad in (0.0, -0.1, 1.5, 40_000, -1, "x", True, float("nan")):
        with pytest.raises(gp.InputError):
            scores.top(bad)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_masks_are_sets(rows):
    graph = gp.ComputationalGraph.from_edges([("a", "b")] * len(rows))
    left, right = (gp.EdgeMask(graph, [float(r[i]) for r in rows]) for i in (0, 1))
    a, b = ({i for i, r in enumerate(rows) if r[k]} for k in (0, 1))

    def members(mask):
        return set(torch.nonzero(mask.kept)[:, 0].tolist())

    assert members(left & right) == a & b
    assert members(left | right) == a | b
    assert members(left - right) == a - b
    assert members(left ^ right) == a ^ b
    assert members(~left) == set(range(len(rows))) - a
    assert left.jaccard(right) == (len(a & b) / len(a | b) if a | b else 1.0)
    assert left.density + left.sparsity == 1


def test_graphs_survive_networkx(graph):
    back = gp.ComputationalGraph.from_networkx(graph.to_networkx())
    assert back == graph
    assert list(back.edge_names) == list(graph.edge_names)
    assert back.groups == graph.groups
    assert gp.ComputationalGraph.from_pyg(graph.to_pyg()).num_edges == graph.num_edges


def test_any_directed_networkx_graph_is_taken_in_its_edge_order():
    source = nx.gnp_random_graph(12, 0.3, seed=1, directed=True)
    nx.set_edge_attributes(source, 7, "number")
    graph = gp.ComputationalGraph.from_networkx(source)
    assert graph.edge_index.T.tolist() == [list(e) for e in source.edges]
    assert graph.is_acyclic == nx.is_directed_acyclic_graph(source)
    acyclic = nx.DiGraph([(u, v) for u, v in source.edges if u < v])
    ours = gp.ComputationalGraph.from_networkx(acyclic)
    assert ours.is_acyclic
    want = {}
    for node in nx.topological_sort(acyclic):
        want[str(node)] = max((want[str(p)] + 1 for p in acyclic.predecessors(node)), default=0)
    assert {n.name: int(d) for n, d in zip(ours.nodes, ours.depth, strict=True)} == want
    with pytest.raises(gp.InputError, match="undirected"):
        gp.ComputationalGraph.from_networkx(nx.path_graph(3))


def test_fingerprints_tell_graphs_apart():
    seen = {graph_of(name).fingerprint for name in MODELS}
    assert len(seen) == len(MODELS)
    assert transformer_graph(2, 2) == transformer_graph(2, 2)


def test_names_follow_the_field():
    grouped = graph_of("grouped")
    for name in ("input->a0.h1<q>", "input->a0.kv1<k>", "a0.h3->m0", "m0->a1.kv0<v>", "m1->logits"):
        assert name in grouped.edge_number
        assert grouped.edge_names[grouped.edge_number[name]] == name
    assert list(grouped.edge_names)[5:8] == grouped.edge_names[5:8]
    frame = gp.EdgeMask.full(grouped).to_frame()
    assert list(frame.columns) == ["edge", "source", "target", "kind", "kept"]
    scores = gp.Random().score(type("M", (), {"graph": grouped})(), None).to_frame()
    assert list(scores.columns) == ["edge", "source", "target", "kind", "score"]


@pytest.mark.parametrize("name", ["edge", "source", "target", "kind", "kept", "score"])
def test_further_numbers_of_a_result_do_not_hide_its_columns(name):
    graph = gp.ComputationalGraph.from_edges([("a", "b"), ("b", "c")])
    scores = gp.EdgeScores(graph, torch.tensor([1.0, 2.0]))
    gates = {"gates": torch.tensor([5.0, 6.0])}
    frame = gp.Result(scores.top(1), scores, values=gates).to_frame()
    assert list(frame.columns) == ["edge", "source", "target", "kind", "kept", "score", "gates"]
    assert frame.score.tolist() == [1.0, 2.0]
    hiding = gp.Result(scores.top(1), scores, values={name: torch.zeros(2)})
    with pytest.raises(gp.InputError, match=f"column '{name}'"):
        hiding.to_frame()


def test_errors_inside_a_method_are_its_own():
    with pytest.raises(gp.InputError, match="does not take these settings"):
        gp.make_method("eap", no_such_setting=1)


def test_bad_values_are_refused():
    graph = gp.ComputationalGraph.from_edges([("a", "b"), ("b", "c")])
    with pytest.raises(gp.InputError, match="needs 2 values"):
        gp.EdgeMask(graph, [1.0])
    with pytest.raises(gp.InputError, match=r"\[0, 1\]"):
        gp.EdgeMask(graph, [0.5, 1.5])
    with pytest.raises(gp.NumericalError, match="1 of 2"):
        gp.EdgeMask(graph, [0.5, np.nan])
    with pytest.raises(gp.NumericalError, match="first at 1"):
        gp.EdgeScores(graph, torch.tensor([0.0, float("inf")]))
    with pytest.raises(gp.InputError, match="unknown edge 'x'"):
        gp.EdgeMask.from_edges(graph, ["x"])
    with pytest.raises(gp.InputError, match="unique"):
        gp.ComputationalGraph.from_edges([("a", "b")], nodes=["a", "b", "a"])
    with pytest.raises(gp.InputError, match="unknown by 'size'"):
        gp.EdgeScores(graph, torch.ones(2)).top(1, by="size")


def test_node_circuits_keep_edges_between_kept_nodes():
    graph = graph_of("grouped")
    values = torch.zeros(graph.num_nodes)
    for name, value in (("input", 3.0), ("a1.h3", -2.0), ("m0", 1.0), ("a0.h0", 0.1)):
        values[graph.node_number[name]] = value
    mask = gp.NodeScores(graph, values).top(3)
    want = {
        "input->a1.h3<q>",
        "input->a1.kv1<k>",
        "input->a1.kv1<v>",
        "input->m0",
        "input->logits",
        "m0->a1.h3<q>",
        "m0->a1.kv1<k>",
        "m0->a1.kv1<v>",
        "m0->logits",
        "a1.h3->logits",
    }
    assert set(mask.edges()) == want
    signed = gp.NodeScores(graph, values).top(2, by="signed")
    assert "a1.h3->logits" not in signed.edges()
