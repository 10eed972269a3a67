"""Heterogeneous graphs as a model's data: node types, and relations between them.

Nodes stand type after type and edges relation after relation, in the order of the data's
``node_types`` and ``edge_types``. A node is named ``paper:3``; an edge's kind is its relation,
``author__writes__paper``, and stands in its name, ``author:0->paper:3<author__writes__paper>``,
since two relations may join the same two nodes. Features are named ``paper.x``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graphprune.errors import InputError
from graphprune.graph import ComputationalGraph, Node

from .replicas import Source, Wiring, finite, plain_index

__all__ = ["ManyKinds", "relation_name"]

Relation = tuple[str, str, str]


def relation_name(relation: Relation) -> str:
    """``author__writes__paper``."""
    return "__".join(relation)


@dataclass(frozen=True, eq=False)
class ManyKinds(Source):
    """A heterogeneous graph.

    Args:
        relations: the edge types, in order.
        index: ``[2, E_r]`` of each.
        types: node types, in order, with their numbers of nodes.
        node: tensors ``[N_t, ...]`` as ``type.name``.
        edge: tensors ``[E_r, ...]`` by name, then relation.
        batch: ``[N_t]`` graph numbers by type, or ``None`` for one graph.
        num_graphs: how many graphs.
    """

    relations: tuple[Relation, ...]
    index: tuple[Tensor, ...]
    types: Mapping[str, int]
    node: Mapping[str, Tensor]
    edge: Mapping[str, Mapping[Relation, Tensor]]
    batch: Mapping[str, Tensor] | None = None
    num_graphs: int = 1

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
        node: dict[str, Tensor] = {}
        edge: dict[str, dict[Relation, Tensor]] = {}
        batch: dict[str, Tensor] = {}
        for name in types:
            for key, value in data[name].items():
                if key in ("ptr", "y") or not isinstance(value, Tensor):
                    continue
                if key == "batch":
                    batch[name] = value
                elif data[name].is_node_attr(key):
                    finite(value, f"data[{name!r}].{key}")
                    node[f"{name}.{key}"] = value
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
            for key, value in data[relation].items():
                if key == "edge_index" or not isinstance(value, Tensor):
                    continue
                if data[relation].is_edge_attr(key):
                    finite(value, f"{where}.{key}")
                    edge.setdefault(key, {})[relation] = value
        if len(relations) > 255:
            raise InputError(f"at most 255 edge types can be told apart, got {len(relations)}")
        if len({relation_name(r) for r in relations}) < len(relations):
            raise InputError("two edge types have the same name once joined by '__'")
        graphs = int(data.num_graphs) if batch else 1
        return cls(
            tuple(relations), tuple(index), types, node, edge, batch or None, graphs
        )  # fmt: skip

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

    def parts(
        self, given: Mapping[str, Tensor], count: int, wiring: Wiring, kept: Any = None
    ) -> dict[str, Any]:
        """Dictionaries by type or relation, as ``x_dict`` and as ``x``."""
        found: dict[str, dict[Any, Tensor]] = {}
        for name, by_relation in self.edge.items():
            for relation, value in by_relation.items():
                number = self.relations.index(relation)
                some = value.repeat(count, *[1] * (value.ndim - 1))
                found.setdefault(name, {})[relation] = some if kept is None else some[kept[number]]
        for kind in self.types:
            for key, value in given.items():
                if key in self.node and key.startswith(f"{kind}."):
                    found.setdefault(key.removeprefix(f"{kind}."), {})[kind] = value
        if self.batch is not None:
            for kind, numbers in self.batch.items():
                shift = torch.arange(count, device=numbers.device) * self.num_graphs
                found.setdefault("batch", {})[kind] = (numbers[None] + shift[:, None]).flatten()
        found["edge_index"] = dict(zip(self.relations, wiring.index, strict=True))
        return {**found, **{f"{name}_dict": value for name, value in found.items()}}

    def data(self, parts: Mapping[str, Any], count: int) -> Any:
        """A ``HeteroData``."""
        from torch_geometric.data import HeteroData

        made = HeteroData()
        for kind, nodes in self.types.items():
            made[kind].num_nodes = count * nodes
        for name, by_kind in parts.items():
            if not name.endswith("_dict"):
                for kind, value in by_kind.items():
                    made[kind][name] = value
        return made
