"""Distributions of overlaps that chance gives, by enumeration and scipy."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.stats import binom, hypergeom
from support.enumerated import ONE, SMALL, TWO, agree, circuits_of, enumerated
from transformer_graph import random_scores, transformer_graph

import graphprune as gp
from graphprune.comparison.count_distribution import bernoulli_sum, hypergeometric, total
from graphprune.comparison.overlap_nulls import degree_overlap, edge_chances, edge_ends

pytestmark = pytest.mark.inside


def test_degrees_are_weighted_circuits_of_that_size():
    """The weight of a circuit is the product of its edges' odds."""
    chances, _ = edge_chances(SMALL, ONE.kept.numpy(), tolerance=1e-6)
    weights = [float(np.prod(np.where(kept, chances, 1 - chances))) for kept in circuits_of(4)]
    found = degree_overlap(chances, TWO.kept.numpy(), 4)
    agree(found, enumerated(circuits_of(4), weights))
    assert found.sd > 0


def test_fitted_chances_have_the_degrees():
    graph = transformer_graph(4, 4)
    kept = random_scores(graph, 3).greedy(90).kept.numpy()
    chances, error = edge_chances(graph, kept)
    assert error <= 0.01
    for end in edge_ends(graph):
        wanted = np.bincount(end, weights=kept)
        assert np.abs(np.bincount(end, weights=chances) - wanted).max() <= error + 1e-9
    # Of all chances with these degrees they have the greatest entropy: log odds are sums.
    inner = (chances > 1e-6) & (chances < 1 - 1e-6)
    sources, inputs = (end[inner] for end in edge_ends(graph))
    design = np.zeros((inner.sum(), sources.max() + inputs.max() + 2))
    design[np.arange(inner.sum()), sources] = 1
    design[np.arange(inner.sum()), sources.max() + 1 + inputs] = 1
    odds = np.log(chances[inner] / (1 - chances[inner]))
    rest = odds - design @ np.linalg.lstsq(design, odds, rcond=None)[0]
    assert np.abs(rest).max() < 1e-6


def test_parallel_edges_are_told_apart():
    graph = gp.ComputationalGraph.from_edges([("a", "x"), ("a", "x"), ("b", "x"), ("b", "y")])
    sources, inputs = edge_ends(graph)
    assert len(set(zip(sources.tolist(), inputs.tolist(), strict=True))) == 4


@pytest.mark.parametrize("sizes", [(32491, 700, 644), (100, 50, 70), (50, 3, 49), (9, 1, 4)])
def test_hypergeometric_is_scipys(sizes):
    whole, first, second = sizes
    found = hypergeometric(*sizes)
    truth = hypergeom(whole, first, second)
    assert found.pmf == pytest.approx(truth.pmf(found.counts), rel=1e-10, abs=1e-290)
    assert found.mean == pytest.approx(first * second / whole, rel=1e-10)
    assert found.sd == pytest.approx(truth.std(), rel=1e-8)
    for count in (0, int(found.mean), min(first, second)):
        assert found.at_least(count) == pytest.approx(truth.sf(count - 1), rel=1e-9)
        assert found.at_most(count) == pytest.approx(truth.cdf(count), rel=1e-9)
    assert found.band() == (truth.ppf(0.025), truth.ppf(0.975))


def test_sums_of_events_are_binomial_where_chances_are_equal():
    found = bernoulli_sum(np.r_[np.full(700, 0.3), np.zeros(5), np.ones(4)])
    truth = binom(700, 0.3)
    counts = found.counts - 4
    assert found.pmf == pytest.approx(truth.pmf(counts), rel=1e-9, abs=1e-290)
    uneven = np.array([0.1, 0.5, 0.9])
    by_hand = [0.9 * 0.5 * 0.1, 0.1 * 0.5 * 0.1 + 0.9 * 0.5 * 0.1 + 0.9 * 0.5 * 0.9]
    assert bernoulli_sum(uneven).pmf[:2] == pytest.approx(by_hand)


def test_sums_of_distributions():
    parts = [hypergeometric(5, 2, 3), hypergeometric(4, 4, 1), hypergeometric(7, 3, 3)]
    summed = total(parts)
    truth: Counter[int] = Counter()
    for a, p in zip(parts[0].counts, parts[0].pmf, strict=True):
        for b, q in zip(parts[1].counts, parts[1].pmf, strict=True):
            for c, r in zip(parts[2].counts, parts[2].pmf, strict=True):
                truth[int(a + b + c)] += p * q * r
    agree(summed, truth)
    agree(total([]), {0: 1.0})
