"""Selections that look at the model again: bootstrap intervals and exact polishing."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from support.toy import Toy, ToyExamples
from test_conformance import language

import graphprune as gp

# -------------------------------------------------------------------- bootstrap


class Means(gp.Scorer):
    """Scores that are means over examples of numbers known beforehand."""

    def __init__(self, table):
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "label_", "means")

    label = "means"

    def score(self, model, task):
        numbers = range(len(task.examples)) if task.order is None else task.order
        return gp.EdgeScores(model.graph, self.table[list(numbers)].mean(0))


def coverage(kind, blocks, draws=300, n=24):
    """How often intervals of 9 edges hold the true mean, over fresh data sets."""
    model, data = Toy(), gp.Task(ToyExamples(n), "logit_diff")
    generator = torch.Generator().manual_seed(0)
    truth = torch.linspace(-1, 1, 9)
    held = total = 0
    for seed in range(draws):
        table = truth + torch.randn(n, 9, generator=generator) * torch.linspace(0.5, 3, 9)
        found = gp.bootstrap_scores(
            Means(table), model, data, resamples=10, blocks=blocks, seed=seed
        )
        low, high = found.interval(0.95, kind)
        held += int(((low <= truth) & (truth <= high)).sum())
        total += 9
    return held / total


def test_intervals_hold_the_truth_as_often_as_they_say():
    assert 0.93 < coverage("t", None) < 0.97
    assert 0.92 < coverage("t", 12) < 0.98
    assert coverage("paper", None) < 0.5  # divided by the root of 10 once too often


def test_the_error_is_the_standard_error():
    model, n = Toy(), 40
    table = torch.randn(n, 9, generator=torch.Generator().manual_seed(3))
    data = gp.Task(ToyExamples(n), "logit_diff")
    found = gp.bootstrap_scores(Means(table), model, data, resamples=3000)
    assert torch.allclose(found.error, table.std(0) / math.sqrt(n), rtol=0.06)
    assert torch.allclose(found.scores.values, table.mean(0), atol=1e-6)
    low, high = found.interval(0.9)
    half = student.ppf(0.95, 2999) * found.error
    assert torch.allclose(high - low, 2 * half, rtol=1e-5)
    left, right = found.interval(0.9, "percentile")
    assert torch.allclose(left, low, atol=0.05)
    assert torch.allclose(right, high, atol=0.05)
    blocked = gp.bootstrap_scores(Means(table), model, data, resamples=3000, blocks=n)
    assert torch.allclose(blocked.error, found.error, rtol=0.1)
    uneven = gp.bootstrap_scores(Means(table), model, data, blocks=7)
    assert torch.allclose(uneven.scores.values, table.mean(0), atol=1e-6)


def test_certain_edges_come_first():
    model, data = Toy(), gp.Task(ToyExamples(20), "logit_diff")
    truth = torch.tensor([0.2, -0.3, 3.0, -4.0, 0.1, 0.4, -0.25, 0.5, 0.6])
    noise = torch.tensor([1e-3, 1e-3, 40.0, 40.0, 1e-3, 1e-3, 1e-3, 40.0, 1e-3])
    table = truth + noise * torch.randn(20, 9, generator=torch.Generator().manual_seed(1))
    found = gp.bootstrap_scores(Means(table), model, data)
    sure = [0, 1, 4, 5, 6, 8]
    assert torch.nonzero(found.certain())[:, 0].tolist() == sure
    six = found.select(6, connected=False)
    assert torch.nonzero(six.kept)[:, 0].tolist() == sure
    assert found.scores.top(2).kept.tolist() != found.select(2, connected=False).kept.tolist()
    by_sign = found.select(4, "signed", connected=False)  # the certainly positive ones
    assert torch.nonzero(by_sign.kept)[:, 0].tolist() == [0, 4, 5, 8]
    last = ~found.select(7, "signed", connected=False).kept
    assert torch.nonzero(last)[:, 0].tolist() == [1, 6]  # certainly harmful
    for count in range(1, 10):
        mask = found.select(count)
        assert mask.num_kept == count
        assert mask.prune_dead_ends() == mask
    for bad, message in (
        ({"level": 1.0}, "a level is a share"),
        ({"kind": "percentile"}, "10 resamples have no 0.025 quantile: use at least 40"),
        ({"kind": "normal"}, "unknown kind 'normal'"),
        ({"by": "size"}, "unknown by"),
    ):
        with pytest.raises(gp.InputError, match=message):
            found.select(3, **bad)
    with pytest.raises(gp.InputError, match="at least 2 examples"):
        gp.bootstrap_scores(Means(table), model, data.take(1))
    with pytest.raises(gp.InputError, match="20 examples cannot be dealt into 30 blocks"):
        gp.bootstrap_scores(Means(table), model, data, blocks=30)


# -------------------------------------------------------------------- polishing


def kl(model, task, mask):
    return gp.evaluate(model, task, mask, metrics=["kl"]).to_dict()["kl"]


def plain_kl(model, data):
    """``mask [E] -> float``: the mean divergence of one masked run, from its definition."""
    (batch,) = data.batches(len(data))
    reference = model.reference(batch)
    full = reference.full.double().log_softmax(-1)

    def loss(mask):
        out = model.run(batch, mask.values, reference).double().log_softmax(-1)
        return float((full.exp() * (full - out)).sum(-1).mean())

    return loss


def test_polishing_finds_nearly_the_best_of_all_circuits():
    places, better = [], 0
    for seed in range(6):
        model, data = Toy(seed=seed), gp.Task(ToyExamples(8), "logit_diff")
        loss = plain_kl(model, data)
        scores = gp.Random(seed=seed).score(model, data)
        for count in (3, 4, 5):
            polished = gp.polish(model, data, scores, count, pool=9 / count)
            assert polished.num_kept == count
            assert polished.prune_dead_ends() == polished
            losses = []
            for edges in itertools.combinations(range(9), count):
                values = torch.zeros(9)
                values[list(edges)] = 1.0
                mask = gp.EdgeMask(model.graph, values)
                if mask.prune_dead_ends() == mask:
                    losses.append(loss(mask))
            mine, start = loss(polished), loss(scores.connected(count))
            assert mine == pytest.approx(kl(model, data, polished), rel=1e-5)
            assert mine <= start + 1e-9
            better += mine < start
            places.append(sum(other < mine - 1e-9 for other in losses) / len(losses))
    assert better >= 12
    assert sum(place == 0 for place in places) >= 12  # the very best of 18
    assert np.mean(places) < 0.15


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_descents_within_a_circuit_are_the_plain_loop(family):
    """The quick trials from a circuit whose upstream is cut, against one run for each edge."""
    model, data = language(family, dtype=torch.float64)
    start = gp.EAP().score(model, data).connected(60)
    order = gp.ACDC().edge_order(model.graph).tolist()
    kept = start.values.clone()

    def loss(values):
        return kl(model, data, gp.EdgeMask(model.graph, values))

    current, tau = loss(kept), 2e-3
    for edge in order:
        if not kept[edge]:
            continue
        less = kept.clone()
        less[edge] = 0.0
        back = model.graph.reachable(model.graph.output_nodes, kept.bool().numpy(), backward=True)
        if not back[int(model.graph.edge_index[1, edge])]:
            kept = less
            continue
        value = loss(less)
        if value - current < tau:
            kept, current = less, value
    for exact in ("speculative", "sequential"):
        found = gp.ACDC(tau=tau, exact=exact, recheck="same").fit(model, data, within=start)
        assert torch.equal(found.mask.values, kept)
        assert not bool((found.mask.kept & ~start.kept).any())
        assert torch.isnan(found.values["effects"][~start.kept]).all()
    assert 0 < int(kept.sum()) < 60


def test_polishing_a_language_model():
    model, data = language("llama")
    scores = gp.EAP().score(model, data)
    for ablation in ("counterfactual", "zero"):
        mask = gp.polish(model, data, scores, 20, ablation=ablation)
        assert mask.num_kept == 20
        assert mask.prune_dead_ends(from_inputs=ablation == "counterfactual") == mask
        plain = scores.connected(20, from_inputs=ablation == "counterfactual")
        mine, start = (
            gp.evaluate(model, data, m, ablation=ablation).to_dict()["kl"] for m in (mask, plain)
        )
        assert mine < start
    circuit = scores.connected(30)
    assert not (gp.polish(model, data, circuit, 20) - circuit).num_kept
    with pytest.raises(gp.InputError, match="40 edges cannot be cut from one that has 30"):
        gp.polish(model, data, circuit, 40)
    with pytest.raises(gp.InputError, match="pool is a factor from 1 on"):
        gp.polish(model, data, scores, 20, pool=0.5)
    with pytest.raises(gp.InputError, match="cannot connect input and output"):
        gp.polish(model, data, scores, 0)
    with pytest.raises(gp.GraphMismatchError):
        gp.polish(Toy(), gp.Task(ToyExamples(4), "logit_diff"), scores, 3)
