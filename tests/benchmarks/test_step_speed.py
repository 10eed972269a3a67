"""Masked passes that are optimised: forward and backward over every edge, beside plain passes.

GPT-2 small's shape, random weights, 8 x 16 tokens, float32, one thread, a fresh mask and fresh
inputs every repeat, all 32,491 edges; the clean and ablated passes stand in the reference.

Figures of 2026-11-25, virtual machine with 2 AMD EPYC cores shared with others, torch 2.13.0 (CPU):

- plain forward + backward, frozen weights: 0.90 CPU s;
- masked forward + backward: 1.50x (target 1.8x), 1.81x with checkpointing;
- a whole step of edge pruning (draw, forward, KL, backward, Adam): 1.46x, in the published form
  with gates on nodes 1.48x (target 1.8x);
- a mask for each example 1.50x, learned constants 1.51x, half of the tokens shared 0.86x;
- memory over the model at 6, 12 and 24 layers, the reference and its clean and ablated passes
  included: 0.78, 1.45, 2.81 MiB a token allocated (target 1.5 at 12 layers); 0.70, 1.24, 2.34 with
  checkpointing. Resident, the allocator's slack included: 0.96, 1.63, 2.90 and 0.78, 1.38, 2.69.
"""

import time

import pytest
import torch

import graphprune as gp

from .measuring import (
    BATCH,
    TOKENS,
    fresh_batch,
    fresh_peak_mb,
    gpt2_small,
    objective,
    plain_forward_backward,
)

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def module():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield gpt2_small()
    torch.set_num_threads(threads)


def with_prefix(shared: int) -> gp.Batch:
    batch = fresh_batch()
    batch.corrupt["input_ids"][:, :shared] = batch.clean["input_ids"][:, :shared]
    return batch


def step(model, shape=(), shared=0, learned=False):
    """CPU seconds of one masked forward and backward on a reference that stands ready."""
    batch = with_prefix(shared)
    start = gp.Ablation("zero")
    reference = model.reference(batch, model.learned_ablation(start) if learned else None)
    assert reference.full.shape == reference.ablated.shape
    if shared:
        model.run(batch, torch.ones(model.graph.num_edges), reference)  # the prefix's keys, values
    mask = torch.rand(*shape, model.graph.num_edges).requires_grad_(True)
    begin = time.process_time()
    objective(model.run(batch, mask, reference)).sum().backward()
    seconds = time.process_time() - begin
    assert bool(torch.isfinite(mask.grad).all())
    return seconds


def test_step_time(module, capsys):
    model = gp.wrap(module)
    small = gp.wrap(module, checkpointing=True)
    assert model.graph.num_edges == 32_491

    def plain():
        begin = time.process_time()
        plain_forward_backward(module)()
        return time.process_time() - begin

    jobs = {
        "plain forward + backward, frozen weights": plain,
        "masked": lambda: step(model),
        "masked, checkpointing": lambda: step(small),
        "masked, a mask for each example": lambda: step(model, (1, BATCH)),
        "masked, learned constants": lambda: step(model, learned=True),
        "masked, half of the tokens shared": lambda: step(model, shared=TOKENS // 2),
    }
    seen = {name: [] for name in jobs}
    for turn in range(6):
        for name, job in jobs.items():
            seconds = job()
            if turn:
                seen[name].append(seconds)
    found = {name: sorted(values)[len(values) // 2] for name, values in seen.items()}
    base = found["plain forward + backward, frozen weights"]
    with capsys.disabled():
        print()
        for name, value in found.items():
            print(f"{name:45s} {value:7.3f} CPU s   {value / base:6.2f}x")
    assert found["masked"] <= 1.8 * base
    assert found["masked, learned constants"] <= 1.8 * base
    assert found["masked, half of the tokens shared"] <= 0.7 * found["masked"]


SETUP = """
from transformers import GPT2Config, GPT2LMHeadModel
torch.manual_seed(0)
module = GPT2LMHeadModel(GPT2Config(n_layer={layers})).eval().requires_grad_(False)
model = gp.wrap(module, checkpointing={checkpointing})
mask = torch.rand(model.graph.num_edges, requires_grad=True)
objective(model.run(fresh_batch(1, 2), mask)).sum().backward()  # libraries loaded, graph built
mask.grad = None
batch = fresh_batch()
def step():
    reference = model.reference(batch)
    reference.full
    objective(model.run(batch, mask, reference)).sum().backward()
"""


@pytest.mark.parametrize("checkpointing", [False, True])
def test_step_memory(checkpointing, capsys):
    """Peak over the model, the reference and its clean and ablated passes included."""
    allocated, resident = {}, {}
    for layers in (6, 12, 24):
        setup = SETUP.format(layers=layers, checkpointing=checkpointing)
        tokens = BATCH * TOKENS
        allocated[layers] = fresh_peak_mb(setup, "step()", "allocated_mb") / tokens
        resident[layers] = fresh_peak_mb(setup, "step()") / tokens
    with capsys.disabled():
        print(f"\ncheckpointing={checkpointing}, MiB for each token over the model")
        for layers, value in allocated.items():
            print(f"{layers:3d} layers: {value:.2f} allocated, {resident[layers]:.2f} resident")
    assert allocated[12] <= 1.5
    lower, upper = allocated[12] - allocated[6], allocated[24] - allocated[12]
    assert upper == pytest.approx(2 * lower, rel=0.1)  # linear in depth


def test_optimisation_step_time(module, capsys):
    """Whole steps of edge pruning: draw, forward, KL, backward, Adam; references cached."""
    from graphprune.search.loop import Optimisation
    from graphprune.search.losses import as_loss
    from graphprune.search.minibatches import MiniBatches

    model, batches, steps = gp.wrap(module), 4, 12
    batch = fresh_batch(batches * BATCH)
    clean, corrupt = batch.clean["input_ids"], batch.corrupt["input_ids"]
    task = gp.Task.from_tensors(
        clean, corrupt, answer=[5] * len(clean), distractor=[6] * len(clean)
    )
    ablation = gp.Ablation()
    seconds = {}
    for name, method in {
        "default": gp.EdgePruning(steps=steps),
        "paper, gates on nodes too": gp.EdgePruning(steps=steps, variant="paper", node_gates=True),
    }.items():
        minibatches = MiniBatches(model, task, ablation, BATCH, 0, steps, 1 << 33)
        run = Optimisation(
            method, model, task, ablation, as_loss("kl", task), minibatches, steps=steps, seed=0
        )
        run.run(until=batches)  # every reference is made once and kept
        assert minibatches.caching
        begin = time.process_time()
        run.run()
        seconds[name] = (time.process_time() - begin) / (steps - batches)
    plain = []
    for _ in range(3):
        begin = time.process_time()
        plain_forward_backward(module)()
        plain.append(time.process_time() - begin)
    with capsys.disabled():
        print(f"\nplain forward + backward, frozen weights {min(plain):.3f} CPU s")
        for name, value in seconds.items():
            print(f"step of edge pruning, {name}: {value:.3f} CPU s, {value / min(plain):.2f}x")
    assert max(seconds.values()) <= 1.8 * min(plain)
