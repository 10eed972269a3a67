"""Chance: against enumeration of every circuit, scipy, and sampling."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from scipy.stats import chisquare, false_discovery_control
from support.enumerated import ONE, SMALL, TWO, agree, circuits_of, enumerated
from support.rings import Rings
from transformer_graph import random_scores, transformer_graph

import graphprune as gp
from graphprune.comparison import (
    edge_groups,
    holm,
    levels,
    make_strata,
    overlap_distribution,
    overlap_null,
)
from graphprune.errors import InputError
from graphprune.statistics import random_circuits


def test_uniform_is_every_circuit_of_that_size():
    agree(overlap_distribution(ONE, TWO), enumerated(circuits_of(4)))


def test_composition_is_every_circuit_of_that_composition():
    strata = make_strata(SMALL)
    wanted = np.bincount(strata.codes[ONE.kept.numpy()], minlength=strata.count)
    same = [
        kept
        for kept in circuits_of(4)
        if (np.bincount(strata.codes[kept], minlength=strata.count) == wanted).all()
    ]
    assert 1 < len(same) < len(circuits_of(4))
    agree(overlap_distribution(ONE, TWO, "composition"), enumerated(same))


@pytest.mark.parametrize(("null", "match"), [("uniform", "size"), ("composition", "composition")])
def test_sampling_agrees_with_the_exact_distribution(null, match):
    exact = overlap_distribution(ONE, TWO, null)
    drawn = random_circuits(ONE, 3000, match=match, seed=1)
    counts = Counter(int((mask.kept & TWO.kept).sum()) for mask in drawn)
    expected = exact.pmf * 3000
    large = expected >= 5
    assert expected[~large].sum() < 30
    found = np.array([counts[c] for c in exact.counts.tolist()])
    scale = found[large].sum() / expected[large].sum()
    assert chisquare(found[large], expected[large] * scale).pvalue > 1e-3


def test_swaps_and_fitted_chances_expect_the_same_overlap():
    """Two circuits of the same hubs share edges for that alone, which only degrees explain."""
    graph = transformer_graph(5, 5)
    hub = 6.0 * (graph.edge_index[0] % 4 == 0)
    one = gp.EdgeScores(graph, random_scores(graph, 1).values + hub).top(150)
    two = gp.EdgeScores(graph, random_scores(graph, 2).values + hub).top(150)
    chance = overlap_distribution(one, two, "degrees")
    drawn = random_circuits(one, 300, match="degree")
    found = [int((mask.kept & two.kept).sum()) for mask in drawn]
    assert np.mean(found) == pytest.approx(chance.mean, rel=0.03)
    assert np.std(found) < 1.1 * chance.sd  # degrees that are only expected spread no less
    assert chance.mean > 1.5 * overlap_distribution(one, two).mean
    assert overlap_null(one, two).p_more < 0.01
    assert overlap_null(one, two, "degrees").p_more > 0.1


@pytest.mark.parametrize("null", ["uniform", "composition", "degrees"])
def test_random_circuits_are_rejected_no_more_than_they_may_and_alike_ones_are(null):
    match = {"uniform": "size", "composition": "composition", "degrees": "degree"}[null]
    graph = transformer_graph(3, 3)
    one, two = random_scores(graph, 1).top(40), random_scores(graph, 2).top(40)
    n = 60 if null == "degrees" else 300
    drawn = random_circuits(one, n, match=match, seed=3)
    p = np.array([overlap_null(mask, two, null).p_more for mask in drawn])
    assert np.mean(p <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / n)
    assert 0.4 < p.mean() < 0.75  # exact p-values of counts lie above the middle
    # Circuits that share three quarters of their edges with one another are told from chance.
    for seed in range(5):
        near = (one - random_circuits(one, 1, match="size", seed=seed)[0]) | (
            random_circuits(one, 1, match=match, seed=seed)[0] & two
        )
        assert overlap_null(near, one, null).p_more < 1e-3


def test_the_least_p_value_is_that_of_the_largest_overlap():
    for null, circuits in (
        ("uniform", circuits_of(4)),
        ("composition", [m.kept.numpy() for m in random_circuits(ONE, 400, match="composition")]),
    ):
        found = overlap_null(ONE, TWO, null)
        every = {tuple(kept.tolist()) for kept in circuits}
        shared = np.array([(np.array(kept) & TWO.kept.numpy()).sum() for kept in every])
        assert found.p_least == pytest.approx((shared == shared.max()).mean())
        assert found.p_least <= found.p_more
    # Two edges between layers of two nodes each can share both by chance one time in six.
    small = gp.EdgeMask.from_edges(SMALL, ["a->c", "b->d", "in->out"])
    compared = gp.compare_circuits({"one": small, "two": small}, nulls=["composition"])
    assert compared.pairs[0].nulls["composition"].p_least == pytest.approx(1 / 6)
    assert compared.remarks[-1].startswith('underpowered by the chance "composition": one | two')
    large = {name: random_scores(transformer_graph(3, 3), i).top(40) for i, name in enumerate("ab")}
    assert not any("underpowered" in r for r in gp.compare_circuits(large).remarks)


def test_random_circuits_keep_their_composition():
    graph = transformer_graph(3, 3)
    mask = random_scores(graph).top(40)
    strata = make_strata(graph)
    inside = np.bincount(strata.codes[mask.kept.numpy()], minlength=strata.count)
    for drawn in random_circuits(mask, 5, match="composition"):
        again = np.bincount(strata.codes[drawn.kept.numpy()], minlength=strata.count)
        assert (again == inside).all()
        assert drawn != mask


# -------------------------------------------------------------------- distributions


def test_holm_by_its_definition():
    values = [0.001, 0.02, 0.03, 0.5, 0.01]
    order = np.argsort(values)
    truth, largest = np.zeros(5), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1, (5 - rank) * values[place]))
        truth[place] = largest
    assert holm(values) == pytest.approx(truth)
    # Never smaller than the false discovery rate's, never larger than Bonferroni's.
    assert (np.array(holm(values)) >= false_discovery_control(values) - 1e-12).all()
    assert (np.array(holm(values)) <= np.minimum(1, 5 * np.array(values)) + 1e-12).all()


# -------------------------------------------------------------------- nulls of pairs


@pytest.mark.parametrize("null", gp.comparison.NULLS)
def test_nulls_do_not_depend_on_the_order(null):
    graph = transformer_graph(3, 3)
    one, two = random_scores(graph, 1).top(30), random_scores(graph, 2).top(55)
    there, back = overlap_null(one, two, null), overlap_null(two, one, null)
    for name, value in {**there.to_dict(), "p_adjusted": 0, "z": there.z or 0}.items():
        assert (getattr(back, name) or 0) == pytest.approx(value, rel=1e-9), name
    assert there.low <= there.mean <= there.high


def test_of_two_directions_the_less_surprising_is_reported():
    """A circuit of hubs and one without: which of them is drawn at random matters."""
    graph = transformer_graph(3, 3)
    hub = 6.0 * (graph.edge_index[0] % 4 == 0)
    one = gp.EdgeScores(graph, random_scores(graph, 1).values.abs() + hub).top(30)
    two = random_scores(graph, 5).top(55)
    shared = int((one.kept & two.kept).sum())
    both = [overlap_distribution(*pair, "degrees") for pair in ((one, two), (two, one))]
    p_values = [chance.at_least(shared) for chance in both]
    assert abs(p_values[0] - p_values[1]) > 1e-3
    assert overlap_null(one, two, "degrees").p_more == max(p_values)


@pytest.mark.parametrize("null", gp.comparison.NULLS)
@pytest.mark.parametrize("sizes", [(0, 5), (0, 0), (9, 4), (9, 9)])
def test_empty_and_full_circuits_leave_nothing_to_chance(null, sizes):
    one = gp.EdgeMask.full(SMALL) if sizes[0] else gp.EdgeMask.empty(SMALL)
    two = TWO if sizes[1] == 5 else ONE if sizes[1] == 4 else one
    found = overlap_null(one, two, null)
    assert found.mean == pytest.approx(int((one.kept & two.kept).sum()))
    assert (found.z, found.p_more, found.p_less) == (None, 1.0, 1.0)
    assert found.jaccard == pytest.approx(one.jaccard(two))


def test_the_p_value_is_the_share_of_circuits():
    shared = int((ONE.kept & TWO.kept).sum())
    found = overlap_null(ONE, TWO)
    every = [int((kept & TWO.kept.numpy()).sum()) for kept in circuits_of(4)]
    assert found.p_more == pytest.approx(np.mean([c >= shared for c in every]))
    assert found.p_less == pytest.approx(np.mean([c <= shared for c in every]))
    jaccards = [c / (4 + 5 - c) for c in every]
    assert found.jaccard == pytest.approx(np.mean(jaccards))
    assert found.z == pytest.approx((shared - np.mean(every)) / np.std(every))


def test_an_unknown_null_is_refused():
    with pytest.raises(InputError, match="unknown null 'exact'; known: uniform"):
        overlap_null(ONE, TWO, "exact")
    with pytest.raises(InputError, match=r"unknown axis 'layer'; .*source_level"):
        make_strata(SMALL, ["layer"])


# -------------------------------------------------------------------- axes


def test_levels_are_layers_where_there_are_any():
    graph = transformer_graph(3, 2)
    found = levels(graph)
    named = dict(zip([n.name for n in graph.nodes], found.names().tolist(), strict=True))
    assert found.how == "layer"
    assert (named["input"], named["a1.h0"], named["m2"], named["logits"]) == (
        "input", "1", "2", "output",
    )  # fmt: skip
    groups = edge_groups(graph, "distance")
    of = dict(zip(graph.edge_names, (groups.names[c] for c in groups.codes), strict=True))
    assert (of["input->a0.h1<q>"], of["a0.h1->m0"], of["m0->a2.h0<v>"]) == ("1", "0", "2")
    assert (of["input->logits"], of["m2->logits"]) == ("4", "1")


def test_levels_are_depths_without_layers_and_steps_in_cycles():
    assert levels(SMALL).how == "depth"
    assert levels(SMALL).values.tolist() == [0, 1, 1, 2, 2, 3]
    cyclic = Rings().graph
    found = levels(cyclic)
    import networkx as nx

    truth = nx.single_source_shortest_path_length(cyclic.to_networkx(), "n0")
    assert found.how == "steps"
    assert not cyclic.is_acyclic
    for node, value in zip(cyclic.nodes, found.values.tolist(), strict=True):
        assert value == truth.get(node.name, -1)


def test_a_cycle_without_an_input_has_no_levels():
    graph = gp.ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("c", "a"), ("b", "a")])
    with pytest.raises(InputError, match=r"has cycles and no input\. Compare by the kinds"):
        levels(graph)
    strata = make_strata(graph)
    assert strata.axes == ("source_kind", "target_kind", "kind")
    assert set(strata.left_out) == {"source_level", "target_level"}
    with pytest.raises(InputError, match="has cycles and no input"):
        make_strata(graph, ["source_level"])


def test_relative_depth():
    graph = transformer_graph(5, 1)
    groups = edge_groups(graph, "source_depth", bins=2)
    of = dict(zip(graph.edge_names, (groups.names[c] for c in groups.codes), strict=True))
    assert of["input->m0"] == "input"
    assert [of[f"m{layer}->logits"] for layer in range(5)] == ["0-50%"] * 2 + ["50-100%"] * 3
    assert edge_groups(graph, "target_depth").names == (
        "0-25%", "25-50%", "50-75%", "75-100%", "output",
    )  # fmt: skip
    nodes = tuple(
        gp.Node(n.name, n.kind, None if n.layer is None else n.layer + 1, n.index)
        for n in graph.nodes
    )
    counted_from_one = dataclasses.replace(graph, nodes=nodes)
    again = edge_groups(counted_from_one, "source_depth", bins=2)
    assert again.codes.tolist() == groups.codes.tolist()
    with pytest.raises(InputError, match="bins must be at least 1"):
        edge_groups(graph, "source_depth", bins=0)


@pytest.mark.parametrize("axis", gp.comparison.AXES)
def test_groups_divide_the_edges(axis):
    for graph in (transformer_graph(3, 2), transformer_graph(2, 4, 2), SMALL, Rings().graph):
        groups = edge_groups(graph, axis)
        assert groups.count().sum() == graph.num_edges
        assert len(set(groups.names)) == len(groups.names)
        assert (groups.count() > 0).all()


def test_permutations_within_strata_are_all_equally_likely():
    strata = make_strata(SMALL, ["target_level"])
    rng = np.random.default_rng(0)
    inside = np.flatnonzero(strata.codes == strata.codes[0])
    assert len(inside) == 2
    seen = Counter(tuple(strata.shuffled(rng)[inside].tolist()) for _ in range(400))
    assert set(seen) == set(permutations(inside.tolist()))
    assert chisquare(list(seen.values())).pvalue > 1e-3
