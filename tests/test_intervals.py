"""Intervals hold the truth as often as they say: simulated, and against other implementations."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import binomtest, t
from support.marks import quick
from support.named import metric

from graphprune import MIB_SIZES
from graphprune.evaluation import EvaluationReport


def report(values, full=None, ablated=None, name="score"):
    """A report of one measure, as ``evaluate`` fills it in."""
    sides = [
        {} if side is None else {name: torch.as_tensor(side, dtype=torch.float64)}
        for side in (values, full, ablated)
    ]
    found = {name: float(sides[0][name].mean())}
    if full is not None:
        below = sides[1][name].mean() - sides[2][name].mean()
        found["faithfulness"] = float((sides[0][name].mean() - sides[2][name].mean()) / below)
    settings = {"metric": name, "examples": len(values)}
    ends = [{n: float(v.mean()) for n, v in side.items()} for side in sides[1:]]
    return EvaluationReport(found, sides[0], *ends, {}, settings, sides[1], sides[2])


def coverage(draw, truth, n, runs=400, name="score"):
    """How often the interval of ``name`` of n examples holds ``truth``."""
    rng, hits = np.random.default_rng(n), 0
    for _ in range(runs):
        low, high = report(*draw(rng, n)).interval(name)
        hits += low <= truth <= high
    return hits / runs


MEANS = {
    "normal": (lambda rng, n: (rng.normal(size=n),), 0.0),
    "exponential": (lambda rng, n: (rng.exponential(size=n),), 1.0),
    "lognormal": (lambda rng, n: (rng.lognormal(size=n),), math.exp(0.5)),
    "one in ten": (lambda rng, n: (rng.random(n) < 0.1, np.ones(n), np.zeros(n)), 0.1),
    "half": (lambda rng, n: (rng.random(n) < 0.5, np.ones(n), np.zeros(n)), 0.5),
    "nine in ten": (lambda rng, n: (rng.random(n) < 0.9, np.ones(n), np.zeros(n)), 0.9),
}


MANY = [*itertools.product(MEANS, (20, 50))]


@pytest.mark.parametrize(("name", "n"), quick(MANY, [*((m, 20) for m in MEANS), ("lognormal", 50)]))
def test_intervals_of_means_hold_the_mean(name, n):
    """Percentiles of 20 log-normal values held it .855 of the time, exponential ones .898."""
    draw, truth = MEANS[name]
    assert coverage(draw, truth, n) >= 0.92


def mostly(rng, n):
    full = rng.normal(3, 2, n)
    return 0.8 * full + rng.normal(0, 1, n), full, np.zeros(n)


def skewed(rng, n):
    full = rng.lognormal(size=n)
    return full * rng.beta(4, 2, n), full, np.zeros(n)


def area(rng, n):
    """Each example's area under a curve over MIB's sizes, and its full score: CPR is the ratio."""
    full, sizes = rng.normal(3, 2, n), np.array(MIB_SIZES)
    noise = rng.normal(0, 0.5, (len(sizes), n)) * (1 - sizes[:, None])
    curve = sizes[:, None] ** 0.3 * full + noise
    return np.trapezoid(curve, sizes, axis=0), full, np.zeros(n)


RATIOS = {
    "mostly": (mostly, 0.8),
    "skewed": (skewed, 2 / 3),
    "cpr": (area, np.trapezoid(np.array(MIB_SIZES) ** 0.3, MIB_SIZES)),
}


@pytest.mark.parametrize(
    ("name", "n"),
    quick([*itertools.product(RATIOS, (20, 50))], [("mostly", 20), ("skewed", 50), ("cpr", 20)]),
)
def test_intervals_of_faithfulness_hold_it(name, n):
    draw, truth = RATIOS[name]
    assert coverage(draw, truth, n, runs=250, name="faithfulness") >= 0.92


def test_an_interval_is_never_narrower_than_students():
    rng = np.random.default_rng(0)
    for n in (2, 3, 8, 40):
        x = rng.normal(size=n)
        low, high = report(x).interval("score")
        reach = t.ppf(0.975, n - 1) * x.std(ddof=1) / math.sqrt(n)
        assert low <= x.mean() - reach + 1e-9
        assert high >= x.mean() + reach - 1e-9
        if n < 5:  # the bootstrap has nothing to say of so few
            assert (low, high) == pytest.approx((x.mean() - reach, x.mean() + reach))


def test_right_answers_are_counted():
    """Twenty of twenty had an interval of width 0."""
    for right, n in ((20, 20), (0, 20), (17, 20), (1, 1)):
        x = torch.tensor([1.0] * right + [0.0] * (n - right), dtype=torch.float64)
        one = EvaluationReport(
            {}, {"accuracy": x}, {}, {}, {}, {"examples": n}, bounds={"accuracy": (0.0, 1.0)}
        )
        want = binomtest(right, n).proportion_ci(0.95, "exact")
        assert one.interval("accuracy") == pytest.approx((want.low, want.high), abs=1e-9)
    assert metric("accuracy").bounds == metric("exact_match").bounds == (0, 1)


def test_values_that_are_all_equal_have_no_width_and_one_value_has_no_interval():
    assert report([0.25] * 30).interval("score") == (0.25, 0.25)
    assert report([0.1 + 1e-17 * i for i in range(30)]).interval("score") == pytest.approx(
        (0.1, 0.1), abs=1e-15
    )
    assert all(math.isnan(end) for end in report([0.25]).interval("score"))
    assert all(math.isnan(end) for end in report([0.2], [1], [0]).interval("faithfulness"))
    x = np.arange(1.0, 31.0)  # the same share on every example, whatever its size
    assert report(x / 2, x, 0 * x).interval("faithfulness") == pytest.approx((0.5, 0.5))


def test_intervals_stay_inside_what_there_can_be():
    x = torch.tensor([0.0] * 18 + [0.2, 3.0], dtype=torch.float64)
    one = EvaluationReport({}, {"kl": x}, {}, {}, {}, {}, bounds={"kl": (0.0, math.inf)})
    low, high = one.interval("kl")
    assert low == 0.0
    assert high > x.mean() + t.ppf(0.975, 19) * x.std() / math.sqrt(20) - 1e-9


def test_the_ends_of_a_ratio_are_where_student_just_tells_it_apart():
    """Fieller's ends for four examples, where only Student's t is used: found by bisection."""
    rng = np.random.default_rng(5)
    full = rng.normal(5, 0.5, 4)
    circuit = 0.7 * full + rng.normal(0, 0.3, 4)
    low, high = report(circuit, full, 0 * full).interval("faithfulness")
    ratio = circuit.mean() / full.mean()

    def told(r):
        rest = circuit - r * full
        return abs(rest.mean()) / (rest.std(ddof=1) / 2) - t.ppf(0.975, 3)

    assert low == pytest.approx(brentq(told, ratio - 5, ratio), rel=1e-6)
    assert high == pytest.approx(brentq(told, ratio, ratio + 5), rel=1e-6)
    turned = report(-circuit, -full, 0 * full).interval("faithfulness")
    assert turned == pytest.approx((low, high))


@pytest.mark.parametrize("seed", range(20))
def test_a_ratio_lies_in_its_own_interval(seed):
    """Of a full model that is hardly above the ablated one, percentiles did not hold it."""
    rng = np.random.default_rng(seed)
    full, ablated, circuit = rng.normal(0.02, 1, (3, 12))
    one = report(circuit + 2, full, ablated)
    low, high = one.interval("faithfulness")
    assert low <= one["faithfulness"] <= high


def test_few_examples_are_told():
    assert report(np.ones(20)).remarks == ()
    (said,) = report(np.arange(8.0)).remarks
    assert "8 examples" in said
    assert "rough" in said
    assert report(np.arange(8.0)).to_dict()["remarks"] == [said]
