"""Every example runs to its end in quick mode, without a download and without a warning."""

import os
import subprocess
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
    "graph_pruning.py": (["digits.csv", "digits.png"], "preserve"),
    "own_prompts.py": (["pairs.jsonl", "circuit/circuit.json"], "log_odds"),
    "compare_methods.py": (["methods.csv", "curves.png"], "cpr"),
    "third_party_method.py": ([], "passed"),
    "edge_pruning_language.py": (["table.csv", "edges_needed.csv"], "edge pruning"),
    "precision_table.py": (["precision.csv", "decisions.csv"], "PAHQ"),
    "two_prompts_one_task.py": (
        ["table.csv", "few_shot/circuit.json", "overlap.csv", "overlap.png", "profiles.png"],
        "composition",
    ),
}
HELPERS = {"small_models.py"}
# torch_geometric's, while it is imported.
PYG = "ignore:`torch.jit.script` is deprecated:DeprecationWarning"


def run(script: str, *arguments: str, folder: Path) -> str:
    """Stdout of the script, run in ``folder`` offline, in one thread."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", PYG, str(EXAMPLES / script), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_listed():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*SCRIPTS, *HELPERS}


LONG = ("graph_pruning.py", "precision_table.py", "edge_pruning_language.py")


@pytest.mark.parametrize(
    "script", [pytest.param(s, marks=pytest.mark.slow) if s in LONG else s for s in SCRIPTS]
)
def test_example(script, tmp_path):
    files, word = SCRIPTS[script]
    out = tmp_path / "out"
    printed = run(script, "--quick", *(["--out", str(out)] if files else []), folder=tmp_path)
    assert word in printed
    for name in files:
        assert (out / name).stat().st_size > 0, name
    assert {path.name for path in tmp_path.iterdir()} <= {"out", "cache"}
    if "circuit.json" in files:
        circuit = gp.Circuit.load(out)
        assert 0 < circuit.mask.num_kept < circuit.graph.num_edges
        assert circuit.provenance["task"]["name"] == "ioi"
        assert circuit.report_dict()["settings"]["examples"] == 4
