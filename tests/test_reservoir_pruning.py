"""The reservoirs' tasks and the peers of spectral pruning, against truths on small graphs."""

import itertools

import numpy as np
import pytest
from benchmarks import reservoir_pruning as pruning
from benchmarks.reservoirs import RADIUS, Questions, Wiring, narma, radius, wiring

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def small():
    """Nine nodes, 20 signed edges, strongly connected by a ring."""
    ring = [(i, (i + 1) % 9) for i in range(9)]
    rest = [(i, j) for i in range(9) for j in range(9) if i != j and (i, j) not in ring]
    chosen = [rest[k] for k in RANDOM.permutation(len(rest))[:11]]
    return Wiring(np.array(ring + chosen).T, RANDOM.standard_normal(20), 9)


def test_a_chain_of_nodes_remembers_as_many_steps_as_it_has_nodes():
    chain = np.diag(np.ones(14), 1)
    scores = Questions(0).judge(chain)
    assert 13.5 < scores["memory"] <= 15.1
    assert scores["delayed memory"] < scores["memory"] / 2


def test_nodes_that_are_not_joined_remember_one_step():
    scores = Questions(0).judge(np.zeros((15, 15)))
    assert scores["memory"] < 0.05  # u[t] itself is no delay
    assert scores["oscillation"] < 0.5


def test_narma_as_it_is_written():
    u = RANDOM.uniform(-1, 1, (30, 1))
    half, y = (u[:, 0] + 1) / 4, [0.0] * 10
    for t in range(10, 30):
        inner = 0.05 * y[t - 1] * sum(y[t - k] for k in range(1, 11))
        y.append(np.tanh(0.3 * y[t - 1] + inner + 1.5 * half[t - 10] * half[t - 1] + 0.1))
    assert np.allclose(narma(u)[:, 0], y)


@pytest.mark.parametrize("name", ["scale-free", "modular", "modular, +-1", "small"])
def test_drawn_wirings(name):
    wires = wiring(name, 3)
    assert len({tuple(pair) for pair in wires.index.T}) == len(wires.weights)
    assert (wires.index[0] != wires.index[1]).all()
    assert radius(wires.matrix()) == pytest.approx(RADIUS)
    if name.startswith("modular"):
        inside = (wires.index[0] // 16 == wires.index[1] // 16).mean()
        assert 0.82 < inside < 0.92
    if name == "scale-free":
        assert np.bincount(wires.index[0]).max() > 18  # a binomial's mean is 8, its deviation 3


def test_proxy_deletion_is_the_slope_of_the_gap(small):
    def gap(weights):
        joined = pruning.undirected(small.index, weights, 9)
        degree = joined.sum(1)
        return np.linalg.eigvalsh(np.eye(9) - joined / np.sqrt(np.outer(degree, degree)))[1]

    gains = pruning.proxy_deletion_gains(small.index, small.weights, 9)
    for edge in range(20):
        less, more = small.weights.copy(), small.weights.copy()
        less[edge] *= 1 - 1e-5
        more[edge] *= 1 + 1e-5
        assert (gap(less) - gap(more)) / 2e-5 == pytest.approx(gains[edge], abs=1e-6)


def test_proxy_deletion_keeps_the_graph_connected(small):
    kept = pruning.proxy_delete(small, 8, np.ones(20))
    assert kept.sum() == 8  # a spanning tree
    joined = pruning.undirected(small.index[:, kept], np.ones(8), 9)
    assert (np.linalg.matrix_power(joined + np.eye(9), 8) > 0).all()
    with pytest.raises(ValueError, match="do not connect"):
        pruning.proxy_delete(small, 7, np.ones(20))


def test_rewiring_has_the_number_of_edges_and_the_sizes_of_the_denser_graph(small):
    drawn = [pruning.rewired(small, 15, seed) for seed in range(400)]
    assert all((matrix != 0).sum() == 15 and not matrix.diagonal().any() for matrix in drawn)
    added = int(0.25 * 20) * np.abs(small.weights).mean()
    total = np.mean([np.abs(matrix).sum() for matrix in drawn])
    assert total == pytest.approx(np.abs(small.weights).sum() + added, rel=0.05)


@pytest.mark.parametrize("goal", ["damp", "preserve"])
def test_searches_beside_all_sets_of_edges(small, goal):
    loss = pruning.rotation_loss(small, goal)
    every = np.arange(20)
    triples = itertools.combinations(range(20), 3)
    losses = [loss(np.isin(every, gone, invert=True)) for gone in triples]
    annealed = pruning.annealed(small, 17, goal, 0, swaps=800)
    greedy = pruning.exact_greedy(small, {17, 19}, goal)
    assert annealed.sum() == greedy[17].sum() == 17
    assert loss(annealed) <= np.quantile(losses, 0.01)
    assert loss(greedy[17]) >= min(losses) - 1e-9
    assert loss(greedy[19]) == pytest.approx(min(loss(every != edge) for edge in range(20)))


def test_every_way_keeps_the_number_of_edges():
    wires = wiring("small", 1)
    made = pruning.cuts(wires, 0.5, 1)
    assert len(made) == 11
    for name, (matrix, _) in made.items():
        assert (matrix != 0).sum() == 40, name
    magnitude = made["magnitude"][0]
    assert np.abs(magnitude[magnitude != 0]).min() >= np.median(np.abs(wires.weights)) - 1e-12
