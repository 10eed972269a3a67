"""Ranks in which rounding decides nothing: against scipy, by hand, and under noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

import graphprune as gp
from graphprune import auroc
from graphprune.comparison import make_strata, rank_correlation
from graphprune.core.metrics import kendall_tau
from graphprune.search.warm_start import gates_of_density, rank_values
from graphprune.util.numbers import NOISE, levels, ranks

pytestmark = pytest.mark.inside


def test_without_near_ties_ranks_are_scipys():
    values = torch.tensor([3.0, -1.0, 0.5, 3.0, 0.0, -1.0, 2.0])
    for noise in (0.0, 0.1):
        assert ranks(values, noise).tolist() == rankdata(values.numpy()).tolist()
        assert ranks(values.abs(), noise).tolist() == rankdata(values.abs().numpy()).tolist()
        assert ranks(torch.zeros(3), noise).tolist() == [2.0, 2.0, 2.0]
        assert len(ranks(torch.zeros(0), noise)) == 0


def test_given_scores_are_exact_and_computed_ones_carry_their_noise():
    values = torch.tensor([1.0, -2.0, 3e-7, -1e-7, 0.5, -0.25])
    given = gp.EdgeScores(GRAPH, values)
    assert given.noise == 0.0
    assert gp.EdgeScores.computed(GRAPH, values, method="").noise == 2.0 * NOISE
    assert given.top(5).values.tolist() == [1, 1, 1, 0, 1, 1]  # 3e-7 is more than 1e-7
    with pytest.raises(gp.GraphPruneError, match="noise must be"):
        gp.EdgeScores(GRAPH, values, noise=-1.0)


@settings(deadline=None)
@given(st.lists(st.integers(-40, 40), min_size=1, max_size=60), st.integers(0, 10**6))
def test_rounding_noise_moves_no_rank(whole, seed):
    """Integers are far apart for this noise; those that are equal stay equal under it."""
    values = torch.tensor(whole, dtype=torch.float64)
    shifts = torch.rand(len(whole), generator=torch.Generator().manual_seed(seed)) - 0.5
    noisy = values + 0.9 * NOISE * shifts.double()
    assert ranks(noisy, NOISE).tolist() == rankdata(values.numpy()).tolist()
    assert np.sign(levels(noisy, NOISE)).tolist() == values.sign().tolist()


def test_levels_do_not_chain():
    """Steps below the noise add up: the ends of a long row are no ties."""
    values = 1.0 + torch.arange(100) * NOISE / 3
    assert len(np.unique(levels(values.double(), NOISE))) >= 25


GRAPH = gp.ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("a", "c"), ("b", "d"),
                                          ("c", "d"), ("a", "d")])  # fmt: skip
TWO = (
    torch.tensor([1.0, -2.0, 3e-7, -1e-7, 0.5, -0.25]),
    torch.tensor([1.0000001, -2.0, -2e-7, 4e-7, 0.5, -0.25]),
)  # one computation in two orders of adding


@pytest.mark.parametrize("normalize", ["rank", "signed_rank", "quantile", "scale"])
def test_normalised_scores_repeat(normalize):
    other = gp.EdgeScores(GRAPH, torch.tensor([5.0, 1.0, 2.0, 3.0, -4.0, 6.0]))
    members = [gp.EdgeScores.computed(GRAPH, one, method="") for one in TWO]
    found = [gp.combine_scores([one, other], normalize=normalize).values for one in members]
    assert torch.allclose(*found, atol=2e-6)


def test_starts_tests_and_correlations_repeat():
    both = first, second = [gp.EdgeScores.computed(GRAPH, one, method="") for one in TWO]
    assert torch.equal(*(rank_values(s.values, s.noise) for s in both))
    assert torch.equal(
        *(gates_of_density(s.values, 0.3, 3.0, torch.sigmoid, s.noise) for s in both)
    )
    truth = gp.EdgeMask(GRAPH, [1, 1, 1, 0, 0, 0])
    # 1 and 2 outrank all of .5, .25 and ~0; ~0 ties with ~0 and loses to the two others.
    assert auroc(first, truth) == auroc(second, truth) == (3 + 3 + 0.5) / 9
    strata = make_strata(GRAPH)
    for by in ("abs", "signed"):
        alike = rank_correlation(first, second, strata, by=by)
        assert alike is not None
        assert alike.value == pytest.approx(1.0, abs=1e-12)
    assert kendall_tau(TWO[0][None], TWO[1][None]).tolist() == [1.0]


def test_scores_that_are_noise_inform_of_nothing():
    noise = gp.EdgeScores.computed(GRAPH, 1.0 + 1e-7 * torch.arange(6), method="")
    with pytest.raises(gp.GraphPruneError, match="constant scores"):
        gp.combine_scores([noise, noise])
