"""Gates that start from scores: in their order, at a density that is sampled, as published."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from transformer_graph import random_scores, transformer_graph

import graphprune as gp
from graphprune.search.gates import budgeted_sigmoid, hard_concrete
from graphprune.search.loop import Moment
from graphprune.search.warm_start import StartingScores, WarmStart

pytestmark = pytest.mark.inside


OPTIMISERS = [
    gp.EdgePruning(variant="paper"),
    gp.UGS(samples=2),
    gp.SubnetworkProbing(),
    gp.MatryoshkaPruning(size=4),
]


def frozen_order(optimiser, spread=None):
    """The ranking after one step of rate (nearly) nothing: the start's."""
    graph = transformer_graph(3, 4)
    given = random_scores(graph)
    warm = WarmStart(given, "density", None if optimiser.gate_kind == "ranking" else 0.1, spread)
    ready = dataclasses.replace(optimiser, warm_start=warm)
    return given, ready.values(ready.parameters(graph, StartingScores(given.values, warm)), graph)


@pytest.mark.parametrize("optimiser", OPTIMISERS, ids=lambda o: o.label[:40])
def test_gates_start_in_the_scores_order(optimiser):
    given, first = frozen_order(optimiser)
    assert first.argsort().equal(given.values.abs().argsort())


@pytest.mark.parametrize("density", [0.005, 0.1, 0.95])
@pytest.mark.parametrize("node_gates", [False, True])
@pytest.mark.parametrize("kind", ["paper", "probing", "ugs"])
def test_the_start_density_is_met(kind, node_gates, density):
    """By draws of the gates, not by the formula that placed them."""
    graph = transformer_graph(4, 6)
    given = random_scores(graph)
    made = {
        "paper": gp.EdgePruning(variant="paper", node_gates=node_gates, warm_start=None),
        "probing": gp.SubnetworkProbing(node_gates=node_gates),
        "ugs": gp.UGS(node_gates=node_gates),
    }[kind]
    warm = WarmStart(given, "density", density)
    if kind == "ugs" and node_gates and density > 0.9:
        with pytest.raises(gp.InputError, match=r"0\.95 cannot be met"):
            made.parameters(graph, StartingScores(given.values, warm))
        return
    first = made.parameters(graph, StartingScores(given.values, warm))
    generator = torch.Generator().manual_seed(0)
    found = 0.0
    for _ in range(400):
        u = torch.rand(graph.num_edges, generator=generator)
        v = torch.rand(graph.num_nodes, generator=generator)
        gate = (lambda a, x: x < a.sigmoid()) if kind == "ugs" else hard_concrete
        is_open = gate(first["edges"], u) > 0
        if node_gates:
            is_open &= (gate(first["nodes"], v) > 0)[graph.edge_index[0]]
        found += float(is_open.float().mean()) / 400
    assert found == pytest.approx(density, rel=0.1)


def test_a_budget_starts_at_the_density():
    graph, given = transformer_graph(3, 4), random_scores(transformer_graph(3, 4))
    for density in (0.02, 0.3):
        warm = WarmStart(given, "density", density)
        made = gp.EdgePruning(sparsity=0.99, warm_start=warm)
        first = made.parameters(graph, StartingScores(given.values, warm))
        draw = made.draw(first, graph, Moment(0, 1000, 1, (0,)))
        assert float(draw.mask.sum()) == pytest.approx(density * graph.num_edges, rel=1e-3)
        again, _ = budgeted_sigmoid(first["edges"], density * graph.num_edges, 0.5)
        assert torch.allclose(draw.mask, again)


def by_the_book(graph, values, density, seed):
    """The published mapping in numpy, edge by edge."""
    u = torch.rand(graph.num_edges, generator=torch.Generator().manual_seed(seed)).numpy()
    v = 0.97 * np.abs(values.numpy()) + np.float32(0.03) * u
    out = np.zeros(graph.num_edges)
    layers = [graph.nodes[t].layer for t in graph.edge_index[1].tolist()]
    for layer in set(layers):
        edges = [e for e in range(graph.num_edges) if layers[e] == layer]
        ordered = sorted(edges, key=lambda e: v[e])
        low, high = 0.0, 1.0
        ranks = {e: i / (len(edges) - 1) for i, e in enumerate(ordered)}
        for _ in range(60):
            b = (low + high) / 2
            p = np.mean([1 / (1 + math.exp(-(r - b) / 0.25)) for r in ranks.values()])
            low, high = (b, high) if p > density else (low, b)
        for e, r in ranks.items():
            p = (1 / (1 + math.exp(-(r - b) / 0.25)) + 0.1) / 1.2
            out[e] = 2 / 3 * math.log(p / (1 - p)) + (0.15 if layer in (0, None) else 0.0)
    return out


@pytest.mark.parametrize("density", [0.05, 0.6])
def test_the_published_mapping(density):
    graph = transformer_graph(2, 3)
    given = gp.EdgeScores(graph, random_scores(graph).values)
    method = gp.EdgePruning(variant="paper", seed=4)
    start = StartingScores(given.values, WarmStart(given, "paper", density), 4)
    found = method.parameters(graph, start)["edges"]
    assert np.allclose(found, by_the_book(graph, given.values, density, 4), atol=2e-3)


def test_the_published_defects_are_there_and_ours_has_none():
    from scipy.stats import spearmanr

    graph = transformer_graph(6, 6)
    given = gp.EdgeScores(graph, random_scores(graph, 7).values * 5e-6)  # as attributions are
    method = gp.EdgePruning(variant="paper")

    def first(mapping, density):
        start = StartingScores(given.values, WarmStart(given, mapping, density), 0)
        return method.parameters(graph, start)["edges"]

    ranks = given.values.abs()
    assert abs(spearmanr(first("paper", 0.1), ranks)[0]) < 0.1
    assert spearmanr(first("density", 0.1), ranks)[0] == pytest.approx(1.0)
    assert torch.allclose(first("paper", 0.1), first("paper", 0.05), atol=1e-4)
    u = torch.rand(200, graph.num_edges, generator=torch.Generator().manual_seed(1))
    share = {m: float((hard_concrete(first(m, 0.05), u) > 0).float().mean())
             for m in ("paper", "density")}  # fmt: skip
    assert share["paper"] > 0.6
    assert share["density"] == pytest.approx(0.05, rel=0.1)
