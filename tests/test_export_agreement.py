"""An exported model beside the circuit as it was found: its figures, and when it is refused."""

import json

import numpy as np
import pytest
import torch
from support.cli import call, out_of, save_model
from support.exporting import drawn
from support.tiny import random_pair, tiny

import graphprune as gp
from graphprune.methods import resolve_ablation

EAP = {"name": "eap", "settings": {"ablation": "counterfactual"}}


def outputs_of(model, task, mask, ablation):
    """``[N, V]`` of masked runs in float64."""
    chosen = resolve_ablation(model, task, ablation)
    (batch,) = task.batches(len(task))
    order = np.argsort(batch.indices)
    return model.run(batch, mask, model.reference(batch, chosen)).detach().double().numpy()[order]


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def kl(p, q):
    p, q = log_softmax(p), log_softmax(q)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def make_case(layers, seed):
    module = tiny("llama", num_hidden_layers=layers)
    with torch.no_grad():
        module.model.norm.weight *= 30  # sharp outputs, which an ablation can make others of
    model = gp.wrap(module)
    clean, corrupt = random_pair(module, batch=8)
    mask = drawn(model, 0.5, seed)
    places = {"answer": [[0]] * 8, "distractor": [[1]] * 8, "batch_size": 3}
    blank = gp.Task.from_tensors(clean, corrupt, **places)
    as_found = outputs_of(model, blank, mask, "counterfactual")
    order = np.argsort(as_found, -1)
    places |= {"answer": order[:, -1:].tolist(), "distractor": order[:, :1].tolist()}
    task = gp.Task.from_tensors(clean, corrupt, **places)
    return module, model, task, mask, as_found


@pytest.fixture(scope="module")
def case():
    """A circuit that is always right under counterfactual ablation, and hardly ever under mean."""
    return make_case(1, 2)


def test_refused_unless_said_and_all_four_stand_in_the_report(case, tmp_path):
    module, model, task, mask, as_found = case
    circuit = gp.Circuit.from_mask(mask, model=model, method=EAP)
    with pytest.raises(gp.InputError, match=r"more than 0\.1\. Nothing was written") as refused:
        circuit.export_model(tmp_path / "out", ablation="mean", task=task, repeats=1)
    assert list(tmp_path.iterdir()) == []
    for words in (
        "circuit as found (counterfactual ablation): KL from the original",
        "masked run (mean ablation)",
        "exported model: ",
        "original model: ",
        "graphprune discover --ablation mean",
        "allow_difference=True (--allow-difference)",
    ):
        assert words in str(refused.value)
    exported = circuit.export_model(
        tmp_path / "out", ablation="mean", task=task, repeats=1, allow_difference=True
    )
    found = json.loads((tmp_path / "out" / "report.json").read_text())["performance"]
    assert found == exported.report["performance"]

    (batch,) = task.batches(8)
    back = np.argsort(batch.indices)
    ids = batch.clean["input_ids"][torch.from_numpy(back)]
    answer, wrong = (t[torch.from_numpy(back)].numpy() for t in (batch.answer, batch.distractor))
    with torch.no_grad():
        original = module(ids).logits[:, -1].double().numpy()
        program = torch.export.load(exported.path / "model.pt2").module()
        own = program(ids)[:, -1].double().numpy()
    sides = {
        "original": original,
        "exported": own,
        "found": as_found,
        "masked": outputs_of(model, task, mask, "mean"),
    }
    for side, out in sides.items():
        values = found[side]
        assert values["kl"] == pytest.approx(kl(original, out), abs=1e-4), side
        assert values["top1_accuracy"] == np.mean(out.argmax(-1) == answer[:, 0]), side
        gap = np.take_along_axis(out, answer, 1) - np.take_along_axis(out, wrong, 1)
        assert values["accuracy"] == np.mean(gap > 0), side
        assert values["logit_diff"] == pytest.approx(gap.mean(), rel=1e-4), side
    assert found["found"]["top1_accuracy"] == 1
    assert found["exported"]["top1_accuracy"] < 0.5
    far = kl(as_found, own)
    assert far > 0.1
    assert found["exported"]["kl_from_found"] == pytest.approx(far, rel=1e-4)
    assert found["masked"]["kl_from_found"] == pytest.approx(far, rel=1e-3)


def test_the_same_ablation_is_the_same_circuit(case, tmp_path):
    _, model, task, mask, _ = case
    method = {"name": "eap", "settings": {"ablation": "mean"}}
    circuit = gp.Circuit.from_mask(mask, model=model, method=method, task=task)
    found = circuit.export_model(tmp_path / "out", task=task, repeats=1).report["performance"]
    assert found["exported"]["kl_from_found"] < 1e-4
    assert found["found"]["ablation"] == found["masked"]["ablation"] == "mean"


def test_means_over_other_prompts_are_another_ablation(case, tmp_path):
    """One name, other numbers: compared where the task has the prompts that found the circuit."""
    _, model, task, mask, _ = case
    half = task.take(4)
    circuit = gp.Circuit.from_mask(mask, model=model, method=gp.EAP(ablation="mean"), task=half)
    assert circuit.ablation == "mean"
    whole, part = (model.mean_ablation(t.batches()) for t in (task, half))
    own, exported = (log_softmax(outputs_of(model, task, mask, a)) for a in (part, whole))
    want = (np.exp(own) * (own - exported)).sum(-1).mean()
    assert want > 1e-3
    report = circuit.export_model(
        tmp_path / "a", task=task, repeats=1, allow_difference=True
    ).report
    figures = report["performance"]
    assert figures["masked"]["kl_from_found"] == pytest.approx(want, rel=1e-3)
    rest = task.subset([4, 5, 6, 7])
    report = circuit.export_model(tmp_path / "b", task=rest, repeats=1).report
    assert "means were taken over other examples" in report["performance"]["absent"]["found"]
    told = gp.evaluate(model, rest, circuit).notes["ablation"]
    assert "found under means over others" in told
    assert "ablation" not in gp.evaluate(model, half, circuit).notes


def test_near_enough_is_written(tmp_path):
    """All edges but one, whose ablation hardly matters: below the limit, so no word is needed."""
    _, model, task, _, _ = make_case(2, 0)
    scores = gp.EAP().score(model, task)
    mask = scores.top(model.graph.num_edges - 1)
    circuit = gp.Circuit.from_mask(mask, model=model, method=EAP)
    report = circuit.export_model(tmp_path / "out", ablation="mean", task=task, repeats=1).report
    assert 0 <= report["performance"]["exported"]["kl_from_found"] < 0.1


def test_where_nothing_can_be_compared_it_says_why(case, tmp_path):
    _, model, task, mask, _ = case
    report = gp.evaluate(model, task, mask)
    judged = gp.Circuit.from_mask(mask, model=model, report=report)  # as the README's, no method
    with pytest.raises(gp.InputError, match="found under counterfactual"):
        judged.export_model(tmp_path / "no", task=task)
    silent = gp.Circuit.from_mask(mask, model=model)
    found = silent.export_model(tmp_path / "a", task=task, repeats=1).report["performance"]
    assert "does not say under which ablation" in found["absent"]["found"]
    assert "found" not in found
    assert found["exported"]["kl"] > 0
    alone = judged.export_model(tmp_path / "b", repeats=1).report["performance"]
    assert list(alone) == ["absent"]
    assert "no task was given" in alone["absent"]["task"]
    (batch,) = task.batches(8)
    bare = gp.Task.from_tensors(batch.clean["input_ids"], metric="kl")
    told = judged.export_model(tmp_path / "c", task=bare, repeats=1).report["performance"]
    assert "the task has none" in told["absent"]["found"]
    assert "no answer" in told["absent"]["top1_accuracy"]
    learned = {"name": "edge-pruning", "settings": {"ablation": "optimal"}}
    circuit = gp.Circuit.from_mask(mask, model=model, method=learned)
    with pytest.raises(gp.InputError, match="found with learned constants"):
        circuit.export_model(tmp_path / "d", task=task)
    report = circuit.export_model(tmp_path / "d", task=task, ablation="zero", repeats=1).report
    assert "learned constants" in report["performance"]["absent"]["found"]


def test_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    folder = save_model(tmp_path / "model", seed=3, num_hidden_layers=1)
    import transformers

    module = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        module.model.norm.weight *= 30
    module.save_pretrained(folder)
    given = ("--model", folder, "--task", "ioi", "-n", 4)
    circuit = tmp_path / "circuit"
    assert call("discover", *given, "--method", "eap", "--size", "0.5", "--out", circuit) == 0
    capsys.readouterr()
    out = tmp_path / "own"
    export = ("export-model", circuit, *given, "--ablation", "mean", "--out", out)
    assert call(*export, "--json") == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "Nothing was written" in said.err
    assert "--allow-difference" in said.err
    assert not out.exists()
    assert call(*export, "--allow-difference") == 0
    said, warned = capsys.readouterr()
    found = json.loads((out / "report.json").read_text())["performance"]
    assert found["exported"]["kl_from_found"] > 0.1
    assert "another model than the circuit as found" in warned
    for words in ("circuit as found", "masked run", "exported model", "original model"):
        assert words in said
    for words in ("KL from as found", "top-1 accuracy", "accuracy vs distractor", "logit diff"):
        assert words in said
    assert call("info", "--circuit", out / "circuit", "--json") == 0
    assert out_of(capsys)["circuit"]["edges"] > 0
