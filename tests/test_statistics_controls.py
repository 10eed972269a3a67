"""Controls, transfer: on models of all kinds, with circuits that are known."""

import functools

import numpy as np
import pytest
import torch
from support.planted import CIRCUIT, planted, planted_task
from support.tiny import tiny
from support.toy import Toy, ToyExamples
from torch_geometric.data import Data
from torch_geometric.nn import GraphConv

import graphprune as gp
from graphprune import statistics as st


@functools.cache
def planted_case():
    model = gp.wrap(planted())
    return model, planted_task(48), gp.EdgeMask.from_edges(model.graph, CIRCUIT)


@functools.cache
def llama():
    clean, corrupt = torch.randint(50, (2, 24, 6), generator=torch.Generator().manual_seed(0))
    task = gp.Task.from_tensors(clean, corrupt, answer=[3] * 24, distractor=[4] * 24, batch_size=9)
    return gp.wrap(tiny("llama", 0)), task


def graph_network():
    torch.manual_seed(0)
    data = Data(x=torch.randn(12, 4), edge_index=torch.randint(12, (2, 40)))
    model = gp.wrap(GraphConv(4, 3).requires_grad_(False), data=data)
    return model, gp.tasks.nodes(data.x, labels=torch.arange(12) % 3)


def toy_case():
    return Toy(), gp.Task(ToyExamples(12), "logit_diff", name="toy")


# ---------------------------------------------------------------- a planted circuit


def test_a_planted_circuit_passes_what_it_should():
    """A trained transformer, counterfactual ablation: the planted five edges."""
    model, task, truth = planted_case()
    report = st.examine(model, task, truth, draws=30)
    assert report["minimality"].passed, report.summary()
    assert report["sufficiency"].passed
    assert report["necessity"].passed
    ends = gp.evaluate(model, task, truth)
    worst = st.completeness(model, task, truth, draws=5, greedy=0)
    gap = ends.full[task.metric.name] - ends.ablated[task.metric.name]
    assert worst["relative"] == pytest.approx(worst["worst"] / abs(gap), rel=1e-4)
    # What both prompts share tells of the full model's score, without any edge at all.
    left = report["independence"]
    assert left["p_ablated"] <= 0.05
    assert left.passed or "so what clean and ablated runs share" in left.remarks[-1]
    more = gp.EdgeMask.from_edges(model.graph, [*CIRCUIT, "m0->a1.h1<q>"])
    assert st.minimality_test(model, task, more, draws=30)["not_minimal"] == ["m0->a1.h1<q>"]
    less = gp.EdgeMask.from_edges(model.graph, CIRCUIT[1:])
    assert st.equivalence_test(model, task, less).rejected
    assert not st.sufficiency_test(model, task, less, draws=30).passed


def test_a_method_that_reads_the_model_beats_its_controls():
    model, task, truth = planted_case()
    train, test = task.split(0.5)
    method = gp.ExactPatching(ablation="counterfactual")
    found = st.controls(
        model, train, method=method, size=6, test=test, draws=79, reruns=9, alpha=0.25
    )
    assert {"random", "degree", "weights"} <= {
        kind for kind, p in found["p_corrected"].items() if p <= 0.25
    }, found.summary()
    assert found.passed == (found["p_corrected"]["labels"] <= 0.25)
    assert found["p_values"]["random"] == pytest.approx(1 / 80)
    assert found["p_values"]["weights"] == pytest.approx(1 / 10)
    assert found.p_value == max(found["p_corrected"].values())
    frame = found.to_frame()
    assert frame["circuit"].value_counts().to_dict() == {
        "found": 1, "random": 79, "degree": 79, "labels": 9, "weights": 9,
    }  # fmt: skip
    own = frame[frame["circuit"] == "found"].iloc[0]
    for kind, p in found["p_values"].items():
        others = frame.loc[frame["circuit"] == kind, "metric"]
        assert p == pytest.approx((1 + (others > own["metric"] - 1e-4).sum()) / (1 + len(others)))
    mask = method.score(model, train).top(6).prune_dead_ends()
    report = gp.evaluate(model, test, mask)
    assert own["faithfulness"] == pytest.approx(report["faithfulness"], rel=1e-4)
    assert found["faithfulness"] == own["faithfulness"]
    assert set(frame.loc[frame["circuit"].isin(["random", "degree"]), "edges"]) == {mask.num_kept}
    assert mask.num_kept >= 5
    assert (truth - mask).num_kept == 0


def test_a_method_that_reads_nothing_does_not():
    """It names the true circuit whatever the labels and the weights are."""
    model, task, truth = planted_case()
    found = st.controls(model, task, method=lambda model, task: truth, draws=59, reruns=3)
    assert not found.passed
    assert found["p_values"]["labels"] == found["p_values"]["weights"] == 1.0
    assert found["shared"]["labels"] == found["shared"]["weights"] == 1.0
    assert found["p_values"]["random"] < 0.05
    assert "labels, weights" in found.summary()
    assert "judged on the examples" in " ".join(found.remarks)
    assert found.remedy == "draws=80 and reruns=80 or more would tell"


def test_the_defaults_can_pass():
    """A method that reads signs, judged on held-out examples: every kind of control is beaten.

    With 19 reruns over four kinds, the defaults once, no circuit could pass.
    """
    model, task = planted_case()[0], planted_task(96)
    train, test = task.split(0.5)

    def method(model, task):
        return gp.EAP().score(model, task).top(8, by="signed").prune_dead_ends()

    found = st.controls(model, train, method=method, test=test)
    assert found.passed, found.summary()
    assert found.rejected
    assert found.settings["reruns"] == 80
    assert not found.underpowered
    assert found.least_p == pytest.approx(4 / 101)
    assert 4 / (1 + found.settings["reruns"]) < found.alpha
    assert found.alpha <= 4 / (1 + 79)
    weak = st.controls(model, train, method=method, test=test, reruns=4, draws=19)
    assert "underpowered: with these settings p is at least 0.4" in weak.summary()
    assert weak.passed is None
    assert weak.least_p == pytest.approx(0.4)  # two kinds at 1/5 each, after two at 1/20
    assert "reruns=80" in weak.remedy


def test_controls_judge_random_circuits_to_be_random():
    """The null hypothesis made true: as good as the controls of its kind, by luck alone."""
    model, task = toy_case()
    start = gp.EdgeMask.from_edges(model.graph, ["in->a", "a->c", "c->out"])
    p = []
    for seed, mask in enumerate(st.random_circuits(start, 80, match="paths", seed=11)):
        found = st.controls(model, task, mask, kinds=["random"], draws=19, seed=100 + seed)
        p.append(found.p_value)
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 80)
    assert 0.35 < np.mean(p) < 0.75  # ties count for the controls


def test_a_random_circuit_is_one_of_the_controls():
    model, task, _ = planted_case()
    mask = st.random_circuits(gp.EdgeMask.from_edges(model.graph, CIRCUIT), 1, seed=7)[0]
    found = st.controls(model, task, mask, kinds=["random"], draws=59)
    assert found.p_value > 0.05
    assert not found.passed


# ---------------------------------------------------------------- labels and weights


def test_exchanged_labels():
    _, task, _ = planted_case()
    shuffled = st.shuffled_labels(task, seed=3)
    assert len(shuffled) == len(task)
    turned = 0
    for before, after in zip(task.batches(), shuffled.batches(), strict=True):
        assert before.indices == after.indices
        assert torch.equal(before.clean["input_ids"], after.clean["input_ids"])
        same = (before.answer == after.answer).all(1)
        assert torch.equal(after.answer[~same], before.distractor[~same])
        assert torch.equal(after.distractor[~same], before.answer[~same])
        assert torch.equal(after.distractor[same], before.distractor[same])
        turned += int((~same).sum())
    assert turned == len(task) // 2
    first, second = (next(st.shuffled_labels(task, seed=s).batches()).answer for s in (3, 4))
    assert torch.equal(first, next(shuffled.batches()).answer)
    assert not torch.equal(first, second)
    # Parts of the shuffled task keep what the whole was given.
    given = {i: a for b in shuffled.batches() for i, a in zip(b.indices, b.answer, strict=True)}
    part = next(shuffled.subset([5, 0]).batches())
    assert all(torch.equal(given[i], a) for i, a in zip(part.indices, part.answer, strict=True))


def test_permuted_labels_have_no_fixed_point():
    answers = torch.arange(10)
    task = gp.Task.from_tensors(torch.arange(10)[:, None], answer=answers, metric="accuracy")
    task = task.subset([1, 3, 5, 7, 9])
    shuffled = st.shuffled_labels(task, seed=0)
    batch = next(shuffled.batches())
    assert sorted(batch.answer[:, 0].tolist()) == [1, 3, 5, 7, 9]
    assert (batch.answer[:, 0] != batch.clean["input_ids"][:, 0]).all()


def test_shuffled_labels_are_right_as_often_as_chance_has_it():
    """Labels that always differed would give the right ones away: by how often they never come."""
    labels = torch.tensor([0, 1]).repeat(10)
    task = gp.tasks.patterns(torch.eye(20), labels)
    alone = gp.Task.from_tensors(torch.arange(20)[:, None], answer=labels, metric="accuracy")
    right = {}
    for how, base in (("exchange", task), ("permute", alone)):
        before = torch.cat([batch.answer for batch in base.batches()])[:, 0]
        counts = []
        for seed in range(400):
            shuffled = st.shuffled_labels(base, seed=seed, how=how)
            after = torch.cat([batch.answer for batch in shuffled.batches()])[:, 0]
            counts.append(int((after == before).sum()))
        right[how] = np.array(counts) / 20
    assert (right["exchange"] == 0.5).all()
    # 9 of the 19 other examples have the label; a standard error is about .005.
    assert abs(right["permute"].mean() - 9 / 19) < 0.02


def test_ragged_labels_are_exchanged_whole():
    task = gp.Task.from_tensors(
        torch.zeros(4, 2, dtype=torch.int64), answer=[[1, 2]] * 4, distractor=[[3]] * 4
    )
    batch = next(st.shuffled_labels(task, seed=0).batches())
    rows = {(tuple(a), tuple(d)) for a, d in zip(batch.answer.tolist(), batch.distractor.tolist(),
                                                 strict=True)}  # fmt: skip
    assert rows == {((1, 2), (3, -1)), ((3, -1), (1, 2))}


def test_labels_that_cannot_be_shuffled():
    plain = gp.Task.from_tensors(torch.arange(4)[:, None], metric="kl")
    with pytest.raises(gp.InputError, match="no answers to shuffle"):
        st.shuffled_labels(plain)
    task = gp.Task.from_tensors(torch.arange(4)[:, None], answer=[1] * 4, distractor=[2] * 4)
    for wrong, words in (
        (lambda: st.shuffled_labels(task.with_metric("kl")), "reads no answers"),
        (lambda: st.shuffled_labels(task.take(1)), "at least 2 examples"),
        (lambda: st.shuffled_labels(task, how="guess"), "how is auto"),
        (lambda: st.shuffled_labels(task, seed=-1), "seed"),
    ):
        with pytest.raises(gp.InputError, match=words):
            wrong()
    alone = gp.Task.from_tensors(torch.arange(4)[:, None], answer=[1] * 4, metric="accuracy")
    with pytest.raises(gp.InputError, match="no distractors"):
        st.shuffled_labels(alone, how="exchange")


@pytest.mark.parametrize("case", [llama, graph_network, lambda: planted_case()[:2]])
def test_weights_are_shuffled_and_come_back(case):
    model, task = case()
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    grads = [p.requires_grad for p in model.module.parameters()]
    ablation = gp.Ablation("zero")
    batch = next(task.batches())
    mask = st.random_circuits(gp.EdgeMask.full(model.graph), 1, match="size")[0]
    plain = model.run(batch, mask, model.reference(batch, ablation))
    with st.randomised_weights(model, seed=1) as other:
        assert other is model
        inside = model.run(batch, mask, model.reference(batch, ablation))
        for name, values in model.module.state_dict().items():
            assert torch.equal(values.flatten().sort().values, before[name].flatten().sort().values)
        # Nothing that was made from the old weights is still in use.
        fresh = gp.wrap(model.module) if case is llama else model
        assert torch.equal(fresh.run(batch, mask, fresh.reference(batch, ablation)), inside)
    assert not torch.allclose(inside, plain)
    for name, values in model.module.state_dict().items():
        assert torch.equal(values, before[name]), name
    assert [p.requires_grad for p in model.module.parameters()] == grads
    assert torch.equal(model.run(batch, mask, model.reference(batch, ablation)), plain)


def test_weights_come_back_after_an_error():
    model, _ = llama()
    before = {k: v.clone() for k, v in model.module.state_dict().items()}

    def fails():
        with st.randomised_weights(model):
            assert any(not torch.equal(v, before[k]) for k, v in model.module.state_dict().items())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert all(torch.equal(v, before[k]) for k, v in model.module.state_dict().items())

    def bad(model, task):
        raise gp.InputError("no circuit here")

    mask = gp.EAP().score(*llama()).top(0.2)
    with pytest.raises(gp.InputError, match="no circuit here"):
        st.controls(*llama(), mask, method=bad, kinds=["weights"])
    assert all(torch.equal(v, before[k]) for k, v in model.module.state_dict().items())


def test_low_precision_copies_are_not_randomised():
    model, _ = llama()
    low = model.at_precision(gp.PrecisionPolicy({"mlp": "bf16"}))
    with pytest.raises(gp.InputError, match="low precision"), st.randomised_weights(low):
        pass


# ---------------------------------------------------------------- every kind of model


@pytest.mark.parametrize("case", [llama, toy_case])
def test_all_tests_run_on_any_model(case):
    model, task = case()
    mask = gp.EAP().score(model, task).top(0.3)
    report = st.examine(model, task, mask, list(st.TESTS)[:6], draws=20)
    assert not report.not_made
    nodes = st.completeness(model, task, mask, over="nodes", draws=5, greedy=1, steps=2)
    assert nodes["worst"] >= nodes["none"]


@pytest.mark.parametrize("ablation", ["zero", "delete"])
def test_all_tests_run_on_a_graph_network(ablation):
    model, task = graph_network()
    mask = gp.EAP(ablation="zero").score(model, task).top(0.4)
    report = st.examine(model, task, mask, list(st.TESTS)[:6], draws=20, ablation=ablation)
    assert not report.not_made, report.summary()
    assert report["sufficiency"].settings["ablation"] == ablation
    found = st.controls(
        model, task, method=gp.EAP(ablation="zero"), size=0.4, draws=9, reruns=2,
        ablation=ablation,
    )  # fmt: skip
    assert len(found.rows) == 1 + 9 + 9 + 2 + 2


# ---------------------------------------------------------------- transfer


def test_transfer_by_hand():
    model, task, truth = planted_case()
    less = gp.EdgeMask.from_edges(model.graph, CIRCUIT[1:])
    more = gp.EdgeMask.full(model.graph)
    tasks = {"a": task.take(20), "b": task.subset(range(20, 48))}
    found = st.transfer(model, {"a": truth, "b": less, "c": more}, tasks, draws=400)
    frame = found.to_frame().set_index(["found_on", "tested_on"])
    assert len(frame) == 6
    for (found_on, tested_on), row in frame.iterrows():
        mask = {"a": truth, "b": less, "c": more}[found_on]
        report = gp.evaluate(model, tasks[tested_on], mask)
        assert row["faithfulness"] == pytest.approx(report["faithfulness"], rel=1e-6)
        low, high = report.interval("faithfulness")
        assert row["low"] == pytest.approx(low, abs=0.08)
        assert row["high"] == pytest.approx(high, abs=0.08)
        assert row["low"] <= row["faithfulness"] <= row["high"] or row["low"] == row["high"]
    assert found["faithfulness"]["c"]["a"] == pytest.approx(1.0)
    # On a its own circuit is the truth: the broken one loses nearly all of it.
    row = frame.loc[("b", "a")]
    assert row["loss"] == pytest.approx(frame.loc[("a", "a")]["faithfulness"] - row["faithfulness"])
    assert 0.5 < row["loss_low"] <= row["loss"] <= row["loss_high"]
    assert row["p_corrected"] < 0.05
    assert ["b", "a"] in found["worse"]
    # On b the foreign one is the better one.
    assert frame.loc[("a", "b")]["loss"] < 0
    assert ["a", "b"] not in found["worse"]
    assert np.isnan(frame.loc[("a", "a")]["loss"])
    assert found.correction == "Holm over 4 pairs"
    assert not found.passed
    again = st.transfer(model, {"a": truth, "b": less, "c": more}, tasks, draws=400)
    assert again.to_dict() == found.to_dict()


def test_transfer_between_equals():
    """The same circuit under two names loses nothing anywhere."""
    model, task, truth = planted_case()
    tasks = {"a": task.take(24), "b": task.subset(range(24, 48))}
    found = st.transfer(model, {"a": truth, "b": truth}, tasks, draws=200)
    assert found.p_value == 1.0
    assert found.passed
    assert found["worse"] == []
    assert all(row["loss"] in (None, 0.0) for row in found.rows)
    assert not found.underpowered
    few = {"a": task.take(3), "b": task.subset(range(24, 27))}
    weak = st.transfer(model, {"a": truth, "b": truth}, few, draws=200)
    # Three signs can be flipped in eight ways, two of them extreme; Holm over two pairs.
    assert weak.least_p == pytest.approx(2 * 2 / 8)
    assert weak.passed is None
    assert "underpowered" in weak.summary()
    assert "3 examples" in weak.remarks[0]
    alone = st.transfer(model, {"x": truth}, tasks, draws=50)
    assert alone.p_value is None
    assert alone.passed is None
    assert "least faithful" in alone.summary()


def test_transfer_refuses():
    model, task, truth = planted_case()
    with pytest.raises(gp.InputError, match="at least one circuit"):
        st.transfer(model, {}, {"a": task})
    with pytest.raises(gp.GraphMismatchError):
        st.transfer(model, {"a": gp.EdgeMask.full(Toy().graph)}, {"a": task})
    flat = gp.Metric("flat", lambda out, batch, full: 0 * out[:, 0])
    with pytest.raises(gp.InputError, match="on a: the full model"):
        st.transfer(model, {"a": truth}, {"a": task.with_metric(flat)})


def test_controls_refuse():
    model, task, truth = planted_case()
    for call, words in (
        (lambda: st.controls(model, task, truth), "need the method to run again"),
        (lambda: st.controls(model, task, kinds=["random"]), "give the circuit, or the method"),
        (lambda: st.controls(model, task, truth, kinds=["luck"]), "unknown kind 'luck'"),
        (lambda: st.controls(model, task, truth, kinds=[]), "kinds are some of"),
        (lambda: st.controls(model, task, gp.EdgeMask.full(model.graph), kinds=["random"]),
         "the whole graph"),
    ):  # fmt: skip
        with pytest.raises(gp.InputError, match=words):
            call()
