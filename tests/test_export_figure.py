"""Figures: that they are drawn, say what they leave out, and are laid out upwards."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
import torch
from transformer_graph import random_scores, transformer_graph

from graphprune import Circuit, ComputationalGraph, EdgeMask
from graphprune.errors import InputError, MissingExtraError
from graphprune.export import draw
from graphprune.export.layout import COLUMN, picture, port_offset
from graphprune.export.routing import _samples, route


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


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
def test_files_are_drawn_and_repeat_exactly(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    made = circuit(30, 3, 4, 2)
    one, two = (draw(made, tmp_path / f"{i}.{suffix}", dpi=40) for i in "ab")
    assert one.read_bytes() == two.read_bytes()
    assert one.stat().st_size > 1000


def test_the_svg_names_nodes_and_says_what_is_left_out(tmp_path):
    pytest.importorskip("matplotlib")
    made = circuit(60, 4, 4)
    tree = ET.parse(draw(made, tmp_path / "c.svg", max_edges=20, title="$x_1$ </svg>"))
    words = "".join(tree.getroot().itertext())
    assert "the 20 strongest of 60 edges by |score|" in words
    assert "$x_1$ </svg>" in words
    shown = picture(made, 20)
    assert all(node.name in words for node in shown.nodes)
    assert "layer 0" in words


@pytest.mark.parametrize(
    "edges",
    [
        [("a", "b"), ("b", "c"), ("c", "a"), ("a", "a"), ("a", "b")],
        [("a", "b"), ("b", "c"), ("a", "c")],
        [],
    ],
)
def test_any_graph_is_drawn(tmp_path, edges):
    pytest.importorskip("matplotlib")
    graph = ComputationalGraph.from_edges(edges, nodes=["a", "b", "c"])
    path = draw(Circuit.from_mask(EdgeMask.full(graph)), tmp_path / "c.svg")
    assert "kept (no scores)" in path.read_text(encoding="utf-8")


def test_no_edge_kept(tmp_path):
    pytest.importorskip("matplotlib")
    graph = transformer_graph(2, 2, 1)
    made = Circuit.from_mask(EdgeMask.empty(graph), random_scores(graph))
    assert "0 edges" in draw(made, tmp_path / "c.svg").read_text(encoding="utf-8")


def test_bad_arguments(tmp_path):
    made = circuit(5, 2, 2)
    with pytest.raises(InputError, match="ends in"):
        draw(made, tmp_path / "c.bmp")
    with pytest.raises(InputError, match="max_edges"):
        draw(made, tmp_path / "c.svg", max_edges=0)


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    for name in list(sys.modules):
        if name.split(".")[0] == "matplotlib":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r'pip install "graphprune\[plot\]"'):
        draw(circuit(5, 2, 2), tmp_path / "c.svg")
    assert list(tmp_path.iterdir()) == []


def test_constant_scores(tmp_path):
    pytest.importorskip("matplotlib")
    graph = transformer_graph(1, 2)
    scores = type(random_scores(graph))(graph, torch.zeros(graph.num_edges))
    draw(Circuit.from_mask(EdgeMask.full(graph), scores), tmp_path / "c.svg")
