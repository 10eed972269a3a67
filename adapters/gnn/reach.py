"""Which questions an edge of a message passing network can change: those within its hops.

A message changes its target and, with each further propagation, whatever that sends to. Deleting an
edge also changes what layers count at both of its ends. Layers that join nodes in another way (a
norm over all nodes, a pooling) reach farther: runs tell, and whoever relies on this looks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphprune.core.batch import Batch
from graphprune.core.graph import ComputationalGraph
from graphprune.core.reach import EdgeReach

from .messages import MessageReference

__all__ = ["edge_reach"]

_MOST = 20_000_000  # pairs of an edge's end and a node, or a question, that it reaches


def edge_reach(
    graph: ComputationalGraph, batch: Batch, reference: MessageReference
) -> EdgeReach | None:
    """The reach of each edge, or ``None`` where it is not known or too large to write down."""
    from scipy.sparse import csr_array, eye_array

    if reference.module.why_unseen:
        return None
    asked = _asked(batch, reference)
    if asked is None:
        return None
    seen, nodes = reference.clean[0], graph.num_nodes
    source, target = graph.untied.edge_index.numpy()
    deletes = reference.ablation.kind == "delete"
    both_ways = any(one.end == 0 for one in seen)
    if asked.shape[0] == nodes:
        step = _ones(source, target, (nodes, nodes)) + eye_array(nodes, format="csr")
        step = step + step.T if both_ways else step
        ends = eye_array(nodes, format="csr").astype(np.float32)
        for _ in range(len(seen) - (0 if deletes else 1)):
            if _terms(ends, step) > 4 * _MOST:
                return None
            ends = _as_ones(ends @ step)
        if _terms(ends, asked) > 4 * _MOST:
            return None
        reached = _as_ones(ends @ asked)
    else:
        reached = asked[_graph_of(reference), :]
    if graph.ties is None and not deletes and not both_ways:
        group = target
    else:  # both ends of an edge count
        edge = np.arange(len(source)) if graph.ties is None else graph.ties.edge.numpy()
        rows = np.concatenate([edge, edge])
        ends_of = _ones(rows, np.concatenate([source, target]), (graph.num_edges, nodes))
        if _terms(ends_of, reached) > 4 * _MOST:
            return None
        reached, group = _as_ones(ends_of @ reached), np.arange(graph.num_edges)
    if reached.nnz > _MOST:
        return None
    found = csr_array(reached)
    return EdgeReach(
        group.astype(np.int64),
        found.indptr.astype(np.int64),
        found.indices.astype(np.int64),
        batch.size,
    )


def _terms(one: Any, other: Any) -> int:
    """How many terms the product of two sparse matrices sums."""
    return int(np.diff(other.indptr)[one.indices].sum())


def _asked(batch: Batch, reference: MessageReference) -> Any:
    """``[N, B]`` (of graphs ``[G, B]``): which examples are about each node; ``None``: unknown."""
    data, rows = reference.module.call.data, reference.module.rows
    if rows.level == "graph":
        numbers = rows.asked(batch)
        if data.num_graphs == 1:
            return None
        return _ones(numbers.numpy(), np.arange(batch.size), (data.num_graphs, batch.size))
    if batch.positions is None:
        return None
    at: Tensor = batch.positions.cpu().reshape(batch.size, -1)
    if rows.level == "pair":
        if data.heterogeneous or at.shape[1] > 1:
            return None
        at = data.whole["edge_label_index"].cpu()[:, at[:, 0].clamp(min=0)].T
    example = torch.arange(batch.size)[:, None].expand(at.shape)
    told = at >= 0
    return _ones(at[told].numpy(), example[told].numpy(), (data.num_nodes, batch.size))


def _graph_of(reference: MessageReference) -> NDArray[np.int64]:
    """``[N]``: each node's graph."""
    data = reference.module.call.data
    parts = [data.batch[name].cpu() for name in data.types if name in data.batch]
    return torch.cat(parts).numpy()


def _ones(rows: Any, columns: Any, shape: tuple[int, int]) -> Any:
    from scipy.sparse import csr_array

    values = np.ones(len(rows), dtype=np.float32)
    return _as_ones(csr_array((values, (rows, columns)), shape=shape))


def _as_ones(matrix: Any) -> Any:
    matrix.data = np.ones_like(matrix.data)
    return matrix
