"""Accuracy over all outputs beside accuracy against a distractor, by plain argmax."""

import json

import numpy as np
import pytest
import torch
from support.cli import call, save_circuit, save_model
from support.named import metric
from support.tiny import random_pair, tiny

import graphprune as gp

ACCURACY, MATCH = metric("top1_accuracy"), metric("top1_match")


@pytest.fixture(scope="module")
def case():
    """A model, its prompts, and answers that it gives on some of them."""
    module = tiny("llama", n_layers=2)
    model = gp.wrap(module)
    clean, corrupt = random_pair(module, batch=12)
    with torch.no_grad():
        logits = module(clean).logits[:, -1]
    order = logits.argsort(-1, descending=True)
    # The largest logit, the second and the third in turn; never against anything larger.
    answers = [[int(order[i, i % 3]), int(order[i, 9])] for i in range(12)]
    distractors = [[int(order[i, 20])] for i in range(12)]
    task = gp.Task.from_tensors(
        clean, corrupt, answer=answers, distractor=distractors, batch_size=5
    )
    return module, model, task, answers, logits


def plain_outputs(model, task, mask):
    """``[N, V]`` in the task's order."""
    rows = {}
    for batch in task.batches(3):
        rows |= dict(zip(batch.indices, model.run(batch, mask).detach().numpy(), strict=True))
    return np.stack([rows[i] for i in range(len(task))])


def test_the_report_has_the_argmax_of_plain_hugging_face(case):
    _, model, task, answers, logits = case
    mask = gp.EAP().score(model, task).top(0.5)
    report = gp.evaluate(model, task, mask)
    best = np.argmax(logits.numpy(), -1)
    right = [int(best[i] in answers[i]) for i in range(12)]
    assert sum(right) == 4  # every third answer is the largest logit
    assert report.full["top1_accuracy"] == pytest.approx(4 / 12)
    assert report.full["accuracy"] == 1  # every answer beats its distractor
    assert report.full_examples["top1_accuracy"].tolist() == right
    out = np.argmax(plain_outputs(model, task, mask), -1)
    want = [int(out[i] in answers[i]) for i in range(12)]
    assert report.examples["top1_accuracy"].tolist() == want
    assert report["top1_match"] == pytest.approx(float(np.mean(out == best)))
    assert 0 < report["top1_match"] < 1
    assert report.full["top1_match"] == 1
    low, high = report.interval("top1_match")
    assert low <= report["top1_match"] <= high
    assert {"top1_accuracy", "top1_match"} <= set(report.to_dict())
    assert report.to_dict()["settings"]["choices"] == "answers and distractors"
    only = gp.evaluate(model, task, mask, metrics=["top1_accuracy", "top1_match"])
    assert only["top1_accuracy"] == report["top1_accuracy"]
    assert "accuracy" not in only.values


def test_no_forward_pass_more(case, monkeypatch):
    _, model, task, *_ = case
    runs = []
    run = type(model).run
    monkeypatch.setattr(type(model), "run", lambda *a, **k: runs.append(1) or run(*a, **k))
    mask = gp.EdgeMask.from_edges(model.graph, ["input->m1", "m1->logits"])
    gp.evaluate(model, task, mask, metrics=["logit_diff"])
    alone = len(runs)
    gp.evaluate(model, task, mask)
    assert len(runs) == 2 * alone


def batch_of(answer, **more):
    answer = torch.tensor(answer)
    return gp.Batch(None, None, len(answer), answer=answer, **more)


def test_any_of_several_answers_and_padding():
    outputs = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    batch = batch_of([[2, 1], [1, -1], [-1, 0]])
    assert ACCURACY(outputs, batch).tolist() == [1, 0, 1]


def test_ties_are_no_answer_and_the_full_model_matches_itself():
    """A choice may not depend on how outputs are numbered: all alike is not class 0."""
    alike = torch.zeros(2, 4)
    assert ACCURACY(alike, batch_of([[0], [3]])).tolist() == [0, 0]
    two = torch.tensor([[1.0, 7.0, 7.0, 0.0]]).expand(3, -1)
    # Among its own answers a tie does not matter, said twice or once.
    assert ACCURACY(two, batch_of([[1, 2, 1], [2, 2, 2], [1, -1, -1]])).tolist() == [1, 0, 0]
    assert MATCH(two, batch_of([[1]] * 3), two).tolist() == [1, 1, 1]
    # Without a distractor accuracy is the same, so outputs that are all alike are not all right.
    assert metric("accuracy")(alike, batch_of([[0], [3]])).tolist() == [0, 0]


@pytest.mark.parametrize("shape", [(2, 1), (2, 2, 1)])
def test_answers_at_several_positions(shape):
    """The share of the real positions, whether each has its own answers or not."""
    outputs = torch.tensor([[[0.0, 9.0, 1.0], [0.0, 1.0, 2.0]], [[4.0, 0.0, 1.0], [0.0, 9.0, 1.0]]])
    answer = torch.ones(shape, dtype=torch.int64)
    positions = torch.tensor([[3, 4], [3, -1]])
    batch = gp.Batch(None, None, 2, positions=positions, answer=answer)
    assert ACCURACY(outputs, batch).tolist() == [0.5, 0]
    full = outputs.clone()
    full[0, 0] = torch.tensor([9.0, 0.0, 0.0])
    assert MATCH(outputs, batch, full).tolist() == [0.5, 1]


def test_classes_and_what_a_task_cannot_have(case):
    _, model, task, *_ = case
    batch = next(iter(task.batches(12)))
    bare = gp.Task.from_tensors(batch.clean["input_ids"], batch.corrupt["input_ids"], metric="kl")
    report = gp.evaluate(model, bare, gp.EdgeMask.full(model.graph))
    assert "no answer" in report.absent["top1_accuracy"]
    assert report["top1_match"] == 1
    assert report.settings["choices"] == "all outputs"
    one = torch.zeros(2, 1)
    for one_metric in (ACCURACY, MATCH):
        assert "no choices" in one_metric.missing(batch_of([[0], [0]]), one)


def test_tables_say_which_accuracy_is_meant(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    model = save_model(tmp_path / "model")
    circuit = save_circuit(tmp_path / "circuit", model)
    text, prompts = "Then {} and {} went home, and {} gave a book to", tmp_path / "pairs.jsonl"
    for against in (True, False):
        row = {"clean": text.format("Mary", "John", "John"), "answer": " Mary"}
        row |= {"corrupt": text.format("John", "Mary", "Mary")}
        row |= {"distractor": " John"} if against else {}
        prompts.write_text(json.dumps(row) + "\n")
        capsys.readouterr()
        base = ("--model", model, "--task", prompts, "--metric", "kl")
        assert call("evaluate", circuit, *base) == 0
        said = capsys.readouterr().out
        assert ("accuracy vs distractor" in said) == against
        assert ("match vs distractor" in said) == against
        assert ("vs distractor: the answer against the distractor alone" in said) == against
        assert "top-1 accuracy" in said
        assert "top-1 match" in said
        assert "top-1: the largest of all outputs" in said
