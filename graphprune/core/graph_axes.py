"""The axis of an attribute of PyG data: does it belong to nodes, edges, or whole graphs?

Sizes decide where they can: an attribute of edges has one entry for each edge *in every graph* of a
batch. Where graphs have as many nodes as edges its name decides, by PyG's conventions; and where
the name says nothing either, nothing is guessed: the axis is ``"either"``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from graphprune.errors import InputError

Axis = Literal["node", "edge", "graph", "either"]

# Names that PyG's data sets, transforms and loaders give to what belongs to nodes.
_NODE_NAMES = ("x", "y", "z", "pos", "batch", "n_id", "train_mask", "val_mask", "test_mask",
               "feat", "features", "label", "labels")  # fmt: skip
# Of pairs of nodes that are asked about, however many there are.
_NO_EDGES = ("edge_label",)


def attribute_axes(data: Any, edge_attrs: Iterable[str] | None = None) -> dict[str, Axis]:
    """The axis of every attribute of a ``Data`` or ``Batch``, or of one relation of ``HeteroData``.

    Args:
        data: the data, or a pair ``(heterogeneous data, edge type)``.
        edge_attrs: names that belong to edges, said by the user; of all other names that could
            belong to either, the nodes are meant then. ``None`` means not said.

    Raises:
        InputError: a name of ``edge_attrs`` is missing or has no entry for each edge.
    """
    whole, kind = data if isinstance(data, tuple) else (data, None)
    store = whole if kind is None else whole[kind]
    slices: Mapping[Any, Any] = getattr(main_store(whole), "_slice_dict", None) or {}
    if kind is not None:
        slices = slices.get(kind, {})
    nodes = [int(whole.num_nodes)] if kind is None else []
    edges = [int(store.edge_index.shape[1])]
    split = _steps(slices.get("edge_index")), _steps(store.get("ptr"))
    axes: dict[str, Axis] = {}
    for name in store.keys():  # noqa: SIM118 - PyG's data is no mapping
        size = _size(whole, store, name)
        sizes = [] if size is None else [size]
        many, each = nodes, edges
        if slices.get(name) is not None and split[0] is not None:
            sizes, each = _steps(slices[name]) or [], split[0]
            many = nodes and (split[1] or [])
        of_nodes = bool(sizes) and sizes == many
        of_edges = bool(sizes) and sizes == each and not _asks(name)
        axes[name] = _axis(name, of_nodes, of_edges)
    return axes if edge_attrs is None else _said(axes, set(edge_attrs))


def _axis(name: str, of_nodes: bool, of_edges: bool) -> Axis:
    if of_nodes and of_edges:
        if "edge" in name:
            return "edge"
        return "node" if name in _NODE_NAMES or "node" in name else "either"
    return "node" if of_nodes else "edge" if of_edges else "graph"


def _asks(name: str) -> bool:
    """``True`` if an attribute holds numbers of nodes, or of pairs asked about: of no edge."""
    return name.startswith(_NO_EDGES) or ("index" in name and name != "edge_index")


def _size(whole: Any, store: Any, name: str) -> int | None:
    value = store[name]
    if isinstance(value, list | tuple):
        return len(value)
    if not isinstance(value, Tensor) or value.ndim == 0 or value.layout != torch.strided:
        return None
    axis = whole.__cat_dim__(name, value, store)
    return int(value.shape[axis]) if isinstance(axis, int) else None


def _steps(slices: Any) -> list[int] | None:
    return None if slices is None else torch.as_tensor(slices).diff().tolist()


def _said(axes: dict[str, Axis], names: set[str]) -> dict[str, Axis]:
    for name in sorted(names):
        if axes.get(name) not in ("edge", "either"):
            raise no_edge_attribute(name)
    return {
        name: ("edge" if name in names else "node") if axis == "either" else axis
        for name, axis in axes.items()
    }


def edge_subset(
    made: Any, kept: Tensor, axes: Mapping[str, Axis], data: Any, kind: Any = None
) -> None:
    """Leaves in ``made`` (a copy of ``data``) the entries of edges ``kept [E]`` bool alone."""
    from torch_geometric.utils import select

    store, into = (data, made) if kind is None else (data[kind], made[kind])
    for name, axis in axes.items():
        if axis == "edge":
            value = store[name]
            mask = kept.to(value.device) if isinstance(value, Tensor) else kept
            into[name] = select(value, mask, dim=data.__cat_dim__(name, value, store))
    forget_axes(made)


def main_store(data: Any) -> Any:
    """The store of PyG's data that holds facts on the data as a whole."""
    from torch_geometric.data import HeteroData

    return data._global_store if isinstance(data, HeteroData) else data._store


def forget_axes(made: Any) -> None:
    """Drops what PyG remembers of a copy's attributes: sizes that the copy no longer has."""
    for store in made.stores:
        store.__dict__.pop("_cached_attr", None)


def no_edge_attribute(name: str) -> InputError:
    """The error for a name of ``edge_attrs`` that no attribute of edges has."""
    return InputError(f"edge_attrs names {name!r}, which has no entry for each edge of the data")


def unclear(names: Iterable[str]) -> InputError:
    """The error where a name and a size do not say what an attribute belongs to."""
    some = ", ".join(f"data.{name}" for name in names)
    return InputError(
        f"the data has as many nodes as edges, so whether {some} belongs to nodes or to edges is "
        "not known; say which belong to edges, mask.apply(data, edge_attrs=[...]) ([]: none), or "
        "give names with 'edge' or 'node' in them"
    )
