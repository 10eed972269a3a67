"""Overlap of scores, weighted, by rank and at matched densities: by hand, scipy, permutation."""

from __future__ import annotations

import json
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau, spearmanr
from transformer_graph import random_scores, transformer_graph

import graphprune as gp
from graphprune.comparison import Strata, make_strata, rank_correlation
from graphprune.errors import GraphMismatchError, InputError

GRAPH = transformer_graph(3, 2)
TRIANGLE = gp.ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("a", "c")])


def scores_of(*values: float) -> gp.EdgeScores:
    return gp.EdgeScores(TRIANGLE, torch.tensor(values))


@pytest.mark.parametrize(
    ("one", "two", "options", "wanted"),
    [
        ((2, 0, 1), (1, 1, 1), {"scale": None}, 2 / 4),
        ((2, 0, 1), (4, 0, 2), {}, 1),
        ((2, 0, 1), (4, 0, 2), {"scale": None}, 3 / 6),
        ((1, -1, 0), (1, 1, 0), {"scale": None}, 1 / 3),
        ((1, -1, 0), (1, 1, 0), {"scale": None, "signs": "ignore"}, 1),
        ((1, -1, 0), (1, 1, 0), {"scale": None, "signs": "positive"}, 1 / 2),
        ((1, -1, 0), (1, 1, 0), {"signs": "positive"}, 0.5 / 1.5),
        ((1, -2, 3), (-1, 2, -3), {}, 0),
        ((-1, -2, 0), (-1, -2, 0), {}, 1),
        ((0, 0, 0), (0, 0, 0), {}, 1),
        ((0, 0, 0), (1, 0, 0), {}, 0),
        ((1, 1, 0), (0, 1, 1), {"scale": None}, 1 / 3),
    ],
)
def test_weighted_overlap_by_hand(one, two, options, wanted):
    first, second = scores_of(*map(float, one)), scores_of(*map(float, two))
    assert gp.weighted_jaccard(first, second, **options) == pytest.approx(wanted)
    assert gp.weighted_jaccard(second, first, **options) == pytest.approx(wanted)


def test_weighted_overlap_of_masks_is_the_jaccard_overlap():
    one, two = random_scores(GRAPH, 1).top(20), random_scores(GRAPH, 2).top(35)
    scores = [gp.EdgeScores(GRAPH, mask.values) for mask in (one, two)]
    assert gp.weighted_jaccard(*scores, scale=None) == pytest.approx(one.jaccard(two))


def test_rank_correlation_is_scipys():
    one, two = random_scores(GRAPH, 1), random_scores(GRAPH, 2)
    two = gp.EdgeScores(GRAPH, (two.values + one.values).round(decimals=1))  # with ties
    strata = make_strata(GRAPH)
    for by, function in (("signed", lambda v: v), ("abs", abs)):
        found = rank_correlation(one, two, strata, by=by)
        truth = spearmanr(function(one.values), function(two.values))
        assert found.value == pytest.approx(truth.statistic)
        assert found.p == pytest.approx(truth.pvalue / 2, abs=1e-3)
        tau = kendalltau(function(one.values), function(two.values)).statistic
        assert np.sign(tau) == np.sign(found.value)
    assert rank_correlation(one, gp.EdgeScores(GRAPH, torch.ones(GRAPH.num_edges)), strata) is None


def test_the_correlation_of_scores_permuted_within_strata_is_exact():
    names = [("in", "a"), ("in", "b"), ("in", "c"), ("a", "out"), ("b", "out"), ("c", "out")]
    graph = gp.ComputationalGraph.from_edges(names)
    one = gp.EdgeScores(graph, torch.tensor([3.0, 1.0, -2.0, 9.0, 8.0, 5.0]))
    two = gp.EdgeScores(graph, torch.tensor([0.0, 2.0, 2.0, 7.0, 4.0, 5.0]))
    every = []
    for early in permutations(range(3)):
        for late in permutations(range(3, 6)):
            moved = two.values[[*early, *late]]
            every.append(spearmanr(one.values, moved).statistic)
    found = rank_correlation(one, two, make_strata(graph))
    assert found.composition_mean == pytest.approx(np.mean(every))
    assert found.composition_sd == pytest.approx(np.std(every))


@pytest.mark.parametrize("size", [2, 12], ids=["pairs", "dozens"])
def test_rank_correlations_of_unrelated_scores_are_rejected_no_more_than_they_may(size):
    """Scores permuted within strata: three of two edges, in which no p is below 1/8, and of 12."""
    graph = gp.ComputationalGraph.from_edges(
        [(f"{layer}", f"{layer + 1}.{i}") for layer in range(3) for i in range(size)]
    )
    kinds = np.repeat(np.arange(3), size)
    strata = Strata(axes=(), codes=kinds, left_out={})
    one = random_scores(graph, 1)
    rng = np.random.default_rng(0)
    p, whole = [], []
    for _ in range(400):
        moved = gp.EdgeScores(graph, one.values[strata.shuffled(rng)])
        found = rank_correlation(one, moved, strata)
        p.append(found.composition_p)
        again = gp.EdgeScores(graph, one.values[rng.permutation(3 * size)])
        whole.append(rank_correlation(one, again, strata).p)
    error = 3 * np.sqrt(0.05 * 0.95 / 400)
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + error
    assert np.mean(np.array(whole) <= 0.05) <= 0.05 + error
    same = rank_correlation(one, one, strata)
    assert (same.composition_p == pytest.approx(1 / 8)) == (size == 2)
    assert (same.composition_p < 1e-3) == (size == 12)


def test_weighted_overlaps_of_unrelated_scores_are_rejected_no_more_than_they_may():
    strata = make_strata(GRAPH, ["kind"])
    rng = np.random.default_rng(1)
    p = []
    for seed in range(80):
        scores = {name: random_scores(GRAPH, 1000 + 2 * seed + i) for i, name in enumerate("ab")}
        masks = {name: one.top(0.2) for name, one in scores.items()}
        found = gp.compare_circuits(
            masks, scores=scores, samples=19, strata=["kind"], nulls=["uniform"], seed=seed
        )
        p.append(found.pairs[0].scores.sampled.p_more)
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 80)
    assert 0.35 < np.mean(p) < 0.65
    near = gp.EdgeScores(GRAPH, scores["a"].values * torch.from_numpy(rng.uniform(0.5, 2, 100)))
    pair = {"a": scores["a"], "b": near}
    masks = {name: one.top(0.2) for name, one in pair.items()}
    found = gp.compare_circuits(masks, scores=pair, samples=39, strata=["kind"])
    assert found.pairs[0].scores.sampled.p_more == 1 / 40
    assert strata.count == 5
    few = gp.compare_circuits(masks, scores=pair, samples=9, strata=["kind"])
    assert few.pairs[0].scores.sampled.p_least == 1 / 10
    assert any("underpowered: weighted overlaps beside 9" in remark for remark in few.remarks)
    assert not any("weighted" in remark for remark in found.remarks)


def test_sampled_overlaps_are_those_of_permuted_scores():
    scores = {name: random_scores(GRAPH, i) for i, name in enumerate("ab")}
    masks = {name: one.top(0.2) for name, one in scores.items()}
    found = gp.compare_circuits(masks, scores=scores, samples=400, strata=["kind"], seed=3)
    rng = np.random.default_rng(0)
    kinds = GRAPH.edge_kind.numpy()
    drawn = []
    for _ in range(400):
        order = np.arange(GRAPH.num_edges)
        for kind in np.unique(kinds):
            inside = np.flatnonzero(kinds == kind)
            order[inside] = rng.permutation(inside)
        drawn.append(
            gp.weighted_jaccard(scores["a"], gp.EdgeScores(GRAPH, scores["b"].values[order]))
        )
    sampled = found.pairs[0].scores.sampled
    assert sampled.mean == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / 20)
    assert sampled.sd == pytest.approx(np.std(drawn), rel=0.25)
    value = found.pairs[0].scores.weighted_jaccard
    assert sampled.p_more == pytest.approx(np.mean(np.array(drawn) >= value), abs=0.12)
    assert found.strata == ("kind",)


# -------------------------------------------------------------------- matched densities


def test_overlap_at_matched_sizes():
    one, two = random_scores(GRAPH, 1), random_scores(GRAPH, 2)
    curve = gp.matched_overlap(one, two, by="signed", nulls=gp.comparison.NULLS)
    assert [point.size for point in curve.points] == list(gp.MIB_SIZES)
    for point in curve.points:
        masks = [s.top(point.size, by="signed") for s in (one, two)]
        assert point.kept == masks[0].num_kept
        assert point.jaccard == pytest.approx(masks[0].jaccard(masks[1]))
        for name, null in point.nulls.items():
            assert null == gp.comparison.overlap_null(*masks, name)
    assert curve.points[-1].jaccard == 1.0
    assert curve.points[-1].nulls["uniform"].z is None
    frame = curve.to_frame()
    assert list(frame["kept"]) == [int(size * GRAPH.num_edges) for size in gp.MIB_SIZES]
    json.dumps(curve.to_dict(), allow_nan=False)
    with pytest.raises(GraphMismatchError):
        gp.matched_overlap(one, random_scores(transformer_graph(2, 2)))
    with pytest.raises(InputError, match="sizes must be at least one"):
        gp.matched_overlap(one, two, [])
    with pytest.raises(InputError, match="unknown null"):
        gp.matched_overlap(one, two, nulls=["none"])


def test_chance_covers_random_rankings():
    """Of unrelated rankings about one in twenty leaves the band; counts are lumpy, so fewer."""
    outside, p_values = 0, []
    for seed in range(200):
        pair = [random_scores(GRAPH, 2 * seed + i) for i in range(2)]
        [point] = gp.matched_overlap(*pair, [40], nulls=["uniform"]).points
        null = point.nulls["uniform"]
        outside += not null.low <= point.shared <= null.high
        p_values.append(null.p_more)
    assert outside <= 18
    assert np.mean(np.array(p_values) <= 0.05) <= 0.1
    assert 0.4 < np.mean(p_values) < 0.75
