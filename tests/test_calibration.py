"""Calibrated rankings: circuits inside each other, corrected by swaps, measured by other means."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from support.cli import call, out_of, save_model
from support.planted import planted, planted_task
from support.toy import Toy, ToyExamples
from test_conformance import language, toy

import graphprune as gp
from graphprune.conformance import check_method
from graphprune.methods import CalibratedRanking
from graphprune.optimise.nested import nested


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


# -------------------------------------------------------------------- the search


@pytest.mark.parametrize("seed", range(40))
def test_swaps_on_values_that_add_up(seed):
    effects, strengths = additive(seed)
    asked = []

    def measure(kept):
        asked.append(kept.clone())
        return float(effects[kept].sum())

    steps = nested(strengths, [9, 6, 11], measure, lambda kept: effects, tolerance=1e-3, rounds=6)
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
    before, after, best = [], [], []
    for seed in range(40):
        effects, strengths = additive(seed)
        value, slope = sums_of(effects)
        (step,) = nested(strengths, [7], value, slope, rounds=6)
        sums = [float(effects[list(c)].sum()) for c in itertools.combinations(range(14), 7)]
        best.append(min(abs(1 - value) for value in sums))
        before.append(abs(1 - step.before))
        after.append(abs(1 - step.value))
    assert sorted(best)[20] < 1e-3 < 0.1 * sorted(before)[20]  # medians
    assert sorted(after)[20] < 0.2 * sorted(before)[20]
    assert sum(after) < 0.5 * sum(before)


@pytest.mark.parametrize("seed", range(10))
def test_helpful_edges_leave_for_more_helpful_ones(seed):
    """Where every edge helps, the best circuit is that of the largest effects."""
    generator = torch.Generator().manual_seed(seed)
    effects = torch.rand(14, generator=generator, dtype=torch.float64)
    effects /= effects.sum()
    value, slope = sums_of(effects)
    strengths = torch.rand(14, generator=generator, dtype=torch.float64)
    (step,) = nested(strengths, [7], value, slope, rounds=8)
    assert step.value == pytest.approx(float(effects.sort().values[-7:].sum()))


@pytest.mark.parametrize("scale", [0.03, 0.3, 3.0, 30.0])
def test_what_is_measured_corrects_the_estimates(scale):
    before, after = [], []
    for seed in range(40):
        effects, strengths = additive(seed, edges=60)
        value, _ = sums_of(effects)
        (step,) = nested(strengths, [30], value, lambda kept: effects * scale, rounds=6)  # noqa: B023
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
    (step,) = nested(strengths, [30], measure, lambda kept: effects)
    assert (step.rounds, step.swaps, step.value) == (1, 0, 0.1)
    assert 3 < len(runs) == len(set(runs)) <= 9


def test_a_goal_that_is_met_costs_one_run():
    runs = []

    def measure(kept):
        runs.append(kept)
        return 1.0

    def slope(kept):
        raise AssertionError("no slope is needed")

    steps = nested(torch.arange(8.0), [3, 5, 3], measure, slope)
    assert [step.count for step in steps] == [5, 3]
    assert len(runs) == 2


def test_a_slope_of_nothing_changes_nothing():
    steps = nested(torch.arange(8.0), [3], lambda kept: 0.2, lambda kept: torch.zeros(8))
    assert steps[0].kept.tolist() == [False] * 5 + [True] * 3
    assert steps[0].rounds == 1


# -------------------------------------------------------------------- the method


def test_what_it_says_is_what_a_curve_measures():
    model, data = Toy(seed=3), task()
    found = CalibratedRanking("eap", sizes=(2, 4, 6), rounds=6).fit(model, data)
    assert list(found.circuits) == [2, 4, 6] == [row["kept"] for row in found.history]
    curve = gp.faithfulness_curve(model, data, found.scores, [2, 4, 6], rankings=["abs"])
    for (count, circuit), row, f in zip(
        found.circuits.items(), found.history, curve.f["abs"], strict=True
    ):
        assert found.scores.top(count) == circuit
        assert row["after"] == pytest.approx(f, abs=1e-5)
        assert abs(1 - row["after"]) <= abs(1 - row["before"])
    largest = gp.faithfulness_curve(
        model, data, gp.EAP().score(model, data), [6, 9], rankings=["abs"]
    )
    assert found.history[-1]["before"] == pytest.approx(largest.f["abs"][0], abs=1e-5)
    for small, large in itertools.pairwise(found.circuits.values()):
        assert small & large == small
    values = found.scores.values
    assert float(values.min()) > 0
    assert float(values.max()) <= 1
    assert list(found.history[0]) == ["kept", "before", "after", "swaps", "rounds"]


def test_slopes_are_finite_differences():
    from graphprune.methods.calibration import _Examples

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
    from graphprune.methods.calibration import _Examples

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


@pytest.mark.parametrize(
    "ablation",
    ["counterfactual", *(pytest.param(a, marks=pytest.mark.slow) for a in ("zero", "mean"))],
)
def test_a_better_curve_on_its_own_examples(ablation):
    model, data = gp.wrap(planted()), planted_task()
    sizes = (6, 12, 20, 30)
    start = gp.EAP(ablation=ablation).score(model, data)
    found = CalibratedRanking(start, sizes=sizes, ablation=ablation).score(model, data)
    both = [
        gp.faithfulness_curve(model, data, s, [*sizes, 46], rankings=["abs"], ablation=ablation)
        for s in (start, found)
    ]
    assert both[1].cmd <= both[0].cmd + 1e-6


def test_references_change_the_time_alone():
    model, data = gp.wrap(planted()), planted_task()
    method = CalibratedRanking("eap", sizes=(6, 12, 20), rounds=2, tolerance=0.0)
    kept = method.score(model, data).values
    assert dataclasses.replace(method, cache=0).score(model, data).values.equal(kept)


@pytest.mark.parametrize("make", [toy, lambda: language("llama")], ids=["toy", "llama"])
def test_it_keeps_the_contract_of_methods(make):
    method = CalibratedRanking("eap", rounds=1)
    assert set(check_method(method, *make()).values()) == {"passed"}


def test_it_serves_graph_networks():
    from graphprune.study.systems import make_case

    case = make_case("gnn-reachability", "reachable", train=16, test=8, seed=0, options={})
    found = CalibratedRanking("eap-ig", sizes=(0.2, 0.5)).fit(case.model, case.train)
    for row in found.history:
        assert abs(1 - row["after"]) <= abs(1 - row["before"])


def test_from_the_command_line(tmp_path, capsys):
    model = save_model(tmp_path / "model")
    settings = [x for s in ("scorer=eap", "sizes=0.1,0.3", "rounds=1") for x in ("--set", s)]
    common = ("discover", "--model", model, "--task", "ioi", "-n", 4, "--json")
    asked = ("--method", "calibrated-ranking", *settings, "--size", 12, "--out", tmp_path / "c")
    assert call(*common, *asked) == 0
    told = out_of(capsys)
    assert told["method"] == "CalibratedRanking(scorer=EAP, sizes=(0.1, 0.3), rounds=1)"
    assert told["selected"] == 12


# -------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CalibratedRanking(rounds=-1), "rounds must be an integer of at least 0"),
        (lambda: CalibratedRanking(gradient_examples=0), r"a share of them in \(0, 1\]; got 0"),
        (lambda: CalibratedRanking(gradient_examples=1.5), r"in \(0, 1\]; got 1.5"),
        (lambda: CalibratedRanking(gradient_examples="all"), r"in \(0, 1\]; got 'all'"),
        (lambda: CalibratedRanking(tolerance=-0.1), "from 0 on; got -0.1"),
        (lambda: CalibratedRanking(tolerance=float("nan")), "from 0 on; got nan"),
        (lambda: CalibratedRanking(sizes=()), "sizes are fractions or counts"),
        (lambda: CalibratedRanking(sizes="0.1"), "sizes are fractions or counts"),
        (lambda: CalibratedRanking("acdc"), "gives no scores"),
        (lambda: CalibratedRanking(3), "the scorer must be a scorer"),
        (lambda: CalibratedRanking("eap", sizes=[1.5]).score(Toy(), task()), "1.5"),
        (
            lambda: CalibratedRanking("eap").score(
                Toy(), gp.Task(ToyExamples(6), "accuracy", batch_size=6)
            ),
            "no gradient",
        ),
        (
            lambda: CalibratedRanking("information-flow").score(
                Toy(), gp.Task(ToyExamples(6), "accuracy", batch_size=6)
            ),
            "no gradient",
        ),
    ],
)
def test_refusals(make, message):
    with pytest.raises(gp.InputError, match=message):
        make()


def test_scores_that_say_nothing_and_foreign_ones():
    model, data = Toy(seed=3), task()
    flat = gp.EdgeScores(model.graph, torch.ones(9))
    with pytest.raises(gp.InputError, match="constant scores"):
        CalibratedRanking(flat).score(model, data)
    other = gp.ComputationalGraph.from_edges([("a", "b"), ("b", "c")])
    with pytest.raises(gp.GraphMismatchError):
        CalibratedRanking(gp.EdgeScores(other, torch.tensor([1.0, 2.0]))).score(model, data)


def test_nothing_to_be_faithful_to():
    class Same(ToyExamples):
        def batch(self, numbers):
            batch = super().batch(numbers)
            return dataclasses.replace(batch, corrupt=batch.clean)

    data = gp.Task(Same(6), "logit_diff", batch_size=6)
    given = gp.EdgeScores(Toy(seed=3).graph, torch.arange(9.0))
    with pytest.raises(gp.InputError, match="counterfactual ablation changes nothing"):
        CalibratedRanking(given).score(Toy(seed=3), data)
