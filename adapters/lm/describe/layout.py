"""The graph of a decoder-only model, where its edges stand, and what a mask of them asks for.

Writers go ``embeddings, layer 0's heads, m0, layer 1's heads, ...``. Readers that read the same
point of the residual stream form a *place*: a layer's q/k/v readers, a layer's MLP, the final
residual. A place's edges are one contiguous row-major block ``[rows, prefix]`` of the edge vector,
so a place's mask is a view of the mask. A :class:`PassPlan` is the least work that a mask asks for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphprune.core.graph import ComputationalGraph, Node
from graphprune.errors import InputError, UnsupportedModelError

from .family import Family
from .layer_shape import LayerShape

__all__ = [
    "KINDS",
    "EdgeLayout",
    "LayerPlan",
    "LayerShape",
    "PassPlan",
    "Place",
    "computed_share",
    "dense_plan",
    "sparse_plan",
]

KINDS = ("q", "k", "v", "mlp", "resid")


def _count(config: Any, said: int | str | None, usual: str, default: int | None = None) -> int:
    """How many heads a configuration has: a number, the value at a path, or that at the usual."""
    if isinstance(said, int):
        return said
    value = config
    for name in (said or usual).split("."):
        value = getattr(value, name) if default is None else getattr(value, name, None)
    return int(value or default or 0)


@dataclass(frozen=True, eq=False)
class Place:
    """``rows`` readers that read the first ``prefix`` writers, by the ``edges`` of the slice."""

    edges: slice
    rows: int
    prefix: int

    @classmethod
    def at(cls, offset: int, rows: int, prefix: int) -> Place:
        """A place whose edges start at ``offset``."""
        return cls(slice(offset, offset + rows * prefix), rows, prefix)

    def of(self, mask: Tensor) -> Tensor:
        """``[..., rows, prefix]``: the place's part of a mask ``[..., E]``, a view."""
        values: Tensor = mask[..., self.edges].unflatten(-1, (self.rows, self.prefix))
        return values


@dataclass(frozen=True)
class EdgeLayout:
    """Shape of a decoder-only model: that of each layer, and how many embedding nodes there are.

    ``parallel``: attention and MLP read the same stream. ``coupled``: heads depend on each other.
    """

    shapes: tuple[LayerShape, ...]
    parallel: bool = False
    coupled: bool = False
    embeddings: int = 1

    @classmethod
    def of(cls, family: Family, config: Any, layers: int, embedding_nodes: int = 1) -> EdgeLayout:
        """The shape of a family's model with a configuration.

        Raises a :class:`GraphPruneError` where it has not as many embedding nodes.
        """
        if embedding_nodes not in (1, 2):
            raise InputError(f"embedding_nodes must be 1 or 2, got {embedding_nodes}")
        if embedding_nodes == 2 and family.position is None:
            raise UnsupportedModelError(
                "embedding_nodes=2 needs a position table; this architecture's positions are rotary"
            )
        flag = family.parallel
        heads = _count(config, family.heads, "num_attention_heads")
        post = family.attention_post_norm is not None
        kv_heads = _count(config, family.kv_heads, "num_key_value_heads", heads)
        block = family.blocks[0][0] if family.blocks else None
        shape = LayerShape(heads, kv_heads, block, family.mlp != "")
        return cls(
            (shape,) * layers,
            parallel=bool(getattr(config, flag)) if isinstance(flag, str) else flag,
            coupled=post or family.full_width_qk_norm or family.coupled,
            embeddings=embedding_nodes,
        )

    @property
    def layers(self) -> int:
        """How many there are."""
        return len(self.shapes)

    @property
    def heads(self) -> int:
        """Query heads of the layer that has most."""
        return max(shape.heads for shape in self.shapes)

    @property
    def kv_heads(self) -> int:
        """Key/value heads of the layer that has most."""
        return max(shape.kv_heads for shape in self.shapes)

    @property
    def rows(self) -> int:
        """Readers of the mixer that has most."""
        return max(shape.rows for shape in self.shapes)

    @cached_property
    def _heads_from(self) -> list[int]:
        """Number of each layer's first head among the writers, and of all writers."""
        return [*accumulate((s.heads + s.mlp for s in self.shapes), initial=self.embeddings)]

    @property
    def writers(self) -> int:
        """How many nodes write to the residual stream: embeddings, heads and MLPs."""
        return self._heads_from[-1]

    @property
    def num_edges(self) -> int:
        """How many edges there are."""
        return int(self.places()[2].edges.stop)

    def head(self, layer: int) -> int:
        """Number of the layer's first head among the writers."""
        return self._heads_from[layer]

    def mlp(self, layer: int) -> int:
        """Number of the layer's MLP among the writers; its heads stand before it."""
        return self._heads_from[layer] + self.shapes[layer].heads

    def heads_of(self, layer: int) -> slice:
        """Numbers of the layer's heads among the writers."""
        return slice(self.head(layer), self.mlp(layer))

    def places(self) -> tuple[list[Place], list[Place], Place]:
        """Attention places and MLP places of each layer, and the final one."""
        attention, mlp, offset = [], [], 0
        for layer, shape in enumerate(self.shapes):
            prefix = self.head(layer)
            attention.append(Place.at(offset, shape.rows, prefix))
            offset += shape.rows * prefix
            prefix += 0 if self.parallel else shape.heads
            mlp.append(Place.at(offset, int(shape.mlp), prefix))
            offset += prefix * shape.mlp
        return attention, mlp, Place.at(offset, 1, self.writers)

    def graph(self) -> ComputationalGraph:
        """The computational graph, edges ordered place by place, reader by reader."""
        *places, final = self.places()
        nodes = [Node("input", "embed")]
        if self.embeddings == 2:
            nodes.append(Node("position", "embed"))
        readers: list[tuple[int, int, int]] = []  # node, kind, and how many writers it reads
        wires, groups = [], []
        for place, (shape, attention, mlp) in enumerate(zip(self.shapes, *places, strict=True)):
            layer = place if shape.number is None else shape.number
            heads = [len(nodes) + h for h in range(shape.heads)]
            if shape.experts:
                nodes += [Node(f"m{layer}.{name}", "mlp", layer) for name in shape.experts]
                nodes.append(Node(f"m{layer}.router", "mlp", layer))
                router, names = heads[-1] + 1, zip(heads, shape.experts, strict=True)
                wires += [(router, node) for node, name in names if name != "shared"]
                rows = [(node, 3) for node in (*heads, router)]
            elif shape.block is not None:
                kind, reads = ("mlp", 3) if shape.block == "m" else ("mixer", len(KINDS))
                nodes.append(Node(f"{shape.block}{layer}", kind, layer))
                rows = [(heads[0], reads)]
            else:
                nodes += [Node(f"a{layer}.h{h}", "head", layer, h) for h in range(shape.heads)]
                kvs = heads
                if shape.own_kv:
                    kvs = [len(nodes) + j for j in range(shape.kv_heads)]
                    nodes += [Node(f"a{layer}.kv{j}", "kv", layer, j) for j in range(len(kvs))]
                    share = shape.heads // shape.kv_heads
                    wires += [(kvs[h // share], heads[h]) for h in range(shape.heads)]
                rows = [(h, 0) for h in heads] + [(kv, kind) for kind in (1, 2) for kv in kvs]
                if self.coupled:
                    groups.append(tuple(sorted({*heads, *kvs})))
            readers += [(node, kind, attention.prefix) for node, kind in rows]
            if shape.mlp:
                readers.append((len(nodes), 3, mlp.prefix))
                nodes.append(Node(f"m{layer}", "mlp", layer))
        readers.append((len(nodes), 4, final.prefix))
        nodes.append(Node("logits", "output"))
        writers, (targets, kinds, counts) = np.array(self.writer_nodes()), np.array(readers).T
        sources = np.concatenate([writers[:count] for count in counts])
        index = np.stack([sources, np.repeat(targets, counts)]).astype(np.int64)
        return ComputationalGraph(
            nodes=tuple(nodes),
            edge_index=torch.from_numpy(index),
            edge_kind=torch.from_numpy(np.repeat(kinds, counts).astype(np.uint8)),
            edge_kinds=(*KINDS, "mixer") if len(KINDS) in kinds else KINDS,
            ports=("q", "k", "v"),
            fixed_edge_index=torch.tensor(wires, dtype=torch.int64).reshape(-1, 2).T.contiguous(),
            groups=tuple(groups),
            inputs=tuple(range(self.embeddings)),
            outputs=(len(nodes) - 1,),
        )

    def writer_nodes(self) -> list[int]:
        """Node numbers of the writers, in writer order."""
        return [node for group in self.source_groups() for node in group]

    def source_groups(self) -> list[list[int]]:
        """Node numbers of embeddings together, then of each layer's heads together and its MLP."""
        groups, first = [[*range(self.embeddings)]], self.embeddings
        for shape in self.shapes:
            mlp = first + shape.heads + shape.own_kv
            groups += [[*range(first, first + shape.heads)], [mlp] * shape.mlp]
            first = mlp + shape.mlp
        return groups


_Readers = tuple[tuple[bool, Tensor, bool], ...]


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """What a pass computes in one layer.

    ``first``: number of its first head among the writers; its MLP is ``first + H``. ``heads [h]``:
    computed heads; ``rows [R]``: the attention readers to read for themselves (the rest take the
    ablated input); ``mlp``: whether the MLP is computed. ``attention``, ``mlp_place``: the edges.
    Narrow heads, or a narrow MLP, matter at the tokens alone that answers are read at, since no
    kept way leads from them into attention.

    ``readers`` says who reads where if all tokens are counted, and who if the answers' are apart:
    whether at the answers' tokens alone, attention rows, and whether the MLP reads there too.
    Queries of narrow heads do; keys and values never.
    """

    first: int
    heads: Tensor
    rows: Tensor
    mlp: bool
    narrow_heads: bool
    narrow_mlp: bool
    attention: Place
    mlp_place: Place
    readers: tuple[_Readers, _Readers]


@dataclass(frozen=True, eq=False)
class PassPlan:
    """What a masked pass computes: the one description that all passes follow.

    ``computed [W]`` bool: writers whose Delta is kept. ``narrow [W]`` bool: writers, computed or
    not, that matter at the answers' tokens alone; a layer's computed heads are so together.
    ``dense``: everything.
    """

    computed: Tensor
    narrow: Tensor
    dense: bool
    embeddings: int
    layers: tuple[LayerPlan, ...]
    final: Place


def _plan(
    layout: EdgeLayout, computed: Tensor, narrow: Tensor, rows: list[Tensor], dense: bool
) -> PassPlan:
    """The plan; heads of a layer count as narrow where all computed ones are."""
    layers, narrow = [], narrow.clone()
    places = zip(layout.shapes, *layout.places()[:2], strict=True)
    for layer, (shape, attention, mlp_place) in enumerate(places):
        own, mlp = layout.heads_of(layer), layout.mlp(layer)
        heads = torch.nonzero(computed[own])[:, 0]
        narrow[own] &= narrow[own.start + heads].all()
        narrow_heads = bool(narrow[own.start + heads].all())
        narrow_mlp, alive = (shape.mlp and bool(which[mlp]) for which in (narrow, computed))
        queries = (rows[layer] < (0 if shape.block else shape.heads)) & narrow_heads
        main = (False, rows[layer][~queries], alive and not narrow_mlp)
        tail = (True, rows[layer][queries], alive and narrow_mlp)
        readers = (((False, rows[layer], alive),), (main, tail))
        kinds = narrow_heads, narrow_mlp, attention, mlp_place
        layers.append(LayerPlan(own.start, heads, rows[layer], alive, *kinds, readers))
    final = layout.places()[2]
    return PassPlan(computed, narrow, dense, layout.embeddings, tuple(layers), final)


def computed_share(
    layout: EdgeLayout, plan: PassPlan, head: float, mlp: float, asked: float = 1.0
) -> float:
    """The part of all layers' multiplications that a plan asks for, embeddings and output aside.

    ``head`` is the cost of one projection to or from a head's width, ``mlp`` that of an MLP,
    ``asked`` the part of all tokens that answers are read at.
    """
    spent = 0.0
    for layer in plan.layers:
        spent += head * (len(layer.rows) + len(layer.heads))
        if layer.mlp:
            spent += mlp * (asked if layer.narrow_mlp else 1.0)
    return spent / sum(head * (shape.rows + shape.heads) + mlp for shape in layout.shapes)


def dense_plan(layout: EdgeLayout) -> PassPlan:
    """Every writer and every reader: what gradients with respect to the mask need."""
    narrow = torch.arange(layout.writers) >= layout.head(layout.layers - 1)
    rows = [torch.arange(shape.rows) for shape in layout.shapes]
    return _plan(layout, torch.ones(layout.writers, dtype=torch.bool), narrow, rows, True)


def sparse_plan(
    layout: EdgeLayout, mask: Tensor, *, quiescent: bool, moved: Tensor | None = None
) -> PassPlan:
    """The least work for ``mask [C, E]``. ``quiescent``: untouched nodes send ablation values.

    ``moved [W]`` bool: the writers where a change begins (``None`` means the embeddings); all that
    does not depend on them stays as it is.
    """
    touched = (mask != 0).any(0)
    attention, mlp, final = layout.places()
    rows_of = [shape.rows_of(torch.arange(shape.heads)) for shape in layout.shapes]
    if moved is None:
        moved = torch.zeros(layout.writers, dtype=torch.bool)
        moved[: layout.embeddings] = True
    # Forwards: what a change reaches.
    varying = moved.clone()
    for layer in range(layout.layers):
        place, own = attention[layer], layout.heads_of(layer)
        reached = (place.of(touched) & varying[: place.prefix]).any(1) | (not quiescent)
        alive = reached[rows_of[layer]].any(0) | moved[own]
        varying[own] = alive.any() if layout.coupled else alive
        place = mlp[layer]
        reached = (place.of(touched) & varying[: place.prefix]).any(1) | (not quiescent)
        varying[layout.mlp(layer) :][: place.rows] |= reached
    # Backwards: what the output, and what attention, depends on.
    needed = final.of(touched)[0].clone()
    wide = torch.zeros(layout.writers, dtype=torch.bool)
    wide[: layout.embeddings] = True
    wanted_rows: list[Tensor] = []
    for layer in reversed(range(layout.layers)):
        own, writer = layout.heads_of(layer), layout.mlp(layer)
        if layout.shapes[layer].mlp and needed[writer] and varying[writer]:
            read = mlp[layer].of(touched)[0]
            needed[: mlp[layer].prefix] |= read
            wide[: mlp[layer].prefix] |= read & wide[writer]
        wanted = needed[own] & varying[own]
        rows = torch.zeros(layout.shapes[layer].rows, dtype=torch.bool)
        rows[rows_of[layer][:, wanted].flatten()] = True
        if layout.coupled and bool(wanted.any()):
            rows[:] = True
        prefix = attention[layer].prefix
        read = attention[layer].of(touched)[rows].any(0)
        needed[:prefix] |= read
        wide[:prefix] |= read
        wanted_rows.insert(0, rows)
    computed = needed & varying
    active = []
    for place, rows in zip(attention, wanted_rows, strict=True):
        reads = (place.of(touched) & computed[: place.prefix]).any(1)
        active.append(torch.nonzero(rows & reads)[:, 0])
    return _plan(layout, computed, ~wide, active, False)
