"""How much each size counts, and circuits drawn as often."""

import random

import pytest
import torch
from support.toy import Toy

import graphprune as gp
from graphprune.evaluation.curve import area
from graphprune.methods.matryoshka import _on_curve
from graphprune.optimise.loop import Moment
from graphprune.sizes import trapezoid_weights


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


def test_unknown_sizes():
    with pytest.raises(gp.InputError, match="'log_uniform', 'uniform' or 'curve', got 'mib'"):
        gp.MatryoshkaPruning(sizes="mib")
