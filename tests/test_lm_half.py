"""Half precision: masked runs are as near to float32 as plain Hugging Face in half precision is."""

import copy

import pytest
import torch
from support.named import metric
from support.tiny import random_pair, tiny

import graphprune as gp
from graphprune import Ablation

DTYPES = [torch.bfloat16, torch.float16]
PROMPTS = 64
KL = metric("kl")


def systems(family, dtype):
    """The model, its float32 copy with the very same weights, and prompts."""
    settings = {"num_hidden_layers": 6}
    if family == "gemma2":
        settings["layer_types"] = ["sliding_attention", "full_attention"] * 3
    low = tiny(family, dtype=dtype, **settings)
    wide = copy.deepcopy(low).float()
    clean, corrupt = random_pair(low, batch=PROMPTS)
    return low, wide, gp.Batch({"input_ids": clean}, {"input_ids": corrupt}, PROMPTS)


def rms(x):
    return float(x.double().square().mean().sqrt())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_open_masks_are_within_the_dtypes_own_noise(family, dtype):
    """Masks of ones, of one cut edge and of 1 - 1e-3, however they are run.

    The noise is what plain Hugging Face in half precision is off its float32 copy; rounding
    differences of Deltas made these runs 1.3 to 1.7 times that.
    """
    low, wide, batch = systems(family, dtype)
    with torch.no_grad():
        truth = wide(**batch.clean).logits[:, -1]
        noise = rms(low(**batch.clean).logits[:, -1].float() - truth)
    model, exact = gp.wrap(low), gp.wrap(wide)
    count = model.graph.num_edges
    masks = torch.ones(3, count)
    masks[1, count - 1] = 0.0
    masks[2] -= 1e-3
    reference, wanted = model.reference(batch), exact.reference(batch)
    torch.testing.assert_close(wanted.full, truth, rtol=1e-3, atol=1e-3)
    want = torch.stack([exact.run(batch, mask, wanted, sparse=False) for mask in masks])
    torch.testing.assert_close(want[0], truth, rtol=1e-3, atol=1e-3)
    trials = model.trials(
        batch, torch.ones(count, dtype=torch.bool), reference, torch.arange(count).flip(0)
    )
    cut = trials.without(torch.tensor([count - 1]), torch.ones(1, 1, dtype=torch.bool))
    found = {
        "a stack": (model.run(batch, masks, reference, sparse=False), want),
        "alone": (
            torch.stack([model.run(batch, mask, reference, sparse=True) for mask in masks]),
            want,
        ),
        "trials": (torch.stack([trials.outputs(), cut[0]]), want[:2]),
        "the clean pass": (reference.full, truth),
    }
    for name, (got, right) in found.items():
        assert rms(got - right) < 1.2 * noise, name


@pytest.mark.parametrize("kind", ["zero", "mean"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_constants_that_stand_in_are_within_the_noise_too(dtype, kind):
    low, wide, batch = systems("gpt2", dtype)
    model, exact = gp.wrap(low), gp.wrap(wide)
    with torch.no_grad():
        truth = wide(**batch.clean).logits[:, -1]
        noise = rms(low(**batch.clean).logits[:, -1].float() - truth)
    ablation = model.mean_ablation([batch]) if kind == "mean" else Ablation("zero")
    got = model.run(batch, torch.ones(model.graph.num_edges), model.reference(batch, ablation))
    assert rms(got - truth) < 1.2 * noise
    assert exact.graph == model.graph


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step", [0.0, 1e-7, 1e-5, 1e-3, 0.03, 1.0, 30.0])
def test_kl_is_the_float64_sum_and_never_negative(dtype, step):
    generator = torch.Generator().manual_seed(0)
    full = 5 * torch.randn(20, 5000, generator=generator, dtype=torch.float64)
    out = full + step * torch.randn(20, 5000, generator=generator, dtype=torch.float64)
    full, out = full.to(dtype), out.to(dtype)
    batch = gp.Batch({}, None, 20)
    found = KL(out, batch, full)
    assert (found >= 0).all()
    p, q = full.double().log_softmax(-1), out.double().log_softmax(-1)
    want = (p.exp() * (p - q)).sum(-1)
    # The plain sum's own rounding in float64; the square of log-softmax's in float32.
    atol = 3e-15 if dtype == torch.float64 else 2e-12
    torch.testing.assert_close(found.double(), want, rtol=1e-3 if step < 1 else 1e-5, atol=atol)


def test_kl_has_the_gradient_of_the_plain_sum():
    generator = torch.Generator().manual_seed(0)
    full = torch.randn(4, 9, generator=generator, dtype=torch.float64)
    batch = gp.Batch({}, None, 4)
    for step in (1e-3, 0.3):
        noise = torch.randn(4, 9, generator=generator, dtype=torch.float64)
        out = (full + step * noise).requires_grad_()
        (got,) = torch.autograd.grad(KL(out, batch, full).sum(), out)
        torch.testing.assert_close(got, (out.softmax(-1) - full.softmax(-1)).detach())
        assert torch.autograd.gradcheck(lambda x: KL(x, batch, full), out)


def test_reports_say_what_is_rounding():
    low, _, batch = systems("llama", torch.bfloat16)
    model = gp.wrap(low)
    ids, corrupt = batch.clean["input_ids"], batch.corrupt["input_ids"]
    reference = model.reference(batch)
    rise = (reference.full - reference.ablated).float()  # what tells the two models apart
    places = {"answer": rise.argmax(-1).tolist(), "distractor": rise.argmin(-1).tolist()}
    task = gp.Task.from_tensors(ids, corrupt, **places)
    whole = gp.evaluate(model, task, gp.EdgeMask.full(model.graph))
    for name in ("kl", "faithfulness"):
        assert "is within rounding (bfloat16)" in whole.notes[name]
    assert whole.to_dict()["notes"] == whole.notes
    table = whole.to_frame().set_index("measure")
    assert table.note["kl"] == whole.notes["kl"]
    half = gp.evaluate(model, task, gp.Random(seed=0).score(model, task).top(0.5))
    assert half.notes == {}
    exact = gp.wrap(tiny("llama"))
    assert gp.evaluate(exact, task, gp.Random(seed=0).score(exact, task).top(0.5)).notes == {}
