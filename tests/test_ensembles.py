"""Ensembles: combinations worked by hand, warm starts whose density is sampled, clear refusals."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from support.cli import call, out_of, save_model
from support.marks import quick
from support.toy import Toy, ToyExamples
from test_conformance import language, toy
from transformer_graph import random_scores, transformer_graph

import graphprune as gp
from graphprune import Scorer
from graphprune.conformance import check_method

GRAPH = gp.ComputationalGraph.from_edges([("a", "b"), ("b", "c"), ("a", "c"), ("b", "d")])
QUICK = {"size": 4, "steps": 15, "loss": "mse", "batch_size": 6}


def scores(*values, method=""):
    return gp.EdgeScores(GRAPH, torch.tensor(values), method=method)


def task():
    return gp.Task(ToyExamples(6), "logit_diff", batch_size=6)


# -------------------------------------------------------------------- side by side


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"how": "mean"}, [2.0, -0.5, 1.5, 0.0]),
        ({"how": "min"}, [1.0, -2.0, 0.0, -1.0]),
        ({"how": "max"}, [3.0, 1.0, 3.0, 1.0]),
        ({"how": "weighted", "weights": [3, 1]}, [1.5, -1.25, 0.75, 0.5]),
    ],
)
def test_combinations_by_hand(options, expected):
    one, other = scores(1.0, -2.0, 0.0, 1.0), scores(3.0, 1.0, 3.0, -1.0)
    assert gp.combine_scores([one, other], **options).values.tolist() == expected


def test_normalisations_by_hand():
    one, other = scores(1.0, -2.0, 0.0, 1.0), scores(30.0, 10.0, 40.0, -20.0)
    # Ranks of the magnitudes: one 2.5, 4, 1, 2.5 of 4; other 3, 1, 4, 2 of 4.
    signed = gp.combine_scores([one, other], normalize="signed_rank").values
    assert signed.tolist() == [(2.5 + 3) / 8, (-4 + 1) / 8, 4 / 8, (2.5 - 2) / 8]
    # Signs are those of the scaled mean below; a score of 0 has no rank.
    for name in ("rank", "magnitude_rank"):
        ranked = gp.combine_scores([one, other], normalize=name).values
        assert ranked.tolist() == [(2.5 + 3) / 8, -(4 + 1) / 8, 4 / 8, (2.5 + 2) / 8]
    # Roots of the mean squares: sqrt(6/4) and sqrt(3000/4).
    first, second = math.sqrt(1.5), math.sqrt(750)
    scaled = gp.combine_scores([one, other], normalize="scale").values
    expected = [(1 / first + 30 / second) / 2, (-2 / first + 10 / second) / 2,
                20 / second, (1 / first - 20 / second) / 2]  # fmt: skip
    assert scaled.tolist() == pytest.approx(expected)
    # Their common distribution: means of 0, 1, 1, 2 and 10, 20, 30, 40, each over its root.
    steps = [(a / first + b / second) / 2 for a, b in ((0, 10), (1, 20), (1, 30), (2, 40))]
    tie = (steps[1] + steps[2]) / 2
    quantiles = gp.combine_scores([one, other], normalize="quantile").values
    expected = [(tie + steps[2]) / 2, (-steps[3] + steps[0]) / 2, (0 + steps[3]) / 2,
                (tie - steps[1]) / 2]  # fmt: skip
    assert quantiles.tolist() == pytest.approx(expected)


def test_large_edges_whose_signs_differ_cancel_as_signed_ranks_alone():
    """Edge 0 is the largest of both members; edge 2 is the second smallest of both."""
    one, other = scores(9.0, 2.0, 1.0, 0.5), scores(-8.0, 3.0, 1.0, -0.5)
    signed = gp.combine_scores([one, other], normalize="signed_rank")
    assert signed.values.tolist() == [0.0, 3 / 4, 2 / 4, 0.0]
    assert not signed.top(2).kept[0]
    ranked = gp.combine_scores([one, other], normalize="rank")
    # The members' mean squares are 21.6 and 18.6: 9 / 4.64 - 8 / 4.31 > 0, and .5's come below 0.
    assert ranked.values.tolist() == [4 / 4, 3 / 4, 2 / 4, -1 / 4]
    assert ranked.top(2).kept.tolist() == [True, True, False, False]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ranks_on_a_trained_model_are_about_as_close_as_the_best_member():
    """Held-out prompts; the members disagree about the signs of some of the largest edges."""
    case = gp.study.make_case("trained-gpt2", "ioi", train=64, test=64, seed=0, options={})
    members = [gp.EAP(), gp.EAPIG(), gp.EAPIG(integrate="activations")]
    alone = [member.score(case.model, case.train) for member in members]

    def distance(some):
        return gp.faithfulness_curve(case.model, case.test, some).cmd

    best = min(map(distance, alone))
    ranked = {
        normalize: distance(gp.combine_scores(alone, normalize=normalize))
        for normalize in ("rank", "signed_rank")
    }
    print(f"\nCMD: best member {best:.3f}", ranked)
    assert ranked["rank"] < ranked["signed_rank"]
    assert ranked["rank"] < best + 0.03


def test_records_say_which_ranks_were_meant(tmp_path):
    """Circuits of up to 0.2.0 say "rank", and meant signed ranks; today's never say it."""
    method = gp.ParallelEnsemble(["eap", "random"], normalize="rank")
    assert method.normalize == "magnitude_rank"
    mask = method.prune(Toy(seed=3), task(), size=5)
    gp.Circuit.from_mask(mask, method=method).save(tmp_path / "c")
    settings = gp.Circuit.load(tmp_path / "c").provenance["method"]["settings"]
    assert settings["normalize"] == "magnitude_rank"


@pytest.mark.parametrize("normalize", ["rank", "signed_rank", "quantile", "scale"])
def test_a_members_unit_does_not_matter_once_normalised(normalize):
    graph = transformer_graph(2, 3)
    one, other = random_scores(graph, 1), random_scores(graph, 2)
    tiny = gp.EdgeScores(graph, other.values * 1e-6)
    whole = gp.combine_scores([one, other], normalize=normalize).values
    again = gp.combine_scores([one, tiny], normalize=normalize).values
    assert torch.allclose(whole, again, rtol=1e-4, atol=1e-6)
    alone = gp.combine_scores([other], normalize=normalize).values
    assert alone.abs().argsort().equal(other.values.abs().argsort())
    assert alone.sign().equal(other.values.sign())
    raw = gp.combine_scores([one, tiny]).values
    assert np.corrcoef(raw, one.values)[0, 1] > 0.999  # as published: the large one decides


def test_the_ensemble_is_its_members_combined():
    model, data = Toy(seed=3), task()
    members = [gp.EAP(), gp.EAPIG(steps=5), gp.EAPIG(integrate="activations", points_at="right")]
    rows = torch.stack([m.score(model, data).values for m in members])
    assert torch.allclose(gp.ParallelEnsemble().score(model, data).values, rows.mean(0), rtol=1e-5)
    by_name = gp.ParallelEnsemble(["eap", {"name": "eap-ig", "steps": 3}], how="max")
    expected = torch.maximum(rows[0], gp.EAPIG(steps=3).score(model, data).values)
    assert by_name.score(model, data).values.equal(expected)
    given = gp.EdgeScores(model.graph, torch.arange(9.0))
    mixed = gp.ParallelEnsemble([given, by_name], how="weighted", weights=[0.5, 0.5])
    assert torch.allclose(mixed.score(model, data).values, (given.values + expected) / 2)


def test_members_inherit_what_they_do_not_say():
    model, data = Toy(seed=3), task()
    zero = gp.EAP(ablation="zero").score(model, data).values
    mean = gp.EAP(ablation="mean").score(model, data).values
    ensemble = gp.ParallelEnsemble(["eap", gp.EAP(ablation="mean")], ablation="zero")
    assert torch.allclose(ensemble.score(model, data).values, (zero + mean) / 2)
    drawn = gp.ParallelEnsemble(["random"], seed=5).score(model, data).values
    assert drawn.equal(gp.Random(seed=5).score(model, data).values)
    kept = gp.ParallelEnsemble([gp.Random(seed=2)], seed=5).score(model, data).values
    assert kept.equal(gp.Random(seed=2).score(model, data).values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counting(Scorer):
    runs: list = dataclasses.field(default_factory=list, compare=False, hash=False)
    offset: float = 0.0

    def score(self, model, task):
        self.runs.append(1)
        values = torch.arange(float(model.graph.num_edges)) + self.offset
        return gp.EdgeScores(model.graph, values)


def test_equal_members_and_a_shared_scorer_run_once():
    model, data, counting = Toy(seed=3), task(), Counting()
    second = gp.SequentialEnsemble(counting, gp.EdgePruning(**QUICK))
    hybrid = gp.HybridEnsemble([counting, counting, second])
    found = hybrid.score(model, data).values
    assert len(counting.runs) == 1
    alone = gp.combine_scores(
        [counting.score(model, data)] * 2 + [second.score(model, data)], normalize="quantile"
    )
    assert found.equal(alone.values)


def test_signs_inside_an_ensemble_are_the_scorers():
    """Else the magnitudes of harmful edges cancel."""
    model, data = Toy(seed=3), task()
    second = gp.SequentialEnsemble("eap", gp.EdgePruning(**QUICK))
    eap, inside = gp.EAP().score(model, data), gp.HybridEnsemble(["eap", second])
    harmful = eap.values < 0
    assert bool(harmful.any())
    assert bool((second.score(model, data).values > 0).all())
    assert (inside.score(model, data).values < 0).equal(harmful)
    kept = dataclasses.replace(second, signs="none")
    assert gp.HybridEnsemble(["eap", kept]).scorers[1].signs == "none"


# -------------------------------------------------------------------- one after another

OPTIMISERS = [
    gp.EdgePruning(**QUICK),
    gp.EdgePruning(gates="hard", samples=3, **QUICK),
    gp.EdgePruning(variant="paper", **QUICK),
    gp.EdgePruning(variant="paper", node_gates=True, **QUICK),
    gp.UGS(samples=2, **QUICK),
    gp.SubnetworkProbing(**QUICK),
    gp.MatryoshkaPruning(**QUICK),
]


@pytest.mark.parametrize("optimiser", OPTIMISERS, ids=lambda o: o.label[:40])
def test_any_optimiser_takes_a_warm_start(optimiser):
    model, data = Toy(seed=3), task()
    for mapping in ("density", "ranks"):
        fit = gp.SequentialEnsemble("eap", optimiser, mapping=mapping, signs="scorer").fit(
            model, data
        )
        assert fit.mask.num_kept == 4
        assert fit.mask.prune_dead_ends() == fit.mask
        sizes = fit.scores.values.abs()
        assert float(sizes.min()) > 0
        assert int((sizes >= 1).sum()) >= 4  # 1 is the last edge inside the budget
        signs = gp.EAP().score(model, data).values < 0
        assert bool(signs.any())
        assert (fit.scores.values < 0).equal(signs)
    unsigned = gp.SequentialEnsemble("eap", optimiser).score(model, data)
    assert float(unsigned.values.min()) > 0


def test_the_default_start_lies_between_all_and_the_final_size():
    model, data = Toy(seed=3), task()
    one = gp.SequentialEnsemble("eap", gp.UGS(samples=2, **QUICK)).fit(model, data)
    assert one.history[0]["density"] == pytest.approx(math.sqrt(4 / 9), rel=1e-3)
    two = gp.SequentialEnsemble("eap", gp.EdgePruning(**QUICK), start_density=0.7).fit(model, data)
    assert two.history[0]["density"] == pytest.approx(0.7, rel=1e-3)


# -------------------------------------------------------------------- as published


def test_published_scores_are_the_published_sigmoids():
    model, data = Toy(seed=3), task()
    method = gp.SequentialEnsemble(
        "eap-ig", gp.EdgePruning(variant="paper", **QUICK), mapping="paper"
    )
    fit = method.fit(model, data)
    assert torch.allclose(fit.scores.values.abs(), torch.sigmoid(1.2 * fit.values["gates"]))
    assert (
        float(fit.values["gates"].abs().max()) < 6
    )  # log alphas as started, not the cold start's 10


# -------------------------------------------------------------------- any adapter, command line

METHODS = [
    gp.ParallelEnsemble(),
    gp.ParallelEnsemble(how="weighted", weights=(1, 2, 3), normalize="scale"),
    gp.ParallelEnsemble(["eap", "information-flow"], normalize="quantile", ablation="zero"),
    gp.SequentialEnsemble(gp.EAP(), gp.EdgePruning(**{**QUICK, "steps": 4})),
    gp.HybridEnsemble(
        ["eap", gp.SequentialEnsemble("eap", gp.UGS(**{**QUICK, "steps": 4}, samples=2))]
    ),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.label[:60])
def test_ensembles_conform(method):
    conforms(method, *toy())


# Ensembles know a model by their members alone, so that one of each class will do.
@pytest.mark.parametrize("method", quick(METHODS, METHODS[2:]), ids=lambda m: m.label[:60])
def test_ensembles_conform_on_a_language_model(method):
    conforms(method, *language("llama"))


def conforms(method, model, task):
    told = check_method(method, model, task).values()
    assert all(v == "passed" or v.startswith("not tested") for v in told)


def test_ensembles_from_the_command_line(tmp_path, capsys):
    model = save_model(tmp_path / "model")
    common = ("discover", "--model", model, "--task", "ioi", "-n", 4, "--json")
    members = 'scorers=["eap", {"name": "eap-ig", "steps": 2}]'
    arguments = ("--method", "parallel-ensemble", "--set", members, "--set", "normalize=rank")
    assert call(*common, *arguments, "--size", 12, "--out", tmp_path / "p") == 0
    told = out_of(capsys)
    assert told["selected"] == 12
    label = "ParallelEnsemble(scorers=[EAP, EAPIG(steps=2)], normalize='magnitude_rank')"
    assert told["method"] == label
    optimiser = 'optimiser={"name": "edge-pruning", "steps": 5}'
    arguments = ("--method", "sequential-ensemble", "--set", "scorer=eap", "--set", optimiser)
    assert call(*common, *arguments, "--size", 25, "--out", tmp_path / "s") == 0
    assert out_of(capsys)["kept"] == 25
    settings = gp.Circuit.load(tmp_path / "s").provenance["method"]["settings"]
    assert settings["scorer"]["type"] == "EAP"
    assert settings["optimiser"]["size"] == 25
    bad = ("--method", "parallel-ensemble", "--set", "scorers=eap,nonsense")
    assert call(*common, *bad, "--out", tmp_path / "b") == 2
    assert "member 2: unknown method 'nonsense'" in capsys.readouterr().err


# -------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gp.ParallelEnsemble([]), "at least one member"),
        (lambda: gp.ParallelEnsemble(gp.EAP()), "must be a list of scorers"),
        (lambda: gp.ParallelEnsemble("[eap"), "the scorers: no JSON"),
        (lambda: gp.ParallelEnsemble(["eap", 3]), "member 2 must be a scorer"),
        (lambda: gp.ParallelEnsemble(["acdc"]), "'acdc' gives no scores"),
        (lambda: gp.ParallelEnsemble([{"name": "eap", "steps": 3}]), "does not take these"),
        (lambda: gp.ParallelEnsemble(how="median"), "unknown how 'median'; .*min, max"),
        (lambda: gp.ParallelEnsemble(normalize="z"), "unknown normalize 'z'"),
        (lambda: gp.ParallelEnsemble(weights=[1, 2, 3]), "weights are for how='weighted'"),
        (lambda: gp.ParallelEnsemble(how="weighted"), "for each of 3 members, got none"),
        (lambda: gp.ParallelEnsemble(how="weighted", weights=[1, 2]), "got 2"),
        (lambda: gp.ParallelEnsemble(["eap"], how="weighted", weights=[-1]), "from 0 on"),
        (lambda: gp.ParallelEnsemble(["eap"], how="weighted", weights=[0]), "not all 0"),
        (lambda: gp.HybridEnsemble(["eap"]), "has a SequentialEnsemble or a mask optimiser"),
        (lambda: gp.HybridEnsemble(normalize=None), "needs a common scale"),
        (lambda: gp.SequentialEnsemble("eap", "eap-ig"), "is a mask optimiser"),
        (lambda: gp.SequentialEnsemble("eap", gp.UGS(warm_start="eap")), "leave its own"),
        (lambda: gp.SequentialEnsemble("eap", "ugs", mapping="paper"), "hard concrete gates"),
        (lambda: gp.SequentialEnsemble("eap", "matryoshka", start_density=0.1), "no start density"),
        (lambda: gp.SequentialEnsemble(start_density=1.5), r"share in \(0, 1\), got 1.5"),
        (lambda: gp.SequentialEnsemble(spread=0.0), "positive number"),
        (lambda: gp.SequentialEnsemble(mapping="linear"), "unknown mapping 'linear'"),
        (lambda: gp.SequentialEnsemble(mapping="ranks", start_density=0.1), "reads neither"),
        (lambda: gp.SequentialEnsemble(signs="kl"), "unknown signs"),
        (
            lambda: gp.SequentialEnsemble(
                "eap", gp.UGS(ablation="zero"), ablation="mean"
            ),
            "ablation is 'mean', its optimiser's 'zero'",
        ),
    ],
)  # fmt: skip
def test_settings_that_make_no_ensemble(make, message):
    with pytest.raises(gp.InputError, match=message):
        make()


def test_scores_that_make_no_ensemble():
    model, data = Toy(seed=3), task()
    with pytest.raises(gp.InputError, match=r"member 2 .* scores all 4 edges 2: constant"):
        gp.combine_scores([scores(1.0, 2.0, 3.0, 4.0), scores(2.0, 2.0, 2.0, 2.0)])
    other = gp.EdgeScores(transformer_graph(1, 2), torch.arange(13.0))
    with pytest.raises(gp.GraphMismatchError, match=r"member 1 \(here\) and 2 \(\)"):
        gp.combine_scores([scores(1.0, 2.0, 3.0, 4.0, method="here"), other])
    with pytest.raises(gp.GraphMismatchError, match="the model and member 2"):
        gp.ParallelEnsemble(["eap", other]).score(model, data)
    with pytest.raises(gp.GraphMismatchError, match="the model and the scorer"):
        gp.SequentialEnsemble(other, gp.UGS(**QUICK)).score(model, data)

    flat = gp.EdgeScores(model.graph, torch.zeros(9), method="flat")
    with pytest.raises(gp.InputError, match=r"member 1 \(flat\) scores all 9 edges 0"):
        gp.ParallelEnsemble([flat, "eap"]).score(model, data)
    with pytest.raises(gp.InputError, match=r"the scorer \(flat\) scores all 9 edges 0"):
        gp.SequentialEnsemble(flat, gp.UGS(**QUICK)).score(model, data)
    broken = Counting(offset=float("nan"))
    with pytest.raises(gp.NumericalError, match=r"member 2 \(Counting.* 9 of 9 edge scores"):
        gp.ParallelEnsemble(["eap", broken]).score(model, data)
    with pytest.raises(gp.NumericalError, match="the scorer"):
        gp.SequentialEnsemble(broken, gp.UGS(**QUICK)).score(model, data)
