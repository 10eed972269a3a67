"""Copies of one graph side by side: examples and masks become disjoint copies in one pass.

A batch of graphs is block-diagonal, so what a copy computes depends on no other. Examples that
share their features (nodes of one graph, graphs of one batch) share a copy wherever they share a
mask. A graph's edges stand relation after relation (a homogeneous graph has one), and the edges of
k copies are numbered copy after copy: edge e of copy c is ``c * E + e``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graphprune.errors import InputError
from graphprune.graph import ComputationalGraph, Node

__all__ = ["Features", "OneKind", "Source", "Wiring", "finite", "plain_index", "unwrapped"]


@dataclass(frozen=True, eq=False)
class Features:
    """What the nodes hold: tensors ``[C, N, ...]``, one copy for each pattern, or one for all.

    ``shared``: whether all examples have the same features.
    """

    nodes: Mapping[str, Tensor]
    shared: bool = True

    @property
    def copies(self) -> int:
        """How many patterns."""
        return len(next(iter(self.nodes.values())))

    def of(self, numbers: Tensor) -> dict[str, Tensor]:
        """``[k * N, ...]``: copies by pattern number ``[k]``."""
        return {name: value[numbers].flatten(0, 1) for name, value in self.nodes.items()}


@dataclass(frozen=True, eq=False)
class Wiring:
    """The edges of copies side by side, relation by relation.

    Args:
        names: the relations.
        index: ``[2, M_r]`` of each, by the numbers of the nodes of its ends' types.
        numbers: ``[M_r]`` of each, the edges' numbers among all edges of all copies.
        bipartite: whether a relation's ends are of two types.
    """

    names: tuple[str, ...]
    index: tuple[Tensor, ...]
    numbers: tuple[Tensor, ...]
    bipartite: tuple[bool, ...]

    def known(self, value: object) -> int | None:
        """The relation whose tensor ``value`` is, itself or as a view of all of it."""
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            return None
        value = unwrapped(value)
        for number, own in enumerate(self.index):
            if value is own or (
                own.numel()
                and value.data_ptr() == own.data_ptr()
                and value.shape == own.shape
                and value.stride() == own.stride()
            ):
                return number  # fmt: skip
        return None

    def only(self, kept: Tensor) -> tuple[Wiring, tuple[Tensor, ...]]:
        """The edges ``kept [k * E]`` bool alone, and ``[M_r]`` of each relation: which they are."""
        some = tuple(kept[numbers] for numbers in self.numbers)
        index = tuple(i[:, part] for i, part in zip(self.index, some, strict=True))
        numbers = tuple(n[part] for n, part in zip(self.numbers, some, strict=True))
        return Wiring(self.names, index, numbers, self.bipartite), some


class Source(ABC):
    """The data a model's module is called with, and how it is copied.

    ``node`` holds tensors ``[N, ...]`` by name, of which tasks may replace some. ``counts`` are
    the relations' numbers of edges, ``kinds`` their names; ``types`` the node types' numbers of
    nodes and ``ends`` the two types of each relation.
    """

    node: Mapping[str, Tensor]
    counts: tuple[int, ...]
    kinds: tuple[str, ...]
    types: Mapping[str, int]
    ends: tuple[tuple[str, str], ...]
    num_graphs: int

    @property
    def num_nodes(self) -> int:
        """Of all types."""
        return sum(self.types.values())

    @property
    def num_edges(self) -> int:
        """Of all relations."""
        return sum(self.counts)

    @property
    def starts(self) -> dict[str, int]:
        """The number of each type's first node among all nodes."""
        counts = list(self.types.values())
        return {name: sum(counts[:i]) for i, name in enumerate(self.types)}

    @property
    def firsts(self) -> list[int]:
        """The number of each relation's first edge among all edges."""
        return [sum(self.counts[:i]) for i in range(len(self.counts))]

    @abstractmethod
    def graph(self) -> ComputationalGraph:
        """All nodes and edges, type after type and relation after relation."""

    @abstractmethod
    def wiring(self, count: int) -> Wiring:
        """The edges of ``count`` copies side by side."""

    @abstractmethod
    def parts(
        self, given: Mapping[str, Tensor], count: int, wiring: Wiring, kept: Any = None
    ) -> dict[str, Any]:
        """What a module's ``forward`` may name: node tensors ``given`` and ``wiring``'s edges.

        ``kept``: which edges of all copies the wiring holds, by relation; ``None``: all.
        """

    @abstractmethod
    def data(self, parts: Mapping[str, Any], count: int) -> Any:
        """The same as fresh PyG data."""

    @abstractmethod
    def key(self, name: str) -> str:
        """The name of node features in ``node`` that a task means by ``name``."""

    def features(self, side: Any, size: int) -> Features:
        """A batch's ``clean`` or ``corrupt`` over the data's own.

        Values with the data's shape are shared by all examples, with a leading axis more they
        are a pattern for each.
        """
        given = side if isinstance(side, Mapping) else {"x": side}
        own, shared = dict[str, Tensor](), dict[str, Tensor]()
        for name, value in given.items():
            if name == "graphs":
                continue
            key = self.key(name)
            base = self.node.get(key)
            if base is None:
                known = ", ".join(self.node)
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
        found = {key: value[None].expand(count, *value.shape) for key, value in self.node.items()}
        found |= {key: value[None].expand(count, *value.shape) for key, value in shared.items()}
        return Features({**found, **own}, shared=not own)

    @property
    def plain(self) -> Features:
        """The data's own features, one copy."""
        return Features({key: value[None] for key, value in self.node.items()})


@dataclass(frozen=True, eq=False)
class OneKind(Source):
    """A homogeneous graph.

    Args:
        edge_index: ``[2, E]``.
        nodes: how many.
        node, edge: tensors ``[N, ...]`` and ``[E, ...]`` by name.
        batch: ``[N]`` graph numbers, or ``None`` for one graph.
        num_graphs: how many graphs.
    """

    edge_index: Tensor
    nodes: int
    node: Mapping[str, Tensor]
    edge: Mapping[str, Tensor]
    batch: Tensor | None = None
    num_graphs: int = 1

    kinds = ("message",)
    ends = (("node", "node"),)

    @property
    def counts(self) -> tuple[int, ...]:  # type: ignore[override]
        """One relation."""
        return (self.edge_index.shape[1],)

    @property
    def types(self) -> Mapping[str, int]:  # type: ignore[override]
        """One type."""
        return {"node": self.nodes}

    @classmethod
    def of(cls, data: Any) -> OneKind:
        """From a PyG ``Data`` or ``Batch``; raises :class:`InputError` where something is odd."""
        nodes = int(data.num_nodes)
        edges = plain_index(data.edge_index, "data.edge_index", nodes, nodes)
        batch = getattr(data, "batch", None)
        node: dict[str, Tensor] = {}
        edge: dict[str, Tensor] = {}
        for name in data.keys():  # noqa: SIM118 - PyG's data is no mapping
            value = data[name]
            if name in ("edge_index", "batch", "ptr", "y") or not isinstance(value, Tensor):
                continue
            if data.is_edge_attr(name):
                edge[name] = value
            elif data.is_node_attr(name):
                node[name] = value
        for name, value in {**node, **edge}.items():
            finite(value, f"data.{name}")
        graphs = int(data.num_graphs) if batch is not None else 1
        return cls(edges, nodes, node, edge, batch, graphs)

    def graph(self) -> ComputationalGraph:
        """Nodes named by number."""
        every = tuple(range(self.nodes))
        return ComputationalGraph(
            nodes=tuple(Node(str(n), kind="node") for n in every),
            edge_index=self.edge_index.cpu().clone(),
            edge_kind=torch.zeros(self.edge_index.shape[1], dtype=torch.uint8),
            inputs=every,
            outputs=every,
        )

    def key(self, name: str) -> str:
        """``inputs`` is ``x``."""
        return "x" if name == "inputs" else name

    def wiring(self, count: int) -> Wiring:
        """One relation."""
        shift = torch.arange(count, device=self.edge_index.device) * self.nodes
        index = (self.edge_index[:, None] + shift[None, :, None]).flatten(1)
        numbers = torch.arange(index.shape[1], device=index.device)
        return Wiring(self.kinds, (index,), (numbers,), (False,))

    def parts(
        self, given: Mapping[str, Tensor], count: int, wiring: Wiring, kept: Any = None
    ) -> dict[str, Any]:
        """``edge_index``, ``batch``, node and edge tensors by their names in the data."""
        found: dict[str, Any] = {}
        for name, value in self.edge.items():
            found[name] = value.repeat(count, *[1] * (value.ndim - 1))
            if kept is not None:
                found[name] = found[name][kept[0]]
        if self.batch is not None:
            shift = torch.arange(count, device=self.batch.device) * self.num_graphs
            found["batch"] = (self.batch[None] + shift[:, None]).flatten()
        return {**found, **given, "edge_index": wiring.index[0]}

    def data(self, parts: Mapping[str, Any], count: int) -> Any:
        """A ``Data``."""
        from torch_geometric.data import Data

        return Data(num_nodes=count * self.nodes, **parts)


def unwrapped(index: Tensor) -> Tensor:
    """The tensor behind PyG's ``EdgeIndex``; others as they are."""
    from torch_geometric import EdgeIndex

    plain: Tensor = index.as_tensor() if isinstance(index, EdgeIndex) else index
    return plain


def plain_index(index: Any, where: str, sources: int, targets: int) -> Tensor:
    """``[2, E]`` as a plain tensor of its own; raises :class:`InputError` where it is no such."""
    if not isinstance(index, Tensor) or index.layout != torch.strided:
        raise InputError(
            f"expected {where} as a plain tensor [2, E]; a sparse adjacency takes fused "
            "paths that pass no messages one by one"
        )
    edges = index.as_subclass(Tensor).detach().clone()
    if edges.ndim != 2 or edges.shape[0] != 2:
        raise InputError(f"{where} must be [2, E], got {list(edges.shape)}")
    for row, nodes in zip(edges, (sources, targets), strict=True):
        if row.numel() and not 0 <= int(row.min()) <= int(row.max()) < nodes:
            raise InputError(f"{where} names a node outside 0..{nodes - 1}")
    return edges


def finite(value: Tensor, where: str) -> None:
    """Raises :class:`InputError` for a NaN or an infinity."""
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise InputError(f"{where} holds NaN or infinite values")
