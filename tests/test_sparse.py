"""Circuits run alone: outputs and gradients of whole masked passes, from the circuit's nodes."""

import itertools

import pytest
import torch
from support.lowering import setup as lowered_setup
from support.marks import quick
from support.tiny import FAMILIES, Float64, random_pair, tiny
from support.toy import Toy, ToyExamples

import graphprune as gp
from graphprune import Ablation, Batch


def system(family, same=1):
    model = gp.wrap(tiny(family, dtype=torch.float64))
    clean, corrupt = random_pair(model.module)
    corrupt[:, :same] = clean[:, :same]
    return model, Batch({"input_ids": clean}, {"input_ids": corrupt}, len(clean))


def drawn(model, density, seed=0):
    generator = torch.Generator().manual_seed(seed)
    kept, values = torch.rand(2, model.graph.num_edges, dtype=torch.float64, generator=generator)
    return (kept < density) * values


ALL = list(itertools.product(FAMILIES, ("counterfactual", "zero", "mean", "mean_positional")))
FEW = [case for case in ALL if case[1] == "counterfactual" or case[0] in ("gpt2", "gemma2")]


@pytest.mark.parametrize(("family", "kind"), quick(ALL, FEW))
def test_outputs_are_the_masked_runs(float64, family, kind):
    model, batch = system(family)
    ablation = Ablation(kind)
    if kind.startswith("mean"):
        ablation = model.mean_ablation([batch], per_position=kind == "mean_positional")
    reference = model.reference(batch, ablation)
    for number, density in enumerate((0.0, 0.02, 0.1, 0.4, 1.0)):
        mask = drawn(model, density, number)
        want = model.run(batch, mask, reference, sparse=False)
        alone = model.run(batch, mask, reference, sparse=True)
        torch.testing.assert_close(alone, want, rtol=0, atol=1e-9)
        torch.testing.assert_close(model.run(batch, mask, reference), want, rtol=0, atol=1e-9)


def test_what_attention_never_reads_is_computed_at_answers_alone():
    """The same MLP, with and without a way into a later layer's attention."""
    model, batch = system("gpt2")
    reference = model.reference(batch)
    seen = []
    block = model.arch.blocks[0]
    inner = block.recomputing_mlp

    def watched(x):
        seen.append(x[..., 0].numel())
        return inner(x)

    block.recomputing_mlp = watched
    names = list(model.graph.edge_names)
    try:
        for kept in (["input->m0", "m0->logits"], ["m0->a1.h0<v>", "a1.h0->logits"]):
            mask = torch.zeros(len(names), dtype=torch.float64)
            mask[[names.index(name) for name in {"input->m0", *kept}]] = 1.0
            want = model.run(batch, mask, reference, sparse=False)
            seen.clear()
            found = model.run(batch, mask, reference, sparse=True)
            torch.testing.assert_close(found, want, rtol=0, atol=1e-9)
            length = batch.clean["input_ids"].shape[1] - 1  # the first token is shared
            assert seen == [batch.size * (1 if "m0->logits" in kept else length)]
    finally:
        block.recomputing_mlp = inner


# Where Hugging Face's norms and rotary tables are float32 whatever the dtype, plain autograd leaves
# the mode that widens them; these two families have neither.
@pytest.mark.parametrize("family", ["gpt2", "gpt_neo"])
def test_gradients_are_the_masked_runs_on_the_circuit(float64, family):
    model, batch = system(family)
    reference = model.reference(batch)
    mask = torch.stack([drawn(model, 0.1, 1), drawn(model, 0.5, 2)])
    found = []
    for alone in (True, False):
        leaf = mask.clone().requires_grad_(True)
        model.run(batch, leaf, reference, sparse=alone).square().sum().backward()
        found.append(leaf.grad)
    torch.testing.assert_close(found[0][mask != 0], found[1][mask != 0], rtol=1e-4, atol=1e-7)
    assert not found[0][mask == 0].any()


def test_an_empty_circuit_has_a_gradient_of_zero():
    model, batch = system("gpt2")
    mask = torch.zeros(model.graph.num_edges, requires_grad=True)
    model.run(batch, mask, sparse=True).sum().backward()
    assert not mask.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_half_precision(family, dtype):
    model = gp.wrap(tiny(family, dtype=dtype))
    clean, corrupt = random_pair(model.module)
    batch = Batch({"input_ids": clean}, {"input_ids": corrupt}, len(clean))
    reference = model.reference(batch)
    mask = drawn(model, 0.1).float()
    want = model.run(batch, mask, reference, sparse=False)
    for alone in (True, None):
        found = model.run(batch, mask, reference, sparse=alone)
        torch.testing.assert_close(found, want, rtol=0.05, atol=0.05)


def test_gradients_of_learned_constants_are_refused():
    model, batch = system("gpt2")
    learned = model.learned_ablation(model.mean_ablation([batch]))
    reference = model.reference(batch, learned)
    mask = drawn(model, 0.2)
    with pytest.raises(gp.InputError, match="no gradient of learned ablation constants"):
        model.run(batch, mask, reference, sparse=True)
    with torch.no_grad():
        alone = model.run(batch, mask, reference, sparse=True)
        torch.testing.assert_close(alone, model.run(batch, mask, reference, sparse=False))


def test_masks_for_each_example_are_refused():
    model, batch = system("gpt2")
    masks = torch.ones(1, batch.size, model.graph.num_edges)
    with pytest.raises(gp.InputError, match="not one for each example"):
        model.run(batch, masks, sparse=True)


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gemma2"])
def test_compiled_circuits(family):
    model = gp.wrap(tiny(family))
    clean, corrupt = random_pair(model.module)
    ids = torch.ones(len(clean), 1, dtype=torch.int64)
    task = gp.Task.from_tensors(clean, corrupt, answer=ids, distractor=2 * ids)
    task = gp.Task(task.examples, task.metric, order=(2, 0, 1), batch_size=2)
    circuit = gp.Circuit.from_mask(gp.EAP().score(model, task).top(0.2).prune_dead_ends())
    run = circuit.compile(model, task)
    order = [2, 0, 1]
    batch = Batch({"input_ids": clean[order]}, {"input_ids": corrupt[order]}, 3)
    want = model.run(batch, circuit.mask)
    torch.testing.assert_close(run(), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run(), run(), rtol=0, atol=0)
    torch.testing.assert_close(run(clean[order], corrupt[order]), want, rtol=1e-4, atol=1e-5)
    with pytest.raises(gp.InputError, match="without clean ones"):
        run(corrupt=corrupt)


def test_other_adapters_compile_to_masked_runs():
    model, task = Toy(), gp.Task(ToyExamples(), "kl")
    mask = gp.EdgeMask(model.graph, torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 0, 1]))
    run = gp.Circuit.from_mask(mask).compile(model, task)
    (batch,) = task.batches()
    torch.testing.assert_close(run(), model.run(batch, mask))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_low_precision_runs_alone_as_it_does_whole(family):
    _, model, batch = lowered_setup(family)
    low = model.at_precision(gp.PrecisionPolicy({"head": "fp8", "mlp": "bf16"}))
    with Float64():
        reference = low.reference(batch)
        for seed, density in enumerate((0.05, 0.3, 1.0)):
            mask = drawn(low, density, seed)
            alone = low.run(batch, mask, reference, sparse=True)
            whole = low.run(batch, mask, reference, sparse=False)
            torch.testing.assert_close(alone, whole, rtol=0, atol=1e-9)


def test_acdc_takes_a_model_in_low_precision():
    """Outputs of the quick descent are those of whole runs of the same rounded model."""
    _, model, batch = lowered_setup("gpt2")
    low = model.at_precision(gp.PrecisionPolicy({"head": "fp8"}))
    with Float64(), torch.no_grad():
        reference = low.reference(batch)
        order = gp.ACDC().edge_order(low.graph)
        kept = torch.ones(low.graph.num_edges, dtype=torch.bool)
        trials = low.trials(batch, kept, reference, order)
        edges = order[:3]
        rows = trials.without(edges, torch.ones(3, 3).tril().bool())
        masks = kept.repeat(3, 1)
        for j in range(3):
            masks[j, edges[: j + 1]] = False
        want = low.run(batch, masks.double(), reference)
    torch.testing.assert_close(rows, want, rtol=0, atol=1e-9)
