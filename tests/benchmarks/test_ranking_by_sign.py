"""Scores of a graph network ranked by size and by sign, under zero ablation and deletion.

The karate club's GCN, 5 seeds; exact patching on one half of the members that it was not trained
on, accuracy on the other half, and the reverse. Prints the table of the benchmarks page.
"""

import numpy as np
import pytest
import torch
from scipy.stats import t

import graphprune as gp
from graphprune.adapters.reference_models.graph_networks import karate_gcn
from graphprune.tasks import nodes

SEEDS, SIZES, RANKINGS = 5, (0.3, 0.5, 0.7), ("abs", "signed")


def held_out_accuracies(seed, ablation):
    """``[sizes, rankings]``: the mean over the two halves."""
    module, data = karate_gcn(seed)
    model = gp.wrap(module, data=data, tie=False)
    members = torch.nonzero(~data.train_mask)[:, 0]
    drawn = torch.randperm(len(members), generator=torch.Generator().manual_seed(seed))
    halves = members[drawn].split(len(members) // 2)
    found = np.zeros((2, len(SIZES), len(RANKINGS)))
    for number, (seen, unseen) in enumerate((halves, halves[::-1])):
        scores = gp.ExactPatching(ablation=ablation).score(model, nodes(data, at=seen))
        for i, size in enumerate(SIZES):
            for j, by in enumerate(RANKINGS):
                mask = scores.top(size, by)
                report = gp.evaluate(model, nodes(data, at=unseen), mask)
                found[number, i, j] = report["top1_accuracy"]
                if ablation == "delete":
                    small = module(data.x, data.edge_index[:, mask.kept]).argmax(1)
                    right = (small == data.y)[unseen].float().mean()
                    assert found[number, i, j] == pytest.approx(float(right))
    return found.mean(0)


@pytest.mark.benchmark
@pytest.mark.timeout(0)
def test_deletion_scores_are_ranked_by_sign():
    means = {}
    for ablation in ("delete", "zero"):
        seeds = np.stack([held_out_accuracies(seed, ablation) for seed in range(SEEDS)])
        half = t.ppf(0.975, SEEDS - 1) * seeds.std(0, ddof=1) / SEEDS**0.5
        means[ablation] = seeds.mean(0)
        for i, size in enumerate(SIZES):
            for j, by in enumerate(RANKINGS):
                print(f"{ablation} {size} {by}: {means[ablation][i, j]:.3f} +- {half[i, j]:.3f}")
    assert bool((means["delete"][:, 1] > means["delete"][:, 0] + 0.1).all())
