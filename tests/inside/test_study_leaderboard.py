"""A study's selector, per-prompt comparisons, time in passes, and methods' own seeds and tasks."""

import json

import numpy as np
import pytest
import torch
from support.studies import small_plan

import graphprune as gp
from graphprune.study import Study
from graphprune.util.numbers import bootstrap_interval

pytestmark = pytest.mark.inside

DENSITIES = [0.1, 0.3]
AREAS = ("cmd", "cpr", "cpr_clipped", "log_area", "cmd_weighted", "cpr_weighted")


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    plan = small_plan(tmp_path_factory.mktemp("model"))
    plan["systems"]["small"]["metric"] = "kl"  # on which a random model has a curve at every seed
    return {
        **plan,
        "methods": {"EAP-IG": {"method": "eap-ig", "steps": 2}, "chance": {"method": "random"}},
        "densities": DENSITIES,
        "selector": "connected",
        "train": 8,
        "test": 30,
    }


@pytest.fixture(scope="module")
def ran(plan, tmp_path_factory):
    """The study and its results."""
    study = Study.from_dict(plan)
    return study, study.run(tmp_path_factory.mktemp("out"))


def cases_of(study):
    """By seed: the case, and each method's ranking."""
    cases = {}
    for job in study.jobs():
        case = cases.setdefault(job.seed, (job.source.make(), {}))
        scores = job.method.build(job.seed).score(case[0].model, case[0].train)
        case[1][job.method.name] = scores
    return cases


def kl_of_circuit(case, mask):
    """KL to the plain module's own logits, example by example, in numpy."""
    (batch,) = case.test.batches(100)
    with torch.no_grad():
        inputs = batch.clean
        whole = case.model.module(**inputs).logits.double().numpy()
        last = inputs["attention_mask"].sum(1).numpy() - 1
        plain = whole[np.arange(len(last)), last]
        circuit = case.model.run(batch, mask, case.model.reference(batch)).double().numpy()

    def logp(x):
        x = x - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    p, q = logp(plain), logp(circuit)
    in_order = np.argsort([list(case.test.example_numbers).index(i) for i in batch.indices])
    return (np.exp(p) * (p - q)).sum(-1)[in_order]


# -------------------------------------------------------------------- the selector


def test_connected_keeps_exactly_what_is_asked_for(ran, plan):
    study, results = ran
    edges = results.records[0][1]["edges"]
    for _, record in results.records:
        kept = [row["kept"] for row in record["rows"]]
        assert kept == [int(density * edges) for density in DENSITIES]
    frame = results.summary()
    for density in DENSITIES:
        assert (frame[f"kept@{density:g}"] == frame[f"requested@{density:g}"]).all()
    case, rankings = cases_of(study)[0]
    record = results.records[0][1]
    own = rankings["EAP-IG"].connected(int(0.1 * edges))
    assert record["rows"][0]["kl"] == pytest.approx(kl_of_circuit(case, own).mean(), rel=1e-4)
    usual = {**plan, "selector": None}
    jobs, plain = study.jobs(), Study.from_dict(usual).jobs()
    assert not {job.key for job in jobs} & {job.key for job in plain}
    without = {name: value for name, value in usual.items() if name != "selector"}
    assert [j.key for j in Study.from_dict(without).jobs()] == [j.key for j in plain]


def test_a_size_below_the_shortest_path_has_the_path(tmp_path):
    """No circuit of one edge leads through a compiled program: all methods get the shortest."""
    plan = {
        "systems": {"p": {"kind": "tracr", "tasks": ["reverse"]}},
        "methods": {"EAP": {"method": "eap"}, "chance": {"method": "random"}},
        "densities": [0.02],
        "selector": "connected",
        "seeds": [0],
        "train": 8,
        "test": 8,
    }
    results = Study.from_dict(plan).run(tmp_path)
    assert results.counts == {"done": 2}
    kept = [record["rows"][0]["kept"] for _, record in results.records]
    requested = int(0.02 * results.records[0][1]["edges"])
    assert kept[0] == kept[1] >= max(requested, 1)


@pytest.mark.parametrize("name", ["threshold", "nodes", "conected", 3])
def test_unknown_selectors(plan, name):
    with pytest.raises(gp.InputError, match="unknown selector"):
        Study.from_dict({**plan, "selector": name})


# -------------------------------------------------------------------- prompt by prompt


def test_paired_kl_is_that_of_plain_runs(ran):
    study, results = ran
    frame = results.paired("kl@0.1", "EAP-IG", "chance")
    (row,) = frame.to_dict("records")
    differences, prompts = [], []
    for case, rankings in cases_of(study).values():
        count = int(0.1 * case.model.graph.num_edges)
        first, second = (
            kl_of_circuit(case, rankings[name].connected(count)) for name in ("EAP-IG", "chance")
        )
        differences.append(first - second)
        (batch,) = case.test.batches(100)
        prompts += [tuple(ids) for ids in batch.clean["input_ids"].tolist()]
    assert len(set(prompts)) == 60  # no prompt is of both seeds
    pooled = np.concatenate(differences)
    assert (row["seeds"], row["prompts"]) == (2, 60)
    assert row["difference"] == pytest.approx(pooled.mean(), rel=1e-3)
    assert row["difference"] == pytest.approx(row["first"] - row["second"], rel=1e-9)
    low, high = bootstrap_interval(torch.from_numpy(pooled))
    assert (row["low"], row["high"]) == (
        pytest.approx(low, rel=1e-3),
        pytest.approx(high, rel=1e-3),
    )
    draws = np.random.default_rng(7).integers(60, size=(4000, 60))
    plain = np.quantile(pooled[draws].mean(1), [0.025, 0.975])
    assert np.abs(plain - [row["low"], row["high"]]).max() < 0.35 * (plain[1] - plain[0])
    assert row["tie"] == (row["low"] <= 0 <= row["high"])


def test_areas_over_prompts_are_those_of_the_curve(ran):
    _, results = ran
    for figure in AREAS:
        by_method = {}
        for job, record in results.records:
            by_method.setdefault(job.method.name, []).append(record[figure])
        frame = results.over_prompts(figure).set_index("method")
        for method, values in by_method.items():
            row = frame.loc[method]
            assert row["value"] == pytest.approx(np.mean(values), rel=1e-3, abs=1e-4), figure
            assert row["low"] <= row["value"] <= row["high"]
        itself = results.paired(figure, "EAP-IG", "EAP-IG").iloc[0]
        assert (itself["difference"], itself["low"], itself["high"]) == (0, 0, 0)
        assert itself["tie"]


def test_the_interval_of_a_difference_of_areas_is_a_bootstrap_of_prompts(ran):
    """Against percentiles of resampled curves in numpy, one seed's prompts at a time."""
    _, results = ran
    row = results.paired("cmd", "EAP-IG", "chance").iloc[0]
    records = {(job.method.name, job.seed): record for job, record in results.records}
    sizes = np.array(results.records[0][1]["curve"]["sizes"])
    rng = np.random.default_rng(3)

    def cmd(record, drawn):
        curve = record["examples"]["curve"]
        ablated, full, *_ = means = np.array(curve["values"])[:, drawn].mean(1)
        f = (means[curve["at"]["abs"]] - ablated) / (full - ablated)
        return np.trapezoid(np.abs(1 - f), sizes)

    drawn_differences = []
    for _ in range(1500):
        by_seed = []
        for seed in (0, 1):
            drawn = rng.integers(30, size=30)
            both = (cmd(records[name, seed], drawn) for name in ("EAP-IG", "chance"))
            by_seed.append(next(both) - next(both))
        drawn_differences.append(np.mean(by_seed))
    low, high = np.quantile(drawn_differences, [0.025, 0.975])
    whole = slice(None)
    estimate = np.mean(
        [cmd(records["EAP-IG", s], whole) - cmd(records["chance", s], whole) for s in (0, 1)]
    )
    assert row["difference"] == pytest.approx(estimate, rel=1e-6)
    width = high - low
    assert 0.7 * width < row["high"] - row["low"] < 2.5 * width
    assert row["low"] < estimate < row["high"]


def test_prompt_values_are_rounded_and_on_few_lines(ran):
    _, record = ran[1].records[0]
    values = record["examples"]["rows"][0]["kl"]
    assert len(values) == len(record["examples"]["prompts"]) == 30
    assert all(float(f"{value:.6g}") == value for value in values)
    assert set(record["examples"]["rows"][0]) >= {"kl", "metric", "top1_match"}
    assert set(record["examples"]["rows"][0]["top1_match"]) <= {0, 1}
    assert len(json.dumps(record)) < 30 * 1024


def test_weighted_sizes_count_edges_really_kept(ran):
    """An edge into a key or value counts once for each query head that shares it."""
    study, results = ran
    records = {(job.method.name, job.seed): record for job, record in results.records}
    for seed, (case, rankings) in cases_of(study).items():
        graph, config = case.model.graph, case.model.module.config
        repeats = config.num_attention_heads // config.num_key_value_heads
        assert repeats > 1
        weights = np.array([repeats if n[-3:] in ("<k>", "<v>") else 1 for n in graph.edge_names])
        for name, scores in rankings.items():
            record = records[name, seed]
            curve = record["curve"]
            for by in ("signed", "abs"):
                shares = []
                for size in curve["sizes"]:
                    mask = scores.top(int(size * graph.num_edges), by).prune_dead_ends()
                    shares.append(weights[mask.kept.numpy()].sum() / weights.sum())
                assert curve["weighted"][by] == pytest.approx(shares, rel=1e-5)
            areas = {
                "cmd_weighted": (np.abs(1 - np.array(curve["f"]["abs"])), "abs"),
                "cpr_weighted": (np.array(curve["f"]["signed"]), "signed"),
            }
            for figure, (heights, by) in areas.items():
                area = np.trapezoid(heights, curve["weighted"][by])
                assert record[figure] == pytest.approx(area, rel=1e-5)


@pytest.mark.parametrize(
    ("figure", "methods", "message"),
    [
        ("seconds", ("EAP-IG", "chance"), "'seconds' has no value for each prompt"),
        ("kl@0.2", ("EAP-IG", "chance"), "unknown density '0.2'"),
        ("cmd", ("EAP", "chance"), "unknown method 'EAP'; did you mean 'EAP-IG'"),
    ],
)
def test_what_cannot_be_compared(ran, figure, methods, message):
    with pytest.raises(gp.InputError, match=message):
        ran[1].paired(figure, *methods)


# -------------------------------------------------------------------- time, seeds, tasks


def test_time_in_passes(plan, tmp_path, monkeypatch):
    monkeypatch.setattr("graphprune.study.jobs.pass_seconds", lambda case: 0.5)
    methods = {
        "one": {"method": "integrated-mask-gradient", "steps": 1},
        "both": {
            "method": "parallel-ensemble",
            "scorers": [
                {"method": "integrated-mask-gradient", "steps": 1},
                {"method": "eap-ig", "steps": 2},
            ],
        },
    }
    results = Study.from_dict({**plan, "methods": methods, "seeds": [0]}).run(tmp_path)
    for _, record in results.records:
        assert record["time_in_passes"] == pytest.approx(2 * record["seconds"])
    passes = [(record["passes"], record["trials"]) for _, record in results.records]
    assert passes == [(1, 0), (3, 0)]  # a batch of eight; the ensemble counts both members
    frame = results.overall()
    assert {"passes", "time_in_passes", "cmd_weighted"} <= set(frame)
    page = (tmp_path / "report.html").read_text()
    assert "time in passes" in page
    assert "by the selector connected" in page


def test_methods_with_seeds_and_tasks_of_their_own(plan):
    systems = {"small": {**plan["systems"]["small"], "tasks": ["ioi", "greater_than"]}}
    methods = {
        "EAP": {"method": "eap"},
        "one": {"method": "eap-ig", "seeds": [1]},
        "two": {"method": "random", "tasks": ["greater_than"]},
    }
    study = Study.from_dict({**plan, "systems": systems, "methods": methods})
    jobs = {}
    for job in study.jobs():
        jobs.setdefault(job.method.name, []).append((job.task, job.seed))
    assert jobs == {
        "EAP": [("ioi", 0), ("ioi", 1), ("greater_than", 0), ("greater_than", 1)],
        "one": [("ioi", 1), ("greater_than", 1)],
        "two": [("greater_than", 0), ("greater_than", 1)],
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": [4]}, "unknown seed '4'"),
        ({"tasks": ["greater_then"]}, "unknown task 'greater_then'"),
        ({"seeds": 0}, "expected list"),
        ({"tasks": "ioi"}, "expected list"),
    ],
)
def test_seeds_and_tasks_that_the_study_lacks(plan, settings, message):
    with pytest.raises(gp.InputError, match=message):
        Study.from_dict({**plan, "methods": {"EAP": {"method": "eap", **settings}}})


def test_one_seed_has_intervals_over_its_prompts(ran, plan, tmp_path):
    methods = {**plan["methods"], "chance": {"method": "random", "seeds": [0]}}
    results = Study.from_dict({**plan, "methods": methods}).run(tmp_path)
    rows = results.summary().set_index("method")
    assert rows["seeds"].to_dict() == {"EAP-IG": 2, "chance": 1}
    assert rows.loc["chance", "note"] == "one seed: intervals are over its prompts"
    own = results.over_prompts("cmd").set_index("method").loc["chance"]
    assert rows.loc["chance", "cmd_low"] == own["low"] < own["value"]
    ties = results.ties()
    assert set(ties["seeds"]) <= {1, 2}
    assert {"cmd", "cpr", "kl@0.1", "top1_match@0.3"} <= set(ties["figure"])
    assert ties[ties["method"] == ties["best"]]["tie"].all()
