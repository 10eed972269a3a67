"""The user's graph as a model's data: node types, relations between them, and what they hold.

Nodes stand type after type and edges relation after relation, in the order of the data's
``node_types`` and ``edge_types``. Of heterogeneous data a node is named ``paper:3``; an edge's kind
is its relation, ``author__writes__paper``, and stands in its name,
``author:0->paper:3<author__writes__paper>``, since two relations may join the same two nodes.
Features are named ``paper.x``. A homogeneous graph is the same with one type and one relation:
nodes are named by number, features ``x``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from graphprune.core.graph import ComputationalGraph, Node
from graphprune.core.graph_axes import forget_axes, main_store
from graphprune.errors import InputError
from graphprune.util.modes import on_device

from .copies import BatchLayout, CopiedEdges, DataAttribute, GraphCopies, plain_tensor, repeated

__all__ = ["LABELS", "GraphData", "NodeFeatures", "Relation", "StoreKey", "plain_copy", "store_of"]

LABELS = ("y",)
Relation = tuple[str, str, str]
StoreKey = str | Relation | None  # a node type, a relation; None: the data as a whole


@dataclass(frozen=True, eq=False)
class NodeFeatures:
    """What the nodes hold: tensors ``[C, N, ...]``, one copy for each pattern, or one for all.

    ``shared``: whether all examples have the same features.
    """

    nodes: Mapping[str, Tensor]
    shared: bool = True

    @property
    def num_patterns(self) -> int:
        """How many patterns."""
        return len(next(iter(self.nodes.values()), [None]))  # no features: one for all

    def of(self, numbers: Tensor) -> dict[str, Tensor]:
        """``[k * N, ...]``: copies by pattern number ``[k]``."""
        return {name: value[numbers].flatten(0, 1) for name, value in self.nodes.items()}


@dataclass(frozen=True, eq=False)
class GraphData:
    """The data that a module is called with, and how it is copied.

    Args:
        whole: the user's data.
        heterogeneous: whether it is a ``HeteroData``.
        types: node types, in order, with their numbers of nodes.
        relations: edge types, in order, with their ``[2, E_r]``.
        attributes: by store (a node type, a relation, or ``None`` for the data as a whole, which
            is all of a homogeneous graph) and name.
        batch: ``[N_t]`` graph numbers by type; empty: one graph.
        num_graphs: how many graphs.
        layout: how what belongs to whole graphs is copied.
        either: names of attributes that could belong to nodes or to edges.
    """

    whole: Any
    heterogeneous: bool
    types: Mapping[str, int]
    relations: Mapping[Relation, Tensor]
    attributes: Mapping[tuple[StoreKey, str], DataAttribute]
    batch: Mapping[str, Tensor]
    num_graphs: int
    layout: BatchLayout = field(default_factory=BatchLayout)
    either: tuple[str, ...] = ()

    # ---------------------------------------------------------------- sizes and tensors

    @property
    def relation_names(self) -> tuple[str, ...]:
        """Names of the relations; ``"message"`` in a homogeneous graph."""
        if not self.heterogeneous:
            return ("message",)
        return tuple(map("__".join, self.relations))

    @property
    def edge_counts(self) -> tuple[int, ...]:
        """Edges of each relation."""
        return tuple(index.shape[1] for index in self.relations.values())

    @property
    def end_types(self) -> tuple[tuple[str, str], ...]:
        """Source and target type of each relation."""
        return tuple((relation[0], relation[2]) for relation in self.relations)

    @property
    def num_nodes(self) -> int:
        """Of all types."""
        return sum(self.types.values())

    @property
    def num_edges(self) -> int:
        """Of all relations."""
        return sum(self.edge_counts)

    @property
    def num_pairs(self) -> int:
        """Pairs of nodes that are asked about, ``edge_label_index``; of all relations."""
        pairs = [store.get("edge_label_index") for store in self.whole.stores]
        return sum(one.shape[-1] for one in pairs if isinstance(one, Tensor))

    @property
    def device(self) -> torch.device:
        """Where the edges are."""
        return next(iter(self.relations.values())).device

    @property
    def first_nodes(self) -> dict[str, int]:
        """The number of each type's first node among all nodes."""
        counts = list(self.types.values())
        return {name: sum(counts[:i]) for i, name in enumerate(self.types)}

    @property
    def first_edges(self) -> list[int]:
        """The number of each relation's first edge among all edges."""
        return [sum(self.edge_counts[:i]) for i in range(len(self.edge_counts))]

    @property
    def node_tensors(self) -> dict[str, Tensor]:
        """Tensors ``[N_t, ...]`` of nodes that tasks may replace, by name."""
        tensors = self._features("node")
        return {self._label(*key): value for key, value in tensors.items() if key[1] not in LABELS}

    @property
    def edge_tensors(self) -> dict[tuple[StoreKey, str], Tensor]:
        """Tensors ``[E_r, ...]`` of edges by store and name."""
        return self._features("edge")

    def edge_features(self) -> list[list[Tensor]]:
        """For each relation its ``[E_r, ...]`` on the CPU, by name."""
        stores = list(self.relations) if self.heterogeneous else [None]
        named = sorted(self.edge_tensors.items(), key=lambda item: item[0][1])
        return [[value.cpu() for (key, _), value in named if key == store] for store in stores]

    def _features(self, axis: str) -> dict[tuple[StoreKey, str], Tensor]:
        return {
            (store, name): store_of(self.whole, store)[name]
            for (store, name), one in self.attributes.items()
            if one.axis == axis and one.features
        }

    def _label(self, store: StoreKey, name: str) -> str:
        return f"{store}.{name}" if self.heterogeneous else name

    def graph(self) -> ComputationalGraph:
        """All nodes and edges, type after type and relation after relation."""
        starts, every = self.first_nodes, tuple(range(self.num_nodes))
        parts = [
            index.cpu() + torch.tensor([[starts[a]], [starts[b]]])
            for (a, b), index in zip(self.end_types, self.relations.values(), strict=True)
        ]
        if self.heterogeneous:
            nodes = [
                node
                for name, count in self.types.items()
                for node in Node.numbered(count, name, f"{name}:", index=True)
            ]
        else:
            nodes = Node.numbered(self.num_nodes, "node")
        counts = torch.tensor(self.edge_counts)
        return ComputationalGraph(
            nodes=tuple(nodes),
            edge_index=torch.cat([torch.zeros(2, 0, dtype=torch.int64), *parts], 1),
            edge_kind=torch.arange(len(counts), dtype=torch.uint8).repeat_interleave(counts),
            edge_kinds=self.relation_names,
            ports=self.relation_names if self.heterogeneous else (),
            inputs=every,
            outputs=every,
        )

    # ---------------------------------------------------------------- examples

    def features(self, side: Any, size: int) -> NodeFeatures:
        """A batch's ``clean`` or ``corrupt`` over the data's own.

        Values with the data's shape are shared by all examples, with a leading axis more they
        are a pattern for each.
        """
        own, shared = dict[str, Tensor](), self.node_tensors
        side = on_device(side, self.device)
        for name, value in (side if isinstance(side, Mapping) else {"x": side}).items():
            if name == "graphs":
                continue
            key = self._key(name)
            base = shared.get(key)
            if base is None:
                known = ", ".join(shared)
                raise InputError(f"the task names {name!r}; nodes of the data have: {known}")
            if value.shape[1:] == base.shape and len(value) == size:
                own[key] = value
            elif value.shape == base.shape:
                shared[key] = value
            else:
                raise InputError(
                    f"{name} must be {list(base.shape)}, shared by all examples, or "
                    f"{[size, *base.shape]}, got {list(value.shape)}"
                )
        count = size if own else 1
        repeats = {key: value[None].expand(count, *value.shape) for key, value in shared.items()}
        return NodeFeatures({**repeats, **own}, shared=not own)

    def _key(self, name: str) -> str:
        """The features a task means by ``name``: ``x`` is that of the one type that has some."""
        if not self.heterogeneous:
            return "x" if name == "inputs" else name
        alike = [key for key in self.node_tensors if key.split(".", 1)[-1] == name]
        return alike[0] if len(alike) == 1 and name not in self.node_tensors else name

    @property
    def own_features(self) -> NodeFeatures:
        """The data's own features, one copy."""
        return NodeFeatures({key: value[None] for key, value in self.node_tensors.items()})

    # ---------------------------------------------------------------- copies

    def make_copies(
        self,
        nodes: Mapping[str, Tensor] | None = None,
        count: int = 1,
        kept: Tensor | None = None,
        on_edges: Mapping[Any, Tensor] | None = None,
    ) -> GraphCopies:
        """Copies side by side; ``kept [k * E]`` bool: with these edges alone.

        ``nodes [k * N, ...]`` and ``on_edges [k * E_r, ...]`` stand in place of the data's tensors.
        """
        if nodes is None:
            nodes = {n: v.repeat(count, *[1] * (v.ndim - 1)) for n, v in self.node_tensors.items()}
        edges, which = self._copied_edges(count), None
        if kept is not None:
            edges, which = edges.only(kept)
        return GraphCopies(nodes, count, edges, which, on_edges or {})

    def _copied_edges(self, count: int) -> CopiedEdges:
        at = torch.arange(count, device=self.device)
        index, numbers = [], []
        for first, (a, b), one in zip(
            self.first_edges, self.end_types, self.relations.values(), strict=True
        ):  # fmt: skip
            shift = at * torch.tensor([[self.types[a]], [self.types[b]]], device=one.device)
            index.append((one[:, None] + shift[..., None]).flatten(1))
            inside = torch.arange(one.shape[1], device=one.device) + first
            numbers.append((at[:, None] * self.num_edges + inside).flatten())
        bipartite = tuple(a != b for a, b in self.end_types)
        return CopiedEdges(self.relation_names, tuple(index), tuple(numbers), bipartite)

    def has(self, name: str) -> bool:
        """Whether the user's data holds what a module calls ``name``."""
        base = self._base(name)
        if base == "edge_index" or any(base == known for _, known in self.attributes):
            return True
        if self.heterogeneous:
            return base == "batch" and bool(self.batch)
        return base in self.whole and self.whole[base] is not None

    def _base(self, name: str) -> str:
        return name.removesuffix("_dict") if self.heterogeneous else name

    def user_value(self, name: str, data: Any) -> Any:
        """``data.name``, as a user reads it from data like the model's.

        Of heterogeneous data ``x`` and ``x_dict`` are dictionaries by type. What the data lacks, a
        batch vector of one graph and the like, is made.
        """
        base = self._base(name)
        if not self.has(name):
            return self.copied_value(self.make_copies(), name)
        by_type = self.heterogeneous and (None, base) not in self.attributes
        return data.collect(base) if by_type else data[base]

    def copied_value(self, copies: GraphCopies, name: str) -> Any:
        """``data.name`` of copies side by side."""
        base = self._base(name)
        by_store: dict[Any, Any]
        if base == "edge_index":
            by_store = dict(zip(self.relations, copies.edges.index, strict=True))
        elif base in ("batch", "ptr"):
            kinds = self.batch or self.types
            by_store = {kind: self._graph_numbers(copies.count, kind, base) for kind in kinds}
        else:
            stores = [store for store, key in self.attributes if key == base]
            by_store = {store: self._repeated(copies, store, base) for store in stores}
        if not by_store:
            sizes = {"num_nodes": self.num_nodes}
            sizes |= dict.fromkeys(("num_graphs", "batch_size"), self.num_graphs)
            return copies.count * sizes[base]
        by_type = self.heterogeneous and None not in by_store
        return by_store if by_type else by_store.get(None, next(iter(by_store.values())))

    def _repeated(self, copies: GraphCopies, store: StoreKey, name: str) -> Any:
        one, kept, instead = self.attributes[store, name], None, None
        if one.axis == "edge":
            instead = copies.edge_tensors.get((store, name))
            if copies.kept is not None:
                number = list(self.relations).index(store) if isinstance(store, tuple) else 0
                kept = copies.kept[number]
        else:
            instead = copies.node_tensors.get(self._label(store, name))
        value = store_of(self.whole, store)[name]
        return repeated(one, value, copies, name, self.layout, kept=kept, instead=instead)

    def copied_data(self, copies: GraphCopies) -> Any:
        """All of the user's data, of their own kind, of copies side by side."""
        data = copy.copy(self.whole)
        forget_axes(data)
        for (store, name), one in self.attributes.items():
            if one.axis == "sparse" and copies.differs:
                del store_of(data, store)[name]  # it would still hold the edges that are gone
            else:
                store_of(data, store)[name] = self._repeated(copies, store, name)
        for relation, index in zip(self.relations, copies.edges.index, strict=True):
            (data[relation] if self.heterogeneous else data).edge_index = index
        for kind, nodes in self.types.items():
            store = data[kind] if self.heterogeneous else data
            store.num_nodes = copies.count * nodes
            if kind in self.batch or (copies.count > 1 and self.layout.batch):
                store.batch = self._graph_numbers(copies.count, kind, "batch")
                if "ptr" in store or kind not in self.batch:
                    store.ptr = self._graph_numbers(copies.count, kind, "ptr")
        main = main_store(data)
        if hasattr(main, "_num_graphs"):  # a PyG batch, which knows how many graphs it holds
            main._num_graphs = copies.count * self.num_graphs
            if copies.differs and hasattr(main, "_slice_dict"):
                del main._slice_dict  # where each graph's edges began: PyG refuses what needs it
        return data

    def _graph_numbers(self, count: int, kind: str, name: str) -> Tensor:
        """``batch [k * N_t]``, or ``ptr``: where each graph's nodes begin in it."""
        own = self.batch.get(kind)
        if own is None:
            own = torch.zeros(self.types[kind], dtype=torch.int64, device=self.device)
        shift = torch.arange(count, device=own.device) * self.num_graphs
        batch = (own[None] + shift[:, None]).flatten()
        if name == "batch":
            return batch
        sizes = torch.bincount(batch, minlength=count * self.num_graphs)
        return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])


def plain_copy(data: Any) -> Any:
    """The user's data for a call of their own: a copy, whose edges are plain tensors."""
    copied = data.clone()
    for store in copied.edge_stores:
        store["edge_index"] = plain_tensor(store["edge_index"])
    return copied


def store_of(data: Any, store: StoreKey) -> Any:
    """What PyG keeps of a node type or a relation, or (``None``) of the whole."""
    return data.stores[0] if store is None else data[store]
