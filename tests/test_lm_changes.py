"""Models changed around ``gp.wrap``, and odd tensors in a batch: right, or one sentence."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.marks import quick
from support.tiny import random_pair, tiny
from torch import nn
from torch.nn.utils import parametrizations

import graphprune as gp

FAMILIES = ["llama", "gpt2"]
LAYERS = {"llama": "model.layers", "gpt2": "transformer.h"}
# Dynamo runs; nothing is compiled to machine code, which takes a minute and needs a compiler.
eager = {"backend": "eager"}


def pair(module):
    clean, corrupt = random_pair(module, length=5)
    return gp.Batch({"input_ids": clean}, {"input_ids": corrupt}, len(clean))


def logits(module, batch):
    with torch.no_grad():
        return module(input_ids=batch.clean["input_ids"].long()).logits[:, -1]


def agrees(model, batch, expected):
    """Mask 1 is the plain model, and its counterpart's mask 0 the corrupted one."""
    ones = torch.ones(model.graph.num_edges)
    torch.testing.assert_close(model.run(batch, ones), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.reference(batch).full, expected, rtol=1e-4, atol=1e-4)


# -------------------------------------------------------------------- torch.compile


@pytest.mark.parametrize("family", quick(FAMILIES, ["gpt2"]))
def test_a_forward_compiled_after_wrapping_is_the_same(family):
    module = tiny(family)
    model, batch = gp.wrap(module), pair(module)
    expected = logits(module, batch)
    base = LAYERS[family].split(".")[0]
    for name in ("", base, f"{LAYERS[family]}.1"):
        part = module.get_submodule(name)
        part.forward = torch.compile(part.forward, **eager)
    agrees(model, batch, expected)
    agrees(gp.wrap(module), batch, expected)


def test_a_compiled_forward_of_something_else_is_refused():
    module = tiny("llama")
    model, batch = gp.wrap(module), pair(module)
    inner = module.model.layers[1].mlp.forward
    module.model.layers[1].mlp.forward = torch.compile(lambda x: 2 * inner(x), **eager)
    with pytest.raises(gp.UnsupportedModelError, match=r"1\.mlp had its forward replaced"):
        model.reference(batch)
    module.model.layers[1].mlp.forward = torch.compile(module.model.layers[0].mlp.forward, **eager)
    with pytest.raises(gp.UnsupportedModelError, match=r"1\.mlp had its forward replaced"):
        model.reference(batch)


@pytest.mark.parametrize(
    ("family", "when"),
    quick(
        [*itertools.product(FAMILIES, ("before", "after"))],
        [("llama", "before"), ("gpt2", "after")],
    ),
)
def test_compiled_submodules_are_their_originals(family, when):
    module = tiny(family)
    batch = pair(module)
    expected = logits(module, batch)
    model = gp.wrap(module) if when == "after" else None
    attention = {"llama": "self_attn", "gpt2": "attn"}[family]
    layers = module.get_submodule(LAYERS[family])
    layers[1].mlp = torch.compile(layers[1].mlp, **eager)
    output = {"llama": "o_proj", "gpt2": "c_proj"}[family]
    inner = getattr(layers[1], attention)
    setattr(inner, output, torch.compile(getattr(inner, output), **eager))
    layers[0] = torch.compile(layers[0], **eager)
    model = model or gp.wrap(module)
    agrees(model, batch, expected)
    torch.testing.assert_close(logits(module, batch), expected, rtol=1e-4, atol=1e-4)
    full = gp.EdgeMask.full(model.graph)
    small = model.pruned(full, gp.Ablation("zero")).module(batch.clean["input_ids"])
    torch.testing.assert_close(small[:, -1], expected, rtol=1e-4, atol=1e-4)
    if when == "after":  # another original behind it is another model
        layers[0] = torch.compile(layers[1], **eager)
        with pytest.raises(gp.UnsupportedModelError, match=r"\.0 was replaced"):
            model.reference(batch)


def test_a_compiled_decoder_is_its_original():
    module = tiny("llama")
    batch = pair(module)
    expected = logits(module, batch)
    module.model = torch.compile(module.model, **eager)
    agrees(gp.wrap(module), batch, expected)


# -------------------------------------------------------------------- offloading, adapters


def test_offloading_after_wrapping_says_to_wrap_again():
    accelerate = pytest.importorskip("accelerate")
    module = tiny("llama")
    model, batch = gp.wrap(module), pair(module)
    expected = logits(module, batch)
    accelerate.cpu_offload(module, execution_device=torch.device("cpu"))
    for call in (
        lambda: model.reference(batch),
        lambda: model.run(batch, torch.ones(model.graph.num_edges)),
    ):
        with pytest.raises(gp.UnsupportedModelError, match=r"a hook of accelerate's.*wrap the mod"):
            call()
    agrees(gp.wrap(module), batch, expected)
    accelerate.hooks.remove_hook_from_module(module, recurse=True)
    model.reference(batch)


class LoRA(nn.Linear):
    """A low-rank addition written as a subclass of what it adds to."""

    def __init__(self, inner, rank=2):
        super().__init__(inner.in_features, inner.out_features, bias=inner.bias is not None)
        self.weight, self.bias = inner.weight, inner.bias
        self.down = nn.Parameter(torch.randn(rank, inner.in_features))
        self.up = nn.Parameter(torch.randn(inner.out_features, rank))

    def forward(self, x):
        return super().forward(x) + x @ self.down.T @ self.up.T


@pytest.mark.parametrize("name", ["q_proj", "o_proj"])
def test_lora_as_a_subclass_is_honoured(name):
    """Its forward is asked what it multiplies with."""
    module, batch = tiny("llama"), pair(tiny("llama"))
    attention = module.model.layers[1].self_attn
    setattr(attention, name, LoRA(getattr(attention, name)))
    agrees(gp.wrap(module), batch, logits(module, batch))


def test_lora_that_is_called_and_not_read_is_right():
    module = tiny("llama")
    mlp = module.model.layers[1].mlp
    mlp.up_proj = LoRA(mlp.up_proj)
    batch = pair(module)
    agrees(gp.wrap(module), batch, logits(module, batch))


def test_sentences_about_weights_agree():
    """In place: honoured. A parametrization: honoured when it stood there before."""
    module = tiny("llama")
    model, batch = gp.wrap(module), pair(module)
    handle = module.model.norm.register_forward_hook(lambda m, args, out: 2 * out)
    with pytest.raises(gp.UnsupportedModelError, match="change the weights in place instead"):
        model.reference(batch)
    handle.remove()
    projection = parametrizations.weight_norm(module.model.layers[1].self_attn.q_proj)
    with pytest.raises(gp.UnsupportedModelError, match=r"Wrap the model again, which honours it"):
        model.reference(batch)
    again = gp.wrap(module)
    with torch.no_grad():
        projection.parametrizations.weight.original0.mul_(2.0)
    agrees(again, batch, logits(module, batch))


# -------------------------------------------------------------------- batches


def changed(batch, **parts):
    """The batch with other tensors in both of its sides, or beside them."""
    sides = {k: v for k, v in parts.items() if k not in ("positions", "answer", "distractor")}
    rest = {k: v for k, v in parts.items() if k not in sides}
    return gp.Batch({**batch.clean, **sides}, {**batch.corrupt, **sides}, batch.size, **rest)


def test_ids_of_every_integer_type():
    module = tiny("llama")
    model, batch = gp.wrap(module), pair(module)
    expected = logits(module, batch)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        sides = [{"input_ids": s["input_ids"].to(dtype)} for s in (batch.clean, batch.corrupt)]
        agrees(model, gp.Batch(*sides, batch.size), expected)
    for dtype in (torch.bool, torch.float32):
        with pytest.raises(gp.InputError, match=r"ids \[B, T\] of an integer type, got torch\."):
            model.reference(changed(batch, input_ids=batch.clean["input_ids"].to(dtype)))


def test_what_tokenizers_tell_besides_is_no_input():
    module = tiny("llama")
    model, batch = gp.wrap(module), pair(module)
    size, tokens = batch.clean["input_ids"].shape
    told = {
        "special_tokens_mask": torch.ones(size, tokens, dtype=torch.int64),
        "length": torch.full((size,), tokens),
        "offset_mapping": torch.zeros(size, tokens, 2),
        "overflow_to_sample_mapping": list(range(size)),
        "num_truncated_tokens": [0] * size,
    }
    agrees(model, changed(batch, **told), logits(module, batch))
    with pytest.raises(gp.InputError, match="the clean inputs hold 'labels'"):
        model.reference(changed(batch, labels=batch.clean["input_ids"]))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (2, "must hold 1 at tokens and 0 at padding, got 2 too"),
        (float("nan"), "must hold 1 at tokens and 0 at padding, got nan too"),
        (None, r"must have the shape of input_ids, \[3, 5\], got \[3, 4\]"),
    ],
)
def test_masks_say_what_is_wrong(value, message):
    module = tiny("llama")
    model, batch = gp.wrap(module), pair(module)
    mask = torch.ones(3, 5) if value != 2 else torch.ones(3, 5, dtype=torch.int64)
    if value is None:
        mask = mask[:, 1:]
    else:
        mask[1, 2] = value
    with pytest.raises(gp.InputError, match=message):
        model.reference(changed(batch, attention_mask=mask))


POSITIONS = {
    "counted from the end": (torch.tensor([-2, 1, 1]), "positions hold -2; .* only -1 is known"),
    "only padding": (torch.tensor([[1, 2], [-1, -1], [0, 1]]), "of example 1 are all -1"),
    "the last, as Python counts": (torch.tensor([-1, -1, -1]), "of example 0 are all -1"),
    "fractions": (torch.tensor([1.0, 2.0, 3.0]), "an integer type, got torch.float32"),
    "a list": ([1, 2, 3], "an integer type, got list"),
    "too few": (torch.tensor([1]), r"a row for each of the 3 examples, got the shape \[1\]"),
    "too far": (torch.tensor([1, 2, 5]), "read at position 5"),
    "too deep": (torch.ones(3, 1, 1, dtype=torch.int64), r"must be \[B\] or \[B, P\]"),
}


@pytest.mark.parametrize("case", POSITIONS)
def test_positions_say_what_is_wrong(case):
    module = tiny("llama")
    model, batch = gp.wrap(module), pair(module)
    value, message = POSITIONS[case]
    with pytest.raises(gp.InputError, match=message):
        model.reference(changed(batch, positions=value))


def test_positions_of_every_integer_type_and_padding():
    module = tiny("llama")
    model, batch = gp.wrap(module), pair(module)
    with torch.no_grad():
        whole = module(**batch.clean).logits
    places = torch.tensor([[1, 3], [2, -1], [0, 4]])
    for dtype in (torch.int64, torch.int32, torch.int8):
        full = model.reference(changed(batch, positions=places.to(dtype))).full
        for row, column in ((0, 0), (0, 1), (1, 0), (2, 0), (2, 1)):
            expected = whole[row, int(places[row, column])]
            torch.testing.assert_close(full[row, column], expected, rtol=1e-4, atol=1e-4)


def test_answers_say_what_is_wrong():
    module = tiny("llama")
    model, batch = gp.wrap(module), pair(module)
    large, minus = torch.full((3, 1), 10**6), torch.full((3, 1), -2)
    for name, parts, message in (
        ("answer", {"answer": large}, "the largest answer id is 1000000; the model's outputs"),
        ("distractor", {"distractor": large}, "the largest distractor id is 1000000"),
        ("answer", {"answer": minus}, "answer ids hold -2"),
        ("answer", {"answer": torch.ones(3, 1)}, "answer ids must be a tensor of an integer type"),
    ):
        with pytest.raises(gp.InputError, match=message) as refusal:
            model.reference(changed(batch, **parts))
        assert f"a {name} id" not in str(refusal.value)
