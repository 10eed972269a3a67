"""The page: one file, nothing from outside, nothing executed that is data."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import torch
from transformer_graph import random_scores, transformer_graph

from graphprune import Circuit, ComputationalGraph, EdgeMask, EdgeScores, Node
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
    assert [e["name"] for e in data["edges"] if not e["wire"]] == circuit.edges()
    assert [n["name"] for n in data["nodes"]] == circuit.nodes()
    assert data["report"] == [["kl", "0.5"], ["a.b", "yes"]]
    assert ["method.name", "EAP"] in data["provenance"]
    assert data["kinds"] == [k for k in graph.edge_kinds if f'"kind":"{k}"' in found.scripts[0][1]]
    assert all(len(e["weights"]) == len(e["distances"]) for e in data["edges"])


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


def test_the_library_comes_with_its_licence(tmp_path):
    library = page(tmp_path, evil()).scripts[1][1]
    assert "The Cytoscape Consortium" in library[:300]
    assert "Permission is hereby granted" in library[:2000]
    assert len(library) < 1_000_000


def test_only_the_strongest_are_held(tmp_path):
    graph = transformer_graph(2, 2)
    scores = random_scores(graph)
    circuit = Circuit.from_mask(EdgeMask.full(graph), scores)
    data = json.loads(page(tmp_path, circuit, max_edges=5).scripts[0][1])
    assert (data["shown"], data["total"], len(data["edges"])) == (5, graph.num_edges, 5)


def test_empty_and_cyclic_circuits(tmp_path):
    ring = ComputationalGraph.from_edges([("a", "b"), ("b", "a"), ("a", "a")])
    for mask in (EdgeMask.full(ring), EdgeMask.empty(ring)):
        data = json.loads(page(tmp_path, Circuit.from_mask(mask)).scripts[0][1])
        assert len(data["edges"]) == mask.num_kept
