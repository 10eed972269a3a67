"""Studies know jobs by what they are of: prompts, weights and settings, never by names alone."""

import json
import math
import shutil

import pytest
from support.cli import call, out_of
from support.studies import figures
from support.study_files import (
    fill,
    pairs,
    replace_weights,
    study_of,
    swap_answers,
    two_models,
    write,
    write_plan,
)

import graphprune as gp
from graphprune.study import Study


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return two_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def place(models, tmp_path):
    return fill(tmp_path, models[0])


def told(results):
    return [
        {k: figures(record).get(k) for k in ("cpr", "cmd", "rows")} for _, record in results.records
    ]


def kept(folder):
    return {path.name: path.read_bytes() for path in (folder / "jobs").glob("*.json")}


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


def test_rankings_that_are_kept_are_of_the_same_contents(place, models):
    """Ensembles and other densities take rankings from ``scores/``: none of other contents."""
    study = study_of(place, seeds=[0])
    study.run(place / "out")
    swap_answers(place, models)
    wider = study_of(place, seeds=[0], densities=[0.3, 0.6])
    assert told(wider.run(place / "out")) == told(wider.run(place / "fresh"))
    assert len(list((place / "out" / "scores").glob("*.safetensors"))) == 2


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
    "nodes": {"systems": {"small": {"model": "tiny", "tasks": ["pairs.jsonl"], "nodes": "block"}}},
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_the_answer_depends_on_is_in_the_key(place, what):
    (key,) = [job.key for job in study_of(place, seeds=[0]).jobs()]
    assert [job.key for job in study_of(place, seeds=[0]).jobs()] == [key]
    (other,) = [job.key for job in study_of(place, **{"seeds": [0], **CHANGES[what]}).jobs()]
    assert other != key


def test_a_setting_that_is_said_and_one_that_is_the_default_are_one(place):
    methods = {"a": {"method": "eap-ig"}, "b": {"method": "eap-ig", "steps": gp.EAPIG().steps}}
    one, two = study_of(place, seeds=[0], methods=methods).jobs()
    assert one.key == two.key


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


def test_one_seed_has_no_interval_but_that_over_its_prompts(place):
    results = study_of(place, seeds=[1]).run(place / "out")
    row, own = results.summary().iloc[0], results.over_prompts("cpr").iloc[0]
    assert (row["cpr_low"], row["cpr_high"]) == (own["low"], own["high"])
    assert math.isnan(row["seconds_low"])
    assert row["note"] == "one seed: intervals are over its prompts"


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
