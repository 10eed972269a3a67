"""Distances of profiles: what circuits chose, whatever their graphs are made of."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.nn import GraphConv
from transformer_graph import random_scores, transformer_graph

import graphprune as gp
from graphprune.comparison import edge_groups
from graphprune.errors import InputError


def graph_network(nodes=24, edges=150):
    """A PyG model's graph whose edges all lead to later nodes, so that it has a depth."""
    generator = torch.Generator().manual_seed(0)
    ends = torch.randint(nodes, (2, 6 * edges), generator=generator).sort(0).values
    ends = torch.unique(ends[:, (ends[1] - ends[0] > 0) & (ends[1] - ends[0] < 5)], dim=1)
    order = torch.randperm(ends.shape[1], generator=generator)[:edges]
    data = Data(x=torch.randn(nodes, 3, generator=generator), edge_index=ends[:, order])
    return gp.wrap(GraphConv(3, 2), data=data).graph


GRAPHS = {
    "language": transformer_graph(4, 3),
    "deeper": transformer_graph(9, 4),
    "network": graph_network(),
    "plain": gp.ComputationalGraph.from_edges(
        [(f"{n}.{i}", f"{n + 1}.{j}") for n in range(8) for i in range(5) for j in range(5)]
    ),
}
PAIRS = list(combinations(GRAPHS, 2))


def kept_with(graph, rates):
    """Every edge kept by a coin flip of its own rate ``[E]``."""

    def draw(generator):
        return gp.EdgeMask(graph, torch.from_numpy(generator.random(graph.num_edges) < rates))

    return draw


def half(graph, late):
    """The rate of each edge: .3 where its target lies in that half of the depth, else .03."""
    groups = edge_groups(graph, "target_depth")
    names = ("50-75%", "75-100%", "output") if late else ("0-25%", "25-50%")
    inside = np.isin(groups.codes, [i for i, name in enumerate(groups.names) if name in names])
    return np.where(inside, 0.3, 0.03)


# ---------------------------------------------------------------- what it must give


def test_all_edges_kept_is_no_difference_however_graphs_differ():
    found = gp.compare_profiles({name: gp.EdgeMask.full(graph) for name, graph in GRAPHS.items()})
    assert set(found.differences) == set(PAIRS)
    for pair, difference in found.differences.items():
        assert {"source_depth", "target_depth"} <= set(difference.axes), pair
        assert max(difference.distance.values()) < 1e-12
        for along in difference.axes.values():
            assert (along.corrected, along.low, along.high, along.p) == (0, 0, 0, 1)
        assert max(difference.graph_distance.values()) > 0.1  # the graphs do differ
    assert found.differences["language", "deeper"].distance.keys() == set(found.axes)


def test_kinds_that_are_not_shared_have_a_reason_and_no_number():
    masks = {name: random_scores(graph).top(0.2) for name, graph in GRAPHS.items()}
    found = gp.compare_profiles(masks)
    for axis in ("source_kind", "target_kind", "kind"):
        for pair in (("language", "network"), ("deeper", "plain")):
            difference = found.differences[pair]
            assert axis not in difference.distance
            assert axis not in difference.corrected
            assert difference.absent[axis].startswith("no group in common")
            assert difference.graph_distance[axis] == pytest.approx(1)
        both = found.differences["network", "plain"]
        assert "leaves nothing to choose" in both.absent[axis]
    group = found.differences["language", "network"].group("kind", "q")
    assert (group.difference, group.standard_first, group.p) == (None, None, None)
    assert group.share_first > 0
    frame = found.distances_frame()
    assert len(frame) == len(PAIRS) * len(found.axes)
    assert frame.loc[frame["absent"].notna(), "corrected"].isna().all()
    assert any("within the groups that both graphs have" in remark for remark in found.remarks)
    assert any("depth is not measured alike" in remark for remark in found.remarks)
    # A circuit may also have nothing in what is shared.
    ends = [e for e in GRAPHS["language"].edge_names if e.startswith("input->")]
    outside = gp.EdgeMask.from_edges(GRAPHS["language"], ends)
    pair = {"a": outside, "b": masks["plain"]}
    why = gp.compare_profiles(pair).differences["a", "b"].absent["source_depth"]
    assert why.startswith("the first circuit keeps no edge of the common groups")


def test_random_circuits_of_equal_density_are_about_0():
    """Their plain shares differ as the graphs do."""
    corrected, covered, p_values = [], [], []
    for seed in range(25):
        masks = {
            name: gp.statistics.random_circuits(
                gp.EdgeMask.full(graph) - random_scores(graph).top(0.8), 1, match="size", seed=seed
            )[0]
            for name, graph in GRAPHS.items()
        }
        found = gp.compare_profiles(masks, ["source_depth", "target_depth"], draws=199)
        for difference in found.differences.values():
            for along in difference.axes.values():
                corrected.append(along.corrected)
                covered.append(along.low <= 0 <= along.high)
                p_values.append(along.p)
    assert len(corrected) == 25 * len(PAIRS) * 2
    assert abs(np.mean(corrected)) < 0.02
    assert np.mean(covered) >= 0.95
    # 300 tests that lean on each other (four circuits make six pairs): within twice the error.
    assert np.mean(np.array(p_values) <= 0.05) < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 300)
    assert 0.4 < np.mean(p_values) < 0.6


@pytest.mark.parametrize("pair", PAIRS)
def test_early_and_late_circuits_are_far_apart_and_early_ones_are_not(pair):
    generator = np.random.default_rng(5)
    early = [kept_with(GRAPHS[name], half(GRAPHS[name], False)) for name in pair]
    late = kept_with(GRAPHS[pair[1]], half(GRAPHS[pair[1]], True))
    alike = []
    for _ in range(5):
        masks = {"a": early[0](generator), "b": early[1](generator), "c": late(generator)}
        found = gp.compare_profiles(masks, ["target_depth"], draws=499)
        apart = found.differences["a", "c"].axes["target_depth"]
        assert apart.corrected > 0.4
        assert apart.low > 0.15
        assert apart.p <= 0.01
        alike.append(found.differences["a", "b"].axes["target_depth"])
    assert np.mean([along.corrected for along in alike]) < 0.1
    assert sum(along.low <= 0 for along in alike) >= 4


def test_no_part_of_the_depth_is_missing_in_a_shallow_graph():
    masks = {
        "shallow": random_scores(transformer_graph(2, 2)).top(0.3),
        "deep": random_scores(transformer_graph(12, 2)).top(0.3),
    }
    found = gp.compare_profiles(masks)
    assert found.bins == 2
    along = found.differences["shallow", "deep"].axes["source_depth"]
    assert along.groups == ("input", "0-50%", "50-100%")
    assert (along.covered_first, along.covered_second) == (1.0, 1.0)
    assert gp.compare_profiles(masks, bins=4).bins == 4


def test_too_few_draws_are_called_underpowered():
    masks = {"a": random_scores(GRAPHS["language"]).top(0.2), "b": random_scores(
        GRAPHS["deeper"]).top(0.2)}  # fmt: skip
    assert not any("underpowered" in r for r in gp.compare_profiles(masks).remarks)
    weak = gp.compare_profiles(masks, draws=20)
    assert any("underpowered along source_depth" in remark for remark in weak.remarks)
    with pytest.raises(InputError, match="draws must be at least 1"):
        gp.compare_profiles(masks, draws=0)


# ---------------------------------------------------------------- independent numbers


def test_on_one_graph_chance_deals_out_what_is_not_shared():
    """Against every way to deal it out."""
    graph = transformer_graph(2, 2)
    one, two = random_scores(graph, 1).top(6), random_scores(graph, 4).top(5)
    groups = edge_groups(graph, "kind")
    a, b = one.kept.numpy(), two.kept.numpy()
    apart, both = np.flatnonzero(a ^ b), np.bincount(groups.codes[a & b], minlength=5)
    ours = int((a & ~b).sum())
    assert ours > 2

    def distance(chosen):
        rest = np.setdiff1d(apart, chosen)
        counts = [both + np.bincount(groups.codes[list(c)], minlength=5) for c in (chosen, rest)]
        return np.abs(counts[0] / counts[0].sum() - counts[1] / counts[1].sum()).sum() / 2

    every = np.array([distance(np.array(chosen)) for chosen in combinations(apart, ours)])
    found = distance(np.flatnonzero(a & ~b))
    along = gp.circuit_profile(one, ["kind"]).difference(gp.circuit_profile(two, ["kind"]))
    along = along.axes["kind"]
    assert along.distance == pytest.approx(found)
    assert along.by_chance == pytest.approx(every.mean(), abs=5 * every.std() / np.sqrt(999))
    share = (every >= found - 1e-12).mean()
    assert along.p == pytest.approx(share, abs=5 * np.sqrt(share * (1 - share) / 999) + 0.002)
    assert along.graph_distance == 0
