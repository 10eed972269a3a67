"""How values show themselves: HTML in a notebook, one line in a terminal."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
import torch
from transformer_graph import random_scores, transformer_graph

import graphprune as gp
from graphprune.adapters import ARGNN
from graphprune.spectral import plot
from graphprune.statistics import Finding

pytestmark = pytest.mark.inside

EVIL = '</td><script>alert("1")</script><img src=x onerror=alert(1)>\n'


def evil_graph():
    edges = [("input", EVIL), (EVIL, "out")]
    return gp.ComputationalGraph.from_edges(edges, edge_kind=[0, 1], edge_kinds=(EVIL, "b"))


def values(graph, words=EVIL):
    scores = gp.EdgeScores(graph, torch.tensor([1.0, -2.0]), method=words)
    mask = scores.top(1)
    kl = {"kl": torch.tensor([0.2, 0.3])}
    settings = {"examples": 2, "metric": "kl"}
    return {
        "mask": mask,
        "scores": scores,
        "positional": gp.PositionalEdgeScores(graph, torch.ones(2, 3), method=words),
        "nodes": gp.NodeScores(graph, torch.ones(3), method=words),
        "result": gp.Result(mask, scores, ablation="zero", remarks=(words,), stopped=words),
        "circuit": gp.Circuit.from_mask(mask, scores, notes={words: words}),
        "report": gp.EvaluationReport({"kl": 0.25}, kl, {}, {}, {words: words}, settings),
        "finding": Finding(name=words, null=words, said=words, p_value=0.5, values={words: 1.5}),
    }


@pytest.mark.parametrize("name", values(evil_graph()))
def test_values_are_html_that_no_name_breaks(name):
    text = values(evil_graph())[name]._repr_html_()
    tags, attributes = [], []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.append(tag)
            attributes.extend(key for key, _ in attrs)

    Reader().feed(text)
    assert set(tags) <= {"div", "strong", "table", "thead", "tbody", "tr", "td", "th", "p", "img"}
    assert set(attributes) <= {"style", "src", "alt"}
    assert tags.count("img") <= (name == "circuit")


@pytest.mark.parametrize("name", values(evil_graph()))
def test_values_are_one_line_in_a_terminal(name):
    graph = gp.ComputationalGraph.from_edges([("a", "b"), ("b", "c")])
    assert "\n" not in repr(values(graph, "words")[name])


def test_a_mask_counts_its_kinds_and_scores_name_the_strongest():
    graph = transformer_graph(2, 4)
    scores = random_scores(graph)
    mask = scores.top(30)
    rows = re.findall(
        r"<td[^>]*>(\w+)</td><td[^>]*>(\d+)</td><td[^>]*>(\d+)</td>", mask._repr_html_()
    )
    assert [row[0] for row in rows] == list(graph.edge_kinds)
    assert sum(int(row[1]) for row in rows) == 30
    assert sum(int(row[2]) for row in rows) == graph.num_edges
    strongest = graph.edge_names[int(scores.values.abs().argmax())]
    first = scores._repr_html_().partition("<tbody>")[2].partition("</td>")[0]
    assert first.endswith(
        strongest.replace("<", "&lt;").replace(">", "&gt;").replace("->", "-&gt;")
    )


def test_a_circuit_has_a_picture_where_matplotlib_is(monkeypatch):
    pytest.importorskip("matplotlib")
    graph = transformer_graph(2, 2)
    scores = random_scores(graph)
    made = gp.Circuit.from_mask(scores.connected(10), scores)
    assert "data:image/png;base64," in made._repr_html_()
    import sys

    for name in list(sys.modules):
        if name.split(".")[0] == "matplotlib":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "data:image/png" not in made._repr_html_()


def test_axes_show_in_a_notebook_as_the_figure_that_they_stand_in():
    axes_of = pytest.importorskip("matplotlib.axes").Axes
    f = {"signed": [0.2, 1.0]}
    curve = gp.FaithfulnessCurve((0.1, 1.0), f, {"signed": [1, 9]}, f, 1.0, 0.0, "logit_diff")
    cycle = torch.tensor([[0, 1, 2, 1], [1, 2, 1, 3]])
    graph = gp.wrap(ARGNN(cycle, 4, inputs=[0], outputs=[3], steps=2, seed=0)).graph
    for axes in (curve.plot(), plot(graph)):
        assert isinstance(axes, axes_of)
        assert axes._repr_png_().startswith(b"\x89PNG")
        assert axes._repr_png_() == axes.figure._repr_png_()


def test_a_task_is_shown_with_its_first_prompts():
    task = gp.Task.from_tensors(torch.tensor([[3, 4], [5, 6]]), answer=[7, 8])
    html = task._repr_html_()
    assert "clean       [3, 4]" in html
    assert "answer      [8]" in html
