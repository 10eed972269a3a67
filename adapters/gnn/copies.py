"""Copies of one graph side by side: examples and masks become disjoint copies in one pass.

A batch of graphs is block-diagonal, so what a copy computes depends on no other. Examples that
share their features (nodes of one graph, graphs of one batch) share a copy wherever they share a
mask. Edges stand relation after relation (a homogeneous graph has one), and those of k copies are
numbered copy after copy: edge e of copy c is ``c * E + e``.

What belongs to nodes or edges is repeated copy after copy, and numbers of nodes in it move along as
in PyG's batches. What belongs to whole graphs (``data.u``, ``data.scale``) is one for each graph in
a batch, and in data of one graph what the user reads: which of the two a module needs is tried when
it is wrapped (:class:`BatchLayout`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from graphprune.errors import UnsupportedModelError

__all__ = ["BatchLayout", "CopiedEdges", "DataAttribute", "GraphCopies", "plain_tensor", "repeated"]

Axis = Literal["node", "edge", "graph", "same", "sparse"]


def plain_tensor(index: Tensor) -> Tensor:
    """The tensor behind PyG's ``EdgeIndex``; others as they are.

    A sorted ``EdgeIndex`` takes fused paths, which pass no messages one by one.
    """
    from torch_geometric import EdgeIndex

    plain: Tensor = index.as_tensor() if isinstance(index, EdgeIndex) else index
    return plain


@dataclass(frozen=True)
class BatchLayout:
    """How copies are laid side by side.

    Args:
        graphs: what becomes of values that belong to whole graphs. ``"rows"``: they are repeated,
            as PyG batches them; ``"ones"``: only those of one row are; ``"same"``: none is, all
            copies read the same.
        batch: whether data of one graph gets a batch vector once there are several copies.
        alone: whether copies feed each other side by side, so that each is run by itself.
    """

    graphs: Literal["rows", "ones", "same"] = "rows"
    batch: bool = True
    alone: bool = False


@dataclass(frozen=True, eq=False)
class CopiedEdges:
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

    def relation_of(self, value: object) -> int | None:
        """The relation whose tensor ``value`` is, itself or as a view of all of it."""
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            return None
        value = plain_tensor(value)
        for number, edges in enumerate(self.index):
            if value is edges or (
                edges.numel()
                and value.data_ptr() == edges.data_ptr()
                and value.shape == edges.shape
                and value.stride() == edges.stride()
            ):
                return number
        return None

    def only(self, kept: Tensor) -> tuple[CopiedEdges, tuple[Tensor, ...]]:
        """The edges ``kept [k * E]`` bool alone, and ``[M_r]`` of each relation: which they are."""
        which = tuple(kept[numbers] for numbers in self.numbers)
        index = tuple(i[:, part] for i, part in zip(self.index, which, strict=True))
        numbers = tuple(n[part] for n, part in zip(self.numbers, which, strict=True))
        return CopiedEdges(self.names, index, numbers, self.bipartite), which


@dataclass(frozen=True, eq=False)
class GraphCopies:
    """Copies of the data side by side.

    Args:
        node_tensors: node tensors ``[k * N, ...]`` by name, in place of the data's.
        count: k.
        edges: their edges.
        kept: which edges of all copies there are, by relation; ``None`` means all.
        edge_tensors: edge tensors ``[k * E_r, ...]`` in place of the data's, named as
            ``GraphData.edge_tensors`` is.
    """

    node_tensors: Mapping[str, Tensor]
    count: int
    edges: CopiedEdges
    kept: tuple[Tensor, ...] | None = None
    edge_tensors: Mapping[Any, Tensor] = field(default_factory=dict)

    @property
    def differs(self) -> bool:
        """Whether there are other nodes or edges than the data's."""
        return self.count > 1 or self.kept is not None


@dataclass(frozen=True, eq=False)
class DataAttribute:
    """What an attribute of the data belongs to.

    Args:
        axis: ``"node"``, ``"edge"``, ``"graph"``; ``"same"``: it has no entries to repeat;
            ``"sparse"``: an adjacency, which holds edges of its own.
        dim: the dimension along which its entries stand.
        shift: what is added to its numbers from copy to copy.
        features: whether it is a tensor with its entries along the first dimension.
    """

    axis: Axis
    dim: int = 0
    shift: Tensor | None = None
    features: bool = False

    @classmethod
    def of(cls, whole: Any, store: Any, name: str, axis: str, graphs: int) -> DataAttribute:
        """Of the attribute ``name`` of a store of PyG data, which holds ``graphs`` graphs."""
        value = store[name]
        if axis == "either":  # until a smaller graph decides
            axis = "node"
        if isinstance(value, list | tuple):
            several = graphs > 1 and len(value) == graphs
            return cls(axis if axis != "graph" or several else "same")  # type: ignore[arg-type]
        if not isinstance(value, Tensor):
            return cls("sparse" if type(value).__name__ == "SparseTensor" else "same")
        if value.layout != torch.strided:
            return cls("sparse")
        dim = whole.__cat_dim__(name, value, store) if value.ndim else None
        if not isinstance(dim, int):
            return cls("same")
        dim %= value.ndim
        step: Any = 0
        if not value.is_floating_point() and value.dtype != torch.bool and value.numel():
            step = graphs if name.endswith("batch") else whole.__inc__(name, value, store)
        shift = torch.as_tensor(step, device=value.device)
        moves = bool((shift != 0).any())
        return cls(axis, dim, shift if moves else None, dim == 0)  # type: ignore[arg-type]


def repeated(
    attribute: DataAttribute,
    value: Any,
    copies: GraphCopies,
    name: str,
    layout: BatchLayout,
    *,
    kept: Tensor | None = None,
    instead: Tensor | None = None,
) -> Any:
    """The attribute ``name`` for all copies: its ``value`` in each, or the entries ``instead``.

    ``kept [k * E_r]`` bool: the edges that are there, where it belongs to edges and some are not.
    """
    axis, count, dim = attribute.axis, copies.count, attribute.dim
    if axis == "sparse" and copies.differs:
        raise UnsupportedModelError(
            f"the module reads data.{name}, a sparse adjacency, which holds edges of its own that "
            "no mask reaches; hand it edge_index"
        )
    if axis in ("same", "sparse"):
        return value
    if isinstance(value, list | tuple):
        many = list(value) * count
        return many if kept is None else [v for v, k in zip(many, kept.tolist(), strict=True) if k]
    if axis == "graph" and (
        layout.graphs == "same" or (layout.graphs == "ones" and value.shape[dim] != 1)
    ):
        return value
    if instead is not None and attribute.features and attribute.shift is None:
        entries = instead
    elif count == 1 and instead is None:
        entries = value
    else:
        rows = value[None] if instead is None else instead.unflatten(0, (count, value.shape[dim]))
        rows = rows.movedim(dim + 1, 1).expand(count, *value.movedim(dim, 0).shape)
        if attribute.shift is not None:
            shift, number = attribute.shift, torch.arange(count, device=value.device)
            if shift.ndim == value.ndim:
                shift = shift.movedim(dim, 0)
            rows = rows + number.view(-1, *[1] * (rows.ndim - 1)) * shift
        entries = rows.flatten(0, 1).movedim(0, dim)
    return entries if kept is None else entries.index_select(dim, kept.nonzero()[:, 0])
