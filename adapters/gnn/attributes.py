"""Attributes of the user's data, and how they are copied side by side.

What belongs to nodes or edges is repeated copy after copy, and numbers of nodes in it move along as
in PyG's batches. What belongs to whole graphs (``data.u``, ``data.scale``) is one for each graph in
a batch, and in data of one graph what the user reads: which of the two a module needs is tried when
it is wrapped (:class:`Layout`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from graphprune.core.graph_axes import main_store
from graphprune.errors import InputError, UnsupportedModelError

if TYPE_CHECKING:
    from .replicas import Wiring

__all__ = [
    "LABELS",
    "Attribute",
    "Copies",
    "Layout",
    "counted",
    "described",
    "finite",
    "near",
    "repeated",
]

LABELS = ("y",)


Axis = Literal["node", "edge", "graph", "same", "sparse"]


@dataclass(frozen=True)
class Layout:
    """How copies are laid side by side.

    Args:
        graphs: what belongs to whole graphs is repeated as ``"rows"`` as PyG batches it, only where
            it has one row (``"ones"``), or is the ``"same"`` for all copies.
        batch: whether data of one graph gets a batch vector once there are several copies.
    """

    graphs: Literal["rows", "ones", "same"] = "rows"
    batch: bool = True


@dataclass(frozen=True, eq=False)
class Copies:
    """Copies of the data side by side.

    Args:
        given: node tensors ``[k * N, ...]`` by name.
        count: how many.
        wiring: their edges.
        kept: which edges of all copies the wiring holds, by relation; ``None``: all.
        instead: tensors ``[k * E_r, ...]`` in place of the data's, named as ``Source.edge`` is.
    """

    given: Mapping[str, Tensor]
    count: int
    wiring: Wiring
    kept: tuple[Tensor, ...] | None = None
    instead: Mapping[Any, Tensor] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        """Whether there are other nodes or edges than the data's."""
        return self.count > 1 or self.kept is not None


@dataclass(frozen=True, eq=False)
class Attribute:
    """What an attribute belongs to.

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


def described(whole: Any, store: Any, name: str, axis: str, graphs: int) -> Attribute:
    """How the attribute ``name`` of a store of PyG data is copied."""
    value = store[name]
    if axis == "either":  # until a smaller graph decides
        axis = "node"
    if isinstance(value, list | tuple):
        several = graphs > 1 and len(value) == graphs
        return Attribute(axis if axis != "graph" or several else "same")  # type: ignore[arg-type]
    if not isinstance(value, Tensor):
        return Attribute("sparse" if type(value).__name__ == "SparseTensor" else "same")
    if value.layout != torch.strided:
        return Attribute("sparse")
    dim = whole.__cat_dim__(name, value, store) if value.ndim else None
    if not isinstance(dim, int):
        return Attribute("same")
    dim %= value.ndim
    step: Any = 0
    if not value.is_floating_point() and value.dtype != torch.bool and value.numel():
        step = graphs if name.endswith("batch") else whole.__inc__(name, value, store)
    shift = torch.as_tensor(step, device=value.device)
    moves = bool((shift != 0).any())
    return Attribute(axis, dim, shift if moves else None, dim == 0)  # type: ignore[arg-type]


def repeated(
    attribute: Attribute,
    value: Any,
    copies: Copies,
    relation: int,
    key: Any,
    *,
    layout: Layout,
    given: Tensor | None = None,
) -> Any:
    """The attribute's ``value`` for all copies; ``given``: entries of all copies in its place."""
    axis, count, dim = attribute.axis, copies.count, attribute.dim
    kept = copies.kept[relation] if axis == "edge" and copies.kept is not None else None
    if axis == "sparse" and copies.changed:
        raise UnsupportedModelError(
            f"the module reads data.{key}, a sparse adjacency, which holds edges of its own that "
            "no mask reaches; hand it edge_index"
        )
    if axis in ("same", "sparse"):
        return value
    if isinstance(value, list | tuple):
        many = list(value) * count
        return many if kept is None else [v for v, k in zip(many, kept.tolist(), strict=True) if k]
    instead = copies.instead.get(key) if axis == "edge" else given
    if axis == "graph" and (
        layout.graphs == "same" or (layout.graphs == "ones" and value.shape[dim] != 1)
    ):
        return value
    if instead is not None and attribute.features and attribute.shift is None:
        some = instead
    elif count == 1 and instead is None:
        some = value
    else:
        rows = value[None] if instead is None else instead.unflatten(0, (count, value.shape[dim]))
        rows = rows.movedim(dim + 1, 1).expand(count, *value.movedim(dim, 0).shape)
        if attribute.shift is not None:
            shift, number = attribute.shift, torch.arange(count, device=value.device)
            if shift.ndim == value.ndim:
                shift = shift.movedim(dim, 0)
            rows = rows + number.view(-1, *[1] * (rows.ndim - 1)) * shift
        some = rows.flatten(0, 1).movedim(0, dim)
    return some if kept is None else some.index_select(dim, kept.nonzero()[:, 0])


def counted(made: Any, copies: Copies, graphs: int) -> None:
    """Makes a PyG batch of copies know how many graphs of ``graphs`` each it holds."""
    store = main_store(made)
    if hasattr(store, "_num_graphs"):
        store._num_graphs = copies.count * graphs
        if copies.changed and hasattr(store, "_slice_dict"):
            del store._slice_dict  # where each graph's edges began: PyG refuses what needs it


def finite(value: Tensor, where: str) -> None:
    """Raises :class:`InputError` for a NaN or an infinity."""
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise InputError(f"{where} holds NaN or infinite values")


def near(found: Tensor, wanted: Tensor) -> bool:
    """Whether two tensors are equal but for rounding, NaN and infinities in the same places."""
    room = 1e-9 if wanted.dtype == torch.float64 else 1e-4
    if found.shape != wanted.shape:
        return False
    odd = ~torch.isfinite(wanted)
    if not torch.equal(odd, ~torch.isfinite(found)):
        return False
    if not torch.equal(torch.nan_to_num(found[odd]), torch.nan_to_num(wanted[odd])):
        return False
    if bool(odd.all()):
        return True
    size = 1.0 + float(wanted[~odd].abs().max())
    return float((found[~odd] - wanted[~odd]).abs().max()) <= room * size
