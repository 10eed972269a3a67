"""How a study identifies its cases, keeps its records and opens each case once."""

import math
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from support.cli import call
from support.optimising import make_loss, make_method, toy_task
from support.studies import figures, small_plan
from support.study_files import fill, replace_weights, study_of, swap_answers, two_models
from support.toy import Toy

import graphprune as gp
from graphprune.core import contents
from graphprune.study import Case, Study, jobs, language, systems
from graphprune.study.case_contents import CaseSource, _Opened, identify
from graphprune.study.job_records import MADE_BY, JobRecords
from graphprune.study.jobs import contents_of, run_job

pytestmark = pytest.mark.inside

METHODS = {
    "EAP-IG": {"method": "eap-ig", "steps": 3},
    "sequential": {
        "method": "sequential-ensemble",
        "scorer": {"method": "eap-ig", "steps": 3},
        "optimiser": {"method": "matryoshka", "steps": 2},
        "signs": "scorer",
    },
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_plan(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return two_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def place(models, tmp_path):
    return fill(tmp_path, models[0])


def records(folder):
    return {path.name: path.read_text() for path in sorted((folder / "jobs").glob("*.json"))}


def test_jobs_of_another_version_are_kept_and_run_anew(small, tmp_path, caplog, monkeypatch):
    plan = {**small, "methods": {"chance": {"method": "random"}}, "seeds": [0, 1]}
    with monkeypatch.context() as earlier:
        earlier.setattr("graphprune.study.job_records.MADE_BY", "graphprune 0.0.9")
        Study.from_dict(plan).run(tmp_path)
        Study.from_dict(plan).run(tmp_path)
    assert not caplog.messages
    before = records(tmp_path)
    results = Study.from_dict(plan).run(tmp_path)
    (said,) = caplog.messages
    assert said.startswith("2 finished jobs in ")
    assert "not shown: 2 made by graphprune 0.0.9" in said
    assert results.aside == {"made by graphprune 0.0.9": 2}
    after = records(tmp_path)
    assert before.items() <= after.items()
    assert len(after) == 4
    assert {record["made_by"] for _, record in results.records} == {MADE_BY}


def test_a_flipped_bit_gives_no_other_figure(small, tmp_path, caplog):
    """A bit of every second byte of a finished job's file: an error that names the file."""
    one = {**small, "methods": {"EAP": {"method": "eap"}}, "seeds": [0]}
    Study.from_dict(one).run(tmp_path)
    (path,) = (tmp_path / "jobs").iterdir()
    store, whole = JobRecords(tmp_path), path.read_bytes()
    record = store.load(path.stem)
    assert record["state"] == "done"
    assert len(whole) > 500
    for bit in range(0, 8 * len(whole), 13):  # every place in a byte, in turn
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        if damaged.startswith(whole[: whole.index(b"version") + 10]):
            with pytest.raises(gp.FormatError) as refusal:
                store.load(path.stem)
            assert f"{path}: no record of a job" in str(refusal.value)
            assert str(refusal.value).endswith("Delete the file, and the study finds it anew")
    path.write_bytes(whole.replace(b'"state": "done"', b'"state": "Done"'))
    with pytest.raises(gp.FormatError, match="digests differ"):
        Study.from_dict(one).run(tmp_path)
    path.write_bytes(whole)
    assert store.load(path.stem) == record


def test_other_densities_judge_the_ranking_that_stands(small, tmp_path, monkeypatch):
    methods = {**METHODS, "ACDC": {"method": "acdc", "taus": [0.01, 0.1]}}
    chosen = {name: methods[name] for name in ("EAP-IG", "sequential", "ACDC")}
    first = Study.from_dict({**small, "methods": chosen, "seeds": [0]})
    before = [run_job(job, folder=tmp_path) for job in first.jobs()]
    more = Study.from_dict({**small, "methods": chosen, "seeds": [0], "densities": [0.1, 0.3]})
    alone = [run_job(job) for job in more.jobs()]

    def never(*_):
        raise AssertionError("the ranking stands")

    monkeypatch.setattr(jobs, "_ranking", never)
    for job, old, anew in zip(more.jobs(), before, alone, strict=True):
        record = run_job(job, folder=tmp_path)
        assert figures(record) == figures(anew)
        assert record["cpu_seconds"] == old["cpu_seconds"]
        assert [row["density"] for row in record["rows"]] == [0.1, 0.3]
    other = {"ACDC": {"method": "acdc", "taus": [0.01, 0.2]}}
    (job,) = Study.from_dict({**small, "methods": other, "seeds": [0]}).jobs()
    assert "the ranking stands" in run_job(job, folder=tmp_path)["why"]  # other thresholds: anew


def test_swapped_answers_turn_the_metric(place, models):
    """The full model's logit difference changes its sign with the answers, to the last bit."""
    seen = []
    for _ in range(2):
        (contents, _), (job, _) = contents_of(study_of(place).jobs()), study_of(place).jobs()
        case = job.source.make()
        (batch,) = case.test.batches(100)
        with torch.no_grad():
            full = case.model.reference(batch).full
        seen.append((contents, case.test.metric(full, batch)))
        swap_answers(place, models)
    (before, values), (after, turned) = seen
    assert torch.equal(values, -turned)
    assert before.train != after.train
    assert before.test != after.test
    assert before.prompts == after.prompts  # the texts are the same
    assert before.weights == after.weights


def test_contents_are_read_once_for_a_system(place, monkeypatch):
    """Not once for a job: six jobs, each file hashed once, the weights loaded by jobs alone."""
    contents._file_fingerprint.cache_clear()
    loads = []
    load = language._loaded.__wrapped__
    monkeypatch.setattr(
        language, "_loaded", language.lru_cache(maxsize=1)(lambda *a: loads.append(a) or load(*a))
    )
    methods = {"EAP": {"method": "eap"}, "chance": {"method": "random"}}
    study = study_of(place, seeds=[0, 1, 2], methods=methods)
    assert study.run(place / "out").counts == {"done": 6}
    hashed = contents._file_fingerprint.cache_info().misses
    assert hashed == 1 + len(list((place / "tiny").iterdir()))
    assert len(loads) == 1
    assert study.run(place / "out").counts == {"done": 6}  # nothing is new: no model at all
    assert contents._file_fingerprint.cache_info().misses == hashed
    assert len(loads) == 1


def test_contents_that_change_while_it_runs_are_told(place, models):
    study = study_of(place, seeds=[0])
    (job,) = study.jobs()
    (planned,) = contents_of([job])
    assert run_job(job, contents=planned)["state"] == "done"
    swap_answers(place, models)
    _Opened.last = None  # as in another process
    record = run_job(job, contents=planned)
    assert record["state"] == "failed"
    assert "changed while the study ran: train, test" in record["why"]
    assert record["key"] == job.key_of(planned) != job.key
    case = job.source.make()
    replace_weights(place, models)
    with pytest.raises(gp.InputError, match=r"files of the model .* changed while the study ran"):
        _ = case.model


def test_no_interval_where_seeds_see_the_same(place, monkeypatch, capsys):
    """A system whose examples do not depend on the seed, and a method that draws nothing."""
    made = CaseSource.make
    monkeypatch.setattr(CaseSource, "make", lambda source: made(source._replace(seed=0)))
    methods = {"EAP": {"method": "eap"}, "chance": {"method": "random"}}
    study = study_of(place, methods=methods)
    frame = study.run(place / "out").summary().set_index("method")
    assert frame.loc["EAP", "shared_test"] == frame.loc["EAP", "shared_train"] == 1
    assert math.isnan(frame.loc["EAP", "cpr_low"])
    assert math.isnan(frame.loc["EAP", "cpr_high"])
    assert frame.loc["EAP", "note"] == "all seeds have the same prompts: no interval"
    assert frame.loc["chance", "cpr_low"] < frame.loc["chance", "cpr_high"]
    assert frame.loc["chance", "note"].endswith("the interval is of the method's own draws alone")
    page = (place / "out" / "report.html").read_text()
    assert "EAP: all seeds have the same prompts: no interval" in page
    assert call("study", place / "plan.yaml", "--out", place / "out") == 0
    assert "all seeds have the same prompts: no interval" in capsys.readouterr().out


def test_a_model_that_is_there_is_known_by_its_parameters(models):
    """Systems of other packages give a wrapped model and need to do nothing."""
    case = systems.language("ioi", train=4, test=4, seed=0, model=str(models[0]))

    class Given:
        kind, options, task, seed = "given", "{}", "ioi", 0

        def make(self):
            return Case(case.model, case.train, case.test)

    source = Given()
    (before,) = identify([source]).values()
    weight = next(case.model.module.parameters())
    with torch.no_grad():
        weight[0, 0] += 1e-6 * (1 + weight[0, 0].abs())
    (after,) = identify([source]).values()
    assert before.weights != after.weights
    assert replace(before, weights="") == replace(after, weights="")
    assert _Opened.last.contents == after
    with pytest.raises(gp.InputError, match="needs weights=, a fingerprint"):
        Case(lambda: case.model, case.train, case.test)


def test_a_hub_id_is_known_by_its_files(models, tmp_path, monkeypatch):
    """As the hub's cache lays it out: another revision under the same id is another model."""
    cache = tmp_path / "hub"
    repository = cache / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    seen = []
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(cache), raising=False)
    for number, folder in enumerate(models):
        commit = str(number) * 40
        shutil.copytree(folder, repository / "snapshots" / commit)
        (repository / "refs" / "main").write_text(commit)
        seen.append(language.stored_model("someone/tiny", "auto").weights)
    assert None not in seen
    assert seen == [language.stored_model(str(folder), "auto").weights for folder in models]
    assert seen[0] != seen[1]


def test_a_case_may_measure_more(small, monkeypatch):
    made = CaseSource.make

    def with_measure(source):
        case = made(source)
        return Case(case.model, case.train, case.test, measure=lambda mask: {"half": 0.5})

    monkeypatch.setattr(CaseSource, "make", with_measure)
    record = run_job(Study.from_dict(small).jobs()[0])
    assert [row["half"] for row in record["rows"]] == [0.5, 0.5]


def test_too_few_prompts_are_none():
    same = gp.Task.from_tensors(torch.ones(9, 3, dtype=torch.int64), answer=[1] * 9, metric="kl")
    assert systems.apart(same, 3, 3) is None


def test_another_version_is_another_job(place, monkeypatch):
    (key,) = [job.key for job in study_of(place, seeds=[0]).jobs()]
    monkeypatch.setattr("graphprune.study.job_records.MADE_BY", "graphprune 99.0")
    assert [job.key for job in study_of(place, seeds=[0]).jobs()] != [key]


def test_ctrl_c_inside_a_job_ends_the_study():
    """Half a run's ranking was taken for the method's, and kept."""

    class Job:
        class method:
            taus = ()

    member = make_method("default", None, make_loss("interrupt", 5))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            jobs._ranking(Job(), member, Toy(seed=3), toy_task())
    finally:
        signal.signal(signal.SIGINT, before)
