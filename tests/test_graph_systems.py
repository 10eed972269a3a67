"""Graph networks that learn when asked for: what they can do, and studies over them."""

import pytest
import torch

import graphprune as gp
from graphprune.study import Study, make_case

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def cases():
    def make(kind, task, train=20):
        return make_case(kind, task, train=train, test=14, seed=0, options={})

    return {
        "argnn-digits": make("argnn-digits", "digits"),
        "gcn-karate": make("gcn-karate", "communities"),
        "gnn-reachability": make("gnn-reachability", "reachable"),
        "hetero-planted": make("hetero-planted", "planted", 96),
    }


@pytest.mark.parametrize(
    "kind", ["argnn-digits", "gcn-karate", "gnn-reachability", "hetero-planted"]
)
def test_train_and_test_share_no_example(cases, kind):
    case = cases[kind]
    rows = []
    for task in (case.train, case.test):
        batches = list(task.batches(1))
        if "author.x" in batches[0].clean:  # examples have features of their own
            rows.append({tuple(b.clean["author.x"].flatten().tolist()) for b in batches})
        elif batches[0].positions is None:
            rows.append({tuple(b.clean["inputs"].flatten().tolist()) for b in batches})
        else:
            rows.append({int(b.positions) for b in batches})
    assert not rows[0] & rows[1]


def test_deletion_is_measured_on_the_network_itself(cases):
    case = cases["argnn-digits"]
    everything = gp.EdgeMask.full(case.model.graph)
    nothing = gp.EdgeMask(case.model.graph, torch.zeros(case.model.graph.num_edges))
    assert case.measure(everything)["accuracy_deleted"] > 0.87
    assert case.measure(nothing)["accuracy_deleted"] < 0.3
    assert bool(case.model.module.edge_keep.all())


def test_a_study_across_architectures(tmp_path):
    study = Study.from_dict(
        {
            "systems": {
                "digits": {"kind": "argnn-digits", "tasks": ["digits"]},
                "club": {"kind": "gcn-karate", "tasks": ["communities"]},
            },
            "methods": {
                "EAP": {"method": "eap"},
                "magnitude": {"method": "magnitude"},
                "damp": {"method": "spectral-scores"},
            },
            "seeds": [0],
            "train": 16,
            "test": 16,
        }
    )
    results = study.run(tmp_path)
    assert results.counts == {"done": 6}, results.failures()
    frame = results.to_frame()
    assert frame[frame.system == "digits"]["accuracy_deleted"].notna().all()


def test_bad_input():
    with pytest.raises(gp.InputError, match="its only task; got 'letters'"):
        make_case("argnn-digits", "letters", train=2, test=2, seed=0, options={})
    with pytest.raises(gp.InputError, match="unseen digits"):
        make_case("argnn-digits", "digits", train=600, test=2, seed=0, options={})
    with pytest.raises(gp.InputError, match="do not take these options"):
        make_case("gcn-karate", "communities", train=2, test=2, seed=0, options={"size": 3})


@pytest.mark.parametrize(
    "method",
    [gp.EAP(), gp.EAP(ablation="zero"), gp.EAPIG(steps=5), gp.ExactPatching()],
    ids=lambda m: m.label,
)
def test_attribution_ranks_the_planted_relation_first(cases, method):
    """Every edge of the one relation that matters above every edge of the other five."""
    case = cases["hetero-planted"]
    full = gp.EdgeMask.full(case.model.graph)
    assert gp.evaluate(case.model, case.test, full)["accuracy"] == 1.0
    scores = method.score(case.model, case.train)
    planted = case.truth.values.bool()
    assert 0.1 < case.truth.density < 0.25
    assert scores.values[planted].min() > scores.values[~planted].abs().max()
    found = scores.top(case.truth.num_kept)
    assert gp.recovery(found, case.truth).exact
    assert {case.model.graph.edge_kinds[k] for k in case.model.graph.edge_kind[found.kept]} == {
        "author__writes__paper"
    }
    alone = gp.evaluate(case.model, case.test, found, ablation="delete")
    assert alone["accuracy"] == 1.0
    without = gp.evaluate(case.model, case.test, ~found, ablation="delete")
    assert without["accuracy"] < 0.7


def test_the_planted_relation_is_not_found_by_chance(cases):
    case = cases["hetero-planted"]
    random = gp.Random().score(case.model, case.train).top(case.truth.num_kept)
    assert gp.recovery(random, case.truth).precision < 0.4


@pytest.mark.parametrize("task", ["ba-shapes", "tree-cycles"])
def test_motifs_are_what_they_are_called(task):
    """Houses of five nodes and six ties, rings of six; the truth is those of the nodes asked."""
    import networkx as nx

    case = make_case("gnn-motifs", task, train=30, test=30, seed=1, options={})
    ends = case.model.graph.edge_index[:, case.truth.kept].T.tolist()
    pieces = nx.Graph(ends)
    shape = nx.house_graph() if task == "ba-shapes" else nx.cycle_graph(6)
    for nodes in nx.connected_components(pieces):
        assert nx.is_isomorphic(pieces.subgraph(nodes), shape)
    asked = {int(b.positions) for b in case.train.batches(1)}
    assert asked <= set(pieces)
    assert len(ends) == 2 * pieces.number_of_edges()
    full = gp.EdgeMask.full(case.model.graph)
    report = gp.evaluate(case.model, case.test, full, ablation="delete")
    assert report["top1_accuracy"] > 0.9


def test_in_the_block_model_partners_tell_the_class():
    case = make_case("block-model", "classes", train=60, test=100, seed=0, options={})
    accuracy = {
        name: gp.evaluate(case.model, case.test, mask, ablation="delete")["top1_accuracy"]
        for name, mask in {
            "full": gp.EdgeMask.full(case.model.graph),
            "planted": case.truth,
            "others": ~case.truth,
        }.items()
    }
    assert accuracy["planted"] > 0.9 > accuracy["full"] > accuracy["others"]
    with pytest.raises(gp.InputError, match="its only task; got 'edges'"):
        make_case("block-model", "edges", train=2, test=2, seed=0, options={})
    with pytest.raises(gp.InputError, match="unknown graph with motifs 'houses'"):
        make_case("gnn-motifs", "houses", train=2, test=2, seed=0, options={})


def test_a_study_of_the_baselines(tmp_path):
    """The example's methods, shortened, on its block model."""
    from pathlib import Path

    import yaml

    path = Path(__file__).parent.parent / "examples" / "gnn_baselines.yaml"
    Study.from_yaml(path)
    plan = yaml.safe_load(path.read_text("utf-8"))
    short = {"gnn-explainer": 2, "pg-explainer": 1, "lottery-tickets": 1}
    for method in plan["methods"].values():
        if method["method"] in short:
            method["epochs"] = short[method["method"]]
    systems = {"block model": plan["systems"]["block model"]}
    sizes = {"train": 6, "test": 6, "seeds": [0], "densities": [0.3]}
    results = Study.from_dict({**plan, "systems": systems, **sizes}).run(tmp_path)
    assert results.counts == {"done": len(plan["methods"])}, results.failures()
    assert results.to_frame()["auroc"].notna().all()
