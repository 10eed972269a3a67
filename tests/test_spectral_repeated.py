"""Repeated eigenvalues: every copy among the leaders, and sensitivities no basis decides.

Truth is ``numpy.linalg.eigvals`` of the whole dense matrix, matched by scipy's assignment.
"""

import itertools
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from support.marks import quick

from graphprune import spectral

KINDS = ("out", "in", "both", "rw", "adjacency", "count")


def drawn(nodes, degree, seed):
    generator = np.random.default_rng(seed)
    index = generator.integers(nodes, size=(2, int(nodes * degree)))
    index = np.unique(index[:, index[0] != index[1]], axis=1)
    return index, generator.uniform(0.2, 1.5, index.shape[1])


def around_a_hub(nodes, copies, seed=1):
    """Equal graphs that meet in one node: all but one copy of each eigenvalue stay as they are."""
    index, weights = drawn(nodes, 3, seed)
    hub = nodes * copies
    parts = [index + nodes * copy for copy in range(copies)]
    joins = [[[hub, nodes * copy], [nodes * copy, hub]] for copy in range(copies)]
    whole = np.concatenate([*parts, *map(np.array, joins)], axis=1)
    return (whole, hub + 1), np.concatenate([np.tile(weights, copies), np.ones(2 * copies)])


def twice(nodes, seed=1):
    index, weights = drawn(nodes, 3, seed)
    return (np.concatenate([index, index + nodes], axis=1), 2 * nodes), np.tile(weights, 2)


def torus(side):
    """Directed: its matrix is normal, and its eigenvalues come in twos."""
    node = np.arange(side**2)
    row, column = np.divmod(node, side)
    right, down = row * side + (column + 1) % side, (row + 1) % side * side + column
    return (np.concatenate([[node, right], [node, down]], axis=1), side**2), np.ones(2 * side**2)


def ring(nodes, jump=None):
    node = np.arange(nodes)
    ends = [(node + step) % nodes for step in (1, jump) if step is not None]
    index = np.concatenate([[node, end] for end in ends], axis=1)
    return (index, nodes), np.ones(index.shape[1])


GRAPHS = {
    "twice": twice(120),
    "hub": around_a_hub(110, 3),
    "torus": torus(12),
    "ring": ring(120),
    "circulant": ring(120, 7),
    "random": (lambda found: ((found[0], 300), found[1]))(drawn(300, 4, 7)),
}


def leaders(graph, weights, kind, **options):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = spectral.leading(graph, weights, kind, **options)
    return found, " ".join(str(one.message) for one in said)


ANY = [*itertools.product(GRAPHS, KINDS)]
# Every graph with one operator, and every operator on copies around a hub.
FEW = [(name, kind) for name, kind in ANY if kind == "out" or name == "hub"]


@pytest.mark.parametrize(("name", "kind"), quick(ANY, FEW))
def test_as_many_leaders_as_were_asked_for(name, kind):
    graph, weights = GRAPHS[name]
    truth = np.linalg.eigvals(spectral.laplacian(graph, weights, kind).toarray())
    truth = truth[np.argsort(-truth.imag)]
    found, said = leaders(graph, weights, kind, count=6, dense_limit=20)
    assert len(found) == 6
    assert "found none that turns faster" in said  # the sparse path, not the dense one
    np.testing.assert_allclose(found.imag, truth[:6].imag, atol=1e-8)
    # Which of equal imaginary parts stand last is open; all others are matched, copy by copy.
    inside = truth[truth.imag > truth[5].imag + 1e-7]
    apart = np.abs(inside[:, None] - found)
    assert apart[linear_sum_assignment(apart)].max(initial=0.0) < 1e-8


def test_copies_without_eigenvectors_of_their_own():
    """x^40 = 2 x^20 - 1, the companion of (x^20 - 1)^2: each root of unity twice, one vector."""
    index = np.concatenate([[np.arange(39), np.arange(1, 40)], [[39, 39], [0, 20]]], axis=1)
    weights = np.r_[np.ones(39), -1.0, 2.0]
    roots = np.exp(2j * np.pi * np.arange(20) / 20)
    truth = np.repeat(np.sort(roots.imag)[::-1][:2], 2)
    found, said = leaders((index, 40), weights, "adjacency", count=4, dense_limit=10)
    assert "found none that turns faster" in said
    # Rounding of size eps splits a double eigenvalue by its root.
    np.testing.assert_allclose(found.imag, [1, 1, truth[2], truth[2]], atol=1e-6)


def test_more_than_the_filter_can_tell_apart():
    """One 3-cycle on a line of 2-cycles: a pair turns, and what else was asked for is real."""
    node = np.arange(99)
    index = np.concatenate([[node, node + 1], [node + 1, node], [[0, 1, 2], [1, 2, 0]]], axis=1)
    graph, weights = (index, 100), np.linspace(0.5, 1.5, index.shape[1])
    truth = np.linalg.eigvals(spectral.laplacian(graph, weights).toarray())
    found, said = leaders(graph, weights, "out", count=6, dense_limit=20)
    assert len(found) == 6
    assert not said  # solved whole
    np.testing.assert_allclose(found.imag, np.sort(truth.imag)[::-1][:6], atol=1e-9)
    # A component hardly above the limit has no three times as many modes as were asked for.
    small, few = drawn(9, 3, 0)
    found, _ = leaders((small, 9), few, "out", count=5, dense_limit=2)
    whole = np.linalg.eigvals(spectral.laplacian((small, 9), few).toarray())
    assert len(found) == min(5, int((whole.imag > -1e-9).sum()))


@pytest.mark.parametrize("kind", KINDS)
def test_sensitivities_of_copies_are_finite_differences(kind):
    """Of the sum: it is smooth where copies part. LAPACK's vectors of copies are not dual."""
    graph, weights = around_a_hub(7, 4, seed=3)
    slope = spectral.sensitivity(graph, weights, kind).numpy()

    def rotation(values):
        return np.abs(
            np.linalg.eigvals(spectral.laplacian(graph, values, kind).toarray()).imag
        ).sum()

    for edge in range(0, len(weights), 3):
        step = np.zeros(len(weights))
        step[edge] = 1e-5
        difference = (rotation(weights + step) - rotation(weights - step)) / 2e-5
        assert slope[edge] == pytest.approx(difference, abs=2e-5)


@pytest.mark.parametrize("measure", ["sum", "max", "gap"])
@pytest.mark.parametrize("name", ["twice", "hub"])
def test_sensitivities_are_the_same_for_every_copy(name, measure):
    """Equal parts of a graph are treated alike, whatever the numbers of their nodes."""
    made, copies = {"twice": (twice(9), 2), "hub": (around_a_hub(9, 3), 3)}[name]
    graph, weights = made
    slope = spectral.sensitivity(graph, weights, "out", measure=measure).numpy()
    each = slope[: len(slope) - (2 * copies if name == "hub" else 0)].reshape(copies, -1)
    if name == "hub" and measure == "max":
        slope = slope[: each.size]  # whichever mode leads, its copies are averaged
    np.testing.assert_allclose(each, np.tile(each[0], (copies, 1)), atol=1e-9)
    shuffled = np.random.default_rng(0).permutation(graph[1])
    again = spectral.sensitivity(
        (shuffled[graph[0]], graph[1]), weights, "out", measure=measure
    ).numpy()
    np.testing.assert_allclose(again[: len(slope)], slope, atol=1e-9)


def test_threads_and_kernels_decide_nothing():
    """The same bits of a mask under other BLAS kernels, and the same leaders to rounding."""
    program = (
        "import numpy as np, warnings; warnings.simplefilter('ignore');"
        "from graphprune import spectral; g = np.random.default_rng(0);"
        "i = g.integers(40, size=(2, 160)); i = np.unique(i[:, i[0] != i[1]], axis=1);"
        "n = np.arange(36); t = np.concatenate([[n, n // 6 * 6 + (n + 1) % 6],"
        " [n, (n + 6) % 36]], axis=1);"
        "a = spectral.leading((i, 40), None, 'out', count=4, dense_limit=9);"
        "b = spectral.prune((t, 36), None, 'out', goal='preserve', size=66, effort=0.02);"
        "b = b.kept.numpy();"
        "d = spectral.prune((i, 40), None, 'out', goal='gap', size=130, effort=0.02).kept;"
        "c = spectral.sensitivity((t, 36), None, 'out', measure='max').numpy();"
        "print(np.round(a, 8).tolist(), np.flatnonzero(~b).tolist(),"
        "np.flatnonzero(~d.numpy()).tolist(), np.round(c, 8).tolist())"
    )
    answers = set()
    for setting in (
        {"OMP_NUM_THREADS": "1"},
        {"OMP_NUM_THREADS": "2", "OPENBLAS_CORETYPE": "Haswell"},
    ):
        env = {**os.environ, **setting}
        done = subprocess.run(
            [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
        )
        answers.add(done.stdout.replace("-0.0", "0.0"))
    assert len(answers) == 1, answers


def test_pruning_follows_copies_too():
    """LargeSearch follows modes with their copies: what it says is the dense sum of the leaders."""
    graph, weights = around_a_hub(60, 3)
    with pytest.warns(UserWarning, match="leading eigenvalues only"):
        mask = spectral.prune(graph, weights, goal="preserve", size=0.95, dense_limit=50)
    whole = np.linalg.eigvals(spectral.laplacian(graph, weights).toarray()).imag
    assert mask.notes["start"] == pytest.approx(2 * np.sort(whole)[::-1][:8].sum(), rel=1e-6)
