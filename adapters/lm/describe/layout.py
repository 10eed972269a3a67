"""The graph of a decoder-only model, where its edges stand, and what a mask of them asks for.

Writers go ``embeddings, layer 0's heads, m0, layer 1's heads, ...``. Readers that read the same
point of the residual stream form a *place*: a layer's q/k/v readers, a layer's MLP, the final
residual. A place's edges are one contiguous row-major block ``[rows, prefix]`` of the edge vector,
so a place's mask is a view of the mask. A :class:`PassPlan` is the least work that a mask asks for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from graphprune.core.graph import ComputationalGraph, Node
from graphprune.errors import InputError, UnsupportedModelError
from graphprune.util.plain import weights_hash

from .family import Family
from .offloading import whole_tensor

__all__ = [
    "KINDS",
    "EdgeLayout",
    "LayerPlan",
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
    """Shape of a decoder-only model: layers L, query heads H, key/value heads, embeddings."""

    layers: int
    heads: int
    kv_heads: int
    parallel: bool = False
    coupled: bool = False
    embeddings: int = 1

    @classmethod
    def of(cls, family: Family, config: Any, layers: int, embedding_nodes: int = 1) -> EdgeLayout:
        """The shape of a family's model with a configuration.

        Raises :class:`InputError` or :class:`UnsupportedModelError` where it has not as many
        embedding nodes.
        """
        if embedding_nodes not in (1, 2):
            raise InputError(f"embedding_nodes must be 1 or 2, got {embedding_nodes}")
        if embedding_nodes == 2 and family.position is None:
            raise UnsupportedModelError(
                "embedding_nodes=2 needs a position table; this architecture's positions are rotary"
            )
        flag = family.parallel
        heads = _count(config, family.heads, "num_attention_heads")
        post_norm = family.attention_post_norm is not None
        return cls(
            layers,
            heads,
            kv_heads=_count(config, family.kv_heads, "num_key_value_heads", heads),
            parallel=bool(getattr(config, flag)) if isinstance(flag, str) else flag,
            coupled=post_norm or family.full_width_qk_norm or family.coupled,
            embeddings=embedding_nodes,
        )

    @property
    def grouped(self) -> bool:
        """Whether several query heads share a key/value head."""
        return self.kv_heads != self.heads

    @property
    def writers(self) -> int:
        """How many nodes write to the residual stream: embeddings, heads and MLPs."""
        return self.embeddings + self.layers * (self.heads + 1)

    @property
    def rows(self) -> int:
        """Attention readers of a layer: q of each head, then k and v of each key/value head."""
        return self.heads + 2 * self.kv_heads

    @property
    def num_edges(self) -> int:
        """How many edges there are."""
        return int(self.places()[2].edges.stop)

    def rows_of(self, heads: Tensor) -> Tensor:
        """``[3, h]``: numbers of the q, k and v rows that ``heads [h]`` read."""
        kv = self.heads + heads // (self.heads // self.kv_heads)
        return torch.stack([heads, kv, kv + self.kv_heads])

    def head(self, layer: int) -> int:
        """Number of the layer's first head among the writers; its MLP is ``head(layer) + H``."""
        return self.embeddings + layer * (self.heads + 1)

    def places(self) -> tuple[list[Place], list[Place], Place]:
        """Attention places and MLP places of each layer, and the final one."""
        rows = self.rows
        attention, mlp, offset = [], [], 0
        for layer in range(self.layers):
            prefix = self.head(layer)
            attention.append(Place.at(offset, rows, prefix))
            offset += rows * prefix
            prefix += 0 if self.parallel else self.heads
            mlp.append(Place.at(offset, 1, prefix))
            offset += prefix
        return attention, mlp, Place.at(offset, 1, self.writers)

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
        nodes = list(range(self.embeddings))
        for layer in range(self.layers):
            first = self.embeddings + layer * per_layer
            nodes += [*range(first, first + self.heads), first + self.heads + kv]
        return nodes

    def source_groups(self) -> list[list[int]]:
        """Node numbers of embeddings together, then of each layer's heads together and its MLP."""
        numbers = self.writer_nodes()
        groups = [numbers[: self.embeddings]]
        for layer in range(self.layers):
            first = self.head(layer)
            groups += [numbers[first : first + self.heads], [numbers[first + self.heads]]]
        return groups

    def provenance(self, model: nn.Module, width: int, dtype: torch.dtype) -> dict[str, Any]:
        """Model id, architecture, sizes, dtype and a hash of all weights, as plain values."""
        name = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
        kind = type(model).__name__
        tensors = sorted(model.state_dict().items())
        if Path(name).exists() or Path(name).is_absolute():
            name = Path(name).name  # the rest of a local path says nothing but who its owner is
        return {
            "model": name or kind,
            "architecture": kind,
            "n_layers": self.layers,
            "n_heads": self.heads,
            "n_kv_heads": self.kv_heads,
            "d_model": width,
            "parallel_attn_mlp": self.parallel,
            "dtype": str(dtype).removeprefix("torch."),
            "weights": weights_hash((n, whole_tensor(model, n, t.detach())) for n, t in tensors),
        }


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
    count = layout.heads
    places = zip(*layout.places()[:2], strict=True)
    for layer, (attention, mlp) in enumerate(places):
        first = layout.head(layer)
        heads = torch.nonzero(computed[first : first + count])[:, 0]
        narrow[first : first + count] &= narrow[first + heads].all()
        narrow_heads = bool(narrow[first + heads].all())
        narrow_mlp, alive = bool(narrow[first + count]), bool(computed[first + count])
        queries = (rows[layer] < count) & narrow_heads
        main = (False, rows[layer][~queries], alive and not narrow_mlp)
        tail = (True, rows[layer][queries], alive and narrow_mlp)
        readers = (((False, rows[layer], alive),), (main, tail))
        kinds = narrow_heads, narrow_mlp, attention, mlp
        layers.append(LayerPlan(first, heads, rows[layer], alive, *kinds, readers))
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
    return spent / (layout.layers * (head * (layout.rows + layout.heads) + mlp))


def dense_plan(layout: EdgeLayout) -> PassPlan:
    """Every writer and every reader: what gradients with respect to the mask need."""
    narrow = torch.arange(layout.writers) >= layout.head(layout.layers - 1)
    rows = [torch.arange(layout.rows)] * layout.layers
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
    heads = layout.heads
    rows_of = layout.rows_of(torch.arange(heads))
    if moved is None:
        moved = torch.zeros(layout.writers, dtype=torch.bool)
        moved[: layout.embeddings] = True
    # Forwards: what a change reaches.
    varying = moved.clone()
    for layer in range(layout.layers):
        place, first = attention[layer], layout.head(layer)
        reached = (place.of(touched) & varying[: place.prefix]).any(1) | (not quiescent)
        alive = reached[rows_of].any(0) | moved[first : first + heads]
        varying[first : first + heads] = alive.any() if layout.coupled else alive
        place = mlp[layer]
        reached = (place.of(touched) & varying[: place.prefix]).any(1) | (not quiescent)
        varying[first + heads] |= reached[0]
    # Backwards: what the output, and what attention, depends on.
    needed = final.of(touched)[0].clone()
    wide = torch.zeros(layout.writers, dtype=torch.bool)
    wide[: layout.embeddings] = True
    wanted_rows: list[Tensor] = []
    for layer in reversed(range(layout.layers)):
        first = layout.head(layer)
        if needed[first + heads] and varying[first + heads]:
            read = mlp[layer].of(touched)[0]
            needed[: mlp[layer].prefix] |= read
            wide[: mlp[layer].prefix] |= read & wide[first + heads]
        wanted = needed[first : first + heads] & varying[first : first + heads]
        rows = torch.zeros(layout.rows, dtype=torch.bool)
        rows[rows_of[:, wanted].flatten()] = True
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
