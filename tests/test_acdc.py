"""ACDC against its definition: the kept sets of a plain loop of whole runs, edge by edge."""

import signal

import numpy as np
import pytest
import torch
from support.greedy import brute_force, mean_loss
from support.rings import RingExamples, Rings
from support.toy import Toy, ToyExamples
from transformer_graph import transformer_graph

import graphprune as gp

DISTANCE = gp.Metric(
    "distance", lambda out, batch, full: (out - full).square().sum(-1), higher_is_better=False
)


@pytest.fixture(scope="module")
def toy():
    return Toy(seed=2), gp.Task(ToyExamples(), DISTANCE, name="toy", batch_size=4)


@pytest.mark.parametrize("exact", ["speculative", "sequential"])
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("drop_dead", [False, True])
def test_toy_circuits_are_the_definitions(toy, exact, absolute, drop_dead):
    model, task = toy
    losses = mean_loss(model, task, DISTANCE)
    sizes = set()
    for tau in (-1.0, 0.0, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0):
        rule = gp.ACDC(
            tau=tau, metric=DISTANCE, exact=exact, absolute=absolute, drop_dead=drop_dead
        )
        order = rule.edge_order(model.graph)
        want = brute_force(losses, model.graph, order, tau, absolute=absolute, drop_dead=drop_dead)
        found = rule.prune(model, task)
        assert torch.equal(found.values.bool(), want), tau
        sizes.add(found.num_kept)
    assert len(sizes) > 3  # the thresholds tell circuits apart


@pytest.mark.parametrize(
    ("seed", "dtype", "order"),
    [
        (0, torch.float32, "reverse_topological"),
        (0, torch.float32, "descending"),
        (1, torch.float64, "ascending"),
        (2, torch.float32, "drawn"),
    ],
)
def test_cyclic_graphs(seed, dtype, order):
    model = Rings(seed=seed, dtype=dtype)
    assert not model.graph.is_acyclic
    task = gp.Task(RingExamples(), DISTANCE, name="rings")
    if order == "drawn":
        order = np.random.default_rng(seed).permutation(model.graph.num_edges)
    losses = mean_loss(model, task, DISTANCE, "zero")
    for tau in (1e-4, 1e-3, 0.01, 0.1, 1.0):
        rule = gp.ACDC(tau=tau, metric="task", ablation="zero", order=order)
        want = brute_force(losses, model.graph, rule.edge_order(model.graph), tau)
        assert torch.equal(rule.prune(model, task).values.bool(), want)


def test_a_sweep_is_its_single_runs_and_shares_them(toy):
    model, task = toy
    taus = [0.3, 1e-3, 0.01, 0.1, 0.03]
    swept = gp.ACDC(metric=DISTANCE).sweep(model, task, taus)
    assert list(swept) == sorted(taus)
    alone = 0
    for tau, descent in swept.items():
        single = gp.ACDC(tau=tau, metric=DISTANCE).fit(model, task)
        assert descent.mask == single.mask
        assert descent.found_on == single.found_on == frozenset(task.example_fingerprints())
        assert torch.equal(descent.values["effects"].isnan(), single.values["effects"].isnan())
        torch.testing.assert_close(
            descent.values["effects"], single.values["effects"], equal_nan=True
        )
        alone += single.notes["evaluations"]
    assert swept[0.1].notes["evaluations"] < alone


def test_a_stopped_run_goes_on_at_its_edge(toy, tmp_path):
    model, task = toy
    whole = gp.ACDC(tau=0.03, metric=DISTANCE).fit(model, task)
    at = []
    for limit in range(1, 40, 2):
        part = gp.ACDC(
            tau=0.03, metric=DISTANCE, candidates=1, max_evaluations=limit, run_dir=tmp_path / "run"
        ).fit(model, task)
        at.append(part.notes["decided"])
        if not part.stopped:
            break
        assert f"stopped at edge {part.notes['decided']} of 9" in part.stopped
        undecided = gp.ACDC().edge_order(model.graph)[part.notes["decided"] :]
        assert bool(part.mask.values[undecided].all())
    assert at == sorted(at)
    assert len(at) > 2
    assert part.mask == whole.mask
    assert part.notes["decided"] == 9
    again = gp.ACDC(tau=0.03, metric=DISTANCE, run_dir=tmp_path / "run").fit(model, task)
    assert again.mask == whole.mask
    with pytest.raises(gp.InputError, match="absolute was False, is True"):
        gp.ACDC(tau=0.03, metric=DISTANCE, absolute=True, run_dir=tmp_path / "run").fit(model, task)


@pytest.mark.parametrize("at", [1, 7, 15])
def test_ctrl_c_keeps_what_was_decided(toy, tmp_path, at):
    """In the ``at``-th loss of the run; the same command goes on from there."""
    model, task = toy
    calls = []

    def distance(out, batch, full):
        calls.append(1)
        if len(calls) == at:
            signal.raise_signal(signal.SIGINT)
        return (out - full).square().sum(-1)

    metric = gp.Metric("distance", distance, higher_is_better=False)
    settings = {"tau": 0.03, "metric": metric, "recheck": "off", "candidates": 1}
    part = gp.ACDC(**settings, run_dir=tmp_path / "run").fit(model, task)
    assert "interrupted" in part.stopped
    assert 0 < part.notes["decided"] < 9
    rest = gp.ACDC(**settings, run_dir=tmp_path / "run").fit(model, task)
    assert not rest.stopped
    assert rest.mask == gp.ACDC(tau=0.03, metric=DISTANCE).prune(model, task)


def test_everything_and_nothing_are_said(toy, caplog):
    model, task = toy
    none = gp.ACDC(tau=1e6, metric=DISTANCE).fit(model, task)
    assert none.mask.num_kept == 0
    assert "removes every edge" in none.remarks[0]
    every = gp.ACDC(tau=-1e6, metric=DISTANCE).fit(model, task)
    assert every.mask.num_kept == 9
    assert "removes nothing" in every.remarks[0]
    assert [r.levelname for r in caplog.records] == ["WARNING"] * 2


def test_effects_are_the_rises_of_the_loss(toy):
    model, task = toy
    found = gp.ACDC(tau=0.03, metric=DISTANCE).fit(model, task)
    losses = mean_loss(model, task, DISTANCE)
    kept = torch.ones(9)
    for edge in gp.ACDC().edge_order(model.graph).tolist():
        less = kept.clone()
        less[edge] = 0
        if not found.values["effects"][edge].isnan():
            assert float(found.values["effects"][edge]) == pytest.approx(
                losses(less) - losses(kept), abs=1e-6
            )
        if not found.mask.values[edge]:
            kept = less
    frame = found.to_frame()
    assert list(frame.columns) == ["edge", "source", "target", "kind", "kept", "effects"]
    assert found.notes["dropped"] == int(frame.effects.isna().sum())


def test_a_metric_that_is_nan_names_the_prompt(toy):
    model, task = toy

    def broken(out, batch, full):
        values = (out - full).square().sum(-1)
        return torch.where(torch.tensor([i == 3 for i in batch.indices]), torch.nan, values)

    with pytest.raises(gp.NumericalError, match="example numbers \\[3\\]"):
        gp.ACDC(metric=gp.Metric("broken", broken, higher_is_better=False)).prune(model, task)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tau": float("nan")}, "tau is a finite number"),
        ({"tau": "0.1"}, "tau is a finite number"),
        ({"exact": "fast"}, "speculative, sequential"),
        ({"recheck": "float128"}, "float64, same, off"),
        ({"candidates": 0}, "candidates"),
        ({"max_seconds": 0.0}, "positive"),
    ],
)
def test_settings_are_checked(settings, said):
    with pytest.raises(gp.InputError, match=said):
        gp.ACDC(**settings)


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ("sideways", "unknown order"),
        ([0.5] * 9, "a list of edge numbers, got float64"),
        ([[0]], "a list of edge numbers"),
        ([0, 1], "all 9 edges"),
        ([0] * 9, "each of the 9 edges once"),
    ],
)
def test_orders_are_checked(toy, order, said):
    with pytest.raises(gp.InputError, match=said):
        gp.ACDC(order=order).edge_order(toy[0].graph)


def test_order_of_a_transformer():
    graph = transformer_graph(2, 2)
    order = gp.ACDC().edge_order(graph)
    names = graph.edge_names.at(order)
    assert names[:7] == [
        *(f"{n}->logits" for n in ("m1", "a1.h1", "a1.h0", "m0", "a0.h1", "a0.h0", "input")),
    ]
    assert names[7:9] == ["a1.h1->m1", "a1.h0->m1"]
    assert names[13:15] == ["m0->a1.h1<v>", "a0.h1->a1.h1<v>"]
    assert names[17] == "m0->a1.h0<v>"
    assert names[21] == "m0->a1.h1<k>"
    assert names[29] == "m0->a1.h1<q>"
    assert names[-1] == "input->a0.h0<q>"


def test_scores_order_the_least_first(toy):
    graph = toy[0].graph
    scores = gp.EdgeScores(graph, torch.tensor([3.0, 1, 2, 1, 5, 6, 7, 8, 9]))
    assert gp.ACDC(order=scores).edge_order(graph).tolist() == [3, 1, 2, 0, 4, 5, 6, 7, 8]
