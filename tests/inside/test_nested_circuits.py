"""Nested circuits: swaps that are measured, slopes that are finite differences."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.toy import Toy, ToyExamples

import graphprune as gp
from graphprune.methods import CalibratedRanking
from graphprune.methods.calibration import _Examples
from graphprune.search.nested_circuits import nested_circuits

pytestmark = pytest.mark.inside


def task():
    return gp.Task(ToyExamples(6), "logit_diff", batch_size=4)


def additive(seed, edges=14):
    generator = torch.Generator().manual_seed(seed)
    effects = torch.randn(edges, generator=generator, dtype=torch.float64)
    effects /= effects.sum()
    noisy = effects.abs() * torch.rand(edges, generator=generator).double()
    return effects, noisy


def sums_of(effects):
    return (lambda kept: float(effects[kept].sum())), (lambda kept: effects)


@pytest.mark.parametrize("seed", range(12))
def test_swaps_on_values_that_add_up(seed):
    effects, strengths = additive(seed)
    asked = []

    def measure(kept):
        asked.append(kept.clone())
        return float(effects[kept].sum())

    steps = nested_circuits(
        strengths, [9, 6, 11], measure, lambda kept: effects, tolerance=1e-3, rounds=6
    )
    assert [step.count for step in steps] == [11, 9, 6]
    outer = torch.ones(14, dtype=torch.bool)
    for step in steps:
        assert not bool((step.kept & ~outer).any())
        inside = strengths.masked_fill(~outer, -1.0)
        first = torch.zeros(14, dtype=torch.bool)
        first[inside.argsort(descending=True)[: step.count]] = True
        assert step.before == float(effects[first].sum())
        assert step.value == float(effects[step.kept].sum())
        assert abs(1 - step.value) <= abs(1 - step.before)
        assert step.swaps == int((step.kept & ~first).sum())
        assert (step.rounds == 0) == (abs(1 - step.before) <= 1e-3)
        outer = step.kept
    assert all(int(kept.sum()) in (11, 9, 6) for kept in asked)


def test_most_of_the_gap_is_closed():
    """Against the best circuits of that size, by trying all of them."""
    every = torch.tensor(list(itertools.combinations(range(14), 7)))
    before, after, best = [], [], []
    for seed in range(40):
        effects, strengths = additive(seed)
        value, slope = sums_of(effects)
        (step,) = nested_circuits(strengths, [7], value, slope, rounds=6)
        best.append(float((1 - effects[every].sum(1)).abs().min()))
        before.append(abs(1 - step.before))
        after.append(abs(1 - step.value))
    assert sorted(best)[20] < 1e-3 < 0.1 * sorted(before)[20]  # medians
    assert sorted(after)[20] < 0.2 * sorted(before)[20]
    assert sum(after) < 0.5 * sum(before)


@pytest.mark.parametrize("seed", range(4))
def test_helpful_edges_leave_for_more_helpful_ones(seed):
    """Where every edge helps, the best circuit is that of the largest effects."""
    generator = torch.Generator().manual_seed(seed)
    effects = torch.rand(14, generator=generator, dtype=torch.float64)
    effects /= effects.sum()
    value, slope = sums_of(effects)
    strengths = torch.rand(14, generator=generator, dtype=torch.float64)
    (step,) = nested_circuits(strengths, [7], value, slope, rounds=8)
    assert step.value == pytest.approx(float(effects.sort().values[-7:].sum()))


@pytest.mark.parametrize("scale", [0.03, 30.0])
def test_what_is_measured_corrects_the_estimates(scale):
    before, after = [], []
    for seed in range(40):
        effects, strengths = additive(seed, edges=60)
        value, _ = sums_of(effects)
        (step,) = nested_circuits(strengths, [30], value, lambda kept: effects * scale, rounds=6)  # noqa: B023
        before.append(abs(1 - step.before))
        after.append(abs(1 - step.value))
    assert sorted(after)[20] < 0.1 * sorted(before)[20]
    assert sum(after) < 0.2 * sum(before)


def test_a_round_measures_at_most_eight_circuits():
    runs = []

    def measure(kept):
        runs.append(kept.numpy().tobytes())
        return 0.1 * (len(runs) == 1)  # whatever is done makes it worse

    effects, strengths = additive(3, edges=60)
    (step,) = nested_circuits(strengths, [30], measure, lambda kept: effects)
    assert (step.rounds, step.swaps, step.value) == (1, 0, 0.1)
    assert 3 < len(runs) == len(set(runs)) <= 9


def test_a_goal_that_is_met_costs_one_run():
    runs = []

    def measure(kept):
        runs.append(kept)
        return 1.0

    def slope(kept):
        raise AssertionError("no slope is needed")

    steps = nested_circuits(torch.arange(8.0), [3, 5, 3], measure, slope)
    assert [step.count for step in steps] == [5, 3]
    assert len(runs) == 2


def test_a_slope_of_nothing_changes_nothing():
    steps = nested_circuits(torch.arange(8.0), [3], lambda kept: 0.2, lambda kept: torch.zeros(8))
    assert steps[0].kept.tolist() == [False] * 5 + [True] * 3
    assert steps[0].rounds == 1


def test_slopes_are_finite_differences():
    model, data = Toy(seed=3), task()
    examples = _Examples(CalibratedRanking("eap"), model, data)
    kept = torch.tensor([1, 0, 1, 1, 0, 1, 1, 0, 1], dtype=torch.bool)
    slope = examples.slope(kept)
    reference = [model.reference(batch) for batch in data.batches()]

    def value(values):
        total = [
            data.metric(model.run(batch, values, known), batch, known.full).double().sum()
            for batch, known in zip(data.batches(), reference, strict=True)
        ]
        return float(sum(total))

    ends = value(torch.zeros(9)), value(torch.ones(9))
    at, h = kept.float(), 0.02
    for edge in range(9):  # from a corner inwards, to second order
        step = torch.zeros(9)
        step[edge] = -h if bool(kept[edge]) else h
        rise = (4 * value(at + step) - 3 * value(at) - value(at + 2 * step)) / (2 * step[edge])
        expected = float(rise) / (ends[1] - ends[0])
        assert float(slope[edge]) == pytest.approx(expected, rel=2e-2, abs=2e-3)


def test_gradients_of_some_examples_take_turns():
    """Weighted by their examples they add up to that of all."""
    model, data = Toy(seed=3), task()  # batches of 4 and 2
    kept = torch.tensor([1, 0, 1, 1, 0, 1, 1, 0, 1], dtype=torch.bool)
    whole = _Examples(CalibratedRanking("eap"), model, data).slope(kept)
    for some in (1, 3, 4, 0.5):
        parts = _Examples(CalibratedRanking("eap", gradient_examples=some), model, data)
        first, second, third = (parts.slope(kept) for _ in range(3))
        assert not first.allclose(second)
        assert torch.equal(first, third)
        assert ((4 * first + 2 * second) / 6).allclose(whole, atol=1e-6)
    for every in (5, 6, 100, 1.0, 0.9):
        parts = _Examples(CalibratedRanking("eap", gradient_examples=every), model, data)
        assert parts.slope(kept).equal(whole)
        assert parts.slope(kept).equal(whole)
