"""A small recurrent network with cycles: tanh units on any directed graph, a few steps in time."""

import networkx as nx
import torch
from torch import nn

from graphprune import Ablation, Batch, ComputationalGraph, MaskedModel, Reference
from graphprune.core.model import each_mask

WIDTH = 2


class Rings(MaskedModel):
    """Every unit adds up its masked neighbours' last states; zero ablation; ``steps`` steps."""

    def __init__(self, nodes=7, edges=20, seed=0, steps=4, dtype=torch.float32):
        drawn = nx.gnm_random_graph(nodes, edges, seed=seed, directed=True)
        named = [(f"n{u}", f"n{v}") for u, v in drawn.edges]
        names = [f"n{i}" for i in range(nodes)]
        self._graph = ComputationalGraph.from_edges(named, names, inputs=(0,), outputs=(nodes - 1,))
        generator = torch.Generator().manual_seed(seed)
        self._module = nn.Module()
        weight = torch.randn(nodes, WIDTH, WIDTH, generator=generator)
        self._module.weight = nn.Parameter(weight.to(dtype))
        self.steps = steps

    @property
    def graph(self):
        return self._graph

    def reference(self, batch, ablation=None):
        edges = torch.ones(self._graph.num_edges)
        full, ablated = self._one(batch.clean, edges), self._one(batch.clean, 0 * edges)
        return Reference(batch, ablation or Ablation("zero"), full, ablated)

    def run(self, batch, mask, reference=None):
        return each_mask(self._graph, mask, lambda m: self._one(batch.clean, m), batch.size)

    def _one(self, x, mask):
        weight = self._module.weight.detach()
        sources, targets = self._graph.edge_index
        x = x.to(weight)
        masks = mask.to(weight).expand(len(x), -1)
        state = torch.zeros(self._graph.num_nodes, len(x), WIDTH).to(weight)
        for _ in range(self.steps):
            sent = masks.T[..., None] * state[sources]
            read = torch.zeros_like(state).index_add(0, targets, sent)
            read[0] += x
            state = torch.tanh(torch.einsum("nbd,nde->nbe", read, weight) + 0.1)
        return state[-1]


class RingExamples:
    def __init__(self, n=5):
        self.clean = torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(3))

    def __len__(self):
        return len(self.clean)

    def lengths(self):
        return [1] * len(self)

    def batch(self, indices):
        return Batch(self.clean[list(indices)], None, len(indices), tuple(indices))
