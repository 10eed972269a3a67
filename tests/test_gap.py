"""Faithfulness is a share of full - ablated: absent, with the reason, where that is noise."""

import math

import pytest
import torch
from scipy.stats import ttest_rel
from support.toy import Toy, ToyExamples
from test_idle_ablations import structural

import graphprune as gp
from graphprune import statistics as st


def scored(full, ablated):
    """A toy whose full and ablated scores are these, and any circuit's is 3."""
    model, n = Toy(), len(full)
    rows = {"full": torch.as_tensor(full).double(), "ablated": torch.as_tensor(ablated).double()}

    def score(outputs, batch, reference):
        made = model.reference(batch)
        for side, found in (("full", made.full), ("ablated", made.ablated)):
            if torch.equal(outputs, found):
                return rows[side][list(batch.indices)]
        return torch.full((batch.size,), 3.0).double()

    metric = gp.Metric("score", score, differentiable=False)
    return model, gp.Task(ToyExamples(n), metric, name="toy", batch_size=5)


def spread(n, gap, width=1.0):
    """``[n]``: values of mean ``gap``, evenly spread by ``width`` to both sides."""
    x = torch.linspace(-width, width, n).double()
    return x - x.mean() + gap


def a_mask(model):
    return gp.EdgeMask(model.graph, (torch.arange(model.graph.num_edges) % 2).float())


def test_no_share_of_noise():
    """The share was 60 here, of a difference with an interval from -.2 to .3."""
    full = spread(24, 0.05)
    model, task = scored(full, torch.zeros(24))
    assert ttest_rel(full, torch.zeros(24)).pvalue > 0.5
    found = gp.evaluate(model, task, a_mask(model))
    assert "faithfulness" not in found.values
    why = found.absent["faithfulness"]
    assert "not told apart" in why
    assert "95 % interval -0.2" in why
    assert "24 examples" in why
    with pytest.raises(KeyError, match="not told apart"):
        found["faithfulness"]
    with pytest.raises(gp.InputError, match="no interval: full - ablated"):
        found.interval("faithfulness")
    scores = gp.EdgeScores(model.graph, torch.arange(9.0))
    with pytest.raises(gp.InputError, match="not told apart"):
        gp.faithfulness_curve(model, task, scores, (0.3, 1.0))
    with pytest.raises(gp.InputError, match="not told apart"):
        st.transfer(model, {"a": a_mask(model)}, {"a": task})


def test_a_clear_difference_is_a_unit_however_many_examples():
    for n in (1, 2, 3, 8, 24):
        model, task = scored(spread(n, 4.0), torch.zeros(n))
        found = gp.evaluate(model, task, a_mask(model))
        assert found["faithfulness"] == pytest.approx(0.75)
        note = found.notes.get("faithfulness", "")
        # Of two examples Student's t is 12.7, so that an interval is wide.
        assert ("one example" in note) == (n == 1)
        assert ("interval" in note) == (n in (1, 2))
    # A program gives every example the same: nothing varies.
    model, task = scored(torch.full((20,), 0.001), torch.zeros(20))
    assert gp.evaluate(model, task, a_mask(model))["faithfulness"] == pytest.approx(3000)


def test_few_examples_bring_the_interval_of_the_difference():
    model, task = scored(spread(8, 0.3), torch.zeros(8))
    found = gp.evaluate(model, task, a_mask(model))
    assert found["faithfulness"] == pytest.approx(10)
    assert "full - ablated is 0.3 on average, 95 % interval -0." in found.notes["faithfulness"]
    assert found.interval("faithfulness") == (-math.inf, math.inf)
    curve = gp.faithfulness_curve(model, task, gp.EdgeScores(model.graph, torch.arange(9.0)))
    assert "95 % interval" in curve.note
    # Two that nearly cancel out: a share of anything, beside the interval that says so.
    model, task = scored([3.0, -2.9], torch.zeros(2))
    found = gp.evaluate(model, task, a_mask(model))
    assert "a share of that difference may have any size" in found.notes["faithfulness"]
    assert found.interval("faithfulness") == (-math.inf, math.inf)


def test_rounding_is_no_difference():
    model, task = scored(torch.full((30,), 100.00001), torch.full((30,), 100.0))
    assert "score the same" in gp.evaluate(model, task, a_mask(model)).absent["faithfulness"]


def test_statistics_share_the_decision():
    model, task = scored(spread(24, 0.05), torch.zeros(24))
    circuit = a_mask(model)
    lost = st.completeness(model, task, circuit, draws=3, greedy=0, bar=0.5)
    assert lost["relative"] is None
    assert lost.passed is None
    assert any("not told apart" in remark for remark in lost.remarks)
    least = st.minimality(model, task, circuit, draws=1, steps=0)
    assert any("not told apart" in remark for remark in least.remarks)
    beaten = st.controls(model, task, circuit, kinds=("random",), draws=3)
    assert beaten["faithfulness"] is None
    assert {row["faithfulness"] for row in beaten.rows} == {None}
    assert any("not told apart" in remark for remark in beaten.remarks)
    # And where it is told apart, the shares are there.
    model, task = scored(spread(24, 4.0), torch.zeros(24))
    assert st.controls(model, task, circuit, kinds=("random",), draws=3)[
        "faithfulness"
    ] == pytest.approx(0.75)
    # Nothing knocked out, circuit and model score 3 and 4 of a difference of 4.
    lost = st.completeness(model, task, circuit, draws=0, greedy=0, bar=0.2)
    assert lost["relative"] == pytest.approx(0.25)
    assert lost.passed is False


def test_an_ablation_that_changes_nothing_is_the_reason():
    model, task = structural()
    circuit = a_mask(model)
    why = gp.evaluate(model, task, circuit).absent["faithfulness"]
    assert "score the same" in why
    assert "counterfactual ablation changes nothing" in why
    assert "ablation='zero'" in why
    for test in (st.sufficiency_test, st.necessity_test, st.equivalence_test):
        with pytest.raises(gp.InputError, match="counterfactual ablation changes nothing"):
            test(model, task, circuit)
    assert st.sufficiency_test(model, task, circuit, ablation="zero", draws=5).p_value is not None
