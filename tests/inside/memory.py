"""What tensors take at once: peaks of engine runs, to hold against what a plan says."""

from __future__ import annotations

import torch
from benchmarks.measuring import allocated_bytes, objective
from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig

import graphprune as gp
from graphprune.adapters.lm.cost.probe import random_batch, step
from graphprune.adapters.lm.describe.shape import random_model, read_shape
from graphprune.methods.costs import RunShape

__all__ = ["KINDS", "SHAPES", "measured"]

CPU = torch.device("cpu")


def llama(layers: int, heads: int, kv: int, width: int, hidden: int, vocab: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=width, intermediate_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv, vocab_size=vocab,
    )  # fmt: skip


# Name: configuration, examples, tokens.
SHAPES = {
    "llama": (llama(4, 8, 2, 256, 704, 2000), 4, 32),
    "gpt2": (GPT2Config(n_layer=6, n_embd=256, n_head=8, vocab_size=2000), 8, 16),
    "deep": (llama(10, 4, 4, 128, 344, 1000), 2, 64),
    "long": (GPT2Config(n_layer=3, n_embd=192, n_head=6, vocab_size=500, n_positions=512), 2, 192),
    "wide": (llama(2, 16, 16, 512, 1408, 1000), 4, 16),
    "parallel": (
        GPTNeoXConfig(
            hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8,
            vocab_size=4000,
        ),
        4,
        32,
    ),
}  # fmt: skip


def _attribution(model, batch, points):
    gates = None
    if points > 1:
        gates = torch.ones(points, model.graph.num_nodes)
        gates[:, list(model.graph.input_nodes)] = torch.arange(points)[:, None] / points
    return model.edge_gradients(batch, objective, gates=gates)


def _step(model, batch, mask):
    reference = model.reference(batch)
    _ = reference.full, reference.stream
    return step(model, batch, mask, reference)


def _descent(model, batch):
    """The most of a descent: trials at a reader of the first layer beside an exact run."""
    graph = model.graph
    order = gp.ACDC().edge_order(graph)
    kept = torch.ones(graph.num_edges, dtype=torch.bool)
    with torch.no_grad():
        reference = model.reference(batch)
        _ = reference.full
        exact = model.widened()
        held = exact.reference(batch)
        _ = held.full
        trials = model.trials(batch, kept, reference, order)
        first = [n.name for n in graph.nodes].index("a0.h0")
        edges = [e for e in order.tolist() if graph.edge_index[1, e] == first][:1]
        trials.without(torch.tensor(edges), torch.ones(min(64, trials.most), 1).bool())
        exact.run(batch, kept.float(), held)


KINDS = {
    "eap": lambda model, batch, mask: _attribution(model, batch, 1),
    "eap-ig": lambda model, batch, mask: _attribution(model, batch, 5),
    "edge-pruning": _step,
    "acdc": lambda model, batch, mask: _descent(model, batch),
}


def measured(name: str, kind: str, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes over the model of one batch of a method, and the model's own."""
    config, batch, tokens = SHAPES[name]
    module = random_model(config, CPU, dtype)
    model = gp.wrap(module, check=False)
    wanted = RunShape(batch, tokens, 1, 1, False, None, CPU, False)
    made = random_batch(read_shape(config, dtype=dtype), wanted)
    made.clean["input_ids"][:, 0] = 0  # the corrupted prompts differ from the first token on
    made.corrupt["input_ids"][:, 0] = 1
    mask = torch.full((model.graph.num_edges,), 0.5, requires_grad=True)
    _ = model.graph.edge_index
    weights = sum(p.nbytes for p in module.parameters())
    return allocated_bytes(lambda: KINDS[kind](model, made, mask)), weights
