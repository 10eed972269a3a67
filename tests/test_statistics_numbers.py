"""p-values against brute force and scipy, and their distribution where the null holds."""

from math import comb, exp

import numpy as np
import pytest
from scipy.stats import binom, binomtest, kstest

import graphprune as gp
from graphprune.comparison import holm
from graphprune.statistics import hsic, hsic_test
from graphprune.statistics.pvalues import (
    beats_share,
    bonferroni,
    differs,
    is_within,
    rank_p,
    share,
    sign_flip_p,
)

ALPHA = 0.05


@pytest.mark.parametrize("n", [1, 2, 7, 20, 51])
@pytest.mark.parametrize("epsilon", [0.05, 0.1, 0.3])
def test_equivalence_is_the_published_sum(n, epsilon):
    """All k with |k/n - 1/2| at least the observed, binomial at 1/2 + epsilon."""
    for wins in range(n + 1):
        for ties in range(0, n - wins + 1, 3):
            losses = n - wins - ties
            # Doubled, so that half a tie is exact.
            observed = abs(2 * wins + ties - n)
            terms = [
                comb(n, k) * (0.5 + epsilon) ** k * (0.5 - epsilon) ** (n - k)
                for k in range(n + 1)
                if abs(2 * k - n) >= observed
            ]
            assert differs(wins, losses, n, epsilon) == pytest.approx(sum(terms), abs=1e-12)


@pytest.mark.parametrize("n", [5, 30, 200])
def test_equivalence_rejects_no_more_than_it_may(n):
    """Exact: the chance of rejection at every share within the null hypothesis."""
    epsilon = 0.1
    rejected = np.array([differs(k, n - k, n, epsilon) <= ALPHA for k in range(n + 1)])
    for share_ in np.linspace(0.4, 0.6, 9):
        assert binom.pmf(np.arange(n + 1), n, share_)[rejected].sum() <= ALPHA + 1e-12
    if n == 200:
        assert binom.pmf(np.arange(n + 1), n, 0.75)[rejected].sum() > 0.99


def test_equivalence_with_ties_is_conservative():
    generator = np.random.default_rng(0)
    for ties in (0.2, 0.6, 0.95):
        left = 1 - ties
        wins_share = min(0.6 - ties / 2, left)  # the least favourable share, or as near as can be
        drawn = generator.multinomial(60, [wins_share, left - wins_share, ties], size=4000)
        p = [differs(int(w), int(x), 60, 0.1) for w, x, _ in drawn]
        assert np.mean(np.array(p) <= ALPHA) < ALPHA + 3 * np.sqrt(ALPHA * 0.95 / 4000)


@pytest.mark.parametrize("n", [40, 200])
def test_shown_equivalence_is_wrong_no_more_than_it_may(n):
    epsilon = 0.1
    shown = np.array([is_within(k, n - k, n, epsilon) <= ALPHA for k in range(n + 1)])
    for share_ in (0.2, 0.4, 0.6, 0.7):
        assert binom.pmf(np.arange(n + 1), n, share_)[shown].sum() <= ALPHA + 1e-12
    for k in range(n + 1):
        one = binomtest(k, n, 0.5 - epsilon, alternative="greater").pvalue
        two = binomtest(k, n, 0.5 + epsilon, alternative="less").pvalue
        assert is_within(k, n - k, n, epsilon) == pytest.approx(max(one, two), rel=1e-9)
    assert (binom.pmf(np.arange(n + 1), n, 0.5)[shown].sum() > 0.7) == (n == 200)


def test_random_circuits_are_counted_as_scipy_counts():
    for n, quantile in ((20, 0.9), (100, 0.5)):
        for count in range(0, n + 1, 5):
            for more, side in ((True, "greater"), (False, "less")):
                want = binomtest(count, n, quantile, alternative=side).pvalue
                assert beats_share(count, n, quantile, more=more) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("more", [True, False])
def test_the_quantile_tests_reject_no_more_than_they_may(more):
    """An edge (a circuit) at exactly the quantile of random ones; exact."""
    n, quantile = 100, 0.9
    rejected = np.array([beats_share(k, n, quantile, more=more) <= ALPHA for k in range(n + 1)])
    assert 0 < binom.pmf(np.arange(n + 1), n, quantile)[rejected].sum() <= ALPHA


def test_ranks_are_uniform_where_nothing_differs():
    generator = np.random.default_rng(1)
    p = [rank_p(x[0], x[1:]) for x in generator.normal(size=(4000, 20))]
    counts = np.bincount(np.round(np.array(p) * 20).astype(int), minlength=21)[1:]
    assert counts.sum() == 4000
    assert np.abs(counts - 200).max() < 4 * np.sqrt(200)
    assert rank_p(5.0, [1.0, 5.0, 7.0]) == 0.75
    assert rank_p(5.0, []) == 1.0
    assert rank_p(1.0, [1.0 - 1e-9], tolerance=1e-6) == 1.0


def test_sign_flips_are_uniform_where_nothing_differs():
    generator = np.random.default_rng(2)
    p = [sign_flip_p(generator.normal(size=12), draws=99, seed=i) for i in range(600)]
    assert kstest(p, "uniform").pvalue > 0.01
    assert np.mean(np.array(p) <= ALPHA) < 0.085


def test_corrections_by_hand():
    assert bonferroni([0.01, 0.4, 0.5]).tolist() == [0.03, 1.0, 1.0]
    assert holm([0.04, 0.01, 0.03, 0.005]) == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_hsic_of_a_matrix_worked_by_hand():
    """Samples 0, 1, 3 with width 1 and 0, 0, 2 with width 2; every centred entry written out."""
    k = np.array([[1, exp(-1 / 2), exp(-9 / 2)], [exp(-1 / 2), 1, exp(-2)],
                  [exp(-9 / 2), exp(-2), 1]])  # fmt: skip
    r = exp(-4 / 8)
    m = np.array([[1, 1, r], [1, 1, r], [r, r, 1]])
    total = 0.0
    for i in range(3):
        for j in range(3):
            a = k[i, j] - k[i].mean() - k[:, j].mean() + k.mean()
            b = m[i, j] - m[i].mean() - m[:, j].mean() + m.mean()
            total += a * b
    found = hsic([0.0, 1.0, 3.0], [0.0, 0.0, 2.0], widths=(1.0, 2.0))
    assert found == pytest.approx(total / 4, rel=1e-12)
    # Two groups: the second kernel is 2 (1 - r) z z', z the centred indicator of the last.
    form = (6 + 2 * k[0, 1] - 4 * k[0, 2] - 4 * k[1, 2]) / 9
    assert found == pytest.approx((1 - r) * form / 2, rel=1e-12)
    assert found == pytest.approx(0.144869, abs=1e-6)


def test_hsic_takes_each_sides_median_distance():
    x = np.array([0.0, 1.0, 3.0, 3.0])  # distances 1, 3, 3, 2, 2, and one of 0 that does not count
    y = np.array([0.0, 10.0, 20.0, 40.0])  # 10, 20, 40, 10, 30, 20: the median is 20
    assert hsic(x, y) == pytest.approx(hsic(x, y, widths=(2.0, 20.0)), rel=1e-12)
    assert hsic(x, y) == pytest.approx(hsic(100 * x + 7, y - 3), rel=1e-9)
    assert hsic(x, np.ones(4)) == 0.0


def test_hsic_p_values_are_uniform_where_nothing_depends():
    generator = np.random.default_rng(3)
    p = []
    for number in range(400):
        x, y = generator.normal(size=(2, 15))
        p.append(hsic_test(x, y**3, draws=99, seed=number)[1])
    assert kstest(p, "uniform").pvalue > 0.01
    assert 0.025 <= np.mean(np.array(p) <= ALPHA) <= 0.08
    assert min(p) >= 0.01


def test_hsic_sees_what_correlation_does_not():
    x = np.random.default_rng(4).normal(size=100)
    value, p, null = hsic_test(x, np.cos(2 * x), draws=199)
    assert abs(np.corrcoef(x, np.cos(2 * x))[0, 1]) < 0.3
    assert p == 1 / 200
    assert value > null.max()
    assert hsic_test(x, np.cos(2 * x), draws=199)[1] == p
    pairs = np.stack([x, np.roll(x, 1)], 1)
    assert hsic_test(pairs, x, draws=199)[1] == 1 / 200


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: hsic([0.0], [1.0]), "two samples of one size"),
        (lambda: hsic([0.0, 1.0], [1.0]), "got 2 and 1"),
        (lambda: hsic([0.0, float("nan")], [1.0, 2.0]), "finite"),
        (lambda: hsic_test([1.0, 2.0], [1.0, 2.0]), "from 4 on"),
        (lambda: hsic_test(range(5), range(5), draws=0), "draws"),
        (lambda: share(0, "alpha"), "alpha must lie between 0 and 1, got 0"),
        (lambda: share(True, "alpha"), "got True"),
        (lambda: share(0.5, "epsilon", 0.5), "between 0 and 0.5"),
    ],
)  # fmt: skip
def test_bad_numbers_are_refused(call, words):
    with pytest.raises(gp.GraphPruneError, match=words):
        call()
