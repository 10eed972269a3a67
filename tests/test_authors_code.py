"""Scores against the authors' own code, run once on models that a formula writes.

``golden/eap_ig.json`` and ``golden/relp.json`` hold its numbers (float64 models, float32 scores).
How they were made: github.com/hannamw/EAP-IG at 795f560 under TransformerLens 2.15.4, torch 2.13.0
and transformers 4.57.6; for RelP the same attribution over the TransformerLens that
github.com/FarnoushRJ/RelP carries at aa0e228. Weights are those of ``support.wavy``, brought over
by TransformerLens's ``convert_gpt2_weights`` and ``convert_llama_weights``; its logits then differ
from Hugging Face's by 1e-15 and 4e-7. Two things were replaced in the code that ran: tokens came as
they are instead of from a tokenizer, and its tensors stood on the CPU. The metric is the sum over
examples of the distractor's minus the answer's logit at the last position.
"""

import json
from pathlib import Path

import pytest
import torch
from support.wavy import ANSWERS, CLEAN, CORRUPT, DISTRACTORS, wavy_gpt2, wavy_llama

import graphprune as gp

GOLDEN = Path(__file__).parent / "golden"
MAKERS = {"gpt2": wavy_gpt2, "llama": wavy_llama}


def a_case(kind: str) -> tuple[gp.MaskedModel, gp.Task]:
    clean, corrupt = torch.tensor(CLEAN), torch.tensor(CORRUPT)
    task = gp.Task.from_tensors(clean, corrupt, answer=ANSWERS, distractor=DISTRACTORS)
    return gp.wrap(MAKERS[kind]()), task


def table(file: str, kind: str, name: str) -> dict[str, float]:
    found = json.loads((GOLDEN / file).read_text())[kind][name]
    assert len(found) > 6
    return found


def furthest(scores: gp.EdgeScores, want: dict[str, float]) -> float:
    """The largest difference, as a share of the largest score; all edges are the same."""
    got = scores.to_frame().set_index("edge").score
    assert set(got.index) == set(want)
    gap = max(abs(float(got[edge]) - value) for edge, value in want.items())
    return gap / max(map(abs, want.values()))


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    ("name", "scorer"),
    [
        ("EAP", gp.EAP()),
        ("EAP-IG-inputs", gp.EAPIG(steps=5)),
        ("EAP-IG-activations", gp.EAPIG(steps=3, integrate="activations-reference")),
        ("clean-corrupted", gp.CleanCorrupted()),
    ],
)
def test_edge_scores_are_those_of_the_authors_code(kind, name, scorer):
    model, task = a_case(kind)
    assert furthest(scorer.score(model, task), table("eap_ig.json", kind, name)) < 1e-5


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", ["EAP", "EAP-IG-inputs"])
def test_node_scores_are_those_of_the_authors_code(kind, name):
    """MLPs apart: there the authors multiply an output's change by the gradient at the input."""
    model, task = a_case(kind)
    scorer = gp.NAP() if name == "EAP" else gp.NAPIG(steps=5)
    found = scorer.score_nodes(model, task)
    want = table("eap_ig.json", kind, f"node {name}")
    largest = max(map(abs, want.values()))
    mine = {n: float(found.values[model.graph.node_number[n]]) for n in want if n[0] != "m"}
    assert len(mine) == 5
    for node, value in mine.items():
        assert value == pytest.approx(want[node], abs=1e-5 * largest)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("frozen", [False, True])
def test_relevance_is_that_of_the_authors_code(kind, frozen):
    """To 3e-5 of the largest: their identity rule divides by x + 1e-6 sign(x)."""
    model, task = a_case(kind)
    scores = gp.RelP(freeze_attention=frozen).score(model, task)
    name = "frozen attention" if frozen else "default"
    assert furthest(scores, table("relp.json", kind, name)) < 3e-5
    attention = [i for i, e in enumerate(model.graph.edge_names) if e.endswith(("<q>", "<k>"))]
    reached = scores.values[attention] != 0
    assert not reached.any() if frozen else reached.double().mean() > 0.7
