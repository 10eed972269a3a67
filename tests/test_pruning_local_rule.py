"""Pruning inside the published local learning rule, after every update of a node."""

import itertools

import numpy as np
import pytest
import torch

import graphprune as gp
from graphprune.adapters import ARGNN
from graphprune.adapters.gnn import DeltaRule

METHODS = ("damp", "preserve", "gap", "magnitude", "gradient", "random")


def a_gate_network(seed=0, hidden=3):
    nodes = 3 + hidden
    pairs = [(u, v) for v in range(2, nodes) for u in range(nodes) if u != v]
    generator = np.random.default_rng(seed)
    return ARGNN(
        torch.tensor(pairs).T, nodes, inputs=[0, 1], outputs=[nodes - 1], activation="sigmoid",
        update="sequential", weight=torch.tensor(generator.uniform(-1, 1, len(pairs))).float(),
    )  # fmt: skip


SAMPLES = list(itertools.product((0, 1), (0, 1)))


def test_the_published_rule_cuts_after_every_update_of_a_node():
    """Against the rule written out by hand in the learner's own loop: LAPACK's places as nodes."""
    cut = []

    def by_hand(rule, node):
        star = np.zeros_like(rule.weight)
        star[node], star[:, node] = rule.keep[node], rule.keep[:, node]
        weighted = star * rule.weight
        values = np.linalg.eigvals(np.diag(weighted.sum(0) + weighted.sum(1)) - weighted)
        imaginary = values.imag
        if (imaginary == 0).all() or -imaginary.max() not in imaginary:
            return
        pair = int(imaginary.argmin()), int(imaginary.argmax())
        if rule.keep[pair]:
            rule.keep[pair] = False
            cut.append(pair)

    rule = DeltaRule(a_gate_network(), seed=1, after_update=by_hand)
    for a, b in SAMPLES * 10:
        rule.learn([a, b], [a ^ b])
    other = DeltaRule(a_gate_network(), seed=1)
    pruning = gp.DynamicPruning("damp", variant="paper", every="update")

    def learn_and_prune():
        with pruning.on(other):
            for a, b in SAMPLES * 10:
                other.learn([a, b], [a ^ b])

    with pytest.warns(UserWarning, match="place in LAPACK's list"):
        learn_and_prune()
    assert other.after_update is None
    assert cut
    assert np.array_equal(rule.keep, other.keep)
    np.testing.assert_array_equal(rule.weight, other.weight)
    assert len(pruning.history) == len(cut)
    written = other.write()
    assert torch.equal(written.edge_keep, pruning.mask.kept)


@pytest.mark.parametrize("method", [*METHODS, "local"])
def test_every_criterion_prunes_inside_the_local_rule(method):
    rule = DeltaRule(a_gate_network(), seed=1)
    edges = len(rule.network.edge_keep)
    updates = 4 * 10 * 10 * len(SAMPLES)
    pruning = gp.DynamicPruning(
        method, 0.7, every="update", interval=20, end=updates // 2, regrow=0.1
    )
    with pruning.on(rule):
        for a, b in SAMPLES * 10:
            rule.learn([a, b], [a | b])
    assert rule.after_update is None
    left = int(rule.keep.sum())
    if method == "local":  # where no star turns there is nothing to cut
        assert int(0.7 * edges) <= left <= edges
    else:
        assert left == int(0.7 * edges)


def test_updates_need_a_rule_that_learns_by_node():
    with pytest.raises(gp.InputError, match="learns at every update of a node"):
        gp.DynamicPruning("damp", every="update").on(a_gate_network()).__enter__()
    with pytest.raises(gp.InputError, match="after every update of a node"):
        gp.DynamicPruning("magnitude", variant="paper", every="update")
    with pytest.raises(gp.InputError, match="variant='paper', every='update'"):
        gp.DynamicPruning("damp", variant="paper", every="step")
    with pytest.raises(gp.InputError, match="known: damp, preserve"):
        gp.DynamicPruning("size")
    with pytest.raises(gp.InputError, match=r"write: with gp\.DynamicPruning"):
        gp.DynamicPruning(3)
