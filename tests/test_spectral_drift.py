"""How far a spectrum moves, against every pairing and closed forms."""

from itertools import permutations

import networkx as nx
import numpy as np
import pytest
import torch

import graphprune as gp
from graphprune import spectral


def drawn(nodes, edges, seed):
    generator = np.random.default_rng(seed)
    graph = gp.ComputationalGraph.from_networkx(
        nx.gnm_random_graph(nodes, edges, seed=seed, directed=True)
    )
    return graph, generator.uniform(-1, 1, graph.num_edges), generator


@pytest.mark.parametrize("kind", ["out", "in", "both", "rw", "adjacency"])
def test_distance_is_the_least_of_all_pairings(kind):
    graph, weights, generator = drawn(6, 16, 3)
    kept = generator.random(graph.num_edges) < 0.6
    found = spectral.drift(graph, weights, kept, kind, degrees="absolute")
    before = spectral.spectrum(graph, weights, kind, degrees="absolute")
    rest = (graph.edge_index.numpy()[:, kept], graph.num_nodes)
    after = spectral.spectrum(rest, weights[kept], kind, degrees="absolute")
    least = min(np.abs(before - after[list(p)]).mean() for p in permutations(range(6)))
    assert found["distance"] == pytest.approx(least, abs=1e-12)
    assert found["relative"] == pytest.approx(least / np.abs(before).mean())
    assert found["rotation_after"] == pytest.approx(np.abs(after.imag).sum())
    assert found["radius_before"] == pytest.approx(np.abs(before).max())


def test_nothing_cut_is_no_drift_and_everything_is_the_spectrum_itself():
    graph, weights, _ = drawn(12, 40, 1)
    whole = spectral.drift(graph, weights, gp.EdgeMask.full(graph))
    assert whole["distance"] == 0
    assert whole["rotation_before"] == whole["rotation_after"] > 0
    none = spectral.drift(graph, weights, torch.zeros(graph.num_edges))
    sizes = np.abs(spectral.spectrum(graph, weights))
    assert none["distance"] == pytest.approx(sizes.mean())
    assert none["relative"] == pytest.approx(1)
    assert none["radius_after"] == 0


def test_a_bad_mask_is_told():
    ring = gp.ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("c", "a")])
    with pytest.raises(gp.InputError, match="give mask="):
        spectral.drift(ring)
    with pytest.raises(gp.InputError, match=r"mask of 3 edges, got the shape \[2\]"):
        spectral.drift(ring, mask=[1, 0])
    with pytest.raises(gp.InputError, match="zeros and ones"):
        spectral.drift(ring, mask=[1, 0.5, 0])
    other = gp.ComputationalGraph.from_edges([("a", "c"), ("c", "b"), ("b", "a")])
    with pytest.raises(gp.GraphMismatchError):
        spectral.drift(ring, mask=gp.EdgeMask.full(other))
    with pytest.raises(gp.InputError, match="6000 nodes are too many to pair"):
        spectral.drift(([[0, 1], [1, 2]], 6000), mask=[1, 0])


def test_graphs_as_users_have_them():
    ring = nx.DiGraph([("a", "b"), ("b", "c"), ("c", "a")])
    found = spectral.drift(ring, mask=[1, 1, 0], laplacian="adjacency")
    assert found["rotation_before"] == pytest.approx(3**0.5)
    assert found["rotation_after"] == 0
