"""The oracle against Hugging Face's own forward: whole runs, and slopes of its masks."""

from __future__ import annotations

import pytest
import torch
from support.oracle import oracle_edges, oracle_logits, oracle_writer_values
from support.patched import Patched
from support.tiny import VOCAB, random_pair, tiny
from support.variants import CASES, FAMILY_CASES, VARIANTS, Attention, build, same
from torch import Tensor

pytestmark = pytest.mark.usefixtures("one_thread")


# Whole runs.


@pytest.mark.parametrize(("name", "attn"), CASES)
@pytest.mark.usefixtures("float64")
def test_mask_one_is_the_clean_run_and_zero_the_corrupt_run(name: str, attn: Attention) -> None:
    model = build(name, attn)
    clean, corrupt = random_pair(model, batch=1)
    one = dict.fromkeys(oracle_edges(model), 1.0)
    zero = dict.fromkeys(oracle_edges(model), 0.0)
    full, ablated = model(clean).logits, model(corrupt).logits
    assert 0.5 < full.std() < 3
    logits = oracle_logits(model, clean, one, "counterfactual", corrupt)
    same(logits, full)
    same(oracle_logits(model, clean, {}, "zero"), full)
    logits = oracle_logits(model, clean, zero, "counterfactual", corrupt)
    same(logits, ablated)

    torch.manual_seed(0)
    mask = {edge: float(torch.rand(())) for edge in one}
    mixed = oracle_logits(model, clean, mask, "counterfactual", corrupt)
    assert (mixed - full).abs().mean() > 0.1
    assert (mixed - ablated).abs().mean() > 0.1


@pytest.mark.parametrize(("name", "attn"), FAMILY_CASES)
@pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float32, 1e-4), (torch.float64, 1e-5), (torch.bfloat16, 0.4)]
)
def test_mask_one_is_the_clean_run_in_every_dtype(
    name: str, attn: Attention, dtype: torch.dtype, atol: float
) -> None:
    """With Hugging Face's float32 islands, which put a floor of about 1e-6 under float64 too."""
    model = build(name, attn, dtype)
    clean, corrupt = random_pair(model, batch=1)
    logits = oracle_logits(model, clean, {}, "counterfactual", corrupt)
    assert logits.dtype == dtype
    torch.testing.assert_close(logits, model(clean).logits, atol=atol, rtol=0.0)


@pytest.mark.parametrize(("name", "attn"), FAMILY_CASES)
@pytest.mark.usefixtures("float64")
def test_right_padding(name: str, attn: Attention) -> None:
    model = build(name, attn)
    clean, corrupt = random_pair(model, batch=2)
    lengths = [9, 5]
    attention_mask = torch.tensor([[int(p < length) for p in range(9)] for length in lengths])
    logits = oracle_logits(
        model, clean, {}, "counterfactual", corrupt, attention_mask=attention_mask
    )
    values = oracle_writer_values(model, clean, attention_mask)
    full = model(clean, attention_mask=attention_mask).logits
    messages = Patched(model).messages(clean, attention_mask)
    for row, length in enumerate(lengths):
        same(logits[row, :length], full[row, :length])
        for writer, value in values.items():
            same(value[row, :length], messages[writer][row, :length])
            assert not value[row, length:].any()


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama", "olmo2", "gemma2"])
@pytest.mark.usefixtures("float64")
def test_given_values_generalise_the_other_ablations(name: str) -> None:
    model = build(name)
    clean, corrupt = random_pair(model, batch=1)
    edges = oracle_edges(model)
    mask = {edge: (index * 7 % 10) / 10 for index, edge in enumerate(edges)}
    given = {writer: value[0] for writer, value in oracle_writer_values(model, corrupt).items()}
    same(
        oracle_logits(model, clean, mask, "mean", means=given),
        oracle_logits(model, clean, mask, "counterfactual", corrupt),
    )
    pooled = dict.fromkeys(given, torch.zeros(model.config.hidden_size, dtype=torch.float64))
    same(
        oracle_logits(model, clean, mask, "optimal", means=pooled),
        oracle_logits(model, clean, mask, "zero"),
    )


# Edges.


@pytest.mark.parametrize("name", VARIANTS)
def test_edge_count(name: str) -> None:
    model = build(name)
    config = model.config
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    kv = getattr(config, "num_key_value_heads", heads)
    sequential = not (config.model_type == "gpt_neox" and config.use_parallel_residual)
    expected = 1 + layers * (heads + 1)
    for layer in range(layers):
        before = 1 + layer * (heads + 1)
        expected += (heads + 2 * kv) * before + before + heads * sequential
    edges = oracle_edges(model)
    assert len(edges) == len(set(edges)) == expected
    grouped = any(".kv" in reader for _, reader in edges)
    assert grouped == (kv != heads)


def test_edge_names() -> None:
    edges = oracle_edges(build("llama"))
    assert edges[0] == ("input", "a0.h0<q>")
    assert ("m0", "a1.kv1<k>") in edges
    assert ("a1.h3", "m1") in edges
    assert edges[-1] == ("m1", "logits")
    assert ("a0.h3", "a1.h2<v>") in oracle_edges(build("gpt2"))
    assert ("a1.h3", "m1") not in oracle_edges(build("gpt_neox"))
    with pytest.raises(KeyError, match="no such edges"):
        oracle_logits(build("llama"), torch.zeros(1, 3, dtype=torch.long), {("m1", "m0"): 0.0})


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.usefixtures("float64")
def test_every_edge_matters_and_gradients_are_derivatives(name: str) -> None:
    model = build(name)
    clean, corrupt = random_pair(model, batch=1)
    edges = oracle_edges(model)
    generator = torch.Generator().manual_seed(0)
    point, direction, weights = (
        torch.rand(shape, generator=generator, dtype=torch.float64)
        for shape in ((len(edges),), (len(edges),), (1, 9, VOCAB))
    )

    def objective(values: Tensor) -> Tensor:
        mask = dict(zip(edges, values, strict=True))
        return (oracle_logits(model, clean, mask, "counterfactual", corrupt) * weights).sum()

    with torch.enable_grad():
        leaf = point.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(leaf), leaf)
    assert (gradient.abs() > 1e-6).all()
    step = 1e-5
    slope = (objective(point + step * direction) - objective(point - step * direction)) / (2 * step)
    torch.testing.assert_close(gradient @ direction, slope, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_no_parameter_is_trivial_and_seeds_differ(name: str) -> None:
    family, overrides = VARIANTS[name]
    model = tiny(family, **overrides)
    assert not model.training
    assert model.dtype == torch.float32
    for parameter in model.parameters():
        assert bool(((parameter != 0) & (parameter != 1)).all())
        assert parameter.std() > 0.05
    state = torch.get_rng_state()
    again, other = tiny(family, **overrides), tiny(family, seed=1, **overrides)
    assert torch.equal(state, torch.get_rng_state())
    for one, two, three in zip(
        model.parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(one, two)
        assert not torch.equal(one, three)
    clean, corrupt = random_pair(model)
    assert clean.shape == corrupt.shape == (3, 9)
    assert not (clean == corrupt).any()
