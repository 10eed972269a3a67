"""A setting that was said is never overwritten; ``None`` is not said, everywhere."""

import dataclasses

import pytest
import torch
from support.toy import Toy, ToyExamples

import graphprune as gp
from graphprune import method_names
from graphprune.study import StudyMethod

CF, ZERO = "counterfactual", "zero"
PRUNING = {"sparsity": 0.5, "steps": 3}


def a_case():
    return Toy(seed=3), gp.Task(ToyExamples(), "logit_diff", batch_size=4)


def same(one, other):
    return torch.equal(one.values, other.values)


@pytest.mark.parametrize("name", method_names())
def test_inherited_settings_are_unsaid_by_default(name):
    defaults = {f.name: f.default for f in dataclasses.fields(gp.make_method(name))}
    for setting in ("ablation", "batch_size", "seed"):
        assert defaults.get(setting) is None, setting


@pytest.mark.parametrize("group", [gp.ParallelEnsemble, gp.CalibratedRanking])
def test_an_ablation_that_was_said_is_the_members_own(group):
    model, task = a_case()
    plain = {said: gp.EAP(ablation=said).score(model, task) for said in (CF, ZERO)}
    assert not same(*plain.values())
    if group is gp.CalibratedRanking:
        group = lambda scorers, **options: gp.CalibratedRanking(  # noqa: E731
            scorers[0], rounds=0, **options
        )
        ranks = {k: v.values.abs().argsort() for k, v in plain.items()}
        found = {
            said: group([gp.EAP(ablation=said)], ablation=ZERO).score(model, task).values.argsort()
            for said in (CF, ZERO, None)
        }
        wanted = {CF: ranks[CF], ZERO: ranks[ZERO], None: ranks[ZERO]}
        assert all(found[k].equal(wanted[k]) for k in found)
        return
    assert same(group([gp.EAP(ablation=CF)], ablation=ZERO).score(model, task), plain[CF])
    assert same(group([gp.EAP(ablation=ZERO)], ablation=CF).score(model, task), plain[ZERO])
    assert same(group([gp.EAP()], ablation=ZERO).score(model, task), plain[ZERO])
    assert same(group([gp.EAP()]).score(model, task), plain[CF])
    nested = group([gp.ParallelEnsemble([gp.EAP()], ablation=CF)], ablation=ZERO)
    assert same(nested.score(model, task), plain[CF])


def test_a_seed_of_zero_that_was_said_is_the_members_own():
    model, task = a_case()
    drawn = {seed: gp.Random(seed=seed).score(model, task) for seed in (0, 5)}
    assert same(gp.Random().score(model, task), drawn[0])
    group = gp.ParallelEnsemble([gp.Random(seed=0)], seed=5)
    assert same(group.score(model, task), drawn[0])
    assert same(gp.ParallelEnsemble([gp.Random()], seed=5).score(model, task), drawn[5])
    assert same(gp.ParallelEnsemble([gp.Random(seed=5)], seed=0).score(model, task), drawn[5])


def test_a_sequential_ensembles_parts_keep_what_they_say():
    model, task = a_case()
    pruning = gp.EdgePruning(**PRUNING)
    ensemble = gp.SequentialEnsemble(gp.EAP(ablation=CF), pruning, ablation=ZERO, seed=5)
    scores = gp.EAP(ablation=CF).score(model, task)
    said = dataclasses.replace(pruning, ablation=ZERO, seed=5)
    by_hand = gp.SequentialEnsemble(scores, said)
    assert same(ensemble.fit(model, task).scores, by_hand.fit(model, task).scores)
    kept = gp.SequentialEnsemble(scores, dataclasses.replace(pruning, seed=0), seed=5)
    zero = gp.SequentialEnsemble(scores, pruning)
    gates = [
        e.fit(model, task).values["gates"]
        for e in (kept, zero, gp.SequentialEnsemble(scores, pruning, seed=5))
    ]
    assert gates[0].equal(gates[1])
    assert not gates[0].equal(gates[2])
    with pytest.raises(gp.InputError, match=r"'zero', its optimiser's 'counterfactual'"):
        gp.SequentialEnsemble(optimiser=dataclasses.replace(pruning, ablation=CF), ablation=ZERO)
    # An optimiser's own holds for a scorer that says none, as ever.
    whole = gp.SequentialEnsemble(gp.EAP(), dataclasses.replace(pruning, ablation=ZERO))
    zeroed = gp.SequentialEnsemble(
        gp.EAP(ablation=ZERO), dataclasses.replace(pruning, ablation=ZERO)
    )
    assert same(whole.fit(model, task).scores, zeroed.fit(model, task).scores)


def test_a_warm_starts_scorer_takes_what_it_does_not_say():
    model, task = a_case()

    def gates(scorer):
        method = gp.EdgePruning(**PRUNING, ablation=ZERO, warm_start=scorer)
        return method.fit(model, task).values["gates"]

    assert gates(gp.EAP()).equal(gates(gp.EAP(ablation=ZERO)))
    assert gates("eap").equal(gates(gp.EAP(ablation=ZERO)))
    assert not gates(gp.EAP(ablation=CF)).equal(gates(gp.EAP(ablation=ZERO)))


def test_records_hold_what_was_used():
    """Provenance of everything unsaid, members of members included."""
    model, _ = a_case()
    mask = gp.EdgeMask.full(model.graph)

    def settings(method):
        return gp.Circuit.from_mask(mask, model=model, method=method).provenance["method"][
            "settings"
        ]

    circuit = gp.Circuit.from_mask(mask, method=gp.Random())
    assert (circuit.ablation, circuit.provenance["seed"]) == (CF, 0)
    assert gp.EAP().ablation is None
    pruning = gp.EdgePruning(**PRUNING)
    inner = gp.SequentialEnsemble(gp.EAP(), pruning)
    group = gp.HybridEnsemble([gp.EAP(ablation=CF), gp.Random(), inner], ablation=ZERO, seed=7)
    found = settings(group)
    eap, random, sequential = found["scorers"]
    assert (found["ablation"], found["seed"], eap["ablation"]) == (ZERO, 7, CF)
    assert (random["ablation"], random["seed"]) == (ZERO, 7)
    assert (sequential["ablation"], sequential["seed"]) == (ZERO, 7)
    assert (sequential["scorer"]["ablation"], sequential["optimiser"]["seed"]) == (ZERO, 7)
    assert sequential["optimiser"]["ablation"] == ZERO
    assert settings(gp.CalibratedRanking(seed=2))["scorer"]["ablation"] == CF
    assert settings(gp.ACDC(tau=0.1))["ablation"] == CF
    assert (gp.EAP().label, gp.EAP(ablation=CF).label) == ("EAP", "EAP(ablation='counterfactual')")


@pytest.mark.parametrize("make", [lambda **s: gp.EdgePruning(**PRUNING, **s), gp.ACDC])
def test_a_run_goes_on_when_its_defaults_are_said(make, tmp_path):
    model, task = a_case()
    seed = {"seed": 0} if make is not gp.ACDC else {}
    tau = {"tau": 0.01} if make is gp.ACDC else {}
    first = make(run_dir=tmp_path, **tau).fit(model, task)
    again = make(run_dir=tmp_path, ablation=CF, **seed, **tau).fit(model, task)
    assert first.mask == again.mask
    with pytest.raises(gp.GraphPruneError, match="ablation"):
        make(run_dir=tmp_path, ablation=ZERO, **tau).fit(model, task)


def test_a_studys_seed_goes_to_methods_that_say_none():
    made = StudyMethod("two", "parallel-ensemble", {"scorers": [{"method": "random", "seed": 0}]})
    group = made.build(4)
    assert (group.seed, group.scorers[0].seed) == (4, 0)
    model, task = a_case()
    assert same(group.score(model, task), gp.Random(seed=0).score(model, task))
