"""Mask optimisers on the command line: settings, budgets, run directories, Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from support.cli import call, out_of, save_model

import graphprune as gp


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


def discover(model_dir, out, *more, method="edge-pruning", steps=12):
    return call(
        "discover", "--model", model_dir, "--task", "ioi", "--examples", 8, "--method", method,
        "--set", f"steps={steps}", "--batch-size", 4, "--out", out, *more,
    )  # fmt: skip


@pytest.mark.parametrize("method", ["edge-pruning", "ugs", "matryoshka", "subnetwork-probing"])
def test_every_optimiser_runs_and_keeps_exactly_what_is_asked(method, model_dir, tmp_path, capsys):
    more = ["--set", "samples=2"] if method == "ugs" else []
    assert discover(model_dir, tmp_path / "c", "--size", 20, *more, "--json", method=method) == 0
    document = out_of(capsys)
    circuit = gp.Circuit.load(tmp_path / "c")
    assert circuit.mask.num_kept == document["kept"] == 20
    assert circuit.mask.prune_dead_ends() == circuit.mask
    assert circuit.scores is not None
    assert circuit.provenance["method"]["settings"]["size"] == 20


def test_a_size_as_a_share_and_all_settings(model_dir, tmp_path, capsys):
    settings = ["node_gates=true", "loss=kl", "target=0.9", "warm_start=eap-ig"]
    more = ["--variant", "paper", *(part for text in settings for part in ("--set", text))]
    assert discover(model_dir, tmp_path / "c", "--size", "0.25", *more, "--json") == 0
    document = out_of(capsys)
    edges = document["graph_edges"]
    assert document["kept"] == int(0.25 * edges)
    settings = gp.Circuit.load(tmp_path / "c").provenance["method"]["settings"]
    assert settings["variant"] == "paper"
    assert (settings["clip"], settings["lr_lambda"], settings["target"]) == (1.0, 0.8, 0.9)
    assert settings["size"] == 0.25
    assert settings["warm_start"] == "eap-ig"
    assert "run_dir" not in settings  # says nothing of the user's folders


def test_learned_constants_are_what_the_report_uses(model_dir, tmp_path, capsys):
    assert discover(model_dir, tmp_path / "c", "--ablation", "optimal", "--size", 20, "--json") == 0
    assert out_of(capsys)["report"]["settings"]["ablation"] == "optimal"


def test_a_run_directory_is_resumed(model_dir, tmp_path, capsys):
    run = ("--run-dir", tmp_path / "run", "--set", "checkpoint_every=4")
    assert discover(model_dir, tmp_path / "a", *run) == 0
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"run.json", "checkpoint.safetensors"}
    assert discover(model_dir, tmp_path / "b", *run) == 0
    assert gp.Circuit.load(tmp_path / "a").mask == gp.Circuit.load(tmp_path / "b").mask
    capsys.readouterr()
    assert discover(model_dir, tmp_path / "c", *run, steps=13) == 1
    said = capsys.readouterr().err
    assert "settings.steps was 12, is 13" in said
    assert not (tmp_path / "c").exists()


def test_ctrl_c_writes_the_best_mask_so_far_and_the_same_command_goes_on(
    model_dir, tmp_path, capsys
):
    def options(run, out):
        return [
            "discover", "--model", str(model_dir), "--task", "ioi", "--examples", "8", "--method",
            "edge-pruning", "--set", "steps=60", "--batch-size", "4", "--run-dir",
            str(tmp_path / run), "--set", "checkpoint_every=5", "--json", "--out",
            str(tmp_path / out),
        ]  # fmt: skip

    program = [sys.executable, "-c", "from graphprune.cli import main; main()"]
    process = subprocess.Popen(
        [*program, *options("run", "a")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    state = tmp_path / "run" / "checkpoint.safetensors"
    deadline = time.monotonic() + 120
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    document = json.loads(out)
    assert document["stopped"].startswith("stopped at step ")
    assert err.count("stopped at step") == 1
    assert "the best mask" not in err
    assert "the circuit is no finished result, but the mask of the gates at step" in err
    assert "the same command with --overwrite resumes the run" in err
    stopped = gp.Circuit.load(tmp_path / "a")
    notes = stopped.provenance["notes"]
    assert notes["stopped"] == notes["selection"]["stopped"] == document["stopped"]
    step = int(document["stopped"].split()[3])
    assert notes["selection"]["circuit_is"].startswith(f"the mask of the gates at step {step}, ")
    assert stopped.report_dict()["kl"] == document["report"]["kl"]
    assert (
        stopped.mask.num_kept
        == document["kept"]
        == (document["graph_edges"] - int(0.98 * document["graph_edges"]))
    )
    assert call(*options("run", "a"), "--overwrite") == 0
    assert "stopped" not in out_of(capsys)
    assert call(*options("another", "c")) == 0
    resumed, straight = gp.Circuit.load(tmp_path / "a"), gp.Circuit.load(tmp_path / "c")
    assert resumed.mask == straight.mask
    assert torch.equal(resumed.scores.values, straight.scores.values)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--select", "greedy"), "chooses the edges itself"),
        (("--by", "signed"), "chooses the edges itself"),
        (("--set", "steps=0"), "gives 'steps' twice"),
        (("--variant", "mine"), "unknown variant 'mine'; known: default, paper, paper-greater"),
        (("--set", "nothing=1"), "has no setting 'nothing'"),
        (("--set", "loss=nll"), "unknown loss 'nll'"),
    ],
)
def test_bad_options(options, words, model_dir, tmp_path, capsys):
    code = discover(model_dir, tmp_path / "c", *options)
    said = capsys.readouterr().err
    if code == 0:
        pytest.fail("accepted")
    assert code == 2
    assert words in said
    assert "Traceback" not in said
    assert not (tmp_path / "c").exists()


def test_a_run_directory_is_for_optimisers(model_dir, tmp_path, capsys):
    code = call(
        "discover", "--model", model_dir, "--task", "ioi", "--method", "eap", "--out",
        tmp_path / "c", "--run-dir", tmp_path / "run",
    )  # fmt: skip
    assert code == 2
    assert "--run-dir is for mask optimisers" in capsys.readouterr().err


def test_info_lists_a_methods_settings(capsys):
    assert call("info", "--method", "edge-pruning", "--json") == 0
    facts = out_of(capsys)["method"]
    assert facts["python"] == "gp.EdgePruning"
    assert facts["steps"] == "default 1000. optimisation steps."
    assert facts["variant"].startswith("default default. ")
    assert facts["variant paper-greater-than"].endswith("node_target=0.68")
    assert "checkpoints" in facts["run_dir"]
    assert all(
        len(text.split(". ", 1)) == 2 for name, text in facts.items() if name in ("seed", "lr")
    )
    assert call("info", "--method", "acdc2") == 2
    assert "unknown method 'acdc2'" in capsys.readouterr().err
