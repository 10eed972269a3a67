"""Copies of one graph side by side: examples and masks become disjoint copies in one pass.

A batch of graphs is block-diagonal, so what a copy computes depends on no other. Examples that
share their features (nodes of one graph, graphs of one batch) share a copy wherever they share a
mask. A graph's edges stand relation after relation (a homogeneous graph has one), and the edges of
k copies are numbered copy after copy: edge e of copy c is ``c * E + e``.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from graphprune.core.graph import ComputationalGraph, Node
from graphprune.core.graph_axes import attribute_axes, forget_axes
from graphprune.errors import InputError

from .attributes import LABELS, Attribute, Copies, Layout, counted, described, finite, repeated
from .edge_tensors import plain_index, unwrapped

__all__ = ["Features", "OneKind", "Source", "Wiring"]


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
    layout: Layout

    @property
    def edge(self) -> Mapping[Any, Tensor]:
        """Tensors ``[E_r, ...]`` of edges by name, or by relation number and name."""
        raise NotImplementedError

    @property
    def globals(self) -> Mapping[str, Any]:
        """What the data says of itself as a whole, by name."""
        raise NotImplementedError

    @property
    def one(self) -> Copies:
        """The data's own features, one copy."""
        return Copies(dict(self.node), 1, self.wiring(1))

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
    def has(self, name: str) -> bool:
        """Whether the user's data holds what a module calls ``name``."""

    @abstractmethod
    def own(self, name: str, data: Any) -> Any:
        """``data.name``, as a user reads it from data like the model's."""

    @abstractmethod
    def read(self, copies: Copies, name: str) -> Any:
        """The same of copies side by side."""

    @abstractmethod
    def data(self, copies: Copies) -> Any:
        """All of the user's data, of copies side by side."""

    @abstractmethod
    def laid(self, layout: Layout) -> Self:
        """The source with another way of copying what belongs to whole graphs."""

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
        whole: the user's data.
        edge_index: ``[2, E]``.
        nodes: how many.
        attributes: what each of the data's attributes belongs to.
        either: names of attributes that could belong to nodes or to edges.
        batch: ``[N]`` graph numbers, or ``None`` for one graph.
        num_graphs: how many graphs.
        layout: how what belongs to whole graphs is copied.
    """

    whole: Any
    edge_index: Tensor
    nodes: int
    attributes: Mapping[str, Attribute]
    either: tuple[str, ...] = ()
    batch: Tensor | None = None
    num_graphs: int = 1
    layout: Layout = field(default_factory=Layout)

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

    @property
    def node(self) -> Mapping[str, Tensor]:  # type: ignore[override]
        """Tensors of nodes that tasks may replace."""
        return {
            name: self.whole[name]
            for name, one in self.attributes.items()
            if one.axis == "node" and one.features and name not in LABELS
        }

    @property
    def edge(self) -> Mapping[Any, Tensor]:
        """Tensors ``[E, ...]`` by name."""
        return {
            name: self.whole[name]
            for name, one in self.attributes.items()
            if one.axis == "edge" and one.features
        }

    @property
    def globals(self) -> Mapping[str, Any]:
        """What belongs to neither nodes nor edges."""
        return {n: self.whole[n] for n, a in self.attributes.items() if a.axis in ("graph", "same")}

    @classmethod
    def of(cls, data: Any) -> OneKind:
        """From a PyG ``Data`` or ``Batch``; raises :class:`InputError` where something is odd."""
        whole = copy.copy(data)
        nodes = int(data.num_nodes)
        edges = plain_index(data.edge_index, "data.edge_index", nodes, nodes)
        batch = getattr(data, "batch", None)
        axes = attribute_axes(data)
        graphs = 1
        if batch is not None:
            by_hand = int(batch.max()) + 1 if batch.numel() else 1
            graphs = int(getattr(data, "num_graphs", by_hand))
        plain = cls(whole, edges, nodes, {}, (), batch, graphs)
        found = plain.split(axes)
        for name, value in {**found.node, **found.edge}.items():
            finite(value, f"data.{name}")
        return found

    def split(self, axes: Mapping[str, Any]) -> OneKind:
        """The source with the attributes' axes said."""
        made = {
            name: described(self.whole, self.whole, name, axis, self.num_graphs)
            for name, axis in axes.items()
            if name not in ("edge_index", "batch", "ptr", "num_nodes")
        }
        either = tuple(name for name, axis in axes.items() if axis == "either")
        return replace(self, attributes=made, either=either)

    def laid(self, layout: Layout) -> OneKind:
        """See the base class."""
        return replace(self, layout=layout)

    @property
    def moving(self) -> tuple[str, ...]:
        """Attributes whose numbers move along from copy to copy because of their names."""
        return tuple(
            name
            for name, one in self.attributes.items()
            if one.shift is not None and not name.endswith("batch")
        )

    def staying(self, names: Collection[str]) -> OneKind:
        """The source with numbers in attributes ``names`` that stay from copy to copy."""
        made = {
            name: replace(one, shift=None) if name in names else one
            for name, one in self.attributes.items()
        }
        return replace(self, attributes=made)

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

    def has(self, name: str) -> bool:
        """Whether the data has it."""
        return name in self.whole and self.whole[name] is not None

    def own(self, name: str, data: Any) -> Any:
        """As it is; what the data lacks, a batch vector of one graph and the like, is made."""
        return data[name] if self.has(name) else self.read(self.one, name)

    def read(self, copies: Copies, name: str) -> Any:
        """By its name in the data, and what a batch knows besides."""
        if name == "edge_index":
            return copies.wiring.index[0]
        if name in ("batch", "ptr"):
            return self._graphs(copies.count, name)
        if name not in self.whole or name == "num_nodes":
            each = {
                "num_nodes": self.nodes,
                "num_graphs": self.num_graphs,
                "batch_size": self.num_graphs,
            }
            return copies.count * each[name]
        return repeated(
            self.attributes[name],
            self.whole[name],
            copies,
            0,
            name,
            layout=self.layout,
            given=copies.given.get(name),
        )

    def data(self, copies: Copies) -> Any:
        """The user's own kind of data."""
        made = copy.copy(self.whole)
        forget_axes(made)
        for name, one in self.attributes.items():
            if one.axis == "sparse" and copies.changed:
                del made[name]  # it would still hold the edges that are gone
            else:
                made[name] = self.read(copies, name)
        made["edge_index"] = copies.wiring.index[0]
        made.num_nodes = copies.count * self.nodes
        if self.batch is not None or (copies.count > 1 and self.layout.batch):
            made["batch"] = self._graphs(copies.count, "batch")
            if "ptr" in made or self.batch is None:
                made["ptr"] = self._graphs(copies.count, "ptr")
        counted(made, copies, self.num_graphs)
        return made

    def _graphs(self, count: int, name: str) -> Tensor:
        device = self.edge_index.device
        own = self.batch
        if own is None:
            own = torch.zeros(self.nodes, dtype=torch.int64, device=device)
        shift = torch.arange(count, device=own.device) * self.num_graphs
        batch = (own[None] + shift[:, None]).flatten()
        if name == "batch":
            return batch
        sizes = torch.bincount(batch, minlength=count * self.num_graphs)
        return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
