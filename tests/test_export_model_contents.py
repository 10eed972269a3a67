"""What an exported circuit's module holds: the weights it needs, once, as copies."""

import copy

import pytest
import torch
from support.exporting import drawn, named, system

import graphprune as gp
from graphprune import Ablation


def weights(module):
    return sum(p.numel() for p in module.parameters())


def additions(module):
    """How many messages are added to inputs of the module, and subtracted."""
    readings = [m for m in module.modules() if type(m).__name__ == "ReaderSum"]
    return sum(len(r.terms.plus) + len(r.terms.minus) for r in readings)


def test_inputs_start_from_earlier_ones():
    """Of the whole graph each message is added about once; of others no more than is kept."""
    deep, _ = system("gpt2", torch.float32, settings={"num_hidden_layers": 6})
    whole = deep.pruned(gp.EdgeMask.full(deep.graph), Ablation("zero")).module
    messages = 2 + 2 * 6  # the tables, and of each layer its heads and its MLP
    assert messages <= additions(whole) <= messages + 2  # instead of 13 * 14 / 2 and more
    model, _ = system("gpt2", torch.float32)
    for density in (0.1, 0.5, 0.9):
        mask = drawn(model, density, 2).prune_dead_ends()
        found = additions(model.pruned(mask, Ablation("zero")).module)
        readers = 2 * 13 + 1
        assert 0 < found <= mask.num_kept + readers
    half, _ = system("gpt2", torch.bfloat16)
    many = half.pruned(gp.EdgeMask.full(half.graph), Ablation("zero")).module
    sums = [m for m in many.modules() if type(m).__name__ == "ReaderSum"]
    assert sums
    assert not any(reader.terms.minus for reader in sums)


def test_tanh_gelus_are_one_operation():
    model, _ = system("gpt2", torch.float32)
    module = model.pruned(gp.EdgeMask.full(model.graph), Ablation("zero")).module
    kinds = {type(m).__name__ for m in module.modules()}
    assert "GELU" in kinds
    assert "NewGELUActivation" not in kinds
    assert {type(b.mlp.act).__name__ for b in model.module.transformer.h} == {"NewGELUActivation"}


def test_parameters_are_the_circuits_by_hand():
    model, _ = system("gpt2", torch.float32)
    mask = named(
        model,
        *("input->a0.h1<q>", "input->a0.h1<k>", "input->a0.h1<v>", "input->a0.h3<v>"),
        *("a0.h1->m1", "m1->logits", "a0.h3->a1.h0<k>"),  # a1.h0 is read by nothing
        *("input->a0.h2<v>", "a0.h2->a1.h0<q>"),
    )
    pruned = model.pruned(mask.prune_dead_ends(), Ablation("zero"))
    d, width, vocabulary, places = 16, 4, 61, 32
    head = 3 * (width * d + width) + width * d  # rows of q, k, v with biases, and the output map
    mlp = sum(p.numel() for p in model.module.transformer.h[1].mlp.parameters()) + 2 * d
    ends = vocabulary * d + places * d + 2 * d  # tied: one table for both ends
    assert weights(pruned.module) == ends + head + mlp
    # Without dead ends taken out, what no output depends on is left out all the same.
    again = model.pruned(mask, Ablation("zero"))
    assert weights(again.module) == ends + head + mlp


def test_grouped_values_are_held_once():
    model, _ = system("llama", torch.float32)
    edges = [f"input->a0.h{h}<q>" for h in (0, 1)] + [f"a0.h{h}->logits" for h in (0, 1)]
    mask = named(model, *edges, "input->a0.kv0<k>", "input->a0.kv0<v>")
    d, width, vocabulary = 16, 4, 61
    ends = vocabulary * d * (1 if model.module.config.tie_word_embeddings else 2) + d
    rows = 2 * width * d + 2 * width * d  # two queries, one key, one value
    found = weights(model.pruned(mask, Ablation("zero")).module)
    assert found == ends + rows + 2 * width * d


def test_heads_whose_values_are_constants_are_folded():
    """Attention over the same value everywhere gives that value, whatever its weights are."""
    model, batch = system("llama", torch.float32)
    edges = ["input->a0.h0<q>", "input->a0.kv0<k>", "a0.h0->logits", "input->logits"]
    mask = named(model, *edges)
    ablation = model.mean_ablation([batch])
    module = model.pruned(mask, ablation).module
    assert len(module.stages) == 0
    with torch.no_grad():
        want = model.run(batch, mask, model.reference(batch, ablation), sparse=False)
        torch.testing.assert_close(module(batch.clean["input_ids"]), want, rtol=1e-4, atol=1e-5)


def test_weights_are_copies_and_the_model_is_as_before():
    model, _ = system("gpt_neox", torch.float32)
    model.module.train()
    before = copy.deepcopy(model.module.state_dict())
    module = model.pruned(drawn(model, 0.5), Ablation("zero")).module
    assert model.module.training
    assert not module.training
    theirs = {t.untyped_storage().data_ptr() for t in model.module.state_dict().values()}
    assert not theirs & {t.untyped_storage().data_ptr() for t in module.state_dict().values()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    after = model.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.requires_grad for p in model.module.parameters())


def test_the_module_learns(float64):
    """Gradients of its weights are those of finite differences."""
    model, batch = system("qwen3")
    module = model.pruned(drawn(model, 0.4, 3).prune_dead_ends(), Ablation("zero")).module
    ids = batch.clean["input_ids"]
    module(ids).square().sum().backward()
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        assert parameter.grad is not None
        step = 1e-6 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * step)
                ends.append(float(module(ids).square().sum()))
                parameter.sub_(sign * step)
        slope = float((parameter.grad * step).sum())
        assert (ends[0] - ends[1]) / 2 == pytest.approx(slope, rel=1e-3, abs=1e-9)
