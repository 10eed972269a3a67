"""The order in which greedy pruning decides edges. The order is part of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphprune.core.graph import ComputationalGraph
from graphprune.core.mask import require_same_graph
from graphprune.core.scores import EdgeScores
from graphprune.errors import InputError, unknown_name
from graphprune.util.paths import components

__all__ = [
    "ORDERS",
    "EdgeOrder",
    "edge_order",
    "is_reverse_topological",
    "readers",
]

EdgeOrder = (
    Literal["reverse_topological", "reversed_heads", "reversed_senders", "descending", "ascending"]
    | EdgeScores
    | Sequence[int]
    | Tensor
    | NDArray[np.int64]
)
ORDERS = ("reverse_topological", "reversed_heads", "reversed_senders", "descending", "ascending")

_Numbers = NDArray[np.int64]


def edge_order(graph: ComputationalGraph, order: EdgeOrder = "reverse_topological") -> Tensor:
    """``[E]`` int64: edge numbers, first decided first.

    ``"reverse_topological"``: readers from the output backwards: latest layer first, within a layer
    the last kind of edge first (for transformers MLP, then v, k, q), then the highest index;
    a reader's senders in the same way. Where nodes have no layers, depth (the longest path from a
    source) stands for it. Nodes on a cycle count as one place, in descending order of their
    numbers. ``"reversed_heads"`` and ``"reversed_senders"``: the same readers, each with its
    senders in another order: those of one kind in a layer (heads) from the lowest number, or the
    kinds and layers from the first. ``"descending"`` and ``"ascending"`` go by edge number.
    :class:`EdgeScores`: the least score first, edges of one score in descending order of their
    numbers. A sequence of all edge numbers is taken as it is.
    """
    count = graph.num_edges
    if isinstance(order, str):
        if order == "reverse_topological":
            return torch.from_numpy(_reverse_topological(graph))
        if order in ("reversed_heads", "reversed_senders"):
            return _senders_reversed(graph, _reverse_topological(graph), order)
        if order in ORDERS:
            numbers = torch.arange(count)
            return numbers.flip(0) if order == "descending" else numbers
        raise unknown_name(
            "order", order, ORDERS, "EdgeScores (least first) or a sequence of all edge numbers"
        )
    if isinstance(order, EdgeScores):
        require_same_graph(graph, order.graph, "the model and the scores that order its edges")
        last_first = torch.arange(count).flip(0)
        return last_first[torch.sort(order.values[last_first], stable=True).indices]
    given = torch.as_tensor(order if isinstance(order, Tensor) else np.asarray(order))
    if given.dtype not in (torch.int64, torch.int32) or given.shape != (count,):
        raise InputError(
            f"an order lists the numbers of all {count} edges, got {list(given.shape)} of "
            f"{given.dtype}"
        )
    given = given.to(torch.int64).cpu()
    if not torch.equal(given.sort().values, torch.arange(count)):
        raise InputError(f"an order names each of the {count} edges once; this one does not")
    return given


def readers(graph: ComputationalGraph) -> Tensor:
    """``[E]`` int64: a number for each edge's reader, that is, its target and its port."""
    ports = torch.tensor([kind in graph.ports for kind in graph.edge_kinds])
    port = torch.where(ports[graph.edge_kind.long()], graph.edge_kind.long() + 1, 0)
    return graph.edge_index[1] * (len(graph.edge_kinds) + 1) + port


def is_reverse_topological(graph: ComputationalGraph, order: Tensor) -> bool:
    """Whether all edges that leave a node are decided before any edge that enters it."""
    if not graph.is_acyclic:
        return False
    turn = np.empty(graph.num_edges, dtype=np.int64)
    turn[order.numpy()] = np.arange(graph.num_edges)
    part = _wired(graph)
    sources, targets = part[graph.edge_index.numpy()]
    first_in = np.full(graph.num_nodes, graph.num_edges)
    np.minimum.at(first_in, targets, turn)
    return bool((turn < first_in[sources]).all())


def _wired(graph: ComputationalGraph) -> _Numbers:
    """``[N]``: nodes that wires or coupled groups join bear one number."""
    groups = np.stack([np.arange(graph.num_nodes), graph.representative])
    pairs = np.concatenate([graph.fixed_edge_index.numpy(), groups], axis=1)
    return components(graph.num_nodes, pairs, "weak")


def _reverse_topological(graph: ComputationalGraph) -> _Numbers:
    sources, targets = graph.edge_index.numpy()
    kinds = graph.edge_kind.numpy().astype(np.int64)
    numbers = np.arange(graph.num_nodes)
    layers = _layers(graph)
    if layers is not None:
        index = np.array([-1 if n.index is None else n.index for n in graph.nodes])
        keys = (-numbers[sources], -layers[sources], -index[targets], -kinds, -layers[targets])
        order = np.lexsort(keys)
        if is_reverse_topological(graph, torch.from_numpy(order)):
            return order
    depth = graph.depth
    keys = (-numbers[sources], -depth[sources], -numbers[targets], -kinds, -depth[targets])
    return np.lexsort(keys)


def _senders_reversed(graph: ComputationalGraph, order: _Numbers, which: str) -> Tensor:
    """``order`` with the senders of every reader in another order, see :func:`edge_order`."""
    reader, source = readers(graph).tolist(), graph.edge_index[0].tolist()

    def kind_and_layer(edge: int) -> tuple[str, int | None]:
        sender = graph.nodes[source[edge]]
        return sender.kind, sender.layer

    found: list[int] = []
    for _, edges in groupby(order.tolist(), key=reader.__getitem__):
        groups = [list(group) for _, group in groupby(edges, key=kind_and_layer)]
        if which == "reversed_heads":
            groups = [group[::-1] for group in groups]
        else:
            groups.reverse()
        found += [edge for group in groups for edge in group]
    return torch.tensor(found)


def _layers(graph: ComputationalGraph) -> _Numbers | None:
    """``[N]``: layers, inputs before and outputs after all; ``None`` where some lack."""
    layers = np.array([-1 if node.layer is None else node.layer for node in graph.nodes])
    ends = np.zeros(graph.num_nodes, dtype=bool)
    ends[[*graph.input_nodes, *graph.output_nodes]] = True
    if (layers[~ends] < 0).any() or not len(layers):
        return None
    layers[list(graph.input_nodes)] = -1
    layers[list(graph.output_nodes)] = layers.max() + 1
    return layers
