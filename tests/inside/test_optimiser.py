"""Parts of the mask optimisers: gates, starts, losses, budgets, and how sizes are drawn."""

import itertools
import random

import pytest
import torch
from scipy.stats import rankdata
from support.toy import Toy, ToyExamples

import graphprune as gp
from graphprune.core.sizes import trapezoid_weights
from graphprune.evaluation.curve import area
from graphprune.methods.matryoshka import _on_curve
from graphprune.search.dead_ends import alive_edges
from graphprune.search.distributed import Workers
from graphprune.search.gates import log_odds, log_open, strength
from graphprune.search.loop import Moment
from graphprune.search.losses import as_loss
from graphprune.search.warm_start import rank_values

pytestmark = pytest.mark.inside


@pytest.fixture(scope="module")
def model():
    return Toy(seed=3)


@pytest.fixture(scope="module")
def task():
    return gp.Task(ToyExamples(6), "logit_diff", batch_size=6)


def test_a_warm_start_begins_at_the_ranking_itself():
    """Of gates near 0 and far from it, whose strengths reach from 1e-120 to 100."""
    generator = torch.Generator().manual_seed(0)
    gates = torch.cat([torch.randn(300, generator=generator) * s for s in (0.1, 3, 30)])
    values = strength(torch.unique(gates))
    start = rank_values(values)
    assert rankdata(start.numpy(), "ordinal").tolist() == rankdata(values, "ordinal").tolist()


def test_strength_keeps_the_order_where_other_maps_tie():
    generator = torch.Generator().manual_seed(0)
    gates = torch.cat([torch.randn(20_000, generator=generator) * s for s in (0.1, 3, 30, 300)])
    gates = torch.unique(gates)
    found = strength(gates)
    assert found.dtype == torch.float32
    assert bool((found > 0).all())
    assert bool((found.diff() >= 0).all())
    tied = (found.diff() == 0).nonzero()[:, 0]  # neighbours in float32, up to its rounding
    relative = gates.diff()[tied] / (1 + gates[tied].abs())
    assert bool((relative < 2.5e-7).all())
    assert len(tied) < 0.02 * len(gates)
    far = torch.tensor([-400.0, -200.0, -110.0, 15.0, 20.0, 100.0, 101.0])
    assert bool((strength(far).diff() > 0).all())
    assert not bool((far.sigmoid().diff() > 0).all())  # what MIB's keep chance would do
    assert not bool((torch.nn.functional.softplus(far).diff() > 0).all())


def test_products_of_open_gates_do_not_tie():
    """Chances of 1 - 1e-9 and 1 - 1e-12 are one number in float32, not their odds."""
    first, second = torch.tensor([15.0, 20.0, 25.0, -40.0, -50.0]), torch.full((5,), 30.0)
    odds = log_odds(log_open(first) + log_open(second)).float()
    assert odds.argsort().tolist() == [4, 3, 0, 1, 2]
    assert len(set(odds.tolist())) == 5
    chance = (log_open(first) + log_open(second)).exp().float()
    assert len(set(chance.tolist())) < 5


def test_losses_by_gaps_are_the_distance_where_the_metric_is_one(model, task):
    outputs, full = torch.randn(6, 3), torch.randn(6, 3)
    batch = next(iter(task.batches(6)))
    by_kl = task.with_metric("kl")
    first, *others = (
        as_loss(name, by_kl)(outputs, batch, full) for name in ("kl", "task_gap", "mean_gap")
    )
    assert all(torch.equal(first, other) for other in others)


def test_dangling_edges_are_those_of_the_graph_with_coupled_groups():
    """Groups that join nodes of different depth, against the graph's own search."""
    generator = torch.Generator().manual_seed(0)
    names = [str(i) for i in range(7)]
    for trial in range(40):
        pairs = [(i, j) for i, j in itertools.combinations(range(7), 2)]
        chosen = torch.rand(len(pairs), generator=generator) < 0.5
        edges = [(names[i], names[j]) for (i, j), c in zip(pairs, chosen, strict=True) if c]
        groups = ((1, 4),) if trial % 2 else ()
        graph = gp.ComputationalGraph.from_edges(
            edges, nodes=names, groups=groups, inputs=(0,), outputs=(6,)
        )
        kept = torch.rand(16, graph.num_edges, generator=generator) < 0.6
        for from_inputs in (True, False):
            found = alive_edges(graph, kept, from_inputs=from_inputs)
            for row, mine in zip(kept, found, strict=True):
                want = graph.alive(row.numpy(), from_inputs=from_inputs)
                assert mine.tolist() == want.tolist()


def test_loss_by_the_gap_of_means(model, task):
    """What curves call |1 - f|, up to the scale; one example makes up for another."""
    batch = next(iter(task.batches(6)))
    reference = model.reference(batch)
    scores = gp.EAP().score(model, task)
    count = model.graph.num_edges // 2
    curve = gp.faithfulness_curve(model, task, scores, [count, model.graph.num_edges])
    kept = scores.top(count, by="abs").prune_dead_ends()
    with torch.no_grad():
        found = as_loss("mean_gap", task)(model.run(batch, kept, reference), batch, reference.full)
    assert len(task) == batch.size
    wanted = abs(1 - curve.f["abs"][0]) * abs(curve.full - curve.ablated)
    assert torch.allclose(found, torch.full((6,), wanted), atol=1e-5)
    assert float(found[0]) > 1e-3
    outputs = reference.full * torch.tensor([1.5, 0.5] * 3)[:, None]
    difference = task.metric(reference.full, batch, reference.full)
    alternating = (difference * torch.tensor([0.5, -0.5] * 3)).mean().abs()
    again = as_loss("mean_gap", task)(outputs, batch, reference.full)
    assert torch.allclose(again, alternating.expand(6), atol=1e-6)


def test_a_loss_of_means_is_refused_where_processes_share_a_batch(model, task, monkeypatch):
    two = Workers(rank=0, world=2)
    monkeypatch.setattr(Workers, "current", staticmethod(lambda module: two))
    with pytest.raises(gp.InputError, match="2 share them"):
        gp.EdgePruning(size=4, steps=2, loss="mean_gap").fit(model, task)


def test_weights_are_those_of_the_areas():
    rng = random.Random(0)
    for _ in range(20):
        sizes = sorted(rng.random() for _ in range(7))
        values = [rng.gauss(0, 1) for _ in sizes]
        total = sum(w * v for w, v in zip(trapezoid_weights(sizes), values, strict=True))
        assert total == pytest.approx(area(sizes, values))


def test_sizes_are_drawn_as_often_as_they_count():
    """The mean over draws is the area, but for the whole graph and the length."""
    drawn = _on_curve((torch.arange(100_000) + 0.5) / 100_000).double()
    weights = trapezoid_weights(gp.MIB_SIZES)
    assert set(drawn.float().tolist()) == set(torch.tensor(gp.MIB_SIZES[:-1]).tolist())
    inner = area(gp.MIB_SIZES, [f**2 for f in gp.MIB_SIZES]) - weights[-1]
    assert float(drawn.square().mean()) == pytest.approx(inner / sum(weights[:-1]), rel=1e-3)
    assert _on_curve(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([0.001, 0.5])


def test_masks_have_sizes_of_the_curve():
    graph = Toy(seed=3).graph
    method = gp.MatryoshkaPruning(sizes="curve", budgets=64)
    drawn = method.draw({"edges": torch.zeros(graph.num_edges)}, graph, Moment(0, 1, 1, (0,)))
    counts = drawn.mask.sum(-1)
    allowed = torch.tensor([max(1.0, size * graph.num_edges) for size in gp.MIB_SIZES[:-1]])
    assert bool(((counts[:, None] - allowed).abs().amin(1) < 1e-3).all())
    assert len(counts.round(decimals=2).unique()) > 2


def test_overshooting_the_model_costs_as_falling_short(task):
    batch = next(iter(task.batches(6)))
    rows, full = torch.arange(6), torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    difference = full[rows, batch.answer[:, 0]] - full[rows, batch.distractor[:, 0]]
    for share in (0.5, 1.5):
        found = as_loss("task_gap", task)(share * full, batch, full)
        assert torch.allclose(found, 0.5 * difference.abs())
