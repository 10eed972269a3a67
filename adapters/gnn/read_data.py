"""From PyG's ``Data``, ``HeteroData`` or ``Batch`` to :class:`GraphData`, checked."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from graphprune.core.graph_axes import attribute_axes
from graphprune.errors import InputError

from .copies import DataAttribute
from .graph_data import LABELS, GraphData, Relation, StoreKey, store_of

__all__ = ["read_data"]

_MADE = ("edge_index", "batch", "ptr", "num_nodes")  # for copies, from their number


def read_data(data: Any) -> GraphData:
    """The data with what each of its attributes belongs to.

    Raises :class:`InputError` where something is odd.
    """
    from torch_geometric.data import HeteroData

    several = isinstance(data, HeteroData)
    types, batch, relations = _of_types(data) if several else _of_one_type(data)
    by_hand = max((int(one.max()) + 1 for one in batch.values() if one.numel()), default=1)
    graphs = int(getattr(data, "num_graphs", by_hand)) if batch else 1
    axes = list(_hetero_axes(data) if several else _axes(data))
    attributes = {
        (store, name): DataAttribute.of(data, store_of(data, store), name, axis, graphs)
        for store, name, axis in axes
    }
    for (store, name), one in attributes.items():
        read = one.axis == "edge" or (one.axis == "node" and name not in LABELS)
        value = store_of(data, store)[name]
        if read and one.features and value.is_floating_point() and not value.isfinite().all():
            raise InputError(f"{_spelled(store)}.{name} holds NaN or infinite values")
    either = () if several else tuple(name for _, name, axis in axes if axis == "either")
    whole = copy.copy(data)
    return GraphData(whole, several, types, relations, attributes, batch, graphs, either=either)


def _of_one_type(
    data: Any,
) -> tuple[dict[str, int], dict[str, Tensor], dict[Relation, Tensor]]:
    """Numbers of nodes and graph numbers by type, and edges by relation."""
    nodes = int(data.num_nodes)
    index = _edge_index(data.edge_index, None, nodes, nodes)
    batch = {} if getattr(data, "batch", None) is None else {"node": data.batch}
    return {"node": nodes}, batch, {("node", "message", "node"): index}


def _of_types(data: Any) -> tuple[dict[str, int], dict[str, Tensor], dict[Relation, Tensor]]:
    """The same of heterogeneous data."""
    types = {name: int(data[name].num_nodes or 0) for name in data.node_types}
    batch = {kind: data[kind].batch for kind in types if "batch" in data[kind]}
    relations: dict[Relation, Tensor] = {}
    for relation in data.edge_types:
        where = _spelled(relation)
        if "edge_index" not in data[relation]:
            raise InputError(f"expected {where}.edge_index as a plain tensor [2, E], got none")
        unknown = sorted({relation[0], relation[2]} - set(types))
        if unknown:
            raise InputError(f"{where} joins nodes of the type {unknown[0]!r}, which has none")
        sources, targets = types[relation[0]], types[relation[2]]
        given = data[relation].edge_index
        relations[relation] = _edge_index(given, relation, sources, targets)
    if len(relations) > 255:
        raise InputError(f"at most 255 edge types can be told apart, got {len(relations)}")
    if len(set(map("__".join, relations))) < len(relations):
        raise InputError("two edge types have the same name once joined by '__'")
    return types, batch, relations


def _edge_index(index: Any, store: StoreKey, sources: int, targets: int) -> Tensor:
    """``[2, E]`` as a plain tensor of its own; raises :class:`InputError` where it is no such."""
    where = f"{_spelled(store)}.edge_index"
    if not isinstance(index, Tensor) or index.layout != torch.strided:
        raise InputError(
            f"expected {where} as a plain tensor [2, E]; a sparse adjacency takes fused "
            "paths that pass no messages one by one"
        )
    edges = index.as_subclass(Tensor).detach().clone()
    if edges.is_floating_point() or edges.dtype in (torch.bool, torch.complex64):
        raise InputError(f"{where} must hold whole numbers of nodes, got {edges.dtype}")
    if edges.ndim != 2 or edges.shape[0] != 2:
        raise InputError(f"{where} must be [2, E], got {list(edges.shape)}")
    for row, nodes in zip(edges, (sources, targets), strict=True):
        if row.numel() and not 0 <= int(row.min()) <= int(row.max()) < nodes:
            raise InputError(f"{where} names a node outside 0..{nodes - 1}")
    return edges


def _spelled(store: StoreKey) -> str:
    """As a user writes it: ``data``, ``data['paper']``."""
    if store is None:
        return "data"
    return f"data[{', '.join(map(repr, [store] if isinstance(store, str) else store))}]"


def _axes(data: Any) -> Iterator[tuple[StoreKey, str, str]]:
    """Each attribute with its store and its axis."""
    for name, axis in attribute_axes(data).items():
        if name not in _MADE:
            yield None, name, axis


def _hetero_axes(data: Any) -> Iterator[tuple[StoreKey, str, str]]:
    for name in data._global_store.keys():  # noqa: SIM118 - a store is no mapping
        yield None, name, "graph"
    for kind in data.node_types:
        for name in data[kind].keys():  # noqa: SIM118
            if name not in _MADE:
                yield kind, name, "node" if data[kind].is_node_attr(name) else "graph"
    for relation in data.edge_types:
        for name, axis in attribute_axes((data, relation)).items():
            if name != "edge_index":
                yield relation, name, axis
