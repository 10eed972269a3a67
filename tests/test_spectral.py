"""Spectra and sensitivities against networkx, scipy, torch autograd, closed forms, brute force."""

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import graphprune as gp
from graphprune import spectral

KINDS = ["out", "in", "both", "rw", "adjacency", "count"]


def drawn(nodes, degree, seed, signed=True):
    """``(edge_index, num_nodes), weights`` of a random directed graph without self-loops."""
    generator = np.random.default_rng(seed)
    graph = nx.gnp_random_graph(nodes, degree / (nodes - 1), seed=seed, directed=True)
    edges = np.array(list(graph.edges)).T.reshape(2, -1)
    weights = generator.uniform(0.2, 1.5, edges.shape[1])
    if signed:
        weights *= generator.choice([-1.0, 1.0], edges.shape[1])
    return (edges, nodes), weights


def by_hand(index, nodes, weights, kind, absolute):
    """The matrix from its definition, entry by entry."""
    a = np.zeros((nodes, nodes))
    out, into, count = np.zeros(nodes), np.zeros(nodes), np.zeros(nodes)
    for (u, v), w in zip(index.T, weights, strict=True):
        a[u, v] += w
        size = abs(w) if absolute else w
        out[u] += size
        into[v] += size
        count[[u, v]] += 1
    if kind == "adjacency":
        return a
    if kind == "rw":
        inverse = np.array([1 / d if d else 0.0 for d in out])
        return np.diag((out != 0).astype(float)) - inverse[:, None] * a
    degree = {"out": out, "in": into, "both": out + into, "count": count}[kind]
    return np.diag(degree) - a


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_laplacians_are_their_definitions(kind, absolute):
    (index, nodes), weights = drawn(12, 3, 0, signed=kind != "rw" or absolute)
    degrees = "absolute" if absolute else "signed"
    found = spectral.laplacian((index, nodes), weights, kind, degrees=degrees).toarray()
    np.testing.assert_allclose(found, by_hand(index, nodes, weights, kind, absolute), atol=1e-12)


def test_out_is_networkxs_and_in_is_scipys():
    from scipy.sparse.csgraph import laplacian as scipys

    (index, nodes), weights = drawn(10, 3, 1, signed=False)
    graph = nx.DiGraph()
    graph.add_nodes_from(range(nodes))
    graph.add_weighted_edges_from(zip(*index, weights, strict=True))
    ours = spectral.laplacian((index, nodes), weights, "out").toarray()
    np.testing.assert_allclose(ours, nx.laplacian_matrix(graph).toarray(), atol=1e-12)
    adjacency = nx.to_numpy_array(graph)
    ours = spectral.laplacian((index, nodes), weights, "in").toarray()
    np.testing.assert_allclose(ours, scipys(adjacency), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_spectra_are_the_whole_matrix_es(kind):
    """On well-conditioned matrices; parts against the whole, as multisets."""
    for seed in range(4):
        graph, weights = drawn(25, 2, seed, signed=kind != "rw")
        ours = spectral.spectrum(graph, weights, kind)
        whole = np.linalg.eigvals(spectral.laplacian(graph, weights, kind).toarray())
        gap = np.abs(ours[:, None] - whole[None, :])
        from scipy.optimize import linear_sum_assignment

        rows, columns = linear_sum_assignment(gap)
        assert gap[rows, columns].max() < 1e-5


def test_a_chain_of_two_cycles_is_exactly_real():
    """The whole matrix is defective, and a solver of it reports rotation that is not there."""
    m = 12
    pairs = []
    for block in range(m):
        a, b = 2 * block, 2 * block + 1
        pairs += [(a, b), (b, a)]
        if block + 1 < m:
            pairs.append((b, b + 1))
    mixed = np.random.default_rng(0).permutation(2 * m)  # an order that hides the triangle
    index = mixed[np.array(pairs).T]
    matrix = spectral.laplacian((index, 2 * m), None, "adjacency").toarray()
    assert np.abs(np.linalg.eigvals(matrix).imag).max() > 1e-3
    values = spectral.spectrum((index, 2 * m), None, "adjacency")
    np.testing.assert_array_equal(values.imag, 0)
    np.testing.assert_allclose(np.sort(values.real), np.repeat([-1.0, 1.0], m))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_no_turn_without_long_cycles_or_negative_pairs(seed):
    """Trees of 2-cycles with non-negative products, whatever the diagonal."""
    generator = np.random.default_rng(seed)
    nodes = int(generator.integers(2, 9))
    pairs = [(int(generator.integers(0, v)), v) for v in range(1, nodes)]
    pairs = [(u, v) if generator.random() < 0.5 else (v, u) for u, v in pairs]
    index = np.array([*pairs, *((v, u) for u, v in pairs)]).T
    sign = generator.choice([-1.0, 1.0], len(pairs))
    weights = generator.uniform(0.1, 3.0, 2 * len(pairs)) * np.tile(sign, 2)
    for kind in ("out", "in", "both", "adjacency"):
        assert not spectral.spectrum((index, nodes), weights, kind).imag.any()


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(0.05, 4.0), min_size=3, max_size=3))
def test_a_three_cycle_turns_iff_the_roots_form_a_triangle(weights):
    roots = sorted(np.sqrt(weights))
    margin = roots[0] + roots[1] - roots[2]
    if abs(margin) < 1e-3:
        return
    values = spectral.spectrum(([[0, 1, 2], [1, 2, 0]], 3), weights, "out")
    assert bool(values.imag.any()) == (margin > 0)


@settings(max_examples=80, deadline=None)
@given(*[st.floats(-3, 3).filter(lambda x: abs(x) > 0.05)] * 2, *[st.floats(-2, 2)] * 2)
def test_a_two_cycle_turns_iff_its_discriminant_is_negative(a, b, loop, other):
    """Self-loops set the diagonal of the adjacency matrix."""
    gap = (loop - other) ** 2 + 4 * a * b
    if abs(gap) < 1e-3:
        return
    index = [[0, 1, 0, 1], [1, 0, 0, 1]]
    values = spectral.spectrum((index, 2), [a, b, loop, other], "adjacency")
    assert bool(values.imag.any()) == (gap < 0)


def test_a_directed_ring_in_closed_form():
    for n in (3, 5, 8):
        ring = np.array([range(n), [(i + 1) % n for i in range(n)]])
        values = spectral.spectrum((ring, n), np.ones(n), "out")
        exact = 1 - np.exp(2j * np.pi * np.arange(n) / n)
        np.testing.assert_allclose(
            np.sort_complex(values.round(9)), np.sort_complex(exact.round(9)), atol=1e-8
        )


def test_the_bound_of_agaev_and_chebotarev():
    """Off-diagonals of at most 1/n: imaginary parts of at most cot(pi / 2n) / 2n."""
    for seed in range(6):
        (index, n), weights = drawn(14, 6, seed, signed=False)
        scaled = weights / weights.max() / n
        values = spectral.spectrum((index, n), scaled, "out")
        assert values.imag.max() <= 1 / np.tan(np.pi / (2 * n)) / (2 * n) + 1e-12


# ------------------------------------------------------------------ sensitivities


def turning(graph, weights, kind, measure, degrees):
    values = spectral.spectrum(graph, weights, kind, degrees=degrees)
    return np.abs(values.imag).sum() if measure == "sum" else values.imag.max()


@pytest.mark.parametrize("degrees", ["signed", "absolute"])
@pytest.mark.parametrize("measure", ["sum", "max"])
@pytest.mark.parametrize("kind", KINDS)
def test_sensitivities_are_finite_differences(kind, measure, degrees):
    signed = kind != "rw" or degrees == "absolute"
    graph, weights = drawn(14, 3, 3, signed=signed)
    found = spectral.sensitivity(graph, weights, kind, measure=measure, degrees=degrees)
    step = 1e-6
    for edge in range(0, len(weights), 5):
        moved = []
        for sign in (-1, 1):
            other = weights.copy()
            other[edge] += sign * step
            moved.append(turning(graph, other, kind, measure, degrees))
        assert found[edge].item() == pytest.approx((moved[1] - moved[0]) / (2 * step), abs=2e-5)


def test_gradients_are_autograds_through_eigvals():
    (index, nodes), start = drawn(16, 4, 5)
    weights = torch.tensor(start, requires_grad=True)
    spectral.rotation((index, nodes), weights, "out").backward()
    ours = weights.grad.clone()
    other = torch.tensor(start, requires_grad=True)
    a = torch.zeros(nodes, nodes, dtype=torch.float64).index_put(
        (torch.tensor(index[0]), torch.tensor(index[1])), other
    )
    torch.linalg.eigvals(torch.diag(a.sum(1)) - a).imag.abs().sum().backward()
    torch.testing.assert_close(ours, other.grad, rtol=1e-7, atol=1e-9)


def test_gradients_neither_raise_nor_explode():
    """A nilpotent block, and one that is nearly defective: plain autograd fails on both."""
    chain = ([[0, 1], [1, 2]], 3)
    weights = torch.ones(2, dtype=torch.float64, requires_grad=True)
    spectral.rotation(chain, weights, "adjacency").backward()
    assert not weights.grad.any()
    # ((d1 - d2)^2 + 4ab = 0) at a = 1, b = -1 with diagonals 0 and 2, moved by 1e-13.
    index = ([[0, 1, 1], [1, 0, 1]], 2)
    near = torch.tensor([1.0, -1.0 - 1e-13, 2.0], dtype=torch.float64, requires_grad=True)
    spectral.rotation(index, near, "adjacency", limit=1e3).backward()
    assert bool(torch.isfinite(near.grad).all())
    assert near.grad.abs().max() <= 2e3


@pytest.mark.parametrize("kind", KINDS)
def test_exact_effects_are_removals(kind):
    graph, weights = drawn(10, 3, 2, signed=kind != "rw")
    index, nodes = graph
    found = spectral.removal_effects(graph, weights, kind, exact=True)
    now = turning(graph, weights, kind, "sum", None)
    for edge in range(0, len(weights), 4):
        rest = np.delete(np.arange(len(weights)), edge)
        less = turning((index[:, rest], nodes), weights[rest], kind, "sum", None)
        assert found[edge].item() == pytest.approx(less - now, abs=1e-7)


def test_edges_between_components_count_for_laplacians_only():
    pairs = [(0, 1), (1, 2), (2, 0), (2, 3), (3, 4), (4, 5), (5, 3)]
    index, weights = np.array(pairs).T, np.array([1.0, 2.0, 1.5, 0.7, 1.0, 1.2, 0.9])
    assert spectral.sensitivity((index, 6), weights, "adjacency")[3].item() == 0.0
    assert abs(spectral.sensitivity((index, 6), weights, "out")[3].item()) > 1e-3


# ------------------------------------------------------------------ large components


def test_leading_eigenvalues_are_the_dense_ones():
    graph, weights = drawn(300, 4, 7)
    exact = spectral.spectrum(graph, weights, "out")
    exact = np.sort(exact.imag)[::-1][:3]
    with pytest.warns(UserWarning, match="leading eigenvalues only; .* starts"):
        found = spectral.leading(graph, weights, "out", count=3, dense_limit=50)
    np.testing.assert_allclose(found.imag, exact, rtol=1e-6)


def test_too_large_is_said():
    graph, weights = drawn(60, 4, 7)
    with pytest.raises(gp.InputError, match=r"component has \d+ nodes, above the 10 of the exact"):
        spectral.spectrum(graph, weights, dense_limit=10)


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("graph", "weights", "error", "message"),
    [
        (([[0, 1], [1, 2]], 2), None, gp.InputError, r"names a node outside 0\.\.1"),
        (([[0, 1]], 2), None, gp.InputError, r"must be \[2, E\]"),
        (([[0], [1]], 2), [1.0, 2.0], gp.InputError, "a weight for each of the 1 edges"),
        (([[0, 1], [1, 0]], 2), [1.0, float("nan")], gp.NumericalError, r"edge 1 \(1->0\)"),
        (nx.path_graph(3), None, gp.InputError, "networkx graph is undirected"),
        (([[0], [1]], 2), [1j], gp.InputError, "must be real"),
    ],
)
def test_bad_graphs(graph, weights, error, message):
    with pytest.raises(error, match=message):
        spectral.spectrum(graph, weights)


def test_odd_graphs():
    assert spectral.spectrum((np.zeros((2, 0), dtype=int), 0)).shape == (0,)
    assert spectral.spectrum((np.zeros((2, 0), dtype=int), 3)).tolist() == [0, 0, 0]
    # A self-loop leaves a Laplacian by out-degrees as it is; parallel edges add up.
    plain = spectral.laplacian(([[0, 1], [1, 0]], 2), [2.0, 1.0]).toarray()
    odd = spectral.laplacian(([[0, 0, 1, 0], [1, 1, 0, 0]], 2), [0.5, 1.5, 1.0, 9.0]).toarray()
    np.testing.assert_allclose(plain, odd)
    with pytest.raises(gp.NumericalError, match="add up to 0"):
        spectral.laplacian(([[0, 0], [1, 2]], 3), [1.0, -1.0], "rw", degrees="signed")
    with pytest.raises(gp.InputError, match="unknown laplacian 'sym'"):
        spectral.spectrum(([[0], [1]], 2), None, "sym")
