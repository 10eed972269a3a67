"""The smallest CMD any ranking can have on the leaderboard's compiled programs, by trying all.

Of a program's edges few have any gradient, at twelve masks. That the others change nothing is
checked beside every subset of those that have one: none of them kept, all of them, and a random
half. The best subset of at most n edges, each size alone, then bounds any ranking's circuit of n.

2026-11-29, three seeds:

=======  =====  ============  ================  ==========  ======
program  edges  with effect   best f of 2, 5    floor       EAP-IG
=======  =====  ============  ================  ==========  ======
reverse     94  2             1.0, 1.0          .034        .034
sort        59  7             .11-.14, .66-.67  .094, .095  .146
=======  =====  ============  ================  ==========  ======

Half of EAP-IG's CMD is below both floors.
"""

import itertools

import pytest
import torch

import graphprune as gp
from graphprune import quiet
from graphprune.evaluation.curve import area
from graphprune.study import make_case

EFFECT = 1e-9


@pytest.mark.benchmark
@pytest.mark.timeout(0)
@pytest.mark.parametrize("program", ["reverse", "sort"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_ranking_is_below(program, seed):
    case = make_case("tracr", program, train=40, test=40, seed=seed, options={})
    model, task = case.model, case.test
    (batch,) = task.batches(len(task))
    reference = model.reference(batch)
    live = with_effect(model, batch, reference)
    assert bool(case.truth.kept[live].all()), "an edge outside the known circuit has an effect"

    def mean(outputs):
        return float(task.metric(outputs, batch, reference.full).double().mean())

    full, ablated = mean(reference.full), mean(reference.ablated)

    @torch.no_grad()
    def f(kept):
        return (mean(model.run(batch, kept.float(), reference)) - ablated) / (full - ablated)

    generator = torch.Generator().manual_seed(seed)
    nearest = [0.0] * (len(live) + 1)
    for count in range(len(live) + 1):
        for some in itertools.combinations(live.tolist(), count):
            kept = torch.zeros(model.graph.num_edges, dtype=torch.bool)
            kept[list(some)] = True
            for share in (0.5, 1.0):  # of the edges without a gradient
                more = torch.rand(len(kept), generator=generator) < share
                more[live] = kept[live]
                assert f(kept) == pytest.approx(f(more), abs=1e-6)
            nearest[count] = min(nearest[count], f(kept), key=lambda value: abs(1 - value))
        nearest[count] = min(nearest[: count + 1], key=lambda value: abs(1 - value))
    counts = [min(int(size * model.graph.num_edges), len(live)) for size in gp.MIB_SIZES]
    floor = area(gp.MIB_SIZES, [abs(1 - nearest[count]) for count in counts])
    with quiet():
        scores = gp.EAPIG(steps=5).score(model, case.train)
        found = gp.faithfulness_curve(model, task, scores, rankings=["abs"]).cmd
    print(f"{program}, seed {seed}: {len(live)} edges with an effect, floor {floor:.3f}, "
          f"EAP-IG {found:.3f}")  # fmt: skip
    assert found / 2 < floor <= found + 1e-6


def with_effect(model, batch, reference):
    """Edges with a gradient at some of twelve masks, of a random sum of outputs."""
    generator = torch.Generator().manual_seed(0)
    most = torch.zeros(model.graph.num_edges)
    for number in range(12):
        mask = torch.ones_like(most) if number == 0 else torch.rand(len(most), generator=generator)
        mask.requires_grad_(True)
        outputs = model.run(batch, mask, reference)
        weights = torch.randn(outputs.shape, generator=generator)
        (gradient,) = torch.autograd.grad((outputs * weights).sum(), mask)
        most = torch.maximum(most, gradient.abs())
    return torch.nonzero(most > EFFECT)[:, 0]
