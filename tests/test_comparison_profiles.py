"""Profiles: counted by hand, tested by enumeration, and across models."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom, norm
from support.rings import Rings
from support.tiny import tiny
from transformer_graph import random_scores, transformer_graph

import graphprune as gp
from graphprune.comparison import profile_difference
from graphprune.errors import InputError

GRAPH = transformer_graph(3, 2)

PROFILE_AXES = ("source_level", "target_level", "distance", "source_kind", "target_kind", "kind")


def test_groups_by_hand():
    names = ["input->a0.h1<q>", "a0.h1->m0", "a0.h1->a2.h0<v>", "m0->m2", "m2->logits"]
    profile = gp.circuit_profile(gp.EdgeMask.from_edges(GRAPH, names))
    kept = {(g.axis, g.group): g.kept for g in profile.groups if g.kept}
    assert kept == {
        ("source_level", "input"): 1, ("source_level", "0"): 3, ("source_level", "2"): 1,
        ("target_level", "0"): 2, ("target_level", "2"): 2, ("target_level", "output"): 1,
        ("distance", "0"): 1, ("distance", "1"): 2, ("distance", "2"): 2,
        ("source_kind", "embed"): 1, ("source_kind", "head"): 2, ("source_kind", "mlp"): 2,
        ("target_kind", "head"): 2, ("target_kind", "mlp"): 2, ("target_kind", "output"): 1,
        ("kind", "q"): 1, ("kind", "v"): 1, ("kind", "mlp"): 2, ("kind", "resid"): 1,
    }  # fmt: skip
    frame = profile.to_frame()
    assert (frame.groupby("axis")["kept"].sum() == 5).all()
    assert (frame.groupby("axis")["edges"].sum() == GRAPH.num_edges).all()
    assert frame.groupby("axis")["share"].sum().to_numpy() == pytest.approx(1)
    queries = profile.group("kind", "q")
    every = sum(name.endswith("<q>") for name in GRAPH.edge_names)
    assert queries.enrichment == pytest.approx((1 / 5) / (every / GRAPH.num_edges))


def test_p_values_are_scipys_and_adjusted():
    mask = random_scores(GRAPH).top(30)
    profile = gp.circuit_profile(mask)
    raw = []
    for group in profile.groups:
        truth = hypergeom(GRAPH.num_edges, group.edges, 30)
        p = 2 * min(truth.sf(group.kept - 1), truth.cdf(group.kept))
        assert group.p == pytest.approx(min(1, p)), group
        raw.append(group.p)
    adjusted = [group.p_adjusted for group in profile.groups]
    assert adjusted == pytest.approx(gp.comparison.holm(raw))


def test_false_alarms_are_rare():
    """Among random circuits at most one in twenty has any adjusted p below 0.05."""
    alarms = 0
    for seed in range(100):
        [mask] = gp.statistics.random_circuits(
            random_scores(GRAPH).top(30), 1, match="size", seed=seed
        )
        groups = gp.circuit_profile(mask).groups
        alarms += any(g.p_adjusted is not None and g.p_adjusted < 0.05 for g in groups)
    assert alarms <= 8


def test_a_planted_bias_is_found():
    layer = torch.tensor([0 if n.layer is None else n.layer for n in GRAPH.nodes])
    bias = 8.0 * (layer[GRAPH.edge_index[1]] == 2)
    mask = gp.EdgeScores(GRAPH, random_scores(GRAPH).values.abs() + bias).top(20)
    profile = gp.circuit_profile(mask)
    group = profile.group("target_level", "2")
    assert group.kept > 15
    assert group.p_adjusted < 1e-3
    assert group.enrichment > 1.5


def test_a_difference_is_tested_by_exchanging_what_is_not_shared():
    one = gp.EdgeMask.from_edges(GRAPH, ["input->a0.h0<q>", "input->m0", "m0->m1", "m1->logits"])
    two = gp.EdgeMask.from_edges(GRAPH, ["input->a0.h0<q>", "m0->m2", "m1->m2"])
    found = gp.circuit_profile(one).difference(gp.circuit_profile(two))
    only = [e for e in one.edges() if e not in two.edges()]
    apart = [*only, *(e for e in two.edges() if e not in one.edges())]
    assert (len(only), len(apart)) == (3, 5)
    into_two = {"m0->m2", "m1->m2"}
    counts = [sum(e in into_two for e in some) for some in combinations(apart, 3)]
    p = min(1, 2 * min(np.mean([c >= 0 for c in counts]), np.mean([c <= 0 for c in counts])))
    group = found.group("target_level", "2")
    assert group.p == pytest.approx(p)
    assert (group.test, group.difference) == ("exchange", pytest.approx(-2 / 3))
    shares = [{"0": 2 / 4, "1": 1 / 4, "output": 1 / 4}, {"0": 1 / 3, "2": 2 / 3}]
    wanted = sum(abs(shares[0].get(n, 0) - shares[1].get(n, 0)) for n in "012") / 2 + 1 / 8
    assert found.distance["target_level"] == pytest.approx(wanted)
    assert found.graph_distance["target_level"] == 0
    back = gp.circuit_profile(two).difference(gp.circuit_profile(one))
    assert back.group("target_level", "2").p == pytest.approx(p)
    assert back.distance == pytest.approx(found.distance)


def test_between_models_odds_ratios_are_compared():
    other = transformer_graph(5, 3)
    masks = {"small": random_scores(GRAPH, 1).top(40), "large": random_scores(other, 2).top(90)}
    found = gp.compare_profiles(masks)
    assert not found.same_graph
    assert found.axes == ("source_depth", "target_depth", "source_kind", "target_kind", "kind")
    group = found.differences["small", "large"].group("kind", "q")
    logs, spread = [], 0.0
    for mask in masks.values():
        query = np.array([name.endswith("<q>") for name in mask.graph.edge_names])
        kept = mask.kept.numpy()
        cells = [(kept & query), (~kept & query), (kept & ~query), (~kept & ~query)]
        a, b, c, d = (cell.sum() + 0.5 for cell in cells)
        logs.append(np.log(a / b / (c / d)))
        spread += 1 / a + 1 / b + 1 / c + 1 / d
    assert group.test == "woolf"
    assert group.p == pytest.approx(2 * norm.sf(abs(logs[0] - logs[1]) / np.sqrt(spread)))
    assert found.differences["small", "large"].graph_distance["kind"] > 0
    assert set(found.to_frame()["circuit"]) == {"small", "large"}
    assert set(found.differences_frame()["first"]) == {"small"}
    json.dumps(found.to_dict(), allow_nan=False)


def test_models_of_different_depth_and_the_graph_of_one_axis():
    """The same habit in two depths is told from chance by relative depth no more than it should be.

    Plain shares are the same, a quarter each; what the graphs offer in these quarters is not.
    """
    masks = {}
    for layers in (4, 8):
        graph = transformer_graph(layers, 1)
        names = [f"m{layer}->logits" for layer in range(layers)]
        masks[str(layers)] = gp.EdgeMask.from_edges(graph, names)
    found = gp.compare_profiles(masks).differences["4", "8"]
    groups = [g for g in found.groups if g.axis == "source_depth" and g.share_first]
    assert [(g.share_first, g.share_second) for g in groups] == [(0.25, 0.25)] * 4
    along = found.axes["source_depth"]
    assert along.distance < 0.05
    assert along.p > 0.5
    assert along.low < 0 < along.high
    # By layer the deeper one is compared in the layers that both have: half of its circuit.
    by_layer = gp.compare_profiles(masks, ["source_level"]).differences["4", "8"]
    layered = by_layer.axes["source_level"]
    assert layered.groups == ("input", "0", "1", "2", "3")
    assert (layered.covered_first, layered.covered_second) == (1.0, 0.5)
    offered = []
    for mask in masks.values():
        names = [e.split("->")[0] for e in mask.graph.edge_names]
        counts = [names.count("input")]
        counts += [names.count(f"a{n}.h0") + names.count(f"m{n}") for n in range(4)]
        offered.append(np.array(counts, dtype=float))
    base = sum(counts / counts.sum() for counts in offered) / 2
    chosen = [base * np.array([0, 1, 1, 1, 1]) / counts for counts in offered]
    chosen = [row / row.sum() for row in chosen]
    assert layered.distance == pytest.approx(np.abs(chosen[0] - chosen[1]).sum() / 2)


def test_language_models_and_graph_networks_side_by_side():
    from torch_geometric.data import Data
    from torch_geometric.nn import GraphConv

    language = gp.wrap(tiny("llama")).graph

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = GraphConv(4, 3)

        def forward(self, x, edge_index):
            return self.a(x, edge_index)

    index = torch.randint(12, (2, 50), generator=torch.Generator().manual_seed(0))
    network = gp.wrap(Net(), data=Data(x=torch.randn(12, 4), edge_index=index)).graph
    masks = {"language": random_scores(language).top(20), "network": random_scores(network).top(9)}
    found = gp.compare_profiles(masks)
    assert not network.is_acyclic
    assert "kind" in found.axes
    difference = found.differences["language", "network"]
    assert difference.distance == {}
    assert "no group in common: q, k, v, mlp, resid in the first" in difference.absent["kind"]
    assert difference.graph_distance["kind"] == pytest.approx(1.0)
    if found.left_out:
        assert "network: levels need a graph" in found.left_out["source_depth"]
    assert gp.circuit_profile(masks["network"], ["kind"]).groups[0].kept == 9


def test_grouped_queries_and_rings():
    grouped = transformer_graph(2, 4, 2)
    profile = gp.circuit_profile(random_scores(grouped).top(20))
    assert {g.group for g in profile.along("target_kind")} == {"head", "kv", "mlp", "output"}
    rings = Rings(nodes=9, edges=40).graph
    profile = gp.circuit_profile(random_scores(rings).top(10))
    assert (profile.level, profile.axes, profile.left_out) == ("steps", PROFILE_AXES, {})
    assert profile.along("distance")[0].group.startswith(("-", "0"))


def test_what_a_profile_cannot_do_is_refused():
    profile = gp.circuit_profile(gp.EdgeMask.full(GRAPH))
    assert all(group.p is None for group in profile.groups)
    assert all(group.enrichment == pytest.approx(1) for group in profile.groups)
    empty = gp.circuit_profile(gp.EdgeMask.empty(GRAPH))
    assert {(g.share, g.enrichment, g.p) for g in empty.groups} == {(None, None, None)}
    with pytest.raises(InputError, match="an empty circuit has no shares"):
        profile.difference(empty)
    with pytest.raises(InputError, match="no axis 'depth'"):
        profile.along("depth")
    with pytest.raises(InputError, match="no group 'x'; groups: q, k, v, mlp, resid"):
        profile.group("kind", "x")
    with pytest.raises(InputError, match=r"unknown axis .*source_level"):
        gp.circuit_profile(gp.EdgeMask.full(GRAPH), ["layer"])
    with pytest.raises(InputError, match="got EdgeScores"):
        gp.circuit_profile(random_scores(GRAPH))
    kinds = gp.circuit_profile(gp.EdgeMask.full(GRAPH), ["kind"])
    depths = gp.circuit_profile(gp.EdgeMask.full(GRAPH), ["source_depth"])
    with pytest.raises(InputError, match="no axis in common"):
        profile_difference(kinds, depths)
    coarse = gp.circuit_profile(gp.EdgeMask.full(GRAPH), ["source_depth"], bins=2)
    with pytest.raises(InputError, match="4 and 2 parts"):
        profile_difference(depths, coarse)
    with pytest.raises(InputError, match="no group 'x' along 'kind'"):
        profile_difference(kinds, kinds).group("kind", "x")
    pair = {"empty": gp.EdgeMask.empty(GRAPH), "full": gp.EdgeMask.full(GRAPH)}
    assert gp.compare_profiles(pair).differences == {}


def test_figures(tmp_path):
    pytest.importorskip("matplotlib")
    other = transformer_graph(5, 3)
    masks = {"small": random_scores(GRAPH, 1).top(40), "large": random_scores(other, 2).top(90)}
    compared = gp.compare_profiles(masks)
    figure = compared.plot(tmp_path / "both.png")
    panels = [ax for ax in figure.axes if ax.get_visible()]
    assert len(panels) == len(compared.axes)
    kinds = panels[-1]
    heights = sorted(bar.get_height() for bar in kinds.patches)
    groups = [g for p in compared.profiles.values() for g in p.along("kind")]
    # Of two models: how many times as often as by chance, since shares would show the graphs.
    assert heights == pytest.approx(sorted(g.enrichment for g in groups))
    assert panels[0].get_ylabel() == "times as often as by chance"
    pair = {"one": masks["small"], "two": random_scores(GRAPH, 3).top(40)}
    same = gp.compare_profiles(pair).plot()
    kinds = [ax for ax in same.axes if ax.get_visible()][-1]
    heights = sorted(bar.get_height() for bar in kinds.patches)
    shares = [g.share for p in gp.compare_profiles(pair).profiles.values() for g in p.along("kind")]
    assert heights == pytest.approx(sorted(shares))
    gp.circuit_profile(masks["small"]).plot(tmp_path / "one.svg")
    gp.circuit_profile(masks["small"], ["kind"]).plot(tmp_path / "kind.pdf")
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(InputError, match="must end in one of"):
        compared.plot(tmp_path / "figure.txt2")
