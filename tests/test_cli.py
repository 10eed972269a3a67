"""The command line: every command on a tiny saved model, its JSON, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from support.cli import call, out_of, save_circuit, save_model

import graphprune as gp


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    # By chance other weights would do the task on the few prompts of some tests.
    return save_model(tmp_path_factory.mktemp("models") / "tiny", seed=3)


@pytest.fixture
def circuit_dir(model_dir, tmp_path, capsys):
    folder = save_circuit(tmp_path / "circuit", model_dir)
    capsys.readouterr()
    return folder


def test_a_task_in_another_style(model_dir, tmp_path, capsys):
    out = tmp_path / "found"
    code = call(
        "discover", "--model", model_dir, "--task", "capitals", "--task-set", "style=few_shot",
        "--task-set", "shots=2", "--method", "eap", "--size", "0.3", "--examples", 8, "--out", out,
        "-q",
    )  # fmt: skip
    assert code == 0
    provenance = gp.Circuit.load(out).provenance
    assert "few_shot" in json.dumps(provenance)


def test_discover_writes_a_circuit_and_exports(model_dir, tmp_path, capsys):
    out = tmp_path / "found"
    code = call(
        "discover", "--model", model_dir, "--task", "ioi", "--method", "eap-ig", "--set", "steps=2",
        "--size", "0.3", "--examples", 12, "--export", "graphml,mib-json,html,csv", "--out", out,
        "--json",
    )  # fmt: skip
    assert code == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    circuit = gp.Circuit.load(out)
    assert document["kept"] == circuit.mask.num_kept > 0
    assert document["method"] == "EAPIG(steps=2)"
    assert document["train_prompts"] == 9
    assert document["requested"] == int(0.3 * document["graph_edges"])
    assert document["report"]["settings"]["examples"] == 3
    answers = circuit.provenance["notes"]["answers"]
    assert len(answers) == 3, "those of the held-out prompts"
    low, high = document["report"]["intervals"]["kl"]
    assert low <= document["report"]["kl"] <= high
    # Three prompts of a random model do not tell the full from the ablated one: no end is known.
    assert document["report"]["intervals"]["faithfulness"] == [None, None]
    assert "full - ablated is" in document["report"]["notes"]["faithfulness"]
    assert "3 examples: below 20" in document["report"]["remarks"][0]
    assert sorted(path.name for path in out.iterdir()) == sorted(document["files"])
    assert nx.read_graphml(out / "circuit.graphml").number_of_edges() >= circuit.mask.num_kept
    assert circuit.provenance["method"]["settings"]["steps"] == 2
    assert circuit.provenance["notes"]["selection"]["size"] == 0.3
    assert circuit.report_dict()["n_edges"] == circuit.mask.num_kept
    assert "scoring" not in said.out
    assert "edges kept" in said.err
    assert list(tmp_path.iterdir()) == [out]


def test_discover_prints_a_table_and_quiet_only_that(model_dir, tmp_path, capsys):
    base = ("discover", "-m", model_dir, "-t", "ioi", "--method", "eap", "-n", 4, "--size", 30)
    assert call(*base, "--out", tmp_path / "a", "--quiet") == 0
    said = capsys.readouterr()
    assert "faithfulness" in said.out
    assert "those it was found on" in said.out
    assert "edges: 30 requested, 30 selected" in said.out
    assert said.err == ""


@pytest.mark.parametrize(
    ("options", "selection"),
    [
        (("--select", "greedy", "--size", "20"), {"select": "greedy", "by": "abs", "size": 20}),
        (("--by", "signed", "--size", "0.5"), {"select": "top", "by": "signed", "size": 0.5}),
        (("--select", "threshold", "--threshold", "1e-9"),
         {"select": "threshold", "by": "abs", "threshold": 1e-9}),
        (("--method", "nap", "--select", "nodes", "--size", "6"),
         {"select": "nodes", "by": "abs", "size": 6}),
    ],
)  # fmt: skip
def test_every_selection(model_dir, tmp_path, capsys, options, selection):
    out = tmp_path / "c"
    arguments = ("--model", model_dir, "--task", "ioi", "-n", 4, "--out", out, "--keep-dead-ends")
    assert call("discover", *arguments, "--json", *options) == 0, capsys.readouterr().err
    circuit = gp.Circuit.load(out)
    done = circuit.provenance["notes"]["selection"]
    assert selection.items() <= done.items()
    assert done["kept"] == done["selected"] == circuit.mask.num_kept
    if isinstance(selection.get("size"), int) and selection["select"] != "nodes":
        assert circuit.mask.num_kept == selection["size"]


UGS = ("ugs", "uniform-gradient-sampling")
OF_PYG = (
    "attention-explainer", "captum-explainer", "gnn-explainer", "lottery-tickets", "pg-explainer"
)  # fmt: skip
OPTIMISERS = ("edge-pruning", "matryoshka", "subnetwork-probing", *UGS)


@pytest.mark.parametrize("name", sorted(gp.method_names()))
def test_every_registered_method_runs(model_dir, tmp_path, capsys, name):
    budget = ("--set", "tau=0.001") if name in ("acdc", "pahq", "rtn-q") else ("--size", "0.5")
    few = {"name": "edge-pruning", "steps": 3}
    chain = {"name": "sequential-ensemble", "optimiser": few}
    quick = {
        "sequential-ensemble": {"optimiser": few},
        "hybrid-ensemble": {"scorers": ["eap", chain]},
    }.get(name, {"steps": 3} if name in OPTIMISERS else {})
    for setting, value in quick.items():
        budget += ("--set", f"{setting}={json.dumps(value)}")
    arguments = ("--method", name, *budget, "-n", 2, "--out", tmp_path / "c", "-q")
    code = call("discover", "--model", model_dir, "--task", "ioi", "--json", *arguments)
    if name in OF_PYG:
        assert code == 1
        assert "gp.wrap(module, data=data)" in capsys.readouterr().err
        return
    if name in ("spectral", "spectral-scores"):  # a language model's graph has no cycle
        assert code == 1
        assert "Close it for the spectrum by feedback=" in capsys.readouterr().err
        closed = ("--set", 'feedback=[["logits", "input"]]')
        code = call("discover", "--model", model_dir, "--task", "ioi", *arguments, *closed)
    assert code == 0, capsys.readouterr().err


def test_the_same_seed_gives_the_same_circuit(model_dir, tmp_path, capsys):
    for name in ("a", "b"):
        arguments = ("-n", 8, "--size", "0.2", "--seed", 3, "--out", tmp_path / name, "-q")
        assert call("discover", "--model", model_dir, "--task", "ioi", *arguments) == 0
    a, b = (gp.Circuit.load(tmp_path / name) for name in ("a", "b"))
    assert a.mask == b.mask
    assert a.report_dict() == b.report_dict()
    assert a.provenance["seed"] == 3


def test_tasks_from_files(model_dir, tmp_path, capsys):
    pair = {"clean": "the park and the park", "corrupt": "the store and the park",
            "answer": " park", "distractor": " store"}  # fmt: skip
    other = {**pair, "clean": "the store and the store", "corrupt": "the park and the store"}
    prompts = tmp_path / "pairs.jsonl"
    prompts.write_text(f"{json.dumps(pair)}\n{json.dumps(other)}\n", encoding="utf-8")
    table = tmp_path / "pairs.csv"
    lines = [",".join(pair), *(",".join(p.values()) for p in (pair, other))]
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for file in (prompts, table):
        out = tmp_path / file.suffix[1:]
        arguments = ("--model", model_dir, "--task", file, "--size", "0.5", "--out", out)
        assert call("discover", *arguments, "--json", "--method", "eap") == 0
        assert out_of(capsys)["train_prompts"] == 2
    assert call("info", "--task", prompts, "--json") == 0
    assert out_of(capsys)["task"]["prompts"] == 2


def test_overwrite_replaces_a_circuit_and_nothing_else(model_dir, circuit_dir, tmp_path, capsys):
    keep = circuit_dir / "notes.txt"
    keep.write_text("mine", encoding="utf-8")
    base = ("discover", "--model", model_dir, "--task", "ioi", "-n", 2, "--out", circuit_dir)
    before = (circuit_dir / "circuit.json").read_bytes()
    assert call(*base, "--size", "0.9") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (circuit_dir / "circuit.json").read_bytes() == before
    assert call(*base, "--size", "0.9", "--overwrite", "--quiet") == 0
    assert gp.Circuit.load(circuit_dir).provenance["notes"]["selection"]["size"] == 0.9
    assert keep.read_text(encoding="utf-8") == "mine"


# -------------------------------------------------------------------- evaluate


def test_evaluate_repeats_the_report(model_dir, circuit_dir, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")  # wide enough for every cell to stand on one line
    base = ("evaluate", circuit_dir, "--model", model_dir, "--task", "ioi", "-n", 4)
    assert call(*base, "--json") == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document["n_edges"] == gp.Circuit.load(circuit_dir).mask.num_kept
    assert set(document["intervals"]) >= {"kl", "faithfulness", "accuracy", "exact_match"}
    assert "warning" not in said.err
    assert call(*base, "--quiet") == 0
    assert "KL to the full model" in capsys.readouterr().out


def test_evaluate_curve(model_dir, circuit_dir, tmp_path, capsys):
    base = ("evaluate", circuit_dir, "--model", model_dir, "--task", "ioi", "-n", 4)
    figure = tmp_path / "curve.png"
    assert call(*base, "--curve", "--plot", figure, "--json") == 0
    curve = out_of(capsys)["curve"]
    assert len(curve["sizes"]) == 10
    assert curve["faithfulness"]["abs"][-1] == pytest.approx(1)
    assert {"cpr", "cmd", "log_area"} <= set(curve)
    assert figure.read_bytes()[:4] == b"\x89PNG"
    assert call(*base, "--curve") == 0
    assert "cpr_clipped" in capsys.readouterr().out


def test_evaluate_uses_the_ablation_of_the_circuit(model_dir, tmp_path, capsys):
    out = tmp_path / "zero"
    base = ("--model", model_dir, "--task", "ioi", "-n", 4)
    assert call("discover", *base, "--size", "0.5", "--ablation", "zero", "--out", out) == 0
    capsys.readouterr()
    assert call("evaluate", out, *base, "--json") == 0
    assert out_of(capsys)["settings"]["ablation"] == "zero"
    assert call("evaluate", out, *base, "--json", "--ablation", "mean") == 0
    assert out_of(capsys)["settings"]["ablation"] == "mean"


def test_evaluate_refuses_another_graph_and_warns_of_other_weights(circuit_dir, tmp_path, capsys):
    deeper = save_model(tmp_path / "deeper", num_hidden_layers=3)
    reweighted_dir = save_model(tmp_path / "reweighted", seed=1)
    assert call("evaluate", circuit_dir, "--model", deeper, "--task", "ioi") == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "different graphs" in said.err
    base = ("--model", reweighted_dir, "--task", "ioi", "-n", 2, "--json")
    assert call("evaluate", circuit_dir, *base) == 0
    assert "other weights" in capsys.readouterr().err


# -------------------------------------------------------------------- info, fetch


def test_info_lists_everything(capsys):
    assert call("info", "--json") == 0
    known = out_of(capsys)
    assert "llama" in known["architectures"]["transformers"]
    assert set(known["methods"]) == set(gp.method_names())
    assert set(known["tasks"]) == set(gp.tasks.TASKS)
    assert call("info") == 0
    assert "eap-ig" in capsys.readouterr().out


def test_info_on_a_model_and_a_task_it_does_not_do(model_dir, capsys):
    assert call("info", "--model", model_dir, "--task", "ioi", "-n", 8, "--json") == 0
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert facts["model"]["edges"] < facts["model"]["edges_ungrouped"]
    assert facts["model"]["n_kv_heads"] == 2
    assert facts["task"]["prompts"] == 8
    measured = facts["task"]["performance"]
    assert set(measured["clean"]) == {"accuracy", "logit_diff", "prob_diff", "top1_accuracy"}
    assert measured["corrupted"]["logit_diff"] != measured["clean"]["logit_diff"]
    assert "does not do" in facts["task"]["warning"]
    assert "does not do" in said.err
    assert call("info", "--model", model_dir, "--task", "ioi", "-n", 2) == 0
    assert "edges_ungrouped" in capsys.readouterr().out


def test_nodes_say_how_fine_a_model_is_taken(model_dir, tmp_path, capsys):
    fine = []
    for nodes in ("auto", "block"):
        assert call("info", "--model", model_dir, "--nodes", nodes, "--json") == 0
        fine.append(out_of(capsys)["model"])
    assert fine[1]["edges"] < fine[0]["edges"]
    found = ("--model", model_dir, "--task", "ioi", "--method", "eap", "-n", 4, "-q")
    assert (
        call("discover", *found, "--nodes", "block", "--size", 0.8, "--out", tmp_path / "found")
        == 0
    )
    names = [node.name for node in gp.Circuit.load(tmp_path / "found").graph.nodes]
    assert names[:3] == ["input", "a0", "m0"]
    judged = ("evaluate", tmp_path / "found", "--model", model_dir, "--task", "ioi", "-n", 4, "-q")
    assert call(*judged, "--nodes", "block") == 0
    capsys.readouterr()
    assert call(*judged) != 0
    assert "graph" in capsys.readouterr().err


def test_info_on_a_task_without_a_model_and_on_a_circuit(model_dir, circuit_dir, capsys):
    assert call("info", "--task", "ioi", "--json") == 0
    assert out_of(capsys)["task"]["settings"]["corruption"] == "abc"
    assert call("info", "--task", "ioi", "--tokenizer", model_dir, "-n", 5, "--json") == 0
    assert out_of(capsys)["task"]["tokens"]["most"] > 5
    assert call("info", "--circuit", circuit_dir, "--json") == 0
    facts = out_of(capsys)["circuit"]
    assert facts["edges"] == gp.Circuit.load(circuit_dir).mask.num_kept
    assert call("info", "--circuit", circuit_dir) == 0
    assert "fingerprint" not in capsys.readouterr().out


def test_fetch_lists_and_names_the_known(capsys):
    assert call("fetch", "--json") == 0
    names = [a["name"] for a in out_of(capsys)["artifacts"]]
    assert names == ["smollm2", "celegans", "fly"]
    assert call("fetch", "nonsense") == 2
    assert "smollm2" in capsys.readouterr().err


# -------------------------------------------------------------------- the demo


DEMO_FILES = {
    "circuit.json", "tensors.safetensors", "circuit.graphml", "circuit.mib.json", "circuit.svg",
    "circuit.png", "circuit.html", "curve.png", "report.json",
}  # fmt: skip


def check_demo(out: Path, document: dict[str, Any]) -> None:
    assert {path.name for path in out.iterdir()} == DEMO_FILES
    circuit = gp.Circuit.load(out)
    assert circuit.mask.num_kept == document["kept"]
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["report"] == document["report"]
    assert nx.read_graphml(out / "circuit.graphml").number_of_nodes() == len(circuit.nodes())


def test_demo_on_a_tiny_model(model_dir, tmp_path, capsys):
    out = tmp_path / "demo"
    arguments = ("demo", "--model", model_dir, "--examples", 8, "--out", out)
    assert call(*arguments, "--json") == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    check_demo(out, document)
    assert document["task"]["train"] == document["task"]["held_out"] == 4
    assert document["random_curve"]["sizes"] == document["curve"]["sizes"]
    answers = gp.Circuit.load(out).provenance["notes"]["answers"]
    assert [set(row) for row in answers] == [{"prompt", "answer", "model", "circuit"}] * 4
    assert answers[0]["prompt"] in (out / "circuit.html").read_text(encoding="utf-8")
    assert "does not do" in said.err
    # A demo's own folder is written again; with another's file in it, it is not.
    assert call(*arguments, "--quiet") == 0
    shown = capsys.readouterr().out
    assert "held-out prompts" in shown
    assert f"Open {out / 'circuit.html'} in a browser" in shown
    assert f"graphprune show {out}" in shown
    (out / "mine.txt").write_text("mine", encoding="utf-8")
    assert call(*arguments) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_demo_on_smollm2(tmp_path):
    try:
        gp.fetch("smollm2")
    except gp.FetchError as error:
        pytest.skip(str(error))
    out = tmp_path / "demo"
    program = "from graphprune.cli import main; main()"
    command = [sys.executable, "-c", program, "demo", "--out", str(out), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    check_demo(out, document)
    report = document["report"]
    assert report["full"]["accuracy"] > 0.9
    assert report["density"] < 0.05
    assert 0.7 < report["faithfulness"] < 1.2
    assert report["accuracy"] > 0.8


def test_info_describes_a_graph(tmp_path, capsys):
    ring = nx.DiGraph()
    ring.add_weighted_edges_from(
        [("a", "b", 1.0), ("b", "c", 1.0), ("c", "a", 1.0), ("c", "d", 2.0)]
    )
    nx.write_graphml(ring, tmp_path / "ring.graphml")
    assert call("info", "--graph", tmp_path / "ring.graphml", "--json") == 0
    facts = out_of(capsys)["graph"]
    assert facts["components"] == {"strongly connected": 2, "largest": 3, "of one node": 1}
    assert facts["weights"] == "from the file"
    assert facts["spectrum"]["adjacency"]["sum of |Im|"] == pytest.approx(3**0.5)
    nx.write_gexf(nx.DiGraph([("a", "b")]), tmp_path / "chain.gexf")
    assert call("info", "--graph", tmp_path / "chain.gexf", "--json") == 0
    assert "no cycle" in out_of(capsys)["graph"]["spectrum"]
    nx.write_graphml(nx.path_graph(3), tmp_path / "path.graphml")
    assert call("info", "--graph", tmp_path / "path.graphml") == 2
    assert "undirected" in capsys.readouterr().err


def test_a_graph_network_from_the_command_line(tmp_path, capsys):
    arguments = ("--model", "argnn-digits", "--task", "digits")
    assert call("info", *arguments, "-n", 8, "--json") == 0
    facts = out_of(capsys)
    assert facts["model"]["architecture"] == "ARGNN"
    assert "example" not in facts["task"] or facts["task"]["example"] == {}
    out = tmp_path / "c"
    options = ("-n", 12, "--method", "magnitude", "--size", "0.5", "--out", out)
    assert call("discover", *arguments, *options, "--json") == 0
    assert out_of(capsys)["kept"] <= 3990
    assert call("evaluate", out, *arguments, "-n", 8, "--ablation", "zero", "--json") == 0
