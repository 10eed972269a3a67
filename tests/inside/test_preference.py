"""Preferences of circuits: by hand, by likelihood, and how often equal ones are rejected."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import binom

from graphprune.comparison.preference_distance import (
    equal_preference,
    preference_distance,
    standardised,
)

pytestmark = pytest.mark.inside


def test_standardised_shares_by_hand():
    edges, kept = np.array([[20, 60, 20], [10, 10, 30]]), np.array([[4, 6, 6], [5, 1, 9]])
    # Rates .2, .1, .3 and .5, .1, .3; mean composition .2, .4, .4.
    first, second = np.array([0.04, 0.04, 0.12]), np.array([0.1, 0.04, 0.12])
    wanted = np.stack([first / first.sum(), second / second.sum()])
    assert standardised(edges, kept) == pytest.approx(wanted)
    one = np.array([[7, 9], [7, 9]])
    plain = np.array([[2, 3], [4, 1]])
    assert standardised(one, plain) == pytest.approx(plain / plain.sum(1, keepdims=True))


def test_equal_preferences_are_the_likeliest_without_interaction():
    """Against a direct maximum of the binomial likelihood."""
    edges, kept = np.array([[30, 50, 20], [80, 40, 100]]), np.array([[9, 5, 11], [8, 4, 30]])

    def rates(x):
        logits = np.array([x[0], x[1]])[:, None] + np.array([0, x[2], x[3]])
        return 1 / (1 + np.exp(-logits))

    found = minimize(lambda x: -binom.logpmf(kept, edges, rates(x)).sum(), np.zeros(4), tol=1e-10)
    assert equal_preference(edges, kept) == pytest.approx(rates(found.x), abs=1e-4)
    assert equal_preference(edges, edges) == pytest.approx(np.ones((2, 3)))


EDGES = np.array([[26, 40, 60, 80], [300, 200, 500, 800]])
STEEP = np.array([0.4, 0.3, 0.1, 0.05])
ODDS = STEEP / (1 - STEEP)


def simulated(rates, generator, n=150):
    out = []
    for _ in range(n):
        kept = generator.binomial(EDGES, rates)
        out.append(
            preference_distance(
                "kind", ("a", "b", "c", "d"), EDGES, kept, both=None, covered=(1.0, 1.0),
                graph_distance=0.0, draws=99, generator=generator,
            )
        )  # fmt: skip
    return out


@pytest.mark.parametrize(
    "rates",
    [
        np.full((2, 4), 0.1),
        np.array([[0.3] * 4, [0.02] * 4]),
        np.stack([STEEP, STEEP]),
        np.stack([STEEP, 0.1 * ODDS / (1 + 0.1 * ODDS)]),  # the same odds, a tenth as dense
    ],
    ids=["uniform", "densities", "steep", "odds"],
)
def test_equal_preferences_are_rejected_no_more_than_they_may(rates):
    found = simulated(rates, np.random.default_rng(0))
    p = np.array([one.p for one in found])
    assert (p <= 0.05).mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(p))
    assert 0.38 < p.mean() < 0.62
    assert np.mean([one.corrected for one in found]) == pytest.approx(0, abs=0.03)
    assert np.mean([one.low <= 0 <= one.high for one in found]) >= 0.95


def test_unequal_preferences_are_found():
    found = simulated(np.stack([STEEP, STEEP[::-1]]), np.random.default_rng(1))
    assert np.mean([one.p <= 0.05 for one in found]) > 0.95
    assert np.mean([one.low > 0 for one in found]) > 0.95
    # The interval is that of what is corrected on average.
    mean = np.mean([one.corrected for one in found])
    assert 0.45 < mean < 0.65
    assert np.mean([one.low <= mean <= one.high for one in found]) > 0.9
