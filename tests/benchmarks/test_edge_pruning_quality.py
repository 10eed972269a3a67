"""Edge pruning in our form beside the published one, on a small GPT-2 trained on the IOI task.

Same prompts, steps, batch size and number of edges (98 % of 1,519 removed); KL to the full model on
held-out prompts, over five seeds, with a bootstrap interval of the ratio of means; overlap of the
circuits of different seeds. The published variant misses the sparsity it aims at, so both are cut
to exactly the same number of edges. And the default variant's KL and time on 200, 2,000 and 100,000
prompts at equal steps.

Figures of 2026-11-25, virtual machine with 2 AMD EPYC cores, one thread, torch 2.13.0 (CPU):

- 400 steps: KL 5.37 for the default form, 7.86 for the published one: 0.68 (0.66 to 0.71);
- 1,000 steps: 5.31 (pairwise IoU .63, same answer .66, 74 CPU s a run) and 7.18 (.50, .51, 72 s;
  7.19 where it aims at 1.05): 0.74 (0.73 to 0.74), above the 0.7 that was aimed at. All settings
  of the default form that were tried end between 5.3 and 5.6: 30 edges are too few for this
  mechanism.
- 200, 2,000 and 100,000 prompts, 300 steps: KL 5.19, 5.25, 5.33; 25.8, 27.0 and 27.8 CPU s with
  references never kept (flat within 8 %), 19.6, 22.8 and 28.8 where they are kept if that pays.
"""

import itertools
import time

import numpy as np
import pytest

import graphprune as gp
from graphprune.adapters.reference_models.language import trained_ioi, trained_task

pytestmark = [pytest.mark.benchmark, pytest.mark.slow, pytest.mark.timeout(7200)]

SEEDS = range(5)


@pytest.fixture(scope="module")
def case():
    module, tokenizer = trained_ioi()
    return gp.wrap(module), tokenizer, trained_task(tokenizer, 400, seed=7)


def judged(model, task, mask):
    report = gp.evaluate(model, task, mask, metrics=["kl", "exact_match"])
    return report["kl"], report["exact_match"]


def interval(ours, theirs, draws=10_000):
    """95 % bootstrap interval of mean(ours) / mean(theirs) over seeds."""
    generator = np.random.default_rng(0)
    pick = generator.integers(len(ours), size=(draws, len(ours)))
    ratios = np.asarray(ours)[pick].mean(1) / np.asarray(theirs)[pick].mean(1)
    return np.quantile(ratios, [0.025, 0.975])


MISSED = pytest.mark.xfail(reason="measured 0.74: 30 edges are too few for either", strict=True)


@pytest.mark.parametrize("steps", [400, pytest.param(1000, marks=MISSED)])
def test_kl_against_the_published_variant(case, capsys, steps):
    model, tokenizer, held_out = case
    found = {"default": [], "paper": [], "paper, target 1.05": []}
    masks = {name: [] for name in found}
    seconds = dict.fromkeys(found, 0.0)
    for seed in SEEDS:
        find = trained_task(tokenizer, 200, seed=100 + seed)
        common = {"sparsity": 0.98, "steps": steps, "batch_size": 32, "seed": seed}
        for name, method in {
            "default": gp.EdgePruning(**common),
            "paper": gp.EdgePruning(variant="paper", node_gates=True, **common),
            "paper, target 1.05": gp.EdgePruning(
                variant="paper", node_gates=True, target=1.05, **common
            ),
        }.items():
            start = time.process_time()
            masks[name].append(method.prune(model, find))
            seconds[name] += time.process_time() - start
            found[name].append(judged(model, held_out, masks[name][-1]))
    kl = {name: [k for k, _ in values] for name, values in found.items()}
    with capsys.disabled():
        print()
        for name in found:
            pairs = itertools.combinations(masks[name], 2)
            overlap = np.mean([a.jaccard(b) for a, b in pairs])
            match = np.mean([m for _, m in found[name]])
            print(
                f"{name:20s} KL {np.mean(kl[name]):.3f} ({', '.join(f'{k:.2f}' for k in kl[name])})"
                f"  same answer {match:.3f}  pairwise IoU {overlap:.2f}"
                f"  {seconds[name] / len(SEEDS):.0f} CPU s a run"
            )
        for name in list(found)[1:]:
            low, high = interval(kl["default"], kl[name])
            ratio = np.mean(kl["default"]) / np.mean(kl[name])
            print(f"KL of default over {name}: {ratio:.2f} ({low:.2f} to {high:.2f})")
    best = min(np.mean(kl[name]) for name in list(found)[1:])
    assert np.mean(kl["default"]) <= 0.7 * best


def test_data_size(case, capsys):
    model, tokenizer, held_out = case
    rows = []
    for size in (200, 2_000, 100_000):
        find = trained_task(tokenizer, size, seed=1000)
        for cache in (0, None):
            options = {"sparsity": 0.98, "steps": 300, "batch_size": 32, "refine": 0}
            method = gp.EdgePruning(cache=cache, **options)
            start = time.process_time()
            fit = method.fit(model, find)
            rows.append((size, cache, time.process_time() - start, fit))
    with capsys.disabled():
        print()
        for size, cache, seconds, fit in rows:
            kl, match = judged(model, held_out, fit.mask)
            kept = "kept where it pays" if cache is None else "never kept"
            print(
                f"{size:7,d} prompts, references {kept} ({fit.notes['cached']}): "
                f"KL {kl:.3f}, same answer {match:.3f}, {seconds:.1f} CPU s"
            )
    flat = [seconds for _, cache, seconds, _ in rows if cache == 0]
    assert max(flat) <= 1.1 * min(flat)
