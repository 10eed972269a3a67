"""Plans from inside: shapes, products against a counter, memory against what is held."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from inside.memory import SHAPES, measured
from support.tiny import FAMILIES, tiny
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import GPT2Config, LlamaConfig

import graphprune as gp
from graphprune.adapters.lm.cost.estimate import step_work
from graphprune.adapters.lm.cost.probe import random_batch, step
from graphprune.adapters.lm.describe.shape import random_model, read_shape, truncated
from graphprune.methods.costs import PHASES, RunShape

pytestmark = pytest.mark.inside

ELSEWHERE = gp.Throughput(flops=1e12, bandwidth=1e11)
SMALL = LlamaConfig(
    hidden_size=64, intermediate_size=176, num_hidden_layers=4, num_attention_heads=8,
    num_key_value_heads=2, vocab_size=500,
)  # fmt: skip


NARROW = GPT2Config(n_layer=3, n_embd=64, n_head=4, vocab_size=500)


class Products(TorchDispatchMode):
    """Counts the floating point operations of matrix products by PyTorch's own formulas."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._overloadpacket.__name__.rstrip("_")  # in place: the same product
        count = flop_registry.get(getattr(torch.ops.aten, name))
        if count is not None and "attention" not in name:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def request(batch: int, tokens: int, copies: int = 1) -> RunShape:
    return RunShape(batch, tokens, 1, copies, False, None, torch.device("cpu"), False)


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_are_those_of_the_wrapped_model(family):
    module = tiny(family)
    model = gp.wrap(module)
    shape = read_shape(module.config, dtype=None)
    block = model.arch.blocks[0]
    assert (shape.width, shape.head_dim) == (model.arch.width, block.head_dim)
    assert replace(shape.layout) == model.layout
    assert shape.mlp == sum(p.numel() for p in block.mlp.parameters())
    for layers in (1, 3):
        small = gp.wrap(random_model(truncated(module.config, layers), torch.device("cpu"),
                                     torch.float32))  # fmt: skip
        assert small.layout == replace(model.layout, shapes=model.layout.shapes[:1] * layers)


@pytest.mark.parametrize("config", [SMALL, NARROW])
@pytest.mark.parametrize("copies", [1, 3])
def test_products_are_those_a_counter_sees(config, copies):
    """Without attention's own products, which the counter does not know on a CPU."""
    wanted = request(3, 16, copies)
    shape = read_shape(config, dtype=None)
    model = gp.wrap(random_model(config, torch.device("cpu"), torch.float32))
    batch = random_batch(shape, wanted)
    reference = model.reference(batch)
    _ = reference.full, reference.stream
    size = (model.graph.num_edges,) if copies == 1 else (copies, model.graph.num_edges)
    mask = torch.full(size, 0.5, requires_grad=True)
    step(model, batch, mask, reference)
    with Products() as counter:
        step(model, batch, mask, reference)
    planned = sum(w.flops for w in step_work(shape, wanted) if w.name != "attention")
    assert counter.total == pytest.approx(planned, rel=0.1)


def test_held_memory_is_what_the_tensors_hold():
    config, wanted = SMALL, request(3, 16)
    shape = read_shape(config, dtype=None)
    module = random_model(config, torch.device("cpu"), torch.float32)
    made = gp.plan(
        config, batch_size=3, tokens=16, throughput=ELSEWHERE, device="cpu", cache_bytes=0
    )
    parts = {part.name: part.bytes for part in made.memory}
    assert parts["weights"] == sum(p.nbytes for p in module.parameters())
    reference = gp.wrap(module).reference(random_batch(shape, wanted))
    assert parts["reference"] == reference.nbytes
    assert made.peak - made.over_model == parts["weights"]
    assert made.peak == max(made.to_dict()["phases"].values())


CASES = [
    ("llama", "eap", torch.float32),
    ("gpt2", "eap", torch.float32),
    ("wide", "eap-ig", torch.float32),
    ("deep", "eap-ig", torch.bfloat16),
    ("parallel", "edge-pruning", torch.float32),
    ("long", "edge-pruning", torch.bfloat16),
    ("deep", "acdc", torch.float32),
]


@pytest.mark.parametrize(("name", "method", "dtype"), CASES)
def test_tensors_take_what_is_planned_and_no_more(name, method, dtype):
    """Measured over planned: at most 1, at least 0.85; weights included."""
    config, batch, tokens = SHAPES[name]
    over, weights = measured(name, method, dtype)
    made = gp.plan(
        config, method=method, batch_size=batch, tokens=tokens, dtype=dtype, device="cpu",
        examples=batch, throughput=ELSEWHERE, cache_bytes=0,
    )  # fmt: skip
    beyond_tensors = ("not handed back", "work space", "copied operands")
    parts = [p for p in made.memory if p.name not in beyond_tensors]
    planned = max(sum(p.bytes for p in parts if phase in p.phases) for phase in PHASES)
    assert 0.85 <= (over + weights) / planned <= 1.0


def test_a_slice_of_tokens_is_all_that_deltas_take():
    """Twice the tokens: no more Deltas, once there is a slice of them."""

    def deltas(tokens):
        made = gp.plan(NARROW, method="eap", batch_size=64, tokens=tokens, throughput=ELSEWHERE)
        return next(p.bytes for p in made.memory if p.name == "a slice's Deltas")

    assert deltas(1024) == deltas(512)
