"""Rankings that a study keeps: shared by ensembles, judged again, refused where damaged."""

import pytest
from support.studies import figures, small_plan

import graphprune as gp
from graphprune.study import Study
from graphprune.util.sealed import Seal


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
    alone = {}
    for name, settings in ENSEMBLES.items():  # a folder for each
        one = Study.from_dict({**plan, "methods": {name: settings}, "seeds": [0]})
        ((_, alone[name]),) = one.run(tmp_path / "alone" / name).records
    ran = []
    score = gp.EAPIG.score

    def counted(self, model, task):
        ran.append(self.label)
        return score(self, model, task)

    monkeypatch.setattr(gp.EAPIG, "score", counted)
    shared = {job.method.name: record for job, record in study.run(tmp_path / "out").records}
    for name, record in shared.items():
        assert figures(record) == figures(alone[name]), name
    assert ran == ["EAPIG(steps=3)"] * 2  # its own, and the hybrid's sequential part
    for name in ("of it", "both", "sequential"):
        for what in ("seconds", "cpu_seconds", "mib"):
            assert shared[name][what] >= shared["EAP-IG"][what]
    assert len(list((tmp_path / "out" / "scores").glob("*.safetensors"))) == len(ENSEMBLES)


def test_rankings_are_kept_as_they_are(plan, tmp_path):
    study = Study.from_dict({**plan, "methods": {"EAP": {"method": "eap"}}, "seeds": [0, 1]})
    study.run(tmp_path)
    seal = Seal("graphprune-ranking")
    kept = [seal.read_tensors(path) for path in sorted((tmp_path / "scores").glob("*.safetensors"))]
    assert len(kept) == 2  # other prompts, another ranking
    for job in study.jobs():
        case = job.source.make()
        values = gp.EAP().score(case.model, case.train).values
        (notes,) = [notes for tensors, notes in kept if tensors["values"].equal(values)]
        assert notes["method"] == "EAP"
        assert notes["fingerprint"] == case.model.graph.fingerprint


@pytest.mark.parametrize("damage", ["empty", "other graph"])
def test_a_damaged_ranking_is_named(plan, tmp_path, damage):
    methods = ("EAP-IG", "of it")
    first, both = (
        Study.from_dict({**plan, "methods": {name: ENSEMBLES[name] for name in some}, "seeds": [0]})
        for some in (methods[:1], methods)
    )
    assert first.run(tmp_path).counts == {"done": 1}
    (path,) = (tmp_path / "scores").glob("*.safetensors")
    seal = Seal("graphprune-ranking")
    tensors, notes = seal.read_tensors(path)
    path.write_bytes(b"")
    if damage == "other graph":
        path.write_bytes(seal.tensors(tensors, {**notes, "fingerprint": "none"}))
    ((job, why),) = both.run(tmp_path).failures()
    assert job.method.name == "of it"
    assert str(path) in why
