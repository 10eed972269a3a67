"""ACDC, EAP-IG and edge pruning on a small trained GPT-2: edges for equal held-out KL, and time.

Circuits are found on 200 held-in prompts and judged on 400 the model was never trained on. ACDC's
thresholds give its sizes; edge pruning prunes to the same sizes (400 steps each, warm start as by
default); EAP-IG (5 steps, on the logit difference or on KL, whichever is better at a
size) is interpolated between 25 sizes to say how many edges it needs to reach the KL of each ACDC
circuit, and of each pruned one. One seed, one thread.

2-core AMD EPYC virtual machine, 2026-11-25, 1,519 edges, other work beside it (CPU seconds):

=====  =====  =====  ============  ===================  ============
tau    edges  KL     EAP-IG needs  edge pruning's KL    EAP-IG needs
=====  =====  =====  ============  ===================  ============
3e-4   414    0.120  498           0.054                559
1e-3   378    0.242  439           0.070                528
3e-3   329    0.449  391           0.173                472
1e-2   263    1.048  302           0.678                350
3e-2   160    3.315  165           2.866                182
=====  =====  =====  ============  ===================  ============

EAP-IG takes 1 s, ACDC's five thresholds 159 s together, edge pruning 34 s a size.
"""

import dataclasses
import time

import numpy as np
import pytest
import torch

import graphprune as gp
from graphprune.adapters.reference_models.language import trained_ioi, trained_task

TAUS = [3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
SIZES = np.unique(np.geomspace(10, 1484, 25).astype(int)).tolist()


def _edges_needed(curve, kl):
    """The least size of the curve whose KL, between sizes on a straight line in logs, is ``kl``."""
    sizes, values = np.log([s for s, _ in curve]), np.array([v for _, v in curve])
    for at in range(1, len(curve)):
        if values[at] <= kl:
            if values[at - 1] <= kl:
                return float(np.exp(sizes[at - 1]))
            share = (values[at - 1] - kl) / (values[at - 1] - values[at])
            return float(np.exp(sizes[at - 1] + share * (sizes[at] - sizes[at - 1])))
    return float("inf")


@pytest.mark.benchmark
@pytest.mark.timeout(0)
def test_edges_at_equal_kl():
    torch.set_num_threads(1)
    module, tokenizer = trained_ioi()
    model = gp.wrap(module)
    find = trained_task(tokenizer, 200, 5, held_out=False)
    judge = trained_task(tokenizer, 400, 6)

    def kl(mask):
        return gp.evaluate(model, judge, mask, metrics=["kl"]).to_dict()["kl"]

    print(f"\n{model.graph.num_edges} edges")
    spent = {}
    found = []
    for metric in ("logit_diff", "kl"):
        start = time.process_time()
        scores = gp.EAPIG(steps=5).score(model, dataclasses.replace(find, metric=metric))
        spent[f"EAP-IG on {metric}"] = time.process_time() - start
        found.append([kl(scores.top(size, by="abs")) for size in SIZES])
    curve = list(zip(SIZES, np.min(found, axis=0), strict=True))
    start = time.process_time()
    swept = gp.ACDC().sweep(model, find, TAUS)
    spent["ACDC, five thresholds"] = time.process_time() - start
    pruned_seconds = []
    wins = []
    for tau, found in swept.items():
        edges = found.mask.num_kept
        own = kl(found.mask)
        start = time.process_time()
        pruned = gp.EdgePruning(sparsity=1 - edges / model.graph.num_edges, steps=400).prune(
            model, find
        )
        pruned_seconds.append(time.process_time() - start)
        best = kl(pruned)
        print(
            f"tau {tau:g}: {edges} edges, KL {own:.3f}; EAP-IG needs "
            f"{_edges_needed(curve, own):.0f}; edge pruning's {pruned.num_kept}: {best:.3f}, for "
            f"which EAP-IG needs {_edges_needed(curve, best):.0f}"
        )
        wins.append(best <= own)
    spent["edge pruning, one size"] = sum(pruned_seconds) / len(pruned_seconds)
    for name, seconds in spent.items():
        print(f"{name}: {seconds:.0f} s")
    assert all(np.isfinite(v) for _, v in curve)
    assert any(wins)
