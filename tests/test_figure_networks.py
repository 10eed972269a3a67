"""Pictures of graph networks: discs apart, kept and cut told apart, summaries of large graphs."""

from __future__ import annotations

from itertools import combinations

import networkx as nx
import numpy as np
import pytest
import torch

from graphprune import Circuit, ComputationalGraph, EdgeScores
from graphprune.errors import InputError

pytest.importorskip("matplotlib")


def network(graph: nx.Graph, kept: int, seed: int = 0) -> Circuit:
    both = graph.to_directed()
    edges = [(str(u), str(v)) for u, v in both.edges]
    made = ComputationalGraph.from_edges(edges, nodes=[str(n) for n in both.nodes])
    values = torch.randn(made.num_edges, generator=torch.Generator().manual_seed(seed))
    scores = EdgeScores(made, values)
    return Circuit.from_mask(scores.top(kept), scores)


def discs(figure):
    from matplotlib.patches import Circle

    [axes] = figure.axes
    return [p for p in axes.patches if isinstance(p, Circle) and p.get_zorder() == 5]


GRAPHS = {
    "karate": (nx.karate_club_graph, 34),
    "wheel": (lambda: nx.wheel_graph(90), 90),
    "star": (lambda: nx.star_graph(120), 121),
    "parts": (lambda: nx.disjoint_union(nx.cycle_graph(40), nx.path_graph(20)), 60),
    "dense": (lambda: nx.complete_graph(30), 30),
    "ring": (lambda: nx.watts_strogatz_graph(134, 4, 0.2, seed=0), 134),
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("width", [9, 18])
def test_nodes_never_overlap_and_stay_on_the_page(name, width):
    make, count = GRAPHS[name]
    figure = network(make(), 50).plot(width=width)
    found = discs(figure)
    assert len(found) == count
    radius = found[0].radius
    centres = np.array([disc.center for disc in found])
    gaps = [np.hypot(*(a - b)) for a, b in combinations(centres, 2)]
    assert min(gaps) > 2 * radius
    size = figure.get_size_inches()
    assert (centres - radius >= 0).all()
    assert (centres + radius <= size).all()


def test_kept_and_cut_edges_are_told_apart():
    from matplotlib.patches import FancyArrowPatch

    made = network(nx.karate_club_graph(), 60)
    figure = made.plot()
    [axes] = figure.axes
    lines = [p for p in axes.patches if isinstance(p, FancyArrowPatch)]
    solid = [p for p in lines if p.get_linestyle() in ("-", "solid")]
    ends = made.graph.edge_index.T[made.mask.kept].tolist()
    kept_pairs = {frozenset(pair) for pair in ends}
    assert len(lines) == 78  # Zachary's undirected edges
    assert len(solid) == len(kept_pairs)
    one_way = [pair for pair in kept_pairs if ([*pair] in ends) != ([*pair][::-1] in ends)]
    arrows = [p for p in solid if type(p.get_arrowstyle()).__name__ == "CurveFilledB"]
    assert len(arrows) == len(one_way)
    words = [text.get_text() for text in axes.texts]
    assert {"cut", "arrow: kept one way only"} <= set(words)
    assert "60 of 156 edges kept (38%), 34 nodes" in words


def test_classes_or_degrees_colour_the_nodes():
    graph = nx.karate_club_graph()
    clubs = [graph.nodes[n]["club"] for n in graph]
    made = network(graph, 60)
    figure = made.plot(node_colours=clubs)
    fills = [disc.get_facecolor() for disc in discs(figure)]
    assert len(set(fills)) == 2
    assert all((fills[0] == fills[i]) == (clubs[0] == clubs[i]) for i in range(34))
    assert {"Mr. Hi", "Officer"} <= {text.get_text() for text in figure.axes[0].texts}
    named = made.plot(node_colours=dict(zip(map(str, graph), clubs, strict=True)))
    assert [disc.get_facecolor() for disc in discs(named)] == fills
    by_degree = made.plot()
    assert "degree in the graph:" in [text.get_text() for text in by_degree.axes[0].texts]
    shades = [sum(disc.get_facecolor()[:3]) for disc in discs(by_degree)]
    degrees = [graph.degree(n) for n in graph]
    assert shades[int(np.argmax(degrees))] < shades[int(np.argmin(degrees))]
    with pytest.raises(InputError, match="each of the 34 nodes, got 3"):
        made.plot(node_colours=[0, 1, 2])


def test_a_large_graph_is_summarised():
    made = network(nx.barabasi_albert_graph(2000, 2, seed=0), 3000)
    figure = made.plot(node_colours=[i % 3 for i in range(2000)])
    words = " ".join(text.get_text() for text in figure.texts)
    assert "3,000 of 7,984 edges kept" in words or "3,000 of 7,992 edges kept" in words
    degrees, between, *_ = figure.axes
    all_edges, kept = degrees.get_lines()
    assert all_edges.get_ydata()[0] == 1.0  # every node has an edge
    # The share kept between classes, by counting.
    index, mask = made.graph.edge_index.numpy() % 3, made.mask.kept.numpy()
    shares = np.array(between.get_images()[0].get_array())
    for i, j in np.ndindex(3, 3):
        chosen = (index[0] == i) & (index[1] == j)
        assert shares[i, j] == pytest.approx(mask[chosen].mean())
    assert kept.get_xdata().max() <= all_edges.get_xdata().max()


def test_degrees_of_less_than_a_decade_have_readable_ticks():
    figure = network(nx.watts_strogatz_graph(300, 8, 0.3, seed=0), 1600).plot(width=15)
    figure.canvas.draw()
    ticks = [
        t for ax in figure.axes for t in ax.get_xticklabels("both") + ax.get_yticklabels("both")
    ]
    written = [tick.get_text() for tick in ticks]
    assert "20" in written
    assert not [text for text in written if "$" in text]
    assert {tick.get_fontsize() for tick in ticks if tick.get_text()} == {6.0}


def test_colours_are_drawn_in_a_graph_without_cycles():
    graph = ComputationalGraph.from_edges([("b", "a"), ("c", "a"), ("d", "b")])
    circuit = Circuit.from_mask(EdgeScores(graph, torch.tensor([3.0, 1.0, 2.0])).top(2))
    figure = circuit.plot(node_colours={"a": "x", "b": "y", "c": "x", "d": "y"})
    assert len(discs(figure)) == 4  # also c, whose edge is cut
    assert len({disc.get_facecolor() for disc in discs(figure)}) == 2
