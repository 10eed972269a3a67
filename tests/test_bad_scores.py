"""Masks, scores and metrics: what is refused, and what a fresh one holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformer_graph import transformer_graph

import graphprune as gp
from graphprune.errors import InputError, NumericalError

GRAPH = gp.ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("a", "c")])


@pytest.mark.parametrize("values", [["x"], "xyz", [None] * 3, object(), torch.zeros(3) * 1j])
def test_a_mask_of_anything_but_numbers_is_refused(values):
    with pytest.raises(InputError, match="mask values must be"):
        gp.EdgeMask(GRAPH, values)


def test_is_binary():
    assert gp.EdgeMask(GRAPH, [0, 1, 1]).is_binary
    assert gp.EdgeMask(GRAPH, [True, False, True]).is_binary
    assert not gp.EdgeMask(GRAPH, [0, 1, 0.5]).is_binary


def test_edges_names_what_is_kept():
    graph = transformer_graph(2, 2)
    values = (torch.rand(graph.num_edges, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    want = [name for name, keep in zip(graph.edge_names, values.tolist(), strict=True) if keep]
    assert gp.EdgeMask(graph, values).edges() == want
    assert gp.EdgeMask.empty(graph).edges() == []
    assert graph.edge_names.at(torch.tensor([2, 0])) == [graph.edge_names[2], graph.edge_names[0]]


@pytest.mark.parametrize("t", [math.nan, np.float32("nan"), "0.1", None, True])
def test_a_threshold_is_a_number(t):
    with pytest.raises(InputError, match="a threshold must be a number"):
        gp.EdgeScores(GRAPH, torch.ones(3)).threshold(t)
    assert gp.EdgeScores(GRAPH, torch.ones(3)).threshold(-math.inf).num_kept == 3


def test_every_ranking_knows_abs_and_signed_only():
    edges, nodes = gp.EdgeScores(GRAPH, torch.ones(3)), gp.NodeScores(GRAPH, torch.ones(3))
    for rank in (edges.top, edges.greedy, edges.threshold, nodes.top):
        with pytest.raises(InputError, match="unknown by 'foo'; known: abs, signed"):
            rank(1, by="foo")


def test_scores_of_neurons_are_checked():
    good = gp.NodeScores(GRAPH, torch.ones(3), {"a": [1, 2]})
    assert good.neurons["a"].dtype == torch.float32
    for wrong in (math.nan, math.inf):
        with pytest.raises(NumericalError, match="1 of 2 scores of neurons of a are NaN or inf"):
            gp.NodeScores(GRAPH, torch.ones(3), {"a": torch.tensor([1.0, wrong])})
    with pytest.raises(InputError, match="neurons of a need the shape"):
        gp.NodeScores(GRAPH, torch.ones(3), {"a": torch.ones(2, 2)})
    with pytest.raises(InputError, match="no nodes of the graph"):
        gp.NodeScores(GRAPH, torch.ones(3), {"z": torch.ones(2)})


def test_a_callable_metric_takes_nothing_from_another_metric():
    def mine(outputs, batch):
        return outputs.sum(-1)

    mine.higher_is_better = False
    metric = gp.Task.from_tensors([[1]], metric=mine).metric
    assert (metric.name, metric.higher_is_better, metric.needs) == ("mine", False, ())
    assert (metric.flat_at_full, metric.differentiable) == (False, True)
