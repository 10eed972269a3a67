"""Selections of exact sizes, against every subset of small graphs and against plain formulas."""

from __future__ import annotations

import itertools
import math

import networkx as nx
import numpy as np
import pytest
import torch
from support.cli import call, out_of, save_model
from transformer_graph import random_scores, transformer_graph

import graphprune as gp
from graphprune import ComputationalGraph, Node


def drawn(seed, nodes=6, edges=10, *, acyclic=True, wires=0, group=False):
    """A random graph; an edge's ends are drawn apart from scores."""
    generator = np.random.default_rng(seed)
    pairs = [(u, v) for u in range(nodes) for v in range(nodes) if u < v or (not acyclic and u > v)]
    chosen = generator.permutation(len(pairs))[:edges]
    index = torch.tensor([pairs[i] for i in chosen]).T
    fixed = [
        pairs[i] for i in generator.permutation(len(pairs))[:wires] if pairs[i][0] < pairs[i][1]
    ]
    return ComputationalGraph(
        nodes=tuple(Node(f"n{i}") for i in range(nodes)),
        edge_index=index,
        edge_kind=torch.zeros(edges, dtype=torch.uint8),
        fixed_edge_index=torch.tensor(fixed, dtype=torch.int64).reshape(-1, 2).T,
        groups=((2, 3),) if group else (),
        inputs=(0,),
        outputs=(nodes - 1,),
    )


def all_alive(graph, edges, from_inputs=True):
    """Whether every edge lies on a path, by networkx: groups one node, wires always there."""
    group = {n: min(g) for g in graph.groups for n in g}
    name = [group.get(i, i) for i in range(graph.num_nodes)]
    index = graph.edge_index.tolist()
    whole = nx.DiGraph()
    whole.add_nodes_from(name)
    kept = [(name[index[0][e]], name[index[1][e]]) for e in edges]
    whole.add_edges_from(kept)
    whole.add_edges_from((name[u], name[v]) for u, v in graph.fixed_edge_index.T.tolist())
    source, sink = name[graph.input_nodes[0]], name[graph.output_nodes[0]]
    after = nx.descendants(whole, source) | {source}
    before = nx.ancestors(whole, sink) | {sink}
    return all((u in after or not from_inputs) and v in before for u, v in kept)


def best_by_force(graph, values, count, from_inputs=True):
    best = -math.inf
    for edges in itertools.combinations(range(graph.num_edges), count):
        total = float(values[list(edges)].sum())
        if total > best and all_alive(graph, edges, from_inputs):
            best = total
    return best


KINDS = {
    "acyclic": {},
    "cyclic": {"acyclic": False, "edges": 11},
    "wires": {"wires": 3, "edges": 9},
    "group": {"group": True},
    "everything": {"acyclic": False, "wires": 2, "group": True, "edges": 10},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("from_inputs", [True, False])
def test_the_programme_finds_the_best_of_all_circuits(kind, from_inputs):
    feasible = 0
    for seed in range(3):
        graph = drawn(seed, **KINDS[kind])
        scores = random_scores(graph, seed + 50)
        for count in range(1, graph.num_edges + 1):
            for by in ("abs", "signed"):
                values = scores.values.abs() if by == "abs" else scores.values
                best = best_by_force(graph, values, count, from_inputs=from_inputs)
                if best == -math.inf:
                    with pytest.raises(gp.InputError, match=f"infeasible: .* exactly {count} edge"):
                        scores.ilp(count, by, from_inputs=from_inputs)
                    continue
                feasible += 1
                mask = scores.ilp(count, by, from_inputs=from_inputs)
                chosen = torch.nonzero(mask.kept)[:, 0].tolist()
                assert len(chosen) == count
                assert all_alive(graph, chosen, from_inputs)
                assert float(values[chosen].sum()) == pytest.approx(best, rel=1e-6)
    assert feasible > 20


def test_cycles_are_not_circuits():
    """A cycle apart supports itself; only the cut rows of cyclic graphs tell."""
    graph = ComputationalGraph.from_edges(
        [("a", "z"), ("b", "c"), ("c", "b"), ("c", "z"), ("a", "b")],
        nodes=["a", "b", "c", "z"], inputs=(0,), outputs=(3,),
    )  # fmt: skip
    scores = gp.EdgeScores(graph, torch.tensor([1.0, 9.0, 9.0, 9.0, 0.1]))
    assert scores.ilp(3).edges() == ["b->c", "c->z", "a->b"]
    assert scores.ilp(4).edges() == ["b->c", "c->b", "c->z", "a->b"]


def test_the_programme_with_positives():
    found = 0
    for seed in range(8):
        graph = drawn(seed, nodes=5, edges=9)
        scores = random_scores(graph, seed + 9)
        for count in range(2, 8):
            least = math.ceil(0.6 * count)
            values = scores.values
            if int((values > 0).sum()) < least:
                with pytest.raises(gp.InputError, match=r"only \d edges score above 0"):
                    scores.ilp(count, positives=0.6)
                continue
            best = -math.inf
            for edges in itertools.combinations(range(9), count):
                if all_alive(graph, edges) and int((values[list(edges)] > 0).sum()) >= least:
                    best = max(best, float(values[list(edges)].abs().sum()))
            if best == -math.inf:
                with pytest.raises(gp.InputError, match="of them with a score above 0"):
                    scores.ilp(count, positives=0.6)
                continue
            mask = scores.ilp(count, positives=0.6)
            assert int((values[mask.kept] > 0).sum()) >= least
            assert float(values[mask.kept].abs().sum()) == pytest.approx(best)
            found += 1
    assert found > 10


def test_scores_of_any_unit_give_the_same_programme():
    """Attributions are around 1e-6; a solver's tolerances are absolute."""
    graph = transformer_graph(2, 3)
    values = random_scores(graph, 3).values.sort().values[torch.randperm(graph.num_edges)]
    values = values.sign() * 10.0 ** torch.linspace(-7, 0, graph.num_edges)
    for count in (10, 60):
        whole = gp.EdgeScores(graph, values).ilp(count)
        assert gp.EdgeScores(graph, values * 1e-6).ilp(count) == whole
        assert whole.num_kept == count
        assert whole.prune_dead_ends() == whole


def test_sizes_the_programme_refuses():
    graph = transformer_graph(1, 2)
    scores = random_scores(graph)
    with pytest.raises(gp.InputError, match="from 0 to 13, got 14"):
        scores.ilp(graph.num_edges + 1)
    with pytest.raises(gp.InputError, match=r"positives must be a share in \(0, 1\], got 1.5"):
        scores.ilp(3, positives=1.5)
    # A graph whose only circuits have two or four edges.
    square = ComputationalGraph.from_edges([("a", "b"), ("b", "d"), ("a", "c"), ("c", "d")])
    with pytest.raises(gp.InputError, match="has exactly 3 edges, each on a path from an input"):
        random_scores(square).ilp(3)


# -------------------------------------------------------------------- rules


@pytest.mark.parametrize("rule", ["pnr", "connected", "influence"])
def test_rules_keep_exactly_so_many_and_no_dead_ends(rule):
    graph = transformer_graph(3, 4, 2)
    scores = random_scores(graph, 4)
    for count in (2, 17, 100, 0.5):
        mask = {
            "pnr": lambda n: scores.pnr(n, 0.6),
            "connected": lambda n: scores.connected(n, by="signed"),
            "influence": lambda n: scores.influence().connected(n),
        }[rule](count)
        assert mask.num_kept == (count if isinstance(count, int) else int(count * graph.num_edges))
        assert mask.prune_dead_ends() == mask


def test_positive_ratio_by_hand():
    graph = drawn(0)
    scores = gp.EdgeScores(graph, torch.tensor([-10.0, 5, -8, 4, -7, 3, 2, -6, 1, -0.5]))
    # Three of five from 5, 4, 3, ...; then the largest of what is left: -10 and -8.
    kept = torch.nonzero(scores.pnr(5, 0.6, connected=False).kept)[:, 0].tolist()
    assert kept == [0, 1, 2, 3, 5]
    # Only five are positive: all of them, then by size.
    kept = torch.nonzero(scores.pnr(8, 0.9, connected=False).kept)[:, 0].tolist()
    assert kept == [0, 1, 2, 3, 4, 5, 6, 8]
    with pytest.raises(gp.InputError, match="positives must be a share"):
        scores.pnr(5, 0.0)


def walks_influence(graph, values):
    """Influence by enumeration of every walk to the output: the sum of products of shares."""
    edges = list(zip(*graph.edge_index.tolist(), values.abs().tolist(), strict=True))
    wires = [tuple(w) for w in graph.fixed_edge_index.T.tolist()]
    into = {v: sum(s for _, t, s in edges if t == v) for v in range(graph.num_nodes)}
    fed = {u: sum(1 for a, _ in wires if a == u) for u, _ in wires}
    carried = {w: into[w[0]] / fed[w[0]] for w in wires}
    total = {
        v: into[v] + sum(c for w, c in carried.items() if w[1] == v) for v in range(graph.num_nodes)
    }

    def influence(node, depth=40):
        if node in graph.output_nodes or not depth:
            return float(node in graph.output_nodes)
        after = sum(s / total[t] * influence(t, depth - 1) for u, t, s in edges if u == node)
        return after + sum(
            c / total[w[1]] * influence(w[1], depth - 1) for w, c in carried.items() if w[0] == node
        )

    return [s / total[t] * influence(t) for _, t, s in edges]


@pytest.mark.parametrize("seed", range(4))
def test_influence_is_the_sum_over_all_walks(seed):
    graph = drawn(seed, wires=3)
    scores = random_scores(graph, seed)
    signed = scores.influence().values
    found = signed.abs()
    expected = walks_influence(graph, scores.values)
    assert found.tolist() == pytest.approx(expected, rel=1e-7, abs=1e-12)  # float32
    small = gp.EdgeScores(graph, scores.values * 1e-5).influence().values
    assert small.allclose(signed)
    assert (signed < 0).equal((scores.values < 0) & (found > 0))


def test_influence_around_a_cycle():
    graph = ComputationalGraph.from_edges(
        [("a", "b"), ("c", "b"), ("b", "c"), ("c", "z")], nodes=["a", "b", "c", "z"],
        inputs=(0,), outputs=(3,),
    )  # fmt: skip
    # b reads 3/4 from a and 1/4 from c; influence of b and c: x = c, c = 1 + x / 4, so 4/3.
    values = torch.tensor([3.0, 1.0, 2.0, 5.0])
    found = gp.EdgeScores(graph, values).influence().values.tolist()
    assert found == pytest.approx([1.0, 1 / 3, 4 / 3, 1.0])
    with pytest.raises(gp.InputError, match="reads nothing from outside"):
        gp.EdgeScores(graph, torch.tensor([0.0, 1.0, 2.0, 5.0])).influence()


def test_cumulative_influence_keeps_the_fewest_edges():
    graph = transformer_graph(2, 3)
    scores = random_scores(graph, 8)
    found = scores.influence().values.abs().double()
    for share in (0.3, 0.9, 1.0):
        mask = scores.cumulative(share)
        inside = float(found[mask.kept].sum() / found.sum())
        assert inside >= share - 1e-9
        least = float(found[mask.kept].min())
        assert inside - least / float(found.sum()) < share  # one fewer is too few
    with pytest.raises(gp.InputError, match="no edge's score has any influence"):
        gp.EdgeScores(graph, torch.zeros(graph.num_edges)).cumulative()


# -------------------------------------------------------------------- command line


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("select") / "model")


@pytest.mark.parametrize(
    ("way", "settings", "size"),
    [
        ("connected", [], 30),
        ("ilp", ["positives=0.5"], 30),
        ("pnr", ["positives=0.8"], 30),
        ("bootstrap", ["resamples=4", "blocks=3", "level=0.8"], 30),
        ("influence", [], 30),
        ("influence", ["share=0.9"], None),
        ("polish", ["pool=1.5", "halvings=2"], 30),
    ],
)
def test_selections_from_the_command_line(model_dir, tmp_path, capsys, way, settings, size):
    chosen = [part for text in settings for part in ("--select-set", text)]
    budget = () if size is None else ("--size", size)
    arguments = ("--model", model_dir, "--task", "ioi", "-n", 6, "--held-out", 0, "--json")
    code = call("discover", *arguments, "--method", "eap", "--select", way, *chosen, *budget,
                "--out", tmp_path / "c")  # fmt: skip
    assert code == 0, capsys.readouterr().err
    if size is not None:
        assert out_of(capsys)["kept"] == size
    notes = gp.Circuit.load(tmp_path / "c").provenance["notes"]["selection"]
    assert notes["select"] == way
    assert ("size" in notes) is (size is not None)
    for text in settings:
        name, _, value = text.partition("=")
        assert notes["settings"][name] == pytest.approx(float(value))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--select", "ilp", "--select-set", "gap=3"], "--select ilp has no setting 'gap'"),
        (["--select", "pnr", "--by", "signed"], "a ranking of its own"),
        (["--select", "pnr", "--select-set", "positives=lots"], "positives='lots' does not fit"),
        (["--select-set", "positives=1"], "--select top has no setting 'positives'"),
        (["--select", "influence", "--select-set", "share=0.5", "--size", "3"], "leave --size out"),
        (["--method", "acdc", "--select-set", "x=1"], "method 'acdc' takes --set alone"),
        (["--select", "ilp", "--size", "1", "--select-set", "positives=2"], "share in (0, 1]"),
    ],
)
def test_wrong_selections(model_dir, tmp_path, capsys, arguments, message):
    common = ("discover", "--model", model_dir, "--task", "ioi", "-n", 4, "-q")
    method = () if "--method" in arguments else ("--method", "eap")
    late = "positives=2" in arguments  # a value that only the selector knows to be wrong
    assert call(*common, *method, *arguments, "--out", tmp_path / "c") == (1 if late else 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_what_only_rounding_leaves_ranks_by_graph_order():
    """Scores of 1e-22 beside 1e-3 differ by processor, so that they must not choose edges."""
    graph = gp.ComputationalGraph.from_edges([("a", "b"), ("b", "d"), ("a", "c"), ("c", "d")])
    values = torch.tensor([1e-22, -1e-3, 5e-22, 2e-9])
    scores = gp.EdgeScores.computed(graph, values, method="rounded")
    assert scores.values.tolist() == pytest.approx([0.0, -1e-3, 0.0, 2e-9])
    assert scores.top(3).kept.tolist() == [True, True, False, True]
    given = gp.EdgeScores(graph, values)  # scores that a user gives stay as they are
    assert given.top(3).kept.tolist() == [False, True, True, True]
