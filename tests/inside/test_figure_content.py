"""Which edges a figure takes, and what becomes of each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformer_graph import random_scores, transformer_graph

from graphprune import Circuit
from graphprune.drawing.content import content, strongest_edges
from graphprune.drawing.side_by_side import _union

pytestmark = pytest.mark.inside


def circuit(count: int, *shape, seed: int = 0, **options) -> Circuit:
    graph = transformer_graph(*shape, **options)
    scores = random_scores(graph, seed)
    return Circuit.from_mask(scores.connected(count), scores)


@pytest.mark.parametrize("most", [5, 12, 30, 59])
def test_what_is_left_out_leaves_no_dead_end(most):
    made = circuit(60, 6, 4, 2)
    numbers = strongest_edges(made, most)
    kept = np.zeros(made.graph.num_edges, dtype=bool)
    kept[numbers] = True
    assert len(numbers) == most
    assert made.graph.alive(kept)[numbers].all()
    assert made.mask.kept[numbers].all()


def test_no_panel_has_a_dead_end():
    circuits = [circuit(60, 6, 6, seed=seed) for seed in range(3)]
    _, chosen = _union(circuits, 14)
    for made, numbers in zip(circuits, chosen, strict=True):
        kept = np.zeros(made.graph.num_edges, dtype=bool)
        kept[numbers] = True
        assert len(numbers) >= 14
        assert made.graph.alive(kept)[numbers].all()


@pytest.mark.parametrize("shape", [(3, 4, 2), (12, 4), (8, 2)])
def test_each_edge_is_drawn_once_or_inside_a_chain(shape):
    made = circuit(60, *shape)
    shown = content(made, torch.nonzero(made.mask.kept)[:, 0])
    drawn = [name for edge in shown.edges if not edge.wire for name in edge.names]
    chains = [set(node.members) for node in shown.nodes if len(node.members) > 1]
    inside = [
        name
        for name in made.edges()
        if any(set(name.partition("<")[0].split("->")) <= chain for chain in chains)
    ]
    assert sorted(drawn + inside) == sorted(made.edges())
    total = sum(edge.score for edge in shown.edges if not edge.wire)
    graph, scores = made.graph, made.scores.values
    expected = sum(float(scores[graph.edge_number[name]]) for name in drawn)
    assert total == pytest.approx(expected, rel=1e-4)
