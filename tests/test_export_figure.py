"""Figures: that they are drawn, repeat exactly, and say what they leave out."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET

import pytest
import torch
from transformer_graph import random_scores, transformer_graph

from graphprune import Circuit, ComputationalGraph, EdgeMask
from graphprune.errors import InputError, MissingExtraError
from graphprune.export import draw


def circuit(count: int, *shape, **options) -> Circuit:
    graph = transformer_graph(*shape, **options)
    scores = random_scores(graph)
    return Circuit.from_mask(scores.greedy(count), scores, notes={"x": 1})


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
    assert "20 of 60 edges, " in words
    assert "% of the circuit's |score|" in words
    assert "$x_1$ </svg>" in words
    assert {"input", "logits"} <= set(tree.getroot().itertext())
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
    assert "kept edge" in path.read_text(encoding="utf-8")


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
