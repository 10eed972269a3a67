"""Every example runs to its end in quick mode, without a download and without a warning."""

import runpy
import sys
from pathlib import Path

import pytest

import graphprune as gp

EXAMPLES = Path(__file__).parent.parent / "examples"
# What each writes under --out, and a word of what it prints.
SCRIPTS = {
    "ioi_circuit.py": (
        [
            "circuit.json",
            "tensors.safetensors",
            "circuit.graphml",
            "circuit.mib.json",
            "circuit.svg",
            "circuit.html",
        ],
        "faithfulness",
    ),
    "dynamic_pruning.py": (["results.csv", "errors.csv", "training.csv", "training.png"], "paper"),
    "graph_pruning.py": (["digits.csv", "digits.png"], "preserve"),
    "own_prompts.py": (["pairs.jsonl", "circuit/circuit.json"], "log_odds"),
    "compare_methods.py": (["methods.csv", "curves.png"], "cpr"),
    "cross_architecture.py": (["table.csv", "cross_architecture.png"], "rotation beyond norm"),
    "third_party_method.py": ([], "passed"),
    "edge_pruning_language.py": (["table.csv", "edges_needed.csv"], "edge pruning"),
    "precision_table.py": (["precision.csv", "decisions.csv"], "PAHQ"),
    "two_prompts_one_task.py": (
        ["table.csv", "few_shot/circuit.json", "overlap.csv", "overlap.png", "profiles.png"],
        "composition",
    ),
}
HELPERS = {"small_models.py"}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a script in an empty folder, as ``python script`` does; gives what it printed."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)

    def running(script: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out

    return running


def test_every_example_is_listed():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*SCRIPTS, *HELPERS}


LONG = ("graph_pruning.py", "precision_table.py", "edge_pruning_language.py")


@pytest.mark.parametrize(
    "script", [pytest.param(s, marks=pytest.mark.slow) if s in LONG else s for s in SCRIPTS]
)
def test_example(script, run, tmp_path):
    files, word = SCRIPTS[script]
    out = tmp_path / "out"
    printed = run(script, "--quick", *(["--out", str(out)] if files else []))
    assert word in printed
    for name in files:
        assert (out / name).stat().st_size > 0, name
    assert {path.name for path in tmp_path.iterdir()} <= {"out", "cache"}
    if "circuit.json" in files:
        circuit = gp.Circuit.load(out)
        assert 0 < circuit.mask.num_kept < circuit.graph.num_edges
        assert circuit.provenance["task"]["name"] == "ioi"
        assert circuit.report_dict()["settings"]["examples"] == 4
