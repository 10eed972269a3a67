"""What a masked pass computes: the least work a mask asks for, as pure data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .layout import Layout, Place

__all__ = ["Plan", "computed_share", "dense_plan", "sparse_plan"]


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
