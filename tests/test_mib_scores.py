"""CPR, CMD and AUROC against MIB's published formulas, written out here, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support.oracle import oracle_logits
from support.tiny import random_pair, tiny
from support.toy import Toy, ToyExamples
from transformer_graph import random_scores, transformer_graph

import graphprune as gp
from graphprune import FaithfulnessCurve
from graphprune.export import MIBNodes

PERCENTAGES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)


def areas(f, log=False):
    """The evaluator's sums: the area under f, and between f and 1."""
    under = from_one = 0.0
    for i in range(9):
        left, right = PERCENTAGES[i], PERCENTAGES[i + 1]
        if log:
            left, right = math.log(left), math.log(right)
        under += (right - left) * (f[i] + f[i + 1]) / 2
        from_one += (right - left) * (abs(1 - f[i]) + abs(1 - f[i + 1])) / 2
    return under, from_one


def curve(f):
    both = {"signed": list(f), "abs": list(f)}
    kept = {"signed": [1] * 10, "abs": [1] * 10}
    return FaithfulnessCurve(gp.MIB_SIZES, both, kept, both, 1.0, 0.0, "logit_diff")


@pytest.mark.parametrize(
    ("f", "cpr", "cmd"),
    [
        ([1.0] * 10, 0.999, 0.0),
        ([0.0] * 10, 0.0, 0.999),
        ([2.0] * 10, 1.998, 0.999),  # overshooting pays in CPR and costs in CMD
        ([0.0] * 9 + [1.0], 0.25, 0.749),  # nothing up to a half: what chance gets
        ([0.0] * 8 + [1.0, 1.0], 0.65, 0.349),
        ([-1.0] + [0.0] * 9, -0.0005, 0.9995),
    ],
)
def test_areas_by_hand(f, cpr, cmd):
    assert gp.MIB_SIZES == PERCENTAGES
    found = curve(f)
    assert found.cpr == pytest.approx(cpr)
    assert found.cmd == pytest.approx(cmd)
    assert (found.cpr, found.cmd) == pytest.approx(areas(f))
    assert (found.cpr_log, found.cmd_log) == pytest.approx(areas(f, log=True))
    assert found.average == pytest.approx(sum(f) / 10)


# -------------------------------------------------------------------- a model of its own


class Evaluator:
    """MIB's evaluation of a tiny model: masks by sorting, f by the oracle's forward pass."""

    def __init__(self, family="gpt2"):
        self.module = tiny(family)
        self.clean, self.corrupt = random_pair(self.module, batch=5)
        self.task = gp.Task.from_tensors(
            self.clean, self.corrupt, answer=[1, 3, 5, 7, 9], distractor=[2, 4, 6, 8, 10]
        )
        self.model = gp.wrap(self.module)
        self.graph = self.model.graph
        self.known = {}

    def value(self, kept):
        key = tuple(map(float, kept))
        if key not in self.known:
            self.known[key] = self.difference(kept)
        return self.known[key]

    def difference(self, kept):
        split = {
            tuple(name.split("->")): float(k)
            for name, k in zip(self.graph.edge_names, kept, strict=True)
        }
        with torch.no_grad():
            out = oracle_logits(self.module, self.clean, split, corrupt_ids=self.corrupt)[:, -1]
        rows = range(5)
        diff = out[rows, [1, 3, 5, 7, 9]] - out[rows, [2, 4, 6, 8, 10]]
        return float(diff.mean())

    def f(self, kept):
        count = self.graph.num_edges
        full, none = self.value([1] * count), self.value([0] * count)
        return (self.value(kept) - none) / (full - none)


@pytest.fixture(scope="module")
def evaluator():
    return Evaluator()


def top(values, n):
    order = sorted(range(len(values)), key=lambda i: -values[i])
    kept = [0] * len(values)
    for i in order[:n]:
        kept[i] = 1
    return kept


def test_scores_of_edges(evaluator):
    scores = gp.EAP().score(evaluator.model, evaluator.task)
    found = gp.mib_curve(evaluator.model, evaluator.task, scores)
    total = evaluator.graph.num_edges
    for by, values in (("signed", scores.values), ("abs", scores.values.abs())):
        f = [evaluator.f(top(values.tolist(), int(p * total))) for p in PERCENTAGES]
        assert found.f[by] == pytest.approx(f, abs=2e-3)
        under, from_one = areas(f)
        if by == "signed":
            assert found.cpr == pytest.approx(under, abs=2e-3)
        else:
            assert found.cmd == pytest.approx(from_one, abs=2e-3)
    plain = gp.faithfulness_curve(evaluator.model, evaluator.task, scores)
    assert plain.f == found.f


def test_scores_of_nodes(evaluator):
    graph = evaluator.graph
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(graph.num_nodes, generator=generator)
    nodes = gp.NodeScores(graph, values)
    senders = nodes.senders.tolist()
    free = graph.node_number["a0.h1"]
    for unscored in ((), ("a0.h1",)):
        given = MIBNodes(nodes, unscored=unscored) if unscored else nodes
        found = gp.mib_curve(evaluator.model, evaluator.task, given)
        scored = [n for n in senders if not (unscored and n == free)]
        for by in ("signed", "abs"):
            ranked = sorted(
                scored, key=lambda n: -(values[n] if by == "signed" else abs(values[n]))
            )
            f = []
            for p in PERCENTAGES:
                inside = {*ranked[: int(p * len(scored))], *graph.output_nodes}
                inside |= {free} if unscored else set()
                f.append(
                    evaluator.f(
                        [u in inside and v in inside for u, v in graph.edge_index.T.tolist()]
                    )
                )
            assert found.f[by] == pytest.approx(f, abs=2e-3)


def test_nine_circuits(evaluator):
    scores = gp.EAP().score(evaluator.model, evaluator.task)
    total = evaluator.graph.num_edges
    sizes = [1, 2, 3, 5, 8, 20, 30, 50, 70]
    circuits = [scores.connected(n) for n in sizes]
    f = [evaluator.f(c.values.tolist()) for c in circuits] + [1.0]
    for given in (circuits, circuits[::-1], [*circuits, gp.EdgeMask.full(evaluator.graph)]):
        found = gp.mib_curve(evaluator.model, evaluator.task, given)
        assert found.f["signed"] == found.f["abs"] == pytest.approx(f, abs=2e-3)
        assert found.kept["signed"] == [*sizes, total]
        assert (found.cpr, found.cmd) == pytest.approx(areas(f), abs=2e-3)
    for wrong in (circuits[:8], [*circuits, circuits[0]]):
        with pytest.raises(gp.InputError, match="MIB scores nine circuits"):
            gp.mib_curve(evaluator.model, evaluator.task, wrong)


def test_key_value_edges_count_once_for_each_query_head():
    one = Evaluator("llama")
    assert {4, 2} == {one.model.arch.blocks[0].heads, one.model.arch.blocks[0].kv_heads}
    scores = gp.EAP().score(one.model, one.task)
    found = gp.mib_curve(one.model, one.task, scores)
    weight = [2 if ".kv" in name.partition("->")[2] else 1 for name in one.graph.edge_names]
    assert sum(weight) == transformer_graph(2, 4).num_edges
    ranked = sorted(range(one.graph.num_edges), key=lambda i: -float(scores.values[i]))
    for number, p in enumerate(PERCENTAGES):
        room, kept = int(p * sum(weight)), [0] * one.graph.num_edges
        for i in ranked:
            if room <= 0:
                break
            kept[i], room = 1, room - weight[i]
        assert found.f["signed"][number] == pytest.approx(one.f(kept), abs=2e-3)


def test_any_adapter_is_scored():
    model, task = Toy(seed=3), gp.Task(ToyExamples(6), "logit_diff")
    scores = gp.EAP().score(model, task)
    found = gp.mib_curve(model, task, scores)
    assert found.f == gp.faithfulness_curve(model, task, scores).f


# -------------------------------------------------------------------- the ROC curve


def published_auroc(graph, values, inside):
    """Greedy circuits, pruned; rates; the trapezoid over rates divided by the last."""
    edges = graph.edge_index.T.tolist()
    size = [abs(v) for v in values.tolist()]
    heads = {}
    for w, r in graph.fixed_edge_index.T.tolist():
        heads.setdefault(r, []).append(w)
    tpr, fpr = [], []
    for p in PERCENTAGES:
        n = p * len(edges)
        nodes, taken = set(graph.output_nodes), set()
        while n > 0:
            n -= 1
            ready = [e for e in range(len(edges)) if e not in taken and edges[e][1] in nodes]
            best = max(ready, key=lambda e: (size[e], -e))
            taken.add(best)
            nodes.add(edges[best][0])
        while True:  # prune: a node that reads nothing sends nothing
            reads = {edges[e][1] for e in taken} | set(graph.input_nodes)
            fewer = {e for e in taken if edges[e][0] in reads}
            if fewer == taken:
                break
            taken = fewer
        true = {e for e in range(len(edges)) if inside[e]}
        tpr.append(len(taken & true) / len(true))
        fpr.append(len(taken - true) / (len(edges) - len(true)))
    return sum((fpr[i + 1] - fpr[i]) / fpr[-1] * (tpr[i] + tpr[i + 1]) / 2 for i in range(9))


@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_the_published_one(seed):
    graph = transformer_graph(2, 3)
    scores = random_scores(graph, seed)
    truth = random_scores(graph, seed + 10).connected(12)
    found = gp.mib_auroc(scores, truth)
    assert found == pytest.approx(published_auroc(graph, scores.values, truth.kept.tolist()))


def test_auroc_by_hand():
    graph = gp.ComputationalGraph.from_edges(
        [("i", "h"), ("h", "o"), ("i", "o"), ("i", "g"), ("g", "o")]
    )
    truth = gp.EdgeMask.from_edges(graph, ["i->h", "h->o"])
    # Five edges: one at each size up to .2, then three (2.5 begun), then all.
    good = gp.EdgeScores(graph, torch.tensor([5.0, 4, 3, 2, 1]))
    # h->o alone is pruned: (0, 0); then h->o, i->h, i->o: (1/3, 1); all: (1, 1).
    assert gp.mib_auroc(good, truth) == pytest.approx(1 / 3 * 0.5 + 2 / 3 * 1)
    assert gp.auroc(good, truth) == 1.0  # the usual one has no such corner missing
    bad = gp.EdgeScores(graph, torch.tensor([1.0, 2, 3, 4, 5]))
    # g->o is pruned: (0, 0); g->o, i->g, i->o: (1, 0); all: (1, 1).
    assert gp.mib_auroc(bad, truth) == 0.0
    for wrong in (gp.EdgeMask.empty(graph), gp.EdgeMask.full(graph)):
        with pytest.raises(gp.InputError, match="some but not all"):
            gp.mib_auroc(good, wrong)
    dead = gp.ComputationalGraph.from_edges([("i", "o"), ("i", "x")], outputs=(1,))
    with pytest.raises(gp.InputError, match="no false positives"):
        gp.mib_auroc(
            gp.EdgeScores(dead, torch.tensor([1.0, 2.0])), gp.EdgeMask.from_edges(dead, ["i->o"])
        )
    assert np.isfinite(gp.mib_auroc(good, truth))
