"""Budgets of exactly so many edges, without dead ends."""

import pytest
import torch

import graphprune as gp
from graphprune.adapters.lm.describe.layout import EdgeLayout, LayerShape
from graphprune.selection.connected import exact_budget, shortest_path_edges

pytestmark = pytest.mark.inside

LAYOUTS = {
    "plain": EdgeLayout((LayerShape(2, 2),) * 2),
    "grouped": EdgeLayout((LayerShape(4, 2),) * 2),
    "coupled": EdgeLayout((LayerShape(2, 2),) * 2, coupled=True),
    "parallel grouped": EdgeLayout((LayerShape(2, 1),) * 3, parallel=True),
    "two embeddings": EdgeLayout((LayerShape(2, 2),) * 2, embeddings=2),
}


OTHERS = ("plain", "parallel grouped", "two embeddings")
ALL = ["grouped", "coupled", *(pytest.param(n, marks=pytest.mark.slow) for n in OTHERS)]


@pytest.fixture(params=ALL, scope="module")
def graph(request):
    return LAYOUTS[request.param].graph()


def test_exact_budgets_are_exact_and_have_no_dead_ends(graph):
    values = torch.randn(graph.num_edges, generator=torch.Generator().manual_seed(0))
    for count in range(1, graph.num_edges + 1):
        mask = exact_budget(graph, values, count)
        assert mask.num_kept == count
        assert mask.prune_dead_ends() == mask


def test_budgets_below_one_path_are_refused():
    chain = gp.ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("c", "d"), ("b", "d")])
    assert shortest_path_edges(chain) == 2
    with pytest.raises(gp.InputError, match="shortest path needs 2"):
        exact_budget(chain, torch.zeros(4), 1)
    assert exact_budget(chain, torch.zeros(4), 2).edges() == ["a->b", "b->d"]
    apart = gp.ComputationalGraph.from_edges([("a", "b"), ("c", "d")], inputs=(0,), outputs=(3,))
    with pytest.raises(gp.InputError, match="no path"):
        shortest_path_edges(apart)
