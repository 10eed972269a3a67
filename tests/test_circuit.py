"""The circuit as a value: what it holds, its set algebra, its networkx graph."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import networkx as nx
import pytest
import torch
from transformer_graph import random_scores, transformer_graph

from graphprune import Ablation, Circuit, ComputationalGraph, EdgeMask, EdgeScores
from graphprune.errors import GraphMismatchError, InputError


@dataclass(frozen=True)
class SomeMethod:
    steps: int = 5
    seed: int = 7


class Report:
    def to_dict(self):
        return {"kl": torch.tensor(0.25), "sizes": (1, 2), "bad": float("nan")}


def test_the_toy_graph_has_the_closed_formulas_edges():
    assert transformer_graph(12, 12).num_edges == 32491
    # Grouped: H_q + 2 H_kv readers of attention inputs (DESIGN §2).
    layers, heads, kv = 3, 4, 2
    expected = sum(
        (heads + 2 * kv) * (1 + n * (heads + 1)) + 1 + n * (heads + 1) + heads
        for n in range(layers)
    )
    assert transformer_graph(layers, heads, kv).num_edges == expected + 1 + layers * (heads + 1)


def test_provenance_is_plain_and_names_method_settings_seed_and_versions():
    graph = transformer_graph(1, 2)
    scores = random_scores(graph)
    circuit = Circuit.from_mask(scores.top(3), scores, method=SomeMethod(), report=Report())
    assert circuit.provenance["method"] == {
        "name": "SomeMethod",
        "settings": {"steps": 5, "seed": 7},
    }
    assert circuit.provenance["seed"] == 7
    assert torch.__version__.startswith(circuit.provenance["versions"]["torch"])  # less its build
    assert circuit.provenance["created"].startswith("20")
    assert circuit.report_dict() == {"kl": 0.25, "sizes": [1, 2], "bad": "NaN"}
    assert Circuit.from_mask(scores.top(3), scores).provenance["method"] == {"name": "EAP"}
    assert Circuit.from_mask(scores.top(3), seed=3, method="mine").provenance["seed"] == 3


def test_parts_of_different_graphs_are_refused():
    one, two = transformer_graph(1, 2), transformer_graph(1, 3)
    with pytest.raises(GraphMismatchError, match="the circuit and its scores"):
        Circuit.from_mask(EdgeMask.full(one), random_scores(two))
    with pytest.raises(GraphMismatchError):
        Circuit(one, EdgeMask.full(two))
    with pytest.raises(InputError, match="report must be a dict"):
        Circuit.from_mask(EdgeMask.full(one), report=3)


def test_set_algebra_keeps_both_provenances():
    graph = transformer_graph(2, 2)
    scores = random_scores(graph)
    small = Circuit.from_mask(scores.top(4), scores, method="a")
    large = Circuit.from_mask(scores.top(10), method="b")
    both = small & large
    assert both.mask == small.mask
    assert both.scores is scores
    assert both.provenance["operation"] == "and"
    assert [p["method"]["name"] for p in both.provenance["operands"]] == ["a", "b"]
    assert (small | large).mask == large.mask
    assert (large - small).mask.num_kept == (large ^ small).mask.num_kept == 6
    assert small.jaccard(large) == pytest.approx(0.4)


def test_equality_reads_mask_scores_and_provenance():
    graph = transformer_graph(1, 2)
    scores = random_scores(graph)
    mask = scores.top(3)
    same = {"provenance": {"seed": 1}}
    assert Circuit(graph, mask, scores, **same) == Circuit(graph, mask, scores, **same)
    assert Circuit(graph, mask, scores) != Circuit(graph, mask)
    assert Circuit(graph, mask, scores) != Circuit(graph, mask, scores, **same)
    assert Circuit(graph, mask) != mask


def test_to_networkx_keeps_ports_apart_and_is_plain():
    graph = transformer_graph(2, 4, 2)
    names = ["input->a0.kv0<k>", "input->a0.kv0<v>", "input->a0.h1<q>", "a0.h1->logits"]
    mask = EdgeMask.from_edges(graph, names)
    network = Circuit.from_mask(mask, random_scores(graph)).to_networkx()
    assert isinstance(network, nx.MultiDiGraph)
    assert set(network["input"]["a0.kv0"]) == {"k", "v"}
    assert network.nodes["a0.h1"] == {"kind": "head", "layer": 0, "index": 1}
    wires = [(u, v) for u, v, d in network.edges(data=True) if d.get("fixed")]
    assert wires == [("a0.kv0", "a0.h1")]  # a0.h0 is untouched
    for data in [d for _, d in network.nodes(data=True)] + [
        d for _, _, d in network.edges(data=True)
    ]:
        assert all(type(value) in (str, int, float, bool) for value in data.values())
    again = ComputationalGraph.from_networkx(network)
    assert sorted(again.edge_names) == sorted(names)
    assert [again.nodes[i].name for i in again.output_nodes] == ["logits"]


def test_to_networkx_is_a_digraph_where_no_edges_are_parallel():
    graph = ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("c", "a")])
    network = Circuit.from_mask(EdgeMask(graph, torch.tensor([1.0, 0.5, 0.0]))).to_networkx()
    assert type(network) is nx.DiGraph
    assert network["b"]["c"] == {"name": "b->c", "kind": "message", "kept": 0.5, "number": 1}


def test_parallel_edges_of_one_kind_survive():
    graph = ComputationalGraph.from_edges([("a", "b"), ("a", "b")])
    network = Circuit.from_mask(EdgeMask.full(graph)).to_networkx()
    assert network.number_of_edges() == 2


def test_frame_has_kept_and_score():
    graph = ComputationalGraph.from_edges([("a", "b"), ("b", "c")])
    circuit = Circuit.from_mask(
        EdgeMask(graph, torch.tensor([1.0, 0.0])), EdgeScores(graph, torch.tensor([2.0, -1.0]))
    )
    frame = circuit.to_frame()
    assert list(frame.columns) == ["edge", "source", "target", "kind", "kept", "score"]
    assert frame.kept.tolist() == [1.0, 0.0]
    assert list(circuit.to_networkx()) == ["a", "b"]


@dataclass(frozen=True)
class MeanMethod:
    ablation: Ablation
    start: torch.Tensor
    nested: tuple[torch.Tensor, float]
    one: torch.Tensor


def test_tensors_in_a_methods_settings_become_a_short_text():
    scores = random_scores(transformer_graph(1, 2))

    def settings(values):
        ablation = Ablation("mean", {"a0": values}, True)
        method = MeanMethod(ablation, values, (torch.zeros(0), 0.5), torch.tensor(3))
        circuit = Circuit.from_mask(scores.top(3), scores, method=method)
        assert len(json.dumps(circuit.provenance)) < 2000
        return circuit.provenance["method"]["settings"]

    found = settings(torch.ones(50, 40))
    assert found["ablation"] == "Ablation('mean_positional')"
    assert re.fullmatch(r"tensor\[50, 40\] sha256:[0-9a-f]{12}", found["start"])
    assert found["nested"][0].startswith("tensor[0] sha256:")
    assert (found["nested"][1], found["one"]) == (0.5, 3)
    assert settings(torch.ones(50, 40)) == found
    others = [
        torch.ones(40, 50),
        torch.ones(50, 40, dtype=torch.bfloat16),
        torch.ones(50, 40, dtype=torch.bool),
        torch.full((50, 40), 1.5),
    ]
    assert len({settings(other)["start"] for other in (torch.ones(50, 40), *others)}) == 5
    # How it lies in memory does not matter.
    turned = torch.arange(6.0).reshape(3, 2)
    assert settings(turned.T)["start"] == settings(turned.T.contiguous())["start"]
