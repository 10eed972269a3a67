"""Models in low precision against an independent oracle, plain Hugging Face and themselves.

``support/grids.py`` rounds without the library or torch's low-precision types; the oracle of masked
runs takes its rounding as a function. ``Float64`` makes agreement exact: in float32 two orders of
summation may round a value to two neighbours of a grid.
"""

import copy
import dataclasses
import itertools

import pytest
import torch
from support.grids import gaussian, passing, relative, rounded_model
from support.lowering import MIXED, PAPER, ROUNDED, random_masks, rtn, setup, task_of
from support.marks import quick
from support.oracle import oracle_edges, oracle_logits
from support.tiny import FAMILIES, Float64

import graphprune as gp
from graphprune.conformance import check_adapter, check_method

STORED = ["gpt2", "llama", "gpt_neox", "phi3"]  # transposed, apart and grouped, interleaved, blocks
STEPS = "a rounded function is a staircase, and its gradient is that of the straight line along it"
STAIRS = {"gradient_is_finite_difference": STEPS, "examples_have_their_own_masks": STEPS}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_fp32_everywhere_is_the_plain_model_to_the_bit(family):
    _, model, batch = setup(family, torch.float32)
    same = model.at_precision(gp.PrecisionPolicy())
    mask = random_masks(model, 1)[0].float()
    found = []
    for one in (model, same):
        reference = one.reference(batch)
        outputs = one.run(batch, mask, reference)
        gradients = one.edge_gradients(batch, lambda y: y[..., 1] - y[..., 2], reference)
        found.append((reference.full, reference.ablated, outputs, gradients.edge))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)
    assert same.lowered.native == {}
    assert same.lowered.weight_bytes == same.lowered.full_weight_bytes
    assert model.lowered is None


@pytest.mark.parametrize("policy", [rtn(8), rtn(4)], ids=["int8", "int4"])
@pytest.mark.parametrize("family", STORED)
def test_rounded_weights_are_plain_hugging_face_with_weights_rounded_by_hand(
    float64, family, policy
):
    module, model, batch = setup(family)
    precision = policy.kinds["mlp"]
    twin = rounded_model(module, lambda node: precision, activations=False)
    reference = model.at_precision(policy).reference(batch)
    with torch.no_grad():
        for ids, got in ((batch.clean, reference.full), (batch.corrupt, reference.ablated)):
            want = twin(ids["input_ids"]).logits[:, -1]
            torch.testing.assert_close(got, want, rtol=0, atol=1e-9)
            assert relative(got, module(ids["input_ids"]).logits[:, -1]) > 1e-3


@pytest.mark.parametrize("family", STORED)
def test_masked_runs_and_gradients_equal_the_oracle(float64, family):
    """Under a policy of five precisions, with weights and activations rounded by hand."""
    module, model, batch = setup(family)

    def precision_of(node):
        return MIXED.of(node, "mlp" if node.startswith("m") else "head")

    twin = rounded_model(module, precision_of, activations=True)
    low = model.at_precision(MIXED)
    edges = oracle_edges(module)
    order = torch.tensor([model.graph.edge_number[f"{u}->{r}"] for u, r in edges])

    def oracle(mask):
        return oracle_logits(
            twin,
            batch.clean["input_ids"],
            {edge: mask[order[i]] for i, edge in enumerate(edges)},
            corrupt_ids=batch.corrupt["input_ids"],
            rounding=lambda name, x: passing(x, precision_of(name.partition("<")[0])),
        )[:, -1]

    for mask in random_masks(model, 2):
        ours, theirs = (mask.clone().requires_grad_(True) for _ in range(2))
        got, want = low.run(batch, ours), oracle(theirs)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-9)
        sparse = low.run(batch, mask)
        torch.testing.assert_close(sparse, want.detach(), rtol=0, atol=1e-9)
        weight = torch.linspace(-1, 1, got.shape[-1], dtype=torch.float64)
        (got,) = torch.autograd.grad((got * weight).sum(), ours)
        (want,) = torch.autograd.grad((want * weight).sum(), theirs)
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)
    ones = torch.ones(model.graph.num_edges, dtype=torch.float64)
    theirs = ones.clone().requires_grad_(True)
    (want,) = torch.autograd.grad((oracle(theirs) * weight).sum(), theirs)
    found = low.edge_gradients(batch, lambda y: (y * weight).sum(-1))
    torch.testing.assert_close(found.edge, want, rtol=1e-8, atol=1e-8)


ANY = list(itertools.product(FAMILIES, (False, True)))
# Weights stored otherwise, coupled norms, none at all; and one family that keeps nothing.
FEW = [*((family, False) for family in ("gpt2", "phi3", "olmo2", "gemma2")), ("llama", True)]


@pytest.mark.parametrize(("family", "checkpointing"), quick(ANY, FEW))
def test_passes_agree_with_each_other(float64, family, checkpointing):
    """Ends, plain Hugging Face on the copy, a stack against its masks; every family and kind."""
    _, model, batch = setup(family, checkpointing=checkpointing)
    # Without norms readers would read embeddings that stand on a grid already, and on it the ties
    # between two neighbours are many, which the last bit of a sum decides.
    spared = {"embed": "fp32"} if family == "olmo2" else {}
    everything = gp.PrecisionPolicy(spared, default="fp8", emulate=True)
    for policy in (MIXED, everything, dataclasses.replace(everything, weight_scale="row")):
        low = model.at_precision(policy)
        reference = low.reference(batch)
        with torch.no_grad():
            plain = low.module(batch.clean["input_ids"]).logits[:, -1]
        close = {"rtol": 0, "atol": 1e-9}
        torch.testing.assert_close(reference.full, plain, **close)
        assert relative(reference.full, model.reference(batch).full) > 1e-3
        ones = torch.ones(model.graph.num_edges, dtype=torch.float64)
        torch.testing.assert_close(low.run(batch, ones, reference), reference.full, **close)
        torch.testing.assert_close(low.run(batch, 0 * ones, reference), reference.ablated, **close)
        masks = random_masks(model, 4)
        together = low.run(batch, masks, reference)
        for mask, got in zip(masks, together, strict=True):
            torch.testing.assert_close(got, low.run(batch, mask, reference), **close)


def test_a_head_kept_in_float32_changes_itself_alone():
    _, model, _ = setup("llama", torch.float32)
    low = model.at_precision(ROUNDED)
    raised = model.at_precision(ROUNDED.with_nodes({"a0.h1": "fp32", "a0.kv0": "fp32"}))
    mine = {(0, 1), (1, 0), (2, 0)}  # q of head 1, k and v of its key/value head
    blocks = zip(model.arch.blocks, low.arch.blocks, raised.arch.blocks, strict=True)
    for layer, (plain, lowered, mixed) in enumerate(blocks):
        x = gaussian(5, model.arch.width, 0)
        for tensor in range(3):
            readers = (b.readers[tensor].weight for b in (plain, lowered, mixed))
            for row, (exact, all_low, got) in enumerate(zip(*readers, strict=True)):
                assert not torch.equal(exact, all_low)
                free = layer == 0 and (tensor, row) in mine
                assert torch.equal(got, exact if free else all_low)
        outputs = (b.output_weight for b in (plain, lowered, mixed))
        for head, (exact, all_low, got) in enumerate(zip(*outputs, strict=True)):
            assert torch.equal(got, exact if (layer, head) == (0, 1) else all_low)
        exact, all_low, got = (
            b.project(x).detach().unflatten(-1, (b.rows, -1)) for b in (plain, lowered, mixed)
        )
        rows = torch.arange(plain.rows)
        free = torch.isin(rows, torch.tensor([1, 4, 6])) & (layer == 0)
        want = torch.where(free[:, None], exact, all_low)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        assert float((exact - all_low).abs().amax((0, 2)).min()) > 1e-3
        read = mixed.rounds.reader_input(x[:, None].expand(-1, mixed.rows, -1), rows)
        assert [torch.equal(read[:, i], x) for i in rows.tolist()] == free.tolist()
        few = torch.tensor([1, 4, 6])
        assert torch.equal(
            mixed.rounds.reader_input(x[:, None].expand(-1, 3, -1), few), read[:, few]
        )


def test_one_head_beside_others_only_counts_through_itself(float64):
    """Raising a head whose edges are all ablated changes nothing."""
    _, model, batch = setup("gpt2")
    low = model.at_precision(ROUNDED)
    raised = model.at_precision(ROUNDED.with_nodes({"a0.h1": "fp32"}))
    mask = torch.ones(model.graph.num_edges, dtype=torch.float64)
    zero = gp.Ablation("zero")
    outputs = []
    for keep in (True, False):
        names = model.graph.edge_names
        mine = torch.tensor([n.startswith("a0.h1->") or "->a0.h1" in n for n in names])
        masked_out = torch.where(mine & (not keep), 0.0, mask)
        got, want = (m.run(batch, masked_out, m.reference(batch, zero)) for m in (raised, low))
        outputs.append(float((got - want).abs().max()))
    assert outputs[0] > 1e-3
    assert outputs[1] < 1e-9


@pytest.mark.parametrize("family", quick(["gpt2", "llama", "gpt_neox", "gemma2"], ["llama"]))
def test_lowered_models_conform(float64, family):
    """All checks hold but finite differences, which look across a staircase's steps."""
    _, model, batch = setup(family)
    task = task_of(batch)
    assert set(check_adapter(model.at_precision(rtn(8)), task).values()) == {"passed"}
    found = check_adapter(model.at_precision(MIXED), task, expected_failures=STAIRS)
    assert sum(v != "passed" for v in found.values()) == len(STAIRS)


def test_the_users_module_is_left_alone():
    module, model, batch = setup("gpt2", torch.float32)
    module.train()
    before = copy.deepcopy(module.state_dict())
    ids = [id(m) for m in module.modules()]
    low = model.at_precision(gp.PrecisionPolicy(default="fp8"))
    mask = random_masks(model, 1)[0].float().requires_grad_(True)
    low.run(batch, mask).sum().backward()
    low.edge_gradients(batch, lambda y: y[..., 1])
    assert [id(m) for m in module.modules()] == ids
    assert all(m.training for m in module.modules())
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert low.module is not module
    kept = low.module.transformer.h[0].ln_1, low.module.transformer.h[0].attn.c_attn.bias
    assert kept[0] is module.transformer.h[0].ln_1
    assert kept[1] is module.transformer.h[0].attn.c_attn.bias
    again = low.at_precision(rtn(4))
    want = model.at_precision(rtn(4)).reference(batch).full
    assert torch.equal(again.reference(batch).full, want)
    assert low.provenance()["weights"] == model.provenance()["weights"]
    assert low.provenance()["precision"]["default"] == "fp8"
    assert "precision" not in model.provenance()


# -------------------------------------------------------------------- methods


@pytest.mark.parametrize(
    "method", [gp.EAP(), gp.EAPIG(steps=2), gp.RelP(), gp.ExactPatching()], ids=lambda m: m.label
)
def test_scorers_serve_lowered_models(method):
    _, model, batch = setup("llama", torch.float64, small=True)
    with Float64():
        low = model.at_precision(ROUNDED)
        assert set(check_method(method, low, task_of(batch)).values()) == {"passed"}
        scores = method.score(low, task_of(batch))
        plain = method.score(model, task_of(batch))
    assert scores.graph.fingerprint == plain.graph.fingerprint
    rough = torch.corrcoef(torch.stack([scores.values, plain.values]))[0, 1]
    assert 0.5 < float(rough) < 0.99999


def test_edge_pruning_serves_lowered_models():
    _, model, batch = setup("gpt2", torch.float32)
    method = gp.EdgePruning(sparsity=0.5, steps=12, batch_size=3)
    mask = method.prune(model.at_precision(PAPER), task_of(batch))
    report = gp.evaluate(model, task_of(batch), mask)
    assert 0 < mask.num_kept < model.graph.num_edges
    assert report.to_dict()["kl"] >= 0
