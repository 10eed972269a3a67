"""The oracle's messages and single cut edges, inside Hugging Face's own forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.oracle import oracle_edges, oracle_logits, oracle_writer_values
from support.patched import Patched
from support.tiny import FAMILIES, random_pair
from support.variants import CASES, Attention, build, same
from torch import Tensor

pytestmark = pytest.mark.usefixtures("one_thread")


# Single edges, cut inside Hugging Face's own forward.


@pytest.mark.parametrize(("name", "attn"), CASES)
@pytest.mark.usefixtures("float64")
def test_writer_values_are_the_modules_messages_and_sum_to_the_residual(
    name: str, attn: Attention
) -> None:
    model = build(name, attn)
    ids, _ = random_pair(model)
    patched = Patched(model)
    values = oracle_writer_values(model, ids)
    messages = patched.messages(ids)
    assert list(values) == list(messages)
    for writer, value in values.items():
        same(value, messages[writer])

    residual: list[Tensor] = []
    final_norm = model.get_submodule(patched.places.final_norm)
    post_norms: list[Tensor] = []
    pairs: list[Any] = [(final_norm, lambda x, _y: residual.append(x))]
    layers = range(model.config.num_hidden_layers)
    if patched.places.attn_post_norm:
        pairs += [
            (
                patched.module(layer, patched.places.attn_post_norm),
                lambda x, y: post_norms.append(y / x),
            )
            for layer in layers
        ]
    with patched.hooks(*pairs):
        model(ids)
    total = torch.stack(list(values.values())).sum(0)
    if model.config.model_type in ("gpt2", "gpt_neo"):
        total = total + model.transformer.wpe.weight[: ids.shape[1]]
    for layer in layers:
        bias = patched.module(layer, patched.places.attn_out).bias
        if bias is not None:
            total = total + (bias * post_norms[layer] if post_norms else bias)
    same(total, residual[0])


@pytest.mark.parametrize("name", [*FAMILIES, "llama_biases", "olmo2_biases"])
@pytest.mark.usefixtures("float64")
def test_one_cut_edge_is_one_shifted_input(name: str) -> None:
    """For every reader one writer, its nearest or another, at different mask values."""
    model = build(name)
    clean, corrupt = random_pair(model, batch=1, length=7)
    patched = Patched(model)
    full = model(clean).logits
    values, ablated = patched.messages(clean), patched.messages(corrupt)
    writers: dict[str, list[str]] = {}
    for writer, reader in oracle_edges(model):
        writers.setdefault(reader, []).append(writer)
    for number, (reader, before) in enumerate(writers.items()):
        writer = before[-1] if number % 2 else before[number % len(before)]
        ablation = "zero" if number % 4 == 3 else "counterfactual"
        # Fading the only message out towards zero changes nothing after a norm until it is gone.
        m = 0.0 if ablation == "zero" else number % 3 / 4
        instead = 0.0 if ablation == "zero" else ablated[writer]
        expected = patched.logits(clean, reader, (1 - m) * (instead - values[writer]))
        assert (expected - full).abs().max() > 1e-4
        logits = oracle_logits(model, clean, {(writer, reader): m}, ablation, corrupt)
        same(logits, expected)


# The models themselves.
