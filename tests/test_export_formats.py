"""Formats of other programs: every file is read back by the library that defines it."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess

import networkx as nx
import pytest
import torch
from transformer_graph import random_scores, transformer_graph

from graphprune import Circuit, ComputationalGraph, EdgeMask, Node
from graphprune.errors import InputError
from graphprune.export import export, to_explanation

ODD = ('say "hi" & <b>', "back\\slash\nline", "a:b;{c}", "ключ")


def circuit() -> Circuit:
    graph = transformer_graph(2, 4, 2)
    scores = random_scores(graph)
    provenance = {"model": {"model": "toy", "d_model": 8}}
    return Circuit(graph, scores.greedy(25), scores, provenance=provenance)


def odd() -> Circuit:
    graph = ComputationalGraph(
        nodes=tuple(Node(name, attributes={"label": "x", "list": [1]}) for name in ODD),
        edge_index=torch.tensor([[0, 0, 1, 2, 3], [1, 1, 2, 3, 0]]),
        edge_kind=torch.zeros(5, dtype=torch.uint8),
    )
    return Circuit.from_mask(EdgeMask.full(graph))


def same_edges(read, written) -> None:
    def rows(graph):
        return sorted((u, v, d["name"], d["kind"]) for u, v, d in graph.edges(data=True))

    assert rows(read) == rows(written)


@pytest.mark.parametrize("make", [circuit, odd])
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("c.graphml", nx.read_graphml),
        ("c.gexf", nx.read_gexf),
        ("c.json", lambda p: nx.node_link_graph(json.loads(p.read_text()), edges="edges")),
        ("c.cyjs", lambda p: nx.cytoscape_graph(json.loads(p.read_text()))),
    ],
)
def test_networkx_reads_back_what_it_defines(tmp_path, make, name, read):
    made = make()
    network = made.to_networkx()
    again = read(export(made, tmp_path / name))
    assert set(again) == set(network)
    same_edges(again, network)
    for _, _, data in again.edges(data=True):
        if "score" in data:
            number = data["number"]
            assert float(data["score"]) == float(made.scores.values[number])
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_xml_cannot_hold_control_characters(tmp_path):
    graph = ComputationalGraph.from_edges([("a\x00b", "c\ud800"), ("c\ud800", "d")])
    made = Circuit.from_mask(EdgeMask.full(graph))
    assert "a�b" in nx.read_graphml(export(made, tmp_path / "c.graphml"))
    assert "c�" in nx.read_gexf(export(made, tmp_path / "c.gexf"))


@pytest.mark.parametrize("make", [circuit, odd])
def test_dot_is_quoted(tmp_path, make):
    path = export(make(), tmp_path / "c.dot")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("digraph circuit {")
    assert text.count("->") >= make().mask.num_kept
    if shutil.which("dot"):
        drawn = subprocess.run(["dot", "-Tplain", path], capture_output=True, text=True, check=True)
        nodes = [line for line in drawn.stdout.splitlines() if line.startswith("node ")]
        assert len(nodes) == len(make().to_networkx())


def test_other_suffixes(tmp_path):
    made = circuit()
    assert Circuit.load(export(made, tmp_path / "folder")) == made
    rows = list(csv.DictReader(export(made, tmp_path / "c.csv").read_text().splitlines()))
    assert len(rows) == made.graph.num_edges
    found = json.loads(export(made, tmp_path / "c.mib.json").read_text())
    assert found["cfg"]["d_model"] == 8
    assert torch.load(export(made, tmp_path / "c.pt"), weights_only=True)["cfg"]["n_heads"] == 4
    assert "digraph" in export(made, tmp_path / "c.txt", format="dot").read_text()


def test_an_unknown_format_lists_the_known(tmp_path):
    with pytest.raises(InputError, match=r"no export format; known are .*graphml \(\.graphml"):
        export(circuit(), tmp_path / "c.docx")
    with pytest.raises(InputError, match="no export format 'xml'"):
        export(circuit(), tmp_path / "c.dot", format="xml")
    (tmp_path / "c.dot").mkdir()
    with pytest.raises(InputError, match="got the folder"):
        export(circuit(), tmp_path / "c.dot")


# torch_geometric itself scripts functions while it is imported.
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_explanation_is_valid():
    pytest.importorskip("torch_geometric")
    made = circuit()
    explanation = to_explanation(made)
    assert explanation.validate()
    assert explanation.edge_mask.equal(made.mask.values)
    assert explanation.edge_index.equal(made.graph.edge_index)
    touched = [n.name for n, t in zip(made.graph.nodes, explanation.node_mask, strict=True) if t]
    assert touched == made.nodes()


def test_two_wires_between_the_same_nodes_stay_two():
    graph = ComputationalGraph(
        nodes=tuple(Node(name, "node") for name in "abc"),
        edge_index=torch.tensor([[0, 0], [1, 2]]),
        edge_kind=torch.zeros(2, dtype=torch.uint8),
        edge_kinds=("message",),
        fixed_edge_index=torch.tensor([[1, 1], [2, 2]]),
    )
    whole = Circuit.from_mask(EdgeMask.full(graph)).to_networkx()
    assert sorted(whole.edges(keys=True))[2:] == [("b", "c", "wire"), ("b", "c", "wire#1")]
