"""Decisions of ACDC that low precision changes, over ten trained models and four thresholds.

Ten small GPT-2s (five of two layers, five of three, four heads each) learn the IOI task from other
seeds. On each, ACDC in float32 decides 64 prompts' edges at each threshold; PAHQ, RTN-Q and bf16
do so again. A decision has changed where an edge is kept by one and not by the other. Time is the
ratio of processor time to ACDC's: fp8 is emulated here, so that PAHQ's shows what emulation costs.

    pytest -m benchmark tests/benchmarks/test_pahq_decisions.py -s

Not run to its end yet.
"""

import time

import numpy as np
import pytest
import torch

import graphprune as gp
from graphprune.adapters.reference_models.language import (
    TrainingSettings,
    trained_ioi,
    trained_task,
)
from graphprune.util.numbers import bootstrap_interval

pytestmark = [pytest.mark.benchmark, pytest.mark.slow, pytest.mark.timeout(7200)]

MODELS = [(layers, seed) for layers in (2, 3) for seed in range(5)]
TAUS = [1e-3, 5e-3, 1e-2, 5e-2]
BF16 = gp.PrecisionPolicy({"head": "bf16", "mlp": "bf16"})
METHODS = {
    "ACDC": gp.ACDC(recheck="off"),
    "PAHQ": gp.PAHQ(),
    "RTN-Q, 8 bits": gp.RTNQ(),
    "RTN-Q, 4 bits": gp.RTNQ(bits=4),
    "bf16 everywhere": gp.PAHQ(policy=BF16, raised=()),
    "PAHQ, rechecked": gp.PAHQ(recheck="same"),
}


def test_decisions_changed(capsys):
    changed = {name: [] for name in METHODS}  # shares of all edges: [model][threshold]
    seconds = {name: [] for name in METHODS}
    kept = []
    for layers, seed in MODELS:
        settings = TrainingSettings(layers=layers, heads=4, accuracy=0.9)
        module, tokenizer = trained_ioi(seed, settings)
        model = gp.wrap(module)
        task = trained_task(tokenizer, 64, seed=500 + seed, held_out=False)
        truth = {}
        for name, method in METHODS.items():
            start = time.process_time()
            found = method.sweep(model, task, TAUS)
            seconds[name].append(time.process_time() - start)
            truth = truth or found
            apart = [(found[t].mask.values != truth[t].mask.values).float().mean() for t in TAUS]
            changed[name].append([float(share) for share in apart])
        kept.append([truth[t].mask.num_kept / model.graph.num_edges for t in TAUS])
    with capsys.disabled():
        print("\nACDC keeps, mean by threshold:", [f"{k:.0%}" for k in np.mean(kept, 0)])
        for name in METHODS:
            shares = 100 * np.array(changed[name])
            low, high = bootstrap_interval(torch.from_numpy(shares.mean(1)))
            ratios = np.array(seconds[name]) / np.array(seconds["ACDC"])
            by_tau = ", ".join(f"{s:.2f}" for s in shares.mean(0))
            print(
                f"{name:16s} changed {shares.mean():.2f} % ({low:.2f} to {high:.2f}), by threshold "
                f"{by_tau}; at most {shares.max():.2f} %; CPU time x{np.median(ratios):.2f} "
                f"({ratios.min():.2f} to {ratios.max():.2f})"
            )
    assert np.max(changed["PAHQ, rechecked"]) == 0
