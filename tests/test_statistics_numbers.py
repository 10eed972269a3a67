"""The independence criterion by hand, and its p-values where the null hypothesis holds."""

from math import exp

import numpy as np
import pytest
from scipy.stats import kstest

import graphprune as gp
from graphprune.statistics import hsic, hsic_test


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
    assert 0.025 <= np.mean(np.array(p) <= 0.05) <= 0.08
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
    ],
)  # fmt: skip
def test_bad_numbers_are_refused(call, words):
    with pytest.raises(gp.GraphPruneError, match=words):
        call()
