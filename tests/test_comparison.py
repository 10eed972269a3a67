"""Comparisons of circuits: by hand, by invariance, and where the answer was planted."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import hypergeom
from support.planted_pair import CIRCUITS, SHARED, pair_task, planted_pair
from support.rings import Rings
from transformer_graph import random_scores, transformer_graph

import graphprune as gp
from graphprune.errors import GraphMismatchError, InputError

GRAPH = transformer_graph(3, 2)


def three(**options):
    masks = {
        "a": random_scores(GRAPH, 1).top(20),
        "b": random_scores(GRAPH, 2).top(35),
        "c": random_scores(GRAPH, 1).top(30),
    }
    return masks, gp.compare_circuits(masks, **{"samples": 20, **options})


# -------------------------------------------------------------------- edges


def test_a_pair_by_sets():
    masks, found = three()
    for pair in found.pairs:
        one, two = (set(masks[name].edges()) for name in (pair.first, pair.second))
        assert pair.shared == len(one & two)
        assert pair.jaccard == len(one & two) / len(one | two)
        assert pair.jaccard == masks[pair.first].jaccard(masks[pair.second])
        assert pair.contained_first == len(one & two) / len(one)
        assert pair.contained_second == len(one & two) / len(two)
        truth = hypergeom(GRAPH.num_edges, len(one), len(two))
        assert pair.nulls["uniform"].p_more == pytest.approx(truth.sf(len(one & two) - 1))
        ends = [{end for e in edges for end in e.split("<")[0].split("->")} for edges in (one, two)]
        assert pair.nodes.shared == len(ends[0] & ends[1])
        assert pair.nodes.jaccard == len(ends[0] & ends[1]) / len(ends[0] | ends[1])
    assert found.pair("c", "a").contained_first == 1.0  # the top 20 lie in the top 30
    assert found.pair("a", "c").beyond_chance() == pytest.approx(1.0)
    counts = sum(mask.kept.int().numpy() for mask in masks.values())
    assert found.in_exactly == tuple(np.bincount(counts, minlength=4).tolist())
    assert found.common() == masks["a"] & masks["b"] & masks["c"]
    assert found.common(1) == masks["a"] | masks["b"] | masks["c"]


def test_nodes_by_chance():
    """Against every choice of as many nodes, and of as many of each kind at each level."""
    graph = transformer_graph(2, 3)
    one = gp.EdgeMask.from_edges(graph, ["input->a0.h0<q>", "a0.h0->a1.h1<v>", "m0->m1"])
    two = gp.EdgeMask.from_edges(graph, ["input->a0.h0<k>", "a0.h2->a1.h1<v>", "a0.h0->logits"])
    nodes = gp.compare_circuits({"one": one, "two": two}).pairs[0].nodes
    ends = [set(one.nodes()), set(two.nodes())]
    assert (nodes.nodes_first, nodes.nodes_second, nodes.shared) == (5, 5, 3)
    every = [len(ends[0] & set(some)) for some in combinations([n.name for n in graph.nodes], 5)]
    assert nodes.nulls["uniform"].mean == pytest.approx(np.mean(every))
    assert nodes.nulls["uniform"].p_more == pytest.approx(np.mean([c >= 3 for c in every]))
    # input in both; two of three heads of layer 0 against one; one of three of layer 1 against one.
    assert nodes.nulls["composition"].mean == pytest.approx(1 + 2 / 3 + 1 / 3)
    assert nodes.nulls["composition"].p_more == pytest.approx(2 / 3 * 1 / 3)


def test_nodes_without_edges_cannot_be_used():
    pairs = [("in", "a"), ("in", "b"), ("a", "out"), ("b", "out")]
    graph = gp.ComputationalGraph.from_edges(pairs, ["in", "a", "b", "out", "lone", "alone"])
    one, two = gp.EdgeMask(graph, [1, 0, 0, 0]), gp.EdgeMask(graph, [0, 1, 0, 0])
    nodes = gp.compare_circuits({"one": one, "two": two}).pairs[0].nodes
    assert nodes.nulls["uniform"].mean == pytest.approx(2 * 2 / 4)
    assert nodes.nulls["composition"].mean == pytest.approx(1 + 1 / 2)


def test_p_values_are_adjusted_over_pairs():
    _, found = three()
    for null in gp.comparison.NULLS:
        raw = [pair.nulls[null].p_more for pair in found.pairs]
        adjusted = [pair.nulls[null].p_adjusted for pair in found.pairs]
        assert adjusted == pytest.approx(gp.comparison.holm(raw))
        assert min(adjusted) == pytest.approx(min(1, 3 * min(raw)))


def test_order_changes_nothing_but_places():
    masks, found = three(scores={n: random_scores(GRAPH, i) for i, n in enumerate("abc")})
    turned = gp.compare_circuits(
        {name: masks[name] for name in "cba"},
        scores={n: random_scores(GRAPH, i) for i, n in enumerate("abc")},
        samples=20,
    )
    for quantity in gp.comparison.QUANTITIES:
        one, two = found.matrix(quantity), turned.matrix(quantity).loc[list("abc"), list("abc")]
        pd.testing.assert_frame_equal(one, two, rtol=1e-9)
    for name, other in (("a", "b"), ("b", "c")):
        here, there = found.pair(name, other), turned.pair(name, other)
        assert here.nodes.nulls["composition"] == there.nodes.nulls["composition"]
        assert here.scores.sampled.mean == pytest.approx(there.scores.sampled.mean)
        for null in gp.comparison.NULLS:
            assert here.nulls[null].p_more == pytest.approx(there.nulls[null].p_more)
            assert here.nulls[null].mean == pytest.approx(there.nulls[null].mean)


def test_identity_is_one_and_disjoint_is_nothing():
    mask = random_scores(GRAPH, 5).top(25)
    scores = random_scores(GRAPH, 5)
    circuit = gp.Circuit.from_mask(mask, scores=scores)
    found = gp.compare_circuits({"one": circuit, "same": circuit, "rest": ~mask}, samples=0)
    same, apart = found.pair("one", "same"), found.pair("one", "rest")
    assert (same.jaccard, same.contained_first, same.nodes.jaccard) == (1.0, 1.0, 1.0)
    assert same.scores.weighted_jaccard == pytest.approx(1.0)
    assert same.scores.spearman.value == pytest.approx(1.0)
    assert (apart.shared, apart.jaccard, apart.contained_first) == (0, 0.0, 0.0)
    assert apart.nulls["uniform"].p_more == 1.0
    assert apart.nulls["uniform"].p_less < 1e-6
    assert apart.scores is None
    assert same.scores.sampled is None
    assert np.isnan(found.matrix("weighted").loc["one", "rest"])


def test_empty_circuits_and_no_scores():
    empty = gp.EdgeMask.empty(GRAPH)
    masks = {"none": empty, "also": empty, "some": random_scores(GRAPH).top(5)}
    found = gp.compare_circuits(masks, samples=3)
    assert found.pair("none", "also").jaccard == 1.0
    assert found.pair("none", "also").contained_first is None
    assert found.pair("none", "some").jaccard == 0.0
    assert found.pair("none", "some").nulls["degrees"].p_more == 1.0
    assert found.pair("none", "some").beyond_chance() is None
    assert found.common() == empty
    json.dumps(found.to_dict(), allow_nan=False)


def test_soft_masks_count_by_what_they_keep():
    soft = gp.EdgeMask(GRAPH, random_scores(GRAPH).top(9).values * 0.25)
    found = gp.compare_circuits({"soft": soft, "hard": gp.EdgeMask(GRAPH, soft.kept)}, samples=0)
    assert found.pairs[0].jaccard == 1.0


def test_what_cannot_be_compared_is_refused():
    mask = random_scores(GRAPH).top(5)
    other = random_scores(transformer_graph(4, 2)).top(5)
    with pytest.raises(
        GraphMismatchError, match=r"by relative depth and kind: gp\.compare_profiles"
    ):
        gp.compare_circuits({"a": mask, "b": other})
    with pytest.raises(InputError, match="at least 2 circuits, got 1"):
        gp.compare_circuits({"a": mask})
    with pytest.raises(InputError, match="a dict from names to circuits"):
        gp.compare_circuits([mask, mask])
    with pytest.raises(InputError, match=r"for 'b', got EdgeScores; make a mask of scores"):
        gp.compare_circuits({"a": mask, "b": random_scores(GRAPH)})
    with pytest.raises(InputError, match="'c', which is none of"):
        gp.compare_circuits({"a": mask, "b": mask}, scores={"c": random_scores(GRAPH)})
    with pytest.raises(InputError, match="samples must be 0 or more"):
        gp.compare_circuits({"a": mask, "b": mask}, samples=-1)
    with pytest.raises(InputError, match="unknown null"):
        gp.compare_circuits({"a": mask, "b": mask}, nulls=["chance"])
    found = gp.compare_circuits({"a": mask, "b": mask}, samples=0, nulls=["uniform"])
    with pytest.raises(InputError, match="no pair of 'a' and 'x'"):
        found.pair("a", "x")
    with pytest.raises(InputError, match="chance 'degrees' was not asked for"):
        found.pairs[0].beyond_chance("degrees")
    with pytest.raises(InputError, match=r"unknown quantity .*jaccard"):
        found.matrix("overlap")
    with pytest.raises(InputError, match="from 1 to 2"):
        found.common(3)


def test_graphs_with_the_same_names_are_one():
    """Edges in another order, as another program may write them."""
    order = torch.randperm(GRAPH.num_edges, generator=torch.Generator().manual_seed(0))
    shuffled = gp.ComputationalGraph(
        nodes=GRAPH.nodes[::-1],
        edge_index=GRAPH.num_nodes - 1 - GRAPH.edge_index[:, order],
        edge_kind=GRAPH.edge_kind[order],
        edge_kinds=GRAPH.edge_kinds,
        ports=GRAPH.ports,
    )
    assert shuffled.fingerprint != GRAPH.fingerprint
    scores, mask = random_scores(GRAPH, 3), random_scores(GRAPH, 3).top(17)
    moved = gp.EdgeMask(shuffled, mask.values[order])
    assert set(moved.edges()) == set(mask.edges())
    found = gp.compare_circuits(
        {"a": mask, "b": moved},
        scores={"a": scores, "b": gp.EdgeScores(shuffled, scores.values[order])},
        samples=0,
    )
    assert found.pairs[0].jaccard == 1.0
    assert found.pairs[0].scores.weighted_jaccard == pytest.approx(1.0)
    assert found.masks["b"] == mask


def test_other_weights_are_remarked_on():
    mask = random_scores(GRAPH).top(5)
    circuits = {
        seed: gp.Circuit(GRAPH, mask, provenance={"model": {"weights": seed}}) for seed in "ab"
    }
    [remark] = gp.compare_circuits(circuits, samples=0).remarks
    assert "different weights" in remark
    same = {"a": circuits["a"], "again": circuits["a"]}
    assert gp.compare_circuits(same, samples=0).remarks == ()


def test_graph_networks():
    graph = Rings(nodes=9, edges=40).graph
    masks = {str(seed): random_scores(graph, seed).top(15) for seed in range(3)}
    found = gp.compare_circuits(masks, samples=10)
    assert not graph.is_acyclic
    assert found.strata == ("source_level", "target_level", "source_kind", "target_kind", "kind")
    assert found.num_strata > 1
    bare = gp.ComputationalGraph.from_edges([(u, v) for u in "abcd" for v in "abcd" if u != v])
    one, two = random_scores(bare, 1).top(6), random_scores(bare, 2).top(6)
    found = gp.compare_circuits({"one": one, "two": two}, samples=10)
    assert set(found.left_out) == {"source_level", "target_level"}
    assert "is the chance" in found.remarks[0]
    chance = found.pairs[0].nulls
    assert chance["composition"].p_more == pytest.approx(chance["uniform"].p_more)


# -------------------------------------------------------------------- a planted case


@pytest.fixture(scope="module")
def two_tasks():
    """Two tasks of one trained model whose circuits of five edges share three."""
    model = gp.wrap(planted_pair())
    found = {}
    for name, edges in CIRCUITS.items():
        task = pair_task(name)
        scores = gp.ExactPatching().score(model, task)
        mask = scores.connected(5)
        assert set(mask.edges()) == set(edges)  # it does have the circuit
        assert gp.evaluate(model, task, mask)["accuracy"] == 1.0
        found[name] = gp.Circuit.from_mask(mask, scores=scores, model=model, task=task)
    return found


def test_what_two_tasks_share_is_found(two_tasks):
    found = gp.compare_circuits(two_tasks)
    [pair] = found.pairs
    assert set(found.common().edges()) == set(SHARED)
    assert (pair.shared, pair.jaccard, pair.contained_first) == (3, 3 / 7, 3 / 5)
    # By hand: three or more of five in common, of 46 edges.
    truth = hypergeom(46, 5, 5)
    assert pair.nulls["uniform"].p_more == pytest.approx(truth.sf(2))
    assert pair.nulls["uniform"].p_more < 0.01
    # Edges of the same kinds between the same layers: a1.h0 is one of two heads, twice, the rest
    # is forced; a0.h? is the same by a coin, twice.
    chance = pair.nulls["composition"]
    assert chance.mean == pytest.approx(1 + 4 * 0.5)
    assert chance.p_more == pytest.approx((6 + 4 + 1) / 16)
    # The circuits' edges score about alike, so that weights change little; and layers and kinds
    # alone explain the overlap of scores as they do that of edges.
    assert pair.scores.weighted_jaccard == pytest.approx(3 / 7, abs=0.05)
    assert pair.scores.sampled.p_more > 0.1
    assert pair.scores.spearman_abs.value > 0.2


def test_rankings_of_two_tasks_meet_beyond_chance(two_tasks):
    one, two = (circuit.scores for circuit in two_tasks.values())
    curve = gp.matched_overlap(one, two, [1, 5, 20, 46])
    assert [point.shared for point in curve.points][1::2] == [3, 46]
    assert curve.points[1].nulls["uniform"].p_more < 0.01
    unrelated = gp.matched_overlap(one, random_scores(one.graph, 4), [5]).points[0]
    assert unrelated.nulls["uniform"].p_more > 0.05


def test_the_planted_circuits_differ_in_nothing_but_heads(two_tasks):
    profiles = gp.compare_profiles(two_tasks)
    [difference] = profiles.differences.values()
    assert set(difference.distance.values()) == {0.0}
    assert all(group.p_adjusted in (None, 1.0) for group in difference.groups)


# -------------------------------------------------------------------- figures


def test_figures(tmp_path):
    pytest.importorskip("matplotlib")
    _, found = three(scores={n: random_scores(GRAPH, i) for i, n in enumerate("abc")})
    for quantity in gp.comparison.QUANTITIES:
        ax = found.plot(tmp_path / f"{quantity}.png", quantity=quantity)
        texts = [text.get_text() for text in ax.texts]
        assert len(texts) == 9 + 6 * (quantity == "jaccard")
    assert f"{found.pair('a', 'b').jaccard:.2f}" in [t.get_text() for t in found.plot().texts]
    curve = gp.matched_overlap(random_scores(GRAPH, 1), random_scores(GRAPH, 2))
    ax = curve.plot(tmp_path / "curve.svg")
    assert len(ax.lines) == 3
    assert ax.lines[-1].get_ydata()[-1] == 1.0
    assert len(list(tmp_path.iterdir())) == len(gp.comparison.QUANTITIES) + 1
    with pytest.raises(InputError, match="must end in one of"):
        found.plot(tmp_path / "figure")


def test_circuits_without_names_are_refused_alike_in_a_list_and_one_after_another():
    graph = gp.ComputationalGraph.from_edges([("in", "a"), ("a", "out")])
    one, two = gp.EdgeMask.full(graph), gp.EdgeMask(graph, [1, 0])
    words = r'expected a dict from names to circuits, as \{"ioi": circuit, ...\}, got '
    with pytest.raises(gp.InputError, match=words + "list"):
        gp.compare_circuits([one, two])
    with pytest.raises(gp.InputError, match=words + "EdgeMask, EdgeMask"):
        gp.compare_circuits(one, two)
    with pytest.raises(gp.InputError, match=words + "EdgeMask"):
        gp.compare_profiles(one, two)
