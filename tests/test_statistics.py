"""Tests of circuits against every subset of a toy."""

import itertools
import re

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, ttest_rel
from support.toy import Toy, ToyExamples

import graphprune as gp
from graphprune import statistics as st


@pytest.fixture(scope="module")
def toy():
    return Toy(), gp.Task(ToyExamples(24), "logit_diff", name="toy", batch_size=13)


@pytest.fixture(scope="module")
def scores(toy):
    """``{kept edges: scores of every example}`` of all 512 circuits, by the public run alone."""
    model, task = toy
    found = {}
    batches = [(b, model.reference(b, gp.Ablation())) for b in task.batches()]
    for bits in itertools.product((0.0, 1.0), repeat=model.graph.num_edges):
        outs = [(model.run(b, torch.tensor(bits), r), b) for b, r in batches]
        values = torch.cat([o[:, 0] - o[:, 1] for o, _ in outs]).double()
        found[frozenset(i for i, bit in enumerate(bits) if bit)] = values.numpy()
    return found


EVERY = frozenset(range(9))
CIRCUIT = frozenset({0, 1, 3, 4, 6, 7})
SMALL = frozenset({0, 3, 7})


def mask_of(model, kept):
    values = torch.zeros(model.graph.num_edges)
    values[list(kept)] = 1.0
    return gp.EdgeMask(model.graph, values)


def test_equivalence_counts_examples(toy, scores):
    model, task = toy
    found = st.equivalence_test(model, task, mask_of(model, CIRCUIT), epsilon=0.2)
    gaps = scores[CIRCUIT] - scores[EVERY]
    noise = 1e-5 * max(abs(scores[EVERY]).max(), abs(scores[frozenset()]).max())
    assert found["wins"] == int((gaps > noise).sum()) > 0
    assert found["losses"] == int((gaps < -noise).sum()) > 0
    assert found["equal"] == int((abs(gaps) <= noise).sum()) > 0
    assert found["mean_difference"] == pytest.approx(gaps.mean(), abs=1e-6)
    assert found["low"] < gaps.mean() < found["high"]
    assert found.to_frame()["difference"].tolist() == pytest.approx(gaps.tolist(), abs=1e-5)
    # A metric that is better when lower: sides change places.
    upside_down = gp.Metric(
        "minus", lambda out, batch, full: out[:, 0] - out[:, 1], higher_is_better=False
    )
    turned = st.equivalence_test(model, task, mask_of(model, CIRCUIT), metric=upside_down)
    assert (turned["wins"], turned["losses"]) == (found["losses"], found["wins"])


@pytest.mark.parametrize("distance", ["squared", "absolute", "mean"])
def test_minimality_by_hand(toy, scores, distance):
    def apart(a, b):
        gap = scores[a] - scores[b]
        return {
            "squared": (gap**2).mean(),
            "absolute": abs(gap).mean(),
            "mean": abs(gap.mean()),
        }[distance]

    model, task = toy
    found = st.minimality_test(
        model, task, mask_of(model, CIRCUIT), draws=40, distance=distance, quantile=0.7, seed=3
    )
    number = model.graph.edge_number
    rows = {number[row["edge"]]: row for row in found.rows}
    assert set(rows) == CIRCUIT
    for edge, row in rows.items():
        assert row["effect"] == pytest.approx(apart(CIRCUIT, CIRCUIT - {edge}), rel=1e-4)
        count = round(row["beats"] * 40)
        assert row["p_value"] == pytest.approx(binomtest(count, 40, 0.7, "less").pvalue)
        assert row["p_corrected"] == pytest.approx(min(1.0, 6 * row["p_value"]))
    assert found.p_value == min(row["p_corrected"] for row in found.rows)
    assert found.correction == "Bonferroni over 6 edges"
    named = [number[e] for e in found.settings["random_edges"]]
    assert set(named) == EVERY - CIRCUIT  # none of the circuit's, and each of the others
    some = st.minimality_test(model, task, mask_of(model, CIRCUIT), draws=10, edges=["a->c", 4])
    assert some["tested"] == 2


def test_a_random_circuit_is_sufficient_no_more_often_than_chance(toy):
    """The null hypothesis made true: the circuit is one more draw."""
    model, task = toy
    task = task.take(6)
    mask = mask_of(model, range(4))
    p_values, ranks = [], []
    for seed, one in enumerate(st.random_circuits(mask, 60, match="size", seed=9)):
        found = st.sufficiency_test(
            model, task, one, draws=30, match="size", quantile=0.9, seed=seed
        )
        p_values.append(found.p_value)
        ranks.append(found["p_rank"])
    assert np.mean(np.array(p_values) <= 0.05) <= 0.1
    assert np.mean(np.array(ranks) <= 0.1) <= 0.2
    assert 0.3 < np.mean(ranks) < 0.7


def test_completeness_against_every_subset(toy, scores):
    model, task = toy
    found = st.completeness(
        model, task, mask_of(model, CIRCUIT), draws=250, greedy=6, steps=6, width=6
    )
    all_sets = [
        frozenset(chosen)
        for size in range(len(CIRCUIT) + 1)
        for chosen in itertools.combinations(sorted(CIRCUIT), size)
    ]
    gaps = {k: abs(scores[CIRCUIT - k].mean() - scores[EVERY - k].mean()) for k in all_sets}
    assert len(gaps) == 64
    assert found["worst"] == pytest.approx(max(gaps.values()), rel=1e-4)
    worst = frozenset(model.graph.edge_number[e] for e in found["knocked_out"])
    assert gaps[worst] == pytest.approx(found["worst"], rel=1e-4)
    assert found["none"] == pytest.approx(gaps[frozenset()], rel=1e-4)
    # A share of full - ablated would be 1.7 here, of a difference that is not told apart from 0.
    assert ttest_rel(scores[EVERY], scores[frozenset()]).pvalue > 0.05
    assert found["relative"] is None
    assert "not told apart" in found.remarks[1]
    # Greedily alone, from every start: steps of the best component, as the definition has it.
    first = [r for r in found.rows if r["found"] == "greedy"][:6]
    assert {round(r["incompleteness"], 4) for r in first} == {
        round(gaps[frozenset({e})], 4) for e in CIRCUIT
    }
    assert found.p_value is None
    assert found.rejected is None
    assert found.passed is None
    low = st.completeness(model, task, mask_of(model, CIRCUIT), draws=5, greedy=0, bar=1e-9)
    assert low.passed is None  # a bar is a share of that difference
    whole = st.completeness(model, task, mask_of(model, EVERY), draws=5, bar=0.01)
    assert whole["worst"] < 1e-6
    assert whole.passed


def test_completeness_over_nodes(toy, scores):
    model, task = toy
    found = st.completeness(
        model, task, mask_of(model, CIRCUIT), over="nodes", draws=30, greedy=3, steps=4
    )
    leaving = {"in": {0, 1, 5}, "a": {2, 3, 8}, "b": {4, 6}, "c": {7}}
    gaps = []
    for size in range(5):
        for chosen in itertools.combinations(leaving, size):
            k = frozenset().union(*(leaving[n] for n in chosen))
            gaps.append(abs(scores[CIRCUIT - k].mean() - scores[EVERY - k].mean()))
    assert found["worst"] == pytest.approx(max(gaps), rel=1e-4)
    assert set(found["knocked_out"]) <= set(leaving)


def test_wang_minimality_against_every_subset(toy, scores):
    model, task = toy
    found = st.minimality(
        model, task, mask_of(model, CIRCUIT), draws=130, steps=2, width=6, bar=0.05
    )
    gap = abs(scores[EVERY].mean() - scores[frozenset()].mean())
    rows = {model.graph.edge_number[row["component"]]: row for row in found.rows}
    idle = []
    for edge in CIRCUIT:
        rest = sorted(CIRCUIT - {edge})
        best = max(
            abs(scores[CIRCUIT - {edge, *k}].mean() - scores[CIRCUIT - set(k)].mean())
            for size in range(len(rest) + 1)
            for k in itertools.combinations(rest, size)
        )
        alone = abs(scores[CIRCUIT - {edge}].mean() - scores[CIRCUIT].mean())
        assert rows[edge]["effect"] == pytest.approx(best, rel=1e-4)
        assert rows[edge]["alone"] == pytest.approx(alone, rel=1e-3, abs=1e-6)
        assert rows[edge]["size"] == len(rows[edge]["with"])
        if best <= 0.05 * gap:
            idle.append(edge)
    assert {model.graph.edge_number[e] for e in found["idle"]} == set(idle)
    assert found.passed == (not idle)
    assert found["gap"] == pytest.approx(gap, rel=1e-4)


# ---------------------------------------------------------------- results and bad input


def test_a_finding_says_everything(toy):
    import json

    model, task = toy
    mask = mask_of(model, SMALL)
    report = st.examine(model, task, mask, list(st.TESTS), draws=20, seed=1)
    again = st.examine(model, task, mask, list(st.TESTS), draws=20, seed=1)
    assert json.dumps(report.to_dict()) == json.dumps(again.to_dict())
    assert report.not_made == {}
    assert list(report.findings) == list(st.TESTS)
    frame = report.to_frame()
    assert frame["test"].tolist() == list(st.TESTS)
    for finding in report.findings.values():
        assert finding.summary().startswith(finding.name)
        assert "\n" not in finding.summary()
        assert len(finding.to_frame()) >= 1
        assert finding.to_dict()["rejected"] == finding.rejected
        assert finding.settings["graph"] == model.graph.fingerprint
        assert (finding.p_value is None) == (finding.null is None)
        # Every test knows the smallest p-value it could have given, and is no verdict above alpha.
        if finding.p_value is not None and finding.name != "equivalence":
            assert 0 < finding.least_p <= finding.p_value + 1e-12
        assert finding.underpowered == ("underpowered" in finding.summary())
        assert finding.passed is None or not finding.underpowered
        assert finding.to_dict()["underpowered"] == finding.underpowered
    assert report.summary().count("\n") == len(st.TESTS) - 1
    with pytest.raises(KeyError, match="not among"):
        report["equivalence"]["beauty"]
    with pytest.raises(KeyError, match="not asked for"):
        report["beauty"]
    assert list(st.examine(model, task, mask, draws=9).findings) == [
        "equivalence", "independence", "minimality", "sufficiency", "necessity",
    ]  # fmt: skip


def test_a_circuit_stands_for_its_mask(toy):
    model, task = toy
    mask = mask_of(model, CIRCUIT)
    one, two = (
        st.equivalence_test(model, task, it)
        for it in (mask, gp.Circuit.from_mask(mask, model=model, task=task))
    )
    assert one.to_dict() == two.to_dict()


@pytest.mark.parametrize(
    ("test", "options"),
    [
        (st.minimality_test, {"draws": 1}),
        (st.sufficiency_test, {"draws": 10}),
    ],
)
def test_too_few_draws_name_the_least_number_that_is_enough(toy, test, options):
    model, task = toy
    mask = mask_of(model, CIRCUIT)
    found = test(model, task, mask, **options)
    assert found.summary().count("underpowered") == 1
    assert not any("too few" in remark for remark in found.remarks)
    enough = int(re.search(r"draws=(\d+) or more would tell", found.summary())[1])
    assert not test(model, task, mask, **options | {"draws": enough}).underpowered
    assert test(model, task, mask, **options | {"draws": enough - 1}).underpowered


def test_too_few_controls_name_a_number_that_is_enough(toy):
    model, task = toy
    mask = mask_of(model, CIRCUIT)
    found = st.controls(model, task, mask, kinds=["random"], draws=5)
    assert "draws=20 or more would tell" in found.summary()
    assert not st.controls(model, task, mask, kinds=["random"], draws=20).underpowered


def test_too_few_examples_name_the_least_number_that_is_enough(toy):
    model, task = toy
    found = st.equivalence_test(model, task.take(3), mask_of(model, CIRCUIT))
    assert 0.6**6 + 0.4**6 > 0.05 > 0.6**7 + 0.4**7
    assert "examples=7 or more would tell" in found.summary()


def test_what_could_not_have_been_rejected_is_underpowered_in_the_summary(toy):
    model, task = toy
    mask = mask_of(model, CIRCUIT)
    few = task.take(3)
    for test, weak, strong, least in (
        (st.minimality_test, {"draws": 1}, {"draws": 30}, 6 * 0.1),
        (st.sufficiency_test, {"draws": 10}, {"draws": 30}, 0.9**10),
        (st.necessity_test, {"draws": 10, "source": "graph"}, {"draws": 30, "source": "graph"},
         0.9**10),
        (st.controls, {"draws": 5, "kinds": ["random"]}, {"kinds": ["random"]}, 1 / 6),
        (st.independence_test, {"draws": 9, "of": "scores"}, {"of": "scores"}, 1 / 10),
    ):  # fmt: skip
        found = test(model, task, mask, **weak)
        assert found.least_p == pytest.approx(least), test
        assert f"underpowered: with these settings p is at least {least:.2g}" in found.summary()
        assert found.passed is None
        enough = test(model, task, mask, **strong)
        assert not enough.underpowered
        assert "underpowered" not in enough.summary()
        assert enough.passed is not None
    found = st.equivalence_test(model, few, mask)
    assert found.least_p == pytest.approx(0.6**3 + 0.4**3)
    assert found.passed is None
    assert "underpowered" in found.summary()
    # Equivalence that is shown is a verdict, whatever the opposite test could have seen.
    whole = st.equivalence_test(model, task.take(13), gp.EdgeMask.full(model.graph), epsilon=0.3)
    assert whole["p_not_equivalent"] <= 0.05 < 0.8**13 + 0.2**13
    assert whole.passed is True


def test_independence_of_few_examples_knows_all_their_orders(toy, scores):
    """Four examples can be paired in 24 ways: the largest HSIC of them has that many ties."""
    model, task = toy
    mask = mask_of(model, SMALL)
    found = st.independence_test(model, task.take(4), mask, of="scores", draws=2000)
    full, left = scores[EVERY][:4], scores[EVERY - SMALL][:4]
    every = [st.hsic(full, left[list(order)]) for order in itertools.permutations(range(4))]
    ties = sum(value > max(every) - 1e-9 for value in every)
    assert found.least_p == pytest.approx(ties / 24, abs=0.02)
    assert found.underpowered == (ties > 1)


def test_a_model_that_always_says_the_same_shows_no_independence(toy):
    model, task = toy
    same = task.subset([0] * 8)
    found = st.independence_test(model, same, mask_of(model, CIRCUIT), of="scores", draws=99)
    assert found.p_value == found.least_p == 1.0
    assert found.passed is None
    assert "underpowered" in found.summary()


TESTS = [st.equivalence_test, st.independence_test, st.minimality_test, st.sufficiency_test,
         st.necessity_test, st.completeness, st.minimality]  # fmt: skip


@pytest.mark.parametrize("test", TESTS)
def test_what_is_no_circuit_is_refused(toy, test):
    model, task = toy
    for mask, words in (
        (gp.EdgeMask.empty(model.graph), "keeps no edge"),
        (gp.EdgeMask(model.graph, torch.full((9,), 0.5)), "values between 0"),
        (torch.ones(9), "expected an EdgeMask or a Circuit, got Tensor"),
    ):
        with pytest.raises(gp.InputError, match=words):
            test(model, task, mask)
    other = gp.ComputationalGraph.from_edges([("a", "b"), ("b", "c")])
    with pytest.raises(gp.GraphMismatchError):
        test(model, task, gp.EdgeMask.full(other))
    with pytest.raises(gp.InputError, match="wrap it first"):
        test(torch.nn.Linear(1, 1), task, mask_of(model, CIRCUIT))
    with pytest.raises(gp.InputError, match="seed"):
        test(model, task, mask_of(model, SMALL), seed=-1)


@pytest.mark.parametrize("test", [st.minimality_test, st.sufficiency_test, st.necessity_test])
def test_the_whole_graph_has_nothing_to_be_compared_with(toy, test):
    model, task = toy
    with pytest.raises(gp.InputError, match="the circuit is the whole graph"):
        test(model, task, gp.EdgeMask.full(model.graph))


def test_small_tasks_and_settings_that_make_no_sense(toy):
    model, task = toy
    mask = mask_of(model, CIRCUIT)
    one = task.take(1)
    for call, words in (
        (lambda: st.equivalence_test(model, one, mask), "at least 2 examples"),
        (lambda: st.independence_test(model, one, mask), "at least 4 examples"),
        (lambda: st.equivalence_test(model, task, mask, epsilon=0.5), "epsilon"),
        (lambda: st.equivalence_test(model, task, mask, alpha=1.0), "alpha"),
        (lambda: st.minimality_test(model, task, mask, quantile=1.0), "quantile"),
        (lambda: st.minimality_test(model, task, mask, edges=["a->z"]), "unknown edge 'a->z'"),
        (lambda: st.minimality_test(model, task, mask, edges=["a->b", 8]), "not in the circuit"),
        (lambda: st.minimality_test(model, task, mask, edges=[]), "no edge was named"),
        (lambda: st.minimality_test(model, task, mask, distance="far"), "unknown distance 'far'"),
        (lambda: st.sufficiency_test(model, task, mask, size=9), "all or nothing"),
        (lambda: st.necessity_test(model, task, mask), "do not fit there"),
        (lambda: st.necessity_test(model, task, mask, source="nowhere"), "source is"),
        (lambda: st.completeness(model, task, mask, over="layers"), "edges or nodes"),
        (lambda: st.independence_test(model, task, mask, of="scores", metric="kl"), "constant"),
        (lambda: st.independence_test(model, task, mask, of="words"), "of is auto"),
        (lambda: st.examine(model, task, mask, ["truth"]), "unknown test 'truth'"),
        (lambda: st.examine(model, task, mask, "sufficiency"), "say \\['sufficiency'\\]"),
        (lambda: st.examine(model, one, mask, ["equivalence"]), "at least 2 examples"),
    ):
        with pytest.raises(gp.InputError, match=words):
            call()
    report = st.examine(model, one, mask, ["independence", "sufficiency"], draws=10)
    assert "at least 4 examples" in report.not_made["independence"]
    assert "not made" in report.summary()
    assert report.to_frame()["finding"].str.contains("not made").sum() == 1
    assert list(report.findings) == ["sufficiency"]
