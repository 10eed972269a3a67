"""Random circuits: their sizes, degrees, and that each of them leads somewhere."""

import itertools

import numpy as np
import pytest
import torch
from support.tiny import tiny
from transformer_graph import transformer_graph

import graphprune as gp

GRAPHS = {
    "plain": lambda: gp.wrap(tiny("gpt2")).graph,
    "grouped": lambda: transformer_graph(2, 4, 2),
    "coupled": lambda: gp.wrap(tiny("gemma2")).graph,
    "two embeddings": lambda: gp.wrap(tiny("gpt2"), embedding_nodes=2).graph,
}


@pytest.fixture(params=GRAPHS, scope="module")
def graph(request):
    return GRAPHS[request.param]()


def some_mask(graph, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.zeros(graph.num_edges)
    values[torch.randperm(graph.num_edges, generator=generator)[:count]] = 1.0
    return gp.EdgeMask(graph, values)


def degrees(mask):
    """Edges sent by each node, and read at each of its inputs."""
    graph = mask.graph
    source, target = graph.edge_index[:, mask.kept].numpy()
    into = target * 10 + graph.edge_kind[mask.kept].numpy()
    return (
        np.bincount(source, minlength=graph.num_nodes).tolist(),
        np.bincount(into, minlength=graph.num_nodes * 10).tolist(),
    )


@pytest.mark.parametrize(
    ("match", "count"),
    [
        ("size", 3),
        ("size", 40),
        ("composition", 15),
        ("composition", 40),
        ("paths", 3),
        ("paths", 40),
        ("ends", 3),
        ("ends", 40),
        ("degree", 15),
        ("degree", 40),
    ],
)
def test_sizes_are_equal(graph, match, count):
    mask = some_mask(graph, count)
    drawn = gp.statistics.random_circuits(mask, 12, match=match, seed=1)
    assert {m.num_kept for m in drawn} == {count}
    assert all(m.is_binary and m.graph is graph for m in drawn)
    again = gp.statistics.random_circuits(mask, 12, match=match, seed=1)
    assert drawn == again
    assert len(set(drawn)) > 1
    assert drawn != gp.statistics.random_circuits(mask, 12, match=match, seed=2)


@pytest.mark.parametrize("count", [15, 40])
def test_rewiring_keeps_every_degree(graph, count):
    mask = some_mask(graph, count)
    drawn = gp.statistics.random_circuits(mask, 20, match="degree", seed=3)
    assert all(degrees(m) == degrees(mask) for m in drawn)
    assert any(m != mask for m in drawn)
    # Random sets of that size do not have these degrees, so the test can fail.
    assert any(degrees(m) != degrees(mask) for m in gp.statistics.random_circuits(mask, 20))


def test_rewiring_reaches_every_circuit_of_the_degrees_equally():
    """Two senders and three readers, one edge each way round: brute force over all subsets."""
    names = [(u, v) for u in ("a", "b", "c") for v in ("x", "y", "z")]
    graph = gp.ComputationalGraph.from_edges(names)
    mask = gp.EdgeMask.from_edges(graph, ["a->x", "b->y", "c->z"])
    same = set()
    for chosen in itertools.combinations(range(9), 3):
        values = torch.zeros(9)
        values[list(chosen)] = 1.0
        other = gp.EdgeMask(graph, values)
        if degrees(other) == degrees(mask):
            same.add(tuple(chosen))
    assert len(same) == 6  # the permutations
    drawn = gp.statistics.random_circuits(mask, 1200, match="degree", seed=0)
    found = [tuple(torch.nonzero(m.kept)[:, 0].tolist()) for m in drawn]
    counts = np.array([found.count(one) for one in same])
    assert counts.sum() == 1200
    assert np.abs(counts - 200).max() < 4 * np.sqrt(200)


def test_every_edge_keeps_one_end(graph):
    mask = some_mask(graph, 1)
    (edge,) = torch.nonzero(mask.kept)[:, 0].tolist()
    source, target = graph.edge_index.tolist()
    kinds = graph.edge_kind.tolist()
    sides = [0, 0]
    for other in gp.statistics.random_circuits(mask, 60, match="ends"):
        (new,) = torch.nonzero(other.kept)[:, 0].tolist()
        same = (
            source[new] == source[edge],
            (target[new], kinds[new]) == (target[edge], kinds[edge]),
        )
        assert sum(same) == 1
        sides[same.index(True)] += 1
    assert min(sides) > 5
    large = some_mask(graph, 30)
    for other in gp.statistics.random_circuits(large, 5, match="ends"):
        sent, read = (np.abs(np.subtract(a, b)).sum() for a, b in
                      zip(degrees(other), degrees(large), strict=True))  # fmt: skip
        assert sent + read <= 2 * 30


def test_where_nothing_can_be_rewired():
    graph = gp.ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("a", "c")])
    mask = gp.EdgeMask.from_edges(graph, ["a->b", "b->c"])
    with pytest.raises(gp.InputError, match="no two edges of the circuit can be rewired"):
        gp.statistics.random_circuits(mask, 5, match="degree")


def test_paths_lead_from_inputs_to_outputs(graph):
    """What the last, cut path leaves apart, every edge lies on a path."""
    for seed in range(5):
        for mask in gp.statistics.random_circuits(some_mask(graph, 30), 4, seed=seed):
            alive = mask.prune_dead_ends()
            layers = 1 + max(node.layer or 0 for node in graph.nodes)
            assert mask.num_kept - alive.num_kept < 5 * layers  # at most a path's length
            assert mask.prune_dead_ends(from_inputs=False) == mask


def test_more_edges_than_paths_have_are_refused():
    graph = gp.ComputationalGraph.from_edges(
        [("a", "b"), ("b", "out"), ("a", "side")], outputs=(2,)
    )
    mask = gp.EdgeMask.full(graph)
    with pytest.raises(gp.InputError, match="random paths hold 2 edges, 3 were asked for"):
        gp.statistics.random_circuits(mask, 1)
    with pytest.raises(gp.InputError, match="unknown match"):
        gp.statistics.random_circuits(mask, 1, match="shape")
    with pytest.raises(gp.InputError, match="count"):
        gp.statistics.random_circuits(mask, 0)
    lost = gp.ComputationalGraph.from_edges([("a", "b")], inputs=(1,), outputs=(0,))
    with pytest.raises(gp.InputError, match="no path leads"):
        gp.statistics.random_circuits(gp.EdgeMask.full(lost), 1)
