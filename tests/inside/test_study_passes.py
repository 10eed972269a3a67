"""Passes that methods plan, against those they run, and their times."""

import pytest
from support.cli import save_model

import graphprune as gp
from graphprune.adapters.lm import LanguageModel
from graphprune.core.passes import Passes
from graphprune.study import Study, StudyMethod
from graphprune.study.planned_passes import PassSeconds, planned_passes


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    model = save_model(tmp_path_factory.mktemp("model") / "tiny")
    return {
        "systems": {"small": {"model": str(model), "tasks": ["ioi"], "batch_size": 4}},
        "methods": {"EAP": {"method": "eap"}},
        "densities": [0.1, 0.5],
        "seeds": [0, 1],
        "train": 8,
        "test": 6,
    }


def test_planned_passes_are_never_fewer_than_run(plan, monkeypatch):
    """Gradient runs and forward runs of whole batches, of methods that may end sooner."""
    counts = {"masked": 0, "plain": 0}
    run, gradients = LanguageModel.run, LanguageModel.edge_gradients

    def counted_run(self, batch, mask, *rest, **options):
        values = mask.values if isinstance(mask, gp.EdgeMask) else mask
        counts["masked"] += values.requires_grad
        return run(self, batch, mask, *rest, **options)

    def counted_gradients(self, *given, gates=None, **options):
        counts["plain"] += 1 if gates is None else len(gates)
        return gradients(self, *given, gates=gates, **options)

    case = Study.from_dict(plan).jobs()[0].source.make()
    model, task = case.model, case.train
    assert model.graph.num_edges > 0  # loaded, its self-check is over
    monkeypatch.setattr(LanguageModel, "run", counted_run)
    monkeypatch.setattr(LanguageModel, "edge_gradients", counted_gradients)
    short = gp.EdgePruning(steps=5, size=0.3, refine=0)
    searched = gp.EdgePruning(steps=5, size=0.3, refine=2)
    sequential = gp.SequentialEnsemble(gp.EAPIG(steps=3), short)
    cases = [
        (short, 5, 5),
        (searched, 6, 5 + 2 * 2),
        (gp.EdgePruning(steps=5, size=0.3, refine=0, warm_start="eap"), 7, 7),
        (sequential, 11, 11),
        # EAP-IG is a member and the sequential one's scorer: it runs once.
        (gp.HybridEnsemble([gp.EAPIG(steps=3), sequential]), 11, 11),
        (gp.ParallelEnsemble([gp.EAP(), gp.CleanCorrupted()]), 6, 6),
        (gp.IntegratedMaskGradient(steps=4), 8, 8),
    ]
    for method, least, planned in cases:
        counts.update(masked=0, plain=0)
        method.score(model, task)
        passes = planned_passes(method, model, task)
        assert passes.total == planned, method.label
        assert least <= counts["masked"] + counts["plain"] <= planned, method.label
    assert planned_passes(gp.ExactPatching(), model, task).forward == 2 * model.graph.num_edges


def test_spectral_methods_know_their_passes():
    sizes = {"train": 8, "test": 4, "seed": 0}
    case = gp.study.make_case("gcn-karate", "communities", **sizes, options={})
    batches = len(case.train) / min(case.train.batch_size, len(case.train))
    norms = {"method": "spectral-scores", "edge_weights": "message_norm", "laplacian": "both"}
    for described, expected in (
        ({"method": "taylor"}, Passes(plain=batches)),
        ({"method": "magnitude", "edge_weights": "message_norm"}, Passes(trials=batches)),
        (norms, Passes(trials=batches)),
        ({"method": "effective-resistance", "edge_weights": "attribution"}, Passes(plain=batches)),
    ):
        method = StudyMethod("", described.pop("method"), described).build(0)
        assert planned_passes(method, case.model, case.train) == expected


def test_cuts_are_timed_as_searches_make_them(plan):
    """A cut of one edge is not slower than a whole run under a mask."""
    case = Study.from_dict(plan).jobs()[0].source.make()
    seconds = PassSeconds.measured(case.model, case.train, "counterfactual", cuts=True)
    assert 0 < seconds.cut < seconds.trial
    assert seconds.of(Passes(cuts=10)) == pytest.approx(10 * seconds.cut)
    methods = {"exact": {"method": "exact-patching"}}
    (checked,) = Study.from_dict({**plan, "methods": methods}).check().cases
    edges = case.model.graph.num_edges
    assert checked.trials == 2 * (2 * edges + (2 + 2 * 9) * 6 / 4)


def test_methods_at_fewer_seeds_are_counted_so(plan):
    methods = {"EAP": {"method": "eap", "seeds": [1]}, "EAP-IG": {"method": "eap-ig", "steps": 3}}
    (case,) = Study.from_dict({**plan, "methods": methods}).check().cases
    assert (case.jobs, case.passes) == (3, 2 * 1 + 2 * (2 * 3))
