"""The smallest CMD that annealing finds on the leaderboard's two-layer GPT-2 (110 edges).

Simulated annealing looks for the circuit of each size whose mean metric is nearest to the model's
*on the very prompts that judge it*, each size alone, from EAP-IG's circuit, a sequential ensemble's
and a random one. A ranking has it harder: its circuits lie inside each other and are found on other
prompts. It is a search, not a proof: better circuits may exist (the three starts differ).

2-core AMD EPYC virtual machine, 2026-11-29, 120 prompts, 480 others to find rankings on, one seed:

==============================  =====  ==================================================
circuits                        CMD    f of 2, 5, 11, 22, 55 edges
==============================  =====  ==================================================
EAP-IG, 5 points                .331
sequential ensemble for CPR     .268
annealed on what judges them    .249   .040, .054, .197, .536, .939
==============================  =====  ==================================================

Even so fitted, circuits have .75 of EAP-IG's CMD, not half of it. More starts from random circuits,
6,000 tries each, do not change that: six at 22 edges end at .39 to .524, five at 55 edges at .939
to .966 (with .966 CMD would be .238).
"""

import math
import random

import pytest
import torch

import graphprune as gp
from graphprune import quiet
from graphprune.evaluation.curve import area
from graphprune.study import make_case

TRIES = 3_000  # from each start, at each size
PROMPTS = 120


@pytest.mark.benchmark
@pytest.mark.timeout(0)
def test_circuits_fitted_to_their_judge():
    torch.set_num_threads(1)
    case = make_case(
        "trained-gpt2",
        "ioi",
        train=480,
        test=PROMPTS,
        seed=0,
        options={"layers": 2, "heads": 4, "weights": 1},
    )
    model, task = case.model, case.test
    with quiet():
        eap = gp.EAPIG(steps=5).score(model, case.train)
        optimiser = gp.MatryoshkaPruning(loss="task", sizes="curve", steps=300, batch_size=8)
        ensemble = gp.SequentialEnsemble(eap, optimiser).score(model, case.train)
        curves = [
            gp.faithfulness_curve(model, task, scores, rankings=["abs"])
            for scores in (eap, ensemble)
        ]
    measure = measured(model, task)
    best = []
    for size in gp.MIB_SIZES[:-1]:
        count = int(size * model.graph.num_edges)
        starts = [eap.top(count).values, ensemble.top(count).values, chance(model, count)]
        found = [annealed(measure, start > 0, seed) for seed, start in enumerate(starts)]
        best.append(min(found, key=lambda f: abs(1 - f)))
        print(
            f"{count:3d} edges: nearest {best[-1]:.3f} (of {', '.join(f'{f:.3f}' for f in found)})"
        )
    fitted = area(gp.MIB_SIZES, [abs(1 - f) for f in [*best, 1.0]])
    print(f"CMD: EAP-IG {curves[0].cmd:.3f}, sequential {curves[1].cmd:.3f}, annealed {fitted:.3f}")
    print(f"annealed / EAP-IG: {fitted / curves[0].cmd:.2f}")
    assert fitted <= min(curve.cmd for curve in curves) + 1e-3


def measured(model, task):
    """Faithfulness of a circuit on the task, each circuit run once."""
    (batch,) = task.batches(len(task))
    reference = model.reference(batch)
    known = {}

    def mean(outputs):
        return float(task.metric(outputs, batch, reference.full).double().mean())

    full, ablated = mean(reference.full), mean(reference.ablated)

    @torch.no_grad()
    def measure(kept):
        mask = gp.EdgeMask(model.graph, kept.float()).prune_dead_ends()
        if not mask.num_kept:
            return 0.0
        key = mask.values.numpy().tobytes()
        if key not in known:
            known[key] = (mean(model.run(batch, mask, reference)) - ablated) / (full - ablated)
        return known[key]

    return measure


def annealed(measure, kept, seed):
    """The value nearest to 1 of circuits of as many edges."""
    rng, value = random.Random(seed), measure(kept)
    best = value
    if not bool(kept.any()):
        return best
    for step in range(TRIES):
        temperature = 0.03 * (1 - step / TRIES) + 1e-4
        other = kept.clone()
        other[rng.choice(torch.nonzero(kept)[:, 0].tolist())] = False
        other[rng.choice(torch.nonzero(~kept)[:, 0].tolist())] = True
        seen = measure(other)
        gain = abs(1 - value) - abs(1 - seen)
        if gain >= 0 or rng.random() < math.exp(gain / temperature):
            kept, value = other, seen
            best = min(best, value, key=lambda f: abs(1 - f))
    return best


def chance(model, count):
    order = torch.randperm(model.graph.num_edges, generator=torch.Generator().manual_seed(0))
    return torch.zeros(model.graph.num_edges).index_fill(0, order[:count], 1.0)
