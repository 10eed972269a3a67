"""Studies know jobs by what they are of: prompts, weights and settings, never by names alone."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from support.cli import call, out_of, save_model
from support.studies import figures

import graphprune as gp
from graphprune.study import Case, Study
from graphprune.study.identity import Source, _Opened, identify
from graphprune.study.jobs import contents_of, run_job
from graphprune.tasks.words import NAMES

PEOPLE = NAMES[:8]  # a token each


def pairs(swapped=False):
    """56 prompts; ``swapped``: answer and distractor change places, nothing else."""
    rows = []
    for first in PEOPLE:
        for second in PEOPLE:
            if first != second:
                names = (f" {second}", f" {first}")
                rows.append(
                    {
                        "clean": f"When {first} and {second} went out, {first} gave it to",
                        "corrupt": f"When {first} and {second} went out, {second} gave it to",
                        "answer": names[swapped],
                        "distractor": names[not swapped],
                    }
                )
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two sets of weights of one architecture."""
    base = tmp_path_factory.mktemp("models")
    return [save_model(base / name, seed) for seed, name in enumerate(("first", "second"))]


@pytest.fixture
def place(models, tmp_path):
    """A folder with a YAML, its prompts and its model, all named from there."""
    shutil.copytree(models[0], tmp_path / "tiny")
    write(tmp_path / "pairs.jsonl", pairs())
    write_plan(tmp_path)
    return tmp_path


def write_plan(place, **changes):
    import yaml

    plan = {
        "systems": {"small": {"model": "tiny", "tasks": ["pairs.jsonl"]}},
        "methods": {"EAP": {"method": "eap"}},
        "densities": [0.3],
        "seeds": [0, 1],
        "train": 8,
        "test": 6,
    }
    path = place / "plan.yaml"
    path.write_text(yaml.safe_dump({**plan, **changes}))
    return path


def study_of(place, **changes):
    return Study.from_yaml(write_plan(place, **changes))


def told(results):
    return [
        {k: figures(record).get(k) for k in ("cpr", "cmd", "rows")} for _, record in results.records
    ]


def kept(folder):
    return {path.name: path.read_bytes() for path in (folder / "jobs").glob("*.json")}


def swap_answers(place, models):
    write(place / "pairs.jsonl", pairs(swapped=True))


def replace_weights(place, models):
    shutil.copy(models[1] / "model.safetensors", place / "tiny" / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "why"),
    [(swap_answers, "found on other prompts"), (replace_weights, "found with other weights")],
)
def test_other_contents_under_the_same_names_run_anew(place, models, caplog, change, why):
    study = study_of(place)
    before = study.run(place / "out")
    files = kept(place / "out")
    change(place, models)
    shown = study.results(place / "out")
    assert shown.counts == {"open": 2}, "old figures of other contents must not be shown"
    after = study.run(place / "out")
    fresh = study.run(place / "fresh")
    assert told(after) == told(fresh)
    assert all(old != new for old, new in zip(told(before), told(after), strict=True))
    assert after.aside == {why: 2}
    assert any(f"2 finished jobs in {place / 'out'} are left aside" in m for m in caplog.messages)
    assert files.items() <= kept(place / "out").items()
    assert len(kept(place / "out")) == 4
    page = (place / "out" / "report.html").read_text()
    assert f"2 more are not shown: {why}" in page


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


def test_rankings_that_are_kept_are_of_the_same_contents(place, models):
    """Ensembles and other densities take rankings from ``scores/``: none of other contents."""
    study = study_of(place, seeds=[0])
    study.run(place / "out")
    swap_answers(place, models)
    wider = study_of(place, seeds=[0], densities=[0.3, 0.6])
    assert told(wider.run(place / "out")) == told(wider.run(place / "fresh"))
    assert len(list((place / "out" / "scores").glob("*.npz"))) == 2


def test_names_and_places_do_not_count(place, models, tmp_path_factory, monkeypatch):
    """A renamed file of the same contents, another folder, another cwd: the same job."""
    first = study_of(place)
    keys = [job.key for job in first.jobs()]
    before = first.run(place / "out")
    files = kept(place / "out")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert [job.key for job in Study.from_yaml(place / "plan.yaml").jobs()] == keys
    (place / "data").mkdir()
    (place / "pairs.jsonl").rename(place / "data" / "renamed.jsonl")
    (place / "tiny").rename(place / "moved")
    named = {"small": {"model": "./moved", "tasks": ["data/renamed.jsonl"]}}
    again = study_of(place, systems=named)
    after = again.run(place / "out")
    assert kept(place / "out") == files
    assert told(after) == told(before)
    assert [job.key for job in again.jobs()] == keys
    assert not after.aside


def test_relative_names_start_at_the_yaml(place, models, tmp_path_factory, monkeypatch):
    """And never at the current folder, whatever stands there under the same names."""
    study_of(place)
    other = tmp_path_factory.mktemp("cwd")
    shutil.copytree(models[1], other / "tiny")
    write(other / "pairs.jsonl", pairs(swapped=True))
    here = Study.from_yaml(place / "plan.yaml").run(place / "here")
    monkeypatch.chdir(other)
    there = Study.from_yaml(place / "plan.yaml").run(place / "there")
    assert here.counts == {"done": 2}
    assert told(here) == told(there)
    shutil.rmtree(place / "tiny")
    gone = Study.from_yaml(place / "plan.yaml").run(place / "gone")
    assert gone.counts == {"failed": 2}
    assert f"tiny is not in {place}" in gone.failures()[0][1]


CHANGES = {
    "setting": {"methods": {"EAP": {"method": "eap", "ablation": "zero"}}},
    "training prompts": {"train": 9},
    "test prompts": {"test": 7},
    "seed": {"seeds": [3]},
    "density": {"densities": [0.4]},
    "metric": {
        "systems": {"small": {"model": "tiny", "tasks": ["pairs.jsonl"], "metric": "prob_diff"}}
    },
    "dtype": {
        "systems": {"small": {"model": "tiny", "tasks": ["pairs.jsonl"], "dtype": "bfloat16"}}
    },
}


@pytest.mark.parametrize("what", [*CHANGES, "version"])
def test_what_the_answer_depends_on_is_in_the_key(place, what, monkeypatch):
    (key,) = [job.key for job in study_of(place, seeds=[0]).jobs()]
    assert [job.key for job in study_of(place, seeds=[0]).jobs()] == [key]
    if what == "version":
        monkeypatch.setattr("graphprune.study.store.MADE_BY", "graphprune 99.0")
    (other,) = [
        job.key for job in study_of(place, **{"seeds": [0], **CHANGES.get(what, {})}).jobs()
    ]
    assert other != key


def test_a_setting_that_is_said_and_one_that_is_the_default_are_one(place):
    methods = {"a": {"method": "eap-ig"}, "b": {"method": "eap-ig", "steps": gp.EAPIG().steps}}
    one, two = study_of(place, seeds=[0], methods=methods).jobs()
    assert one.key == two.key


def test_contents_are_read_once_for_a_system(place, monkeypatch):
    """Not once for a job: six jobs, each file hashed once, the weights loaded by jobs alone."""
    from graphprune import contents
    from graphprune.study import language

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


def test_jobs_of_the_old_form_are_counted(place, caplog):
    study = study_of(place, seeds=[0])
    study.run(place / "out")
    (path,) = (place / "out" / "jobs").glob("*.json")
    old = json.loads(path.read_text()) | {"version": 1, "key": "0123456789abcdef", "cpr": 99.0}
    del old["label"], old["contents"]
    (place / "out" / "jobs" / "0123456789abcdef.json").write_text(json.dumps(old))
    results = study.run(place / "out")
    assert results.aside == {"of an earlier version, which did not say what they were found on": 1}
    assert "1 finished jobs in" in caplog.messages[-1]
    assert results.summary()["cpr"].item() < 99


def test_the_command_says_what_is_left_aside(place, models, capsys):
    file = write_plan(place)
    assert call("study", file, "--json") == 0
    assert out_of(capsys)["left_aside"] == {}
    swap_answers(place, models)
    assert call("study", file, "--json", "--show") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["jobs"] == {"open": 2}
    assert json.loads(shown.out)["left_aside"] == {"found on other prompts": 2}
    assert "2 finished jobs in" in shown.err


# -------------------------------------------------------------------- seeds and prompts


def texts(task):
    return {tuple(batch.clean["input_ids"][0].tolist()) for batch in task.batches(1)}


def test_each_seed_draws_its_own_part_of_a_file(place):
    study = study_of(place, seeds=[0, 1, 2])
    results = study.run(place / "out")
    assert len({record["cpr"] for _, record in results.records}) == 3
    row = results.summary().iloc[0]
    assert row["cpr_low"] < row["cpr"] < row["cpr_high"]
    cases = [job.source.make() for job in study.jobs()]
    parts = [(texts(case.train), texts(case.test)) for case in cases]
    assert len({frozenset(train) for train, _ in parts}) == 3
    assert len({frozenset(test) for _, test in parts}) == 3
    for train, test in parts:
        assert (len(train), len(test)) == (8, 6)
        assert not train & test
    again = [job.source.make() for job in study_of(place, seeds=[0, 1, 2]).jobs()]
    assert [(texts(case.train), texts(case.test)) for case in again] == parts
    shares = [len(a[1] & b[1]) / 6 for a in parts for b in parts if a is not b]
    assert row["shared_test"] == pytest.approx(sum(shares) / 6)
    expected = (
        f"seeds share {sum(shares) / 6:.0%} of their test prompts: the interval is too narrow"
    )
    assert expected in row["note"] if sum(shares) else not row["note"]


def test_a_file_with_no_more_than_is_asked_for(place):
    """Every seed has the same prompts, split otherwise; the table says so."""
    write(place / "pairs.jsonl", pairs()[:14])
    results = study_of(place, seeds=[0, 1, 2]).run(place / "out")
    row = results.summary().iloc[0]
    assert row["note"].startswith("all seeds draw from the same 14 prompts and share ")
    assert "too narrow for new prompts" in row["note"]
    assert row["cpr_low"] < row["cpr_high"]
    (note,) = results.notes()
    assert note == f"small, pairs.jsonl: {row['note']}"
    assert "all seeds draw from the same 14 prompts" in (place / "out" / "report.html").read_text()
    write(place / "pairs.jsonl", pairs()[:13])
    short = study_of(place, seeds=[0]).run(place / "out")
    assert "holds 13 prompts, but training and test take 14" in short.failures()[0][1]


def test_no_interval_where_seeds_see_the_same(place, monkeypatch, capsys):
    """A system whose examples do not depend on the seed, and a method that draws nothing."""
    made = Source.make
    monkeypatch.setattr(Source, "make", lambda source: made(source._replace(seed=0)))
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


def test_one_seed_has_no_interval(place):
    row = study_of(place, seeds=[1]).run(place / "out").summary().iloc[0]
    assert math.isnan(row["cpr_low"])
    assert row["note"] == "one seed: no interval"


def test_a_benchmarks_data_set_is_drawn_from_too(place):
    rows = [
        {
            "prompt": row["clean"],
            "metadata": {"indirect_object": row["answer"][1:], "subject": row["distractor"][1:]},
            "s2_io_flip_counterfactual": {"prompt": row["corrupt"]},
        }
        for row in pairs()
    ]
    (place / "mib").mkdir()
    write(place / "mib" / "train.jsonl", rows)
    systems = {"small": {"model": "tiny", "tasks": ["mib"]}}
    jobs = study_of(place, systems=systems).jobs()
    first, second = (job.source.make() for job in jobs)
    assert texts(first.train) != texts(second.train)
    keys = [job.key for job in jobs]
    (place / "mib").rename(place / "renamed")
    systems = {"small": {"model": "tiny", "tasks": ["renamed"]}}
    assert [job.key for job in study_of(place, systems=systems).jobs()] == keys
    write(place / "renamed" / "train.jsonl", rows[::-1])
    assert not set(keys) & {job.key for job in study_of(place, systems=systems).jobs()}


# -------------------------------------------------------------------- systems of all kinds


def test_a_model_that_is_there_is_known_by_its_parameters(models):
    """Systems of other packages give a wrapped model and need to do nothing."""
    from graphprune.study.systems import language

    case = language("ioi", train=4, test=4, seed=0, model=str(models[0]))

    class Given:
        options, task, seed = "{}", "ioi", 0

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
    from graphprune.study.language import checkpoint

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
        seen.append(checkpoint("someone/tiny", "auto").weights)
    assert None not in seen
    assert seen == [checkpoint(str(folder), "auto").weights for folder in models]
    assert seen[0] != seen[1]
