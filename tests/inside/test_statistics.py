"""Numbers inside statistics: p-values, overlaps of runs, chance, and random walks.

Against brute force and scipy, and by their distribution where the null hypothesis holds.
"""

import itertools
from math import comb

import numpy as np
import pytest
import torch
from scipy.stats import binom, binomtest, hypergeom, kstest, t
from support.rings import Rings
from support.toy import Toy
from transformer_graph import random_scores, transformer_graph

import graphprune as gp
from graphprune.comparison import holm
from graphprune.comparison.p_values import (
    beats_share,
    bonferroni,
    differs,
    is_within,
    rank_p,
    sign_flip_p,
)
from graphprune.statistics.method_runs import MethodRun, reseeded
from graphprune.statistics.random_circuits import RandomWalks
from graphprune.statistics.stability import (
    _overlaps,
    _random_families,
    _random_ranking,
    jackknife,
    mean_overlap,
)
from graphprune.util.checks import share

pytestmark = pytest.mark.inside

ALPHA = 0.05


@pytest.mark.parametrize(("n", "epsilon"), [(1, 0.3), (2, 0.05), (7, 0.1), (20, 0.3), (51, 0.05)])
def test_equivalence_is_the_published_sum(n, epsilon):
    """All k with |k/n - 1/2| at least the observed, binomial at 1/2 + epsilon."""
    for wins in range(n + 1):
        for ties in range(0, n - wins + 1, 3):
            losses = n - wins - ties
            # Doubled, so that half a tie is exact.
            observed = abs(2 * wins + ties - n)
            terms = [
                comb(n, k) * (0.5 + epsilon) ** k * (0.5 - epsilon) ** (n - k)
                for k in range(n + 1)
                if abs(2 * k - n) >= observed
            ]
            assert differs(wins, losses, n, epsilon) == pytest.approx(sum(terms), abs=1e-12)


@pytest.mark.parametrize("n", [5, 30, 200])
def test_equivalence_rejects_no_more_than_it_may(n):
    """Exact: the chance of rejection at every share within the null hypothesis."""
    epsilon = 0.1
    rejected = np.array([differs(k, n - k, n, epsilon) <= ALPHA for k in range(n + 1)])
    for share_ in np.linspace(0.4, 0.6, 9):
        assert binom.pmf(np.arange(n + 1), n, share_)[rejected].sum() <= ALPHA + 1e-12
    if n == 200:
        assert binom.pmf(np.arange(n + 1), n, 0.75)[rejected].sum() > 0.99


def test_equivalence_with_ties_is_conservative():
    generator = np.random.default_rng(0)
    for ties in (0.2, 0.6, 0.95):
        left = 1 - ties
        wins_share = min(0.6 - ties / 2, left)  # the least favourable share, or as near as can be
        drawn = generator.multinomial(60, [wins_share, left - wins_share, ties], size=4000)
        p = [differs(int(w), int(x), 60, 0.1) for w, x, _ in drawn]
        assert np.mean(np.array(p) <= ALPHA) < ALPHA + 3 * np.sqrt(ALPHA * 0.95 / 4000)


@pytest.mark.parametrize("n", [40, 200])
def test_shown_equivalence_is_wrong_no_more_than_it_may(n):
    epsilon = 0.1
    shown = np.array([is_within(k, n - k, n, epsilon) <= ALPHA for k in range(n + 1)])
    for share_ in (0.2, 0.4, 0.6, 0.7):
        assert binom.pmf(np.arange(n + 1), n, share_)[shown].sum() <= ALPHA + 1e-12
    for k in range(n + 1):
        one = binomtest(k, n, 0.5 - epsilon, alternative="greater").pvalue
        two = binomtest(k, n, 0.5 + epsilon, alternative="less").pvalue
        assert is_within(k, n - k, n, epsilon) == pytest.approx(max(one, two), rel=1e-9)
    assert (binom.pmf(np.arange(n + 1), n, 0.5)[shown].sum() > 0.7) == (n == 200)


def test_random_circuits_are_counted_as_scipy_counts():
    for n, quantile in ((20, 0.9), (100, 0.5)):
        for count in range(0, n + 1, 5):
            for more, side in ((True, "greater"), (False, "less")):
                want = binomtest(count, n, quantile, alternative=side).pvalue
                assert beats_share(count, n, quantile, more=more) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("more", [True, False])
def test_the_quantile_tests_reject_no_more_than_they_may(more):
    """An edge (a circuit) at exactly the quantile of random ones; exact."""
    n, quantile = 100, 0.9
    rejected = np.array([beats_share(k, n, quantile, more=more) <= ALPHA for k in range(n + 1)])
    assert 0 < binom.pmf(np.arange(n + 1), n, quantile)[rejected].sum() <= ALPHA


def test_ranks_are_uniform_where_nothing_differs():
    generator = np.random.default_rng(1)
    p = [rank_p(x[0], x[1:]) for x in generator.normal(size=(4000, 20))]
    counts = np.bincount(np.round(np.array(p) * 20).astype(int), minlength=21)[1:]
    assert counts.sum() == 4000
    assert np.abs(counts - 200).max() < 4 * np.sqrt(200)
    assert rank_p(5.0, [1.0, 5.0, 7.0]) == 0.75
    assert rank_p(5.0, []) == 1.0
    assert rank_p(1.0, [1.0 - 1e-9], tolerance=1e-6) == 1.0


def test_sign_flips_are_uniform_where_nothing_differs():
    generator = np.random.default_rng(2)
    p = [sign_flip_p(generator.normal(size=12), draws=99, seed=i) for i in range(600)]
    assert kstest(p, "uniform").pvalue > 0.01
    assert np.mean(np.array(p) <= ALPHA) < 0.085


def test_corrections_by_hand():
    assert bonferroni([0.01, 0.4, 0.5]).tolist() == [0.03, 1.0, 1.0]
    assert holm([0.04, 0.01, 0.03, 0.005]) == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_shares_are_between_their_ends():
    for value, name, most, words in (
        (0, "alpha", 1.0, "alpha must lie between 0 and 1, got 0"),
        (True, "alpha", 1.0, "got True"),
        (0.5, "epsilon", 0.5, "between 0 and 0.5"),
    ):
        with pytest.raises(gp.GraphPruneError, match=words):
            share(value, name, most)


# ---------------------------------------------------------------- stability


def ranking(graph):
    """A run whose scores are all different."""
    return MethodRun(
        gp.EdgeMask.full(graph), gp.EdgeScores(graph, torch.arange(1.0, graph.num_edges + 1))
    )


def cut(size):
    return lambda scores: scores.top(size).prune_dead_ends()


def test_circuits_without_dead_ends_share_more_than_random_sets_do():
    """So that chance must be made as the circuits are: else random methods look stable."""
    graph, generator = transformer_graph(3, 2), np.random.default_rng(0)
    pool = np.stack([_random_ranking(ranking(graph), cut(0.3), generator) for _ in range(80)])
    pool = pool[pool.sum(1) > 0]
    p = {"size": [], "paths": []}
    for match, _ in itertools.product(p, range(40)):
        family = pool[generator.choice(len(pool), 4, replace=False)]
        masks = [gp.EdgeMask(graph, torch.from_numpy(row)) for row in family]
        chance = [mean_overlap(other) for other in _random_families(masks, match, 19, generator)]
        p[match].append(rank_p(mean_overlap(family), chance))
    assert np.mean(np.array(p["size"]) <= 0.05) > 0.15
    assert np.mean(np.array(p["paths"]) <= 0.05) <= 0.05


def test_chance_of_rankings_by_all_subsets():
    """Five edges, two kept, dead ends pruned: every pair of the ten equally likely circuits."""
    graph = gp.ComputationalGraph.from_edges(
        [("in", "a"), ("a", "out"), ("in", "b"), ("b", "out"), ("in", "out")]
    )
    left = []
    for chosen in itertools.combinations(range(5), 2):
        whole = [{0, 1} <= set(chosen), {2, 3} <= set(chosen), 4 in chosen]
        parts = [part for part, there in zip(({0, 1}, {2, 3}, {4}), whole, strict=True) if there]
        left.append(set().union(*parts))
    shares = [len(a & b) / len(a | b) if a | b else 0.0 for a in left for b in left]
    assert np.mean(shares) == pytest.approx(0.18)
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(250):
        pair = [_random_ranking(ranking(graph), cut(2), generator) for _ in range(2)]
        drawn.append(mean_overlap(np.stack(pair)))
    assert np.mean(drawn) == pytest.approx(0.18, abs=4 * np.std(drawn) / np.sqrt(250))


def test_chance_of_sizes_has_its_law():
    graph = transformer_graph(2, 2)
    masks = [random_scores(graph, seed).top(size) for seed, size in ((1, 7), (2, 9))]
    drawn = [
        mean_overlap(f) for f in _random_families(masks, "size", 2000, np.random.default_rng(0))
    ]
    ks = np.arange(8)
    want = (hypergeom(graph.num_edges, 7, 9).pmf(ks) * ks / (16 - ks)).sum()
    assert len(drawn) == 2000
    assert np.mean(drawn) == pytest.approx(want, abs=4 * np.std(drawn) / np.sqrt(2000))


def test_the_interval_is_the_jackknife():
    rng = np.random.default_rng(1)
    family = rng.random((5, 40)) < 0.4
    pairs = [(i, j) for i in range(5) for j in range(i)]
    by = {p: (family[p[0]] & family[p[1]]).sum() / (family[p[0]] | family[p[1]]).sum()
          for p in pairs}  # fmt: skip
    mean = np.mean(list(by.values()))
    without = [np.mean([v for p, v in by.items() if i not in p]) for i in range(5)]
    reach = t.ppf(0.975, 4) * np.sqrt(4 / 5 * np.var(without) * 5)
    assert mean_overlap(family) == pytest.approx(mean)
    assert jackknife(_overlaps(family)) == pytest.approx((mean - reach, mean + reach))
    assert jackknife(_overlaps(family[:2])) is None


def test_the_interval_covers_what_it_should():
    """Edges of their own chances: the overlap expected of two runs, from 4,000 pairs."""
    rng = np.random.default_rng(2)
    chances = rng.beta(0.4, 1.2, 60)
    truth = np.mean([mean_overlap(rng.random((2, 60)) < chances) for _ in range(4000)])
    covered = []
    for _ in range(400):
        low, high = jackknife(_overlaps(rng.random((8, 60)) < chances))
        covered.append(low <= truth <= high)
    assert 0.9 < np.mean(covered) <= 1.0


def test_seeds_of_members_stay_apart_and_runs_differ():
    inner = gp.ParallelEnsemble([gp.Random(seed=3), gp.Random(seed=4), gp.EAP()], normalize="rank")
    one, two = reseeded(inner, 1), reseeded(inner, 2)
    seeds = [[getattr(m, "seed", None) for m in method.scorers] for method in (one, two)]
    assert len({*seeds[0][:2], *seeds[1][:2]}) == 4
    assert reseeded(inner, 1) == one
    assert reseeded(gp.EAP(), 1) is None
    assert reseeded(gp.UGS(steps=7), 5) == gp.UGS(steps=7, seed=5)


# ---------------------------------------------------------------- random walks


def some_mask(graph, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.zeros(graph.num_edges)
    values[torch.randperm(graph.num_edges, generator=generator)[:count]] = 1.0
    return gp.EdgeMask(graph, values)


@pytest.fixture(params=[None, 2], ids=["plain", "grouped"], scope="module")
def graph(request):
    return transformer_graph(2, 4, request.param)


def test_walks_are_walks(graph):
    walker, generator = RandomWalks(graph), np.random.default_rng(0)
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
    walker, generator = RandomWalks(graph), np.random.default_rng(0)
    firsts = [walker.path(generator)[0] for _ in range(3000)]
    counts = np.bincount(firsts, minlength=6)
    assert counts[5] == 0  # it leads nowhere
    assert np.abs(counts[:3] - 1000).max() < 4 * np.sqrt(1000)


def test_cyclic_graphs_are_walked_without_loops():
    model = Rings()
    walker, generator = RandomWalks(model.graph), np.random.default_rng(0)
    for _ in range(100):
        path = walker.path(generator)
        assert len(path) == len(set(path))
    toy = Toy().graph
    for _ in range(20):
        new = RandomWalks(toy).inflating(some_mask(toy, 3).kept.numpy(), generator)
        assert len(new)
        assert not some_mask(toy, 3).kept[torch.from_numpy(new)].any()
