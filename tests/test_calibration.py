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


def task():
    return gp.Task(ToyExamples(6), "logit_diff", batch_size=4)


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
    case = gp.study.make_case("gnn-reachability", "reachable", train=16, test=8, seed=0, options={})
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
