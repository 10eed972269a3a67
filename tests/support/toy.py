"""A second adapter, written as a third party would: a small network of tanh units on any graph.

Every unit v computes ``tanh(W_v x_v + b_v)`` from the sum x_v of the messages that reach it.
Masked runs go unit by unit with plain autograd: nothing is fast, everything follows the definition.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from graphprune import (
    Ablation,
    Batch,
    ComputationalGraph,
    Gradients,
    MaskedModel,
    Messages,
    Reference,
)
from graphprune.core.model import each_mask

WIDTH = 3
EDGES = [
    ("in", "a"),
    ("in", "b"),
    ("a", "b"),
    ("a", "c"),
    ("b", "c"),
    ("in", "out"),
    ("b", "out"),
    ("c", "out"),
    ("a", "out"),
]


class Units(nn.Module):
    def __init__(self, nodes: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(nodes, WIDTH, WIDTH, generator=generator))
        self.bias = nn.Parameter(torch.randn(nodes, WIDTH, generator=generator))


@dataclass(eq=False)
class ToyReference(Reference):
    batch: Batch
    ablation: Ablation
    clean: Tensor
    corrupt: Tensor
    outputs: list[Tensor]

    @property
    def nbytes(self) -> int:
        return 8 * self.clean.numel()

    @property
    def full(self) -> Tensor:
        return self.outputs[0]

    @property
    def ablated(self) -> Tensor:
        return self.outputs[1]


class Toy(MaskedModel):
    def __init__(self, seed: int = 0) -> None:
        self._graph = ComputationalGraph.from_edges(EDGES)
        self._module = Units(self._graph.num_nodes, seed)

    @property
    def graph(self) -> ComputationalGraph:
        return self._graph

    @property
    def module(self) -> nn.Module:
        return self._module

    def provenance(self) -> dict[str, object]:
        return {"model": "toy", "architecture": "tanh units", "weights": "seeded"}

    @cached_property
    def order(self) -> list[int]:
        return [self._graph.node_number[n] for n in ("in", "a", "b", "c", "out")]

    def unit(self, node: int, x: Tensor) -> Tensor:
        weight, bias = self._module.weight[node].detach(), self._module.bias[node].detach()
        return torch.tanh(x @ weight.to(x) + bias.to(x))

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        ablated: Tensor,
        gates: Tensor | None = None,
        held: list[Tensor | None] | None = None,
    ):
        """Sends ``[N, B, D]`` and reads ``{node: [B, D]}``; ``mask`` is ``[E]`` or ``[B, E]``."""
        sources, targets = self._graph.edge_index.tolist()
        sent: dict[int, Tensor] = {}
        reads: dict[int, Tensor] = {}
        for node in self.order:
            if node == self.order[0]:
                sent[node] = x
            else:
                reads[node] = sum(
                    mask[..., e, None] * sent[u] + (1 - mask[..., e, None]) * ablated[u]
                    for e, (u, v) in enumerate(zip(sources, targets, strict=True))
                    if v == node
                )
                if gates is not None:
                    reads[node] = reads[node].requires_grad_(True)
                sent[node] = self.unit(node, reads[node])
            if held is not None and held[node] is not None:
                sent[node] = held[node]
            if gates is not None and node != self.order[-1]:
                sent[node] = ablated[node] + gates[node] * (sent[node] - ablated[node])
        return sent, reads

    def _values(self, x: Tensor) -> Tensor:
        ones = torch.ones(self._graph.num_edges)
        sent, _ = self.forward(x, ones, torch.zeros(self._graph.num_nodes, 1, 1))
        return torch.stack([sent[n] for n in range(self._graph.num_nodes)]).detach()

    def reference(self, batch: Batch, ablation: Ablation | None = None) -> ToyReference:
        ablation = ablation or Ablation()
        clean = self._values(batch.clean)
        if ablation.kind == "counterfactual":
            corrupt = self._values(batch.corrupt)
        else:
            corrupt = torch.zeros_like(clean)
            if ablation.kind == "mean":
                corrupt = ablation.values.expand_as(clean)
        made = ToyReference(batch, ablation, clean, corrupt, [clean[self.order[-1]]])
        made.outputs.append(self.run(batch, torch.zeros(self._graph.num_edges), made))
        return made

    def run(self, batch, mask, reference=None) -> Tensor:
        reference = reference or self.reference(batch)

        def one(m: Tensor) -> Tensor:
            return self.forward(batch.clean, m, reference.corrupt)[0][self.order[-1]]

        return each_mask(self._graph, mask, one, batch.size)

    def edge_gradients(
        self,
        batch,
        objective,
        reference=None,
        *,
        gates=None,
        weights=None,
        by_position=False,
        neurons=False,
        constant=None,
    ) -> Gradients:
        reference = reference or self.reference(batch)
        delta = reference.clean - reference.corrupt
        gates = torch.ones(1, self._graph.num_nodes) if gates is None else gates.float()
        share = torch.full((len(gates),), 1 / len(gates)) if weights is None else weights
        edge = torch.zeros(self._graph.num_edges)
        ones = torch.ones(self._graph.num_edges)
        fixed = torch.zeros(gates.shape, dtype=torch.bool) if constant is None else constant
        for gate, weight, row in zip(gates, share.tolist(), fixed.tolist(), strict=True):
            held = [reference.clean[n] if stays else None for n, stays in enumerate(row)]
            sent, reads = self.forward(batch.clean, ones, reference.corrupt, gate, held)
            with torch.enable_grad():
                total = objective(sent[self.order[-1]]).sum()
            nodes = list(reads)
            grads = dict(
                zip(
                    nodes,
                    torch.autograd.grad(total, [reads[n] for n in nodes], materialize_grads=True),
                    strict=True,
                )
            )
            for e, (u, v) in enumerate(self._graph.edge_index.T.tolist()):
                edge[e] += weight * (delta[u] * grads[v]).sum()
        node = torch.zeros(self._graph.num_nodes).index_add_(0, self._graph.edge_index[0], edge)
        return Gradients(edge, node, {})

    def messages(self, batch: Batch) -> Iterator[Messages]:
        sent = self._values(batch.clean)[:, :, None]
        sources, targets = self._graph.edge_index
        for node in targets.unique().tolist():
            edges = torch.nonzero(targets == node)[:, 0]
            values = sent[sources[edges]]
            yield Messages(edges[None], values, values.sum(0), torch.ones(values.shape[1], 1))

    def mean_ablation(self, batches: Iterable[Batch], *, per_position: bool = False) -> Ablation:
        sides = [self._values(b.clean if b.corrupt is None else b.corrupt) for b in batches]
        return Ablation("mean", torch.cat(sides, 1).mean(1, keepdim=True), per_position)

    def source_groups(self) -> list[list[int]]:
        return [[n] for n in sorted(self.graph.edge_index[0].unique().tolist())]


class ToyExamples:
    def __init__(self, n: int = 6) -> None:
        generator = torch.Generator().manual_seed(1)
        self.clean, self.corrupt = torch.randn(2, n, WIDTH, generator=generator)

    def __len__(self) -> int:
        return len(self.clean)

    def lengths(self) -> list[int]:
        return [1] * len(self)

    def batch(self, indices) -> Batch:
        i = list(indices)
        return Batch(
            self.clean[i],
            self.corrupt[i],
            len(i),
            tuple(i),
            answer=torch.zeros(len(i), 1, dtype=torch.int64),
            distractor=torch.ones(len(i), 1, dtype=torch.int64),
        )
