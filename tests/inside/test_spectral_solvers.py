"""Solvers of the spectral package: stars in closed form, and components above the dense limit.

Truth is ``numpy.linalg.eigvals`` of the whole dense matrix.
"""

import itertools
import warnings
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphprune as gp
from graphprune import spectral
from graphprune.spectral import weighted_graph
from graphprune.spectral.linalg.arpack import solve_leading
from graphprune.spectral.linalg.eigensolver import Solver
from graphprune.spectral.linalg.sensitivity import entry_gradients, measure_named, weight_gradients
from graphprune.spectral.linalg.weighted_graph import operator
from graphprune.spectral.search.star_search import StarSearch, arrowhead_rotation

pytestmark = pytest.mark.inside

KINDS = ("out", "in", "both", "rw", "adjacency", "count")


def drawn(nodes, degree, seed):
    generator = np.random.default_rng(seed)
    index = generator.integers(nodes, size=(2, int(nodes * degree)))
    index = np.unique(index[:, index[0] != index[1]], axis=1)
    return index, generator.uniform(0.2, 1.5, index.shape[1])


def leaders(graph, weights, kind, **options):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = spectral.leading(graph, weights, kind, **options)
    return found, " ".join(str(one.message) for one in said)


def around_a_hub(nodes, copies, seed=1):
    """Equal graphs that meet in one node: all but one copy of each eigenvalue stay as they are."""
    index, weights = drawn(nodes, 3, seed)
    hub = nodes * copies
    parts = [index + nodes * copy for copy in range(copies)]
    joins = [[[hub, nodes * copy], [nodes * copy, hub]] for copy in range(copies)]
    whole = np.concatenate([*parts, *map(np.array, joins)], axis=1)
    return (whole, hub + 1), np.concatenate([np.tile(weights, copies), np.ones(2 * copies)])


# ------------------------------------------------------------------ stars


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1_000_000))
def test_stars_of_every_kind_are_their_matrices(seed):
    """The star's own Laplacian, made by the library's definition and solved whole."""
    generator = np.random.default_rng(seed)
    nodes = int(generator.integers(2, 9))
    pairs = [p for p in itertools.permutations(range(nodes), 2) if generator.random() < 0.7]
    mine = [p for p in pairs if 0 in p]
    if not mine:
        return
    weights = dict(zip(pairs, generator.normal(0, 2, len(pairs)), strict=True))
    made = weighted_graph((np.array(pairs).T, nodes), list(weights.values()))
    star = weighted_graph((np.array(mine).T, nodes), [weights[p] for p in mine])
    for kind, degrees in itertools.product(KINDS, ("signed", "absolute")):
        exact = np.linalg.eigvals(operator(kind, degrees).matrix(star).toarray()).imag.max()
        found = StarSearch(made, operator(kind, degrees)).rotation(0)
        if exact > 1e-5 or found > 0:
            assert found == pytest.approx(exact, rel=1e-7, abs=1e-5), (kind, degrees)


def test_an_arrowhead_with_equal_leaves():
    """Its rotation by the dense solver, where equal leaves are merged and where none turns."""
    generator = np.random.default_rng(4)
    turned = 0
    for _ in range(40):
        leaves = generator.choice([0.5, 1.0, 2.0], 6)
        products = generator.normal(0, 2, 6)
        matrix = np.diag(np.concatenate([[1.5], leaves]))
        matrix[0, 1:], matrix[1:, 0] = products, 1.0
        exact = np.linalg.eigvals(matrix).imag.max()
        found = arrowhead_rotation(1.5, leaves, products)
        assert found == pytest.approx(exact, abs=1e-6)
        turned += found > 0
    assert 0 < turned < 40


def test_local_with_parallel_and_fixed_edges():
    index, weights = [[0, 0, 1], [1, 1, 0]], [1.0, 2.0, -4.0]
    form = operator("adjacency", None)
    first = StarSearch(weighted_graph((index, 2), weights), form).run(2)
    assert first.tolist() == [False, True, True]  # 3 one way is weaker than 4; its least edge goes
    fixed = weighted_graph((index[::-1], 2), weights).extended([1], [0], [0.5])
    # Once only the fixed edge is left on the weaker side, the other side's edge goes.
    assert StarSearch(fixed, form).run(1).tolist() == [False, False, True]
    assert StarSearch(fixed, form).run(0).tolist() == [False, False, False]
    held = weighted_graph(([[0], [1]], 2), [-4.0]).extended([1], [0], [1.0])
    assert StarSearch(held, form).run(0).tolist() == [False]  # the weaker edge is fixed
    balanced = weighted_graph(([[0, 0, 1, 2], [1, 2, 0, 0]], 3), [1.0, -1.0, -1.0, 1.0])
    search = StarSearch(balanced, operator("rw", "signed"))
    with pytest.raises(gp.NumericalError, match="add up to 0"):
        search.run(0)


# ------------------------------------------------------------------ large components


def test_large_components_have_the_dense_sensitivities():
    """Of the largest imaginary part, from left and right vectors that ARPACK found."""
    index, weights = drawn(200, 4, 11)
    graph = (index, 200)
    exact = spectral.sensitivity(graph, weights, "out", measure="max")
    form, made = operator("out", None), weighted_graph(graph, weights)
    found = Solver(form, 50, partial(solve_leading, count=8)).solve(made, vectors=True)
    assert not found.complete
    assert found.doubts
    mine = weight_gradients(form, made, entry_gradients(made, found, measure_named("max")))
    np.testing.assert_allclose(mine, exact.numpy(), atol=1e-5)


def test_large_components_have_the_dense_sensitivities_of_copies():
    graph, weights = around_a_hub(60, 3)
    exact = spectral.sensitivity(graph, weights, "out", measure="max")
    form, made = operator("out", None), weighted_graph(graph, weights)
    found = Solver(form, 50, partial(solve_leading, count=8)).solve(made, vectors=True)
    assert not found.complete
    mine = weight_gradients(form, made, entry_gradients(made, found, measure_named("max")))
    np.testing.assert_allclose(mine, exact.numpy(), atol=1e-6)


def test_fewer_are_said(monkeypatch):
    """Above the size that is solved whole: the number that converged stands in the warning."""
    monkeypatch.setattr("graphprune.spectral.linalg.arpack.DENSE_LIMIT", 50)
    node = np.arange(99)
    index = np.concatenate([[node, node + 1], [node + 1, node], [[0, 1, 2], [1, 2, 0]]], axis=1)
    found, said = leaders((index, 100), np.ones(201), "rw", count=6, dense_limit=50)
    verified = np.linalg.eigvals(spectral.laplacian((index, 100), None, "rw").toarray())
    assert np.abs(found[:, None] - verified).min(1).max() < 1e-6
    assert len(found) == 6 or f"only {len(found)} of the 6 wanted converged" in said
