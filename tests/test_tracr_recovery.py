"""Known circuits recovered: compiled programs, zero ablation, every input of every length.

Of each program it is asked that the pruned model gives the full model's output on every input
(numbers within 1e-3), that the removal of any kept edge changes some output, and, where the true
circuit is a smallest one, that the kept edges are the true ones: already of the optimised mask,
before the exact polish.

2026-11-25, 200 steps: all three seeds tried of all eleven programs, before the polish. The slow
test asks ten seeds.
"""

import pytest
from support.programs import PROGRAMS, cases, program

import graphprune as gp
from graphprune.study import Study

pytest.importorskip("tracr", reason="Tracr is not installed: pip install 'graphprune[tracr]'")

# On dyck and shuffle_dyck a smallest circuit is not unique, and smaller than the truth.
SMALL = [name for name in PROGRAMS if name not in ("dyck", "shuffle_dyck")]


def recovered(name, seed, steps=200):
    model, task = program(name)
    method = gp.EdgePruning(
        sparsity="minimal", ablation="zero", steps=steps, batch_size=64, seed=seed
    )
    return model, task, method.fit(model, task)


# One of numbers, and one of categories that compiles in a moment.
@pytest.mark.parametrize("name", cases(SMALL, ["frac_prevs", "shift"]))
def test_the_optimised_mask_is_the_true_circuit(name):
    model, task, fit = recovered(name, seed=0)
    truth = gp.adapters.tracr_truth(model)
    assert gp.equivalent(model, task, fit.mask, ablation="zero")
    assert gp.is_minimal(model, task, fit.mask, ablation="zero")
    assert fit.mask == truth
    assert gp.recovery(fit.mask, truth).exact
    assert fit.notes["optimised_edges"] == truth.num_kept, "the polish had to shorten it"
    assert fit.notes["optimised_mask"] == truth.edges()


@pytest.mark.parametrize(
    "name", cases(["length", "frac_prevs", "reverse"], ["length", "frac_prevs"])
)
def test_exact_patching_ranks_the_true_edges_first(name):
    model, task = program(name)
    truth = gp.adapters.tracr_truth(model)
    exact = gp.ExactPatching(ablation="zero").score(model, task)
    # No cut of one edge outside the truth changes anything; each inside it does.
    inside, outside = exact.values[truth.kept].abs(), exact.values[~truth.kept].abs()
    assert float(inside.min()) > 10 * float(outside.max())
    assert gp.auroc(exact, truth) == 1.0
    chance = sum(gp.auroc(gp.Random(seed=s).score(model, task), truth) for s in range(20)) / 20
    assert chance < 0.7 < gp.mib_auroc(exact, truth)


def test_a_programs_truth_gives_a_study_its_auroc(tmp_path):
    study = Study.from_dict(
        {
            "systems": {"programs": {"kind": "tracr", "tasks": ["reverse"]}},
            "methods": {"EAP": {"method": "eap"}},
            "seeds": [0],
            "train": 20,
            "test": 20,
        }
    )
    results = study.run(tmp_path)
    assert results.counts == {"done": 1}, results.failures()
    assert 0.5 < results.summary()["auroc"].item() <= 1.0


@pytest.mark.slow
def test_the_published_programs_with_other_seeds():
    """Edge Pruning's two: reverse (94 edges) and xproportion (32 edges)."""
    for name, edges in (("reverse", 94), ("frac_prevs", 32)):
        successes = 0
        for seed in (1, 2):
            model, _, fit = recovered(name, seed)
            successes += fit.mask == gp.adapters.tracr_truth(model)
        assert model.graph.num_edges == edges
        assert successes == 2, f"{name}: {successes} of 2 seeds"


@pytest.mark.slow
def test_soft_gates_have_no_gradient_where_only_a_whole_cut_tells():
    """Why minimal circuits use hard gates: on this program soft ones learn nothing."""
    model, task = program("count_less_freq")
    options = {"sparsity": "minimal", "ablation": "zero", "steps": 200, "batch_size": 64}
    soft = gp.EdgePruning(gates="soft", **options).fit(model, task)
    hard = gp.EdgePruning(**options).fit(model, task)
    assert hard.notes["optimised_edges"] < soft.notes["optimised_edges"]
    assert gp.is_minimal(model, task, soft.mask, ablation="zero")  # the polish saves it


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_how_many_seeds_succeed(capsys):
    for name in SMALL:
        optimised = polished = 0
        for seed in range(10):
            model, _, fit = recovered(name, seed)
            truth = gp.adapters.tracr_truth(model)
            optimised += fit.notes["optimised_mask"] == truth.edges()
            polished += fit.mask == truth
        with capsys.disabled():
            print(f"\n{name}: optimised {optimised}, polished {polished} of 10 seeds", end="")
        assert polished == 10


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_dyck_is_recovered_with_fewer_edges_than_its_truth(capsys):
    model, task, fit = recovered("dyck", seed=0, steps=400)
    greedy = gp.minimal_circuit(model, task, gp.EdgeMask.full(model.graph), ablation="zero")
    with capsys.disabled():
        print(f"\ndyck: {fit.notes}, greedy deletion {greedy.num_kept}")
    assert gp.is_minimal(model, task, fit.mask, ablation="zero")
    assert fit.mask.num_kept <= greedy.num_kept
