"""The language-model adapter against an independent oracle, plain Hugging Face and differences.

The oracle (``tests/support/oracle.py``) was written from the definition without sight of the
adapter. Models are tiny, every weight is perturbed. ``Float64`` lets the norms and softmaxes that
insist on float32 compute in float64, so that exact means 1e-9.
"""

import dataclasses
import itertools

import pytest
import torch
from support.hooked import hooked
from support.marks import quick
from support.oracle import oracle_edges, oracle_logits, oracle_writer_values
from support.tiny import EAGER_ONLY, FAMILIES, random_pair, tiny

import graphprune as gp
from graphprune import Ablation, Batch
from graphprune.errors import InputError, UnsupportedModelError

KINDS = ("counterfactual", "zero", "mean", "mean_positional")


def setup(family, **options):
    module = tiny(family, dtype=torch.float64, **options)
    model = gp.wrap(module)
    clean, corrupt = random_pair(module)
    batch = Batch({"input_ids": clean}, {"input_ids": corrupt}, len(clean))
    edges = oracle_edges(module)
    order = torch.tensor([model.graph.edge_number[f"{u}->{r}"] for u, r in edges])
    return module, model, batch, edges, order


def ask(module, batch, edges, order, values, ablation="counterfactual", **options):
    mask = {edge: values[order[i]] for i, edge in enumerate(edges)}
    return oracle_logits(
        module,
        batch.clean["input_ids"],
        mask,
        ablation,
        corrupt_ids=batch.corrupt["input_ids"],
        **options,
    )[:, -1]


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_ends_are_plain_hugging_face(float64, family, attn):
    if attn == "sdpa" and family in EAGER_ONLY:
        pytest.skip("this family has no SDPA attention")
    module, model, batch, edges, _ = setup(family, attn=attn)
    assert model.graph.num_edges == len(edges)
    with torch.no_grad():
        clean = module(batch.clean["input_ids"]).logits[:, -1]
        corrupt = module(batch.corrupt["input_ids"]).logits[:, -1]
    every = torch.ones(len(edges), dtype=torch.float64)
    reference = model.reference(batch)
    torch.testing.assert_close(reference.full, clean, rtol=0, atol=1e-9)
    torch.testing.assert_close(reference.ablated, corrupt, rtol=0, atol=1e-9)
    torch.testing.assert_close(model.run(batch, every), clean, rtol=0, atol=1e-9)
    torch.testing.assert_close(model.run(batch, 0 * every), corrupt, rtol=0, atol=1e-9)


ALL = list(itertools.product(FAMILIES, KINDS))
# What stands in for a message does not depend on the family that sent it.
FEW = [case for case in ALL if case[1] == "counterfactual" or case[0] in ("gpt2", "gemma2")]


@pytest.mark.parametrize(("family", "ablation"), quick(ALL, FEW))
def test_masked_runs_equal_the_oracle(float64, family, ablation):
    module, model, batch, edges, order = setup(family)
    values = Ablation(ablation)
    means = None
    if ablation.startswith("mean"):
        per_position = ablation == "mean_positional"
        values = model.mean_ablation([batch], per_position=per_position)
        sent = oracle_writer_values(module, batch.corrupt["input_ids"])
        sent = {name: x.detach() for name, x in sent.items()}
        means = {
            name: x.mean(0) if per_position else x.mean((0, 1)).expand(x.shape[1:])
            for name, x in sent.items()
        }
    reference = model.reference(batch, values)
    kind = "mean" if means is not None else ablation
    generator = torch.Generator().manual_seed(1)
    for density in (0.1, 0.5, None):
        mask = torch.rand(len(edges), dtype=torch.float64, generator=generator)
        if density is not None:
            mask = (mask < density).double()
        want = ask(module, batch, edges, order, mask, kind, means=means)
        torch.testing.assert_close(model.run(batch, mask, reference), want, rtol=0, atol=1e-9)
        stack = torch.stack([1 - mask, mask])
        got = model.run(batch, stack, reference)[1]
        torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_mask_gradient_equals_the_oracle(float64, family):
    module, model, batch, edges, order = setup(family)
    mask = torch.rand(len(edges), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ours, theirs = (mask.clone().requires_grad_(True) for _ in range(2))
    out = model.run(batch, ours)
    weight = torch.linspace(-1, 1, out.shape[-1], dtype=torch.float64)
    (got,) = torch.autograd.grad((out * weight).sum(), ours)
    want_out = ask(module, batch, edges, order, theirs)
    (want,) = torch.autograd.grad((want_out * weight).sum(), theirs)
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


# Where gradients equal the oracle's they are right; these look at the two from outside.
@pytest.mark.parametrize("family", quick(FAMILIES, ["gpt2", "llama", "gemma2"]))
def test_gradients_equal_finite_differences_for_every_kind_of_edge(float64, family):
    """One edge of each kind of source and each kind of reader, in each layer."""
    _, model, batch, edges, _ = setup(family)
    graph = model.graph
    mask = torch.rand(len(edges), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    mask.requires_grad_(True)
    out = model.run(batch, mask)
    weight = torch.linspace(-1, 1, out.shape[-1], dtype=torch.float64)
    (gradient,) = torch.autograd.grad((out * weight).sum(), mask)
    kinds = {}
    for e in range(graph.num_edges):
        source, target = (graph.nodes[i] for i in graph.edge_index[:, e].tolist())
        kinds[source.kind, source.layer, int(graph.edge_kind[e]), target.layer] = e
    assert len(kinds) >= 10
    step = 1e-5
    for e in kinds.values():
        with torch.no_grad():
            shifted = []
            for sign in (1, -1):
                moved = mask.detach().clone()
                moved[e] += sign * step
                shifted.append((model.run(batch, moved) * weight).sum())
        difference = (shifted[0] - shifted[1]) / (2 * step)
        torch.testing.assert_close(difference, gradient[e], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_attribution_is_the_mask_gradient_at_the_clean_model(float64, family):
    _, model, batch, edges, _ = setup(family)
    weight = torch.linspace(-1, 1, 3, dtype=torch.float64)
    objective = lambda out: (out[:, :3] * weight).sum(-1)  # noqa: E731
    found = model.edge_gradients(batch, objective)
    mask = torch.ones(len(edges), dtype=torch.float64, requires_grad=True)
    (want,) = torch.autograd.grad(objective(model.run(batch, mask)).sum(), mask)
    torch.testing.assert_close(found.edge, want, rtol=1e-8, atol=1e-8)
    by_position = model.edge_gradients(batch, objective, by_position=True).edge
    torch.testing.assert_close(by_position.sum(1), found.edge, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_gates_move_whole_nodes(float64, family):
    """A gate on a node is a mask on all its outgoing edges: the node gradient follows."""
    _, model, batch, edges, _ = setup(family)
    graph = model.graph
    weight = torch.linspace(-1, 1, 3, dtype=torch.float64)
    objective = lambda out: (out[:, :3] * weight).sum(-1)  # noqa: E731
    names = ["input", "a0.h1", "m0", "a1.h0", "m1"]
    gates = torch.ones(1, graph.num_nodes)
    gates[0, graph.node_number["a0.h1"]] = 0.25
    node = model.edge_gradients(batch, objective, gates=gates).node
    mask = torch.ones(len(edges), dtype=torch.float64)
    mask[graph.edge_index[0] == graph.node_number["a0.h1"]] = 0.25
    mask.requires_grad_(True)
    (gradient,) = torch.autograd.grad(objective(model.run(batch, mask)).sum(), mask)
    number = graph.node_number["a0.h1"]
    want = gradient[graph.edge_index[0] == number].sum()
    torch.testing.assert_close(node[number], want, rtol=1e-8, atol=1e-8)
    clean = model.edge_gradients(batch, objective)
    for name in names:
        mine = clean.edge[graph.edge_index[0] == graph.node_number[name]].sum()
        torch.testing.assert_close(clean.node[graph.node_number[name]], mine, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing(float64, family):
    _, model, batch, edges, _ = setup(family)
    generator = torch.Generator().manual_seed(4)
    mask = torch.rand(len(edges), dtype=torch.float64, generator=generator)
    clean, corrupt = (side["input_ids"][:2, :6] for side in (batch.clean, batch.corrupt))
    alone = model.run(Batch({"input_ids": clean}, {"input_ids": corrupt}, 2), mask)
    pad = torch.randint(20, (2, 3), generator=generator)
    real = torch.ones(2, 9, dtype=torch.int64)
    real[:, 6:] = 0
    padded = Batch(
        {"input_ids": torch.cat([clean, pad], 1), "attention_mask": real},
        {"input_ids": torch.cat([corrupt, pad.flip(0)], 1), "attention_mask": real},
        2,
    )
    torch.testing.assert_close(model.run(padded, mask), alone, rtol=0, atol=1e-9)
    objective = lambda out: out[:, 0] - out[:, 1]  # noqa: E731
    mine = model.edge_gradients(padded, objective).edge
    want = model.edge_gradients(
        Batch({"input_ids": clean}, {"input_ids": corrupt}, 2), objective
    ).edge
    torch.testing.assert_close(mine, want, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("gpt2", torch.float32),
        ("llama", torch.bfloat16),
        ("gemma2", torch.float16),
        ("gpt_neox", torch.bfloat16),
    ],
)
def test_low_precision_stays_close(family, dtype):
    module = tiny(family, dtype=dtype)
    model = gp.wrap(module)
    clean, corrupt = random_pair(module)
    batch = Batch({"input_ids": clean}, {"input_ids": corrupt}, len(clean))
    exact = gp.wrap(tiny(family, dtype=torch.float64))
    mask = torch.rand(model.graph.num_edges, generator=torch.Generator().manual_seed(5)) < 0.5
    gap = (model.run(batch, mask.float()).double() - exact.run(batch, mask.double())).abs().max()
    assert gap < {torch.float32: 1e-4, torch.bfloat16: 0.3, torch.float16: 0.05}[dtype]
    scores = model.edge_gradients(batch, lambda out: out[:, 0] - out[:, 1]).edge
    assert scores.dtype == torch.float32


def test_the_users_model_is_unchanged_even_when_a_run_fails():
    module = tiny("llama")
    module.train()
    for p in list(module.parameters())[::2]:
        p.requires_grad_(False)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    flags = [p.requires_grad for p in module.parameters()]
    modules = [id(m) for m in module.modules()]
    model = gp.wrap(module)
    clean, corrupt = random_pair(module)
    batch = Batch({"input_ids": clean}, {"input_ids": corrupt}, len(clean))

    def fails(out):
        raise RuntimeError("stop here")

    model.edge_gradients(batch, lambda out: out[:, 0])
    model.run(batch, torch.ones(model.graph.num_edges, requires_grad=True)).sum().backward()
    with pytest.raises(RuntimeError, match="stop here"):
        model.edge_gradients(batch, fails)
    assert all(m.training for m in module.modules())
    assert flags == [p.requires_grad for p in module.parameters()]
    assert modules == [id(m) for m in module.modules()]
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())
    assert not hooked(module)


def test_a_model_in_training_mode_is_run_without_dropout_and_left_training():
    """Dropout would make two runs differ, in forward and in a backward that comes later."""
    module = tiny("gpt2", resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5).train()
    model = gp.wrap(module)
    clean, corrupt = random_pair(module)
    batch = Batch({"input_ids": clean}, {"input_ids": corrupt}, len(clean))
    gradients = []
    for _ in range(2):
        mask = torch.full((model.graph.num_edges,), 0.5, requires_grad=True)
        out = model.run(batch, mask)
        assert module.training
        out.sum().backward()
        gradients.append(mask.grad)
    assert torch.equal(*gradients)
    assert all(m.training for m in module.modules())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clean": {"input_ids": torch.full((2, 4), 10_000)}}, "clean prompts hold token ids"),
        ({"corrupt": {"input_ids": torch.full((2, 4), -1)}}, "corrupted prompts hold token ids"),
        ({"corrupt": {"input_ids": torch.ones(2, 5, dtype=torch.int64)}}, "need spans"),
        ({"positions": torch.tensor([3, 4])}, "position 4.*4 tokens"),
        ({"corrupt": None}, "needs corrupted prompts"),
        ({"clean": torch.ones(2, 4)}, "mapping with input_ids"),
    ],
)
def test_bad_batches_say_what_is_wrong(change, message):
    model = gp.wrap(tiny("llama"))
    ids = torch.ones(2, 4, dtype=torch.int64)
    batch = dataclasses.replace(Batch({"input_ids": ids}, {"input_ids": ids}, 2), **change)
    with pytest.raises(InputError, match=message):
        model.reference(batch)


def test_an_architecture_that_is_not_what_it_says_is_refused():
    """A hook that changes a layer, an adapter in a projection, and layers that are not alike."""
    module = tiny("llama")
    hook = module.model.layers[0].register_forward_hook(lambda _, args, out: out + 0.1)
    with pytest.raises(UnsupportedModelError, match=r"layers\.0 has a forward hook"):
        gp.wrap(module)
    hook.remove()
    gp.wrap(module)
    module.model.layers[0].self_attn.q_proj = torch.nn.Sequential(
        module.model.layers[0].self_attn.q_proj
    )
    with pytest.raises(
        UnsupportedModelError, match=r"q_proj is a Sequential that does not say its in_features"
    ):
        gp.wrap(module)
    module.config.model_type = "mamba"  # not known, so read off: each attention is one node
    names = {node.name for node in gp.wrap(module).graph.nodes}
    assert names == {"input", "a0", "m0", "a1", "m1", "logits"}
