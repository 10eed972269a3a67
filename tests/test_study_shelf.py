"""Rankings that a study keeps: shared by ensembles, judged again, refused where damaged."""

import numpy as np
import pytest
from support.studies import figures, small_plan

import graphprune as gp
from graphprune.study import Study
from graphprune.study.jobs import run_job


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return small_plan(tmp_path_factory.mktemp("model"))


ENSEMBLES = {
    "EAP-IG": {"method": "eap-ig", "steps": 3},
    "of it": {
        "method": "calibrated-ranking",
        "scorer": {"method": "eap-ig", "steps": 3},
        "rounds": 1,
    },
    "both": {
        "method": "parallel-ensemble",
        "scorers": [{"method": "eap"}, {"method": "eap-ig", "steps": 3}],
        "normalize": "rank",
    },
    "hybrid": {
        "method": "hybrid-ensemble",
        "scorers": [
            {"method": "eap-ig", "steps": 3},
            {
                "method": "sequential-ensemble",
                "scorer": {"method": "eap-ig", "steps": 3},
                "optimiser": {"method": "matryoshka", "steps": 2},
                "signs": "scorer",
            },
        ],
    },
    "sequential": {
        "method": "sequential-ensemble",
        "scorer": {"method": "eap-ig", "steps": 3},
        "optimiser": {"method": "matryoshka", "steps": 2},
        "signs": "scorer",
    },
}


def test_ensembles_take_rankings_that_stand(plan, tmp_path, monkeypatch):
    """The same figures as jobs that find everything anew, each scorer run once for a case."""
    study = Study.from_dict({**plan, "methods": ENSEMBLES, "seeds": [0]})
    alone = {job.method.name: run_job(job) for job in study.jobs()}
    ran = []
    score = gp.EAPIG.score

    def counted(self, model, task):
        ran.append(self.label)
        return score(self, model, task)

    monkeypatch.setattr(gp.EAPIG, "score", counted)
    shared = {}
    for job in study.jobs():
        shared[job.method.name] = run_job(job, folder=tmp_path)
        assert figures(shared[job.method.name]) == figures(alone[job.method.name]), job.method.name
    assert ran == ["EAPIG(steps=3)"] * 2  # its own, and the hybrid's sequential part
    for name in ("of it", "both", "sequential"):
        for what in ("seconds", "cpu_seconds", "mib"):
            assert shared[name][what] >= shared["EAP-IG"][what]
    assert len(list((tmp_path / "scores").glob("*.npz"))) == len(ENSEMBLES)


def test_rankings_are_kept_as_they_are(plan, tmp_path):
    study = Study.from_dict({**plan, "methods": {"EAP": {"method": "eap"}}, "seeds": [0, 1]})
    study.run(tmp_path)
    from graphprune.study.systems import language

    kept = [np.load(path) for path in sorted((tmp_path / "scores").glob("*.npz"))]
    assert len(kept) == 2  # other prompts, another ranking
    for seed in (0, 1):
        case = language("ioi", train=6, test=5, seed=seed, model=plan["systems"]["small"]["model"])
        values = gp.EAP().score(case.model, case.train).values.numpy()
        (same,) = [x for x in kept if np.array_equal(x["values"], values)]
        assert str(same["method"]) == "EAP"
        assert str(same["fingerprint"]) == case.model.graph.fingerprint


def test_other_densities_judge_the_ranking_that_stands(plan, tmp_path, monkeypatch):
    methods = {**ENSEMBLES, "ACDC": {"method": "acdc", "taus": [0.01, 0.1]}}
    chosen = {name: methods[name] for name in ("EAP-IG", "sequential", "ACDC")}
    first = Study.from_dict({**plan, "methods": chosen, "seeds": [0]})
    before = [run_job(job, folder=tmp_path) for job in first.jobs()]
    more = Study.from_dict({**plan, "methods": chosen, "seeds": [0], "densities": [0.1, 0.3]})
    alone = [run_job(job) for job in more.jobs()]
    from graphprune.study import jobs

    def never(*_):
        raise AssertionError("the ranking stands")

    monkeypatch.setattr(jobs, "_ranking", never)
    for job, old, anew in zip(more.jobs(), before, alone, strict=True):
        record = run_job(job, folder=tmp_path)
        assert figures(record) == figures(anew)
        assert record["cpu_seconds"] == old["cpu_seconds"]
        assert [row["density"] for row in record["rows"]] == [0.1, 0.3]
    other = {"ACDC": {"method": "acdc", "taus": [0.01, 0.2]}}
    (job,) = Study.from_dict({**plan, "methods": other, "seeds": [0]}).jobs()
    assert "the ranking stands" in run_job(job, folder=tmp_path)["why"]  # other thresholds: anew


@pytest.mark.parametrize("damage", ["empty", "other graph"])
def test_a_damaged_ranking_is_named(plan, tmp_path, damage):
    methods = {name: ENSEMBLES[name] for name in ("EAP-IG", "of it")}
    first, second = Study.from_dict({**plan, "methods": methods, "seeds": [0]}).jobs()
    assert run_job(first, folder=tmp_path)["state"] == "done"
    (path,) = (tmp_path / "scores").glob("*.npz")
    with np.load(path) as found:
        parts = dict(found)
    path.write_bytes(b"")
    if damage == "other graph":
        np.savez(path, **{**parts, "fingerprint": "none"})
    record = run_job(second, folder=tmp_path)
    assert record["state"] == "failed"
    assert str(path) in record["why"]
