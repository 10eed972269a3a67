"""Ground truth: a circuit planted by training; AUROC against it."""

from __future__ import annotations

import pytest
import torch
from support.oracle import oracle_logits
from support.planted import CIRCUIT, edge_names, planted, planted_task, prompts, train

import graphprune as gp


@pytest.fixture(scope="module")
def case():
    model = gp.wrap(planted())
    return model, planted_task(), gp.EdgeMask.from_edges(model.graph, CIRCUIT)


def answers(mask, model):
    """Answers at the end of unseen prompts under a mask, by the oracle's own forward pass."""
    clean, corrupt = prompts(48, torch.Generator().manual_seed(99))
    split = {tuple(name.split("->")): value for name, value in mask.items()}
    with torch.no_grad():
        logits = oracle_logits(model, clean, split, corrupt_ids=corrupt)[:, -1]
    return logits, clean[:, 0], corrupt[:, 0]


@pytest.mark.parametrize("make", [planted, pytest.param(train, marks=pytest.mark.slow)])
def test_the_planted_circuit_is_the_truth(make):
    """Shown by an oracle that shares no code with training or with the library's runs."""
    everything = dict.fromkeys(edge_names(), 1.0)
    model = make()
    full, said, other = answers(everything, model)
    assert (full.argmax(-1) == said).all()
    inside, _, _ = answers({name: float(name in CIRCUIT) for name in edge_names()}, model)
    assert (inside.argmax(-1) == said).all()
    gap = (inside.softmax(-1) - full.softmax(-1)).abs().max()
    assert float(gap) < 0.01  # the other 41 edges do nothing
    for edge in CIRCUIT:
        for rest in (1.0, 0.0):
            cut = {n: 0.0 if n == edge else 1.0 if n in CIRCUIT else rest for n in everything}
            logits, _, _ = answers(cut, model)
            assert (logits.argmax(-1) == other).all(), edge  # each of the five is needed
    outside, _, _ = answers({name: float(name not in CIRCUIT) for name in edge_names()}, model)
    assert (outside.argmax(-1) == other).all()


METHODS = [
    gp.ExactPatching(),
    gp.EAP(),
    gp.EAPIG(),
    gp.IntegratedMaskGradient(),
    gp.ParallelEnsemble(normalize="rank"),
    gp.SequentialEnsemble(gp.EAPIG(), gp.EdgePruning(size=5, steps=60)),
    gp.HybridEnsemble(
        ["eap", "eap-ig", gp.SequentialEnsemble("eap-ig", gp.EdgePruning(size=5, steps=60))]
    ),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_methods_find_what_was_planted(case, method):
    model, task, truth = case
    scores = method.score(model, task)
    assert gp.auroc(scores, truth) > 0.97
    assert gp.mib_auroc(scores, truth) > 0.97
    assert gp.recovery(scores.connected(5), truth).exact
    assert gp.recovery(scores.ilp(5), truth).exact
    if method in METHODS[:4]:  # ranks are no amounts, of which influence is made
        assert gp.recovery(scores.influence().connected(5), truth).exact


def test_chance_does_not(case):
    model, task, truth = case
    areas = [gp.auroc(gp.Random(seed=s).score(model, task), truth) for s in range(20)]
    assert 0.35 < sum(areas) / 20 < 0.65


def test_masks_find_what_was_planted(case):
    model, task, truth = case
    assert gp.EdgePruning(size=5, steps=100).prune(model, task) == truth
    assert gp.polish(model, task, gp.Random().score(model, task), 5, pool=46 / 5) == truth
    assert gp.ACDC(tau=0.05).prune(model, task).prune_dead_ends() == truth
