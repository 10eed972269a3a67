"""Masks and scores know the ablation they were found under, and are judged under it."""

import pytest
import torch
import torch_geometric.nn as pyg
from support.gnn_cases import C, F, a_graph
from support.toy import Toy, ToyExamples
from torch import nn

import graphprune as gp
from graphprune.tasks import nodes
from graphprune.util.progress import track

METRIC = "logit_diff"


class Averaging(nn.Module):
    """Two means over neighbours: an absent edge counts in no mean, one of zeros does."""

    def __init__(self, aggr="mean"):
        super().__init__()
        self.a, self.b = pyg.SAGEConv(F, 6, aggr=aggr), pyg.SAGEConv(6, C, aggr=aggr)

    def forward(self, x, edge_index):
        return self.b(torch.tanh(self.a(x, edge_index)), edge_index)


def a_case(aggr="mean"):
    torch.manual_seed(0)
    module, data = Averaging(aggr).double().eval(), a_graph()
    task = nodes(data.x, torch.arange(data.num_nodes) % C, classes=C, metric=METRIC)
    return module, data, gp.wrap(module, data=data), task


def difference(out, task):
    """The mean of the right class's logit minus the mean of the others', by plain torch."""
    labels = torch.arange(len(out)) % C
    right = out.gather(1, labels[:, None])[:, 0]
    others = (out.sum(1) - right) / (C - 1)
    return float((right - others).mean())


def test_a_mask_of_deletion_scores_is_judged_on_the_smaller_graph():
    module, data, model, task = a_case()
    mask = gp.ExactPatching(ablation="delete").score(model, task).top(0.5)
    with torch.no_grad():
        small = module(data.x, data.edge_index[:, mask.kept])
    report = gp.evaluate(model, task, mask)
    assert mask.ablation == "delete"
    assert report.to_dict()["settings"]["ablation"] == "delete"
    assert report[METRIC] == pytest.approx(difference(small, task), rel=1e-6)
    under_zero = gp.evaluate(model, task, mask, ablation="zero")  # what is said wins
    assert under_zero[METRIC] != pytest.approx(report[METRIC], rel=1e-3)
    scores = gp.ExactPatching(ablation="delete").score(model, task)
    told = gp.faithfulness_curve(model, task, scores, [5, 20])
    said = gp.faithfulness_curve(model, task, scores, [5, 20], ablation="delete")
    assert told.f == said.f
    assert told.f != gp.faithfulness_curve(model, task, scores, [5, 20], ablation="zero").f


@pytest.mark.parametrize("ablation", ["zero", "counterfactual"])
def test_every_way_from_scores_to_a_mask_carries_it(ablation):
    model, task = Toy(seed=3), gp.Task(ToyExamples(), METRIC, batch_size=4)
    scores = gp.EAP(ablation=ablation).score(model, task)
    made = [
        scores.top(8), scores.threshold(0.0), scores.greedy(8), scores.connected(8), scores.ilp(8),
        scores.pnr(8), scores.pnr(8, connected=False), scores.cumulative(),
        scores.influence().top(4), scores.top(8).prune_dead_ends(), ~scores.top(8),
        scores.top(8) & scores.top(4), scores.top(8) - scores.top(4), scores.top(8) ^ scores.top(4),
    ]  # fmt: skip
    assert [mask.ablation for mask in made] == [ablation] * len(made)
    result = gp.EAP(ablation=ablation).fit(model, task, size=6)
    assert result.mask.ablation == result.scores.ablation == ablation
    assert gp.EAP(ablation=ablation).prune(model, task, size=6).ablation == ablation
    assert gp.Circuit.from_mask(scores.top(8)).ablation == ablation
    told = gp.evaluate(model, task, scores.top(8))
    said = gp.evaluate(
        model, task, gp.EdgeMask(model.graph, scores.top(8).values), ablation=ablation
    )
    assert told["faithfulness"] == said["faithfulness"]


def test_masks_of_different_ablations_are_not_mixed_unsaid():
    model, task = Toy(seed=3), gp.Task(ToyExamples(), METRIC, batch_size=4)
    zero, other = (gp.EAP(ablation=a).score(model, task).top(8) for a in ("zero", "counterfactual"))
    assert (zero | other).ablation is None
    assert (zero & gp.EdgeMask.full(zero.graph)).ablation == "zero"  # the one that is known
    again = gp.EdgeMask(zero.graph, zero.values, ablation=gp.Ablation("zero"))
    assert (zero & again).ablation == "zero"  # one ablation, said in two ways
    assert zero == gp.EdgeMask(model.graph, zero.values)
    with pytest.raises(gp.InputError, match="found under counterfactual and zero; say which"):
        gp.evaluation.report.evaluate_all(model, task, {"a": zero, "b": other})


# ------------------------------------------------------------------ messages that say what to do


def test_what_is_no_reference_of_the_batch_is_told():
    _, _, model, task = a_case()
    batch = next(task.batches())
    mask = gp.EdgeMask.full(model.graph)
    with pytest.raises(gp.InputError, match=r"got 'delete': give model\.reference"):
        model.run(batch, mask, "delete")
    reference = model.reference(batch, gp.Ablation("zero"))
    with pytest.raises(gp.InputError, match=r"makes new ones at each call.*run reference\.batch"):
        model.run(next(task.batches()), mask, reference)
    assert model.run(reference.batch, mask, reference).shape == (11, C)


def test_gradients_of_deletion_where_there_are_none_name_what_works():
    _, _, model, task = a_case("max")
    with pytest.raises(gp.UnsupportedModelError, match=r"ExactPatching.*or ablation='zero'"):
        gp.EAP(ablation="delete").score(model, task)
    assert gp.EAP(ablation="zero").score(model, task).values.any()
    assert gp.ExactPatching(ablation="delete").score(model, task).values.any()


def test_quiet_works_as_a_call_a_block_and_a_decorator():
    def silent():
        return track([1], "bar").disable

    shown = silent()  # None on a terminal
    before = gp.quiet(False)
    try:
        loud = silent()
        gp.quiet()
        assert silent() is True
        gp.quiet(False)
        assert silent() == loud == shown
        with gp.quiet():
            assert silent() is True
            with gp.quiet(False):
                assert silent() == loud
            assert silent() is True
        assert silent() == loud
        inside = gp.quiet()(silent)
        assert silent() == loud
        assert inside() is True
        assert silent() == loud
    finally:
        before.__exit__()
