"""Where a figure puts nodes and edges: upwards, apart, the strongest alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
from transformer_graph import random_scores, transformer_graph

from graphprune import Circuit
from graphprune.drawing.layout import COLUMN, picture, port_offset
from graphprune.drawing.routing import _samples, route

pytestmark = pytest.mark.inside


def circuit(count: int, *shape, **options) -> Circuit:
    graph = transformer_graph(*shape, **options)
    scores = random_scores(graph)
    return Circuit.from_mask(scores.greedy(count), scores, notes={"x": 1})


@pytest.mark.parametrize("options", [{}, {"parallel": True}])
@pytest.mark.parametrize("shape", [(4, 4), (3, 6, 2)])
def test_information_flows_upwards(shape, options):
    shown = picture(circuit(40, *shape, **options), max_edges=150)
    assert shown.layered
    for edge in shown.edges:
        assert shown.nodes[edge.source].y < shown.nodes[edge.target].y
    rows = {}
    for node in shown.nodes:
        rows.setdefault(node.y, []).append(node)
    for row in rows.values():
        xs = sorted(node.x for node in row)
        assert all(b - a > COLUMN - 1e-6 for a, b in pairwise(xs))
        layers = {node.layer for node in row}
        assert len(layers) == 1
    if not options:  # a parallel model's heads and MLP stand side by side
        assert all(len({node.kind for node in row}) == 1 for row in rows.values())


def test_curves_pass_beside_nodes():
    shown = picture(circuit(100, 12, 12), max_edges=150)
    paths = route(shown, 0.86, 0.4, port_offset)
    under = 0
    for edge, path in zip(shown.edges, paths, strict=True):
        points = _samples(path)
        for i, node in enumerate(shown.nodes):
            if i not in (edge.source, edge.target):
                inside = abs(points - [node.x, node.y]) < [0.42, 0.19]
                under += bool(inside.all(1).any())
    assert under <= len(paths) // 50


def test_only_the_strongest_are_drawn():
    made = circuit(60, 4, 4)
    shown = picture(made, max_edges=10)
    assert (shown.shown_edges, shown.total_edges) == (10, 60)
    strongest = made.scores.values.abs() * made.mask.values
    expected = {made.graph.edge_names[i] for i in strongest.topk(10).indices.tolist()}
    assert {edge.name for edge in shown.edges if not edge.wire} == expected
