"""Tests of circuits where the truth is known: compiled programs."""

import pytest
from support import programs

import graphprune as gp
from graphprune import statistics as st


def program(name):
    pytest.importorskip("tracr", reason="Tracr is not installed: pip install 'graphprune[tracr]'")
    model, task = programs.program(name)
    # The shortest inputs, which need every edge of these programs.
    return model, task.take(120), gp.adapters.tracr_truth(model)


def without(mask, edge):
    return gp.EdgeMask.from_edges(mask.graph, [e for e in mask.edges() if e != edge])


def outside(mask):
    return [e for e in mask.graph.edge_names if e not in set(mask.edges())]


@pytest.mark.parametrize("name", programs.cases(["frac_prevs", "count", "hist", "length"]))
def test_the_true_circuit_passes(name):
    model, task, truth = program(name)
    same = st.equivalence_test(model, task, truth, ablation="zero")
    assert same.passed
    assert not same.rejected
    assert same["equal"] == len(task)
    assert same["p_not_equivalent"] < 0.05
    minimal = st.minimality_test(model, task, truth, ablation="zero", draws=30)
    assert minimal["not_minimal"] == []
    assert minimal.passed
    assert minimal["tested"] == truth.num_kept
    enough = st.sufficiency_test(model, task, truth, ablation="zero", draws=30)
    assert enough.rejected
    assert enough.passed
    assert enough["beaten"] == 1.0
    assert enough.p_value == pytest.approx(0.9**30)
    assert enough["p_rank"] == pytest.approx(1 / 31)


@pytest.mark.parametrize("name", programs.cases(["frac_prevs", "count", "hist", "length"]))
def test_a_circuit_without_any_one_edge_fails(name):
    model, task, truth = program(name)
    for edge in truth.edges():
        less = without(truth, edge)
        found = st.equivalence_test(model, task, less, epsilon=0.05, ablation="zero")
        assert found.rejected, edge
        assert not found.passed
        assert found["wins"] == 0
        enough = st.sufficiency_test(model, task, without(truth, edge), ablation="zero", draws=30)
        assert not enough.passed, edge


@pytest.mark.parametrize("name", programs.cases(["frac_prevs", "count", "hist", "length"]))
def test_one_edge_too_many_is_named(name):
    model, task, truth = program(name)
    extra = outside(truth)
    for edge in extra[:: max(1, len(extra) // 3)]:
        more = gp.EdgeMask.from_edges(model.graph, [*truth.edges(), edge])
        if gp.removable_edges(model, task, more, ablation="zero").edges() != [edge]:
            continue  # it does something beside the circuit
        assert st.equivalence_test(model, task, more, ablation="zero").passed
        found = st.minimality_test(model, task, more, ablation="zero", draws=30)
        assert found["not_minimal"] == [edge]
        assert found.rejected
        assert not found.passed
        assert edge in found.summary()
        known = st.minimality(model, task, more, ablation="zero", draws=4, steps=1)
        assert known["idle"] == [edge]


@pytest.mark.slow
def test_the_reverse_program_of_the_paper():
    model, task, truth = program("reverse")
    assert st.equivalence_test(model, task, truth, ablation="zero").passed
    assert st.minimality_test(model, task, truth, ablation="zero", draws=30).passed
    short = without(truth, truth.edges()[0])
    assert st.equivalence_test(model, task, short, ablation="zero").rejected


def test_what_is_left_of_a_program_knows_nothing():
    """The complement of the truth is silent; that of an idle edge is the whole program."""
    model, task, truth = program("count")
    found = st.independence_test(model, task, truth, ablation="zero", draws=200)
    assert found.settings["of"] == "outputs"
    assert found.p_value == 1.0
    assert found.passed
    assert "the same on every example" in found.remarks[0]
    idle = gp.EdgeMask.from_edges(model.graph, outside(truth)[:1])
    found = st.independence_test(model, task, idle, ablation="zero", draws=200)
    assert found.rejected
    assert found.p_value == pytest.approx(1 / 201)
    assert found["p_ablated"] == 1.0
    assert found["hsic"] > found["null_95"]


def test_necessity_of_a_programs_circuit():
    model, task, truth = program("frac_prevs")
    found = st.necessity_test(model, task, truth, ablation="zero", draws=30)
    assert found.rejected
    assert found["shared"] == 0.0
    # Random circuits of the whole graph hit an edge of the circuit and break the program as well.
    anywhere = st.necessity_test(model, task, truth, ablation="zero", draws=30, source="graph")
    assert anywhere["shared"] > 0
    assert anywhere["beaten"] < found["beaten"] == 1.0
    idle = gp.EdgeMask.from_edges(model.graph, outside(truth)[:5])
    assert not st.necessity_test(model, task, idle, ablation="zero", draws=30, match="size").passed
