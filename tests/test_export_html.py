"""The page: one file, nothing from outside, nothing executed that is data."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from html.parser import HTMLParser

import pytest
import torch
from transformer_graph import random_scores, transformer_graph

from graphprune import Circuit, ComputationalGraph, EdgeMask, EdgeScores, Node
from graphprune.errors import InputError
from graphprune.export import to_html

EVIL = '</script><script>alert("1")</script><!-- & \u2028 \'"'


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict, str]] = []
        self.tags: list[tuple[str, dict]] = []
        self.inside = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            about, text = self.scripts[-1]
            self.scripts[-1] = (about, text + data)


def page(tmp_path, circuit, **options) -> Page:
    return Page(to_html(circuit, tmp_path / "c.html", **options).read_text(encoding="utf-8"))


def names(data: dict, wanted: int = 0) -> list[str]:
    """The names of the edges of one state, as the page's program makes them."""
    edges, nodes, found = data["edges"], data["nodes"], []
    for i, state in enumerate(edges["state"]):
        if state == wanted:
            kind = data["kinds"][edges["kind"][i]]
            port = f"<{kind}>" if kind in data["ports"] else ""
            ends = [nodes[edges[side][i]]["name"] for side in ("source", "target")]
            found.append(edges["names"].get(str(i)) or "->".join(ends) + port)
    return found


def evil() -> Circuit:
    graph = ComputationalGraph(
        nodes=(Node(EVIL, kind=EVIL, layer=0), Node("b", layer=1), Node("c", layer=2)),
        edge_index=torch.tensor([[0, 1], [1, 2]]),
        edge_kind=torch.tensor([0, 1], dtype=torch.uint8),
        edge_kinds=(EVIL, "y"),
        ports=(EVIL,),
    )
    scores = EdgeScores(graph, torch.tensor([1.0, -2.0]), method=EVIL)
    provenance = {"task": {"name": EVIL}, EVIL: EVIL}
    return Circuit(graph, EdgeMask.full(graph), scores, {EVIL: EVIL}, provenance)


def test_the_data_parse_and_hold_the_circuit(tmp_path):
    graph = transformer_graph(3, 4, 2)
    scores = random_scores(graph)
    circuit = Circuit.from_mask(scores.greedy(40), scores, report={"kl": 0.5, "a": {"b": True}})
    found = page(tmp_path, circuit)
    data = json.loads(found.scripts[0][1])
    assert names(data) == circuit.edges()
    assert [n["name"] for n in data["nodes"]] == circuit.nodes()
    edges = data["edges"]
    scores = [s for s, state in zip(edges["score"], edges["state"], strict=True) if state == 0]
    assert scores == pytest.approx(circuit.scores.values[circuit.mask.kept].tolist(), rel=1e-4)
    assert data["report"] == [["kl", "0.5"], ["a.b", "yes"]]
    assert ["method.name", "EAP"] in data["provenance"]
    assert data["kinds"] == list(graph.edge_kinds)
    assert [band["layer"] for band in data["bands"]] == [0, 1, 2]


def test_names_cannot_break_out(tmp_path):
    found = page(tmp_path, evil())
    assert len(found.scripts) == 3
    assert "<" not in found.scripts[0][1]
    data = json.loads(found.scripts[0][1])
    assert data["nodes"][0]["name"] == EVIL
    assert [EVIL, EVIL] in data["report"]
    assert [EVIL, EVIL] in data["provenance"]


def test_nothing_comes_from_outside(tmp_path):
    path = to_html(evil(), tmp_path / "c.html")
    found = Page(path.read_text(encoding="utf-8"))
    for tag, attributes in found.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form")
        assert not {"src", "href", "action", "srcset"} & set(attributes)
    program = found.scripts[2][1]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", program)
    assert not re.search(r"https?://|fetch\(|XMLHttpRequest|WebSocket|import\(", program)


def test_the_policy_allows_these_scripts_and_no_request(tmp_path):
    found = page(tmp_path, evil())
    policy = next(a["content"] for _, a in found.tags if a.get("http-equiv"))
    assert "default-src 'none'" in policy
    for _, text in found.scripts[1:]:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "script-src 'unsafe" not in policy


def test_only_the_strongest_are_held(tmp_path):
    graph = transformer_graph(2, 2)
    scores = random_scores(graph)
    circuit = Circuit.from_mask(EdgeMask.full(graph), scores)
    data = json.loads(page(tmp_path, circuit, max_edges=5).scripts[0][1])
    assert (data["held"], data["total"], len(names(data))) == (5, graph.num_edges, 5)
    strongest = scores.values.abs()[[graph.edge_number[name] for name in names(data)]]
    assert data["share"] == f"{float(strongest.sum() / scores.values.abs().sum()):.0%}"
    kept = EdgeMask.from_edges(graph, names(data))
    assert kept.prune_dead_ends() == kept


def test_empty_and_cyclic_circuits(tmp_path):
    ring = ComputationalGraph.from_edges([("a", "b"), ("b", "a"), ("a", "a")])
    for mask in (EdgeMask.full(ring), EdgeMask.empty(ring)):
        data = json.loads(page(tmp_path, Circuit.from_mask(mask)).scripts[0][1])
        assert data["edges"]["state"].count(0) == mask.num_kept


def test_nodes_of_a_row_stand_apart(tmp_path):
    graph = transformer_graph(6, 8, 2)
    scores = random_scores(graph)
    circuit = Circuit.from_mask(scores.connected(300), scores)
    nodes = json.loads(page(tmp_path, circuit).scripts[0][1])["nodes"]
    for one, two in itertools.combinations(nodes, 2):
        beside = abs(one["x"] - two["x"]) >= (one["width"] + two["width"]) / 2
        assert beside or abs(one["y"] - two["y"]) >= (one["height"] + two["height"]) / 2
    place = {node["name"]: node["y"] for node in nodes}
    for name in circuit.edges():
        source, target = name.partition("<")[0].split("->")
        assert place[target] < place[source]  # upwards on a page


def test_two_circuits_on_one_page(tmp_path):
    graph = transformer_graph(3, 4)
    first, second = random_scores(graph), random_scores(graph, 1)
    one, two = (Circuit.from_mask(s.connected(30), s) for s in (first, second))
    data = json.loads(page(tmp_path, one, against=two, names=("a", "b")).scripts[0][1])
    assert [state["name"] for state in data["states"]] == ["both", "a alone", "b alone"]
    assert names(data, 0) == (one & two).edges()
    assert names(data, 1) == (one - two).edges()
    assert names(data, 2) == (two - one).edges()
    bare = Circuit.from_mask(two.mask)
    with pytest.raises(InputError, match="both have scores or neither"):
        to_html(one, tmp_path / "d.html", against=bare)


def test_answers_are_shown_from_the_call_or_the_notes(tmp_path):
    graph = transformer_graph(1, 2)
    rows = [{"prompt": EVIL, "answer": "x", "model": [("x", 0.5)], "circuit": "y"}]
    shown = [{"prompt": EVIL, "answer": "x", "model": [["x", 0.5]], "circuit": [["y", None]]}]
    bare = Circuit.from_mask(EdgeMask.full(graph))
    given = json.loads(page(tmp_path, bare, answers=rows).scripts[0][1])
    assert given["prompts"] == shown
    carrying = Circuit.from_mask(EdgeMask.full(graph), notes={"answers": rows, "x": 1})
    found = json.loads(page(tmp_path, carrying).scripts[0][1])
    assert found["prompts"] == shown
    assert not any(name.startswith("notes.answers") for name, _ in found["provenance"])
    with pytest.raises(InputError, match="circuit missing"):
        to_html(bare, tmp_path / "d.html", answers=[{"prompt": "a", "model": "b"}])
