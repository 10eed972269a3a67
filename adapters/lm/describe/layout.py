"""The graph of a decoder-only model, where its edges stand, and what a mask of them asks for.

Writers go ``embeddings, layer 0's heads, m0, layer 1's heads, ...``. Readers that read the same
point of the residual stream form a *place*: a layer's q/k/v readers, a layer's MLP, the final
residual. A place's edges are one contiguous row-major block ``[rows, prefix]`` of the edge vector,
so a place's mask is a view of the mask. A :class:`Plan` is the least work that a mask asks for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from graphprune.core.graph import ComputationalGraph, Node

__all__ = ["KINDS", "Layout", "Place", "Plan", "computed_share", "dense_plan", "sparse_plan"]

KINDS = ("q", "k", "v", "mlp", "resid")


@dataclass(frozen=True)
class Place:
    """``rows`` readers that read the first ``prefix`` writers; their edges start at ``offset``."""

    offset: int
    rows: int
    prefix: int

    @property
    def edges(self) -> slice:
        """Where the place's edges stand in the edge vector."""
        return slice(self.offset, self.offset + self.rows * self.prefix)


@dataclass(frozen=True)
class Layout:
    """Shape of a decoder-only model: layers L, query heads H, key/value heads, embeddings."""

    layers: int
    heads: int
    kv_heads: int
    parallel: bool = False
    coupled: bool = False
    embeddings: int = 1

    @property
    def grouped(self) -> bool:
        """Whether several query heads share a key/value head."""
        return self.kv_heads != self.heads

    @property
    def writers(self) -> int:
        """How many nodes write to the residual stream: embeddings, heads and MLPs."""
        return self.embeddings + self.layers * (self.heads + 1)

    def head(self, layer: int) -> int:
        """Number of the layer's first head among the writers; its MLP is ``head(layer) + H``."""
        return self.embeddings + layer * (self.heads + 1)

    def places(self) -> tuple[list[Place], list[Place], Place]:
        """Attention places and MLP places of each layer, and the final one."""
        rows = self.heads + 2 * self.kv_heads
        attention, mlp, offset = [], [], 0
        for layer in range(self.layers):
            prefix = self.head(layer)
            attention.append(Place(offset, rows, prefix))
            offset += rows * prefix
            prefix += 0 if self.parallel else self.heads
            mlp.append(Place(offset, 1, prefix))
            offset += prefix
        return attention, mlp, Place(offset, 1, self.writers)

    def graph(self) -> ComputationalGraph:
        """The computational graph, edges ordered place by place, reader by reader."""
        nodes = [Node("input", "embed")]
        if self.embeddings == 2:
            nodes.append(Node("position", "embed"))
        writer = list(range(self.embeddings))
        readers: list[list[int]] = []
        mlps, wires, groups = [], [], []
        for layer in range(self.layers):
            first = len(nodes)
            heads = [first + h for h in range(self.heads)]
            nodes += [Node(f"a{layer}.h{h}", "head", layer, h) for h in range(self.heads)]
            kvs = heads
            if self.grouped:
                kvs = [len(nodes) + j for j in range(self.kv_heads)]
                nodes += [Node(f"a{layer}.kv{j}", "kv", layer, j) for j in range(self.kv_heads)]
                share = self.heads // self.kv_heads
                wires += [(kvs[h // share], heads[h]) for h in range(self.heads)]
            if self.coupled:
                groups.append(tuple(sorted({*heads, *kvs})))
            readers.append(heads + kvs + kvs)
            mlps.append(len(nodes))
            writer += [*heads, len(nodes)]
            nodes.append(Node(f"m{layer}", "mlp", layer))
        nodes.append(Node("logits", "output"))
        order = np.array(writer)
        row_kinds = np.repeat([0, 1, 2], [self.heads, self.kv_heads, self.kv_heads])
        sources, targets, kinds = [], [], []
        attention, mlp, final = self.places()

        def add(
            rows: list[int], kind: np.ndarray[tuple[int], np.dtype[np.int64]], prefix: int
        ) -> None:
            sources.append(np.tile(order[:prefix], len(rows)))
            targets.append(np.repeat(rows, prefix))
            kinds.append(np.repeat(kind, prefix))

        for layer in range(self.layers):
            add(readers[layer], row_kinds, attention[layer].prefix)
            add([mlps[layer]], np.array([3]), mlp[layer].prefix)
        add([len(nodes) - 1], np.array([4]), final.prefix)
        index = np.stack([np.concatenate(sources), np.concatenate(targets)]).astype(np.int64)
        return ComputationalGraph(
            nodes=tuple(nodes),
            edge_index=torch.from_numpy(index),
            edge_kind=torch.from_numpy(np.concatenate(kinds).astype(np.uint8)),
            edge_kinds=KINDS,
            ports=("q", "k", "v"),
            fixed_edge_index=torch.tensor(wires, dtype=torch.int64).reshape(-1, 2).T.contiguous(),
            groups=tuple(groups),
            inputs=tuple(range(self.embeddings)),
            outputs=(len(nodes) - 1,),
        )

    def writer_nodes(self) -> list[int]:
        """Node numbers of the writers, in writer order."""
        kv = self.kv_heads if self.grouped else 0
        per_layer = self.heads + kv + 1
        found = list(range(self.embeddings))
        for layer in range(self.layers):
            first = self.embeddings + layer * per_layer
            found += [*range(first, first + self.heads), first + self.heads + kv]
        return found


@dataclass(frozen=True, eq=False)
class Plan:
    """What a masked pass computes.

    ``computed [W]`` bool: writers whose Delta is kept. ``rows``: for each layer, the attention
    readers to read for themselves (the rest take the ablated input). ``narrow [W]`` bool: writers
    other than embeddings that matter at the tokens alone that answers are read at, since no kept
    way leads from them into attention. ``dense``: everything.
    """

    computed: Tensor
    rows: list[Tensor]
    narrow: Tensor
    dense: bool


def computed_share(
    layout: Layout, plan: Plan, head: float, mlp: float, asked: float = 1.0
) -> float:
    """The part of all layers' multiplications that a plan asks for, embeddings and output aside.

    ``head`` is the cost of one projection to or from a head's width, ``mlp`` that of an MLP,
    ``asked`` the part of all tokens that answers are read at.
    """
    rows = layout.heads + 2 * layout.kv_heads
    whole = layout.layers * (head * (rows + layout.heads) + mlp)
    spent = head * sum(len(some) for some in plan.rows)
    for layer in range(layout.layers):
        first = layout.head(layer)
        spent += head * int(plan.computed[first : first + layout.heads].sum())
        if plan.computed[first + layout.heads]:
            spent += mlp * (asked if plan.narrow[first + layout.heads] else 1.0)
    return spent / whole


def dense_plan(layout: Layout) -> Plan:
    """Every writer and every reader: what gradients with respect to the mask need."""
    every = torch.arange(layout.heads + 2 * layout.kv_heads)
    narrow = torch.arange(layout.writers) >= layout.head(layout.layers - 1)
    return Plan(torch.ones(layout.writers, dtype=torch.bool), [every] * layout.layers, narrow, True)


def sparse_plan(
    layout: Layout, mask: Tensor, *, quiescent: bool, moved: Tensor | None = None
) -> Plan:
    """The least work for ``mask [C, E]``. ``quiescent``: untouched nodes send ablation values.

    ``moved [W]`` bool: the writers where a change begins (``None``: the embeddings); all that does
    not depend on them stays as it is.
    """
    touched = (mask != 0).any(0)
    attention, mlp, final = layout.places()
    heads, kv = layout.heads, layout.kv_heads

    def block(place: Place) -> Tensor:
        return touched[place.edges].view(place.rows, place.prefix)

    kv_of = torch.arange(heads) // (heads // kv)
    rows_of = torch.stack([torch.arange(heads), heads + kv_of, heads + kv + kv_of], 1)

    def rows_for(some: Tensor) -> Tensor:
        """``[R]`` bool: the readers that ``some`` heads depend on."""
        found = torch.zeros(heads + 2 * kv, dtype=torch.bool)
        if layout.coupled and bool(some.any()):
            found[:] = True
        found[rows_of[some].reshape(-1)] = True
        return found

    if moved is None:
        moved = torch.zeros(layout.writers, dtype=torch.bool)
        moved[: layout.embeddings] = True
    varying = moved.clone()
    for layer in range(layout.layers):
        place, first = attention[layer], layout.head(layer)
        reached = (block(place) & varying[: place.prefix]).any(1) | (not quiescent)
        alive = reached[rows_of].any(1) | moved[first : first + heads]
        varying[first : first + heads] = alive.any() if layout.coupled else alive
        place = mlp[layer]
        reached = (block(place) & varying[: place.prefix]).any(1) | (not quiescent)
        varying[first + heads] |= reached[0]

    needed = torch.zeros(layout.writers, dtype=torch.bool)
    needed |= block(final)[0]
    wide = torch.zeros(layout.writers, dtype=torch.bool)
    wide[: layout.embeddings] = True
    rows = []
    for layer in reversed(range(layout.layers)):
        first = layout.head(layer)
        if needed[first + heads] and varying[first + heads]:
            read = block(mlp[layer])[0]
            needed[: mlp[layer].prefix] |= read
            wide[: mlp[layer].prefix] |= read & wide[first + heads]
        wanted = rows_for(needed[first : first + heads] & varying[first : first + heads])
        edges = block(attention[layer])
        prefix = attention[layer].prefix
        needed[:prefix] |= edges[wanted].any(0)
        wide[:prefix] |= edges[wanted].any(0)
        rows.append(wanted)
    rows.reverse()
    computed = needed & varying
    active = []
    for layer, wanted in enumerate(rows):
        prefix = attention[layer].prefix
        reads = (block(attention[layer]) & computed[:prefix]).any(1)
        active.append(torch.nonzero(wanted & reads)[:, 0])
    return Plan(computed, active, ~wide, False)
