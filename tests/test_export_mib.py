"""MIB's and EAP-IG's score files, both ways."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformer_graph import random_scores, transformer_graph

from graphprune import Circuit, ComputationalGraph, EdgeMask, EdgeScores, NodeScores
from graphprune.errors import FormatError, GraphMismatchError, InputError
from graphprune.export import (
    MIBNodes,
    from_mib_json,
    from_mib_nodes,
    from_mib_pt,
    to_mib_json,
    to_mib_pt,
)

SHAPES = [(1, 2, None, False), (2, 3, None, True), (3, 4, 2, False), (2, 4, 1, True)]
WAYS = {"json": (to_mib_json, from_mib_json), "pt": (to_mib_pt, from_mib_pt)}

# By hand, as the reference writes it: one layer, two heads.
HAND = {
    "cfg": {"n_layers": 1, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 4},
    "nodes": {
        "input": {"in_graph": True},
        "a0.h0": {"in_graph": False},
        "a0.h1": {"in_graph": True},
        "m0": {"in_graph": False},
        "logits": {"in_graph": True},
    },
    "edges": {
        "input->a0.h0<q>": {"score": -1.25, "in_graph": False},
        "input->a0.h0<k>": {"score": 0.0, "in_graph": False},
        "input->a0.h0<v>": {"score": 0.5, "in_graph": False},
        "input->a0.h1<q>": {"score": 2.0, "in_graph": True},
        "input->a0.h1<k>": {"score": 0.25, "in_graph": False},
        "input->a0.h1<v>": {"score": -3.0, "in_graph": True},
        "input->m0": {"score": 0.125, "in_graph": False},
        "a0.h0->m0": {"score": 0.0, "in_graph": False},
        "a0.h1->m0": {"score": 1.0, "in_graph": False},
        "input->logits": {"score": 0.75, "in_graph": False},
        "a0.h0->logits": {"score": -0.5, "in_graph": False},
        "a0.h1->logits": {"score": 4.0, "in_graph": True},
        "m0->logits": {"score": 0.0, "in_graph": False},
    },
}


def graph_of(shape) -> ComputationalGraph:
    layers, heads, kv, parallel = shape
    return transformer_graph(layers, heads, kv, parallel=parallel)


def written(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_text(json.dumps(content))
    return path


def changed(**parts):
    content = json.loads(json.dumps(HAND))
    content.update(parts)
    return content


def test_the_hand_written_file_is_read_and_written_exactly(tmp_path):
    graph = transformer_graph(1, 2)
    scores, mask = from_mib_json(written(tmp_path, HAND), graph)
    for name, entry in HAND["edges"].items():
        number = graph.edge_number[name]
        assert float(scores.values[number]) == entry["score"]
        assert bool(mask.kept[number]) is entry["in_graph"]
    circuit = Circuit(graph, mask, scores, provenance={"model": {"d_model": 4}})
    to_mib_json(circuit, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == json.dumps(HAND)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", WAYS)
def test_round_trip(tmp_path, shape, way):
    graph = graph_of(shape)
    scores = random_scores(graph)
    mask = scores.top(0.3)
    write, read = WAYS[way]
    write(scores, tmp_path / "f", mask=mask, d_model=8)
    again, kept = read(tmp_path / "f", graph)
    assert again.values.equal(scores.values)
    assert kept == mask


@pytest.mark.parametrize("parallel", [False, True])
def test_edges_stand_in_the_references_order(tmp_path, parallel):
    # The reference adds edges layer by layer, along the residual stream.
    layers, heads = 2, 2
    expected, stream = [], ["input"]
    for layer in range(layers):
        attention = [f"a{layer}.h{h}" for h in range(heads)]
        for writer in stream:
            expected += [f"{writer}->{a}<{p}>" for a in attention for p in "qkv"]
            if parallel:
                expected.append(f"{writer}->m{layer}")
        stream += attention
        if not parallel:
            expected += [f"{writer}->m{layer}" for writer in stream]
        stream.append(f"m{layer}")
    expected += [f"{writer}->logits" for writer in stream]
    scores = random_scores(transformer_graph(layers, heads, parallel=parallel))
    to_mib_json(scores, tmp_path / "f.json", d_model=8)
    assert list(json.loads((tmp_path / "f.json").read_text())["edges"]) == expected


def test_gpt2_small_has_the_fields_size(tmp_path):
    scores = random_scores(transformer_graph(12, 12))
    path = to_mib_pt(scores, tmp_path / "f.pt", d_model=768)
    content = torch.load(path, weights_only=True)
    assert content["edges_scores"].shape == (157, 445)
    assert int((content["edges_scores"] != 0).sum()) == 32491
    assert content["dst_nodes"][12] == "a0.h0<k>"


def test_a_native_key_edge_stands_once_for_each_query_head(tmp_path):
    graph = transformer_graph(1, 4, 2)
    scores = random_scores(graph)
    mask = EdgeMask.from_edges(graph, ["input->a0.kv1<k>"])
    to_mib_json(scores, tmp_path / "f.json", mask=mask, d_model=8)
    edges = json.loads((tmp_path / "f.json").read_text())["edges"]
    assert [name for name, e in edges.items() if e["in_graph"]] == [
        "input->a0.h2<k>",
        "input->a0.h3<k>",
    ]
    native = float(scores.values[graph.edge_number["input->a0.kv1<k>"]])
    assert edges["input->a0.h2<k>"]["score"] == edges["input->a0.h3<k>"]["score"] == native
    # The sizes agree with an ungrouped model's.
    assert len(edges) == transformer_graph(1, 4).num_edges


def test_disagreeing_repeats_are_named_or_reduced(tmp_path):
    grouped, plain = transformer_graph(1, 4, 2), transformer_graph(1, 4)
    values = torch.zeros(plain.num_edges)
    values[plain.edge_number["input->a0.h2<k>"]] = 1.0
    values[plain.edge_number["input->a0.h3<k>"]] = -3.0
    mask = EdgeMask.from_edges(plain, ["input->a0.h2<k>"])
    path = to_mib_json(EdgeScores(plain, values), tmp_path / "f.json", mask=mask, d_model=8)
    with pytest.raises(FormatError, match=r"input->a0\.kv1<k> disagree \(input->a0\.h2<k> 1 in"):
        from_mib_json(path, grouped)
    edge = grouped.edge_number["input->a0.kv1<k>"]
    for how, expected in (("sum", -2.0), ("any", -3.0)):
        scores, kept = from_mib_json(path, grouped, ungrouped=how)
        assert float(scores.values[edge]) == expected
        assert kept.edges() == ["input->a0.kv1<k>"]
    with pytest.raises(InputError, match="unknown ungrouped"):
        from_mib_json(path, grouped, ungrouped="mean")


def test_pt_has_exactly_the_references_keys(tmp_path):
    graph = transformer_graph(1, 2)
    to_mib_pt(random_scores(graph), tmp_path / "f.pt", d_model=8)
    found = torch.load(tmp_path / "f.pt", weights_only=True)
    assert list(found) == [
        "cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph", "nodes_in_graph",
    ]  # fmt: skip
    assert found["src_nodes"] == ["input", "a0.h0", "a0.h1", "m0"]
    assert found["dst_nodes"] == [
        "a0.h0<q>", "a0.h1<q>", "a0.h0<k>", "a0.h1<k>", "a0.h0<v>", "a0.h1<v>", "m0", "logits",
    ]  # fmt: skip
    assert found["edges_scores"].dtype == torch.float32
    assert found["edges_in_graph"].dtype == found["nodes_in_graph"].dtype == torch.bool


@pytest.mark.parametrize("way", WAYS)
def test_nodes_and_neurons_round_trip(tmp_path, way):
    graph = transformer_graph(2, 2)
    values = torch.zeros(graph.num_nodes)
    values[graph.node_number["a0.h1"]], values[graph.node_number["input"]] = 2.5, -1.0
    nodes = NodeScores(graph, values, {"a0.h1": torch.tensor([1.0, -2.0, 0.0])})
    file = MIBNodes(nodes, neurons_unscored={"a0.h1": torch.tensor([False, False, True])})
    path = tmp_path / f"f.{way}"
    WAYS[way][0](nodes, path, nodes=file, mask=nodes.top(2), d_model=3)
    again = from_mib_nodes(path, graph)
    assert again.scores.values.equal(values)
    assert again.unscored == ()
    assert again.kept["a0.h1"]
    assert not again.kept["m0"]
    assert again.scores.neurons["a0.h1"].tolist() == [1.0, -2.0, 0.0]
    assert again.neurons_unscored["a0.h1"].tolist() == [False, False, True]
    assert again.neurons_unscored["m0"].all()
    assert again.neurons_kept["a0.h1"].all()
    # And once more, from what was read.
    path = tmp_path / f"g.{way}"
    WAYS[way][0](again.scores, path, nodes=again, mask=nodes.top(2), d_model=3)
    once_more = from_mib_nodes(path, graph)
    for name, missing in again.neurons_unscored.items():
        assert once_more.neurons_unscored[name].equal(missing)
        assert once_more.scores.neurons[name].equal(again.scores.neurons[name])


def test_logits_never_carries_a_score(tmp_path):
    graph = transformer_graph(1, 2)
    nodes = NodeScores(graph, torch.ones(graph.num_nodes))
    to_mib_json(nodes, tmp_path / "f.json", d_model=4)
    found = json.loads((tmp_path / "f.json").read_text())["nodes"]
    assert found["logits"] == {"in_graph": True}
    assert found["m0"] == {"in_graph": False, "score": 1.0}


def test_edges_and_nodes_in_one_file(tmp_path):
    graph = transformer_graph(1, 2)
    scores, nodes = random_scores(graph), NodeScores(graph, torch.ones(graph.num_nodes))
    path = to_mib_json(scores, tmp_path / "f.json", nodes=nodes, d_model=4)
    assert from_mib_json(path, graph)[0].values.equal(scores.values)
    assert from_mib_nodes(path, graph).scores.values[0] == 1.0


def test_a_file_without_node_scores_has_none(tmp_path):
    graph = transformer_graph(1, 2)
    nodes = from_mib_nodes(written(tmp_path, HAND), graph)
    assert nodes.unscored == ("input", "a0.h0", "a0.h1", "m0")
    assert nodes.kept == {"input": True, "a0.h0": False, "a0.h1": True, "m0": False}


def test_nan_is_an_error_or_an_option(tmp_path):
    graph = transformer_graph(1, 2)
    content = changed()
    content["edges"]["a0.h1->m0"]["score"] = math.nan
    path = written(tmp_path, content)
    with pytest.raises(FormatError, match=r"1 of 13 edges have no score .*first 'a0.h1->m0'"):
        from_mib_json(path, graph)
    number = graph.edge_number["a0.h1->m0"]
    assert from_mib_json(path, graph, unscored="zero")[0].values[number] == 0
    assert from_mib_json(path, graph, unscored="keep")[0].top(1).edges() == ["a0.h1->m0"]


def without(part, key):
    content = changed()
    del content[part][key]
    return content


def with_entry(part, key, value):
    content = changed()
    content[part][key] = value
    return content


BAD_JSON = {
    "keys": ({"cfg": {}, "nodes": {}}, r"missing keys \['edges'\]"),
    "list": ([], "got list"),
    "edge missing": (without("edges", "m0->logits"), "first one missing is 'm0->logits'"),
    "edge unknown": (
        with_entry("edges", "m0->a0.h0<q>", {"score": 0, "in_graph": False}),
        "no edge 'm0->a0.h0<q>'",
    ),
    "edge without in_graph": (
        with_entry("edges", "m0->logits", {"score": 1}),
        "'m0->logits' should have score and in_graph",
    ),
    "score a text": (
        with_entry("edges", "m0->logits", {"score": "1", "in_graph": True}),
        "'m0->logits': expected a number",
    ),
    "score too large": (
        with_entry("edges", "m0->logits", {"score": 1e300, "in_graph": True}),
        "'m0->logits' is infinite",
    ),
    "in_graph a number": (
        with_entry("edges", "m0->logits", {"score": 1, "in_graph": 0.5}),
        "expected true or false",
    ),
    "node missing": (without("nodes", "m0"), r"nodes lack \['m0'\]"),
    "node unknown": (with_entry("nodes", "m9", {"in_graph": True}), r"besides \['m9'\]"),
    "node key": (with_entry("nodes", "m0", {"in_graph": True, "x": 1}), "node 'm0' should"),
    "neurons": (
        with_entry("nodes", "m0", {"in_graph": True, "neurons": [True], "neurons_scores": []}),
        "different lengths",
    ),
    "other model": (with_entry("cfg", "n_heads", 3), "cfg says n_heads=3, the graph has 2"),
    "other wiring": (with_entry("cfg", "parallel_attn_mlp", True), "parallel_attn_mlp=True"),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_bad_json_is_refused(tmp_path, name):
    content, message = BAD_JSON[name]
    with pytest.raises(FormatError, match=message):
        from_mib_json(written(tmp_path, content), transformer_graph(1, 2))


def test_bad_pt_is_refused(tmp_path):
    graph = transformer_graph(1, 2)
    path = tmp_path / "f.pt"
    to_mib_pt(random_scores(graph), path, d_model=8)
    good = torch.load(path, weights_only=True)
    stray = good["edges_in_graph"].clone()
    stray[3, 0] = True
    for change, message in (
        ({"more": 1}, r"unexpected keys \['more'\]"),
        ({"src_nodes": ["input"]}, "src_nodes should be"),
        ({"edges_scores": torch.zeros(2, 2)}, r"edges_scores should be a tensor \[4, 8\]"),
        ({"edges_in_graph": stray}, "no edge 'm0->a0.h0<q>'"),
        ({"nodes_scores": [1.0]}, r"nodes_scores should be a tensor \[4\], got list"),
        ({"edges_scores": torch.full((4, 8), torch.nan)}, "have no score"),
        ({"cfg": None}, "cfg should be a mapping"),
    ):
        torch.save({**good, **change}, path)
        with pytest.raises(FormatError, match=message):
            from_mib_pt(path, graph)
    torch.save({k: v for k, v in good.items() if k != "cfg"}, path)
    with pytest.raises(FormatError, match=r"missing keys \['cfg'\]"):
        from_mib_pt(path, graph)
    path.write_bytes(b"nonsense")
    with pytest.raises(FormatError, match=r"no \.pt file that can be read safely"):
        from_mib_pt(path, graph)
    torch.save({**good, "cfg": SHAPES.append}, path)
    with pytest.raises(FormatError, match=r"no \.pt file that can be read safely"):
        from_mib_pt(path, graph)


def test_what_cannot_be_written_is_refused(tmp_path):
    graph = transformer_graph(1, 2)
    with pytest.raises(InputError, match="give d_model="):
        to_mib_json(random_scores(graph), tmp_path / "f.json")
    ring = ComputationalGraph.from_edges([("a", "b"), ("b", "a")])
    with pytest.raises(InputError, match="is no such graph"):
        to_mib_json(EdgeMask.full(ring), tmp_path / "f.json", d_model=4)
    other = EdgeMask.full(transformer_graph(1, 3))
    with pytest.raises(GraphMismatchError):
        to_mib_json(random_scores(graph), tmp_path / "f.json", mask=other, d_model=4)
    fewer = ComputationalGraph(
        graph.nodes, graph.edge_index[:, 1:], graph.edge_kind[1:], graph.edge_kinds, graph.ports
    )
    with pytest.raises(InputError, match=r"lacks the edge input->a0\.h0<q>"):
        to_mib_json(EdgeMask.full(fewer), tmp_path / "f.json", d_model=4)
    assert list(tmp_path.iterdir()) == []
