"""Edges with the same ends have names of their own; networkx attributes keep their meaning."""

from __future__ import annotations

import itertools
import json

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data
from torch_geometric.nn import GraphConv

import graphprune as gp
from graphprune.errors import GraphMismatchError, InputError
from graphprune.export import export

Graph = gp.ComputationalGraph


def multigraph(pairs):
    graph = nx.MultiDiGraph()
    for u, v in pairs:
        graph.add_edge(u, v)
    return Graph.from_networkx(graph)


def test_doubled_edges_are_numbered_and_none_is_lost():
    graph = Graph.from_edges([("0", "1"), ("0", "1"), ("1", "0"), ("0", "1")])
    assert list(graph.edge_names) == ["0->1", "0->1#2", "1->0", "0->1#3"]
    assert graph.edge_names[-1] == "0->1#3"
    assert graph.edge_names[1:3] == ["0->1#2", "1->0"]
    assert graph.edge_names.at(torch.tensor([3, -3])) == ["0->1#3", "0->1#2"]
    for values in itertools.product((0.0, 1.0), repeat=4):
        mask = gp.EdgeMask(graph, values)
        assert gp.EdgeMask.from_edges(graph, mask.edges()) == mask


def test_a_number_makes_no_other_edges_name():
    graph = Graph.from_edges([("0", "1"), ("0", "1"), ("0", "1#2"), ("0", "1"), ("0", "1#2")])
    assert list(graph.edge_names) == ["0->1", "0->1#3", "0->1#2", "0->1#4", "0->1#2#2"]
    two_ways = Graph.from_edges([("a->b", "c"), ("a", "b->c")])
    assert list(two_ways.edge_names) == ["a->b->c", "a->b->c#2"]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from(["a", "a->", "b", "->b", "b#2", "b<q>", "b<q>#2"]), min_size=2,
             max_size=5, unique=True),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 1)), max_size=12),
)  # fmt: skip
def test_names_are_unique_whatever_nodes_are_called(nodes, edges):
    edges = [(u % len(nodes), v % len(nodes), k) for u, v, k in edges]
    graph = Graph(
        nodes=tuple(map(gp.Node, nodes)),
        edge_index=torch.tensor([e[:2] for e in edges], dtype=torch.int64).reshape(-1, 2).T,
        edge_kind=torch.tensor([e[2] for e in edges], dtype=torch.uint8),
        edge_kinds=("resid", "q"),
        ports=("q",),
    )
    names = list(graph.edge_names)
    assert len(set(names)) == len(names)
    assert [graph.edge_names[i] for i in range(len(names))] == names
    full = gp.EdgeMask.full(graph)
    assert gp.EdgeMask.from_edges(graph, full.edges()) == full
    plain = [f"{nodes[u]}->{nodes[v]}" + ("<q>" if k else "") for u, v, k in edges]
    for name, short in zip(names, plain, strict=True):
        assert name == short or name.startswith(f"{short}#")
    for short in set(plain):  # the first of a name has it as it is
        assert names[plain.index(short)] == short


def test_a_name_given_twice_is_refused_where_it_may_mean_two_edges():
    graph = Graph.from_edges([("0", "1"), ("0", "1"), ("1", "0")])
    with pytest.raises(InputError, match="'0->1', '0->1#2'"):
        gp.EdgeMask.from_edges(graph, ["0->1", "0->1"])
    assert gp.EdgeMask.from_edges(graph, ["1->0", "1->0"]).edges() == ["1->0"]


def test_fingerprints_are_those_of_before():
    """Names are no part of a fingerprint; these were written by version 0.1.0."""
    doubled = Graph.from_edges([("0", "1"), ("0", "1"), ("1", "0")])
    plain = Graph.from_edges([("a", "b"), ("b", "c"), ("a", "c")])
    assert (plain.fingerprint[:16], doubled.fingerprint[:16]) == FINGERPRINTS


FINGERPRINTS = ("b6218d2aa64e06e4", "c9f8100f8f780de5")


def test_pyg_graphs_with_doubled_edges_round_trip(tmp_path):
    index = torch.tensor([[0, 0, 1, 2], [1, 1, 2, 0]])
    model = gp.wrap(GraphConv(4, 2).eval(), data=Data(x=torch.randn(3, 4), edge_index=index))
    graph = model.graph
    for values in ([1, 0, 1, 0], [0, 1, 1, 0]):
        mask = gp.EdgeMask(graph, values)
        scores = gp.EdgeScores(graph, torch.arange(4.0))
        circuit = gp.Circuit.from_mask(mask, scores=scores)
        name = "0->1" if values[0] else "0->1#2"
        assert gp.EdgeMask.from_edges(graph, circuit.edges()) == mask
        folder = circuit.save(tmp_path / name[-1])
        assert gp.Circuit.load(folder).edges() == [name, "1->2"]
        frame = circuit.to_frame()
        assert frame.edge.is_unique
        assert frame.edge[frame.kept > 0].tolist() == [name, "1->2"]
        assert [d["name"] for *_, d in circuit.to_networkx().edges(data=True)] == [name, "1->2"]


@pytest.mark.parametrize("format", ["graphml", "gexf", "json", "cyjs"])
def test_files_keep_every_one_of_doubled_edges(tmp_path, format):
    graph = multigraph([("a", "b"), ("a", "b"), ("b", "a"), ("a", "b")])
    circuit = gp.Circuit.from_mask(gp.EdgeMask(graph, [1, 1, 0, 1]))
    path = tmp_path / f"x.{format}"
    export(circuit, path)
    text = path.read_text(encoding="utf-8")
    read = {
        "graphml": lambda: nx.read_graphml(path),
        "gexf": lambda: nx.read_gexf(path),
        "json": lambda: nx.node_link_graph(json.loads(text), edges="edges"),
        "cyjs": lambda: nx.cytoscape_graph(json.loads(text)),
    }[format]()
    assert sorted(d["name"] for *_, d in read.edges(data=True)) == ["a->b", "a->b#2", "b->a"]
    back = Graph.from_networkx(read)
    assert sorted(back.edge_names) == sorted(circuit.edges())


def test_comparisons_tell_doubled_edges_apart():
    one, two = (multigraph([("a", "b"), ("a", "b"), ("b", "a")]) for _ in range(2))
    first, second = gp.EdgeMask(one, [1, 0, 1]), gp.EdgeMask(two, [0, 1, 1])
    found = gp.compare_circuits({"a": first, "b": second})
    assert found.pairs[0].shared == 1
    other = multigraph([("b", "a"), ("a", "b"), ("a", "b")])
    with pytest.raises(GraphMismatchError):
        gp.compare_circuits({"a": first, "b": gp.EdgeMask(other, [1, 1, 0])})


@pytest.mark.parametrize("key", ["id", "pid", "start", "viz", "parents", "label"])
@pytest.mark.parametrize("format", ["gexf", "json"])
def test_node_attributes_that_a_format_takes_for_its_own(tmp_path, key, format):
    source = nx.DiGraph([("a", "b"), ("b", "c")])
    for node in source:
        source.nodes[node][key] = "7"
    circuit = gp.Circuit.from_mask(gp.EdgeMask.full(Graph.from_networkx(source)))
    path = tmp_path / f"x.{format}"
    export(circuit, path)
    if format == "gexf":
        read = nx.read_gexf(path)
    else:
        read = nx.node_link_graph(json.loads(path.read_text()), edges="edges")
    assert sorted(read) == ["a", "b", "c"]
    assert sorted(read.edges) == [("a", "b"), ("b", "c")]
    assert all("7" in map(str, data.values()) for _, data in read.nodes(data=True))


@pytest.mark.parametrize(
    ("value", "layer"),
    [
        (2, 2), (2.0, 2), (np.int32(2), 2), (np.float32(2), 2), ("2", 2), ("-1", -1),
        (2.5, None), ("hidden", None), ("2.5", None), ((0, 1), None), (float("nan"), None),
        (float("inf"), None), ([1], None), ({"x": 1}, None), (True, None), ("", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["layer", "index"])
def test_a_layer_is_a_whole_number_or_the_users_own(key, value, layer, tmp_path):
    source = nx.DiGraph([("a", "b")])
    source.nodes["a"][key] = value
    graph = Graph.from_networkx(source)
    node, plain = graph.nodes
    assert getattr(node, key) == layer
    assert dict(node.attributes) == ({} if layer is not None else {key: value})
    assert getattr(plain, key) is None
    assert not plain.attributes
    again = Graph.from_networkx(graph.to_networkx())
    assert again == graph
    circuit = gp.Circuit.from_mask(gp.EdgeMask.full(graph))
    for suffix in ("graphml", "gexf", "json", "cyjs", "dot", "csv"):
        export(circuit, tmp_path / f"x.{suffix}")
    back = Graph.from_networkx(nx.read_graphml(tmp_path / "x.graphml"))
    assert getattr(back.nodes[0], key) == layer
    loaded = gp.Circuit.load(circuit.save(tmp_path / "folder"))
    assert loaded.graph == graph
    assert (key in loaded.graph.nodes[0].attributes) == (layer is None)


def test_kinds_of_edges_beyond_a_byte_are_refused():
    source = nx.DiGraph()
    for i in range(257):
        source.add_edge(i, i + 1, kind=f"synapse {i}")
    with pytest.raises(InputError, match=r"257 kinds of edges.*at most 256"):
        Graph.from_networkx(source)
    source.remove_edge(0, 1)
    graph = Graph.from_networkx(source)
    assert [graph.edge_kinds[k] for k in graph.edge_kind] == [f"synapse {i}" for i in range(1, 257)]


def test_kinds_may_hold_commas():
    source = nx.DiGraph()
    source.add_edge("a", "b", kind="x,y")
    source.add_edge("b", "c", kind="x")
    source.add_edge("c", "a", kind="")
    graph = Graph.from_networkx(source)
    assert graph.edge_kinds == ("x,y", "x", "")
    assert Graph.from_networkx(graph.to_networkx()) == graph


def test_graphs_that_were_read_and_changed_load():
    written = Graph.from_edges([("a", "b"), ("b", "c")]).to_networkx()
    written.add_edge("c", "a", kind="feedback")
    graph = Graph.from_networkx(written)
    assert list(graph.edge_names) == ["a->b", "b->c", "c->a"]
    assert graph.edge_kinds == ("message", "feedback")
    written.graph["inputs"] = "image"
    with pytest.raises(InputError, match=r"'inputs' must hold numbers of nodes.*'image'"):
        Graph.from_networkx(written)
