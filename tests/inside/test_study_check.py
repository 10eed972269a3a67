"""A study checked before it runs: mistakes, what would run, and models that are not there."""

import json

import pytest
import torch
import yaml
from support.cli import call, save_model
from support.study_files import pairs, study_of, two_models, write

import graphprune as gp
from graphprune.adapters.lm import LanguageModel
from graphprune.study import Study, StudyMistakes
from graphprune.study.by_name import load_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def plan(model):
    return {
        "systems": {"small": {"model": str(model), "tasks": ["ioi"], "batch_size": 4}},
        "methods": {
            "EAP": {"method": "eap"},
            "EAP-IG": {"method": "eap-ig", "steps": 3},
            "EP": {"method": "edge-pruning", "steps": 7, "size": 0.3},
            "UGS": {"method": "ugs", "steps": 2, "samples": 5, "size": 0.3},
            "chance": {"method": "random"},
        },
        "densities": [0.1, 0.5],
        "seeds": [0, 1],
        "train": 8,
        "test": 6,
    }


# -------------------------------------------------------------------- mistakes

WRONG = """\
name: wrong
colour: blue
densities: [3, 0.1]
systems:
  a: {tasks: [iio]}
  b: {model: tiny, tasks: [ioi, 5], dtype: float3}
  c:
    kind: gcn-karate
    weights: one
    hidden: 3
    tasks: [communities]
  d: tiny
methods:
  EAP-IG:
    method: eap-ig
    steps: five
    stepz: 3
  zap: {}
  inner: {method: parallel-ensemble, scorers: [{method: eap}, {method: eap-ig, steps: x}]}
  only: {method: eap, systems: [aa]}
  early: {method: eap, ablation: zreo}
"""


def test_every_mistake_is_listed_at_once_with_its_line(tmp_path, capsys):
    file = tmp_path / "wrong.yaml"
    file.write_text(WRONG)
    with pytest.raises(gp.InputError) as caught:
        Study.from_yaml(file)
    places = {str(m).partition(": ")[0]: m.message for m in caught.value.mistakes}
    expected = {
        "line 2, colour": "unknown key of a study 'colour'",
        "line 3, densities[0]": "expected a density",
        "line 5, systems.a": "needs model",
        "line 5, systems.a.tasks[0]": "unknown task 'iio'; did you mean 'ioi'",
        "line 6, systems.b.tasks[1]": "expected a task's name",
        "line 6, systems.b.dtype": "expected 'auto' or 'float32'",
        "line 9, systems.c.weights": "expected int, got 'one'",
        "line 10, systems.c.hidden": "has no setting 'hidden'",
        "line 12, systems.d": "expected a mapping of settings, got 'tiny'",
        "line 16, methods.EAP-IG.steps": "expected int, got 'five'",
        "line 17, methods.EAP-IG.stepz": "did you mean 'steps'",
        "line 18, methods.zap": "unknown method 'zap'",
        "line 19, methods.inner.scorers[1].steps": "expected int, got 'x'",
        "line 20, methods.only.systems[0]": "unknown system 'aa'",
        "line 21, methods.early.ablation": "unknown ablation 'zreo'; did you mean 'zero'",
    }
    assert set(places) == set(expected)
    for place, message in expected.items():
        assert message in places[place], place
    for option in ([], ["--check"]):
        assert call("study", file, *option) == 2
        said = capsys.readouterr().err
        assert "15 mistakes" in said
        assert all(place in said for place in expected)
        assert "fault of graphprune" not in said
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("systems: tiny\nmethods: {a: {method: eap}}", "a study needs systems: a mapping"),
        ("systems: {a: {tasks: [x], model: m}, a: {tasks: [y]}}", "stands on line 1 already"),
        ("systems: {a: {model: m, tasks: [iio]}}\nmethods: {eap: }", "did you mean 'ioi'"),
        ("systems: {a: {model: m, tasks: [ioi], speed: 3}}\nmethods: {eap: }", "setting 'speed'"),
        ("systems: {a: {model: m, tasks: [ioi]}}\nmethods: {eap-ig: {steps: '3'}}", "got '3'"),
        ("systems: {a: {model: m, tasks: [ioi]}}\nmethods: {eap-ig: {steps: true}}", "got True"),
        ("systems: {a: {model: m, tasks: [ioi]}}\nmethods: {acdc: {taus: [x]}}", "expected list"),
        ("systems: {a: {model: m, tasks: [ioi, ioi]}}\nmethods: {eap: }", "names a task twice"),
        (
            "systems: {a: {model: m, tasks: [{train_file: a.jsonl}]}}\nmethods: {eap: }",
            "train_file and test_file go together",
        ),
    ],
)
def test_mistakes_one_by_one(tmp_path, text, message):
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(StudyMistakes, match=r"line \d") as caught:
        Study.from_yaml(file)
    assert message in str(caught.value)


# -------------------------------------------------------------------- what would run


def test_a_check_says_what_would_run(plan, tmp_path, capsys):
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(plan))
    assert call("study", file, "--check", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["mistakes"] == []
    (case,) = document["cases"]
    job = Study.from_dict(plan).jobs()[0]
    assert case["edges"] == job.source.make().model.graph.num_edges
    assert (case["train"], case["test"], case["jobs"]) == (8, 6, 10)
    # Two batches of four: EAP one pass each, EAP-IG three; EP a pass a step, UGS five. EP's local
    # search has eight rounds at most: a gradient and six trials of both batches.
    assert case["passes"] == 2 * (2 * 1 + 2 * 3 + (7 + 8 * 2) + 2 * 5)
    # Two densities and MIB's nine sizes by two rankings, on six prompts, for five methods.
    assert case["trials"] == 2 * 5 * (2 + 2 * 9) * 6 / 4 + 2 * 8 * 6 * 2
    assert case["seconds"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.yaml"]
    assert call("study", file, "--check") == 0
    shown = capsys.readouterr().out
    assert "small: ioi" in shown
    assert "10 jobs, about" in shown


def test_what_is_planned_is_what_runs(plan, tmp_path, monkeypatch):
    counts = {"masked": 0, "plain": 0}
    run, gradients = LanguageModel.run, LanguageModel.edge_gradients

    def counted_run(self, batch, mask, *rest, **options):
        values = mask.values if isinstance(mask, gp.EdgeMask) else mask
        if values.requires_grad:
            counts["masked"] += 1 if values.ndim == 1 else len(values)
        return run(self, batch, mask, *rest, **options)

    def counted_gradients(self, *given, gates=None, **options):
        counts["plain"] += 1 if gates is None else len(gates)
        return gradients(self, *given, gates=gates, **options)

    case = Study.from_dict(plan).jobs()[0].source.make()
    assert case.model.graph.num_edges > 0  # loaded, its self-check is over
    monkeypatch.setattr(LanguageModel, "run", counted_run)
    monkeypatch.setattr(LanguageModel, "edge_gradients", counted_gradients)
    for settings in (gp.EAP(), gp.EAPIG(steps=3), gp.UGS(steps=2, samples=5, size=0.3)):
        counts.update(masked=0, plain=0)
        settings.fit(case.model, case.train)
        planned = {gp.EAP: (2, 0), gp.EAPIG: (6, 0), gp.UGS: (0, 10)}[type(settings)]
        assert (counts["plain"], counts["masked"]) == planned


def test_methods_that_will_be_refused_are_named(plan):
    methods = {"exact": {"method": "exact-patching", "max_edges": 3}, "EAP": {"method": "eap"}}
    (case,) = Study.from_dict({**plan, "methods": methods}).check().cases
    (remark,) = case.remarks
    assert remark.startswith("exact will be refused: the graph has ")
    karate = {"k": {"kind": "gcn-karate", "tasks": ["communities"]}}
    relp = {"RelP": {"method": "relp"}}
    (case,) = Study.from_dict({**plan, "systems": karate, "methods": relp}).check().cases
    assert case.remarks[0].startswith("RelP will be refused: ")
    assert case.passes == 0


# -------------------------------------------------------------------- what cannot be had


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return two_models(tmp_path_factory.mktemp("models"))


def test_a_model_that_is_not_there_fails_once(plan, tmp_path, capsys, monkeypatch):
    """One question, one message; the jobs of other systems go on."""
    from graphprune.study import language

    asked = []
    choose = language.choose_model

    def counted(name, **options):
        asked.append(name)
        return choose(name, **options)

    monkeypatch.setattr(language, "choose_model", counted)
    systems = {**plan["systems"], "gone": {"model": "./nowhere", "tasks": ["ioi", "greater_than"]}}
    methods = {"EAP": {"method": "eap"}, "chance": {"method": "random"}}
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump({**plan, "systems": systems, "methods": methods}))
    assert call("study", file, "--check") == 2
    said = capsys.readouterr()
    assert said.err.count("nowhere is not there") == 1
    assert "systems.gone.model" in said.err
    assert "small: ioi" in said.out  # what can be built is shown
    asked.clear()
    assert call("study", file, "--json") == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["jobs"] == {"done": 4, "failed": 8}
    assert said.err.count("nowhere is not there") == 1
    assert "8 jobs of gone cannot run" in said.err
    assert sum("nowhere" in name for name in asked) == 1


# -------------------------------------------------------------------- two files, own methods


def test_test_prompts_of_a_file_of_their_own_leave_out_those_of_the_training_file(
    models, tmp_path, capsys
):
    import shutil

    shutil.copytree(models[0], tmp_path / "tiny")
    write(tmp_path / "first.jsonl", pairs()[:20])
    write(tmp_path / "second.jsonl", pairs()[10:40])
    task = {"train_file": "first.jsonl", "test_file": "second.jsonl"}
    systems = {"small": {"model": "tiny", "tasks": [task]}}
    study = study_of(tmp_path, systems=systems, test=20)
    (job, _) = study.jobs()
    assert job.task == "first"
    case = job.source.make()
    found_on = {row["clean"] for row in pairs()[:20]}
    sides = []
    for part in (case.train, case.test):
        tokenizer = load_tokenizer(str(tmp_path / "tiny"))
        sides.append({tokenizer.decode(b.clean["input_ids"][0], True) for b in part.batches(1)})
    assert len(sides[0]) == 8
    assert sides[0] < found_on
    assert sides[1] == {row["clean"] for row in pairs()[20:40]}
    sentence = "10 of the 30 prompts of second.jsonl are prompts of first.jsonl too"
    (remark,) = study.check().cases[0].remarks
    assert sentence in remark
    results = study.run(tmp_path / "out")
    assert results.counts == {"done": 2}
    assert any(sentence in note for note in results.notes())
    assert sentence in (tmp_path / "out" / "report.html").read_text()
    keys = [job.key for job in study.jobs()]
    write(tmp_path / "second.jsonl", pairs()[10:41])
    assert not set(keys) & {job.key for job in study.jobs()}
    short = study_of(tmp_path, systems=systems, test=22).check()
    assert "holds 21 prompts to test on (10 of the 31 prompts" in short.mistakes[0].message


METHOD = """\
from dataclasses import dataclass

import torch

import graphprune as gp


@dataclass(frozen=True, kw_only=True)
class Numbered(gp.Scorer):
    factor: float = 1.0

    def score(self, model, task):
        values = torch.arange(model.graph.num_edges).float() * self.factor + 1
        return gp.EdgeScores(model.graph, values, method=self.label)
"""


def test_a_method_by_its_import_path(plan, tmp_path, monkeypatch, capsys):
    (tmp_path / "own_methods.py").write_text(METHOD)
    monkeypatch.syspath_prepend(tmp_path)
    methods = {"mine": {"method": "own_methods:Numbered", "factor": 2.0}}
    study = Study.from_dict({**plan, "methods": methods, "seeds": [0]})
    ((_, record),) = study.run(tmp_path / "out").records
    (job,) = study.jobs()
    case = job.source.make()
    graph = case.model.graph
    ranked = gp.EdgeScores(graph, 1.0 + 2.0 * torch.arange(graph.num_edges))
    curve = gp.faithfulness_curve(case.model, case.test, ranked)
    assert record["cmd"] == pytest.approx(curve.cmd, rel=1e-5)
    key = job.key
    (tmp_path / "own_methods.py").write_text(METHOD + "\n# changed\n")
    assert job.key != key, "another method under the old name is another job"
    for method, message in (
        ("own_methods:Other", "has no attribute 'Other'"),
        ("no_such_package:Other", "No module named 'no_such_package'"),
        ("json:JSONDecoder", "is no method"),
        ("own_methods:", "cannot import the method"),
    ):
        with pytest.raises(gp.InputError, match=message):
            Study.from_dict({**plan, "methods": {"mine": {"method": method}}})
    assert call("info", "--method", "own_methods:Numbered") == 0
    assert "default 1.0" in capsys.readouterr().out


def test_nothing_is_imported_for_a_study_that_names_no_import_path(plan, tmp_path, monkeypatch):
    (tmp_path / "trap_for_studies.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    Study.from_dict({**plan, "methods": {"trap_for_studies": {"method": "eap"}}})


# -------------------------------------------------------------------- info


def test_info_lists_a_systems_options(capsys):
    assert call("info", "--system", "Language", "--json") == 0
    facts = json.loads(capsys.readouterr().out)["system"]
    assert facts["system"] == "language"
    assert facts["model"].startswith("str, required. its folder")
    assert facts["batch_size"] == "int or None, default None. prompts at a time."
    assert {"train_file", "test_file", "metric", "dtype", "..."} < set(facts)
    assert call("info", "--system", "langage") == 2
    assert "did you mean 'language'" in capsys.readouterr().err
    assert call("info", "--json") == 0
    names = json.loads(capsys.readouterr().out)["systems"]
    assert set(names) == set(gp.study.system_names())


@pytest.mark.parametrize("kind", gp.study.system_names())
def test_every_option_of_every_system_is_described(kind):
    from graphprune.cli.facts import system_facts

    for name, text in system_facts(kind).items():
        if name not in ("system", "about", "..."):
            _, _, meaning = text.partition(". ")
            assert meaning, (kind, name)
