"""Masks for each example, learned constants, shared prefixes, answers anywhere, checkpointing.

Float64, against the oracle, a plainer computation or finite differences.
"""

import dataclasses
import itertools

import pytest
import torch
from support.marks import quick
from support.oracle import oracle_logits
from support.tiny import FAMILIES, random_pair, tiny
from test_lm_exactness import ask, setup

import graphprune as gp
from graphprune import Ablation, Batch
from graphprune.errors import InputError

SOME = ["gpt2", "qwen2", "olmo2", "gemma2", "gpt_neox"]


def random(shape, seed=0):
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def same(got, want, tolerance=1e-9):
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def value_and_gradient(model, batch, mask, reference, *more):
    mask = mask.clone().requires_grad_(True)
    out = model.run(batch, mask, reference)
    weight = torch.linspace(-1, 1, out.shape[-1], dtype=out.dtype)
    return out.detach(), torch.autograd.grad((out * weight).sum(), (mask, *more))


# -------------------------------------------------------------------- masks for each example


@pytest.mark.parametrize("family", SOME)
def test_each_example_under_its_own_mask_equals_the_oracle(float64, family):
    module, model, batch, edges, order = setup(family)
    masks = random((2, batch.size, len(edges)))
    masks[1] = (masks[1] < 0.3).double()
    mine = masks.clone().requires_grad_(True)
    out = model.run(batch, mine)
    theirs = masks.clone().requires_grad_(True)
    rows = []
    for k in range(2):
        for b in range(batch.size):
            one = Batch(
                *({"input_ids": s["input_ids"][b : b + 1]} for s in (batch.clean, batch.corrupt)), 1
            )
            rows.append(ask(module, one, edges, order, theirs[k, b])[0])
    want = torch.stack(rows).view_as(out)
    same(out, want)
    same(model.run(batch, masks), want)  # the sparse pass
    weight = torch.linspace(-1, 1, out.shape[-1], dtype=torch.float64)
    (got,) = torch.autograd.grad((out * weight).sum(), mine)
    (expected,) = torch.autograd.grad((want * weight).sum(), theirs)
    same(got, expected, 1e-8)


def test_masks_for_another_number_of_examples_are_refused():
    model = gp.wrap(tiny("gpt2"))
    ids = torch.ones(3, 4, dtype=torch.int64)
    batch = Batch({"input_ids": ids}, {"input_ids": ids}, 3)
    edges = model.graph.num_edges
    with pytest.raises(InputError, match=rf"\[K, 3, {edges}\], got \[1, 2, {edges}\]"):
        model.run(batch, torch.ones(1, 2, edges))


# -------------------------------------------------------------------- learned constants


def constants_by_name(model, constants):
    names = [model.graph.nodes[n].name for n in model.layout.writer_nodes()]
    return dict(zip(names, constants, strict=True))


@pytest.mark.parametrize("family", SOME)
def test_learned_constants_equal_the_oracle(float64, family):
    """Values, and gradients of the mask and of every constant, by the oracle's autograd."""
    module, model, batch, edges, order = setup(family)
    ablation = model.learned_ablation(Ablation("zero"))
    (constants,) = ablation.parameters
    assert constants.requires_grad
    assert constants.is_leaf
    with torch.no_grad():
        constants.copy_(random(constants.shape, 3) - 0.5)
    mask = random(len(edges), 1)
    reference = model.reference(batch, ablation)
    out, (d_mask, d_constants) = value_and_gradient(model, batch, mask, reference, constants)
    leaf, mine = (x.detach().clone().requires_grad_(True) for x in (constants, mask))
    want = oracle_logits(
        module,
        batch.clean["input_ids"],
        {edge: mine[order[i]] for i, edge in enumerate(edges)},
        "optimal",
        means=constants_by_name(model, leaf),
    )[:, -1]
    weight = torch.linspace(-1, 1, out.shape[-1], dtype=torch.float64)
    expected = torch.autograd.grad((want * weight).sum(), (mine, leaf))
    same(out, want.detach())
    same(d_mask, expected[0], 1e-8)
    same(d_constants, expected[1], 1e-8)
    for density in (0.1, 0.4):
        cut = (random(len(edges), 4) < density).double()
        values = {edge: cut[order[i]] for i, edge in enumerate(edges)}
        ids, means = batch.clean["input_ids"], constants_by_name(model, leaf.detach())
        want = oracle_logits(module, ids, values, "optimal", means=means)[:, -1]
        same(model.run(batch, cut, reference).detach(), want)


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gemma2"])
def test_constants_gradient_is_a_finite_difference_for_every_kind_of_writer(
    float64,
    family,
):
    _, model, batch, edges, _ = setup(family)
    ablation = model.learned_ablation(model.mean_ablation([batch]))
    (constants,) = ablation.parameters
    reference = model.reference(batch, ablation)
    mask = random((2, batch.size, len(edges)), 2)
    weight = torch.linspace(-1, 1, model.arch.outputs, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((model.run(batch, mask, reference) * weight).sum(), constants)
    layout = model.layout
    writers = {"embedding": 0, "MLP": layout.head(1) + layout.heads}
    writers |= {"head": layout.head(0) + 1, "last head": layout.head(1)}
    writers |= {"first MLP": layout.head(0) + layout.heads}
    step = 1e-5
    for writer in writers.values():
        direction = random(model.arch.width, writer) - 0.5
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                constants[writer] += sign * step * direction
                ends.append((model.run(batch, mask, reference) * weight).sum())
                constants[writer] -= sign * step * direction
        slope = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close(slope, gradient[writer] @ direction, rtol=1e-6, atol=1e-7)


def kl(out, full):
    return torch.nn.functional.kl_div(
        out.log_softmax(-1), full.log_softmax(-1), log_target=True, reduction="batchmean"
    )


@pytest.mark.parametrize("family", quick(["gpt2", "qwen2", "olmo2"], ["qwen2"]))
def test_learned_constants_start_as_the_means_and_beat_them(family):
    model = gp.wrap(tiny(family))
    clean, corrupt = random_pair(model.module, batch=16)
    batch = Batch({"input_ids": clean}, {"input_ids": corrupt}, 16)
    mask = (torch.rand(model.graph.num_edges, generator=torch.Generator().manual_seed(0)) < 0.5).to(
        torch.float32
    )
    mean = model.mean_ablation([batch])
    ablation = model.learned_ablation(mean)
    (constants,) = ablation.parameters
    assert constants.dtype == torch.float32
    reference = model.reference(batch, ablation)
    before = model.run(batch, mask, model.reference(batch, mean))
    torch.testing.assert_close(model.run(batch, mask, reference), before, rtol=1e-4, atol=1e-4)
    optimiser = torch.optim.Adam([constants], lr=0.02)
    for _ in range(60):
        optimiser.zero_grad()
        kl(model.run(batch, mask, reference), reference.full).backward()
        optimiser.step()
    after = kl(model.run(batch, mask, reference), reference.full)
    assert after < 0.7 * kl(before, reference.full)
    ablated = model.run(batch, 0 * mask, reference)
    torch.testing.assert_close(reference.ablated, ablated, rtol=1e-4, atol=1e-4)
    gates = torch.ones(1, model.graph.num_nodes)
    node = model.graph.node_number["a0.h1"]
    gates[0, node] = 0.25  # attribution knows the constants as well
    edges = model.edge_gradients(batch, lambda out: out[:, 0], reference, gates=gates).edge
    moved = torch.ones(model.graph.num_edges)
    moved[model.graph.edge_index[0] == node] = 0.25
    _, (want,) = value_and_gradient_of_first(model, batch, moved, reference)
    mine = model.graph.edge_index[0] == node
    torch.testing.assert_close(edges[mine].sum(), want[mine].sum(), rtol=1e-3, atol=1e-4)


def test_gradients_at_no_point_are_refused():
    model = gp.wrap(tiny("gpt2"))
    clean, corrupt = random_pair(model.module)
    batch = Batch({"input_ids": clean}, {"input_ids": corrupt}, len(clean))
    with pytest.raises(InputError, match="with K >= 1, got"):
        model.edge_gradients(
            batch, lambda out: out[:, 0], gates=torch.ones(0, model.graph.num_nodes)
        )


def value_and_gradient_of_first(model, batch, mask, reference):
    mask = mask.clone().requires_grad_(True)
    out = model.run(batch, mask, reference)
    return out.detach(), torch.autograd.grad(out[:, 0].sum(), (mask,))


def test_constants_of_another_model_or_start_are_refused():
    model, other = gp.wrap(tiny("gpt2")), gp.wrap(tiny("gemma3"))
    ids = torch.ones(2, 4, dtype=torch.int64)
    batch = Batch({"input_ids": ids}, {"input_ids": ids}, 2)
    foreign = other.learned_ablation(Ablation("zero"))
    with pytest.raises(InputError, match="another model"):
        model.run(batch, torch.ones(model.graph.num_edges), model.reference(batch, foreign))
    with pytest.raises(InputError, match="start from zero or from means"):
        model.learned_ablation(Ablation())
    with pytest.raises(InputError, match="another model"):
        model.learned_ablation(other.mean_ablation([batch]))
    assert Ablation().parameters == ()


# -------------------------------------------------------------------- tokens that can matter


def sharing(module, prefix, **options):
    clean, corrupt = random_pair(module)
    corrupt[:, :prefix] = clean[:, :prefix]
    corrupt[0, :7] = clean[0, :7]  # the batch's minimum counts
    return Batch({"input_ids": clean}, {"input_ids": corrupt}, len(clean), **options)


POSITIONS = {
    "last": None,
    "several": torch.tensor([[3, 8], [6, 7], [8, 8]]),
    "in the prefix": torch.tensor([[1, 8], [2, 7], [5, -1]]),
    "everywhere": torch.arange(9).expand(3, 9),
}


PREFIXES = [*itertools.product(FAMILIES, POSITIONS)]
# Every family at several places, and every kind of place on two.
FEW = [(f, p) for f, p in PREFIXES if p == "several" or f in ("gpt2", "gemma3")]


@pytest.mark.parametrize(("family", "place"), quick(PREFIXES, FEW))
def test_a_shared_prefix_costs_nothing_and_changes_nothing(float64, family, place):
    module = tiny(family, dtype=torch.float64)
    model = gp.wrap(module)
    batch = sharing(module, 4, positions=POSITIONS[place])
    reference = model.reference(batch)
    assert reference.start == 4
    whole = dataclasses.replace(reference, start=0)
    edges = model.graph.num_edges
    for mask in (random(edges), random((2, edges), 1), random((2, 3, edges), 2)):
        got, (gradient,) = value_and_gradient(model, batch, mask, reference)
        want, (expected,) = value_and_gradient(model, batch, mask, whole)
        same(got, want)
        same(gradient, expected)
        cut = mask * (mask < 0.2)
        want = value_and_gradient(model, batch, cut, whole)[0]
        same(model.run(batch, cut, reference), want)
    assert reference.nbytes > whole.nbytes


@pytest.mark.parametrize("positions", POSITIONS.values(), ids=POSITIONS.keys())
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_answers_anywhere_equal_the_oracle(float64, family, positions):
    module, model, _, edges, order = setup(family)
    batch = sharing(module, 4, positions=positions)
    values = random(len(edges), 5)
    ours, theirs = (values.clone().requires_grad_(True) for _ in range(2))
    out = model.run(batch, ours)
    want = oracle_logits(
        module,
        batch.clean["input_ids"],
        {edge: theirs[order[i]] for i, edge in enumerate(edges)},
        corrupt_ids=batch.corrupt["input_ids"],
    )
    at = torch.full((3, 1), 8) if positions is None else positions.clamp(min=0)
    want = want.gather(1, at[..., None].expand(-1, -1, want.shape[-1])).view_as(out)
    same(out, want)
    (got,) = torch.autograd.grad(out.square().sum(), ours)
    (expected,) = torch.autograd.grad(want.square().sum(), theirs)
    same(got, expected, 1e-8)


def test_the_prefix_ends_where_any_example_differs():
    model = gp.wrap(tiny("llama"))
    clean = torch.arange(8).repeat(2, 1)
    corrupt = clean.clone()

    def start(ablation=None):
        batch = Batch({"input_ids": clean}, {"input_ids": corrupt}, 2)
        return model.reference(batch, ablation).start

    assert start() == 7  # equal prompts: the last position alone is computed
    corrupt[1, 5] += 1
    assert start() == 5
    corrupt[0, 2] += 1
    assert start() == 2
    assert start(Ablation("zero")) == 0


# -------------------------------------------------------------------- kept or computed again


@pytest.mark.parametrize("family", quick(FAMILIES, ["gpt2", "llama", "gemma2", "gpt_neox"]))
def test_checkpointing_and_a_second_backward_change_nothing(float64, family):
    module = tiny(family, dtype=torch.float64)
    fast, small = gp.wrap(module), gp.wrap(module, checkpointing=True)
    batch = sharing(module, 3)
    masks = random((2, fast.graph.num_edges), 1)
    want, (expected,) = value_and_gradient(small, batch, masks, small.reference(batch))
    mask = masks.clone().requires_grad_(True)
    out = fast.run(batch, mask)
    same(out.detach(), want, 0)
    total = (out * torch.linspace(-1, 1, out.shape[-1], dtype=torch.float64)).sum()
    for retain in (True, False):  # the first takes what was kept, the second computes it again
        (gradient,) = torch.autograd.grad(total, mask, retain_graph=retain)
        same(gradient, expected, 1e-12)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("gpt2", torch.bfloat16),
        ("llama", torch.float16),
        ("gemma2", torch.bfloat16),
        ("gpt_neox", torch.float16),
    ],
)
def test_low_precision_gradients_stay_close(family, dtype):
    module = tiny(family, dtype=dtype)
    model, exact = gp.wrap(module), gp.wrap(tiny(family, dtype=torch.float64))
    batch = sharing(module, 3)
    mask = random(model.graph.num_edges, 6)
    (want,) = value_and_gradient(exact, batch, mask, exact.reference(batch))[1]
    for checkpointing in (False, True):
        reference = dataclasses.replace(model.reference(batch), checkpointing=checkpointing)
        (got,) = value_and_gradient(model, batch, mask.float(), reference)[1]
        assert got.dtype == torch.float32
        error = (got - want).norm() / want.norm()
        assert error < {torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]


def test_learned_constants_have_no_name_to_resolve():
    from graphprune.methods import resolve_ablation

    model = gp.wrap(tiny("gpt2"))
    with pytest.raises(InputError, match=r"mask optimiser.*EdgePruning\(ablation='optimal'\)"):
        resolve_ablation(model, None, "optimal")
    learned = model.learned_ablation(Ablation("zero"))
    assert resolve_ablation(model, None, learned) is learned
