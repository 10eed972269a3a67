"""``graphprune export`` and ``graphprune export-model`` on a tiny saved model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.cli import call, out_of, save_circuit, save_model

import graphprune as gp


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    # By chance other weights would do the task on the few prompts of some tests.
    return save_model(tmp_path_factory.mktemp("models") / "tiny", seed=3, num_hidden_layers=1)


@pytest.fixture
def circuit_dir(model_dir, tmp_path, capsys):
    folder = save_circuit(tmp_path / "circuit", model_dir)
    capsys.readouterr()
    return folder


def test_export_by_format_and_by_file(circuit_dir, tmp_path, capsys):
    wanted = [tmp_path / "x.dot", tmp_path / "deep" / "x.gexf"]
    names = ("graphml", "mib-json", "html", "svg", "node-link")
    options = [part for wish in (*names, *wanted) for part in ("--to", wish)]
    assert call("export", circuit_dir, *options, "--json") == 0
    files = out_of(capsys)["files"]
    assert [Path(f).exists() for f in files] == [True] * 7
    assert (circuit_dir / "circuit.mib.json").exists()
    assert (circuit_dir / "circuit.node-link.json").exists()
    assert gp.Circuit.load(circuit_dir).mask.num_kept > 0  # its own files are untouched


def test_export_refuses(circuit_dir, tmp_path, capsys):
    taken = tmp_path / "x.dot"
    taken.write_text("mine", encoding="utf-8")
    for wish, words in (
        (taken, "exists"),
        ("nonsense", "unknown format 'nonsense'; known: graphml"),
        (tmp_path / "x.xyz", "names no export format"),
        (circuit_dir / "circuit.json", "exists"),
    ):
        assert call("export", circuit_dir, "--to", wish) == 2
        assert words in capsys.readouterr().err
    assert call("export", circuit_dir, "--to", circuit_dir / "circuit.json", "--overwrite") == 2
    assert "belongs to the circuit" in capsys.readouterr().err
    assert taken.read_text(encoding="utf-8") == "mine"
    assert call("export", circuit_dir, "--to", taken, "--overwrite") == 0


DEMO_FILES = {
    "circuit.json", "tensors.safetensors", "circuit.graphml", "circuit.mib.json", "circuit.svg",
    "circuit.png", "circuit.html", "curve.png", "report.json",
}  # fmt: skip


def test_export_model_writes_a_program(model_dir, circuit_dir, tmp_path, capsys):
    import torch

    out = tmp_path / "own"
    arguments = ("--model", model_dir, "--task", "ioi", "-n", 4, "--ablation", "mean")
    # Found with corrupted prompts: under mean ablation it is another model.
    options = ("--logits-to-keep", 1, "--out", out, "--allow-difference")
    assert call("export-model", circuit_dir, *arguments, *options, "--json") == 0
    document = out_of(capsys)
    assert document["report"]["logits_to_keep"] == 1
    program = torch.export.load(out / "model.pt2").module()
    assert program(torch.tensor([[3, 1, 4]])).shape[:2] == (1, 1)
    assert call("export-model", circuit_dir, *arguments, *options) == 1
    assert "exists and is not empty" in capsys.readouterr().err
    assert call("export-model", circuit_dir, *arguments, *options, "--overwrite") == 0
    assert "parameters" in capsys.readouterr().out


def test_export_model_says_what_is_wrong(model_dir, circuit_dir, tmp_path, capsys):
    out = ("--out", tmp_path / "own")
    for options, words, code in (
        (("--ablation", "mean"), "give task=", 1),
        (("--ablation", "counterfactual"), "corrupted prompt at every call", 1),
        (("--ablation", "sum", "--task", "ioi", "-n", 4), "unknown ablation 'sum'", 2),
    ):
        assert call("export-model", circuit_dir, "--model", model_dir, *out, *options) == code
        assert words in capsys.readouterr().err
    assert call("export-model", circuit_dir, "--model", model_dir, *out, "-q", "--json") == 0
    told = capsys.readouterr()
    assert "found under counterfactual ablation and is exported under zero; no task" in told.err
    assert json.loads(told.out)["report"]["ablation"] == "zero"
    other = save_model(tmp_path / "other", seed=1, num_hidden_layers=1)
    assert call("export-model", circuit_dir, "--model", other, "--out", tmp_path / "no") == 1
    assert "weights" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
