"""What a computational graph is made of: nodes, tied edges, and the names of edges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from graphprune.errors import InputError


@dataclass(frozen=True)
class Node:
    """A component of a model.

    ``name`` is unique in its graph; ``kind`` says what it is (``"head"``, ``"mlp"``, ...);
    ``layer`` and ``index`` place it where that makes sense; ``attributes`` holds plain Python
    values.

    Example:
        >>> gp.Node("a3.h1", kind="head", layer=3, index=1).layer
        3
        >>> lm.graph.nodes[1]
        Node(name='a0.h0', kind='head', layer=0, index=0, attributes={})
    """

    name: str
    kind: str = "node"
    layer: int | None = None
    index: int | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def numbered(
        cls, count: int, kind: str, prefix: str = "", *, index: bool = False
    ) -> list[Node]:
        """Nodes named by number behind ``prefix``, quicker than one by one: graphs may be large.

        ``index``: whether the number is their index too.

        Example:
            >>> gp.Node.numbered(2, "paper", "paper:", index=True)[1].name
            'paper:1'
        """
        made = []
        for number in range(count):
            node = object.__new__(cls)
            vars(node).update(
                name=f"{prefix}{number}", kind=kind, layer=None,
                index=number if index else None, attributes={},
            )  # fmt: skip
            made.append(node)
        return made


@dataclass(frozen=True, eq=False)
class Ties:
    """The M messages of a graph that has fewer edges than messages: some edges stand for two.

    An edge of an undirected graph is one edge to prune and a message in each direction: it has one
    mask value, one score and one fate.

    Args:
        index: ``[2, M]`` sources over targets of the messages, as they stand in the user's data.
        kind: ``[M]`` uint8, as ``edge_kind``.
        edge: ``[M]`` int64: the edge that each message belongs to.

    Example:
        >>> from torch_geometric.nn import GCNConv
        >>> gp.wrap(GCNConv(4, 2), data=data).graph.ties.edge.bincount()
        tensor([2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2])
    """

    index: Int64[Tensor, "2 message"]
    kind: UInt8[Tensor, " message"]
    edge: Int64[Tensor, " message"]

    def __post_init__(self) -> None:
        owners = torch.unique(self.edge)
        if not torch.equal(owners, torch.arange(len(owners))):
            raise InputError("ties number edges 0, 1, ..., each with at least one message")

    @property
    def first(self) -> Tensor:
        """``[E]``: each edge's first message, whose direction stands in ``edge_index``."""
        edges = int(self.edge.max()) + 1 if self.edge.numel() else 0
        first = torch.full((edges,), len(self.edge))
        return first.scatter_reduce(0, self.edge, torch.arange(len(self.edge)), "amin")

    @property
    def others(self) -> Tensor:
        """``[M - E]``: all messages but the first of each edge."""
        there = torch.ones(len(self.edge), dtype=torch.bool)
        there[self.first] = False
        return torch.nonzero(there)[:, 0]

    @property
    def two_way(self) -> Tensor:
        """``[E]`` bool: edges that stand for two messages."""
        return torch.bincount(self.edge) > 1


class EdgeNames(Sequence[str]):
    """The edges' names, all different, made one at a time: millions cost no strings until asked.

    A name is ``source->target``, or ``one--other`` where the edge stands for both directions, with
    ``<kind>`` behind it where the kind is a port. An edge whose
    name an earlier edge has gets the next free number behind it: the second of two edges ``0->1``
    is ``0->1#2``, or ``0->1#3`` where some other edge is called ``0->1#2``.

    Args:
        nodes: the graph's.
        edge_index, edge_kind: ``[2, E]`` and ``[E]``.
        ports: of each kind what stands behind a name, ``"<q>"`` or nothing.
        two_way: ``[E]`` bool: edges that stand for both directions.

    Example:
        >>> list(gp.ComputationalGraph.from_edges([("0", "1"), ("0", "1"), ("1", "0")]).edge_names)
        ['0->1', '0->1#2', '1->0']
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        edge_index: Tensor,
        edge_kind: Tensor,
        ports: Sequence[str],
        two_way: Tensor,
    ) -> None:
        self._nodes, self._index, self._kind = nodes, edge_index, edge_kind
        self._ports, self._two_way = ports, two_way

    def __len__(self) -> int:
        return int(self._index.shape[1])

    @overload
    def __getitem__(self, item: int) -> str: ...
    @overload
    def __getitem__(self, item: slice) -> list[str]: ...
    def __getitem__(self, item: int | slice) -> str | list[str]:
        if isinstance(item, slice):
            return [self[i] for i in range(*item.indices(len(self)))]
        if not -len(self) <= item < len(self):
            raise IndexError(f"edge {item} of a graph with {len(self)} edges")
        return next(self._named(torch.tensor([item % len(self)])))

    def __iter__(self) -> Iterator[str]:
        return self._named(torch.arange(len(self)))

    def at(self, chosen: Tensor) -> list[str]:
        """The names of some edges, by a boolean mask ``[E]`` or by numbers, all made at once."""
        numbers = torch.nonzero(chosen)[:, 0] if chosen.dtype == torch.bool else chosen
        return list(self._named(torch.where(numbers < 0, numbers + len(self), numbers)))

    def _named(self, numbers: Tensor) -> Iterator[str]:
        repeated = self.repeated
        plain = self._plain(numbers)
        if not repeated:
            return plain
        return (repeated.get(i, n) for i, n in zip(numbers.tolist(), plain, strict=True))

    def _plain(self, numbers: Tensor) -> Iterator[str]:
        nodes, index, kinds = self._nodes, self._index[:, numbers], self._kind[numbers]
        joined = ("->", "--")
        rows = zip(*index.tolist(), kinds.tolist(), self._two_way[numbers].tolist(), strict=True)
        for source, target, kind, both in rows:
            yield f"{nodes[source].name}{joined[both]}{nodes[target].name}{self._ports[kind]}"

    @cached_property
    def repeated(self) -> dict[int, str]:
        """Numbers of the edges whose plain name an earlier edge has, with the names they get."""
        if not self._may_repeat():
            return {}
        plain = list(self._plain(torch.arange(len(self))))
        taken, count = set(plain), dict.fromkeys(plain, 0)
        renamed: dict[int, str] = {}
        for number, name in enumerate(plain):
            count[name] += 1
            if count[name] > 1:
                while f"{name}#{count[name]}" in taken:
                    count[name] += 1
                renamed[number] = f"{name}#{count[name]}"
                taken.add(renamed[number])
        return renamed

    def _may_repeat(self) -> bool:
        """``True`` if two edges can have one plain name: by numbers, without making the names.

        Names of nodes without the marks that edge names are put together with leave no two ways to
        read an edge's name, so that only edges with the same ends and port share theirs.
        """
        marks = ("->", "<", "#", *(["--"] if bool(self._two_way.any()) else []))
        if any(mark in node.name for node in self._nodes for mark in marks):
            return True
        place = {port: i for i, port in enumerate(dict.fromkeys(self._ports))}
        port = np.array([place[p] for p in self._ports], dtype=np.int64)[self._kind.numpy()]
        source, target = self._index.numpy()
        keys = np.sort((source * len(self._nodes) + target) * max(len(place), 1) + port)
        return bool((keys[1:] == keys[:-1]).any())

    def __repr__(self) -> str:
        shown = ", ".join(repr(self[i]) for i in range(min(3, len(self))))
        return f"EdgeNames([{shown}{', ...' if len(self) > 3 else ''}], length {len(self)})"
