"""An adapter of three members alone: what runs on it is right, what cannot says what it lacks."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from support.toy import EDGES, Toy, ToyExamples

import graphprune as gp
from graphprune import Ablation, MaskedModel, Reference
from graphprune.conformance import ConformanceError, check_adapter, check_method
from graphprune.core.model import each_mask


class Small(MaskedModel):
    """The toy network again, by its definition alone: no module, no gradients, no messages."""

    def __init__(self):
        self._whole = Toy(seed=3)

    graph = gp.ComputationalGraph.from_edges(EDGES)

    def reference(self, batch, ablation=None):
        ablation = ablation or Ablation()
        clean = self._messages(batch.clean)
        other = self._messages(batch.corrupt) if ablation.kind == "counterfactual" else 0 * clean
        nothing = torch.zeros(self.graph.num_edges)
        ablated = self._messages(batch.clean, nothing, other)[-1]
        made = Reference(batch, ablation, clean[-1], ablated)
        made.other = other
        return made

    def run(self, batch, mask, reference=None):
        other = (reference or self.reference(batch)).other
        return each_mask(
            self.graph, mask, lambda m: self._messages(batch.clean, m, other)[-1], batch.size
        )

    def _messages(self, x, mask=None, other=None):
        names = self.graph.node_number
        masks = torch.ones(len(x), len(EDGES)) if mask is None else mask.expand(len(x), -1)
        other = torch.zeros(len(names), 1, 1) if other is None else other
        sent = {"in": x}
        for node in ("a", "b", "c", "out"):
            read = 0
            for edge, (source, target) in enumerate(EDGES):
                if target == node:
                    m, away = masks[:, edge, None], other[names[source]]
                    read = read + m * sent[source] + (1 - m) * away
            sent[node] = self._whole.unit(self._whole.graph.node_number[node], read)
        return torch.stack([sent[name] for name in names])


def system():
    return Small(), gp.Task(ToyExamples(), "logit_diff", name="toy")


QUICK = {"steps": 6, "batch_size": 3}
SAME = [
    gp.EAP(),
    gp.IntegratedMaskGradient(steps=3),
    gp.ExactPatching(),
    gp.ParallelEnsemble([gp.EAP(), gp.ExactPatching()], normalize="rank"),
    gp.EdgePruning(size=4, **QUICK),
    gp.MatryoshkaPruning(size=4, **QUICK),
    gp.UGS(size=4, samples=2, **QUICK),
    gp.SequentialEnsemble("eap", gp.EdgePruning(size=4, **QUICK)),
    gp.CalibratedRanking("eap", sizes=(0.3, 0.5)),
    gp.ACDC(tau=1e-3),
]


@pytest.mark.parametrize("method", SAME, ids=lambda m: type(m).__name__)
def test_methods_find_what_they_find_with_every_capability(method):
    """The toy adapter computes the same network with gradients of its own."""
    small, task = system()
    whole = Toy(seed=3)
    if isinstance(method, gp.Scorer):
        got, want = method.score(small, task).values, method.score(whole, task).values
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    if isinstance(method, gp.Pruner):
        assert method.prune(small, task).edges() == method.prune(whole, task).edges()


def test_the_contract_is_all_it_needs_to_conform():
    found = check_adapter(*system())
    assert {v for v in found.values() if v != "passed"} == {
        "no EdgeGradients", "no PlacedMessages", "no MeanMessages", "no LearnedConstants",
        "no IncrementalTrials", "no CompiledCircuits", "no WiderCopy", "no UserModule",
    }  # fmt: skip
    for method in (gp.EAP(), gp.ExactPatching(), gp.ACDC(tau=1e-3)):
        told = check_method(method, *system())
        assert all(v == "passed" or v.startswith("not tested") for v in told.values())


def test_eap_is_the_finite_difference():
    small, task = system()
    got = gp.EAP().score(small, task).values
    (batch,) = task.batches()
    reference, step = small.reference(batch), 1e-3
    for edge in range(len(EDGES)):
        values = []
        for sign in (1, -1):
            mask = torch.ones(len(EDGES)).double()
            mask[edge] += sign * step
            out = small._messages(batch.clean.double(), mask, reference.other.double())[-1]
            values.append(float((out[:, 0] - out[:, 1]).mean()))
        assert got[edge] == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-4)


@pytest.mark.parametrize(
    ("method", "lacking"),
    [
        (gp.EAPIG(steps=2), "edge_gradients"),
        (gp.EAPIG(steps=2, integrate="activations"), "edge_gradients"),
        (gp.NAP(), "edge_gradients"),
        (gp.CleanCorrupted(), "edge_gradients"),
        (gp.RelP(), "relevance_gradients"),
        (gp.InformationFlow(), r"\(messages\)"),
        (gp.EAP(ablation="mean"), "mean_ablation"),
        (gp.EdgePruning(size=4, ablation="optimal", **QUICK), "mean_ablation"),
        (gp.PAHQ(tau=0.1), "at_precision"),
    ],
    ids=lambda value: getattr(value, "label", ""),
)
def test_what_looks_inside_says_what_it_lacks(method, lacking):
    run = method.score if isinstance(method, gp.Scorer) else method.prune
    with pytest.raises(gp.UnsupportedModelError, match=f"needs .*{lacking}.* Small gives none"):
        run(*system())


@pytest.mark.parametrize(
    ("method", "who"),
    [
        (gp.ParallelEnsemble(), r"member 2 \(EAPIG\)"),
        (gp.HybridEnsemble(), r"member 2 \(EAPIG\)"),
        (gp.SequentialEnsemble(), r"the scorer \(EAPIG\)"),
        (gp.CalibratedRanking(), r"the scorer \(EAPIG\)"),
        (gp.ParallelEnsemble([gp.EAP(), gp.SequentialEnsemble()]), r"member 2 \(SequentialE.*\)"),
    ],
    ids=lambda value: getattr(value, "label", "")[:20],
)
def test_an_ensemble_says_which_member_lacks_what_and_what_to_pass(method, who, monkeypatch):
    """Before any member has run; and what it says to pass runs."""
    ran = []
    monkeypatch.setattr(Small, "run", lambda *_: ran.append(1))
    with pytest.raises(gp.UnsupportedModelError, match=f"{who} needs .*edge_gradients.*") as told:
        method.score(*system())
    assert not ran
    monkeypatch.undo()
    _, _, instead = str(told.value).partition("Pass for instance ")
    name, _, value = instead.partition("=")
    said = dataclasses.replace(method, **{name: eval(value)})
    if not isinstance(method, gp.HybridEnsemble | gp.SequentialEnsemble):  # quick ones
        assert said.score(*system()).graph == Small.graph
    assert not said.needs


def test_an_unknown_module_is_told_what_is_enough():
    with pytest.raises(gp.UnsupportedModelError, match=r"three members .*CONTRIBUTING\.md"):
        gp.wrap(torch.nn.Linear(2, 2))


def test_a_result_is_judged_under_its_own_ablation():
    small, task = system()
    for ablation in ("zero", Ablation("zero")):
        result = gp.EAP(ablation=ablation).fit(small, task, 5)
        own = gp.evaluate(small, task, result).to_dict()
        said = gp.evaluate(small, task, result.mask, ablation="zero").to_dict()
        other = gp.evaluate(small, task, result.mask, ablation="counterfactual").to_dict()
        assert own["kl"] == said["kl"] != other["kl"]
        assert gp.evaluate(small, task, result.mask).to_dict()["kl"] == own["kl"]
    with pytest.raises(gp.InputError, match="ranks all edges and has no mask"):
        gp.evaluate(small, task, gp.EAP().fit(small, task))


@pytest.mark.parametrize(
    ("wrong", "check"), [("rounded", "values_between_0_and_1"), ("counterfactual", "zero_ablation")]
)
def test_wrong_adapters_are_caught(wrong, check):
    class Wrong(Small):
        def reference(self, batch, ablation=None):
            if ablation is not None and wrong == "counterfactual":
                ablation = Ablation()  # whatever was asked for
            return super().reference(batch, ablation)

        def run(self, batch, mask, reference=None):
            if wrong == "rounded" and not isinstance(mask, gp.EdgeMask):
                mask = mask.round()
            return super().run(batch, mask, reference)

    with pytest.raises(ConformanceError, match=check):
        check_adapter(Wrong(), gp.Task(ToyExamples(), "logit_diff", name="toy"))


def test_a_small_graphs_curve_says_which_sizes_are_empty():
    small, task = system()
    scores = gp.EAP().score(small, task)
    curve = gp.faithfulness_curve(small, task, scores)  # MIB's ten sizes of nine edges
    assert "7 of the 10 sizes are less than one of the graph's 9 edges" in curve.note
    assert curve.f["abs"][:7] == [0.0] * 7
    assert "sizes are less" not in gp.faithfulness_curve(small, task, scores, [2, 5, 9]).note


def test_whatever_judges_a_circuit_takes_its_own_ablation():
    small, task = system()
    result = gp.EAP(ablation="zero").fit(small, task, 5)
    circuit = gp.Circuit.from_result(result, model=small, task=task)

    def judged(found, **said):
        test = gp.statistics.necessity_test(small, task, found, draws=20, source="graph", **said)
        return [
            test.values["distance"],
            gp.equivalent(small, task, found, **said),
            gp.removable_edges(small, task, found, **said).num_kept,
        ]

    own, said = judged(circuit), judged(result.mask, ablation="zero")
    other = judged(result.mask, ablation="counterfactual")
    assert own == said
    assert own[0] != other[0]
    curve = gp.faithfulness_curve(small, task, result)
    assert curve.cpr == gp.faithfulness_curve(small, task, result.scores, ablation="zero").cpr
    other_curve = gp.faithfulness_curve(small, task, result.scores, ablation="counterfactual")
    assert curve.cpr != other_curve.cpr
    with pytest.raises(gp.InputError, match="ranks no edges"):
        gp.faithfulness_curve(small, task, gp.ACDC(tau=0.1).fit(small, task))


def test_circuits_are_judged_kept_and_run(tmp_path):
    small, task = system()
    scores = gp.EAP().score(small, task)
    mask = scores.top(4)
    report = gp.evaluate(small, task, mask)
    want = gp.evaluate(Toy(seed=3), task, gp.EdgeMask(Toy(seed=3).graph, mask.values))
    assert report.to_dict()["faithfulness"] == pytest.approx(want.to_dict()["faithfulness"])
    curve = gp.faithfulness_curve(small, task, scores)
    assert curve.cpr == pytest.approx(gp.faithfulness_curve(Toy(seed=3), task, scores).cpr)
    circuit = gp.Circuit.from_mask(mask, scores=scores, model=small, task=task, report=report)
    circuit.save(tmp_path / "c")
    assert gp.Circuit.load(tmp_path / "c").edges() == mask.edges()
    assert circuit.provenance["model"] == {"model": "Small"}
    assert circuit.to_networkx().number_of_edges() == 4
    (batch,) = task.batches()
    torch.testing.assert_close(circuit.compile(small, task)(), small.run(batch, mask))
    with pytest.raises(gp.UnsupportedModelError, match="export_model needs circuits as modules"):
        circuit.export_model(tmp_path / "m", small)


def test_every_circuit_of_a_size_was_worse_than_what_exact_search_keeps():
    """Exact patching on a graph small enough to try all circuits of four edges."""
    small, task = system()
    (batch,) = task.batches()
    reference = small.reference(batch)
    masks = torch.zeros(126, len(EDGES))
    for row, kept in enumerate(itertools.combinations(range(len(EDGES)), 4)):
        masks[row, list(kept)] = 1
    gaps = (small.run(batch, masks, reference) - reference.full).pow(2).sum((1, 2))
    found = gp.EdgePruning(size=4, steps=60, batch_size=6, loss="mse").prune(small, task)
    mine = (small.run(batch, found, reference) - reference.full).pow(2).sum()
    assert float(mine) <= float(gaps.kthvalue(13).values)  # among the best tenth


class Reordered(Small):
    """Reads masks in another order than the graph's edges."""

    def run(self, batch, mask, reference=None):
        values = mask.values if isinstance(mask, gp.EdgeMask) else mask
        return super().run(batch, values.flip(-1), reference)


class Deaf(Small):
    """Gives counterfactual values whatever is asked for."""

    def reference(self, batch, ablation=None):
        return super().reference(batch)


class Detached(Small):
    def run(self, batch, mask, reference=None):
        return super().run(batch, mask, reference).detach()


class Raising(Small):
    def run(self, batch, mask, reference=None):
        return super().run(batch, mask[0], reference)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Reordered, "dead_ends_change_nothing: outputs without the dead ends"),
        (Deaf, "asked for zero ablation and gave counterfactual"),
        (Detached, "run must be differentiable in the mask"),
        (Raising, "dead_ends_change_nothing: raised TypeError"),
    ],
)
def test_wrong_adapters_are_caught_with_the_reason(kind, message):
    with pytest.raises(ConformanceError, match=message):
        check_adapter(kind(), gp.Task(ToyExamples(), "logit_diff"))


def test_a_kink_is_no_wrong_gradient():
    """Close to a kink of |x| the longest step of the differences crosses it."""

    class Kinked(Small):
        def _messages(self, x, mask=None, other=None):
            sent = super()._messages(x, mask, other)
            moved = 40 * (sent[-1] - 0.05).abs()
            return torch.cat([sent[:-1], moved[None]])

    found = check_adapter(Kinked(), gp.Task(ToyExamples(), "logit_diff"))
    assert found["gradient_is_finite_difference"] == "passed"


def test_weights_that_ask_for_gradients_keep_none():
    """Nothing adds to the gradients of a user's own parameters."""
    small, task = system()
    parameter = torch.nn.Parameter(torch.ones(()))
    unit = small._whole.unit
    small._whole.unit = lambda node, x: parameter * unit(node, x)
    plain = system()[0]
    for method in SAME:
        got, want = method.fit(small, task, None), method.fit(plain, task, None)
        assert parameter.grad is None, method.label
        if got.mask is not None:
            assert got.mask.edges() == want.mask.edges()


def test_a_circuit_of_all_edges_costs_what_the_model_costs():
    small, task = system()
    report = gp.evaluate(small, task, gp.EdgeMask.full(small.graph), cost=True).to_dict()
    assert report["flops_full"] == report["flops_circuit"]
    for name in ("bytes_full", "bytes_circuit"):  # nothing was counted, which is not 0
        assert name not in report
        assert "no torch module" in report["absent"][name]


def test_dead_ends_that_went_are_said():
    small, task = system()
    found = [gp.EAP().fit(small, task, size) for size in range(1, 10)]
    for size, result in enumerate(found, start=1):
        gone = size - result.mask.num_kept
        assert result.remarks == (
            (f"{gone} of the {size} best edges are dead ends and were left out",) if gone else ()
        )
    assert any(result.remarks for result in found)


@pytest.mark.parametrize("method", [gp.EAP(), gp.EdgePruning(**QUICK)])
def test_sizes_are_read_alike(method):
    small, task = system()
    for size in (4, np.int64(4), 4 / 9 + 1e-3, np.float32(0.45)):
        assert method.prune(small, task, size).num_kept <= 4
    for size in (True, np.bool_(True), "4", [4], 0.0, -1, 1.5, 10):
        with pytest.raises(gp.InputError):
            method.prune(small, task, size)


def test_metrics_that_give_no_numbers_are_told():
    small, task = system()
    for answer in (None, "much", torch.ones(6, dtype=torch.complex64)):

        def metric(outputs, batch, answer=answer):
            return answer

        metric.higher_is_better = True
        with pytest.raises(gp.InputError, match="must give a tensor of 6 real numbers"):
            gp.evaluate(small, task.with_metric(metric), gp.EdgeMask.full(small.graph))
