"""The names that examples in docstrings use without making them; docs/api/index.md lists them.

A graph network that was trained a little, a random language model, and a circuit of each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv

import graphprune as gp
from support.tiny import tiny
from support.tokenizers import byte_bpe


class TwoLayers(torch.nn.Module):
    """A graph convolutional network of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = GCNConv(4, 8), GCNConv(8, 2)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> Any:
        return self.second(torch.relu(self.first(x, edge_index)), edge_index)


@cache
def data() -> Data:
    """Two rings of five nodes, a class each, with two edges across; both directions of each."""
    pairs = [(5 * ring + k, 5 * ring + (k + 1) % 5) for ring in range(2) for k in range(5)]
    pairs += [(0, 5), (2, 8)]
    edges = torch.tensor(pairs + [(b, a) for a, b in pairs]).T
    y = torch.arange(10) // 5
    noise = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    return Data(x=noise + 1.5 * torch.eye(4)[y], edge_index=edges, y=y)


@cache
def model() -> gp.MaskedModel:
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        module = TwoLayers()
        optimiser = torch.optim.Adam(module.parameters(), lr=0.05)
        for _ in range(40):
            optimiser.zero_grad()
            outputs = module(data().x, data().edge_index)
            torch.nn.functional.cross_entropy(outputs, data().y).backward()
            optimiser.step()
    return gp.wrap(module.eval(), data=data(), tie=False)


@cache
def task() -> gp.Task:
    return gp.tasks.nodes(data(), seed=1)


@cache
def scores() -> gp.EdgeScores:
    return gp.EAP().score(model(), task())


@cache
def circuit() -> gp.Circuit:
    return gp.Circuit.from_mask(scores().top(12), scores=scores(), model=model(), task=task())


@cache
def lm() -> gp.MaskedModel:
    return gp.wrap(tiny("gpt2", vocab_size=len(byte_bpe()), max_position_embeddings=64))


@cache
def prompts() -> gp.Task:
    return gp.tasks.ioi(byte_bpe(), n=8, batch_size=4)


NAMES: dict[str, Callable[[], Any]] = {
    "gp": lambda: gp,
    "torch": lambda: torch,
    "data": data,
    "model": model,
    "task": task,
    "scores": scores,
    "mask": lambda: circuit().mask,
    "circuit": circuit,
    "lm": lm,
    "prompts": prompts,
    "tokenizer": byte_bpe,
}
