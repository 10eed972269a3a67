"""Exported models as files: what a folder holds, what is refused, what a failure leaves."""

import copy
import json
import os
import subprocess
import sys
import zipfile

import pytest
import torch
from support.exporting import ablation_of, drawn, named, system, task_of
from support.lowering import ROUNDED
from support.tiny import tiny
from support.toy import Toy

import graphprune as gp
from graphprune import Ablation

ONE_LAYER = {"num_hidden_layers": 1}  # torch.export's time grows with the layers

# ------------------------------------------------------------------ the folder

RUN_ALONE = """
import json, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("graphprune", "transformers", "adapters"):
            raise ImportError(name + " is not to be imported here")
sys.meta_path.insert(0, Absent())
import torch
module = torch.export.load(sys.argv[1]).module()
with torch.no_grad():
    answers = [module(torch.tensor(ids)).tolist() for ids in json.load(sys.stdin)]
assert not {"graphprune", "transformers"} & set(sys.modules)
print("answers", json.dumps(answers))
"""


@pytest.mark.parametrize(
    "family",
    ["gpt2", *(pytest.param(f, marks=pytest.mark.slow) for f in ("llama", "gpt_neox", "gemma3"))],
)
def test_the_saved_form_runs_with_torch_alone(family, tmp_path):
    model, batch = system(family, torch.float32, ONE_LAYER)
    circuit = gp.Circuit.from_mask(drawn(model, 0.3).prune_dead_ends(), model=model)
    exported = circuit.export_model(tmp_path / "out", ablation="mean", task=task_of(batch))
    shapes = [(1, 1), (1, 7), (5, 3), (2, 32)]
    inputs = [torch.randint(61, shape) for shape in shapes]
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALONE, str(exported.path / "model.pt2")],
        input=json.dumps([ids.tolist() for ids in inputs]),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.split("answers", 1)[1])
    for ids, found in zip(inputs, answers, strict=True):
        want = exported.module(ids).detach()
        torch.testing.assert_close(torch.tensor(found), want, rtol=1e-4, atol=1e-5)


def test_the_folder_and_its_report(tmp_path):
    model, batch = system("gpt2", torch.float32)
    edges = ["input->a0.h1<q>", "input->a0.h1<k>", "input->a0.h1<v>", "a0.h1->logits"]
    circuit = gp.Circuit.from_mask(named(model, *edges), model=model)
    task = task_of(batch)
    exported = circuit.export_model(tmp_path / "out", task=task, shape=(4, 8), repeats=2)
    assert sorted(p.name for p in exported.path.iterdir()) == [
        "circuit",
        "model.pt2",
        "report.json",
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert gp.Circuit.load(exported.path / "circuit") == circuit
    report = json.loads((exported.path / "report.json").read_text())
    assert report == exported.report
    d, width, vocabulary, length = 16, 4, 61, 8
    attention = 2 * 2 * length * width  # scores and sums, a multiply and an add each
    rows = 2 * (3 * width * d + width * d)
    # Sums of kept messages are additions, no products: nothing is counted for them.
    ends = 2 * d * vocabulary
    assert report["exported"]["flops_per_token"] == rows + attention + ends
    whole = 2 * (12 * d * d * 2 + d * vocabulary) + 2 * 4 * 2 * 2 * length * width
    assert report["original"]["flops_per_token"] == whole
    module = model.module
    assert report["original"]["parameters"] == sum(p.numel() for p in module.parameters())
    assert report["exported"]["parameters"] == sum(p.numel() for p in exported.module.parameters())
    assert report["exported"]["bytes"] < report["original"]["bytes"]
    assert min(report[side]["seconds"] for side in ("original", "exported")) > 0
    assert (report["shape"], report["longest"], report["exact_length"]) == ([4, 8], 32, None)
    assert report["max_difference"] < 1e-4
    assert report["compared_on"] == f"answer positions of 3 prompts of {task.name}"
    # The table that both ends share is stored once; the archive adds its own description.
    spare = report["bytes_on_disk"] - report["exported"]["bytes"]
    assert 0 < spare < 150_000
    with zipfile.ZipFile(exported.path / "model.pt2") as archive:  # nothing in it is pickled
        for name in archive.namelist():
            assert not name.endswith(".pkl")
            assert not archive.read(name).startswith(b"PK")  # torch.save writes such archives
            if name.endswith("sample_inputs/model.pt"):
                assert archive.read(name) == b""


def test_lengths_are_limited(tmp_path):
    model, batch = system("gpt2", torch.float32, ONE_LAYER)
    circuit = gp.Circuit.from_mask(drawn(model, 0.2), model=model)
    module = model.pruned(circuit.mask, Ablation("zero")).module
    with pytest.raises(gp.InputError, match="at most 32 positions, got 33"):
        module(torch.zeros(1, 33, dtype=torch.int64))
    exported = circuit.export_model(tmp_path / "b", ablation="mean_positional", task=task_of(batch))
    assert exported.report["exact_length"] == 9
    with pytest.raises(gp.InputError, match="kept for 9 positions, got 8"):
        exported.module(torch.zeros(1, 8, dtype=torch.int64))
    program = torch.export.load(exported.path / "model.pt2").module()
    with torch.no_grad():
        ids = torch.randint(61, (5, 9))
        torch.testing.assert_close(program(ids), exported.module(ids))
    with pytest.raises(Exception, match="9"):
        program(torch.zeros(1, 8, dtype=torch.int64))


# ------------------------------------------------------------------ refusals


def test_refusals(tmp_path):
    model, batch = system("gpt2", torch.float32)
    mask = drawn(model, 0.3)
    circuit = gp.Circuit.from_mask(mask, model=model)
    out = tmp_path / "out"
    for ablation in ("counterfactual", Ablation()):
        with pytest.raises(gp.InputError, match="corrupted prompt at every call"):
            circuit.export_model(out, ablation=ablation)
    with pytest.raises(gp.InputError, match="give task="):
        circuit.export_model(out, ablation="mean")
    recorded = gp.Circuit(circuit.graph, mask, ablation="mean")
    with pytest.raises(gp.InputError, match="'mean' is taken over a task's prompts"):
        recorded.export_model(out, model)
    with pytest.raises(gp.InputError, match=r"\[batch, positions\], got 1 dimensions"):
        model.pruned(mask, Ablation("zero")).module(torch.zeros(3, dtype=torch.int64))
    (tmp_path / "file").write_text("")
    with pytest.raises(gp.InputError, match="cannot write"):
        circuit.export_model(tmp_path / "file" / "out", repeats=1)
    (tmp_path / "file").unlink()
    with pytest.raises(gp.InputError, match="unknown ablation 'sum'"):
        circuit.export_model(out, ablation="sum", task=task_of(batch))
    with pytest.raises(gp.InputError, match="does not hold its model"):
        gp.Circuit.from_mask(mask).export_model(out)
    half = gp.EdgeMask(model.graph, mask.values * 0.5)
    with pytest.raises(gp.InputError, match="lie between 0 and 1"):
        gp.Circuit.from_mask(half, model=model).export_model(out)
    other = gp.wrap(tiny("gpt2", seed=1))
    with pytest.raises(gp.InputError, match="found in a model with the weights"):
        circuit.export_model(out, other)
    with pytest.raises(gp.GraphMismatchError):
        circuit.export_model(out, gp.wrap(tiny("llama")))
    foreign = ablation_of(gp.wrap(tiny("llama")), batch, "mean")
    with pytest.raises(gp.InputError, match="another model"):
        circuit.export_model(out, ablation=foreign)
    for shape in ((0, 4), (1, 33), (2,), (2.0, 3), 5, "ab"):
        with pytest.raises(gp.InputError, match="shape"):
            circuit.export_model(out, shape=shape)
    with pytest.raises(gp.InputError, match="repeats"):
        circuit.export_model(out, repeats=0)
    with pytest.raises(gp.UnsupportedModelError, match="low precision"):
        model.at_precision(ROUNDED).pruned(mask, Ablation("zero"))
    toy = Toy()
    with pytest.raises(gp.UnsupportedModelError, match="export_model needs circuits as modules"):
        gp.Circuit.from_mask(gp.EdgeMask.full(toy.graph)).export_model(out, toy)
    assert list(tmp_path.iterdir()) == []


def test_other_folders_are_left_alone(tmp_path):
    model, _ = system("gpt2", torch.float32, ONE_LAYER)
    circuit = gp.Circuit.from_mask(drawn(model, 0.3), model=model)
    out = tmp_path / "out"
    out.write_text("mine")
    with pytest.raises(gp.InputError, match="is a file"):
        circuit.export_model(out)
    out.unlink()
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(gp.InputError, match=r"not empty|nothing was touched"):
            circuit.export_model(out, overwrite=overwrite)
    (out / "notes.txt").unlink()
    circuit.export_model(out, repeats=1)
    (out / "circuit" / "notes.txt").write_text("mine")
    with pytest.raises(gp.InputError, match="nothing was touched"):
        circuit.export_model(out, overwrite=True)
    assert (out / "circuit" / "notes.txt").read_text() == "mine"
    (out / "notes.txt").write_text("mine")
    with pytest.raises(gp.InputError, match="nothing was touched"):
        circuit.export_model(out, overwrite=True)  # the notes are still there
    assert (out / "notes.txt").read_text() == "mine"


def test_a_failure_leaves_what_was(tmp_path, monkeypatch):
    model, _ = system("gpt2", torch.float32, ONE_LAYER)
    circuit = gp.Circuit.from_mask(drawn(model, 0.3), model=model)
    out = tmp_path / "out"
    circuit.export_model(out, repeats=1)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(gp.InputError, match="overwrite=True"):
        circuit.export_model(out)

    def fails(*args, **kwargs):
        raise RuntimeError("no such program")

    smaller = gp.Circuit.from_mask(drawn(model, 0.1), model=model)
    with monkeypatch.context() as patch:
        patch.setattr(torch.export, "export", fails)
        with pytest.raises(gp.UnsupportedModelError, match="no such program"):
            smaller.export_model(out, overwrite=True)
        with pytest.raises(gp.UnsupportedModelError, match="nothing was written"):
            smaller.export_model(tmp_path / "new" / "deep")
    with monkeypatch.context() as patch:
        patch.setattr(torch.export, "save", fails)
        with pytest.raises(RuntimeError):
            smaller.export_model(out, overwrite=True)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    smaller.export_model(out, overwrite=True, repeats=1)
    assert gp.Circuit.load(out / "circuit").mask == smaller.mask
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_module_that_differs_is_not_written(tmp_path, monkeypatch):
    model, batch = system("gpt2", torch.float32)
    circuit = gp.Circuit.from_mask(drawn(model, 0.3), model=model)
    run = type(model).run

    def moved(self, batch, *args, **kwargs):
        return run(self, batch, *args, **kwargs) + 0.5

    monkeypatch.setattr(type(model), "run", moved)
    with pytest.raises(gp.UnsupportedModelError, match=r"differs by 0\.5"):
        circuit.export_model(tmp_path / "out")
    made = type(model).pruned

    def untried(self, *args, **options):
        with monkeypatch.context() as patch:
            patch.setattr(type(model), "run", run)
            return made(self, *args, **options)

    monkeypatch.setattr(type(model), "pruned", untried)
    with pytest.raises(gp.NumericalError, match=r"differ by 0\.5"):
        circuit.export_model(tmp_path / "out", task=task_of(batch))
    assert list(tmp_path.iterdir()) == []


def test_attention_that_is_not_plain_is_refused():
    model, _ = system("llama", torch.float32)
    layer = model.module.model.layers[1].self_attn
    layer.forward = _doubled(layer.forward)
    strange = gp.adapters.lm.LanguageModel(model.module, model.arch.family)
    mask = gp.EdgeMask.full(strange.graph)
    strange.arch.blocks[1].core.forward = _doubled(strange.arch.blocks[1].core.forward)
    with pytest.raises(gp.UnsupportedModelError, match="layer 1's attention"):
        strange.pruned(mask, Ablation("zero"))


def _doubled(forward):
    def run(*args, **kwargs):
        out, *rest = forward(*args, **kwargs)
        return (2 * out, *rest)

    return run


def test_circuits_hold_their_model_weakly():
    model, _ = system("gpt2", torch.float32)
    circuit = gp.Circuit.from_mask(drawn(model, 0.3), model=model)
    assert copy.deepcopy(circuit) == circuit
    with pytest.raises(gp.InputError, match="does not hold its model"):
        copy.deepcopy(circuit).export_model("never")
    del model
    import gc

    gc.collect()
    with pytest.raises(gp.InputError, match="does not hold its model"):
        circuit.export_model("never")
