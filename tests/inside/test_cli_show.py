"""``graphprune show``: the tree, what folds, the page; and progress where there is no terminal."""

from __future__ import annotations

import subprocess
import sys

import networkx as nx
import pytest
import torch
from support.cli import call, out_of
from support.tiny import tiny
from transformer_graph import random_scores, transformer_graph

import graphprune as gp
from graphprune.cli.selecting import passes_by_bar
from graphprune.util import progress


@pytest.fixture
def saved(tmp_path):
    """A circuit of a count of edges of a small transformer's graph, and its folder."""

    def make(count, graph=None, connected=True):
        graph = transformer_graph(6, 4) if graph is None else graph
        scores = random_scores(graph)
        mask = scores.connected(count) if connected else scores.top(count)
        circuit = gp.Circuit.from_mask(mask, scores)
        return circuit, circuit.save(tmp_path / f"c{count}")

    return make


def shown(capsys, *arguments):
    assert call("show", *arguments) == 0, capsys.readouterr().err
    return capsys.readouterr().out.splitlines()


def edges_in(lines):
    """The printed edges: source, kind and score of every line that has a score."""
    rows = []
    for line in lines:
        words = line.replace("│", " ").replace("├──", " ").replace("└──", " ").split()
        scores = [word for word in words if word[0] in "+-" and word[1:2].isdigit()]
        if scores:
            kind = next((word.strip("<>") for word in words if word.startswith("<")), "")
            rows.append((words[0], kind, float(scores[0])))
    return rows


def test_kinds_of_input_are_explained_where_they_stand(saved, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    _, folder = saved(60)
    lines = shown(capsys, folder, "--no-open")
    [key] = [line for line in lines if line.startswith("inputs: ")]
    tree = "\n".join(line for line in lines if line != key)
    kinds = {"q", "k", "v", "mlp", "resid"}
    assert {kind for kind in kinds if f"<{kind}>" in tree} == {k for k in kinds if f"<{k}>" in key}
    assert "<resid> the residual stream that the output reads" in key


@pytest.mark.parametrize("count", [10, 60])
def test_every_edge_stands_in_the_tree_once(saved, capsys, monkeypatch, count):
    monkeypatch.setenv("COLUMNS", "200")
    circuit, folder = saved(count)
    lines = shown(capsys, folder, "--no-open")
    table = circuit.scores.to_frame()[circuit.mask.kept.numpy()]
    expected = sorted((r.source, r.kind or "", float(f"{r.score:.3g}")) for r in table.itertuples())
    assert sorted(edges_in(lines)) == expected
    assert lines[1] == "logits"  # the output stands at the top
    assert not any("more edge" in line for line in lines)


def test_the_strongest_edge_into_the_output_stands_first(saved, capsys):
    circuit, folder = saved(60)
    first = edges_in(shown(capsys, folder, "--no-open"))[0]
    table = circuit.scores.to_frame()[circuit.mask.kept.numpy()]
    into = table[table["target"] == "logits"]
    strongest = into.loc[into["score"].abs().idxmax()]
    assert first[0] == strongest["source"]


def test_a_long_tree_folds_and_says_what_it_hides(saved, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    circuit, folder = saved(300)
    assert circuit.mask.num_kept == 300
    lines = shown(capsys, folder, "--no-open")
    count = len(edges_in(lines))
    assert 40 < count <= 90
    assert len(lines) < 160
    assert any("more edges from" in line for line in lines)
    share = float(lines[-1].split(", ")[1].split("%")[0])
    assert lines[-1].startswith(f"{count} of 300 edges, ")
    assert lines[-1].endswith(f"--all shows the {300 - count} others")
    values = circuit.scores.values[circuit.mask.kept].abs()
    # At most what as many of the strongest edges have, to the rounding of the printed share.
    strongest = values.sort(descending=True).values[:count]
    assert 0 < share <= 100 * float(strongest.sum() / values.sum()) + 1
    assert len(edges_in(shown(capsys, folder, "--no-open", "--all"))) == 300
    assert len(edges_in(shown(capsys, folder, "--no-open", "--lines", 12))) < count


def test_cycles_and_parts_that_reach_no_output(tmp_path, saved, capsys):
    ring = nx.DiGraph([("a", "b"), ("b", "c"), ("c", "a"), ("x", "y")])
    circuit, folder = saved(4, gp.ComputationalGraph.from_networkx(ring), connected=False)
    lines = shown(capsys, folder, "--no-open")
    assert len(edges_in(lines)) == 4
    bare = gp.Circuit(circuit.graph, gp.EdgeMask(circuit.graph, torch.ones(4)))  # without scores
    words = "\n".join(shown(capsys, bare.save(tmp_path / "bare"), "--no-open"))
    assert words.count("──") == 4


def test_the_page_is_made_and_opened_where_asked_for(saved, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr("typer.launch", lambda address: opened.append(address) or 0)
    circuit, folder = saved(10)
    assert call("show", folder, "--json") == 0  # no terminal: nothing is opened
    document = out_of(capsys)
    assert opened == []
    assert document["page"] is None
    assert len(document["edges"]) == circuit.mask.num_kept
    assert {"source", "target", "kind", "score"} == set(document["edges"][0])
    shown(capsys, folder, "--open")
    assert opened == [(folder / "circuit.html").as_uri()]
    assert (folder / "circuit.html").read_text(encoding="utf-8").startswith("<!")
    monkeypatch.setattr("typer.launch", lambda address: 1)
    assert call("show", folder, "--open") == 0
    assert "no browser was found; open" in capsys.readouterr().err
    assert str(folder / "circuit.html") in "\n".join(shown(capsys, folder, "--no-open"))
    assert call("show", folder.parent / "nowhere") == 2
    assert "is not there" in capsys.readouterr().err


# -------------------------------------------------------------------- progress


LOG = """
import time
from graphprune.util import progress
progress.LOG_SECONDS = 0.2
with progress.command_line_progress({silent}):
    for _ in progress.track(range(50), "passes"):
        time.sleep(0.02)
    for _ in progress.track(range(5), "short"):
        pass
"""


def test_a_log_gets_a_line_now_and_then():
    """Whole lines with an estimate, without a terminal's control characters; none of short work."""
    run = [sys.executable, "-c", LOG.format(silent=False)]
    said = subprocess.run(run, capture_output=True, text=True, check=True).stderr
    assert "\r" not in said
    assert "\x1b" not in said
    lines = said.splitlines()
    assert 2 <= len(lines) <= 8
    assert all(line.startswith("passes: ") and " of 50, " in line for line in lines)
    assert all(line.endswith(" left") for line in lines)
    done = [int(line.split()[1]) for line in lines]
    assert done == sorted(done)
    silent = [sys.executable, "-c", LOG.format(silent=True)]
    assert subprocess.run(silent, capture_output=True, text=True, check=True).stderr == ""


def test_bars_count_passes_where_they_are_known(capsys, monkeypatch):
    """50 steps of 12 masks are 600 passes, as the estimate says too."""
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    with progress.command_line_progress(False), progress.counted_in_passes({"UGS": 12, "EAP": 1}):
        for _ in progress.track(range(50), "UGS"):
            pass
        for _ in progress.track(range(3), "EAP"):
            pass
        for _ in progress.track(range(4), "edges"):
            pass
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("UGS: 600 of 600 passes, ") for line in lines)
    assert any(line.startswith("EAP: 3 of 3 passes, ") for line in lines)
    assert any(line.startswith("edges: 4 of 4, ") for line in lines)


@pytest.mark.parametrize(
    ("method", "passes"),
    [
        (gp.EAP(), {"EAP": 1}),
        (gp.IntegratedMaskGradient(steps=4), {"IntegratedMaskGradient": 4}),
        (gp.UGS(samples=12), {"UniformGradientSampling": 12}),
        (
            gp.SequentialEnsemble(gp.IntegratedMaskGradient(steps=3), gp.EdgePruning()),
            {"IntegratedMaskGradient": 3, "EdgePruning": 1},
        ),
        (gp.Random(), {}),
    ],
)
def test_passes_of_a_methods_bars(method, passes):
    model = gp.wrap(tiny("llama"))
    assert passes_by_bar(method, model) == passes
    assert passes_by_bar(gp.EAPIG(steps=6), model) == {"EAPIG": 6}
