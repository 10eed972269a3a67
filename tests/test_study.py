"""Studies: jobs that are independent, kept and judged as single calls judge them."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from support.cli import call
from support.studies import figures, small_plan

import graphprune as gp
from graphprune.adapters.lm import LanguageModel
from graphprune.study import Study


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return small_plan(tmp_path_factory.mktemp("model"))


def records(folder):
    return {path.name: path.read_text() for path in sorted((folder / "jobs").glob("*.json"))}


def test_a_job_is_what_single_calls_give(plan, tmp_path):
    one = {**plan, "methods": {"EAP": {"method": "eap"}}, "seeds": [1]}
    ((job, record),) = Study.from_dict(one).run(tmp_path).records
    assert record["state"] == "done", record
    case = job.source.make()
    scores = gp.EAP().score(case.model, case.train)
    curve = gp.faithfulness_curve(case.model, case.test, scores)
    assert record["cpr"] == pytest.approx(curve.cpr, rel=1e-5)
    assert record["cmd"] == pytest.approx(curve.cmd, rel=1e-5)
    assert record["curve"]["kept"] == curve.kept
    for by in ("signed", "abs"):
        assert record["curve"]["f"][by] == pytest.approx(curve.f[by], abs=1e-5)
    report = gp.evaluate(case.model, case.test, scores.top(0.1).prune_dead_ends())
    assert record["rows"][0]["kl"] == pytest.approx(report["kl"], rel=1e-4)
    assert record["rows"][0]["kept"] == report["n_edges"]


def test_equal_circuits_run_once(plan, tmp_path, monkeypatch):
    """Scores of one sign rank alike by size and sign, and densities are among the sizes."""
    seen, test_size = [], plan["test"]
    run = LanguageModel.run

    def watched(self, batch, mask, *rest, **options):
        values = mask.values if isinstance(mask, gp.EdgeMask) else mask
        if batch.size == test_size:  # no self-check of a model that is being wrapped
            seen.extend(tuple(row) for row in values.reshape(-1, values.shape[-1]).tolist())
        return run(self, batch, mask, *rest, **options)

    monkeypatch.setattr(LanguageModel, "run", watched)
    flows = {**plan, "methods": {"flow": {"method": "information-flow"}}, "seeds": [0]}  # no signs
    ((_, record),) = Study.from_dict(flows).run(tmp_path).records
    assert record["curve"]["f"]["signed"] == record["curve"]["f"]["abs"]
    assert 0 < len(seen) == len(set(seen)) <= 9
    assert {row["kept"] for row in record["rows"]} <= {sum(kept) for kept in seen}


def test_no_test_prompt_is_a_training_prompt(plan):
    case = Study.from_dict({**plan, "train": 20, "test": 20}).jobs()[0].source.make()
    rows = []
    for task in (case.train, case.test):
        texts = [tuple(b.clean["input_ids"][0].tolist()) for b in task.batches(1)]
        assert len(texts) == 20
        rows.append(set(texts))
    assert not rows[0] & rows[1]


def test_tables_and_page(plan, tmp_path):
    results = Study.from_dict(plan).run(tmp_path / "out")
    assert results.counts == {"done": 4}
    frame = pd.read_csv(tmp_path / "out" / "results.csv")
    assert len(frame) == 8
    again = pd.read_parquet(tmp_path / "out" / "results.parquet")
    np.testing.assert_allclose(frame["kl"], again["kl"])
    summary = results.summary()
    row = summary[summary.method == "EAP"].iloc[0]
    mine = frame[frame.method == "EAP"].drop_duplicates("seed")["cpr"]
    assert row["cpr"] == pytest.approx(mine.mean())
    assert row["cpr_low"] <= row["cpr"] <= row["cpr_high"]
    assert sorted(summary["rank_cmd"]) == [1, 2]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "two &lt;b&gt;methods&lt;/b&gt;" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("role='img'") == 2


def test_a_second_run_repeats_nothing_and_a_larger_study_only_what_is_new(plan, tmp_path):
    Study.from_dict(plan).run(tmp_path)
    before = records(tmp_path)
    Study.from_dict(plan).run(tmp_path)
    assert records(tmp_path) == before  # seconds and all
    wider = {**plan, "seeds": [0, 1, 2]}
    results = Study.from_dict(wider).run(tmp_path)
    after = records(tmp_path)
    assert results.counts == {"done": 6}
    assert before.items() <= after.items()
    assert len(after) == 6


def test_two_processes_give_the_same_figures(plan, tmp_path):
    one = Study.from_dict(plan).run(tmp_path / "one")
    two = Study.from_dict(plan).run(tmp_path / "two", jobs=2)
    assert two.counts == {"done": 4}
    columns = ["system", "task", "method", "seed", "density", "kept", "kl", "cpr", "cmd"]
    pd.testing.assert_frame_equal(one.to_frame()[columns], two.to_frame()[columns])


def test_killed_and_resumed(plan, tmp_path):
    """SIGKILL after the first finished job; the rest runs, the first is not touched."""
    code = (
        "import json, sys\n"
        "from graphprune.study import Study\n"
        "Study.from_dict(json.loads(sys.argv[1])).run(sys.argv[2])\n"
    )
    many = {**plan, "seeds": list(range(40))}
    process = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(many), str(tmp_path / "out")]
    )
    deadline = time.monotonic() + 120
    while not records(tmp_path / "out") and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    first = records(tmp_path / "out")
    assert 0 < len(first) < 80
    for text in first.values():
        assert json.loads(text)["state"] == "done"
    results = Study.from_dict({**plan, "seeds": [0, 1, 2]}).run(tmp_path / "out")
    assert results.counts == {"done": 6}
    assert first.items() <= records(tmp_path / "out").items()


def test_a_failing_job_stops_no_other(plan, tmp_path):
    mixed = {
        **plan,
        "systems": {
            **plan["systems"],
            "gone": {"model": "./nowhere", "tasks": ["ioi"]},
        },
        "methods": {
            **plan["methods"],
            "exact": {"method": "exact-patching", "max_edges": 50},
            "ACDC": {"method": "acdc", "taus": [0.001, 0.01], "systems": ["small"]},
        },
    }
    study = Study.from_dict(mixed)
    results = study.run(tmp_path)
    assert results.counts == {"done": 6, "refused": 2, "failed": 6}
    job, why = results.failures()[0]
    assert job.system.name == "gone"
    assert "nowhere is not there" in why
    frame = results.to_frame()
    assert frame[frame.method == "exact"]["why"].str.contains("more than the 50").any()
    before = records(tmp_path)
    assert study.run(tmp_path, retry=False).counts == results.counts
    assert records(tmp_path) == before
    assert "exact refused: the graph has" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"systems": {}}, "needs systems"),
        ({"systems": {"a": {"kind": "language"}}}, "needs tasks"),
        ({"systems": {"a": {"kind": "planet", "tasks": ["x"]}}}, "unknown kind 'planet'; "),
        (
            {"methods": {"a": {"method": "eapig"}}},
            "unknown method 'eapig'; did you mean 'eap-ig'. Known: acdc",
        ),
        ({"methods": {"a": {"method": "eap", "stepz": 3}}}, "has no setting 'stepz'"),
        ({"methods": {"a": {"method": "acdc"}}}, "gives no scores; name the taus"),
        ({"methods": {"a": {"method": "eap", "taus": [1]}}}, "has no thresholds"),
        ({"methods": {"a": {"method": "eap", "systems": ["b"]}}}, "unknown system 'b'"),
        ({"densities": [3]}, "expected a density"),
        ({"densities": [True]}, "a list of numbers"),
        ({"densities": "all"}, "a list of numbers, got 'all'"),
        ({"seeds": [1, 1]}, "different numbers"),
        ({"systems": {"a": {"tasks": ["ioi"], "test": 0}}}, "test of system 'a' must be"),
        ({"train": 0}, "train must be an integer of at least 1"),
        ({"colour": 1}, "unknown key of a study 'colour'"),
    ],
)
def test_bad_input(plan, change, message):
    with pytest.raises(gp.InputError, match=message):
        Study.from_dict({**plan, **change})


def test_bad_folders(plan, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(gp.InputError, match="holds no study; nothing was touched"):
        Study.from_dict(plan).run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    Study.from_dict(plan).run(tmp_path / "out")
    some = next((tmp_path / "out" / "jobs").iterdir())
    some.write_text("{")
    with pytest.raises(gp.FormatError, match="no record of a job"):
        Study.from_dict(plan).run(tmp_path / "out")


def test_records_without_a_digest_are_found_anew(plan, tmp_path, caplog):
    one = {**plan, "methods": {"EAP": {"method": "eap"}}, "seeds": [0]}
    study = Study.from_dict(one)
    first = study.run(tmp_path).summary()["cpr"].item()
    (path,) = (tmp_path / "jobs").iterdir()
    old = json.loads(path.read_text()) | {"version": 2, "cpr": 99.0}
    del old["sha256"]
    path.write_text(json.dumps(old))
    assert study.results(tmp_path).counts == {"open": 1}
    assert "of an earlier version, which wrote no digest, and counts as not" in caplog.text
    assert study.run(tmp_path).summary()["cpr"].item() == first
    other = path.with_name("0123456789abcdef.json")  # the same of a job that is not asked for
    other.write_text(json.dumps(old | {"key": other.stem}))
    assert study.run(tmp_path).aside == {"of an earlier version, which wrote no digest": 1}


def test_the_command(plan, tmp_path, capsys):
    import yaml

    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(plan))
    assert call("study", file, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["jobs"] == {"done": 4}
    assert {row["method"] for row in document["overall"]} == {"EAP", "chance"}
    assert (tmp_path / "plan" / "report.html").exists()
    assert call("study", file, "--show") == 0
    assert "EAP" in capsys.readouterr().out
    gone = {"small": {"model": "./nowhere", "tasks": ["ioi"]}}
    file.write_text(yaml.safe_dump({**plan, "systems": gone}))
    assert call("study", file, "--out", tmp_path / "gone") == 1
    said = capsys.readouterr().err
    assert "4 jobs of small cannot run" in said
    assert said.count("nowhere is not there") == 1
    assert "unexpected" not in said
    file.write_text("systems: [")
    assert call("study", file) == 2
    assert "is no YAML" in capsys.readouterr().err


def test_the_leaderboard_is_a_study():
    from pathlib import Path

    study = Study.from_yaml(Path(__file__).parent.parent / "examples" / "leaderboard.yaml")
    assert len(study.systems) == 6
    assert {job.method.name for job in study.jobs()} >= {"hybrid, published", "spectral, damp"}
    large = Study.from_yaml(Path(__file__).parent.parent / "examples" / "leaderboard_smollm2.yaml")
    assert len({job.task for job in large.jobs()}) == 5


# -------------------------------------------------------------------- other backends


def test_a_backend_without_generators_runs_in_waves(plan, tmp_path, tmp_path_factory):
    """As Ray's is: what is finished is kept after every wave."""
    import joblib
    from joblib.parallel import ThreadingBackend

    kept = []

    class Lists(ThreadingBackend):
        supports_return_generator = False

        def configure(self, *args, **kwargs):
            kept.append(len(records(tmp_path)))
            return super().configure(*args, **kwargs)

    joblib.register_parallel_backend("lists", Lists)
    study = Study.from_dict({**plan, "seeds": [0, 1]})
    one_by_one = study.run(tmp_path_factory.mktemp("alone")).records
    alone = {(job.label["method"], job.seed): record["cmd"] for job, record in one_by_one}
    with joblib.parallel_config(backend="lists", n_jobs=3):
        with pytest.raises(ValueError, match="does not support"):
            joblib.Parallel(return_as="generator_unordered")
        results = study.run(tmp_path)
    assert repr(results) == "StudyResults('two <b>methods</b>': 4 done)"
    assert kept == [0, 3]
    for job, record in results.records:
        assert figures(record)["cmd"] == pytest.approx(
            alone[job.label["method"], job.seed], rel=1e-4
        )


# -------------------------------------------------------------------- numbers of examples


def test_examples_by_task(plan):
    system = {**plan["systems"]["small"], "tasks": ["ioi", "greater_than"]}
    one = {**system, "train": 8, "test": {"ioi": 9}}
    study = Study.from_dict({**plan, "systems": {"small": one}, "seeds": [0]})
    assert {(j.task, j.train, j.test) for j in study.jobs()} == {
        ("ioi", 8, 9),
        ("greater_than", 8, 5),
    }
    keys = {j.key for j in study.jobs()}
    same = {**system, "train": {"ioi": 8, "greater_than": 8}, "test": {"ioi": 9}}
    assert keys == {
        j.key for j in Study.from_dict({**plan, "systems": {"s": same}, "seeds": [0]}).jobs()
    }
    for wrong, message in (
        ({"mcqa": 3}, "names a task that it lacks: 'mcqa'"),
        ({"ioi": 0}, "train of system 'small' on 'ioi' must be an integer of at least 1"),
    ):
        with pytest.raises(gp.InputError, match=message):
            Study.from_dict({**plan, "systems": {"small": {**system, "train": wrong}}})
