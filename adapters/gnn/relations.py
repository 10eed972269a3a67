"""Heterogeneous graphs as a model's data: node types, and relations between them.

Nodes stand type after type and edges relation after relation, in the order of the data's
``node_types`` and ``edge_types``. A node is named ``paper:3``; an edge's kind is its relation,
``author__writes__paper``, and stands in its name, ``author:0->paper:3<author__writes__paper>``,
since two relations may join the same two nodes. Features are named ``paper.x``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from graphprune.core.graph import ComputationalGraph, Node
from graphprune.core.graph_axes import attribute_axes, forget_axes
from graphprune.errors import InputError

from .attributes import LABELS, Attribute, Copies, Layout, counted, described, finite, repeated
from .edge_tensors import plain_index
from .replicas import Source, Wiring

__all__ = ["ManyKinds", "relation_name"]

Relation = tuple[str, str, str]


def relation_name(relation: Relation) -> str:
    """``author__writes__paper``."""
    return "__".join(relation)


@dataclass(frozen=True, eq=False)
class ManyKinds(Source):
    """A heterogeneous graph.

    Args:
        whole: the user's data.
        relations: the edge types, in order.
        index: ``[2, E_r]`` of each.
        types: node types, in order, with their numbers of nodes.
        attributes: by name, then node type, relation or ``None`` (the whole data's): what each of
            the data's attributes belongs to.
        batch: ``[N_t]`` graph numbers by type, or ``None`` for one graph.
        num_graphs: how many graphs.
        layout: how what belongs to whole graphs is copied.
    """

    whole: Any
    relations: tuple[Relation, ...]
    index: tuple[Tensor, ...]
    types: Mapping[str, int]
    attributes: Mapping[str, Mapping[Any, Attribute]]
    batch: Mapping[str, Tensor] | None = None
    num_graphs: int = 1
    layout: Layout = field(default_factory=Layout)

    @property
    def node(self) -> Mapping[str, Tensor]:  # type: ignore[override]
        """Tensors of nodes that tasks may replace, as ``type.name``, type after type."""
        found = {f"{kind}.{key}": value for key, kind, value in self._entries("node")}
        return {name: found[name] for kind in self.types for name in found
                if name.startswith(f"{kind}.") and name[len(kind) + 1:] not in LABELS}  # fmt: skip

    @property
    def edge(self) -> Mapping[Any, Tensor]:
        """Tensors ``[E_r, ...]`` by relation and name."""
        return {(kind, key): value for key, kind, value in self._entries("edge")}

    @property
    def globals(self) -> Mapping[str, Any]:
        """What the data says of itself as a whole."""
        return {n: self.whole[n] for n, stores in self.attributes.items() if None in stores}

    def _entries(self, axis: str) -> Iterator[tuple[str, Any, Tensor]]:
        for key, stores in self.attributes.items():
            for kind, one in stores.items():
                if one.axis == axis and one.features:
                    yield key, kind, self._store(self.whole, kind)[key]

    @staticmethod
    def _store(data: Any, kind: Any) -> Any:
        return data._global_store if kind is None else data[kind]

    @property
    def counts(self) -> tuple[int, ...]:  # type: ignore[override]
        """Edges of each relation."""
        return tuple(index.shape[1] for index in self.index)

    @property
    def kinds(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the relations."""
        return tuple(map(relation_name, self.relations))

    @property
    def ends(self) -> tuple[tuple[str, str], ...]:  # type: ignore[override]
        """Source and target type of each relation."""
        return tuple((relation[0], relation[2]) for relation in self.relations)

    @classmethod
    def of(cls, data: Any) -> ManyKinds:
        """From a PyG ``HeteroData`` or a batch of them.

        Raises :class:`InputError` where something is odd.
        """
        types = {name: int(data[name].num_nodes or 0) for name in data.node_types}
        relations, index = [], []
        for relation in data.edge_types:
            where = f"data[{', '.join(map(repr, relation))}]"
            if "edge_index" not in data[relation]:
                raise InputError(f"expected {where}.edge_index as a plain tensor [2, E], got none")
            unknown = sorted({relation[0], relation[2]} - set(types))
            if unknown:
                raise InputError(f"{where} joins nodes of the type {unknown[0]!r}, which has none")
            sources, targets = types[relation[0]], types[relation[2]]
            given = data[relation].edge_index
            index.append(plain_index(given, f"{where}.edge_index", sources, targets))
            relations.append(relation)
        if len(relations) > 255:
            raise InputError(f"at most 255 edge types can be told apart, got {len(relations)}")
        if len({relation_name(r) for r in relations}) < len(relations):
            raise InputError("two edge types have the same name once joined by '__'")
        batch = {kind: data[kind].batch for kind in types if "batch" in data[kind]}
        by_hand = max((int(one.max()) + 1 for one in batch.values() if one.numel()), default=1)
        graphs = int(getattr(data, "num_graphs", by_hand)) if batch else 1
        made: dict[str, dict[Any, Attribute]] = {}
        for kind, key, axis in _axes(data, types):
            store = cls._store(data, kind)
            made.setdefault(key, {})[kind] = described(data, store, key, axis, graphs)
        found = cls(
            copy.copy(data), tuple(relations), tuple(index), types, made, batch or None, graphs
        )
        for name, value in found.node.items():
            kind, _, key = name.partition(".")
            finite(value, f"data[{kind!r}].{key}")
        for (relation, key), value in found.edge.items():
            finite(value, f"data[{', '.join(map(repr, relation))}].{key}")
        return found

    def laid(self, layout: Layout) -> ManyKinds:
        """See the base class."""
        return replace(self, layout=layout)

    def graph(self) -> ComputationalGraph:
        """See the module's text."""
        starts = self.starts
        every = tuple(range(self.num_nodes))
        parts = [
            index.cpu() + torch.tensor([[starts[a]], [starts[b]]])
            for (a, b), index in zip(self.ends, self.index, strict=True)
        ]
        counts = torch.tensor(self.counts)
        return ComputationalGraph(
            nodes=tuple(
                Node(f"{name}:{i}", kind=name, index=i)
                for name, count in self.types.items()
                for i in range(count)
            ),
            edge_index=torch.cat([torch.zeros(2, 0, dtype=torch.int64), *parts], 1),
            edge_kind=torch.arange(len(counts), dtype=torch.uint8).repeat_interleave(counts),
            edge_kinds=self.kinds,
            ports=self.kinds,
            inputs=every,
            outputs=every,
        )

    def key(self, name: str) -> str:
        """As it is; of the one type that has such features ``x`` means them."""
        alike = [key for key in self.node if key.split(".", 1)[-1] == name]
        return alike[0] if len(alike) == 1 and name not in self.node else name

    def wiring(self, count: int) -> Wiring:
        """Relation by relation."""
        index, numbers = [], []
        for first, (a, b), one in zip(self.firsts, self.ends, self.index, strict=True):
            at = torch.arange(count, device=one.device)
            shift = at * torch.tensor([[self.types[a]], [self.types[b]]], device=one.device)
            index.append((one[:, None] + shift[..., None]).flatten(1))
            inside = torch.arange(one.shape[1], device=one.device) + first
            numbers.append((at[:, None] * self.num_edges + inside).flatten())
        return Wiring(self.kinds, tuple(index), tuple(numbers), tuple(a != b for a, b in self.ends))

    def has(self, name: str) -> bool:
        """Whether any type or relation, or the data as a whole, has it."""
        base = name.removesuffix("_dict")
        return (base == "batch" and self.batch is not None) or base in (
            "edge_index",
            *self.attributes,
        )

    def own(self, name: str, data: Any) -> Any:
        """Dictionaries by type or relation, as ``x_dict`` and as ``x``; or the whole data's."""
        base = name.removesuffix("_dict")
        if not self.has(name):
            return self.read(self.one, name)
        return data[base] if None in self.attributes.get(base, ()) else data.collect(base)

    def read(self, copies: Copies, name: str) -> Any:
        """The same of copies."""
        base = name.removesuffix("_dict")
        if base == "edge_index":
            return dict(zip(self.relations, copies.wiring.index, strict=True))
        if base == "batch":
            return {kind: self._graphs(copies.count, kind) for kind in self.batch or self.types}
        found = {kind: self._one(copies, base, kind) for kind in self.attributes[base]}
        return found.get(None, found)

    def _one(self, copies: Copies, key: str, kind: Any) -> Any:
        relation = self.relations.index(kind) if isinstance(kind, tuple) else 0
        return repeated(
            self.attributes[key][kind],
            self._store(self.whole, kind)[key],
            copies,
            relation,
            (kind, key),
            layout=self.layout,
            given=copies.given.get(f"{kind}.{key}"),
        )

    def data(self, copies: Copies) -> Any:
        """A ``HeteroData``, or a batch of them, with all that the user's has."""
        made = copy.copy(self.whole)
        forget_axes(made)
        for key, stores in self.attributes.items():
            for kind, one in stores.items():
                if one.axis == "sparse" and copies.changed:
                    del self._store(made, kind)[key]  # it would still hold the edges that are gone
                else:
                    self._store(made, kind)[key] = self._one(copies, key, kind)
        for relation, index in zip(self.relations, copies.wiring.index, strict=True):
            made[relation].edge_index = index
        for kind, nodes in self.types.items():
            made[kind].num_nodes = copies.count * nodes
            batched = self.batch is not None and kind in self.batch
            if batched or (copies.count > 1 and self.layout.batch):
                made[kind].batch = self._graphs(copies.count, kind)
                if "ptr" in made[kind] or not batched:
                    sizes = torch.bincount(
                        made[kind].batch, minlength=copies.count * self.num_graphs
                    )
                    made[kind].ptr = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        counted(made, copies, self.num_graphs)
        return made

    def _graphs(self, count: int, kind: str) -> Tensor:
        own = None if self.batch is None else self.batch.get(kind)
        if own is None:
            device = self.index[0].device if self.index else None
            own = torch.zeros(self.types[kind], dtype=torch.int64, device=device)
        shift = torch.arange(count, device=own.device) * self.num_graphs
        return (own[None] + shift[:, None]).flatten()


def _axes(data: Any, types: Mapping[str, int]) -> Iterator[tuple[Any, str, str]]:
    """Each attribute of heterogeneous data with its type or relation and its axis."""
    for key in data._global_store.keys():  # noqa: SIM118
        yield None, key, "graph"
    for kind in types:
        for key in data[kind].keys():  # noqa: SIM118
            if key not in ("batch", "ptr", "num_nodes"):
                yield kind, key, "node" if data[kind].is_node_attr(key) else "graph"
    for relation in data.edge_types:
        for key, axis in attribute_axes((data, relation)).items():
            if key != "edge_index":
                yield relation, key, axis
