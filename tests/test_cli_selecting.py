"""What a selection keeps of the best edges, and the width that exports are handed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.cli import call
from support.tokenizers import byte_bpe
from transformer_graph import random_scores, transformer_graph

import graphprune as gp
from graphprune import Ablation, Scorer
from graphprune.errors import InputError
from graphprune.export import export

GRAPH = gp.ComputationalGraph.from_edges(
    [("in", "h"), ("h", "out"), ("h", "side")], inputs=(0,), outputs=(2,)
)
PLAIN = gp.Task.from_tensors(torch.arange(4).reshape(2, 2), torch.arange(4).reshape(2, 2) + 1)


@dataclass(frozen=True, kw_only=True)
class ByHand(Scorer):
    """Ranks the edges after ``h`` first."""

    def score(self, model: Any, task: gp.Task) -> gp.EdgeScores:
        return gp.EdgeScores(GRAPH, torch.tensor([1.0, 3.0, 2.0]))


def aligned() -> gp.Task:
    record = {"clean": "one", "corrupt": "two"}
    tokenizer = byte_bpe()
    lengths = [len(tokenizer(text)["input_ids"]) for text in record.values()]
    spans = {"all": [[0, length] for length in lengths]}
    return gp.Task.from_pairs([{**record, "spans": spans}], tokenizer)


@pytest.mark.parametrize(
    ("ablation", "task"),
    [
        ("zero", PLAIN),
        ("mean", PLAIN),
        ("mean_positional", PLAIN),
        (Ablation("mean"), PLAIN),
        ("counterfactual", aligned()),
    ],
)
def test_what_follows_a_cut_off_node_stays_where_it_matters(ablation, task):
    found = ByHand(ablation=ablation).fit(SimpleNamespace(graph=GRAPH), task, 2)
    assert found.mask.edges() == ["h->out"]


@pytest.mark.parametrize("ablation", ["counterfactual", Ablation()])
def test_under_counterfactual_ablation_it_goes(ablation):
    model = SimpleNamespace(graph=GRAPH)
    assert ByHand(ablation=ablation).fit(model, PLAIN, 2).mask.edges() == []
    found = ByHand(ablation=ablation).fit(model, PLAIN, 3)
    assert found.mask.edges() == ["in->h", "h->out"]


def bare_circuit() -> gp.Circuit:
    scores = random_scores(transformer_graph(1, 2))
    return gp.Circuit.from_mask(scores.top(3), scores)


def test_export_hands_the_width_to_the_formats_that_name_it(tmp_path):
    circuit = bare_circuit()
    with pytest.raises(InputError, match="give d_model="):
        export(circuit, tmp_path / "c.mib.json")
    export(circuit, tmp_path / "c.mib.json", d_model=8)
    assert json.loads((tmp_path / "c.mib.json").read_text())["cfg"]["d_model"] == 8
    export(circuit, tmp_path / "c.pt", d_model=8)
    assert torch.load(tmp_path / "c.pt", weights_only=True)["cfg"]["d_model"] == 8
    with pytest.raises(InputError, match="d_model is for the formats mib and mib-pt"):
        export(circuit, tmp_path / "c.csv", d_model=8)
    for wrong in (0, -1, True, "8", 8.0):
        with pytest.raises(InputError, match="d_model must be an integer of at least 1"):
            export(circuit, tmp_path / "d.mib.json", d_model=wrong)
    assert not (tmp_path / "d.mib.json").exists()


def test_the_command_line_hands_it_on(tmp_path, capsys):
    folder = bare_circuit().save(tmp_path / "c")
    assert call("export", folder, "--to", "mib") != 0
    assert call("export", folder, "--to", "mib", "--to", "csv", "--d-model", 8) == 0
    assert json.loads((folder / "circuit.mib.json").read_text())["cfg"]["d_model"] == 8
    assert call("export", folder, "--to", "html", "--d-model", 8) != 0
    assert "--d-model is for" in capsys.readouterr().err
    assert not (folder / "circuit.html").exists()
