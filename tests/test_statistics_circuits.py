"""Random circuits: their sizes, degrees, and that each of them leads somewhere."""

import itertools

import numpy as np
import pytest
import torch
from support.rings import Rings
from support.toy import Toy

import graphprune as gp
from graphprune.adapters.lm.layout import Layout
from graphprune.statistics.circuits import Walker

LAYOUTS = {
    "plain": Layout(2, 3, 3),
    "grouped": Layout(2, 4, 2),
    "coupled": Layout(2, 2, 2, coupled=True),
    "two embeddings": Layout(2, 2, 2, embeddings=2),
}


@pytest.fixture(params=LAYOUTS, scope="module")
def graph(request):
    return LAYOUTS[request.param].graph()


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
            longest = max(len(Walker(graph).path(np.random.default_rng(i))) for i in range(50))
            assert mask.num_kept - alive.num_kept < max(longest, 2 * 5)
            assert mask.prune_dead_ends(from_inputs=False) == mask


def test_walks_are_walks(graph):
    walker, generator = Walker(graph), np.random.default_rng(0)
    wires = {tuple(w) for w in graph.fixed_edge_index.T.tolist()}
    seen = set()
    for _ in range(300):
        edges = walker.path(generator)
        seen |= set(edges)
        ends = graph.edge_index[:, edges].T.tolist()
        assert ends[0][0] in graph.input_nodes
        assert ends[-1][1] in graph.output_nodes
        for (_, v), (u, _) in itertools.pairwise(ends):
            assert u == v or (v, u) in wires
    every = np.ones(graph.num_edges, dtype=bool)
    assert len(seen) > graph.alive(every).sum() / 2


def test_first_steps_are_equally_likely():
    graph = gp.ComputationalGraph.from_edges(
        [("in", "a"), ("in", "b"), ("in", "out"), ("a", "out"), ("b", "out"), ("in", "dead")],
        outputs=(3,),
    )
    walker, generator = Walker(graph), np.random.default_rng(0)
    firsts = [walker.path(generator)[0] for _ in range(3000)]
    counts = np.bincount(firsts, minlength=6)
    assert counts[5] == 0  # it leads nowhere
    assert np.abs(counts[:3] - 1000).max() < 4 * np.sqrt(1000)


def test_cyclic_graphs_are_walked_without_loops():
    model = Rings()
    walker, generator = Walker(model.graph), np.random.default_rng(0)
    for _ in range(100):
        path = walker.path(generator)
        assert len(path) == len(set(path))
    toy = Toy().graph
    for _ in range(20):
        new = Walker(toy).inflating(some_mask(toy, 3).kept.numpy(), generator)
        assert len(new)
        assert not some_mask(toy, 3).kept[torch.from_numpy(new)].any()


def test_more_edges_than_paths_have_are_refused():
    graph = gp.ComputationalGraph.from_edges(
        [("a", "b"), ("b", "out"), ("a", "side")], outputs=(2,)
    )
    mask = gp.EdgeMask.full(graph)
    with pytest.raises(gp.InputError, match="random paths hold 2 edges, 3 were asked for"):
        gp.statistics.random_circuits(mask, 1)
    with pytest.raises(gp.InputError, match="match is one of"):
        gp.statistics.random_circuits(mask, 1, match="shape")
    with pytest.raises(gp.InputError, match="count"):
        gp.statistics.random_circuits(mask, 0)
    lost = gp.ComputationalGraph.from_edges([("a", "b")], inputs=(1,), outputs=(0,))
    with pytest.raises(gp.InputError, match="no path leads"):
        Walker(lost)
