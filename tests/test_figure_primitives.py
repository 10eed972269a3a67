"""What figures are made of: boxes apart, labels within them, every edge drawn or counted."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
import pytest
import torch
from transformer_graph import random_scores, transformer_graph

from graphprune import Circuit, ComputationalGraph, EdgeMask, EdgeScores, Node
from graphprune.errors import InputError
from graphprune.export import plot, plot_circuits

pytest.importorskip("matplotlib")
CM = 2.54


def circuit(count: int, *shape, seed: int = 0, **options) -> Circuit:
    graph = transformer_graph(*shape, **options)
    scores = random_scores(graph, seed)
    return Circuit.from_mask(scores.connected(count), scores)


def parts(figure):
    """Boxes of nodes and arrows of edges (with dotted wires apart), keys aside."""
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    [axes] = figure.axes
    boxes = [p for p in axes.patches if isinstance(p, FancyBboxPatch) and p.get_zorder() == 5]
    arrows = [p for p in axes.patches if isinstance(p, FancyArrowPatch)]
    wires = [p for p in arrows if p.get_linestyle() not in ("-", "solid")]
    return axes, boxes, [p for p in arrows if p not in wires], wires


def corners(box):
    return np.array([box.get_x(), box.get_y(), box.get_x() + box.get_width(),
                     box.get_y() + box.get_height()])  # fmt: skip


def overlap(one, two) -> bool:
    return bool((one[:2] < two[2:] - 1e-6).all() and (two[:2] < one[2:] - 1e-6).all())


def text_boxes(figure):
    """Every text with its corners in inches, as it is drawn."""
    renderer = figure.canvas.get_renderer()
    found = []
    for text in figure.findobj(lambda a: hasattr(a, "get_text") and a.get_text()):
        box = text.get_window_extent(renderer).extents / figure.dpi
        found.append((text, box))
    return found


SHAPES = [
    (10, (4, 4), {}),
    (60, (12, 12), {}),
    (150, (6, 8, 2), {}),
    (40, (4, 6), {"parallel": True}),
]


@pytest.mark.parametrize("orientation", ["portrait", "landscape"])
@pytest.mark.parametrize(("count", "shape", "options"), SHAPES)
def test_boxes_are_apart_and_labels_within_the_page(count, shape, options, orientation):
    figure = plot(circuit(count, *shape, **options), orientation=orientation)
    _, boxes, _, _ = parts(figure)
    for one, two in combinations(map(corners, boxes), 2):
        assert not overlap(one, two)
    width, height = figure.get_size_inches()
    texts = text_boxes(figure)
    for text, box in texts:
        assert text.get_fontsize() >= 6
        assert (box[:2] >= -0.01).all(), text.get_text()
        assert (box[2:] <= np.array([width, height]) + 0.01).all(), text.get_text()
    for (one, first), (two, second) in combinations(texts, 2):
        inner = first + np.array([0.012, 0.02, -0.012, -0.02])  # a line's ascent and descent aside
        assert not overlap(inner, second), (one.get_text(), two.get_text())


@pytest.mark.parametrize("count", [10, 60, 150, 300])
def test_a_portrait_fits_a_column_and_a_page(count):
    figure = plot(circuit(count, 12, 12))
    width, height = figure.get_size_inches() * CM
    assert width == pytest.approx(9)
    assert height < 24


def test_edges_run_beside_the_nodes_and_upwards():
    from matplotlib.transforms import Affine2D

    made = circuit(60, 8, 8)
    _, boxes, arrows, _ = parts(plot(made, width=18, max_edges=60))
    under = 0
    for arrow in arrows:
        path = arrow.get_path().transformed(Affine2D().scale(500))  # fine steps along the curves
        steps = path.iter_segments(curves=False, simplify=False)
        line = np.array([vertices for vertices, code in steps if code in (1, 2)]) / 500
        assert line[:, 1].min() >= line[0, 1] - 0.01
        for box in map(corners, boxes):
            inside = (line > box[:2] + 0.02).all(1) & (line < box[2:] - 0.02).all(1)
            under += bool(inside.any())
    assert under == 0


@pytest.mark.parametrize("orientation", ["portrait", "landscape"])
def test_every_kept_edge_is_drawn_or_counted(orientation):
    made = circuit(30, 3, 4, 2)
    axes, _, arrows, _ = parts(plot(made, orientation=orientation, max_edges=30))
    words = " ".join(text.get_text() for text in axes.texts)
    assert "30 edges, " in words
    # Of a chain m0–m1 the edge inside is counted, and those to and from both are one each.
    assert len(arrows) == 30 or re.search(r"m\d–m\d", words)
    made = circuit(200, 12, 12)
    axes, _, arrows, _ = parts(plot(made, orientation=orientation, max_edges=25))
    [statement] = re.findall(
        r"25 of 200 edges, (\d+)% of", " ".join(t.get_text() for t in axes.texts)
    )
    assert 0 < int(statement) < 100


def test_the_share_shown_is_that_of_the_drawn_edges():
    graph = ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("a", "c")])
    scores = EdgeScores(graph, torch.tensor([1.0, -2.0, 5.0]))
    made = Circuit.from_mask(EdgeMask.full(graph), scores)
    axes, _, arrows, _ = parts(plot(made, max_edges=1))
    assert len(arrows) == 1
    assert any("1 of 3 edges, 62% of the circuit's |score|" in t.get_text() for t in axes.texts)


def test_a_chain_of_mlps_is_one_box_and_its_edges_are_counted():
    names = ["input", "m0", "m1", "m2", "logits"]
    kinds = {"input": "embed", "logits": "output"}
    nodes = tuple(Node(n, kinds.get(n, "mlp"), None if n in kinds else int(n[1])) for n in names)
    index = torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 4, 4]])
    graph = ComputationalGraph(nodes, index, torch.zeros(5, dtype=torch.uint8))
    figure = plot(Circuit.from_mask(EdgeMask.full(graph)))
    axes, boxes, arrows, _ = parts(figure)
    words = [text.get_text() for text in axes.texts]
    assert "m0–m2" in words
    assert "m1" not in words
    assert "5 edges, 5 nodes" in words
    assert (len(boxes), len(arrows)) == (3, 3)


def test_a_node_between_them_keeps_mlps_apart():
    nodes = (Node("input", "embed"), Node("m0", "mlp", 0), Node("a1.h0", "head", 1),
             Node("m1", "mlp", 1), Node("logits", "output"))  # fmt: skip
    index = torch.tensor([[0, 1, 1, 2, 3], [1, 2, 3, 3, 4]])
    graph = ComputationalGraph(nodes, index, torch.zeros(5, dtype=torch.uint8))
    _, boxes, arrows, _ = parts(plot(Circuit.from_mask(EdgeMask.full(graph))))
    assert (len(boxes), len(arrows)) == (5, 5)


def test_colours_say_the_sign_and_no_more():
    made = circuit(40, 4, 4)
    axes, _, arrows, _ = parts(plot(made, max_edges=40))
    words = " ".join(text.get_text() for text in axes.texts)
    assert all(word in words for word in ("positive score", "negative score"))
    assert not any(word in words for word in ("useful", "harmful"))
    positive = EdgeScores(made.graph, made.scores.values.abs())
    axes, _, arrows, _ = parts(plot(Circuit.from_mask(made.mask, positive)))
    assert "negative" not in " ".join(text.get_text() for text in axes.texts)
    assert len({arrow.get_edgecolor()[:3] for arrow in arrows}) == 1


def test_circuits_side_by_side_show_shared_and_own_edges():
    one, two = circuit(40, 4, 4), circuit(40, 4, 4, seed=1)
    figure = plot_circuits({"one": one, "two": two}, width=18, max_edges=40)
    axes, boxes, arrows, _ = parts(figure)
    shared = int((one.mask.kept & two.mask.kept).sum())
    dark = [a for a in arrows if np.allclose(a.get_edgecolor()[:3], 0x33 / 255)]
    assert len(arrows) == 80
    assert len(dark) == 2 * shared > 0
    words = " ".join(text.get_text() for text in axes.texts)
    assert words.count(f"{shared} in every circuit, {40 - shared} in this alone") == 2
    # Every node has its place in both panels.
    left = sorted(map(tuple, (corners(b).round(4) for b in boxes)))
    half = len(left) // 2
    shift = np.array(left[half:])[:, 0] - np.array(left[:half])[:, 0]
    assert np.allclose(shift, shift[0], atol=1e-3)


def test_circuits_that_do_not_go_side_by_side():
    one = circuit(10, 2, 2)
    with pytest.raises(InputError, match="2 to 6 circuits"):
        plot_circuits({"one": one})
    ring = Circuit.from_mask(EdgeMask.full(ComputationalGraph.from_edges([("a", "b"), ("b", "a")])))
    with pytest.raises(InputError, match="cycles"):
        plot_circuits({"one": ring, "two": ring})


@pytest.mark.parametrize("options", [{"orientation": "sideways"}, {"width": 1}, {"max_edges": 0}])
def test_bad_options(options):
    with pytest.raises(InputError, match=r"orientation|width|max_edges"):
        plot(circuit(10, 2, 2), **options)


def mlps(layers, edges):
    """A circuit of all of a graph's edges: an input, MLPs in some layers, logits."""
    names = ["input", *(f"m{layer}" for layer in layers), "logits"]
    nodes = [Node(f"m{layer}", "mlp", layer) for layer in layers]
    nodes = (Node("input", "embed"), *nodes, Node("logits", "output"))
    index = torch.tensor([[names.index(end) for end in edge.split()] for edge in edges]).T
    graph = ComputationalGraph(nodes, index, torch.zeros(len(edges), dtype=torch.uint8))
    return Circuit.from_mask(EdgeMask.full(graph))


def test_the_key_names_the_chains_that_are_drawn():
    def key(made):
        axes, *_ = parts(plot(made))
        return [t.get_text() for t in axes.texts if "MLPs" in t.get_text() and ":" in t.get_text()]

    whole = ["input m4", "m4 m5", "m5 logits"]
    assert key(mlps([4, 5], whole)) == ["m4–m5: MLPs that read one another, edges summed"]
    gap = ["input m0", "m0 m6", "m6 logits"]
    assert key(mlps([0, 6], gap)) == [
        "m0…m6 (2): 2 MLPs from m0 to m6 that read one another, edges summed"
    ]
    assert key(mlps([3], ["input m3", "m3 logits"])) == []
